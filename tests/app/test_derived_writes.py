"""Writing derived records (results, dead letters): how their writers are told, and what many that
are not confirmed yet cost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from streams.clock import SYSTEM
from streams.engine.dispatcher import Delivery
from streams.errors import LogError, NotFound, TooLarge, Unavailable
from streams.message import Position, Record
from streams.processing.job import WriteAnswers
from streams.processing.outcomes import MessageCalls, _ResultsWriteCallback, _WriteCallback
from streams.publisher import Publisher
from tests.servers import lifetime

LIMIT = 60.0


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    lifetime.until(ready, LIMIT, what)


OnAppended = Callable[[Sequence[Position | LogError]], None]


class HeldLog:
    """Keeps what is appended until it is told how that ended."""

    def __init__(self) -> None:
        self.appends: list[tuple[str, Sequence[Record], OnAppended]] = []
        self.blocked: threading.Event | None = None

    def append(self, topic: str, records: Sequence[Record], done: OnAppended) -> None:
        if self.blocked is not None:
            self.blocked.wait()
        self.appends.append((topic, records, done))

    def flush(self, timeout: float) -> None:
        """Nothing is waited for."""

    def confirm(self, *refused: int, error: LogError | None = None) -> None:
        """Answer the oldest append; some of its records may be refused."""
        topic, records, done = self.appends.pop(0)
        done(
            [
                error if error is not None and index in refused else Position(topic, 0, index)
                for index in range(len(records))
            ]
        )

    def records(self) -> int:
        """How many are kept."""
        return sum(len(records) for _, records, _ in self.appends)


@pytest.fixture
def log() -> HeldLog:
    return HeldLog()


@pytest.fixture
def publisher(log: HeldLog) -> Iterator[Publisher]:
    found: Any = log
    publisher = Publisher(found, SYSTEM)
    publisher.start()
    yield publisher
    publisher.close(10.0)


def record(number: int) -> Record:
    return Record(b"%d" % number, None, f"id-{number}", ())


def test_the_answers_of_one_append_are_one_action(log: HeldLog, publisher: Publisher) -> None:
    actions: list[Callable[[], None]] = []
    told: list[int] = []
    log.blocked = threading.Event()
    for number in range(1_000):
        publisher.publish_durably(
            [("results", record(number))],
            lambda errors, number=number: told.append(number),  # type: ignore[misc]
            actions.append,
        )
    log.blocked.set()
    until(lambda: log.records() == 1_000, "all were appended")
    appends = len(log.appends)
    assert appends <= 2  # the first may have gone alone
    while log.appends:
        log.confirm()
    assert len(actions) == appends
    assert not told
    for action in actions:
        action()
    assert told == list(range(1_000))


def test_each_is_told_although_another_one_fails_to_hear(
    log: HeldLog, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[WriteAnswers] = []

    def deaf(answers: object) -> None:
        raise ValueError("a defect")

    log.blocked = threading.Event()
    for on_done in (told.append, deaf, told.append):
        publisher.publish_durably([("results", record(0))], on_done)
    log.blocked.set()
    until(lambda: log.records() == 3, "all were appended")
    while log.appends:
        log.confirm()
    assert all(len(answers) == 1 for answers in told)
    assert len(told) == 2
    assert "a result could not be delivered" in caplog.text


def test_what_is_refused_is_told_and_what_is_unconfirmed_is_written_again(
    log: HeldLog, publisher: Publisher
) -> None:
    told: list[WriteAnswers] = []
    publisher.publish_durably([("results", record(n)) for n in range(3)], told.append)
    until(lambda: log.records() == 3, "it was appended")
    too_large = TooLarge("too large")
    _, _, done = log.appends.pop(0)
    done([too_large, Unavailable("away"), Position("results", 0, 0)])
    assert not told
    until(lambda: log.records() == 1, "the one in doubt is appended again")
    assert [each.id for each in log.appends[0][1]] == ["id-1"]
    log.confirm()
    assert told == [[too_large, Position("results", 0, 0), Position("results", 0, 0)]]


def test_records_of_several_topics_are_told_together(log: HeldLog, publisher: Publisher) -> None:
    told: list[WriteAnswers] = []
    refused = TooLarge("too large")
    outgoing = [("a", record(0)), ("b", record(1)), ("a", record(2))]
    publisher.publish_durably(outgoing, told.append)
    until(lambda: log.records() == 3, "all were appended")
    log.confirm(1, error=refused)
    assert not told
    log.confirm()
    assert told == [[Position("a", 0, 0), Position("b", 0, 0), refused]]


def test_writes_that_wait_cost_the_garbage_collector_next_to_nothing(
    log: HeldLog, publisher: Publisher
) -> None:
    """With ten thousand of them waiting, it went over them again and again, at half of the cost of
    a message."""
    told: list[Delivery] = []
    calls: Any = MessageCalls.__new__(MessageCalls)
    calls.settle = told.append
    calls.unconfirmed = 2_000
    state = SimpleNamespace(unconfirmed=2_000)
    fetched: Any = SimpleNamespace(state=state)
    deliveries = [Delivery(fetched, number, None, None) for number in range(2_000)]
    owners = [(each,) for each in deliveries]
    outgoing = [[("results", record(number))] for number in range(2_000)]

    def write(number: int) -> None:
        on_written = _ResultsWriteCallback(calls, deliveries[number])
        publisher.publish_durably(
            outgoing[number], _WriteCallback(calls, owners[number], on_written)
        )

    write(0)
    until(lambda: log.records() == 1, "it was appended")
    log.blocked = threading.Event()
    gc.collect()
    before = len(gc.get_objects())
    for number in range(1, 2_000):
        write(number)
    log.blocked.set()
    until(lambda: log.records() == 2_000, "all were appended")
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    while log.appends:
        log.confirm()
    assert told == deliveries
    assert calls.unconfirmed == state.unconfirmed == 0


class Missing(NotFound):
    """Raised here alone."""


class RaisingLog(HeldLog):
    """Raises out of its depths."""

    def append(self, topic: str, records: Sequence[Record], done: OnAppended) -> None:
        raise Missing(f"{topic}: there is none")


async def test_what_failed_is_freed() -> None:
    """An error that the log raised refers to the frames that it was raised through, and so to what
    was to be published."""
    raising: Any = RaisingLog()
    publisher = Publisher(raising, SYSTEM)
    publisher.start()

    async def publish(number: int) -> None:
        with suppress(Missing):
            await publisher.publish("missing", record(number))

    for number in range(3):
        await publish(number)
    told: list[bool] = []
    publisher.publish_durably([("missing", record(3))], lambda errors: told.append(True))
    until(lambda: told == [True], "it was told")
    publisher.close(10.0)
    await asyncio.sleep(0)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Missing)]


async def test_a_publisher_that_is_closed_in_an_outage_is_freed() -> None:
    log = HeldLog()
    given: Any = log
    publisher = Publisher(given, SYSTEM)
    publisher.start()
    told: list[WriteAnswers] = []
    publisher.publish_durably([("results", record(0))], told.append)
    publisher.publish_durably([("results", record(1))], told.append)
    until(lambda: log.records() == 2, "both were appended")
    away = Unavailable("away")
    log.confirm(0, 1, error=away)  # is to be written again
    publisher.close(10.0)
    while log.appends:  # as a log that is closed answers what it has not sent
        log.confirm(0, 1, error=away)
    held = weakref.ref(publisher)
    del publisher
    gc.collect()
    assert held() is None
    assert not told
