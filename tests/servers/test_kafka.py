"""The brokers that other tests stand on. What only the fault runs need is proved with them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.servers.find import KafkaAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, until

QUIET = {"log_level": 0}


def create(settings: dict[str, Any], name: str, replicas: int = 1) -> None:
    admin = AdminClient({**settings, **QUIET})
    config = {"min.insync.replicas": str(max(1, replicas - 1))}
    admin.create_topics([NewTopic(name, 1, replicas, config=config)])[name].result(30)


def send(settings: dict[str, Any], topic: str, *values: bytes) -> None:
    producer = Producer({**settings, **QUIET, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(60) == 0


def read(settings: dict[str, Any], topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({**settings, **QUIET, "group.id": "none", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes | None] = []

    def more() -> bool | None:
        found.extend(message.value() for message in consumer.consume(count - len(found), 1.0))
        return len(found) >= count or None

    until(more, 90, f"{count} messages of {topic}")
    consumer.close()
    return found


def test_the_shared_broker(kafka: KafkaAddress) -> None:
    topic = f"shared-{uuid.uuid4()}"
    settings = {"bootstrap.servers": kafka.bootstrap}
    create(settings, topic)
    send(settings, topic, b"one", b"two")
    assert read(settings, topic, 2) == [b"one", b"two"]
    admin = AdminClient({**settings, **QUIET})
    admin.delete_topics([topic])[topic].result(30)


@pytest.mark.faults
def test_killed_paused_and_asked_with_its_own_tools(lifetime: Lifetime) -> None:
    with Kafka(lifetime, secure=True) as cluster:
        plain = {"bootstrap.servers": cluster.bootstrap}
        create(plain, "orders")
        send(plain, "orders", b"one")
        cluster.kill()
        assert not cluster.nodes[0].process.alive
        cluster.restart()
        secure = cluster.secure_client()
        send(secure, "orders", b"two")
        assert read(secure, "orders", 2) == [b"one", b"two"]

        cluster.pause()
        with pytest.raises(Exception, match=r"timed out|Timed out|TRANSPORT"):
            AdminClient({**plain, **QUIET}).list_topics(timeout=0.5)
        cluster.resume()
        cluster.wait_ready()

        said = cluster.tool(
            "consume", "--topic", "orders", "--from-beginning", "--max-messages", "2"
        )
        assert said.split() == ["one", "two"]


@pytest.mark.faults
def test_a_cluster_of_three_outlives_its_leader(lifetime: Lifetime) -> None:
    with Kafka(lifetime, brokers=3) as cluster:
        settings = {"bootstrap.servers": cluster.bootstrap}
        create(settings, "orders", replicas=3)
        send(settings, "orders", b"one")
        killed = cluster.leader("orders")
        cluster.kill(killed)
        send(settings, "orders", b"two")
        assert read(settings, "orders", 2) == [b"one", b"two"]
        assert cluster.leader("orders") != killed
