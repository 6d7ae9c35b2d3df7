"""The Kafka log on a real broker: what the conformance suite cannot ask of every log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewPartitions,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.errors import ConfigError, LogError, NotFound, TooLarge, Unavailable
from streams.log.kafka import reader as reader_module
from streams.log.kafka.log import CAPABILITIES, KafkaLog
from streams.log.protocol import Assignment, Committed, Retention
from streams.log.url import open_log
from streams.message import ID, Position
from tests.conformance.logs import Case
from tests.conformance.member import PATIENCE
from tests.conformance.records import append, record
from tests.conformance.world import World
from tests.hostile.commands import command
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

CASE = Case("kafka_url", CAPABILITIES, trims=False)


@pytest.fixture
def world(kafka: KafkaAddress) -> Iterator[World]:
    opened = World(CASE, kafka.url)
    yield opened
    opened.close()


@pytest.fixture
def admin(kafka: KafkaAddress) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap})


def told(future: Any) -> Any:
    return future.result(PATIENCE)


def plain(world: World, **settings: Any) -> dict[str, Any]:
    """A configuration of a client that is not ours."""
    return {"bootstrap.servers": world.url.removeprefix("kafka://"), **settings}


# -- transactions of others -----------------------------------------------------------------------


@pytest.fixture
def transactional(world: World) -> Producer:
    producer = Producer(plain(world, **{"transactional.id": world.name("tx")}))
    producer.init_transactions(PATIENCE)
    return producer


def transaction(producer: Producer, topic: str, values: list[bytes], *, commit: bool) -> None:
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush()
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()


def test_an_open_transaction_lies_within_the_log_though_it_cannot_be_read(
    world: World, transactional: Producer
) -> None:
    """A member of another tool that reads uncommitted messages may have committed behind it."""
    topic = world.topic()
    world.append(topic, [b"0"])
    transactional.begin_transaction()
    for value in (b"1", b"2"):
        transactional.produce(topic, value, partition=0)
    transactional.flush()
    assert world.log.watermarks(topic, 0) == (0, 1)
    assert world.log.log_end_offset(topic, 0) == 3
    transactional.commit_transaction()


def test_markers_and_aborted_messages_are_gaps(world: World, transactional: Producer) -> None:
    topic = world.topic()
    transaction(transactional, topic, [b"1", b"2"], commit=True)
    transaction(transactional, topic, [b"no"] * 3, commit=False)
    transaction(transactional, topic, [b"3"], commit=True)
    transaction(transactional, topic, [b"no"], commit=False)
    first, end = 0, 11  # markers are written after the transaction's end was acknowledged
    world.history.until(
        lambda: world.log.watermarks(topic, 0) == (first, end), "all markers are there"
    )
    assert world.values(topic) == [b"1", b"2", b"3"]
    offsets = [offset for batch in world.read(topic) for offset in batch.offsets]
    assert offsets == [0, 1, 7]
    # Ranges that begin, end or consist of what is no message.
    ranges = [(0, 2), (0, 3), (1, 7), (2, 3), (2, 8), (3, 6), (4, 11), (6, 7), (7, 8), (8, 11)]
    for start, stop in ranges:
        expected = [b"123"[i : i + 1] for i, o in enumerate(offsets) if start <= o < stop]
        assert world.values(topic, start=start, end=stop) == expected
    member = world.member(world.group(), topic)
    member.until_delivered(3)
    world.append(topic, [b"4"])
    member.until_delivered(4)
    assert member.delivered() == [b"1", b"2", b"3", b"4"]


def test_tail_shows_as_many_as_it_is_asked_for_between_markers(
    world: World, transactional: Producer
) -> None:
    topic = world.topic()
    for number in range(12):
        transaction(transactional, topic, [b"%d" % number], commit=True)
    until_end(world, topic, 24)
    for count in (5, 12, 20):
        shown = command(world.url, "tail", topic, "-n", str(count), "--json").documents
        assert [each["value"] for each in shown] == list(range(12))[-count:]


def test_an_open_transaction_ends_what_can_be_read(world: World, transactional: Producer) -> None:
    topic = world.topic()
    world.append(topic, [b"before"])
    transactional.begin_transaction()
    transactional.produce(topic, b"open", partition=0)
    transactional.flush()
    world.append(topic, [b"behind"])
    assert world.log.watermarks(topic, 0) == (0, 1)
    assert world.values(topic) == [b"before"]
    transactional.commit_transaction()
    until_end(world, topic, 4)
    assert world.values(topic) == [b"before", b"open", b"behind"]


def until_end(world: World, topic: str, end: int) -> None:
    """Wait until so much can be read (a coordinator writes its markers after it has answered)."""
    deadline = time.monotonic() + PATIENCE
    while world.log.watermarks(topic, 0)[1] < end:
        assert time.monotonic() < deadline, "the marker was never written"


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 20_000])
def test_a_record_too_large_for_its_topic_fails_alone(world: World, limit: int | None) -> None:
    log, size = world.log, 2 << 20
    config = {}
    if limit is not None:
        # A batch that is refused takes its small records along, so it must not be larger.
        log, size = open_log(f"{world.url}?batch.size=15000"), limit + 10_000
        config["max.message.bytes"] = str(limit)
    topic = log.create_topic(world.name("small"), 1, config=config).name
    records = [record(b"a"), record(b"x" * size), record(b"b"), record(b"c" * 10_000)]
    outcomes = append(log, topic, records)
    assert [type(outcome) for outcome in outcomes] == [Position, TooLarge, Position, Position]
    assert [len(value or b"") for value in world.values(topic)] == [1, 1, 10_000]
    assert isinstance(append(log, topic, [record(b"d")])[0], Position)
    log.close()


def test_a_record_too_large_for_the_driver_fails_alone(world: World) -> None:
    topic = world.topic()
    outcomes = append(world.log, topic, [record(b"a"), record(b"x" * (33 << 20)), record(b"b")])
    assert [type(outcome) for outcome in outcomes] == [Position, TooLarge, Position]


def test_a_dead_letter_topic_takes_more_than_any_other(world: World) -> None:
    settings = world.log.capabilities.dead_letter_config
    letters = world.log.create_topic(world.name("letters"), 1, config=settings).name
    value = b"x" * (5 << 20)
    assert isinstance(append(world.log, world.topic(), [record(value)])[0], TooLarge)
    world.append(letters, [value])
    (batch,) = world.read(letters)
    assert batch.values == [value]
    member = world.member(world.group(), letters)
    member.until_delivered(1)


# -- appending ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "murmur2"),
    # From the tests of Kafka's own org.apache.kafka.common.utils.Utils.
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_a_key_goes_where_java_clients_put_it(world: World, key: bytes, murmur2: int) -> None:
    (position,) = world.append(world.topic(7), [record(b"v", key)])
    assert position.partition == (murmur2 & 0x7FFFFFFF) % 7


def test_append_returns_before_its_end_and_a_full_queue_only_makes_it_wait(
    kafka: KafkaAddress, world: World
) -> None:
    log = open_log(f"{kafka.url}?queue.buffering.max.messages=100&linger.ms=50")
    topic = world.topic(2)
    told: list[Any] = []
    threads: set[str] = set()

    def done(outcomes: Any) -> None:
        threads.add(threading.current_thread().name)
        told.append(outcomes)

    log.append(topic, [record(b"first")], done)
    assert threading.current_thread().name not in threads  # it is not told in here
    for start in range(0, 5_000, 500):
        log.append(topic, [record(b"%d" % i, b"k") for i in range(start, start + 500)], done)
    threads_of_append = set(threads)  # flush() may call it itself
    log.flush(PATIENCE)
    log.close()
    assert [len(outcomes) for outcomes in told] == [1] + [500] * 10
    positions = [position for outcomes in told[1:] for position in outcomes]
    assert positions == sorted(positions)
    assert threading.current_thread().name not in threads_of_append


def test_what_cannot_be_reached_is_unavailable_and_nothing_is_written() -> None:
    log = open_log("kafka://127.0.0.1:1")
    (outcome,) = append(log, "anything", [record(b"v")])
    assert isinstance(outcome, Unavailable)
    assert "is Kafka running" in str(outcome)
    log.close()


def test_a_closed_log_takes_nothing_more(world: World) -> None:
    topic = world.topic()
    log = open_log(world.url)
    log.close()
    told: list[Any] = []
    log.append(topic, [record(b"v")], told.append)
    ((outcome,),) = told
    assert isinstance(outcome, LogError)


# -- topics ---------------------------------------------------------------------------------------


def test_retention_and_settings_are_kafkas(world: World, admin: AdminClient) -> None:
    name = world.name("topic")
    config = {"cleanup.policy": "compact,delete", "replication.factor": "1"}
    world.log.create_topic(name, 1, Retention(seconds=90.5), config)
    assert settings_of(admin, name)["retention.ms"] == "90500"
    assert settings_of(admin, name)["cleanup.policy"] == "compact,delete"
    kept = world.topic()
    assert settings_of(admin, kept)["retention.ms"] == "-1"
    given = world.log.create_topic(world.name("topic"), 1, config={"retention.ms": "1000"})
    assert given.retention == Retention(seconds=1)
    with pytest.raises(ConfigError, match="Retention"):
        world.log.create_topic(world.name("topic"), 1, Retention(messages=5))
    with pytest.raises(ConfigError, match=r"replication\.factor"):
        world.log.create_topic(world.name("topic"), 1, config={"replication.factor": "3"})
    with pytest.raises(ConfigError):
        world.log.create_topic(world.name("topic"), 1, config={"no.such.setting": "3"})


def settings_of(admin: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found = told(admin.describe_configs([resource])[resource])
    return {name: entry.value for name, entry in found.items()}


def test_partitions_that_are_added_are_found(
    kafka: KafkaAddress, world: World, admin: AdminClient
) -> None:
    topic = world.topic(1)
    log = open_log(f"{kafka.url}?topic.metadata.refresh.interval.ms=500")
    member = world.member(world.group(), topic, log=log)
    member.until_owns(1)
    told(admin.create_partitions([NewPartitions(topic, 3)])[topic])
    member.until_owns(3)
    world.append(topic, [record(b"v", partition=2)])
    member.until_delivered(1)
    assert world.values(topic, 2) == [b"v"]
    world.leave(member)
    log.close()


# -- clients that are not ours --------------------------------------------------------------------


def test_a_plain_producers_messages_are_read(world: World) -> None:
    topic, group = world.topic(), world.group()
    producer = Producer(plain(world))
    producer.produce(topic, b"value", b"key", headers=[("ce_id", b"7"), ("ce_source", b"shop")])
    producer.produce(topic, None, b"key")
    producer.produce(topic, "text", headers={"h": None})
    producer.flush()
    (batch,) = world.read(topic)
    assert batch.ids == ["7\0shop\x000", None, None]
    assert [batch.id(i) for i in range(3)] == ["7", f"{topic}/0/1", f"{topic}/0/2"]
    assert batch.values == [b"value", None, b"text"]
    member = world.member(group, topic)
    member.until_delivered(3)
    assert member.headers[2] == [("h", None)]


def test_a_plain_consumer_reads_ours_and_shares_its_positions(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, [record(b"1", b"k", id="a", headers=[("h", b"x")]), record(None, b"k")])
    consumer = Consumer(
        plain(world, **{"group.id": group, "auto.offset.reset": "earliest",
                        "enable.auto.commit": False})
    )  # fmt: skip
    consumer.subscribe([topic])
    messages: list[Any] = []
    deadline = time.monotonic() + PATIENCE
    while len(messages) < 2 and time.monotonic() < deadline:
        messages += consumer.consume(10, 0.1)
    first, second = messages
    assert (first.key(), first.value()) == (b"k", b"1")
    assert first.headers() == [(ID, b"a"), ("h", b"x")]
    assert second.value() is None
    # It stops after the first; ours goes on there, and gets its metadata as it stands.
    stored = [TopicPartition(topic, 0, 1, metadata="theirs: {ünïcode}")]
    consumer.commit(offsets=stored, asynchronous=False)
    consumer.close()
    member = world.member(group, topic)
    member.until_delivered(1)
    assert member.delivered() == [None]
    assert member.past[0].committed == Committed(1, "theirs: {ünïcode}")


# -- positions that are gone ----------------------------------------------------------------------


def trim(admin: AdminClient, topic: str, first: int) -> None:
    part = TopicPartition(topic, 0, first)
    told(admin.delete_records([part])[part])


def test_a_group_sees_that_its_position_was_deleted(world: World, admin: AdminClient) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, [b"%d" % i for i in range(10)])
    world.log.initialize_offsets(group, topic, {0: 2})
    trim(admin, topic, 6)
    found: list[tuple[int, int]] = []

    def greet(assignments: Any) -> None:
        for assignment in assignments:
            first, _ = world.log.watermarks(topic, 0)
            found.append((assignment.committed.position, first))
            assignment.position = max(assignment.position, first)

    member = world.member(group, topic, greet=greet)
    member.until_delivered(4)
    assert found == [(2, 6)]
    assert member.delivered() == [b"6", b"7", b"8", b"9"]


def test_a_position_that_is_overtaken_while_it_waits_is_resolved_anew(
    world: World, admin: AdminClient
) -> None:
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    world.append(topic, [b"0"])

    def greet(assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            first, _ = world.log.watermarks(topic, 0)
            assignment.position = max(assignment.position, first)

    member = world.member(group, topic, greet=greet)
    member.until_delivered(1)
    (before,) = member.past
    member.do(lambda: member.subscription.pause([before]))
    world.append(topic, [b"%d" % i for i in range(1, 10)])
    trim(admin, topic, 5)
    member.do(lambda: member.subscription.resume([before]))
    member.until_delivered(6)
    assert member.delivered() == [b"0", b"5", b"6", b"7", b"8", b"9"]
    before_, after = member.past
    assert before_ is before
    assert before.valid_until == float("-inf")
    assert after.epoch > before.epoch
    assert after.committed == Committed(1)
    assert [e.what for e in world.history.events if e.what != "message"] == [
        "assigned",
        "lost",
        "assigned",
    ]


def test_a_reader_whose_consumer_sees_nothing_goes_on_with_another(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "STALL_TIMEOUT", 0.0)
    log, topic = world.log, world.topic(1)
    assert isinstance(log, KafkaLog)
    append(log, topic, [record(b"1"), record(b"2")])
    reader = log.raw_reader(topic, 0, 0, 1 << 62)
    batch = reader.read(1)
    assert batch is not None
    assert batch.values == [b"1"]
    batch = reader.read(10, timeout=PATIENCE)
    assert batch is not None
    assert batch.values == [b"2"]
    with pytest.raises(Unavailable):  # there is no more
        reader.read(10, timeout=0.2)
    assert "there is more: restarting" not in caplog.text
    stuck = reader._consumer
    assert stuck is not None
    stuck.unassign()  # as good as broken: it fetches no more
    append(log, topic, [record(b"3")])
    with pytest.raises(Unavailable):
        reader.read(10, timeout=0.2)
    assert "there is more: restarting" in caplog.text
    batch = reader.read(10, timeout=PATIENCE)
    assert batch is not None
    assert batch.values == [b"3"]
    reader.close()


def test_a_reader_goes_on_behind_what_was_deleted(world: World, admin: AdminClient) -> None:
    topic = world.topic()
    world.append(topic, [b"%d" % i for i in range(10)])
    trim(admin, topic, 6)
    assert world.values(topic, start=2, end=8) == [b"6", b"7"]
    assert world.values(topic, start=2, end=5) == []
    assert world.log.offset_before(topic, 0, 8, 5) == 6


# -- what is said about it ------------------------------------------------------------------------


def test_a_reader_of_a_topic_that_was_deleted_says_so(world: World, admin: AdminClient) -> None:
    topic = world.topic()
    world.append(topic, [b"0", b"1", b"2"])
    log: Any = world.log  # which knows the topic
    (future,) = admin.delete_topics([topic]).values()
    future.result(PATIENCE)
    give_up = time.monotonic() + PATIENCE
    with pytest.raises(NotFound, match="there is no topic"):
        while time.monotonic() < give_up:  # the broker may not have heard of it yet
            reader = log.raw_reader(topic, 0, 0, 3)
            try:
                reader.read(1, timeout=1.0)
            except Unavailable:
                pass  # the broker stood still
            finally:
                reader.close()


def test_readers_that_only_look_ask_once_a_second_whether_their_topic_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, log, asked = world.topic(4), cast(Any, world.log), list[str]()
    check = log._readers.metadata.check_there

    def counted(name: str) -> None:
        asked.append(name)
        check(name)

    monkeypatch.setattr(log._readers.metadata, "check_there", counted)
    readers = [world.log.reader(topic, partition, 0, 1 << 62) for partition in range(4)]
    began = time.monotonic()
    for reader in readers * 25:
        with pytest.raises(Unavailable):
            reader.read(1, timeout=0.0)
    assert 1 <= len(asked) <= 1 + (time.monotonic() - began) / reader_module.CHECK_INTERVAL
    for reader in readers:
        reader.close()


def test_a_topic_that_has_grown_takes_what_is_for_its_new_partitions(
    world: World, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, though the producer has known it before."""
    monkeypatch.setattr("streams.log.kafka.topics.COUNT_TTL", 0.0)
    topic = world.topic(1)
    world.append(topic, [b"0"])
    told(admin.create_partitions([NewPartitions(topic, 4)])[topic])
    until(
        lambda: world.open().describe_topic(topic).partitions == 4,
        PATIENCE,
        "the broker knows them",
    )
    world.append(topic, [record(b"%d" % each, partition=each) for each in range(4)])
    assert [world.values(topic, each)[-1] for each in range(4)] == [b"0", b"1", b"2", b"3"]


def test_the_drivers_own_log_goes_to_python_and_users_callbacks_are_called(
    kafka: KafkaAddress, caplog: pytest.LogCaptureFixture, world: World
) -> None:
    reports: list[str] = []
    topic = world.topic()
    with caplog.at_level("DEBUG", "streams.kafka"):
        log = open_log(f"{kafka.url}?{urlencode({'debug': 'cgrp'})}", {"stats_cb": reports.append})
        member = world.member(world.group(), topic, log=log)
        member.until_owns(1)
        deadline = time.monotonic() + PATIENCE
        while not reports and time.monotonic() < deadline:
            member.do(lambda: None)
        world.leave(member)
        log.close()
    assert '"cgrp"' in reports[0]
    assert any("GroupCoordinator" in each.message for each in caplog.records)
    assert isinstance(log, KafkaLog)
    assert repr(log) == f"<Kafka log at {kafka.bootstrap}>"
