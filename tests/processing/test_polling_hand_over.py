"""Who polls: the handler's thread while it is quick, the poller's own where it is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from streams import Flow, Retry, Streams
from streams.errors import Fatal, ProcessorDied, Unavailable
from streams.log.memory.log import MemoryLog
from streams.processing import polling_hand_over as polling
from streams.processing.poller import POLL_LIMIT, POLL_LIMIT_DECODED
from streams.processing.polling_hand_over import PollingHandOver
from streams.processor import Processor
from streams.testing import Clock
from streams.topic import Topic
from tests.processing.support import QUICK, until


class Looked:
    """An app on a log in memory, and which threads poll and commit there."""

    def __init__(self) -> None:
        self.app = Streams(f"memory://{uuid4().hex}")
        self.topic = self.app.topic("numbers", int)
        self.points: list[tuple[str, str]] = []
        """What was done, and in which thread."""
        self.raises: BaseException | None = None
        """What the next poll in a handler's thread raises."""
        self.commits_fail = False

    def handles(
        self, flow: Flow = QUICK, topic: Topic[Any] | None = None
    ) -> tuple[Processor[..., Any], list[Any]]:
        """A processor of the topic, or another, and what it was given."""
        handled: list[Any] = []

        @self.app.processor(topic or self.topic, group="g", flow=flow)
        def handle(value: Any) -> None:
            self.points.append(("handled", ""))
            handled.append(value)

        return handle, handled

    def look(self) -> None:
        """From now on."""
        assert isinstance(self.app.log, MemoryLog)
        self.app.log.fault(self._strike)

    def _strike(self, point: str, subject: str) -> None:
        thread = threading.current_thread().name
        self.points.append((point, thread))
        if point == "commit.before" and self.commits_fail:
            raise Unavailable("no commit for now")
        if point == "poll" and thread.endswith("-0") and self.raises is not None:
            error, self.raises = self.raises, None
            raise error

    def since(self, at: int, point: str, thread: str) -> bool:
        """Whether it was done in a thread whose name ends like this."""
        return any(each == point and name.endswith(thread) for each, name in self.points[at:])

    def polls(self, thread: str) -> Callable[[], bool]:
        """Whether it polls from now on."""
        at = len(self.points)
        return lambda: self.since(at, "poll", thread)


def _longer(handled: list[tuple[int, str]], number: int) -> bool:
    return len(handled) > number


def _tried(calls: list[int], value: int) -> bool:
    return calls.count(value) == 3


@pytest.fixture
def looked() -> Looked:
    return Looked()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poller's thread does not take the lead from a handler's thread that is not run."""
    monkeypatch.setattr(polling, "SILENCE", 10_000.0)
    monkeypatch.setattr(polling, "BLOCKED", 10_000.0)


@pytest.mark.usefixtures("patient")
async def test_a_quick_handlers_thread_polls_for_itself(looked: Looked) -> None:
    handled: list[tuple[int, str]] = []

    @looked.app.processor(looked.topic, group="g", flow=QUICK)
    def handle(value: int) -> None:
        handled.append((value, threading.current_thread().name))

    async with looked.app:
        looked.look()
        await until(looked.polls("-0"), "the handler's thread never polled")
        at = len(looked.points)
        for number in range(20):
            await looked.topic.publish(number)
            await until(partial(_longer, handled, number))
        polled = {name for point, name in looked.points[at:] if point == "poll"}
        assert polled == {handled[0][1]}, "another thread polled as well"
    assert [value for value, _ in handled] == list(range(20))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("decoded", "most"), [(True, POLL_LIMIT_DECODED), (False, POLL_LIMIT)])
async def test_less_is_polled_at_once_where_all_is_decoded_first(
    looked: Looked, decoded: bool, most: int
) -> None:
    topic = looked.app.topic("strings", str, id=str if decoded else None)
    _, handled = looked.handles(topic=topic)
    async with looked.app:
        looked.look()
        await until(looked.polls("-0"), "the handler's thread never polled")
        at = len(looked.points)
        await topic.publish_many([str(number) for number in range(3_000)])
        await until(lambda: len(handled) == 3_000)
    runs = [
        len(list(run))
        for point, run in groupby(looked.points[at:], key=lambda each: each[0])
        if point == "handled"
    ]
    assert max(runs) == most


async def test_the_poller_polls_and_commits_while_a_handler_is_slow(looked: Looked) -> None:
    begun, go_on = threading.Event(), threading.Event()
    handled: list[int] = []
    marks: list[int] = []

    @looked.app.processor(looked.topic, group="g", flow=QUICK)
    def handle(value: int) -> None:
        if value == 1:
            marks.append(len(looked.points))  # here: the poller may be quicker than the test
            begun.set()
            assert go_on.wait(60)
        handled.append(value)

    async with looked.app:
        looked.look()
        await until(looked.polls("-0"))
        await looked.topic.publish_many([0, 1, 2])
        await until(begun.is_set)
        (at,) = marks
        await until(lambda: looked.since(at, "poll", "-poller"), "nobody polls")
        await until(lambda: looked.since(at, "commit.before", "-poller"), "0 is not committed")
        assert handled == [0]
        go_on.set()
        await until(lambda: handled == [0, 1, 2])
        await until(looked.polls("-0"), "the lead never came back")


async def test_a_message_that_is_to_be_tried_again_is_tried_in_time(looked: Looked) -> None:
    calls: list[int] = []

    @looked.app.processor(looked.topic, group="g", flow=QUICK, retry=Retry(delay=0.01))
    def handle(value: int) -> None:
        calls.append(value)
        if calls.count(value) < 3:
            raise ValueError(value)

    async with looked.app:
        looked.look()
        for number in range(5):
            await until(looked.polls("-0"))
            await looked.topic.publish(number)
            await until(partial(_tried, calls, number))
    assert sorted(calls) == sorted([*range(5)] * 3)


async def test_an_outage_in_the_handlers_thread_is_waited_out(looked: Looked) -> None:
    _, handled = looked.handles()
    async with looked.app:
        looked.look()
        await until(looked.polls("-0"))
        looked.raises = Unavailable("the log is away for a moment")
        await until(lambda: looked.raises is None)
        await looked.topic.publish(1)
        await until(lambda: handled == [1])


@pytest.mark.usefixtures("patient")
async def test_what_was_polled_is_handled_at_once_though_the_commit_fails(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after a turn that failed is not at its end, before what it polled is handled."""
    handle, handled = looked.handles(Flow(commit=0.001, drain=5))
    async with looked.app:
        looked.look()
        await until(looked.polls("-0"))
        poller = handle.poller
        assert poller is not None

        def rest(seconds: float | None = None) -> bool:
            looked.points.append(("rest", ""))
            return threading.Event().wait(0.02)

        monkeypatch.setattr(poller._stopping, "wait", rest)
        looked.commits_fail = True
        for number in range(5):
            await looked.topic.publish(number)
            await until(partial(handled.__contains__, number))
            at = len(looked.points)
            await until(partial(looked.since, at, "rest", ""), "no commit failed")
        looked.commits_fail = False
    points = [point for point, _ in looked.points]
    assert "rest" in points
    for at, point in enumerate(points):
        if point == "handled":
            polled = max(index for index in range(at) if points[index] == "poll")
            assert "rest" not in points[polled:at]


async def test_a_batch_handler_is_given_full_batches() -> None:
    class Order(msgspec.Struct):
        number: str

    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("orders", Order, id="number")
    sizes: list[int] = []

    @app.processor(topic, group="g", batch=500)
    def handle(orders: list[Order]) -> None:
        sizes.append(len(orders))

    handle.pause()
    async with app:
        await topic.publish_many([Order(str(number)) for number in range(5_000)])
        handle.resume()
        await until(lambda: sum(sizes) == 5_000)
    assert sizes.count(500) >= 9, sizes


async def test_a_stop_does_not_poll_again(looked: Looked) -> None:
    handle, _ = looked.handles()
    async with looked.app:
        looked.look()
        await until(looked.polls("-0"))
        poller = handle.poller
        assert poller is not None
        with poller._hand_over.cycle_lock:  # in the turn of another thread
            at = len(looked.points)
            poller.stop()
            poller._hand_over.handed_over = False
    assert not looked.since(at, "poll", "-poller")


async def test_a_clock_that_is_moved_by_hand_robs_no_member_of_its_lease() -> None:
    clock, looked = Clock(), Looked()
    looked.app.clock = clock
    begun, go_on = threading.Event(), threading.Event()

    @looked.app.processor(looked.topic, group="g", flow=QUICK)
    def handle(value: int) -> None:
        begun.set()
        assert go_on.wait(30)

    async with looked.app:
        looked.look()
        await looked.topic.publish(1)
        await until(begun.is_set)
        clock.advance(120)
        go_on.set()
        await until(lambda: looked.app.stats().processors["handle"].handled == 1)
        assert all(name.endswith("-poller") for point, name in looked.points if point == "poll")


async def test_what_ends_a_turn_in_the_handlers_thread_ends_the_processor(looked: Looked) -> None:
    looked.handles()
    with pytest.raises(ProcessorDied, match="given up for good"):
        async with looked.app:
            looked.look()
            await until(looked.polls("-0"))
            looked.raises = Fatal("given up for good")
            await asyncio.Event().wait()


async def test_a_paused_processor_is_polled_by_the_poller_and_goes_on(looked: Looked) -> None:
    handle, handled = looked.handles()
    async with looked.app:
        looked.look()
        for number in range(3):
            await until(looked.polls("-0"))
            handle.pause()
            await looked.topic.publish(number)
            await until(looked.polls("-poller"), "nobody keeps the membership alive")
            assert number not in handled
            handle.resume()
            await until(partial(handled.__contains__, number))


def test_a_runner_that_wants_the_lead_gets_it_after_the_pollers_turn() -> None:
    taken: list[str] = []
    lead = PollingHandOver(lambda: taken.append(threading.current_thread().name), lambda: True)
    with lead.cycle_lock:  # the poller's turn goes on
        assert not lead.cycle_in_handler()
    assert not lead.handed_over
    assert lead.run_cycle(), "nobody is told"
    assert lead.handed_over
    assert lead.cycle_in_handler()
    assert not lead.run_cycle(), "it waits for nothing, and is told all the same"
    assert len(taken) == 3


def test_the_lead_comes_back_where_the_runner_stays_away() -> None:
    lead = PollingHandOver(lambda: None, lambda: True)
    assert not lead.handler_polls()
    assert lead.cycle_in_handler()
    lead.wake_poller()
    assert lead.cycle_in_handler()
    assert lead.handler_polls(), "it took a turn meanwhile"
    while lead.handler_polls():  # until one look finds no turn since the last
        pass
    assert not lead.handed_over


def test_a_runner_that_may_not_lead_does_not_have_the_lead() -> None:
    allowed = True
    lead = PollingHandOver(lambda: None, lambda: allowed)
    assert lead.cycle_in_handler()
    allowed = False
    assert not lead.cycle_in_handler()
    assert not lead.handed_over


def test_what_a_turn_raises_is_kept_for_the_poller() -> None:
    def turn() -> None:
        raise Fatal("over")

    lead = PollingHandOver(turn, lambda: True)
    assert not lead.cycle_in_handler()
    assert isinstance(lead.failure, Fatal)
    assert not lead.handed_over
    assert not lead.cycle_lock.locked()
