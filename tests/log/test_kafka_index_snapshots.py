"""Snapshots of an event topic's index in a topic: what a new process relies on, and when it does
not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.errors import ConfigError, Fatal, Unavailable
from streams.log.kafka import index_records, index_topic
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.index_records import (
    SNAPSHOT,
    SnapshotEnd,
    SnapshotRecord,
    checksum,
    end_record,
    entry_records,
    index_topic_name,
)
from streams.log.kafka.index_topic import IndexTopic
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.partition_index import KeyEntry, PartitionIndex, PartitionState
from streams.log.protocol import Retention
from streams.log.url import open_log
from tests.conformance.histories import grow, history, values
from tests.conformance.member import PATIENCE
from tests.hostile.kafka_wire import Written, produce
from tests.log.index_snapshots import asked_again, stored_events, wait_stored
from tests.log.kafka_histories import ask, in_memory, made, new_topic, opening, producer, write
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

__all__ = ["asked_again", "producer"]

Open = Callable[[int], KafkaLog]


@pytest.fixture
def open_with(kafka: KafkaAddress) -> Iterator[Open]:
    """Opens the log with snapshots from a number of events on, as the next process does."""
    with opening(kafka.url) as open_one:
        yield lambda least: open_one(f"index_snapshots={least}")


@pytest.fixture
def topic(kafka: KafkaAddress) -> str:
    return new_topic(kafka)


def make_index_topic(log: KafkaLog, topic: str) -> None:
    """As whoever writes the first snapshot does."""
    config = index_topic.TOPIC_CONFIG
    log._topics.create_topic(index_topic_name(topic), 1, Retention(compacted=True), config)


def put(kafka: KafkaAddress, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    """Write records of a snapshot, keys and values, as they are."""
    headers = [(SNAPSHOT.encode(), b"x")]
    written = [Written(value, key, headers) for key, value in records]
    produce(kafka.bootstrap, index_topic_name(topic), written)


@pytest.mark.usefixtures("asked_again")
def test_a_snapshot_follows_upon_a_snapshot(
    open_with: Open, topic: str, producer: Producer, kafka: KafkaAddress
) -> None:
    """Each process begins with what the one before has left, and leaves more."""
    events = 0
    for number in range(4):
        keys = [b"key %d" % (number * 10 + each) for each in range(20)]
        log = open_with(20)
        for key in keys:
            grow(log, topic, key, b"x")
        write(producer, topic, made(keys[0]).records)  # it does not count
        events += 20
        wait_stored(log, topic, events)
        log.close()
    plain, log = open_log(kafka.url), open_with(1_000)
    assert isinstance(plain, KafkaLog)
    try:
        every_key = [b"key %d" % number for number in range(50)]
        assert log.event_totals(topic) == plain.event_totals(topic)
        assert in_memory(log, topic) == [0]
        assert ask(log, topic, every_key) == ask(plain, topic, every_key)
        uncounted = plain._events.uncounted_offsets(topic, 0, 0, 84)
        assert len(uncounted) == 4
        assert log._events.uncounted_offsets(topic, 0, 0, 84) == uncounted
    finally:
        plain.close()


def test_there_is_none_below_the_size(open_with: Open, topic: str) -> None:
    log = open_with(1_000)
    grow(log, topic, b"k", b"1", b"2")
    log.event_totals(topic)
    assert index_topic_name(topic) not in log.list_topics()
    log = open_with(3)
    log.event_totals(topic)
    assert stored_events(log, topic) == 0
    grow(log, topic, b"k", b"3")
    wait_stored(log, topic, 3)


@pytest.mark.usefixtures("asked_again")
def test_several_processes_write_it_and_it_is_right(
    open_with: Open, topic: str, kafka: KafkaAddress
) -> None:
    logs = [open_with(10) for _ in range(3)]
    for log in logs:
        log.event_totals(topic)
    for number in range(40):
        grow(logs[number % 3], topic, b"key %d" % (number % 7), b"x")
    for log in logs:
        wait_stored(log, topic, 32)
        log.close()
    plain, fresh = open_log(kafka.url), open_with(10)
    assert isinstance(plain, KafkaLog)
    try:
        keys = [b"key %d" % number for number in range(7)]
        assert ask(fresh, topic, keys) == ask(plain, topic, keys)
        assert fresh.event_totals(topic) == plain.event_totals(topic)
    finally:
        plain.close()


WRITER = """
import sys
from streams.log.kafka import index_keepers, index_topic
from streams.log.url import open_log
from tests.conformance.histories import grow
index_topic.RETRY_INTERVAL = index_keepers.SNAPSHOT_INTERVAL = 0.001
index_topic.GROWTH = 1.0
index_topic.TRANSACTION_TIMEOUT = 5.0  # who was killed in one is not waited for
log = open_log(sys.argv[1])
number = 0
while True:
    number += 1
    head = grow(log, sys.argv[2], b"key %d" % (number % 7), b"x")
    print(number % 7, head.base.version, head.base.last_id, flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_snapshot_that_is_right(
    kafka: KafkaAddress, open_with: Open, topic: str
) -> None:
    """It writes one after the other, as fast as it can."""
    acknowledged: dict[bytes, tuple[int, str]] = {}
    # The driver wants that a request takes no longer than a transaction.
    url = f"{kafka.url}?index_snapshots=1&socket.timeout.ms=5000"
    command = [sys.executable, "-c", WRITER, url, topic]
    looking = open_with(1)
    for round_number in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for lines, line in enumerate(child.stdout, 1):
                if len(words := line.split()) == 3 and line.endswith("\n"):
                    acknowledged[b"key " + words[0].encode()] = int(words[1]), words[2]
                is_enough = lines >= 60 + 40 * round_number and lines % 20 == 0
                if is_enough and stored_events(looking, topic) > 30 * round_number:
                    os.kill(child.pid, signal.SIGKILL)
                    break
    plain, log = open_log(kafka.url), open_with(1_000_000)
    assert isinstance(plain, KafkaLog)
    try:
        for key, (version, last_id) in acknowledged.items():
            found = history(log, topic, key)
            assert found.events[version - 1].record.id == last_id
            assert found == history(plain, topic, key)
        assert log.event_totals(topic) == plain.event_totals(topic)
    finally:
        plain.close()


# -- what is not believed


def test_one_of_a_topic_that_was_made_anew_is_not_used(
    kafka: KafkaAddress, open_with: Open, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_with(2)
    grow(log, topic, b"k", b"1", b"2")
    wait_stored(log, topic, 2)
    log.close()
    other = open_log(kafka.url)
    assert isinstance(other, KafkaLog)
    other._topics.delete_topic(topic)  # by somebody who does not know what belongs to it
    other._events.forget(topic)
    other.create_event_topic(topic, 1)
    head = grow(other, topic, b"k", b"other", b"2", b"3")
    other.close()
    caplog.clear()
    log = open_with(1_000)
    found = history(log, topic, b"k")
    assert (found.head, values(found)) == (head, [b"other", b"2", b"3"])
    assert "of an earlier topic of that name" in caplog.text


def test_deleting_an_event_topic_deletes_it(open_with: Open, topic: str) -> None:
    log = open_with(1)
    grow(log, topic, b"k", b"1")
    wait_stored(log, topic, 1)
    log.delete_topic(topic)
    assert not [each for each in log.list_topics() if each.startswith(topic)]


def forged(partitions: int = 1, topic_id: str = "", **state: Any) -> SnapshotEnd:
    return SnapshotEnd(1, topic_id, partitions, 0, 0, 0, 1, PartitionState(**state))


STRANGE: list[tuple[bytes, bytes | None]] = [
    (b"1/end", b"\xc1"),
    (b"1/end", b""),
    (b"1/end", None),
    (b"", None),
    (b"1/keys/0/0", b"x" * 2_000),
    (b"\xff" * 300, b"\xff"),
    end_record(forged(partitions=7)),
    end_record(forged(next_offset=5, last_offset=4, last_id=b"no")),
    end_record(forged(next_offset=1 << 50)),
    end_record(forged(next_offset=3, last_offset=9)),
]


@pytest.mark.parametrize("is_behind", [False, True], ids=["where there is none", "behind one"])
def test_what_else_stands_there_changes_no_answer(
    open_with: Open, topic: str, kafka: KafkaAddress, is_behind: bool
) -> None:
    log = open_with(3 if is_behind else 1_000)
    head = grow(log, topic, b"k", b"1", b"2", b"3")
    if is_behind:
        wait_stored(log, topic, 3)
    else:
        make_index_topic(log, topic)
    log.close()
    for record in STRANGE:
        put(kafka, topic, record)
        log = open_with(1_000)
        assert history(log, topic, b"k").head == head
        log.close()


@pytest.mark.parametrize("kind", [b"1/keys/0/0", b"1/changed/0", b"1/causes/0", b"1/losers/0"])
def test_one_that_cannot_be_decoded_is_given_up(
    open_with: Open, topic: str, kafka: KafkaAddress, kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has written it who knows all checksums: its index is built from the events then, and
    so is the next one of this process."""
    log = open_with(1_000)
    head = grow(log, topic, b"k", b"1", b"2")
    last_id = log._events.indexes.get(topic).partitions[0].keys[b"k"].last_id
    log.close()
    log = open_with(1_000)
    make_index_topic(log, topic)
    record = SnapshotRecord(kind, b"\x91\xc1")
    state = PartitionState(2, 1, last_id, 1, 2)
    end = SnapshotEnd(1, "", 1, 0, 1, checksum(record, 0), 1, state)
    put(kafka, topic, record, end_record(end))
    found = history(log, topic, b"k")
    assert (found.head, values(found)) == (head, [b"1", b"2"])
    assert "cannot be decoded" in caplog.text
    assert grow(log, topic, b"k", b"3").base.version == 3


@pytest.mark.parametrize("what", ["another topic", "a compacted one", "too few partitions"])
@pytest.mark.usefixtures("asked_again")
def test_a_topic_of_somebody_else_is_left_alone(
    open_with: Open, kafka: KafkaAddress, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_with(1)
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 2).name
    retention = Retention() if what == "another topic" else Retention(compacted=True)
    partitions = 1 if what == "too few partitions" else 2
    log._topics.create_topic(index_topic_name(topic), partitions, retention, {})
    written = 0
    if what == "a compacted one":
        produce(kafka.bootstrap, index_topic_name(topic), [Written(b"mine", b"k")])
        written = 1
    head = grow(log, topic, b"k", b"1")
    until(lambda: "no snapshot was written" in caplog.text, PATIENCE, "the warning")
    assert history(log, topic, b"k").head == head
    ends = [log._readers.end(index_topic_name(topic), each) for each in range(partitions)]
    assert sum(ends) == written


@pytest.mark.usefixtures("asked_again")
def test_one_that_was_damaged_or_deleted_is_followed_by_one_that_is_not(
    open_with: Open, topic: str, kafka: KafkaAddress
) -> None:
    log = open_with(1)
    grow(log, topic, b"k", b"1")
    wait_stored(log, topic, 1)
    log.close()
    state = PartitionState(1, 0, b"x", 1, 1)
    put(kafka, topic, end_record(SnapshotEnd(1, "", 1, 0, 1, 7, 1, state)))
    log = open_with(1)
    log.event_totals(topic)
    until(lambda: stored_events(log, topic) == 1, PATIENCE, "the snapshot")
    log._topics.delete_topic(index_topic_name(topic))
    head = grow(log, topic, b"k", b"2")
    wait_stored(log, topic, 2)
    log.close()
    log = open_with(1)
    assert log.event_totals(topic).events == 2
    assert in_memory(log, topic) == [0]
    assert history(log, topic, b"k").head == head


@pytest.mark.usefixtures("asked_again")
def test_a_command_that_only_looks_reads_them_and_writes_none(
    kafka: KafkaAddress, topic: str, open_with: Open
) -> None:
    with closing(open_log(f"{kafka.url}?index_snapshots=1", mode="ro")) as looking:
        assert isinstance(looking, KafkaLog)
        writer = open_with(0)
        grow(writer, topic, b"k", b"1")
        assert looking.event_totals(topic).events == 1
        index = looking._events.indexes.get(topic)
        assert index._keepers._threads == []
        assert index_topic_name(topic) not in looking.list_topics()
    log = open_with(1)
    grow(log, topic, b"k", b"2")
    wait_stored(log, topic, 2)
    with closing(open_log(f"{kafka.url}?index_snapshots=1", mode="ro")) as looking:
        assert isinstance(looking, KafkaLog)
        assert looking.event_totals(topic).events == 2
        assert in_memory(looking, topic) == [0]


@pytest.mark.parametrize("is_compacted", [False, True], ids=["plain", "compacted"])
def test_deleting_an_event_topic_deletes_nothing_of_others(
    open_with: Open, topic: str, kafka: KafkaAddress, is_compacted: bool
) -> None:
    """A topic of that name may be anybody's, also where nobody asked for snapshots."""
    log, name = open_with(0), index_topic_name(topic)
    log.create_topic(name, 1, Retention(compacted=is_compacted))
    produce(kafka.bootstrap, name, [Written(b"mine", b"k")])
    log.delete_topic(topic)
    assert [each for each in log.list_topics() if each.startswith(topic)] == [name]


@pytest.mark.usefixtures("asked_again")
def test_whoever_finds_one_being_written_lets_its_writer_end(
    open_with: Open, topic: str, kafka: KafkaAddress
) -> None:
    log = open_with(1)
    grow(log, topic, b"k", b"1")
    wait_stored(log, topic, 1)
    other = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": uuid4().hex})
    other.init_transactions(PATIENCE)
    other.begin_transaction()
    other.produce(index_topic_name(topic), b"", b"1/keys/0/0", 0)
    assert other.flush(PATIENCE) == 0
    grow(log, topic, b"k", b"2")
    snapshots: Any = log._events.indexes._snapshots_of(topic)
    until(lambda: bool(snapshots._open), PATIENCE, "it is seen")
    _, committed = log._readers.watermarks(index_topic_name(topic), 0)
    assert snapshots._is_being_written(0)
    assert log._readers.watermarks(index_topic_name(topic), 0)[1] == committed
    other.abort_transaction(PATIENCE)
    wait_stored(log, topic, 2)


def test_a_driver_that_takes_few_records_at_once(
    topic: str, kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_records, "KEYS_IN_BUCKET", 1)
    url = f"{kafka.url}?index_snapshots=60&queue.buffering.max.messages=5"
    with closing(open_log(url)) as log:
        assert isinstance(log, KafkaLog)
        for number in range(60):
            grow(log, topic, b"key %d" % number, b"x")
        wait_stored(log, topic, 60)
        end = log._readers.watermarks(index_topic_name(topic), 0)[1]
        assert end > 40


def test_reading_one_holds_up_nobody_who_may_not_wait(
    open_with: Open, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a group's member, which has to poll."""
    log = open_with(1)
    grow(log, topic, b"k", b"1")
    wait_stored(log, topic, 1)
    log.close()
    may_load, load = threading.Event(), IndexTopic.load

    def load_later(self: IndexTopic, *how: Any) -> Any:
        assert may_load.wait(PATIENCE)
        return load(self, *how)

    monkeypatch.setattr(IndexTopic, "load", load_later)
    log = open_with(1)
    assert log._events.decided_until(topic, 0) == 0
    assert not log._events.wait_until_decided(topic, 0, 1, 0.01)
    assert log.index_progress(topic) == (0, 1)
    may_load.set()
    assert log._events.wait_until_decided(topic, 0, 1, PATIENCE)
    assert log._events.decided_until(topic, 0) == 1
    assert in_memory(log, topic) == [0]


def test_what_the_background_meets_is_raised_where_it_is_asked(
    open_with: Open, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("away")

    log = open_with(1)
    log.create_event_topic(topic, 1)
    with monkeypatch.context() as patched:
        patched.setattr(TopicIndex, "_open_partition", fail)
        with pytest.raises(Unavailable, match="away"):
            until(lambda: log._events.decided_until(topic, 0) > 0, PATIENCE, "the error")
    grow(log, topic, b"k", b"1")
    assert log._events.wait_until_decided(topic, 0, 1, PATIENCE)


def test_closing_begins_no_other_one(
    open_with: Open, kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_with(1)
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 4).name
    written: list[int] = []

    def write(self: IndexTopic, index: PartitionIndex, *_: object) -> None:
        written.append(index.partition)
        log._events.indexes.get(topic)._keepers._closed.set()

    monkeypatch.setattr(IndexTopic, "write", write)
    for number in range(40):
        grow(log, topic, b"key %d" % number, b"x")
    keepers = log._events.indexes.get(topic)._keepers
    until(lambda: keepers._closed.is_set(), PATIENCE, "a snapshot that is due")
    keepers.close()
    assert len(written) == 1


def test_a_log_that_lost_what_came_after_the_last_event_that_counts_is_said(
    open_with: Open, topic: str, producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_with(1)
    head = grow(log, topic, b"k", b"1")
    write(producer, topic, made(b"k").records)  # it does not count
    wait_stored(log, topic, 1)
    index = log._events.indexes.get(topic).partitions[0]
    until(lambda: index.next_offset == 2, PATIENCE, "all is folded")
    with log._events.indexes.get(topic).lock:
        state = index.end_copy().state
    assert (state.last_offset, state.folded_offset) == (0, 1)
    assert log._events.indexes.get(topic)._fits(0, state, "snapshot")
    state.folded_id = b"another"
    assert not log._events.indexes.get(topic)._fits(0, state, "snapshot")
    assert "HistoryTruncated" in caplog.text
    assert history(log, topic, b"k").head == head


def test_one_that_names_an_event_of_another_key_is_given_up(
    open_with: Open, topic: str, kafka: KafkaAddress
) -> None:
    """It agrees with the log about the last records, and is wrong all the same."""
    log = open_with(0)
    head, other = grow(log, topic, b"a", b"1", b"2"), grow(log, topic, b"b", b"3", b"4")
    make_index_topic(log, topic)
    last_a, last_b = head.base.last_id.encode(), other.base.last_id.encode()
    log.close()
    wrong = [
        (b"a", KeyEntry(array("q", [0, 3]), last_a)),
        (b"b", KeyEntry(array("q", [2, 3]), last_b)),
    ]
    records = list(entry_records("keys/0", wrong))
    state = PartitionState(4, 3, last_b, 2, 4, folded_offset=3, folded_id=last_b)
    end = SnapshotEnd(1, "", 1, 0, len(records), checksum(records[0], 0), 1, state)
    put(kafka, topic, *records, end_record(end))
    log = open_with(1_000)
    for _ in range(2):
        found = history(log, topic, b"a")
        assert (found.head, values(found)) == (head, [b"1", b"2"])


def test_who_may_not_write_one_says_so_once_and_goes_on(
    open_with: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often, and of however many partitions."""
    tried: list[int] = []

    def refuse(self: IndexTopic, partition: int) -> Any:
        tried.append(partition)
        self._failures = 5_000
        raise Fatal(f"no right to {partition % 1}")

    monkeypatch.setattr(IndexTopic, "_take", refuse)
    log = open_with(1)
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 4).name
    for number in range(40):
        grow(log, topic, b"key %d" % number, b"x")
    snapshots: Any = log._events.indexes._snapshots_of(topic)
    for times in (1, 2):
        until(snapshots.is_paused, PATIENCE, "an attempt")
        assert len(tried) == times
        snapshots._paused_until = 0.0
        until(lambda: len(tried) > times or snapshots.is_paused(), PATIENCE, "the next")  # noqa: B023
    log.close()
    assert len(set(tried)) == len(tried)  # the others have their turn
    assert caplog.text.count("no snapshot was written") == 1


# -- settings


@pytest.mark.parametrize("written", ["-1", "many", "", "1e6", "9" * 100])
def test_a_number_that_makes_no_sense_is_refused(kafka: KafkaAddress, written: str) -> None:
    with pytest.raises(ConfigError, match="index_snapshots: a number of events"):
        open_log(f"{kafka.url}?index_snapshots={written}")


def test_a_folder_and_a_topic_are_one_too_many(kafka: KafkaAddress, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        open_log(f"{kafka.url}?index_snapshots=5&event_index={tmp_path}")
