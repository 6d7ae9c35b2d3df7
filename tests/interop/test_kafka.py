"""Kafka: confluent-kafka's plain clients, the console tools, and an aiokafka service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from confluent_kafka import Consumer, Producer

from streams import Streams
from streams.config import Flow
from streams.log.url import open_log
from tests.interop.conftest import Broker, Order, name, publish, reading, until

pytestmark = pytest.mark.anyio


def create(broker: Broker, topic: str, partitions: int) -> None:
    log = open_log(broker.url)
    log.create_topic(topic, partitions)
    log.close()


async def test_a_plain_producer_writes_and_our_processor_reads(broker: Broker) -> None:
    topic = name("orders")
    create(broker, topic, 2)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for n in range(6):
        headers: Any = [("trace", b"t1")] + ([("ce_id", f"o{n}".encode())] if n % 2 else [])
        value = json.dumps({"customer": f"c{n % 3}", "cents": n, "unknown": None})
        producer.produce(topic, value, f"c{n % 3}", headers=headers, partition=0)
    assert producer.flush(30) == 0
    async with reading(broker.url, topic, name("group")) as seen:
        await until(lambda: len(seen) == 6, "all are handled")
    assert {message.order.cents for message in seen} == set(range(6))
    for message in seen:
        order = message.order
        assert message.key == order.customer == f"c{order.cents % 3}"
        assert message.headers["trace"] == "t1"
        # Whose message has no ID has its place for one.
        n = order.cents
        assert message.id == (f"o{n}" if n % 2 else f"{topic}/0/{n}")


async def test_the_console_producer_writes_and_our_processor_reads(broker: Broker) -> None:
    topic = name("orders")
    create(broker, topic, 1)
    line = 'ce_id:a1,origin:console\tada\t{"customer":"ada","cents":5}\n'
    console = ["--topic", topic]
    for option in ("parse.key=true", "parse.headers=true"):
        console += ["--reader-property", option]
    await asyncio.to_thread(broker.tool, "produce", *console, input=line)
    async with reading(broker.url, topic, name("group")) as seen:
        await until(lambda: seen, "it is handled")
    (message,) = seen
    assert (message.order, message.id, message.key) == (Order("ada", 5), "a1", "ada")
    assert message.headers["origin"] == "console"


async def test_our_publisher_writes_and_plain_consumers_read(broker: Broker) -> None:
    topic = name("orders")
    orders = [(f"a{n}", Order("ada", n)) for n in range(3)]
    await publish(broker.url, topic, orders, partitions=1)
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": name("plain"),
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found = await asyncio.to_thread(consumer.consume, 3, 60)
    consumer.close()
    for n, message in enumerate(found):
        assert message.error() is None
        assert message.key() == b"ada"
        assert json.loads(message.value() or b"") == {"customer": "ada", "cents": n}
        headers: Any = message.headers()
        assert ("ce_id", f"a{n}".encode()) in headers
        assert ("origin", b"ours") in headers
    assert len(found) == 3

    console = ["--topic", topic, "--from-beginning", "--max-messages", "3"]
    for option in ("print.key=true", "print.headers=true"):
        console += ["--formatter-property", option]
    said = await asyncio.to_thread(broker.tool, "consume", *console, "--timeout-ms", "30000")
    for n, line in enumerate(said.splitlines()):
        shown, key, value = line.split("\t")
        assert {f"ce_id:a{n}", "origin:ours"} <= set(shown.split(","))
        assert (key, json.loads(value)) == ("ada", {"customer": "ada", "cents": n})
    assert len(said.splitlines()) == 3


async def described(broker: Broker, group: str, topic: str) -> list[str]:
    """The line that ``kafka-consumer-groups --describe`` prints for a topic of one partition."""
    said = await asyncio.to_thread(
        broker.tool, "groups", "--describe", "--group", group, "--timeout", "60000"
    )
    rows = [line.split() for line in said.splitlines()]
    (row,) = [row for row in rows if row[1:2] == [topic]]
    return row


async def test_kafka_consumer_groups_shows_our_lag_as_it_is(broker: Broker) -> None:
    topic, group = name("orders"), name("group")
    app = Streams(broker.url)
    orders = app.topic(topic, Order, key="customer", partitions=1)
    stuck = asyncio.Event()

    @app.processor(orders, group=group, flow=Flow(commit=0.1))
    async def handle(order: Order) -> None:
        if order.cents == 3:
            await stuck.wait()

    def position() -> int:
        return app.log.describe_group(group).positions[topic, 0].position

    async with app:
        await orders.publish_many([Order("ada", n) for n in range(5)])
        await until(
            lambda: app.log.describe_group(group).positions[topic, 0].position == 3,
            "three are settled",
        )
        row = await described(broker, group, topic)
        stuck.set()
        await until(lambda: position() == 5, "all are settled")
    assert row[:6] == [group, topic, "0", "3", "5", "2"]  # committed, end, lag
    assert row[6] != "-"  # and who owns it
    row = await described(broker, group, topic)
    assert row[:7] == [group, topic, "0", "5", "5", "0", "-"]


async def test_an_aiokafka_service_on_the_same_topics_works_beside_ours(broker: Broker) -> None:
    """Ours publishes orders and handles bills; theirs reads orders and answers with bills."""
    orders, bills = name("orders"), name("bills")
    app = Streams(broker.url)
    source = app.topic(orders, Order, key="customer", partitions=2)
    handled: dict[str, list[int]] = {"orders": [], "bills": []}

    @app.processor(source, group=name("watching"))
    async def watch(order: Order) -> None:
        handled["orders"].append(order.cents)

    @app.processor(app.topic(bills, Order, key="customer", partitions=2), group=name("booking"))
    async def book(bill: Order) -> None:
        handled["bills"].append(bill.cents)

    async def bill(consumer: AIOKafkaConsumer, producer: AIOKafkaProducer) -> None:
        async for record in consumer:
            order = msgspec.json.decode(record.value or b"", type=Order)
            headers = [("ce_id", b"bill-" + dict(record.headers)["ce_id"])]
            value = msgspec.json.encode(Order(order.customer, order.cents + 100))
            for _ in range(2):  # a service that sends again what it is not sure of
                await producer.send_and_wait(bills, value, key=record.key, headers=headers)
            await consumer.commit()

    async with (
        app,
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer,
        AIOKafkaConsumer(
            orders,
            bootstrap_servers=broker.bootstrap,
            group_id=name("theirs"),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        ) as consumer,
    ):
        service = asyncio.create_task(bill(consumer, producer))
        for n in range(20):
            await source.publish(Order(f"c{n % 4}", n))
        await until(
            lambda: all(len(each) >= 20 for each in handled.values()) or service.done(),
            "all are billed, and seen",
        )
        service.cancel()
        with pytest.raises(asyncio.CancelledError):
            await service
    assert sorted(handled["orders"]) == list(range(20))
    assert sorted(handled["bills"]) == list(range(100, 120))  # once each: by their ID
