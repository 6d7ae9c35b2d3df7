"""What feeds an index is told of the end of transactions, and sees where nothing comes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.errors import LogError, Unavailable
from streams.log.events import EMPTY, Appended
from streams.log.kafka import event_index, index_consumer, topic_identity
from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.index_consumer import HistoryGone, IndexConsumer
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.snapshot_index import SnapshotIndex
from streams.log.kafka.topic_identity import TopicIdentity
from streams.log.names import partition_for
from streams.log.url import open_log
from tests.conformance.histories import append, grow, history, values
from tests.conformance.member import PATIENCE
from tests.log.kafka_histories import answered, log, made, opening, producer, write
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

__all__ = ["log", "producer"]


class Index:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.folded: list[int] = []
        self.reached = 0
        self.errors: list[LogError] = []
        self.ticks = 0

    def fold(self, batch: KafkaBatch) -> None:
        self.folded += batch.offsets
        self.reached = batch.offsets[-1] + 1

    def reach(self, partition: int, offset: int) -> None:
        self.reached = max(self.reached, offset)

    def has_reached(self, offset: int) -> bool:
        return self.reached == offset

    def next_offsets(self) -> Mapping[int, int]:
        return {0: self.reached}

    def tick(self) -> None:
        self.ticks += 1

    def fail(self, error: LogError) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("uncommitted", [True, False])
def test_the_end_of_a_transaction_is_told_before_a_fetch_has_found_nothing(
    kafka: KafkaAddress, uncommitted: bool
) -> None:
    """A fetch that finds nothing takes longer here than anybody waits."""
    log = open_log(f"{kafka.url}?fetch.wait.max.ms=50000")
    assert isinstance(log, KafkaLog)
    topic = f"index-{uuid4().hex[:8]}"
    log.create_topic(topic, 1)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(30)
    index = Index()
    consumer = IndexConsumer(topic, log._readers, index, uncommitted=uncommitted)
    consumer.follow({0: 0})
    try:
        # A record, and the marker that ends its transaction.
        for end, finish in (2, producer.commit_transaction), (4, producer.abort_transaction):
            producer.begin_transaction()
            producer.produce(topic, b"value", partition=0)
            producer.flush(30)
            finish(30)
            until(partial(index.has_reached, end), 20, f"offset {end} is reached")
    finally:
        consumer.close()
        log.close()
    assert index.folded == ([0, 2] if uncommitted else [0])
    assert not index.errors


# -- a partition that the driver does not fetch any more, while others move ------------------------


@pytest.fixture
def drivers(log: KafkaLog, monkeypatch: pytest.MonkeyPatch) -> list[Consumer]:
    """The consumers that follow something, as they are made."""
    found: list[Consumer] = []
    make = log._readers.new_consumer

    def new_consumer(**options: Any) -> Consumer:
        made = make(**options)
        if options.get("follows"):
            found.append(made)
        return made

    monkeypatch.setattr(log._readers, "new_consumer", new_consumer)
    return found


@contextmanager
def moving(producer: Producer, topic: str) -> Iterator[None]:
    """Meanwhile something is written to partition 0 all the time."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.05):
            write(producer, topic, made(b"moving").records, 0)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def stop_fetching(driver: Consumer, topic: str, index: TopicIndex | SnapshotIndex) -> None:
    """Nothing of partition 1, behind the back of all that is ours, as a driver does that has lost
    an answer."""
    stopped = threading.Event()

    def stop() -> None:
        """In the thread that uses the driver."""
        if not stopped.is_set():
            driver.pause([TopicPartition(topic, 1)])
            stopped.set()

    index.tick = stop  # type: ignore[method-assign]
    assert stopped.wait(PATIENCE)


def test_it_is_found_and_fetched_by_another_consumer(
    log: KafkaLog,
    producer: Producer,
    drivers: list[Consumer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(index_consumer, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(index_consumer, "CONFIRMATION", 0.5)
    monkeypatch.setattr(event_index, "WAIT_TIMEOUT", PATIENCE)
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 2).name
    zero, one = (
        next(key for key in map(b"%d".__mod__, range(99)) if partition_for(key, "", 2) == number)
        for number in range(2)
    )
    grow(log, topic, zero, b"1")
    head = grow(log, topic, one, b"1")
    (driver,) = drivers
    with moving(producer, topic), caplog.at_level(logging.WARNING, "streams.kafka"):
        stop_fetching(driver, topic, log._events.indexes.get(topic))
        write(producer, topic, made(one, head.base).records, 1)  # by another process
        found = answered(lambda: history(log, topic, one))
    assert values(found) == [b"1", b"0"]
    assert "nothing came from partition 1, though there is more" in caplog.text
    assert values(history(log, topic, zero)) == [b"1"]


@pytest.mark.parametrize("kind", [TopicIndex, SnapshotIndex])
def test_whoever_waits_for_it_is_told(
    log: KafkaLog,
    producer: Producer,
    drivers: list[Consumer],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[TopicIndex | SnapshotIndex],
) -> None:
    monkeypatch.setattr(index_consumer, "STALL_TIMEOUT", 600.0)
    topic = log.create_topic(f"index-{uuid4().hex[:8]}", 2).name
    write(producer, topic, made(b"k").records, 1)
    index: TopicIndex | SnapshotIndex
    if kind is TopicIndex:
        index = TopicIndex(topic, log._readers)
        index.use([0, 1])
        wait = index.wait
    else:
        index = SnapshotIndex(topic, log._readers, 2)
        wait = partial(index.wait, timeout=0.5)
    try:
        until(lambda: index.next_offsets()[1] == 1, PATIENCE, "it is read")
        monkeypatch.setattr(event_index, "WAIT_TIMEOUT", 0.5)
        with moving(producer, topic):
            stop_fetching(drivers[-1], topic, index)
            write(producer, topic, made(b"k").records, 1)
            with pytest.raises(Unavailable, match=f"{topic}: no progress"):
                answered(lambda: wait({1: 2}))
    finally:
        index.close()


# -- a topic that is deleted and made anew while nobody looks --------------------------------------


@contextmanager
def standing_still(consumer: Any, topic: str, *, fetches_then: bool = True) -> Iterator[None]:
    """Meanwhile a consumer's thread does not go on, nor does its driver fetch.

    :param fetches_then: the driver does so afterwards.
    """
    fold_next = consumer._fold_next
    stands, goes_on = threading.Event(), threading.Event()

    def stand_still(driver: Consumer) -> None:
        if not stands.is_set():
            driver.pause([TopicPartition(topic, 0)])
            stands.set()
            assert goes_on.wait(PATIENCE)
            if fetches_then:
                driver.resume([TopicPartition(topic, 0)])
        fold_next(driver)

    consumer._fold_next = stand_still
    try:
        assert stands.wait(PATIENCE)
        yield
    finally:
        goes_on.set()


@pytest.mark.parametrize("looks_before", [False, True])
def test_what_is_decided_upon_a_topic_that_was_made_anew_meanwhile_is_not_lost(
    kafka: KafkaAddress, log: KafkaLog, monkeypatch: pytest.MonkeyPatch, looks_before: bool
) -> None:
    """A process stood still while the topic was made anew and grew past what it had read. No answer
    of the new topic is taken for one of the former, whether what follows the topic goes on before
    the append or not."""
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 1).name
    head = grow(log, topic, b"k", b"1", b"2")
    index = log._events.indexes.get(topic)

    def check_append() -> None:
        _, outcome = append(log, topic, b"k", head.base, b"3")
        assert not isinstance(outcome, Appended)

    with opening(kafka.url) as open_one, standing_still(index._consumer, topic):
        other = open_one()
        other.delete_topic(topic)
        other.create_event_topic(topic, 1)
        grow(other, topic, b"other", *[b"%d" % number for number in range(5)])
        monkeypatch.setattr(topic_identity, "MAX_AGE", -1.0)  # so long has it stood still
        if not looks_before:
            check_append()
    check_append()
    assert history(log, topic, b"k").head == EMPTY
    assert len(values(history(log, topic, b"other"))) == 5
    assert values(history(log, topic, b"other"))[-1] == b"4"
    grow(log, topic, b"k", b"anew")
    with opening(kafka.url) as open_one:
        assert values(history(open_one(), topic, b"k")) == [b"anew"]


def test_what_comes_of_a_topic_that_was_made_anew_meanwhile_is_not_folded(
    kafka: KafkaAddress, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins to look again by itself: nobody asks for anything."""
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 1).name
    head = grow(log, topic, b"k", b"1")
    index = log._events.indexes.get(topic)
    with opening(kafka.url) as open_one, standing_still(index._consumer, topic):
        other = open_one()
        other.delete_topic(topic)
        other.create_event_topic(topic, 1)
        grow(other, topic, b"other", b"1", b"2", b"3")
        monkeypatch.setattr(topic_identity, "MAX_AGE", -1.0)
    until(lambda: isinstance(index.error, HistoryGone), PATIENCE, "it is noticed")
    assert index.partitions[0].head(b"k") == head
    assert index.partitions[0].head(b"other") == EMPTY


def test_whether_a_topic_is_the_same_is_asked_now_and_then(
    log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_identity, "ASK_INTERVAL", 0.0)
    topic = log.create_event_topic(f"{uuid4().hex[:12]}.events", 1).name
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return log._topics.topic_id(name)

    identity = TopicIdentity(topic, ask)

    def has_asked(count: int) -> bool:
        identity.tick()
        return len(asked) >= count

    for count in range(2, 5):
        until(partial(has_asked, count), PATIENCE, "it asks")
        identity.check()
    log.delete_topic(topic)
    log.create_event_topic(topic, 1)

    def is_noticed() -> bool:
        try:
            identity.tick()
        except HistoryGone as error:
            return "was deleted and recreated" in str(error)
        return False

    until(is_noticed, PATIENCE, "it is noticed")
    monkeypatch.setattr(topic_identity, "MAX_AGE", -1.0)
    with pytest.raises(HistoryGone):
        identity.check()
    unknown = TopicIdentity(topic, lambda name: "")
    unknown.tick()
    unknown.check()
    assert unknown.is_certain


def test_a_partition_that_ends_before_what_was_read_of_it_is_said(
    log: KafkaLog, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the driver does not say it, as it fetches nothing."""
    monkeypatch.setattr(index_consumer, "STALL_TIMEOUT", 0.0)
    topic = log.create_topic(f"index-{uuid4().hex[:8]}", 1).name
    write(producer, topic, made(b"k", count=3).records)
    index = Index()
    consumer = IndexConsumer(topic, log._readers, index)
    consumer.follow({0: 0})
    try:
        until(partial(index.has_reached, 3), PATIENCE, "it is read")
        with standing_still(consumer, topic, fetches_then=False):
            log.delete_topic(topic)
            log.create_topic(topic, 1)
            write(producer, topic, made(b"k").records)
        until(lambda: bool(index.errors), PATIENCE, "it is said")
    finally:
        consumer.close()
    (error,) = index.errors
    assert isinstance(error, HistoryGone)
    assert "was read up to offset 3 and ends at 1 now" in str(error)
