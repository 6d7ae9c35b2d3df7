"""Appends to event topics on Kafka that nobody checks before they stand there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Base, EventAppend, History, HistoryRequest
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from streams.message import ID, Record
from tests.conformance.histories import event
from tests.conformance.member import PATIENCE
from tests.servers.find import KafkaAddress


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


@contextmanager
def opening(url: str) -> Iterator[Callable[..., KafkaLog]]:
    """Opens a log again and again, as one process after the other does, and closes all in the end.

    What is called may be given an option of the URL, which then has none.
    """
    with ExitStack() as stack:

        def open_one(option: str = "") -> KafkaLog:
            opened = open_log(f"{url}?{option}" if option else url)
            assert isinstance(opened, KafkaLog)
            stack.callback(opened.close)
            return opened

        yield open_one


def new_topic(kafka: KafkaAddress) -> str:
    """An event topic of one partition, which nobody follows yet."""
    with opening(kafka.url) as open_one:
        return open_one().create_event_topic(f"{uuid4().hex[:12]}.events", 1).name


def in_memory(log: KafkaLog, topic: str) -> list[int]:
    """The keys that the index of this process has in memory, by partition: what it folded, or was
    asked for."""
    index = log._events.indexes.get(topic)
    return [len(each.keys) for each in index.partitions.values()]


def ask(log: KafkaLog, topic: str, keys: list[bytes]) -> list[History]:
    return log.read_histories(topic, [HistoryRequest(key) for key in keys])


@pytest.fixture
def producer(kafka: KafkaAddress) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})


def write(
    producer: Producer, topic: str, records: Iterable[Record], partition: int = 0
) -> list[int]:
    """Write records as they are, whether they count or not; where they stand."""
    offsets: list[int] = []

    def written(error: Any, message: Any) -> None:
        assert error is None, error
        offsets.append(message.offset())

    for each in records:
        headers: Any = [*each.headers]
        if each.id:
            headers.insert(0, (ID, each.id.encode()))
        producer.produce(topic, each.value, each.key, partition, written, headers=headers)
    assert producer.flush(PATIENCE) == 0
    return offsets


def made(key: bytes, base: Base = NO_HISTORY, count: int = 1, **options: Any) -> EventAppend:
    """An append, which nobody checks before it is written."""
    return make_append(key, base, [event(b"%d" % number) for number in range(count)], **options)


def answered(call: Callable[[], Any]) -> Any:
    """What a call returns or raises, unless that takes for ever."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(PATIENCE)
