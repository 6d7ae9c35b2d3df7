"""Event topics on Kafka: what the log alone cannot promise, and its readers have to find out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.log.event_headers import make_append
from streams.log.events import EMPTY, NO_HISTORY, Appended, Base, EventAppend
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from streams.message import ID, Record
from tests.conformance.histories import append_all, event, grow, history, values
from tests.conformance.member import PATIENCE
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until


@pytest.fixture
def log(kafka: KafkaAddress) -> Iterator[KafkaLog]:
    opened = open_log(kafka.url)
    assert isinstance(opened, KafkaLog)
    yield opened
    opened.close()


@pytest.fixture
def topic(log: KafkaLog) -> str:
    """An event topic of one partition."""
    return log.create_event_topic(f"{uuid4().hex[:12]}.events", 1).name


@pytest.fixture
def producer(kafka: KafkaAddress) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})


def write(producer: Producer, topic: str, records: Sequence[Record]) -> list[int]:
    """Write records as they are, whether they count or not; where they stand."""
    offsets: list[int] = []

    def written(error: Any, message: Any) -> None:
        assert error is None, error
        offsets.append(message.offset())

    for record in records:
        headers: Any = [(ID, record.id.encode()), *record.headers]
        producer.produce(topic, record.value, record.key, 0, written, headers=headers)
    assert producer.flush(PATIENCE) == 0
    return offsets


def made(key: bytes, base: Base = NO_HISTORY, count: int = 1, **options: Any) -> EventAppend:
    """An append, which nobody checks before it is written."""
    return make_append(key, base, [event(b"%d" % number) for number in range(count)], **options)


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


def test_what_is_not_decided_yet_is_waited_for(
    log: KafkaLog, topic: str, producer: Producer
) -> None:
    first, slow = made(b"a"), made(b"k", count=2)
    write(producer, topic, [*first.records, slow.records[0], *made(b"b").records])
    events = log._events
    assert events.uncounted_offsets(topic, 0, 0, 1) == []
    until(lambda: events.index_progress(topic) == (3, 3), PATIENCE, "folded")
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
