"""Processors over an aggregate's events on Kafka: what does not count reaches no handler, no dedup
window and no dead letter, and holds no position back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams import DeadLetters, Streams
from streams.errors import NotFound
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Base, EventAppend, EventLog, HistoryRequest
from streams.message import ID, Record
from tests.conformance.logs import LOGS
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.eventsourcing.bank import Deposited, Opened, accounts, deposit, open_with
from tests.servers.find import KafkaAddress

pytestmark = pytest.mark.anyio

(KAFKA,) = (case for case in LOGS if case.name == "kafka")


@pytest.fixture
def kafka_stage(kafka: KafkaAddress) -> Iterator[Stage]:
    opened = Stage(KAFKA, kafka.url)
    yield opened
    opened.close()


def write(kafka: KafkaAddress, topic: str, partition: int, *records: Record) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for each in records:
        headers: Any = [(ID, each.id.encode()), *each.headers]
        producer.produce(topic, each.value, each.key, partition, headers=headers)
    assert producer.flush(PATIENCE) == 0


def losing(base: Base, count: int = 2) -> EventAppend:
    """An append whose base has passed, with values that are no events at all."""
    return make_append(b"a", base, [Record(b"?", None, uuid4().hex) for _ in range(count)])


@pytest.mark.parametrize("begins", ["before", "behind"])
async def test_losers_reach_nothing(kafka: KafkaAddress, kafka_stage: Stage, begins: str) -> None:
    stage = kafka_stage

    def app_with_processor() -> tuple[Streams, Any]:
        app = stage.app()
        bank = accounts(app, stage.topic_name, partitions=1)
        app.processor(bank.events, group=stage.group, flow=QUICK)(stage.recorder())
        return app, bank

    app, bank = app_with_processor()
    topic, log = bank.events.name, stage.anchor
    assert isinstance(log, EventLog)
    async with app if begins == "before" else app.connected():
        await bank.decide("a", open_with, "ada", 1)
        (found,) = log.read_histories(topic, [HistoryRequest(b"a")])
        twice = [
            Record(event.record.value, b"a", event.record.id, event.record.headers)
            for event in found.events
        ]
        write(kafka, topic, 0, *losing(NO_HISTORY).records, *losing(Base(1, "x")).records, *twice)
        await bank.decide("a", deposit, 2)
        write(kafka, topic, 0, Record(b"?", b"a", "foreign"), *twice, *losing(NO_HISTORY).records)
    app, _ = app_with_processor()
    _, end = log.watermarks(topic, 0)
    async with app:
        await stage.until(lambda: len(stage.seen.handled) >= 3, "all events were handled")

        def position() -> int:
            return stage.anchor.committed(stage.group, topic)[0].position

        await stage.until(lambda: position() == end, "the group is at the end")
        (stats,) = app.stats().processors.values()
        assert (stats.dead_letters, stats.duplicates, stats.in_flight) == (0, 0, 0)
    assert stage.seen.values == [Opened("ada"), Deposited(1), Deposited(2)]
    try:
        assert log.watermarks(DeadLetters().name(topic, stage.group), 0)[1] == 0
    except NotFound:
        pass  # none was ever needed
