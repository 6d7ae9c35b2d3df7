"""**event topics are read as any topic**: each reader is given the events, in order, and no other
record; and nothing but an append writes to one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from streams.errors import EventTopicError
from streams.log.events import NO_HISTORY, Appended, EventLog, Refused
from streams.log.protocol import Retention
from streams.message import Record
from tests.conformance.histories import append, event_topic, events_of, grow
from tests.conformance.member import Member
from tests.conformance.records import record
from tests.conformance.world import World

pytestmark = pytest.mark.needs("events")


class Committing(Member):
    """Commits where what it was given ends, whether messages stand there or not."""

    ends: dict[tuple[str, int], int]

    def deliver(self, batch: Any) -> None:
        self.ends = getattr(self, "ends", {})
        end = batch.skipped_to or batch.offsets[-1] + 1
        if len(batch):
            super().deliver(batch)
        self.subscription.commit([self.place(batch.assignment, end)])
        self.ends[batch.topic, batch.partition] = end
        self._history.add(())


def write(world: World, topic: str) -> list[bytes]:
    """Events, and among them refused causes, the last record of all too; the events' values."""
    log = events_of(world)
    head = grow(log, topic, b"k", b"1", b"2")
    for value, cause in ((b"no", "first"), (b"never", "second")):
        made, outcome = append(log, topic, b"k", head.base, value, cause=cause, is_refusal=True)
        assert isinstance(outcome, Appended)
        head = made.head
    _, outcome = append(log, topic, b"k", head.base, b"3", b"4", b"5")
    assert isinstance(outcome, Appended)
    _, outcome = append(log, topic, b"new", NO_HISTORY, b"x", cause="third", is_refusal=True)
    assert isinstance(outcome, Appended)
    return [b"1", b"2", b"3", b"4", b"5"]


def test_a_range_has_the_events_alone(world: World) -> None:
    topic = event_topic(world, 1)
    expected = write(world, topic)
    assert world.values(topic) == expected
    other = world.open()
    _, end = other.watermarks(topic, 0)
    for number in range(len(expected)):  # whatever they begin with
        offset = [each for batch in world.read(topic) for each in batch.offsets][number]
        assert world.values(topic, start=offset) == expected[number:]
        assert world.values(topic, start=offset + 1) == expected[number + 1 :]
        assert world.values(topic, end=offset) == expected[:number]
    assert world.values(topic, start=end, end=end) == []


def test_a_raw_reader_has_all_that_stands_there(world: World) -> None:
    topic = event_topic(world, 1)
    write(world, topic)
    reader = events_of(world).raw_reader(topic, 0, *world.log.watermarks(topic, 0))
    found = []
    while (batch := reader.read(2)) is not None:
        found += batch.values
    reader.close()
    assert found == [b"1", b"2", b"no", b"never", b"3", b"4", b"5", b"x"]


def test_a_member_is_given_the_events_and_passes_over_the_rest(world: World) -> None:
    topic, group = event_topic(world, 1), world.group()
    expected = write(world, topic)
    _, end = world.log.watermarks(topic, 0)
    member = Committing(world.log, group, [topic], world.history, "m")
    try:
        world.history.until(
            lambda: getattr(member, "ends", {}).get((topic, 0), 0) == end, "it is at the end"
        )
        assert member.delivered() == expected
    finally:
        member.close()
    assert world.position(group, topic) == end
    assert world.log.lag(topic, 0, end) == 0


class Appender:
    """Appends to a history of its own and to one that it shares, on one handle, in a thread."""

    def __init__(self, log: EventLog, topic: str, name: str) -> None:
        self.written: list[tuple[int, int, bytes]] = []
        """Partition, offset and value of each event that counts."""
        self._log, self._topic, self._name = log, topic, name
        self._bases = {name.encode(): NO_HISTORY, b"shared": NO_HISTORY}

    def run(self) -> None:
        for number in range(30):
            key = self._name.encode() if number % 3 else b"shared"
            self._append(key, [b"%s/%d/%d" % (key, number, n) for n in range(1 + number % 4)])

    def _append(self, key: bytes, values: list[bytes]) -> None:
        while True:
            base = self._bases[key]
            made, outcome = append(self._log, self._topic, key, base, *values)
            if isinstance(outcome, Appended):
                self._bases[key] = made.head.base
                self.written += [
                    (outcome.partition, offset, value)
                    for offset, value in zip(outcome.offsets, values, strict=True)
                ]
                return
            assert isinstance(outcome, Refused), outcome
            self._bases[key] = outcome.head.base


def test_no_event_is_skipped_by_those_who_read_while_others_append(world: World) -> None:
    """What a reader has passed stays as it was: no event comes later below a position that was read
    to, on whatever handle it is appended."""
    topic, group = event_topic(world, 2), world.group()
    member = Committing(world.open(lasting=True), group, [topic], world.history, "m")
    handles = [events_of(world), cast(EventLog, world.open()), cast(EventLog, world.open())]
    appenders = [Appender(handles[n % 3], topic, f"k{n}") for n in range(6)]
    following = world.open()
    found: dict[int, list[tuple[int, bytes | None]]] = {0: [], 1: []}
    ends = [0, 0]

    def read_on() -> None:
        for partition, seen in found.items():
            _, end = following.watermarks(topic, partition)
            if end > ends[partition]:
                reader = following.reader(topic, partition, ends[partition], end)
                while (batch := reader.read(10)) is not None:
                    seen += zip(batch.offsets, batch.values, strict=True)
                reader.close()
                ends[partition] = end

    try:
        with ThreadPoolExecutor(len(appenders)) as threads:
            running = [threads.submit(each.run) for each in appenders]
            while not all(each.done() for each in running):
                read_on()
            for each in running:
                each.result()
        read_on()
        written = sorted(event for each in appenders for event in each.written)
        for partition, seen in found.items():
            expected = [(offset, value) for number, offset, value in written if number == partition]
            assert seen == expected
            assert expected, "keys for both partitions"
        world.history.until(
            lambda: len(world.history.values()) >= len(written), "the group has all"
        )
        for partition, seen in found.items():
            assert world.history.values((topic, partition)) == [value for _, value in seen]
    finally:
        member.close()


def test_a_member_of_an_event_topic_and_another(world: World) -> None:
    topic, other, group = event_topic(world, 1), world.topic(), world.group()
    expected = write(world, topic)
    world.append(other, [b"a", b"b"])
    member = Committing(world.log, group, [topic, other], world.history, "m")
    try:
        member.until_delivered(len(expected) + 2)
        assert world.history.values((topic, 0)) == expected
        assert world.history.values((other, 0)) == [b"a", b"b"]
    finally:
        member.close()


def test_a_batch_keeps_headers_times_and_ids(world: World) -> None:
    topic = event_topic(world, 1)
    write(world, topic)
    log = events_of(world)
    reader = log.raw_reader(topic, 0, *world.log.watermarks(topic, 0))
    whole: dict[int, tuple[Any, int]] = {}
    while (raw := reader.read(100)) is not None:
        whole.update((raw.offsets[row], (raw, row)) for row in range(len(raw)))
    reader.close()
    found = world.read(topic)
    for batch in found:
        assert batch.identity_suffixes() is None
        for row in range(len(batch)):
            raw, at = whole[batch.offsets[row]]
            assert batch.headers(row) == raw.headers(at)
            assert batch.extra_headers(row) == raw.extra_headers(at)
            assert batch.time(row) == raw.time(at)
            assert (batch.id(row), batch.ids[row]) == (raw.id(at), raw.ids[at])
            assert str(batch.offset(row)) == str(raw.offset(at))
    assert found[-1].values[-1] == b"5"
    found[-1].release(len(found[-1]) - 1)
    assert found[-1].values[-1] is None


def test_another_handle_knows_an_event_topic(world: World) -> None:
    topic = event_topic(world, 2)
    grow(events_of(world), topic, b"k", b"1")
    other = world.open()
    assert other.describe_topic(topic).is_event_topic
    assert not other.describe_topic(world.topic()).is_event_topic


def test_nothing_but_an_append_writes_an_event_topic(world: World) -> None:
    topic = event_topic(world, 1)
    grow(events_of(world), topic, b"k", b"1")
    other = world.open()
    assert other.describe_topic(topic).is_event_topic
    for outcome in world.outcomes(topic, [record(b"2"), Record(b"3", b"k", "id")]):
        assert isinstance(outcome, EventTopicError)
        assert "cannot be published to" in str(outcome)
    assert world.values(topic) == [b"1"]


def test_events_are_never_trimmed(world: World) -> None:
    topic = event_topic(world, 1)
    grow(events_of(world), topic, b"k", b"1")
    bound = Retention(seconds=60)
    with pytest.raises(EventTopicError, match="cannot be trimmed"):
        world.log.set_retention(topic, bound)
    assert world.log.describe_topic(topic).retention == Retention()
    assert world.values(topic) == [b"1"]


def test_a_topic_that_took_a_deleted_ones_name_is_read_as_what_it_is(world: World) -> None:
    topic = event_topic(world, 1)
    write(world, topic)
    world.log.delete_topic(topic)
    world.log.create_topic(topic, 1)
    world.append(topic, [b"plain"])
    assert world.values(topic) == [b"plain"]
    world.log.delete_topic(topic)
    log = events_of(world)
    log.create_event_topic(topic, 1)
    grow(log, topic, b"k", b"event")
    assert world.values(topic) == [b"event"]
