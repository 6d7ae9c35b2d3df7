"""What the logs tell of their durability is what their servers are set to; the doctor on each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from streams import NotFound, Unavailable
from streams.errors import EventTopicError
from streams.inspection.doctor.app_inspection import AppInspection, CheckVerdict
from streams.inspection.doctor.checklist import run_checks
from streams.inspection.doctor.prometheus import PrometheusClient
from streams.log.events import EventLog
from streams.log.protocol import DurabilityFact, Log
from streams.log.url import open_log
from tests.conformance.stage import Stage
from tests.servers.find import KafkaAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, until
from tests.servers.redis import Redis


def facts(log: Log, topic: str = "orders") -> dict[str, DurabilityFact]:
    return {fact.name: fact for fact in log.durability(topic)}


def poor(found: dict[str, DurabilityFact]) -> set[str]:
    return {name for name, fact in found.items() if fact.is_safe is False}


@pytest.fixture(scope="module")
def server(lifetime: Lifetime) -> Iterator[Redis]:
    with Redis(lifetime) as found:
        yield found


def test_redis_by_its_settings(server: Redis) -> None:
    log = open_log(server.url)
    waits = open_log(f"{server.url}?wait=1")
    with contextlib.closing(log), contextlib.closing(waits), server.client() as client:
        found = facts(log)
        assert poor(found) == {"appendonly"}
        assert found["appendonly"].value == "no"
        client.config_set("appendonly", "yes")
        found = facts(log)
        assert poor(found) == {"appendfsync"}
        assert found["appendfsync"].value == "everysec"
        client.config_set("appendfsync", "always")
        assert poor(facts(log)) == set()
        assert facts(log)["replicas"].value == "0, 0 waited for"
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert poor(facts(log)) == set()  # nothing is evicted while there is no limit
        client.config_set("maxmemory", "100mb")
        assert poor(facts(log)) == {"maxmemory-policy"}
        assert isinstance(log, EventLog)
        with pytest.raises(EventTopicError, match="maxmemory-policy allkeys-lru"):
            log.create_event_topic("accounts.events", 2)
        for policy in ("volatile-lru", "noeviction"):
            client.config_set("maxmemory-policy", policy)
            log.create_event_topic("accounts.events", 2)
        assert poor(facts(waits)) == {"replicas"}
        assert facts(waits)["replicas"].value == "0, 1 waited for"
        client.config_set("appendfsync", "no")
        assert poor(facts(log)) == {"appendfsync"}
        # A replica that is waited for covers the machine, so how often it syncs matters less.
        assert poor(facts(waits)) == {"replicas"}
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-config"])
        found = facts(log)
        assert (found["appendonly"].is_safe, found["appendonly"].value) == (None, "?")
        assert "CONFIG GET" in found["appendonly"].advice
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"])


def test_redis_with_a_replica(lifetime: Lifetime, server: Redis) -> None:
    host, port = server.address.split(":")
    with Redis(lifetime, options=("--replicaof", host, port)):
        log, waits = open_log(server.url), open_log(f"{server.url}?wait=1")
        with contextlib.closing(log), contextlib.closing(waits), server.client() as client:
            until(
                lambda: client.info("replication")["connected_slaves"] == 1 or None,
                30.0,
                "a replica that follows",
            )
            found = facts(log)["replicas"]
            assert (found.value, found.is_safe) == ("1, 0 waited for", None)
            assert "?wait=1" in found.advice
            assert facts(waits)["replicas"].is_safe is True


def test_redis_that_is_away(lifetime: Lifetime) -> None:
    with Redis(lifetime) as server:
        url = server.url
    log = open_log(url)
    with contextlib.closing(log), pytest.raises(Unavailable):
        log.durability("orders")


def test_kafka_by_its_topics(kafka: KafkaAddress) -> None:
    log = open_log(kafka.url)
    with contextlib.closing(log):
        log.create_topic("durability-one", 2)
        log.create_topic(
            "durability-two", 1,
            config={"flush.messages": "1", "unclean.leader.election.enable": "true"},
        )  # fmt: skip
        found = facts(log, "durability-one")
        assert found["replication.factor"].value == "1"
        assert found["in sync"].value == "1 of 1"
        assert found["min.insync.replicas"].value == "1"
        assert int(found["max.message.bytes"].value) > 1_000_000
        assert {"replication.factor", "min.insync.replicas"} <= poor(found)
        assert found["in sync"].is_safe
        found = facts(log, "durability-two")  # its one broker syncs each message
        assert "unclean.leader.election.enable" in poor(found)
        assert not {"replication.factor", "min.insync.replicas"} & poor(found)
        with pytest.raises(NotFound, match="durability-none"):
            log.durability("durability-none")
        assert "durability-none" not in {info.name for info in log.describe_topics()}


@pytest.mark.faults
def test_kafka_with_three_brokers(lifetime: Lifetime) -> None:
    with Kafka(lifetime, brokers=3) as cluster:
        log = open_log(cluster.url)
        with contextlib.closing(log):
            settings = {"replication.factor": "3", "min.insync.replicas": "2"}
            log.create_topic("well", 2, config=settings)
            log.create_topic("stiff", 1, config={**settings, "replication.factor": "2"})
            log.initialize_offsets("group", "well", {0: 0})  # so that there is a topic of positions
            found = facts(log, "well")
            assert poor(found) == set()
            assert found["in sync"].value == "3 of 3"
            assert found["replicas of positions"].value == "3"
            found = facts(log, "stiff")
            assert poor(found) == set()
            assert "one replica more" in found["min.insync.replicas"].advice


async def test_the_doctor_on_every_log(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, key=lambda value: f"key-{value % 5}", partitions=2)
    app.processor(topic, group=stage.group)(stage.recorder())
    async with app:
        await topic.publish_many(list(range(30)))
        await stage.handled(30)
        await stage.committed(app)
    log = open_log(stage.url)

    def mine() -> set[str]:  # others use the same servers
        return {info.name for info in log.describe_topics() if stage.topic_name in info.name}

    before = mine()
    with contextlib.closing(log):
        findings = list(run_checks(AppInspection(app, log, "", PrometheusClient(None))))
        assert mine() == before
    verdicts = {(each.item, each.subject.partition(" ")[0]): each.verdict for each in findings}
    persisted = verdicts.pop(("persisted", "topic"))
    # What the shared test servers are: one Kafka broker, one Redis that keeps nothing on a disk.
    assert persisted is {"sqlite": CheckVerdict.yes}.get(stage.case.name, CheckVerdict.no)
    assert verdicts.pop(("monitoring", "metrics")) is CheckVerdict.no
    assert verdicts.pop(("alerts", "Prometheus")) is CheckVerdict.unknown
    assert verdicts.pop(("retention", "topic")) is CheckVerdict.unknown  # nobody said how long
    assert set(verdicts.values()) == {CheckVerdict.yes}
    assert set(verdicts) == {
        ("idempotent", "processor"),
        ("idempotent", "topic"),
        ("dead letters", "processor"),
        ("backpressure", "processor"),
        ("backpressure", "the"),
        ("retries", "processor"),
        ("retention", "processor"),
        ("order", "topic"),
        ("order", "processor"),
    }
    said = {(each.item, each.subject.partition(" ")[0]): each.reason for each in findings}
    assert said["idempotent", "topic"] == "each of its last 30 messages has an ID"
    assert said["order", "topic"] == "5 keys seen, each in one partition"


async def test_a_sample_is_the_end_of_each_partition(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, key=str, partitions=2)
    async with app.connected():
        await topic.publish_many(list(range(600)))
        view = AppInspection(app, app.log, "", PrometheusClient(None))
        sample = view.sample(topic.name)
        assert {seen.partition for seen in sample} == {0, 1}
        assert 300 <= len(sample) <= 400
        keys = {int(seen.key or b"") for seen in sample}
        assert max(keys) == 599
        assert min(keys) > 100
        span = view.shortest_time_of(topic.name, 50)
        assert span is not None
        assert 0 <= span < 60
        assert view.shortest_time_of(topic.name, 10_000) is None
