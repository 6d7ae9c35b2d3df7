"""What a delay topic costs does not grow with all that was delivered: what is read is counted."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streams import Streams
from streams.errors import LogError
from streams.inspection.delayed import DelayIndex
from streams.log.floor import floor_group
from streams.log.protocol import Assignment, Committed
from streams.log.range_reader import read_batches
from streams.log.url import open_log
from streams.patterns import Delays
from streams.retries import checkpoint_writer, checkpoints, scheduler
from streams.retries import records as delay_records
from streams.retries.checkpoints import CheckpointPlace, parse_place
from streams.retries.pending import read_pending
from streams.testing import Clock, harness
from tests.conformance.stage import Stage
from tests.patterns.counting import Counting, counting
from tests.patterns.keeping import until
from tests.patterns.test_delay import DAY, delays_of

pytestmark = pytest.mark.anyio

YEAR = 365 * DAY
KEPT = 50
"""Outcomes that are remembered, in these tests."""

BEHIND = 200
"""Records behind a checkpoint before there is another."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "RECENT_OUTCOMES", KEPT)
    monkeypatch.setattr(checkpoint_writer, "CHECKPOINT_RECORDS", BEHIND)
    monkeypatch.setattr(checkpoint_writer, "COUNT_STEP", 10)
    monkeypatch.setattr(scheduler, "FLOOR_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "PART_ENTRIES", 7)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """The logs of the apps that are entered, which count what is read."""
    logs: list[Counting] = []

    def open_counting(*arguments: Any) -> Counting:
        logs.append(Counting(open_log(*arguments)))
        return logs[-1]

    monkeypatch.setattr("streams.runtime.open_log", open_counting)
    return logs


async def pass_through(stage: Stage, app: Streams, delays: Delays, topic: Any, count: int) -> None:
    """So many messages that are due at once, and their marks."""
    before = delays.stats().delivered
    entries = [
        delay_records.entry_record(topic.record(value), topic.name, 0) for value in range(count)
    ]
    await app.publisher.publish_many(delays.name, entries)
    await stage.until(lambda: delays.stats().delivered == before + count, "all are delivered")


def place_of(log: Any, topic: str) -> CheckpointPlace | None:
    """Where the last checkpoint stands, as it is committed."""
    floor = log.committed(floor_group(topic), topic).get(0)
    return None if floor is None else parse_place(floor.progress)


async def test_a_takeover_reads_what_is_pending_and_what_is_new(
    stage: Stage, opened: list[Counting]
) -> None:
    """Not all that was delivered since a message was published that is due in a year."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    async with app:
        for number in range(20):
            await delays.publish(topic, number, delay=YEAR, id=f"far-{number}")
        for _ in range(4):
            await pass_through(stage, app, delays, topic, 300)
        _, end = app.log.watermarks(delays.name, 0)
        recent = app.log.offset_before(delays.name, 0, end, 2 * 20 + BEHIND + 50)

        def is_kept() -> bool:
            place = place_of(stage.anchor, delays.name)
            return place is not None and place.position >= recent

        await stage.until(is_kept, "a checkpoint")
    looked_at = counting(stage.anchor)
    index = DelayIndex(delays.name, lambda: looked_at)
    assert await asyncio.to_thread(index.read_on, 60)
    assert len(index.positions(0, 30)) == 20
    index.close()
    most = 2 * 20 + BEHIND + 50 + 20 + KEPT
    assert looked_at.records <= most
    again = stage.app()
    topic = stage.topic(again, partitions=1)
    delays = delays_of(stage, again)
    async with again:
        log = opened[-1]
        await stage.until(lambda: delays.stats().pending == 20, "what is pending is known")
        assert log.records <= most
        assert delays.stats().delivered == 0
        for number in range(0, 20, 7):
            assert await delays.cancel(f"far-{number}") == "cancelled"
        await delays.publish(topic, 1, delay=0, id="far-1")
        await stage.until(lambda: delays.stats().delivered == 1, "delivered")
        assert delays.stats().pending == 16


async def test_requests_that_come_together_are_looked_up_together(
    stage: Stage, opened: list[Counting]
) -> None:
    asker, app = stage.app(), stage.app()
    topic = stage.topic(asker, partitions=1)
    asks = delays_of(stage, asker)
    async with asker.connected():
        for number in range(100):
            await asks.publish(topic, number, delay=YEAR + number, id=f"m{number}")
        requests = [asyncio.create_task(asks.cancel(f"m{number}")) for number in range(60, 100)]
        await stage.until(lambda: written(asker, asks.name) == 140, "all requests are written")
        stage.topic(app, partitions=1)
        delays_of(stage, app, pending=10)
        async with app:
            log = opened[-1]
            assert await asyncio.gather(*requests) == ["cancelled"] * 40
            # Once when it takes over, and then for each batch that its processor is given.
            assert log.calls["reader"] <= 8
            assert log.records <= 8 * 140


def written(app: Streams, topic: str) -> int:
    """How many records a topic of one partition has."""
    _, end = app.log.watermarks(topic, 0)
    return sum(map(len, read_batches(app.log, topic, 0, 0, end)))


async def test_a_checkpoint_that_is_not_whole_is_passed_over(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    async with app:
        for number in range(20):
            await delays.publish(topic, number, delay=YEAR, id=f"far-{number}")
        await pass_through(stage, app, delays, topic, 300)
        await stage.until(lambda: place_of(stage.anchor, delays.name), "a checkpoint")
    log, group = stage.anchor, floor_group(delays.name)
    floor = log.committed(group, delays.name)[0]
    place = parse_place(floor.progress)
    assert place is not None
    for damaged in (
        "",
        "1/2",
        "0/0/" + "9" * 100,
        str(place._replace(position=place.position + 1)),
        str(place._replace(first=place.last)),  # a part is missing
        str(place._replace(position=place.first, first=1 << 100, last=1 << 100)),
    ):
        damaged_floor = {0: floor._replace(progress=damaged)}
        log.reset_offsets(group, delays.name, damaged_floor, force=True)
        assert await known_pending(stage, 20) == 20


async def known_pending(stage: Stage, count: int) -> int:
    """How many messages a new owner knows to be pending, once they are so many."""
    app = stage.app()
    stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    async with app:
        await stage.until(lambda: delays.stats().pending == count, "what is pending is known")
        return delays.stats().pending


def answers(outgoing: Any) -> bool:
    """Whether records to be written answer a request to cancel."""
    return any(delay_records.read_mark(record.headers)[1] for _, record in outgoing)


def hold_answers(
    monkeypatch: pytest.MonkeyPatch, *, refused: bool = False
) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold up the answers to requests to cancel: events that are set once one is held up, and by
    whoever lets them go.

    :param refused: those that were held up are refused then.
    """
    is_answering, may_answer = asyncio.Event(), asyncio.Event()
    write = scheduler.PartitionScheduler._write_records

    async def write_later(self: Any, outgoing: Any, *owner: Any) -> Any:
        if answers(outgoing) and not may_answer.is_set():
            is_answering.set()
            await may_answer.wait()
            if refused:
                return [LogError("refused")]
        return await write(self, outgoing, *owner)

    monkeypatch.setattr(scheduler.PartitionScheduler, "_write_records", write_later)
    return is_answering, may_answer


async def test_what_is_being_cancelled_is_behind_no_floor_and_in_each_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its owner may be killed before the mark is in the log, and it is pending then."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    _, may_answer = hold_answers(monkeypatch)
    monkeypatch.setattr(checkpoint_writer, "CHECKPOINT_RECORDS", 1e9)
    async with app:
        await delays.publish(topic, 0, delay=YEAR, id="far")
        await delays.publish(topic, 0, delay=YEAR, id="farther")
        owned = delays._scheduler._by_partition
        partition = await until(lambda: owned.get(0), "the partition is owned")
        entries = [delay_records.entry_record(topic.record(n), topic.name, 0) for n in range(300)]
        await app.publisher.publish_many(delays.name, entries)
        await until(lambda: delays.stats().delivered == 300, "all are delivered")
        cancelling = asyncio.create_task(delays.cancel("far"))
        await until(lambda: partition._cancelling, "a request is being answered")

        monkeypatch.setattr(checkpoint_writer, "CHECKPOINT_RECORDS", BEHIND)

        async def look_again() -> None:
            partition._floor_committed_at = float("-inf")

            def has_looked() -> bool:
                partition._wake.set()
                return bool(partition._floor_committed_at > 0)

            await until(has_looked, "it has looked")

        await look_again()
        await look_again()  # the first time is over then
        assert partition._checkpoints.tried == 0
        floor = app.log.committed(floor_group(delays.name), delays.name).get(0)
        assert floor is None or floor.position == 0
        may_answer.set()
        assert await cancelling == "cancelled"
        await look_again()
        place = await until(lambda: place_of(app.log, delays.name), "a checkpoint")
        _, end = app.log.watermarks(delays.name, 0)
        kept = checkpoints.read_checkpoint(app.log, delays.name, 0, place, end)
        assert kept is not None
        assert list(kept.entries) == [delay_records.id_digest(b"farther")]


async def test_what_cannot_be_marked_as_cancelled_is_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody was told that it is not, and its owner looks after it as before."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    refused: list[bytes | None] = []
    write = scheduler.PartitionScheduler._write_records

    async def refuse_first(self: Any, outgoing: Any, *owner: Any) -> Any:
        if not refused and answers(outgoing):
            refused.append(outgoing[0][1].key)
            return [LogError("refused")]
        return await write(self, outgoing, *owner)

    monkeypatch.setattr(scheduler.PartitionScheduler, "_write_records", refuse_first)
    async with harness(app, clock=Clock()) as running:
        await delays.publish(topic, 1, delay=60, id="m1")
        await delays.publish(topic, 2, delay=120, id="m2")
        with pytest.raises(TimeoutError):
            await delays.cancel("m1", within=0)
        await until(lambda: refused, "the mark is refused")
        # Requests are answered in turn.
        assert await delays.cancel("m2") == "cancelled"
        assert (delays.stats().pending, delays.stats().cancelled) == (1, 1)
        running.clock.advance(DAY)
        await until(lambda: delays.stats().delivered == 1, "delivered")
        assert await delays.cancel("m1") == "delivered"


async def test_an_answer_counts_although_whoever_waited_for_it_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its handler also had records of a partition that was lost meanwhile."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    is_answering, may_answer = hold_answers(monkeypatch)
    group = floor_group(delays.name)

    def has_moved() -> bool:
        floor = app.log.committed(group, delays.name).get(0)
        return floor is not None and floor.position > 0

    async with app:
        await delays.publish(topic, 0, delay=YEAR, id="far")
        asked = asyncio.create_task(delays.cancel("far", within=120))
        await until(is_answering.is_set, "a request is being answered")
        executor = delays._scheduler.executor
        assert executor is not None
        await asyncio.to_thread(executor.cancel, None)  # as where a partition is lost
        may_answer.set()
        assert await asked == "cancelled"
        await until(has_moved, "the floor moves")
        assert delays.stats().cancelled == 1


async def test_nothing_is_answered_while_ownership_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another owner may have taken over, and deliver the message."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    looked = 0
    find_outcome = scheduler.PartitionScheduler._find_outcome

    async def count(self: Any, *request: Any) -> Any:
        nonlocal looked
        looked += 1
        return await find_outcome(self, *request)

    monkeypatch.setattr(scheduler.PartitionScheduler, "_find_outcome", count)
    async with app:
        await delays.publish(topic, 0, delay=YEAR, id="far")
        owned = delays._scheduler._by_partition
        partition = await until(lambda: owned.get(0), "the partition is owned")
        confirmed = partition.assignment
        partition.assignment = Assignment(delays.name, 0, 1, None, valid_until=0.0)
        asked = asyncio.create_task(delays.cancel("far", within=120))
        await until(lambda: looked > 2, "it was looked at again")
        assert written(app, delays.name) == 2  # the message and the request
        partition.assignment = confirmed
        assert await asked == "cancelled"


async def test_what_a_former_owner_answers_is_refused() -> None:
    """It stood still before its answer was written, and another one owns the partition now."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    async with app:
        await delays.publish(topic, 0, delay=YEAR, id="far")
        owned = delays._scheduler._by_partition
        partition = await until(lambda: owned.get(0), "the partition is owned")
        former = partition.assignment
        append, is_lost = former.append_as_owners, threading.Event()

        def append_late(*arguments: Any) -> None:
            if not is_lost.is_set():
                is_lost.set()
                place = {0: Committed(0)}
                app.log.reset_offsets(delays.name, delays.name, place, force=True)
            append(*arguments)

        former.append_as_owners = append_late
        assert await delays.cancel("far", within=120) == "cancelled"
        assert is_lost.is_set()
        assert owned[0] is not partition
        _, end = app.log.watermarks(delays.name, 0)
        found = [
            delay_records.read_mark(batch.headers(index))[1]
            for batch in read_batches(app.log, delays.name, 0, 0, end)
            for index in range(len(batch))
        ]
    assert len([request for request in found if request is not None]) == 1


async def test_a_floor_that_stands_still_is_committed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kafka forgets the positions of a group without members after a week."""
    monkeypatch.setattr(scheduler, "FLOOR_RENEWAL", 0.0)
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    group = floor_group(delays.name)
    async with app:
        await delays.publish(topic, 0, delay=YEAR, id="far")
        owned = delays._scheduler._by_partition
        partition = await until(lambda: owned.get(0), "the partition is owned")
        await until(lambda: partition._committed.position >= 0, "the floor is committed")
        app.log.delete_group(group)
        await until(lambda: app.log.committed(group, delays.name), "it is committed again")


@pytest.mark.parametrize("is_marked", [True, False])
async def test_a_message_that_is_cancelled_while_the_log_is_read_again_is_not_delivered(
    monkeypatch: pytest.MonkeyPatch, is_marked: bool
) -> None:
    """Its mark is on the way when the index runs dry, and it is due behind the horizon."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app, pending=3)
    is_answering, may_answer = hold_answers(monkeypatch, refused=not is_marked)
    async with harness(app, clock=Clock()) as running:
        for number in range(3):
            await delays.publish(topic, number, delay=60, id=f"m{number}")
        for number in range(3, 9):
            await delays.publish(topic, number, delay=120 + number, id=f"m{number}")
        asked = asyncio.create_task(delays.cancel("m8", within=120 if is_marked else 0))
        await until(is_answering.is_set, "a request is being answered")
        (partition,) = delays._scheduler._by_partition.values()
        assert partition.index.find(delay_records.id_digest(b"m8")) is None
        running.clock.advance(DAY)

        def has_run_dry() -> bool:
            is_waiting = partition.is_idle and partition.index.is_exhausted
            return is_waiting or delays.stats().scans > 1

        await until(has_run_dry, "the index has run dry")
        assert delays.stats().scans == 1
        may_answer.set()
        count = 8 if is_marked else 9
        await until(lambda: delays.stats().delivered == count, "delivered")
        if is_marked:
            assert await asked == "cancelled"
        else:
            with pytest.raises(TimeoutError):
                await asked
        assert await delays.cancel("m8") == ("cancelled" if is_marked else "delivered")


async def test_what_is_delivered_while_the_log_is_asked_for_it_was_not_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is due behind the horizon, and what was known before it is delivered meanwhile."""
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app, pending=3)
    was_read, may_end = threading.Event(), threading.Event()
    look_up = scheduler.PartitionScheduler._read_outcomes

    def end_later(self: Any, requests: Any) -> Any:
        found = look_up(self, requests)
        was_read.set()
        may_end.wait(60)
        return found

    monkeypatch.setattr(scheduler.PartitionScheduler, "_read_outcomes", end_later)
    async with harness(app, clock=Clock()) as running:
        for number in range(6):
            await delays.publish(topic, number, delay=60 + number, id=f"m{number}")
        asked = asyncio.create_task(delays.cancel("m5", within=120))
        await until(was_read.is_set, "the log is asked")
        running.clock.advance(DAY)
        try:
            await until(lambda: delays.stats().delivered == 6, "all are delivered")
        finally:
            may_end.set()
        assert await asked == "delivered"
        assert delays.stats().cancelled == 0


async def test_what_was_delivered_after_a_request_was_not_cancelled(stage: Stage) -> None:
    """Its former owner died between the mark and the answer. Of marks the new one remembers only
    the last ones, and asks the log."""
    asker, app = stage.app(), stage.app()
    topic = stage.topic(asker, partitions=1)
    asks = delays_of(stage, asker)
    async with asker.connected():
        for number in range(2 * KEPT):
            await asks.publish(topic, number, delay=YEAR + number, id=f"m{number}")
        requests = [
            asyncio.create_task(asks.cancel(f"m{number}", within=120)) for number in range(60, 65)
        ]
        await stage.until(lambda: written(asker, asks.name) == 2 * KEPT + 5, "asked")
        marks = [
            delay_records.mark_record(b"m60", "delivered", "mark-60"),
            delay_records.mark_record(b"m61", "dead", "mark-61"),
            delay_records.entry_record(topic.record(1), topic.name, 2**50, entry_id="m62"),
            delay_records.mark_record(b"m64", "delivered", "mark-64", end=0),  # of an earlier one
        ]
        # More than are remembered, of other messages.
        marks += [
            delay_records.mark_record(b"other-%d" % number, "delivered", f"mark-other-{number}")
            for number in range(3 * KEPT)
        ]
        await asker.publisher.publish_many(asks.name, marks)
        stage.topic(app, partitions=1)
        delays_of(stage, app, pending=10)
        async with app:
            found = await asyncio.gather(*requests)
    assert found == ["delivered", "dead", "unknown", "cancelled", "cancelled"]


@pytest.mark.everywhere
@pytest.mark.parametrize("outcome", ["delivered", "cancelled"])
async def test_a_late_mark_ends_no_later_message_of_its_id(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """Its owner stood still before it wrote the mark, and the ID was published again meanwhile."""
    is_marking, may_mark = asyncio.Event(), asyncio.Event()
    write = scheduler.PartitionScheduler._write_records

    async def write_late(self: Any, outgoing: Any, *owner: Any) -> Any:
        marks = [record for _, record in outgoing if delay_records.read_mark(record.headers)[0]]
        if marks and not may_mark.is_set():
            is_marking.set()
            await may_mark.wait()
        return await write(self, outgoing, *owner)

    monkeypatch.setattr(scheduler.PartitionScheduler, "_write_records", write_late)
    app, again = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    async with app:
        is_delivered = outcome == "delivered"
        await delays.publish(topic, 1, delay=0 if is_delivered else YEAR, id="m")
        asked = None if is_delivered else asyncio.create_task(delays.cancel("m", within=120))
        await stage.until(is_marking.is_set, "the mark is about to be written")
        await delays.publish(topic, 2, delay=YEAR, id="m")
        may_mark.set()
        assert asked is None or await asked == "cancelled"
        await delays.publish(topic, 3, delay=0, id="n")
        # The scheduler has received the mark by then.
        count = 2 if is_delivered else 1
        await stage.until(lambda: delays.stats().delivered == count, "the next is delivered")
        assert delays.stats().pending == 1
    index = DelayIndex(delays.name, lambda: stage.anchor)
    assert await asyncio.to_thread(index.read_on, 60)
    assert len(index.positions(0, 2)) == 1
    index.close()
    found = await asyncio.to_thread(
        read_pending, stage.anchor, delays.name, lambda _, record: record.value, None
    )
    assert [each.value for each in found.entries] == [b"2"]
    stage.topic(again, partitions=1)
    delays = delays_of(stage, again)
    async with again:
        await stage.until(lambda: delays.stats().pending == 1, "a new owner knows it")
        assert await delays.cancel("m") == "cancelled"
        assert delays.stats().pending == 0


async def test_a_record_is_counted_once(stage: Stage) -> None:
    """Whether it was read by the scan, or received, or both."""
    asker, app = stage.app(), stage.app()
    topic = stage.topic(asker, partitions=1)
    asks = delays_of(stage, asker)
    async with asker.connected():
        for number in range(30):
            await asks.publish(topic, number, delay=YEAR)
        stage.topic(app, partitions=1)
        delays = delays_of(stage, app)
        async with app:
            for number in range(10):
                await asks.publish(topic, number, delay=YEAR)
            assert await asks.cancel("nothing") == "unknown"  # all before it was received
            (partition,) = delays._scheduler._by_partition.values()
            _, end = app.log.watermarks(asks.name, 0)
            await stage.until(lambda: partition._known_end == end, "all is received")
            assert partition._checkpoints.count_behind(0) == written(app, asks.name) == 42
