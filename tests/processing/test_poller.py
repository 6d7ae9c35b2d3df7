"""The poller through an outage: what was polled is delivered, whatever fails in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from streams import Event, EventBus, Flow, Streams
from streams.engine.commit_pace import LONGEST_LOOK
from streams.engine.dedup_window import PROCESS_BUDGET, DedupWindow
from streams.errors import Unavailable
from streams.log.memory.log import MemoryLog
from streams.log.memory.subscription import MemorySubscription
from streams.log.protocol import Retention
from streams.log.url import open_log
from streams.processing import committer, partition_lifecycle, poller
from streams.processing.committer import OffsetCommitter
from streams.processing.partition_lifecycle import PartitionLifecycle
from streams.replay import replay
from streams.testing import Clock
from tests.processing.support import until


async def test_an_outage_at_the_commit_of_the_start_loses_nothing() -> None:
    """The group's place has been trimmed away, so its new start is committed first; that fails."""
    url = f"memory://{uuid4().hex}"
    log = open_log(url)
    log.create_topic("numbers", 1, Retention(messages=100))
    app = Streams(url)
    topic = app.topic("numbers", int)
    async with app.connected():
        await topic.publish_many(range(10))
    first, _ = log.watermarks("numbers", 0)
    log.initialize_offsets("g", "numbers", {0: first - 5})
    handled: list[int] = []
    over = asyncio.Event()
    failures = 3
    polls = polled = 0

    def strike(point: str, subject: str) -> None:
        nonlocal failures, polls, polled
        polls += point == "poll"
        if point == "commit.before" and failures:
            failures -= 1
            # Unless it is polled meanwhile, a member is not told of rebalances, and the place of a
            # former generation is refused for ever.
            assert polls > polled or failures == 2
            polled = polls
            assert not handled, "delivered before its start was committed"
            raise Unavailable("the log is away for a moment")

    @app.processor(topic, group="g", flow=Flow(commit=0.05))
    async def handle(value: int) -> None:
        handled.append(value)
        if len(handled) == 11:
            over.set()

    async with app:
        assert isinstance(app.log, MemoryLog)
        app.log.fault(strike)
        await topic.publish(10)
        async with asyncio.timeout(30):
            await over.wait()
    log.close()
    assert failures == 0
    assert handled == list(range(11))


@pytest.mark.parametrize(("pause_after", "resume_delay"), [(3_600.0, 0.0), (0.0, 3_600.0)])
async def test_while_results_are_not_confirmed_the_driver_is_not_paused(
    monkeypatch: pytest.MonkeyPatch, pause_after: float, resume_delay: float
) -> None:
    """As much is held as may be, and handlers have nothing to do: that is no long wait yet. A
    driver that was paused has thrown away what it had fetched, and may need long to go on."""
    monkeypatch.setattr(poller, "PAUSE_AFTER", pause_after)
    monkeypatch.setattr(MemorySubscription, "resume_delay", resume_delay)
    app = Streams(f"memory://{uuid4().hex}")
    app.clock = clock = Clock()
    source, target = app.topic("numbers", int), app.topic("results", int)
    away = True

    def strike(point: str, subject: str) -> None:
        if away and point == "append" and subject == "results":
            raise Unavailable("the log is away for a moment")

    @app.processor(source, group="g", to=target, concurrency=4, flow=Flow(messages=4, commit=0.05))
    async def handle(value: int) -> int:
        return value

    async with app:
        assert isinstance(app.log, MemoryLog)
        await target.publish(0)
        app.log.fault(strike)
        found = app.processors[0].poller
        assert found is not None
        looks = 0
        capacity = found._capacity

        def look() -> int:
            nonlocal looks
            looks += 1
            return capacity()

        monkeypatch.setattr(found, "_capacity", look)
        await source.publish_many(range(12))
        await until(lambda: capacity() == 0, "it holds all that it may")
        # The executor says that it has nothing to do, again and again.
        for looked in range(5):
            goal = looks + 1
            found._signal_room()
            await until(partial(_reached, lambda: looks, goal), f"look {looked} for room")
        assert not found._driver_paused
        away = False
        clock.advance(60)
        await until(lambda: app.log.watermarks("results", 0)[1] == 13, "all are written")


async def test_what_a_commit_settles_makes_room_without_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exactly-once processor holds what it has handled until that is committed."""
    monkeypatch.setattr(poller, "PAUSE_AFTER", 3_600.0)
    app = Streams(f"memory://{uuid4().hex}")
    source, target = app.topic("numbers", int), app.topic("results", int)

    @app.processor(
        source, group="g", to=target, exactly_once=True, flow=Flow(messages=4, commit=0.05)
    )
    def handle(value: int) -> int:
        return value

    async with app:
        await source.publish_many(range(40))
        await until(lambda: app.stats().published == 80, "all are stored")


@pytest.mark.parametrize("batch", [None, 1])
async def test_a_batch_in_hand_ends_where_its_partition_is_revoked(batch: int | None) -> None:
    """A partition that is given up is kept alive until its handlers have returned, so the time for
    which it is owned says nothing."""
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    began, go_on = threading.Event(), threading.Event()
    handled: list[object] = []

    def handle(value: int) -> None:
        handled.append(value)
        began.set()
        go_on.wait()

    def handle_many(values: list[int]) -> None:
        handle(values[0])

    if batch is None:
        app.processor(topic, group="g")(handle)
    else:
        app.processor(topic, group="g", batch=batch)(handle_many)
    async with app:
        await topic.publish_many(range(10))
        await asyncio.to_thread(began.wait)
        found = app.processors[0].poller
        assert found is not None
        executor, owned = found._executor, list(found._owned.items())
        states = [each.state for assignment, each in owned if assignment.topic == "numbers"]
        try:
            await asyncio.to_thread(executor.revoke, states)
            assert executor.running == 1
        finally:
            go_on.set()
        await until(lambda: not executor.running, "the handler returned")
        assert handled == [0]


def _reached(count: Callable[[], int], goal: int) -> bool:
    return count() >= goal


class Counted:
    """An app on a clock that stands still, whose commits cost nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(committer, "thread_time", lambda: 0.0)
        self.clock = Clock()
        self.app = Streams(f"memory://{uuid4().hex}")
        self.app.clock = self.clock
        self.topic = self.app.topic("numbers", int)
        self.handled: list[int] = []
        self.polls = self.commits = 0

        @self.app.processor(self.topic, group="g", flow=Flow(commit=3_600))
        async def handle(value: int) -> None:
            self.handled.append(value)

    def look(self) -> None:
        """Count from now on."""
        assert isinstance(self.app.log, MemoryLog)
        self.app.log.fault(self._count)

    def _count(self, point: str, subject: str) -> None:
        self.polls += point == "poll"
        self.commits += point == "commit.before"

    def position(self) -> int:
        """Where the group is."""
        return self.app.log.describe_group("g").positions["numbers", 0].position

    async def polled(self, times: int) -> None:
        """Wait until the log was polled so often from now on."""
        enough = self.polls + times
        await until(lambda: self.polls >= enough)


async def test_a_commit_comes_as_soon_as_the_last_one_is_paid_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    async with counted.app:
        counted.look()
        for number in range(5):
            await counted.topic.publish(number)
            await until(partial(_has, counted.handled, number))
            counted.clock.advance(LONGEST_LOOK)
            await until(lambda: counted.position() == len(counted.handled), "it is not committed")
            # Until time passes, what is handled now waits. (A commit is counted after it is made.)
            await counted.polled(1)
            commits = counted.commits
            await counted.topic.publish(number + 100)
            await until(partial(_has, counted.handled, number + 100))
            await counted.polled(3)
            assert counted.commits == commits
            counted.clock.advance(LONGEST_LOOK)
            await until(lambda: counted.position() == len(counted.handled), "it is not committed")
    assert counted.commits <= 2 * 5 + 2  # and one at the start, and one at the end


async def test_one_who_has_nothing_to_do_looks_for_nothing_to_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    snapshots = 0
    snapshot = OffsetCommitter._make_commit

    def count(self: OffsetCommitter, *given: Any) -> Any:
        nonlocal snapshots
        snapshots += 1
        return snapshot(self, *given)

    monkeypatch.setattr(OffsetCommitter, "_make_commit", count)
    async with counted.app:
        counted.look()
        await counted.topic.publish(1)
        await until(partial(_has, counted.handled, 1))
        for _ in range(10):  # what was handled is committed, and then that is seen
            counted.clock.advance(LONGEST_LOOK)
            await counted.polled(1)
        assert counted.position() == 1
        before = snapshots
        for _ in range(10):
            counted.clock.advance(LONGEST_LOOK)
            await counted.polled(1)
        assert snapshots == before


def _has(handled: list[int], number: int) -> bool:
    return number in handled


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the log is away yet when partitions are begun."""
    left, begin = [2], PartitionLifecycle._restore_progress

    def fails(self: PartitionLifecycle, *given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Unavailable("the log is away for a moment")
        return begin(self, *given)

    monkeypatch.setattr(PartitionLifecycle, "_restore_progress", fails)
    return left


async def test_a_replay_that_cannot_begin_begins_later(away: list[int]) -> None:
    app = Streams("memory://")
    topic = app.topic("numbers", int)
    handled: list[int] = []

    async def handle(value: int) -> None:
        handled.append(value)

    async with app.connected():
        await topic.publish_many(range(20))
        result = await replay(app, topic, handle)
    assert away == [0]
    assert result.handled == len(handled) == 20


async def test_an_ephemeral_subscriber_that_cannot_begin_begins_later(away: list[int]) -> None:
    app = Streams("memory://")
    bus = EventBus(app)
    heard: list[Any] = []
    over = asyncio.Event()

    async def hear(event: Event) -> None:
        heard.append(event.data)
        if len(heard) == 20:
            over.set()

    bus.subscribe("order", hear)
    async with app:
        for number in range(20):
            await bus.publish("order", number)
        async with asyncio.timeout(30):
            await over.wait()
    assert away == [0]
    assert heard == list(range(20))


async def test_windows_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pollers of a process share what holds them: none may change it while another looks."""
    make, held = PROCESS_BUDGET.new_window, list[bool]()

    def window(size: int, cap: int) -> DedupWindow:
        held.append(partition_lifecycle._windows_lock.locked())
        return make(size, cap)

    monkeypatch.setattr(PROCESS_BUDGET, "new_window", window)
    app = Streams("memory://")
    topic = app.topic("numbers", int)
    over = asyncio.Event()

    async def handle(value: int) -> None:
        over.set()

    app.processor(topic, group="g")(handle)
    async with app:
        await topic.publish(1)
        async with asyncio.timeout(30):
            await over.wait()
    assert held
    assert all(held)


async def test_one_whose_commits_fail_while_it_holds_enough_is_polled_all_the_same() -> None:
    """A rebalance, on account of which they may fail, is served in poll."""
    app, gate = Streams(f"memory://{uuid4().hex}"), asyncio.Event()
    topic = app.topic("numbers", int)
    handled: list[int] = []
    failed = polls = 0

    def strike(point: str, subject: str) -> None:
        nonlocal failed, polls
        polls += point == "poll"
        if point == "commit.before" and not gate.is_set():
            failed += 1
            raise Unavailable("no commit for now")

    @app.processor(topic, group="g", concurrency=2, flow=Flow(messages=2, commit=0.001))
    async def handle(value: int) -> None:
        if value:
            await gate.wait()
        handled.append(value)

    async with app:
        assert isinstance(app.log, MemoryLog)
        await until(lambda: app.stats().processors["handle"].partitions)
        app.log.fault(strike)
        await topic.publish_many(range(10))
        await until(lambda: failed >= 2, "no commit failed")
        before = polls
        await until(lambda: polls >= before + 2, "it is not polled any more")
        gate.set()
        await until(lambda: len(handled) == 10)
    assert sorted(handled) == list(range(10))
