"""The driver's timers are not waited for: a consumer outside any group asks where a topic is before
it is assigned a part of it, and a producer asks where the first one is that is appended to."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typing_extensions import override

from streams.errors import NotFound
from streams.log.kafka import log as kafka_log
from streams.log.kafka import reader_consumer
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.reader_consumer import ReaderConsumer
from streams.log.kafka.topics import Metadata
from streams.message import Position, Record
from tests.conformance.member import PATIENCE
from tests.log.kafka_histories import log, opening, producer, write
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import free_port

__all__ = ["log", "producer"]


class Recorded(ReaderConsumer):
    """Keeps what is asked and assigned, in order."""

    def __init__(self, bootstrap: str, **settings: Any) -> None:
        self.calls: list[str] = []
        super().__init__(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,
                **settings,
            }
        )

    @override
    def list_topics(self, topic: str, **more: Any) -> Any:  # type: ignore[override]
        self.calls.append(topic)
        return super().list_topics(topic, **more)

    def values(self, count: int) -> list[bytes | None]:
        """So many of the messages that are assigned."""
        found: list[bytes | None] = []
        while len(found) < count:
            found += [each.value() for each in self.consume(count - len(found), 0.1)]
        return found


@pytest.fixture
def topics(log: KafkaLog, producer: Producer) -> list[str]:
    """Two, whose first record is their name."""
    names = [f"orders-{uuid4().hex[:12]}" for _ in range(2)]
    for name in names:
        log.create_topic(name, 2)
        write(producer, name, [Record(name.encode(), None, "1")])
    return names


@pytest.fixture
def consumer(kafka: KafkaAddress) -> Iterator[Recorded]:
    opened = Recorded(kafka.bootstrap)
    yield opened
    opened.close()


def test_a_topic_is_looked_up_before_it_is_assigned_the_first_time(
    consumer: Recorded, topics: list[str]
) -> None:
    first, second = topics
    for _ in range(3):
        consumer.assign([TopicPartition(first, 0, 0), TopicPartition(first, 1, 0)])
        assert consumer.values(1) == [first.encode()]
        consumer.unassign()
    assert consumer.calls == [first]
    consumer.incremental_assign([TopicPartition(second, 0, 0)])
    assert consumer.values(1) == [second.encode()]
    assert consumer.calls == [first, second]


def test_it_is_looked_up_again_before_the_driver_has_forgotten_it(
    consumer: Recorded, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_consumer, "LOOK_UP_TTL", 0.0)
    for topic in (topics[0], topics[0]):
        consumer.assign([TopicPartition(topic, 0, 0)])
    assert consumer.calls == [topics[0], topics[0]]


def test_it_is_assigned_where_nobody_answers_and_looked_up_the_next_time() -> None:
    consumer = Recorded(f"127.0.0.1:{free_port()}", log_level=0)
    for _ in range(2):
        consumer.assign([TopicPartition("somewhere", 0, 0)])
        assert [each.topic for each in consumer.assignment()] == ["somewhere"]
    assert consumer.calls == ["somewhere", "somewhere"]
    consumer.close()


def test_a_producer_asks_for_the_first_topic_that_is_appended_to_and_for_no_other(
    kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that is not there, the driver would ask again each second."""
    asked = list[str]()

    class Asked(Producer):
        @override
        def list_topics(self, topic: str, **more: Any) -> Any:  # type: ignore[override]
            asked.append(topic)
            return super().list_topics(topic, **more)

    monkeypatch.setattr(kafka_log, "Producer", Asked)
    with opening(kafka.url) as open_one:
        open_one().close()  # nothing is appended
        log = open_one()
        names = [f"{uuid4().hex[:12]}" for _ in range(2)]
        for name in names:
            log.create_topic(name, 1)
        for name in (*names, names[0]):
            done = Future[Any]()
            log.append(name, [Record(b"1", None, uuid4().hex)], done.set_result)
            (position,) = done.result(PATIENCE)
            assert isinstance(position, Position)
    assert asked == names[:1]


def test_no_consumer_is_asked_for_a_topic_that_was_never_there(
    kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ask again each second, for as long as it lives."""
    asked = list[str]()
    ask = Metadata._ask

    def record(consumer: Consumer, topic: str) -> Any:
        asked.append(topic)
        return ask(consumer, topic)

    monkeypatch.setattr(Metadata, "_ask", staticmethod(record))
    name, missing = uuid4().hex[:12], f"{uuid4().hex[:12]}.missing"
    with opening(kafka.url) as open_one:
        log = open_one()
        for _ in range(2):
            with pytest.raises(NotFound, match="there is no topic"):
                log.describe_topic(missing)
        log.create_topic(name, 2)
        assert log.describe_topic(name).partitions == 2
        assert missing not in asked
        assert name in asked
        log.delete_topic(name)
        with pytest.raises(NotFound):
            log.describe_topic(name)
        asked.clear()
        with pytest.raises(NotFound):
            log.describe_topic(name)
        assert asked == []  # now that it is gone
