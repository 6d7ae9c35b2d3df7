"""What only Kafka can do: leaders that die, metadata not ours, positions that expired."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams import DeadLetters, Flow, Message, Retry, Streams, Topic
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.kafka import reconnect
from streams.log.kafka.reader import ReaderPool
from streams.log.protocol import Committed
from streams.message import Position
from tests.faults.ground import KAFKA, Ground, kafka_ground
from tests.faults.load import answers, stored
from tests.faults.proxy import Proxy
from tests.faults.run import PARTITIONS, Run
from tests.faults.sizes import on
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, free_port, until

ADDRESS = "bootstrap.servers"


def bootstrap(ground: Ground) -> str:
    return ground.direct.removeprefix("kafka://").partition("?")[0]


def commit(run: Run, places: dict[int, tuple[int, str]]) -> None:
    """As a client that is not ours: positions with any metadata."""
    consumer = Consumer(
        {ADDRESS: bootstrap(run.ground), "group.id": run.group, "enable.auto.commit": False,
         "log_level": 0}
    )  # fmt: skip
    parts = [
        TopicPartition(run.topic, partition, position, metadata=text)
        for partition, (position, text) in places.items()
    ]
    consumer.commit(offsets=parts, asynchronous=False)
    consumer.close()


def handled(app: Streams, topic: Topic[bytes], run: Run) -> list[str]:
    """The IDs of the messages that a processor ``work`` of the run's group is given, in order."""
    calls: list[str] = []

    @app.processor(topic, group=run.group, flow=Flow(commit=0.1))
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)

    return calls


FOREIGN = [
    "", "null", "1", '{"lag": 3}', "1r", "1b!!", "1rA~", "\u00e9", "2rAAAA", "1r" + "A" * 4_000,
    "1b" + base64.urlsafe_b64encode(os.urandom(600)).decode(),
]  # fmt: skip


@on("kafka")
async def test_metadata_that_is_not_ours_costs_redelivery_at_most(run: Run) -> None:
    """Each text in a partition of its own."""
    partitions = len(FOREIGN)
    run.topic += "-foreign"
    run.log.create_topic(run.topic, partitions)
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes)
    calls = handled(app, topic, run)
    async with app.connected():
        records = [topic.record(b"x", id=f"{n % partitions}-{n}") for n in range(20 * partitions)]
        for number, each in enumerate(records):
            each.partition = number % partitions
        positions = await app.publisher.publish_many(topic.name, records)
    await asyncio.to_thread(commit, run, {n: (5, text) for n, text in enumerate(FOREIGN)})

    def over() -> bool:
        places = run.log.committed(run.group, run.topic)
        return all(places[n].position >= 20 for n in range(partitions))

    async with app:
        await asyncio.to_thread(until, over, 60, "handled and committed")
    assert len(calls) == len(set(calls))
    for number, text in enumerate(FOREIGN):
        mine = {id for id in calls if id.startswith(f"{number}-")}
        behind = {
            each.id
            for each, place in zip(records, positions, strict=True)
            if place.partition == number and place.offset >= 5
        }
        # Unless the text says by chance that something is settled, everything is handled, once.
        assert mine <= behind if text.startswith("1") else mine == behind, text


@on("kafka")
async def test_ten_thousand_gaps_wait_at_intake_and_lose_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Every other message hangs: the map of what is settled nears its limit, intake waits."""
    name = f"{run.topic}-gaps"
    run.log.create_topic(name, 1)
    app = Streams(run.ground.direct)
    topic = app.topic(name, bytes)
    gate = asyncio.Event()
    calls: list[str] = []
    messages = 30_000

    @app.processor(
        topic,
        group=run.group,
        concurrency=12_000,
        flow=Flow(messages=25_000, commit=0.1, drain=5.0),
    )
    async def work(value: bytes, message: Message[bytes]) -> None:
        if message.offset % 2 == 0:
            await gate.wait()
        calls.append(message.id)

    async with app:
        records = [topic.record(b"x", key=f"k{n}", id=f"m{n}") for n in range(messages)]
        await app.publisher.publish_many(name, records)

        def text() -> Committed | None:
            try:
                return run.log.describe_group(run.group).positions.get((name, 0))
            except LogError:
                return None

        def full() -> bool:
            place = text()
            return place is not None and len(place.progress) > 3_000

        await asyncio.to_thread(until, full, 60, "the map is nearly full")
        place = text()
        assert place is not None
        assert place.position <= 2
        assert len(place.progress) <= 4_095
        said = "takes in no more messages until its settled set is smaller"
        await asyncio.to_thread(until, lambda: said in caplog.text, 60, "it is said")
        assert len(calls) < messages
        gate.set()

        def over() -> bool:
            place = text()
            return place is not None and place.position >= messages

        await asyncio.to_thread(until, over, 90, "all handled once the handlers go on")
    assert len(calls) == len(set(calls)) == messages


@on("kafka")
async def test_a_position_that_expired_is_reported_and_an_old_timestamp_is_kept(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes)
    calls = handled(app, topic, run)
    async with app.connected():
        old = topic.record(
            b"old", key="k", id="old", timestamp=datetime(2001, 9, 9, tzinfo=timezone.utc)
        )
        (where,) = await app.publisher.publish_many(topic.name, [old])
        for number in range(9):
            await topic.publish(b"x", key="k", id=f"m{number}")
    await asyncio.to_thread(commit, run, {where.partition: (0, "")})
    admin = AdminClient({ADDRESS: bootstrap(run.ground), "log_level": 0})
    # What retention does: everything below 5 is deleted.
    part = TopicPartition(run.topic, where.partition, 5)
    for future in admin.delete_records([part]).values():
        await asyncio.to_thread(future.result, 30)
    assert where.offset == 0
    with caplog.at_level(logging.ERROR, logger="streams"):
        async with app:
            await asyncio.to_thread(until, lambda: len(calls) == 5, 60, "what is left is handled")
            assert app.stats().processors["work"].losses == 1
    assert "deleted before they were handled" in caplog.text
    assert calls == [f"m{number}" for number in range(4, 9)]


@on("kafka")
async def test_a_poison_message_of_the_largest_size_becomes_a_dead_letter(run: Run) -> None:
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes)

    @app.processor(topic, group=run.group, retry=Retry(attempts=1), flow=Flow(commit=0.1))
    async def work(value: bytes) -> None:
        raise ValueError("poison " * 5_000)

    # The broker's own limit (message.max.bytes: 1,048,588) with the batch's overhead.
    value = os.urandom(1_048_588 - 200)
    async with app:
        await topic.publish(value, key="k", id="large")
        await asyncio.to_thread(until, run.at_end, 60, "settled")
        letters = app.topic(DeadLetters().name(run.topic, run.group), bytes)
        (letter,) = await asyncio.to_thread(lambda: list(letters.read()))
    assert letter.value == value
    assert letter.id == "large"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What was found when another client was asked. From the second time on another is answered,
    though none is: that a client alone is cut off, nobody can bring about."""
    found: list[bool] = []
    really = ReaderPool.probe_broker

    def reaches(self: ReaderPool, part: tuple[str, int] | None) -> bool:
        found.append(bool(found) or really(self, part))
        return found[-1]

    monkeypatch.setattr(ReaderPool, "probe_broker", reaches)
    monkeypatch.setattr(reconnect, "DISCONNECTED_LIMIT", 4.0)
    return found


@on("kafka")
async def test_a_member_that_alone_is_cut_off_goes_on_with_a_new_client(
    run: Run, caplog: pytest.LogCaptureFixture, asked: list[bool]
) -> None:
    app = Streams(run.ground.through)
    topic = app.topic(run.topic, bytes)
    calls = handled(app, topic, run)
    async with app:
        await topic.publish(b"x", key="k", id="before")
        await asyncio.to_thread(until, lambda: calls == ["before"], 60, "it is handled")
        run.ground.proxy.shut()
        await asyncio.to_thread(until, lambda: asked == [False], 60, "another is asked")
        assert ": rejoining" not in caplog.text  # it is an outage: that is waited for
        await asyncio.to_thread(until, lambda: ": rejoining" in caplog.text, 60, "it gives up")
        run.ground.proxy.open()
        await topic.publish(b"x", key="k", id="after")
        await asyncio.to_thread(until, lambda: "after" in calls, 60, "the next one is handled")
        await asyncio.to_thread(until, run.at_end, 60, "and committed")
    assert calls in (["before", "after"], ["before", "before", "after"])


@on("kafka")
async def test_a_producer_that_alone_is_cut_off_gives_way_to_a_new_one(
    run: Run, caplog: pytest.LogCaptureFixture, asked: list[bool]
) -> None:
    app = Streams(run.ground.through)
    topic = app.topic(run.topic, bytes)
    async with app.connected():
        await topic.publish(b"x", key="k", id="before")
        run.ground.proxy.shut()
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await topic.publish(b"x", key="k", id="during")
        assert asked[:2] == [False, True]
        assert "another client reaches" in caplog.text
        run.ground.proxy.open()
        await topic.publish(b"x", key="k", id="after")
    assert {"before", "after"} <= set(stored(run.log, run.topic).values())


@on("kafka")
async def test_an_append_that_waits_for_room_goes_on_with_the_new_producer(
    run: Run, asked: list[bool]
) -> None:
    """Its queue is full, and nobody serves it any more once it is retired."""
    app = Streams(f"{run.ground.through}&queue.buffering.max.kbytes=1024&message.max.bytes=100000")
    topic = app.topic(run.topic, bytes)
    async with app.connected():
        await topic.publish(b"x", key="k", id="before")
        run.ground.proxy.shut()
        records = [topic.record(b"x" * 10_000, key=f"k{n}", id=f"m{n}") for n in range(300)]
        many = asyncio.create_task(answers(app, run.topic, records))
        await asyncio.to_thread(until, lambda: len(asked) >= 2, 60, "another is answered")
        run.ground.proxy.open()
        found = await many
        await topic.publish(b"x", key="k", id="after")
    assert len(found) == 300
    written = {
        each.id for each, answer in zip(records, found, strict=True) if isinstance(answer, Position)
    }
    assert written | {"before", "after"} <= set(stored(run.log, run.topic).values())


@pytest.fixture
def three_brokers(lifetime: Lifetime) -> Any:
    with Kafka(lifetime, brokers=3) as cluster, Proxy(free_port()) as proxy:
        settings = {**KAFKA, "replication.factor": 3, "topic.metadata.refresh.interval.ms": 1000}
        yield cluster, kafka_ground(cluster, proxy, settings, 3.0)


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_the_leader_of_three_brokers_is_killed(three_brokers: Any, tmp_path: Path) -> None:
    """min.insync.replicas=2: every acknowledged write is kept, and is delivered."""
    cluster, ground = three_brokers
    run = Run(ground, tmp_path, create=False)
    admin = AdminClient({ADDRESS: cluster.bootstrap, "log_level": 0})
    new = NewTopic(run.topic, PARTITIONS, 3, config={"min.insync.replicas": "2"})
    admin.create_topics([new])[run.topic].result(30)
    with run.fleet() as fleet, run.load(30_000, rate=800) as load:
        fleet.start()
        fleet.start()
        until(lambda: run.owners() == 2, 60, "both own partitions")
        for partition in range(3):
            before = fleet.tail.count()
            place = cluster.leader(run.topic, partition)
            cluster.kill(place)
            least = min(before + 2_000, load.messages)
            fleet.until(lambda handled, least=least: handled >= least)  # type: ignore[misc]
            cluster.restart(place)
        run.judge(fleet, load.finish())
    assert len(stored(run.log, run.topic)) >= 30_000
    run.close()


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_a_partition_without_a_leader_holds_up_no_other(
    three_brokers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One replica each, and one of three brokers is down when the processor starts."""
    cluster, ground = three_brokers
    run = Run(ground, tmp_path, create=False)
    admin = AdminClient({ADDRESS: cluster.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(run.topic, 6, 1)])[run.topic].result(30)
    app = Streams(ground.direct)
    topic = app.topic(run.topic, bytes)
    calls: list[tuple[int, str]] = []

    @app.processor(topic, group=run.group, flow=Flow(commit=0.1))
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append((message.partition, message.id))

    def seen(name: str, partitions: Collection[int]) -> bool:
        wanted = {f"{name}{n}" for n in range(60) if n % 6 in partitions}
        return {id for partition, id in calls if partition in partitions} >= wanted

    async def publish(name: str) -> None:
        records = [topic.record(b"x", id=f"{name}{n}") for n in range(60)]
        for number, each in enumerate(records):
            each.partition = number % 6
        await app.publisher.publish_many(topic.name, records)

    async with app:
        await publish("a")
        await asyncio.to_thread(until, lambda: seen("a", range(6)), 60, "all are read")
    async with app.connected():
        await publish("b")
    calls.clear()
    place = cluster.leader(run.topic, 0)
    down = {part for part in range(6) if cluster.leader(run.topic, part) == place}
    up = set(range(6)) - down
    assert up
    cluster.kill(place)
    async with app:
        await asyncio.to_thread(until, lambda: seen("b", up), 60, "the others are read")
        assert not any(partition in down for partition, _ in calls)
        cluster.restart(place)
        await asyncio.to_thread(until, lambda: seen("b", range(6)), 90, "and those, too")
    assert len(calls) == len(set(calls))
    run.close()
