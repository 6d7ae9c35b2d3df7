"""Event topics on Kafka: what the log alone cannot promise, and its readers have to find out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewPartitions,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.config import Retention
from streams.errors import (
    EventTopicError,
    LogError,
    NotFound,
    OutcomeUnknown,
    PartitionCountMismatch,
    Unavailable,
)
from streams.log.events import (
    EMPTY,
    Appended,
    AppendOutcome,
    Base,
    HistoryRequest,
    Refused,
    StoredSnapshot,
)
from streams.log.kafka.client import RequestRetry
from streams.log.kafka.event_appends import Sent
from streams.log.kafka.event_index import WatchedAppend
from streams.log.kafka.index_writer import IndexWriter
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.partition_index import WrittenAppend
from streams.log.kafka.snapshot_index import record_key, snapshot_topic
from streams.log.protocol import OnAppended, TopicInfo
from streams.log.url import open_log
from streams.message import ID, Position, Record
from tests.conformance.histories import append_all, grow, history, values
from tests.conformance.member import PATIENCE
from tests.conformance.records import append as append_records
from tests.log.index_snapshots import asked_again, wait_stored
from tests.log.kafka_histories import in_memory, log, made, opening, producer, topic, write
from tests.servers.find import KafkaAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, until

__all__ = ["asked_again", "log", "producer", "topic"]


def test_losers_refusals_and_foreign_records_do_not_count(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    one, loser, two = made(b"k", count=2), made(b"k", count=3), made(b"other")
    refusal = made(b"k", one.head.base, is_refusal=True)
    write(producer, topic, [*one.records, *loser.records, *two.records])
    write(producer, topic, [Record(b"foreign", b"k", "x"), *refusal.records])
    events = log._events
    assert events.uncounted_offsets(topic, 0, 0, 8) == [2, 3, 4, 6, 7]
    assert events.uncounted_offsets(topic, 0, 3, 7) == [3, 4, 6]
    assert events.decided_until(topic, 0) == 8
    assert events.index_progress(topic) == (8, 8)


@pytest.mark.usefixtures("no_voids")
def test_what_is_not_decided_yet_is_waited_for(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    first, slow = made(b"a"), made(b"k", count=2)
    write(producer, topic, [*first.records, slow.records[0], *made(b"b").records])
    events = log._events
    assert events.uncounted_offsets(topic, 0, 0, 1) == []
    until(lambda: events.index_progress(topic) == (3, 3) or None, PATIENCE, "folded")
    assert events.decided_until(topic, 0) == 1
    write(producer, topic, slow.records[1:])
    assert events.uncounted_offsets(topic, 0, 0, 4) == []
    assert events.decided_until(topic, 0) == 4


def test_an_append_that_was_cut_off_holds_up_no_writer_and_no_reader_for_long(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    torn = made(b"k", count=3)
    write(producer, topic, torn.records[:2])
    head = grow(log, topic, b"other", b"1", b"2")
    assert history(log, topic, b"other").head == head
    assert history(log, topic, b"k").head == EMPTY
    assert log._events.uncounted_offsets(topic, 0, 0, 4) == [0, 1]  # declared void
    write(producer, topic, torn.records[2:])  # its writer was frozen, and goes on
    assert history(log, topic, b"k").head == EMPTY
    head = grow(log, topic, b"k", b"1")
    assert history(log, topic, b"k").head == head
    assert values(history(log, topic, b"k")) == [b"1"]


def test_the_first_append_that_is_whole_goes_on_where_another_was_cut_off(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    torn, rival = made(b"k", count=2), made(b"k", count=2)
    write(producer, topic, torn.records[:1])
    assert append_all(log, topic, [rival]) == [Appended(0, (1, 2))]
    assert log._events.uncounted_offsets(topic, 0, 0, 3) == [0]
    write(producer, topic, torn.records[1:])
    assert log._events.uncounted_offsets(topic, 0, 0, 4) == [0, 3]
    assert history(log, topic, b"k").head == rival.head


# -- writers that stand still, and answers that are lost ------------------------------------------


class HeldWriter:
    """Stands between the index and the producer, as a process that does not run for a while, or a
    connection over which no answer comes."""

    def __init__(self, log: KafkaLog, monkeypatch: pytest.MonkeyPatch) -> None:
        writer = log._events.writer()
        self._append = writer.append
        self.held: list[Any] = []
        self.is_holding = False
        self.answers: Sequence[LogError] = []
        """What is answered instead of what becomes of a write."""
        monkeypatch.setattr(writer, "append", self.append)

    def append(self, topic: str, records: Sequence[Record], done: OnAppended) -> None:
        """As the writer's own."""
        if self.answers:
            error, *self.answers = self.answers
            if not self.is_holding:
                self._append(topic, records, lambda _: done([error] * len(records)))
                return
            done([error] * len(records))
            done = ignore
        if self.is_holding:
            self.held.append((topic, records, done))
        else:
            self._append(topic, records, done)

    def release(self) -> None:
        """Write what was held."""
        self.is_holding = False
        for held in self.held:
            self._append(*held)


def ignore(_: object) -> None:
    """Nobody waits for this any more."""


@pytest.fixture
def other(kafka: KafkaAddress) -> Iterator[KafkaLog]:
    """The log of another process."""
    opened = open_log(kafka.url)
    assert isinstance(opened, KafkaLog)
    yield opened
    opened.close()


def test_a_writer_that_stood_still_after_it_had_decided_is_refused(
    log: KafkaLog, other: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = grow(log, topic, b"k", b"1").base
    writer = HeldWriter(log, monkeypatch)
    writer.is_holding = True
    late = made(b"k", base, 2)
    outcomes: list[AppendOutcome] = []
    log.append_events(topic, [late], outcomes.extend)
    head = grow(other, topic, b"k", b"2")
    writer.release()
    until(lambda: outcomes or None, PATIENCE, "what became of it")
    assert outcomes == [Refused("conflict", head)]
    assert values(history(log, topic, b"k")) == [b"1", b"2"]
    assert log._events.uncounted_offsets(topic, 0, 0, 4) == [2, 3]


def test_an_append_whose_answer_was_lost_is_found_when_it_is_sent_again(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = grow(log, topic, b"k", b"1").base
    lost = made(b"k", base, 2)
    writer = HeldWriter(log, monkeypatch)
    writer.answers = [OutcomeUnknown("no answer")]
    (outcome,) = append_all(log, topic, [lost])
    # Unless it was read back before it was known that no answer would come.
    assert isinstance(outcome, OutcomeUnknown) or outcome == Appended(0, (1, 2))
    assert append_all(log, topic, [lost]) == [Appended(0, (1, 2))]
    grow(log, topic, b"k", b"more")
    assert append_all(log, topic, [lost]) == [Appended(0, (1, 2))]
    assert len(history(log, topic, b"k").events) == 4


def test_an_append_that_is_written_late_and_again_counts_once(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = made(b"k", count=2)
    writer = HeldWriter(log, monkeypatch)
    writer.is_holding, writer.answers = True, [OutcomeUnknown("no answer")]
    (outcome,) = append_all(log, topic, [lost])
    assert isinstance(outcome, OutcomeUnknown)
    writer.is_holding = False
    assert append_all(log, topic, [lost]) == [Appended(0, (0, 1))]
    writer.release()  # the network had it all the time
    head = grow(log, topic, b"k", b"3")
    assert head.base.version == 3
    assert values(history(log, topic, b"k")) == [b"0", b"1", b"3"]
    end = log.log_end_offset(topic, 0)
    assert [*log._events.uncounted_offsets(topic, 0, 0, end)] == [2, 3]


def test_an_append_that_was_declared_void_while_it_was_written_is_written_again(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    """Its first record got in, then the broker was busy for a while."""
    slow = made(b"k", count=2)
    write(producer, topic, slow.records[:1])
    assert log._events.uncounted_offsets(topic, 0, 0, 1) == [0]
    outcomes: list[AppendOutcome] = []
    index = log._events.indexes.get(topic)

    def settle(_: int, outcome: AppendOutcome) -> None:
        outcomes.append(outcome)

    call: Any = SimpleNamespace(settle=settle)
    sent = Sent(0, slow, 0)
    decided = log._events.appends._on_decided(index, sent, call)
    index.watch([WatchedAppend(0, slow, decided)])
    (end,) = write(producer, topic, slow.records[1:])
    written = WrittenAppend(slow.records[0].id, b"k", end)
    index.written(0, [written], [end], [b"k"], [slow.records[1].headers])
    until(lambda: outcomes or None, PATIENCE, "what became of it")
    assert outcomes == [Appended(0, (end + 1, end + 2))]
    assert history(log, topic, b"k").head == slow.head


# -- strangers ------------------------------------------------------------------------------------


def test_a_transaction_that_nobody_ends_holds_up_no_writer(
    log: KafkaLog, other: KafkaLog, topic: str, kafka: KafkaAddress
) -> None:
    grow(log, topic, b"k", b"1")
    stranger = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": uuid4().hex})
    stranger.init_transactions(PATIENCE)
    stranger.begin_transaction()
    stranger.produce(topic, b"foreign", b"k", 0)
    forged = made(b"k", history(log, topic, b"k").head.base)
    for record in forged.records:
        headers: Any = [(ID, record.id.encode()), *record.headers]
        stranger.produce(topic, record.value, record.key, 0, headers=headers)
    stranger.flush(PATIENCE)
    assert log._readers.watermarks(topic, 0)[1] == 1  # nothing behind it can be read as committed
    head = grow(log, topic, b"other", b"1", b"2")
    assert history(other, topic, b"other").head == head
    # What a stranger forged counts where it stands, whatever becomes of the transaction.
    assert history(other, topic, b"k").head == forged.head
    stranger.abort_transaction(PATIENCE)
    assert history(other, topic, b"k").head == history(log, topic, b"k").head == forged.head
    assert grow(log, topic, b"k", b"3").base.version == 3
    assert values(history(other, topic, b"k")) == [b"1", b"0", b"3"]


def test_foreign_records_change_nothing_and_are_reported_once(
    log: KafkaLog, topic: str, producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    head = grow(log, topic, b"k", b"1")
    plain: list[Any] = [
        (None, b"x", None),
        (b"k", None, None),
        (b"k", b"x", [("streams_event", b"0/1/1/")]),
        (b"k", b"x", [("ce_id", b"a/b"), ("streams_event", f"0/1/1/{head.base.last_id}".encode())]),
        (b"k", b"x", [("streams_event", f"0/1/1/{head.base.last_id}".encode())]),
        (b"k", b"x", [("ce_id", None), ("streams_event", None)]),
        (b"k", b"x", [("ce_id", b"\xff" * 9), ("streams_event", b"\xff" * 999)]),
        (b"k", b"x", [("streams_void", b"\xff"), ("streams_void", None)]),
        (None, b"x", [("streams_void", b"nobody")]),
    ]
    for key, value, headers in plain:
        producer.produce(topic, value, key, 0, headers=headers)
    assert producer.flush(PATIENCE) == 0
    assert history(log, topic, b"k").head == head
    assert log._events.uncounted_offsets(topic, 0, 0, 10) == list(range(1, 10))
    assert grow(log, topic, b"k", b"2").base.version == 2

    def said() -> list[str]:
        return [each for each in caplog.messages if "not an aggregate's event" in each]

    until(lambda: said() or None, PATIENCE, "a report")
    assert "offset 1 is" in said()[0]
    assert len(said()) == 1


def test_appends_that_nobody_read_back_are_told_when_the_log_is_closed(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(log, topic, b"k", b"1")
    HeldWriter(log, monkeypatch).is_holding = True
    outcomes: list[AppendOutcome] = []
    log.append_events(topic, [made(b"o")], outcomes.extend)
    log.close()
    (outcome,) = outcomes
    assert isinstance(outcome, OutcomeUnknown)


def test_a_broker_that_does_not_know_a_new_topic_yet_is_waited_for(
    log: KafkaLog, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of several may not, when it leads a partition of it."""
    run = RequestRetry.run
    # The second one asks for the topic's metadata, which others answer.
    refusals = [True, True, True, False, True]

    def run_later(self: Any, operation: str, client: Any, request: Any) -> Any:
        if operation == f"end of {topic}/0" and refusals and refusals.pop():
            raise NotFound(f"Kafka, {operation}: unknown topic or partition")
        return run(self, operation, client, request)

    monkeypatch.setattr(RequestRetry, "run", run_later)
    assert log.log_end_offset(topic, 0) == 0
    assert not refusals
    with pytest.raises(NotFound, match="has no partition 7"):
        log.log_end_offset(topic, 7)


# -- snapshots ------------------------------------------------------------------------------------


def snapshot(log: KafkaLog, topic: str, key: bytes, data: bytes) -> StoredSnapshot:
    """One at the end of a history."""
    last = history(log, topic, key).events[-1]
    return StoredSnapshot(key, "f", Base(last.version, last.record.id), last.offset, data)


def read_snapshot(log: KafkaLog, topic: str, key: bytes) -> StoredSnapshot | None:
    (found,) = log.read_histories(topic, [HistoryRequest(key, fingerprint="f")])
    start = 0 if found.snapshot is None else found.snapshot.base.version
    expected = [each.version for each in history(log, topic, key).events[start:]]
    assert [each.version for each in found.events] == expected
    return found.snapshot


def test_hostile_snapshots_are_ignored_and_reported_once(
    log: KafkaLog,
    other: KafkaLog,
    topic: str,
    producer: Producer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = grow(log, topic, b"k", b"1", b"2")
    good = snapshot(log, topic, b"k", b"state")
    log.write_snapshots(topic, [good])
    assert read_snapshot(log, topic, b"k") == good
    where, key = snapshot_topic(topic), record_key(b"k", "f")
    strange: list[Any] = [
        (b"x", b"x", None),
        (b"9:f", b"x", None),
        (b":", None, None),
        (b"99999:x", b"x", [("streams_snapshot", b"1/1/a")]),
        (b"\xff" * 999, b"x", [("streams_snapshot", b"\xff")]),
        (key, b"x", [("streams_snapshot", b"2/1")]),
        (key, b"x", [("streams_snapshot", b"-1/1/a")]),
        (key, b"x", None),
    ]
    for name, value, headers in strange:
        producer.produce(where, value, name, 0, headers=headers)
    assert producer.flush(PATIENCE) == 0
    assert other.event_totals(topic).snapshots == {"f": 1}
    assert read_snapshot(other, topic, b"k") == good
    said = [each for each in caplog.messages if "is not a snapshot and is ignored" in each]
    assert 1 <= len(said) <= 2  # each log says it once
    forged = [
        b"2/%d/other" % good.offset,
        b"1/%d/%s" % (good.offset, head.base.last_id.encode()),
        b"3/%d/%s" % (good.offset, head.base.last_id.encode()),
        b"999999999999/0/x",
    ]
    for value in forged:
        producer.produce(where, b"forged", key, 0, headers=[("streams_snapshot", value)])
        assert producer.flush(PATIENCE) == 0
        other.event_totals(topic)  # its index has it
        found = read_snapshot(other, topic, b"k")
        assert found is None or found.data == b"state"
    log.write_snapshots(topic, [good])  # in place of what is none
    other.event_totals(topic)
    assert read_snapshot(other, topic, b"k") == good


def test_histories_do_without_their_snapshots(log: KafkaLog, other: KafkaLog, topic: str) -> None:
    grow(log, topic, b"k", b"1", b"2")
    log.write_snapshots(topic, [snapshot(log, topic, b"k", b"state")])
    log.delete_topic(snapshot_topic(topic))
    assert values(history(other, topic, b"k")) == [b"1", b"2"]
    assert read_snapshot(other, topic, b"k") is None
    other.create_event_topic(topic, 1)
    other.write_snapshots(topic, [snapshot(other, topic, b"k", b"again")])
    found = read_snapshot(other, topic, b"k")
    assert found is not None
    assert found.data == b"again"


# -- what an event topic has to be like -----------------------------------------------------------


def alter(kafka: KafkaAddress | Kafka, topic: str, **config: str) -> None:
    """Change a topic's settings, as an administrator does."""
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in config.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    (future,) = admin.incremental_alter_configs([resource]).values()
    future.result(PATIENCE)

    def is_altered() -> bool:
        """It is answered before every part of the broker knows it."""
        (asked,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        found = asked.result(PATIENCE)
        return all(found[each.name].value == each.value for each in entries)

    until(is_altered, PATIENCE, f"{topic} has its new settings")


def test_partitions_that_were_added_stop_all_writes(
    log: KafkaLog, other: KafkaLog, topic: str, kafka: KafkaAddress
) -> None:
    base = grow(log, topic, b"k", b"1").base
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    (future,) = admin.create_partitions([NewPartitions(topic, 3)]).values()
    future.result(PATIENCE)

    def append_now() -> AppendOutcome:
        log._metadata.forget(topic)  # it is asked for again within a minute
        return append_all(log, topic, [made(b"k", base)])[0]

    until(lambda: isinstance(append_now(), PartitionCountMismatch) or None, PATIENCE, "noticed")
    with pytest.raises(PartitionCountMismatch):
        log.write_snapshots(topic, [snapshot(log, topic, b"k", b"x")])
    assert history(log, topic, b"k").head.base.version >= 1  # what there is can be read
    for declared in (1, 3):
        with pytest.raises(PartitionCountMismatch):
            other.create_event_topic(topic, declared)
    (outcome,) = append_all(other, topic, [made(b"new")])
    assert isinstance(outcome, PartitionCountMismatch)


@pytest.mark.parametrize(
    "config",
    [{"retention_ms": "1000"}, {"retention_bytes": "1"}, {"cleanup_policy": "compact"}],
    ids=lambda config: next(iter(config)),
)
def test_a_topic_that_would_lose_events_is_refused(
    log: KafkaLog, topic: str, kafka: KafkaAddress, config: dict[str, str]
) -> None:
    alter(kafka, topic, **config)
    ((name, value),) = config.items()
    setting = name.replace("_", ".")
    with pytest.raises(EventTopicError, match=f"{setting}={value}.*--add-config {setting}="):
        log.create_event_topic(topic, 1)


def test_creators_beside_each_other_make_one_topic(kafka: KafkaAddress) -> None:
    name = f"{uuid4().hex[:12]}.events"
    logs = [open_log(kafka.url) for _ in range(4)]
    found: list[object] = []

    def create(log: Any) -> None:
        try:
            found.append(log.create_event_topic(name, 2))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=create, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TopicInfo(name, 2, Retention(), True, True)] * 4
    for each in logs:
        each.close()


def test_a_topic_that_was_created_half_is_finished(log: KafkaLog, kafka: KafkaAddress) -> None:
    """Its creator was killed, or an administrator has created it and its snapshots."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for existing in (["snapshots"], ["events", "snapshots"]):
        name = f"{uuid4().hex[:12]}.events"
        new = []
        if "snapshots" in existing:
            config = {"cleanup.policy": "compact"}
            new.append(NewTopic(snapshot_topic(name), 2, 1, config=config))
        if "events" in existing:
            config = {"retention.ms": "-1"}
            new.append(NewTopic(name, 2, 1, config=config))
        for future in admin.create_topics(new).values():
            future.result(PATIENCE)
        assert log.create_event_topic(name, 2).is_event_topic
        assert grow(log, name, b"k", b"1").base.version == 1


def test_a_users_topic_that_is_called_as_snapshots_are_makes_no_event_topic(
    log: KafkaLog,
) -> None:
    name = uuid4().hex[:12]
    log.create_topic(name, 1)
    log.create_topic(snapshot_topic(name), 1, Retention(compacted=True))
    outcomes = append_records(log, name, [Record(b"x", b"k", "1")])
    assert all(isinstance(each, Position) for each in outcomes)
    append_records(log, snapshot_topic(name), [Record(b"x", b"k", "1")])
    assert not log.describe_topic(name).is_event_topic
    with pytest.raises(EventTopicError):
        log.create_event_topic(name, 1)


@pytest.fixture(scope="module")
def own(lifetime: Lifetime) -> Iterator[Kafka]:
    """A broker that this module kills."""
    with Kafka(lifetime) as kafka:
        yield kafka


def test_an_index_that_loses_its_brokers_says_so_and_goes_on_when_they_are_back(
    own: Kafka,
) -> None:
    log = open_log(f"{own.url}?socket.timeout.ms=4000&message.timeout.ms=20000")
    assert isinstance(log, KafkaLog)
    topic = log.create_event_topic("lost.events", 1).name
    head = grow(log, topic, b"k", b"1", b"2")
    own.kill()
    with pytest.raises(Unavailable):
        history(log, topic, b"k")
    lost = made(b"k", head.base)
    outcomes: list[AppendOutcome] = []
    log.append_events(topic, [lost], outcomes.extend)
    own.restart()
    until(lambda: outcomes or None, PATIENCE, "what became of it")
    (outcome,) = outcomes
    assert isinstance(outcome, (Appended, LogError))
    if isinstance(outcome, LogError):
        (outcome,) = append_all(log, topic, [lost])
    assert isinstance(outcome, Appended)
    assert grow(log, topic, b"k", b"4").base.version == 4
    log.close()


@pytest.mark.usefixtures("asked_again")
def test_a_broker_that_is_killed_while_a_snapshot_of_the_index_is_written(
    own: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its last record and its commit: what there is afterwards is right, and goes on."""
    send, is_killed = IndexWriter._send_all, threading.Event()

    def send_and_kill(self: IndexWriter, *how: Any) -> Any:
        sent = send(self, *how)
        if not is_killed.is_set():
            own.kill()
            is_killed.set()
        return sent

    with opening(own.url) as open_one:
        log = open_one("index_snapshots=3")
        topic = log.create_event_topic("snapped.events", 1).name
        grow(log, topic, b"k", b"1", b"2")
        monkeypatch.setattr(IndexWriter, "_send_all", send_and_kill)
        grow(log, topic, b"k", b"3")
        assert is_killed.wait(PATIENCE)
        own.restart()
        head = grow(log, topic, b"k", b"4")
        wait_stored(log, topic, 4)
        log.close()
        log = open_one("index_snapshots=1000")
        assert log.event_totals(topic).events == 4
        assert in_memory(log, topic) == [0]
        found = history(log, topic, b"k")
        assert (found.head, values(found)) == (head, [b"1", b"2", b"3", b"4"])


@pytest.mark.faults
def test_on_several_brokers_acknowledged_events_must_be_safe(
    lifetime: Lifetime, caplog: pytest.LogCaptureFixture
) -> None:
    with Kafka(lifetime, brokers=3) as cluster:
        log = open_log(f"{cluster.url}?replication.factor=3")
        assert isinstance(log, KafkaLog)
        topic = log.create_event_topic("safe.events", 2).name
        facts = {each.name: each.value for each in log.durability(topic)}
        assert facts["min.insync.replicas"] == "2"
        assert facts["unclean.leader.election.enable"] == "false"
        grow(log, topic, b"k", b"1")
        assert not caplog.messages
        alter(cluster, topic, min_insync_replicas="1")
        log.create_event_topic(topic, 2)
        assert "min.insync.replicas" in caplog.text
        alter(cluster, topic, unclean_leader_election_enable="true")
        with pytest.raises(EventTopicError, match="unclean"):
            log.create_event_topic(topic, 2)
        log.close()


def test_a_topic_that_is_followed_no_more_costs_nothing_and_can_be_used_again(
    log: KafkaLog, topic: str
) -> None:
    head = grow(log, topic, b"k", b"1", b"2")

    def following() -> list[str]:
        return [each.name for each in threading.enumerate() if topic in each.name]

    assert following()
    log.stop_following(topic)
    until(lambda: not following(), PATIENCE, "its threads have ended")
    assert history(log, topic, b"k").head == head
    assert grow(log, topic, b"k", b"3").base.version == 3
