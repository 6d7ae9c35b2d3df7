"""Readers of an event topic on Kafka are given what counts, wherever they start."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.config import DeadLetters
from streams.errors import EventTopicError
from streams.log.event_headers import EVENT, VOID
from streams.log.events import NO_HISTORY, Appended, Base, EventAppend
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.snapshot_index import snapshot_topic
from streams.log.protocol import Assignment, Reader, Retention
from streams.log.url import open_log
from streams.message import Record
from tests.conformance.histories import append, append_all, history
from tests.conformance.member import PATIENCE, History, Member
from tests.log.kafka_histories import log, made, topic, write
from tests.servers.find import KafkaAddress

__all__ = ["log", "topic"]


@pytest.fixture
def stranger(kafka: KafkaAddress) -> Iterator[KafkaLog]:
    """A log that has declared nothing: it knows an event topic by what stands in it."""
    opened = open_log(kafka.url)
    assert isinstance(opened, KafkaLog)
    yield opened
    opened.close()


@pytest.fixture
def unmarked(log: KafkaLog, topic: str) -> str:
    """One whose mark is gone."""
    log.delete_topic(snapshot_topic(topic))
    return topic


@pytest.fixture
def raw(kafka: KafkaAddress) -> RawWriter:
    return RawWriter(kafka)


class RawWriter:
    """Somebody who writes what he likes."""

    def __init__(self, kafka: KafkaAddress) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})

    def write(self, topic: str, *records: Record, partition: int = 0) -> list[int]:
        """Write records as they are; where they stand."""
        return write(self._producer, topic, records, partition)


def lie(key: bytes, header: bytes) -> Record:
    """A record whose header says what is not so."""
    return Record(b"lie", key, uuid4().hex, [(EVENT, header)])


class Mixed(NamedTuple):
    """What stands in a topic among other things."""

    counted: list[int]
    """Offsets of the events, ascending."""
    others: list[int]
    foreign: list[int]
    """Of the others, those that no append has written, or says that it has."""
    middle: int
    """The second record of an append of three that counts."""
    end: int


def write_mixture(log: KafkaLog, raw: RawWriter, topic: str) -> Mixed:
    """Real appends, and among them losers, halves, duplicates and lies."""
    counted: list[int] = []
    others: list[int] = []
    foreign: list[int] = []

    def real(*appends: EventAppend) -> None:
        for outcome in append_all(log, topic, appends):
            assert isinstance(outcome, Appended), outcome
            counted.extend(outcome.offsets)

    opened, three = made(b"a"), made(b"b", count=3)
    real(opened)
    others += raw.write(topic, *opened.records)  # the same append again
    others += raw.write(topic, *made(b"a", count=2).records)  # its base has passed
    foreign += raw.write(topic, Record(b"foreign", b"a", "x"), Record(None, None, "", ()))
    real(three)
    middle = counted[-2]
    others += raw.write(topic, *made(b"b", Base(3, "another")).records)
    others += raw.write(topic, *made(b"c", count=3).records[:2])  # half an append...
    real(made(b"c"), made(b"a", opened.head.base, count=2))  # ...whose base has passed here
    foreign += raw.write(
        topic,
        lie(b"d", b"1/3/0//nobody"),
        lie(b"d", b"0/99999/0/"),
        lie(b"d", b"\xff\xfe"),
        Record(b"d", b"d", "no header", [(EVENT, None)]),
    )
    others.append(foreign.pop(-4))  # that one might have been of an append
    interleaved, between = made(b"e", count=2), made(b"f")
    counted += raw.write(topic, interleaved.records[0], *between.records, interleaved.records[1])
    refusal = made(b"f", between.head.base, is_refusal=True)
    assert history(log, topic, b"f").head == between.head  # the log has seen what was written
    (outcome,) = append_all(log, topic, [refusal])
    assert isinstance(outcome, Appended)
    others += outcome.offsets
    others += raw.write(topic, *made(b"f", between.head.base).records)  # was refused
    others += raw.write(topic, lie(b"a", b"0/1/7/nothing"))
    _, end = log.watermarks(topic, 0)
    others = sorted(others + foreign)
    assert sorted([*counted, *others]) == list(range(end))
    return Mixed(sorted(counted), others, foreign, middle, end)


def read(reader: Reader) -> list[int]:
    found: list[int] = []
    try:
        while (batch := reader.read(3)) is not None:
            assert len(batch)
            found += batch.offsets
    finally:
        reader.close()
    return found


@pytest.mark.usefixtures("no_voids")
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "by its headers"])
def test_a_range_has_what_counts_wherever_it_starts(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str, marked: bool
) -> None:
    if not marked:
        log.delete_topic(snapshot_topic(topic))
    mixed = write_mixture(log, raw, topic)
    for each in (log, stranger):
        for start in (0, mixed.middle, mixed.others[-1], mixed.end):
            found = read(each.reader(topic, 0, start, mixed.end))
            assert found == [offset for offset in mixed.counted if offset >= start]
    cut = mixed.middle + 1
    assert read(stranger.reader(topic, 0, 0, cut)) == [o for o in mixed.counted if o < cut]
    assert read(stranger.raw_reader(topic, 0, 0, mixed.end)) == list(range(mixed.end))


@pytest.mark.usefixtures("no_voids")
@pytest.mark.parametrize("start", ["the beginning", "the middle of an append", "the end"])
def test_a_member_is_given_what_counts_wherever_it_starts(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str, start: str
) -> None:
    mixed = write_mixture(log, raw, topic)
    begin = {"the beginning": 0, "the end": mixed.end}.get(start, mixed.middle)
    seen = History()
    member = Committing(stranger, f"g-{topic}", [topic], seen, "m", start=begin)
    try:
        member.until_owns(1)
        later = made(b"later")
        raw.write(topic, *made(b"later", Base(1, "x")).records)
        (outcome,) = append_all(log, topic, [later])
        assert isinstance(outcome, Appended)
        (last,) = raw.write(topic, *later.records)
        expected = [offset for offset in mixed.counted if offset >= begin] + [*outcome.offsets]
        seen.until(lambda: member.position == last + 1, "the group is at the end")
    finally:
        member.close()
    given = [each.offset for each in seen.events if each.what == "message"]
    assert given == expected
    committed = stranger.committed(f"g-{topic}", topic)[0].position
    assert committed == last + 1


class Committing(Member):
    """Commits where what it was given ends, whether messages stand there or not."""

    position = 0

    def deliver(self, batch: Any) -> None:
        end = batch.skipped_to or batch.offsets[-1] + 1
        if len(batch):
            super().deliver(batch)
        assert isinstance(batch.assignment, Assignment)
        self.subscription.commit([self.place(batch.assignment, end)])
        self.position = end
        self._history.add(())


@pytest.mark.usefixtures("no_voids")
def test_what_is_not_decided_is_held_back_and_nothing_of_it_is_lost(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str
) -> None:
    first, begun = made(b"a"), made(b"b", count=2)
    raw.write(topic, *first.records, begun.records[0])
    seen = History()
    member = Member(stranger, f"g-{topic}", [topic], seen, "m")
    try:
        member.until_delivered(1)
        raw.write(topic, begun.records[1])
        member.until_delivered(3)
    finally:
        member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == [0, 1, 2]


@pytest.mark.usefixtures("no_voids")
def test_what_is_held_back_is_not_given_out_while_its_partition_is_paused(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str
) -> None:
    first, begun = made(b"a"), made(b"b", count=2)
    raw.write(topic, *first.records, begun.records[0])
    seen = History()
    member = Member(stranger, f"g-{topic}", [topic], seen, "m")
    try:
        member.until_delivered(1)
        (assignment,) = member.owned.values()
        subscription: Any = member.subscription
        member.do(lambda: subscription.pause([assignment]))
        raw.write(topic, begun.records[1])
        assert read(log.reader(topic, 0, 0, 3)) == [0, 1, 2]  # it is decided
        for _ in range(3):
            assert member.do(lambda: list(subscription.poll(100, 0.1))) == []
        member.do(lambda: subscription.resume([assignment]))
        member.until_delivered(3)
    finally:
        member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == [0, 1, 2]


@pytest.mark.usefixtures("no_voids")
def test_a_partition_that_leaves_takes_along_what_is_held_back(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str
) -> None:
    first, begun = made(b"a"), made(b"b", count=2)
    raw.write(topic, *first.records, begun.records[0])
    seen = History()
    member = Member(stranger, f"g-{topic}", [topic], seen, "m", commit=False)
    try:
        member.until_delivered(1)
        (assignment,) = member.owned.values()

        def give_up() -> None:
            del member.owned[topic, 0]
            member.subscription.reassign([assignment])

        member.do(give_up)
        raw.write(topic, begun.records[1])
        member.until_delivered(4)
    finally:
        member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == [0, 0, 1, 2]


def test_half_an_append_holds_nobody_up_for_long(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str
) -> None:
    """Its writer was killed between the records: the rest never comes."""
    begun, other = made(b"a", count=3), made(b"b")
    raw.write(topic, *begun.records[:2], *other.records)
    assert read(stranger.reader(topic, 0, 0, 3)) == [2]
    seen = History()
    member = Member(stranger, f"g-{topic}", [topic], seen, "m")
    try:
        member.until_delivered(1)
    finally:
        member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == [2]


@pytest.mark.parametrize("puts_back", [False, True])
def test_a_strangers_open_transaction_holds_nobody_up(
    kafka: KafkaAddress, log: KafkaLog, stranger: KafkaLog, topic: str, puts_back: bool
) -> None:
    """Nor a member that reads the topic for what its group puts back, as processors do."""
    topics = [topic]
    if puts_back:
        topics.append(log.create_topic(DeadLetters().retry(topic, f"g-{topic}"), 1).name)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"foreign", b"k", 0)
    assert producer.flush(PATIENCE) == 0
    append(log, topic, b"a", NO_HISTORY, b"1")
    seen = History()
    member = Member(stranger, f"g-{topic}", topics, seen, "m")
    try:
        member.until_delivered(1)
        assert stranger.watermarks(topic, 0) == (0, 2)
        assert read(stranger.reader(topic, 0, 0, 2)) == [1]
    finally:
        member.close()
        producer.abort_transaction(PATIENCE)
    assert [each.offset for each in seen.events if each.what == "message"] == [1]


def test_a_topic_that_is_only_named_like_an_event_topic_is_read_as_committed(
    kafka: KafkaAddress, log: KafkaLog, topic: str
) -> None:
    """As one that an exactly-once processor writes: what it has aborted is no message."""
    target = log.create_topic(f"{topic}.copied", 1).name
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": target})
    producer.init_transactions()
    for value in (b"aborted", b"committed"):
        producer.begin_transaction()
        producer.produce(target, value)
        assert producer.flush(PATIENCE) == 0
        if value == b"aborted":
            producer.abort_transaction(PATIENCE)
        else:
            producer.commit_transaction(PATIENCE)
    seen = History()
    member = Member(log, f"g-{topic}", [topic, target], seen, "m")
    try:
        member.until_delivered(1)
    finally:
        member.close()
    assert seen.values((target, 0)) == [b"committed"]


@pytest.mark.usefixtures("no_voids")
def test_foreign_records_are_reported_once(
    log: KafkaLog, raw: RawWriter, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = write_mixture(log, raw, topic)
    with caplog.at_level(logging.WARNING, "streams"):
        for start in (mixed.middle, 0, 0):  # what is read last may stand first
            read(log.reader(topic, 0, start, mixed.end))
    said = [each.getMessage() for each in caplog.records if "something else" in each.getMessage()]
    assert said
    assert all(f"{topic}/0" in each for each in said)
    reported = {
        offset
        for offset in mixed.foreign
        for each in said
        if f"offset {offset} " in each or f"up to {offset} " in each or "more up to" in each
    }
    assert reported == set(mixed.foreign)
    assert len(said) == len(set(said))


# -- what makes an event topic ---------------------------------------------------------------------


def test_one_record_makes_no_event_topic_of_another(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter
) -> None:
    """Somebody writes an event first into a topic that deletes nothing; and into one that does."""
    for retention in (Retention(), Retention(seconds=3600)):
        plain = log.create_topic(f"plain-{uuid4().hex[:8]}", 2, retention).name
        raw.write(plain, *made(b"k").records)
        raw.write(plain, *(Record(b"%d" % n, b"k", f"m{n}") for n in range(5)))
        assert not stranger.describe_topic(plain).is_event_topic
        assert read(stranger.reader(plain, 0, 0, 6)) == list(range(6))


def test_a_foreign_record_unmakes_no_event_topic(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, unmarked: str
) -> None:
    raw.write(unmarked, Record(b"first", b"k", "x"))
    for key in (b"a", b"b", b"c"):
        append(log, unmarked, key, NO_HISTORY, b"1")
    assert stranger.describe_topic(unmarked).is_event_topic
    assert read(stranger.reader(unmarked, 0, 0, 4)) == [1, 2, 3]


def test_an_event_topic_is_known_before_it_has_events(stranger: KafkaLog, topic: str) -> None:
    assert stranger.describe_topic(topic).is_event_topic


def test_an_empty_topic_without_a_mark_is_looked_at_again(
    log: KafkaLog, stranger: KafkaLog, unmarked: str
) -> None:
    assert not stranger.describe_topic(unmarked).is_event_topic
    append(log, unmarked, b"a", NO_HISTORY, b"1")
    assert stranger.describe_topic(unmarked).is_event_topic


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "by its headers"])
def test_a_member_that_waits_at_an_empty_topic_learns_what_it_is(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str, marked: bool
) -> None:
    if not marked:
        log.delete_topic(snapshot_topic(topic))
    seen = History()
    member = Member(stranger, f"g-{topic}", [topic], seen, "m")
    try:
        member.until_owns(1)
        one = made(b"a")
        raw.write(topic, *one.records, *made(b"a").records, *made(b"a", one.head.base).records)
        member.until_delivered(2)
    finally:
        member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == [0, 2]


def test_members_of_plain_topics_look_no_further(stranger: KafkaLog, raw: RawWriter) -> None:
    plain = stranger.create_topic(f"plain-{uuid4().hex[:8]}", 1).name
    raw.write(plain, Record(b"1", b"k", "m1"))
    member = Member(stranger, f"g-{plain}", [plain], History(), "m")
    try:
        member.until_delivered(1)
        subscription: Any = member.subscription
        assert member.do(lambda: subscription._events) is None
    finally:
        member.close()
    again = stranger.subscribe(f"h-{plain}", [plain], member)
    assert again._events is None
    again.close()


# -- what may not be done --------------------------------------------------------------------------


def test_what_is_known_to_hold_events_is_written_by_appends_alone(
    log: KafkaLog, stranger: KafkaLog, topic: str
) -> None:
    append(log, topic, b"a", NO_HISTORY, b"1")
    assert stranger.describe_topic(topic).is_event_topic
    for each in (log, stranger):
        told: list[Any] = []
        done = threading.Event()

        def on_appended(results: Sequence[Any], told: Any = told, done: Any = done) -> None:
            told.extend(results)
            done.set()

        each.append(topic, [Record(b"x", b"a", "x")], on_appended)
        assert done.wait(PATIENCE)
        assert [type(result) for result in told] == [EventTopicError]
        with pytest.raises(EventTopicError, match="cannot be trimmed"):
            each.set_retention(topic, Retention(seconds=60))
    assert log.watermarks(topic, 0) == (0, 1)


# -- against a naive model -------------------------------------------------------------------------


class NaiveFold:
    """Which records of a partition count, found out the slow way: every prefix from its start."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, str, dict[str, bytes | None]]] = []

    def add(self, record: Record) -> None:
        self.records.append((record.key, record.id, dict(record.headers)))

    def counted(self) -> list[int]:
        found: list[int] = []
        for key in {key for key, _, _ in self.records if key is not None}:
            found += self._counted_of(key)
        return sorted(found)

    def _counted_of(self, key: bytes) -> list[int]:
        version, last_id, found = 0, "", list[int]()
        begun: dict[str, list[int]] = {}
        for offset, (each, id, headers) in enumerate(self.records):
            if each != key:
                continue
            if "streams_void" in headers:
                begun.pop((headers["streams_void"] or b"").decode(), None)
                continue
            parts = (headers.get(EVENT) or b"").decode("utf-8", "replace").split("/")
            if len(parts) < 4 or (parts[2], parts[3]) != (str(version), last_id):
                continue
            index, count = int(parts[0]), int(parts[1])
            append_id = parts[4] if index else id
            if index == 0:
                begun[append_id] = [offset]
            elif append_id in begun and len(begun[append_id]) == index:
                begun[append_id].append(offset)
            else:
                continue
            if index + 1 >= count:
                found += begun[append_id] if count else []
                version, last_id, begun = version + count, id, {}
        return found


@pytest.mark.parametrize("seed", range(4))
def test_readers_agree_with_a_naive_model(
    log: KafkaLog, stranger: KafkaLog, raw: RawWriter, topic: str, seed: int
) -> None:
    """Stale bases, halves that go on later or never, duplicates, lies, refusals and voids, in any
    order; read from anywhere, in steps of any size, by a group that is killed and comes back."""
    choose = random.Random(seed)
    fold, keys = NaiveFold(), [b"a", b"b", b"c"]
    bases: dict[bytes, list[Base]] = {key: [NO_HISTORY] for key in keys}
    queued: list[list[Record]] = []
    written: list[Record] = []
    for _ in range(120):
        key = choose.choice(keys)
        act = choose.random()
        if act < 0.55:
            base = choose.choice(bases[key][-2:])
            new = made(key, base, choose.randint(1, 3))
            bases[key].append(new.head.base)
            queued.append(list(new.records))
        elif act < 0.65:
            queued.append(list(made(key, bases[key][-1], is_refusal=True).records))
            bases[key].append(Base(bases[key][-1].version, queued[-1][0].id))
        elif act < 0.75 and written:
            queued.append([choose.choice(written)])
        elif act < 0.8:
            queued.append([Record(b"foreign", key, uuid4().hex)])
        elif act < 0.85:
            last = bases[key][-1]
            queued.append([lie(key, f"1/2/{last.version}/{last.last_id}/nobody".encode())])
        elif queued:
            begun = choose.choice(queued)
            queued.append([Record(None, key, uuid4().hex, [(VOID, begun[0].id.encode())])])
        while queued and choose.random() < 0.8:
            records = choose.choice(queued)
            record = records.pop(0)
            raw.write(topic, record)
            fold.add(record)
            written.append(record)
            if not records or choose.random() < 0.05:
                queued.remove(records)
    # What was begun and never ended is given up by readers; the model must see that, too.
    end = len(fold.records)
    first = read(stranger.reader(topic, 0, 0, end))
    reader = stranger.raw_reader(topic, 0, end, stranger.watermarks(topic, 0)[1])
    while (batch := reader.read(100)) is not None:
        for row in range(len(batch)):
            fold.add(Record(None, batch.keys[row], batch.id(row), batch.headers(row)))
    reader.close()
    counted = [offset for offset in fold.counted() if offset < end]
    assert first == counted
    for each in (log, stranger):
        for _ in range(3):
            start, stop = sorted(choose.sample(range(end + 1), 2))
            found = read(each.reader(topic, 0, start, stop))
            assert found == [offset for offset in counted if start <= offset < stop]
    seen = History()
    for part in (counted[: len(counted) // 2], counted):
        limit = choose.randint(1, 20)
        member = Committing(stranger, f"g-{topic}", [topic], seen, "m", limit=limit)
        try:
            member.until_delivered(len(part))
        finally:
            member.close()
    assert [each.offset for each in seen.events if each.what == "message"] == counted
