"""A service that runs on one log runs on another by its URL alone, on a server that has nothing of
it yet: no topic is created by hand, and no pattern is told how many partitions it has.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from streams import ConfigError, Delays, IdempotencyStore, IdempotentProcessor, Streams
from streams.config import Retention
from streams.errors import NotFound, TopicMismatch
from streams.log.protocol import Log, TopicInfo, ensure_topic
from streams.patterns import (
    ChoreographySaga,
    ConsumerConfig,
    Event,
    EventBus,
    MessageConsumer,
    MessageQueue,
    QueueMessage,
    SagaOrchestrator,
    create_handler,
)
from tests.conformance.stage import Stage

QUICK = ConsumerConfig(concurrency=4, max_retries=2, retry_delay=0.01, retry_cap=0.02)


class Trip(msgspec.Struct):
    """What a saga has done."""

    did: list[str] = []


def partitions(log: Log, *topics: str) -> list[int]:
    return [log.describe_topic(topic).partitions for topic in topics]


async def test_a_queue(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, seen = MessageQueue(app), []

    async def work(message: QueueMessage[Any]) -> None:
        seen.append((message.data, message.retries))
        if message.data == "fails once" and not message.retries:
            raise RuntimeError("try again")

    _ = queue.subscribe(name, work, QUICK)
    async with app:
        for data, delay in (("now", None), ("fails once", None), ("later", 0.05)):
            await queue.publish(name, data, delay=delay)
        await stage.until(lambda: len(seen) >= 4, "four attempts")
    assert sorted(seen) == [("fails once", 0), ("fails once", 1), ("later", 0), ("now", 0)]
    assert partitions(stage.anchor, name) == [8]


async def test_a_queue_that_is_published_to_first(stage: Stage) -> None:
    app = stage.app()
    queue = MessageQueue(app)
    async with app.connected():
        await queue.publish(stage.topic_name, "there")
    assert partitions(stage.anchor, stage.topic_name) == [8]


async def test_a_consumer_that_is_started_on_the_running_app(stage: Stage) -> None:
    app, seen = stage.app(), []
    queue = MessageQueue(app, partitions=3)

    async def work(message: QueueMessage[Any]) -> None:
        seen.append(message.data)

    async with app:
        consumer = MessageConsumer(queue)
        await consumer.start(stage.topic_name, work)
        await queue.publish(stage.topic_name, "there")
        await stage.until(lambda: seen == ["there"], "handled")
        await consumer.stop()
    assert partitions(stage.anchor, stage.topic_name) == [3]


async def test_a_bus(stage: Stage) -> None:
    app, told, kept = stage.app(), [], []
    bus = EventBus(app, stage.topic_name)

    async def ephemeral(event: Event) -> None:
        told.append(event.data)

    async def durable(event: Event) -> None:
        kept.append(event.data)

    bus.subscribe("order.paid", ephemeral)
    bus.subscribe("order.paid", durable, group=stage.group)
    async with app:
        await bus.publish("order.paid", {"order": 17})
        await stage.until(lambda: told == kept == [{"order": 17}], "both told")
    assert partitions(stage.anchor, stage.topic_name) == [1]


async def test_a_durable_saga(stage: Stage) -> None:
    app = stage.app()

    async def step(trip: Trip) -> None:
        trip.did.append("booked")

    trips = SagaOrchestrator(app, stage.group, context=Trip).add_step("book", step)
    async with app:
        assert (await trips.execute(Trip())).did == ["booked"]
    assert partitions(stage.anchor, f"{stage.group}.saga") == [8]


async def test_a_choreographed_saga(stage: Stage) -> None:
    app, done = stage.app(), []
    bus = EventBus(app, stage.topic_name)

    async def reserve(event: Any) -> dict[str, Any]:
        return {**event.data, "reserved": True}

    async def end(event: Any) -> None:
        done.append(event.data)

    create_handler(bus, "placed", reserve, "reserved", "refused", group=f"{stage.group}-1")
    create_handler(bus, "reserved", end, None, None, group=f"{stage.group}-2")
    async with app:
        await ChoreographySaga(bus, "order-17").start("placed", {"total": 20})
        await stage.until(lambda: done, "the saga has ended")
    assert done == [{"total": 20, "reserved": True}]


async def test_delayed_delivery(stage: Stage) -> None:
    app = stage.app()
    orders = stage.topic(app)
    delays = Delays(app, f"{stage.group}-delays")
    app.processor(orders, group=stage.group)(stage.recorder())
    async with app:
        await delays.publish(orders, 1, delay=0.05)
        await stage.handled(1)
    assert partitions(stage.anchor, delays.name) == [1]


async def test_idempotency(stage: Stage) -> None:
    """Kafka keeps no claims, as it cannot say who came first; there it says where to keep them."""
    calls: list[int] = []

    async def charge() -> str:
        calls.append(1)
        return "charged"

    if stage.case.capabilities.name in ("kafka", "kip848"):
        with pytest.raises(ConfigError, match="redis:"):
            IdempotencyStore(stage.url)
        return
    async with IdempotencyStore(stage.url, name=stage.group) as store:
        payments = IdempotentProcessor(store, ttl=60)
        found = await asyncio.gather(*[payments.process("order-17", charge) for _ in range(20)])
    assert found == ["charged"] * 20
    assert calls == [1]


# -- several processes, and what is there already


async def entered(*apps: Streams) -> list[BaseException | None]:
    """Enter all at once, and leave: what became of each, where there are several."""

    async def life(app: Streams) -> None:
        async with app.connected():
            pass

    found = await asyncio.gather(*map(life, apps), return_exceptions=True)
    if len(found) == 1 and found[0] is not None:
        raise found[0]
    return found


async def test_several_that_find_it_missing_at_once_have_one_topic(stage: Stage) -> None:
    """Each would create it otherwise, and nobody but the user said how many partitions it has."""
    apps = []
    for number in range(6):
        app = stage.app()
        MessageQueue(app, partitions=5 if number == 3 else None).declare(stage.topic_name)
        SagaOrchestrator(app, stage.group, context=Trip)
        apps.append(app)
    found = await entered(*apps)
    assert found[:3] + found[4:] == [None] * 5
    assert found[3] is None or isinstance(found[3], TopicMismatch), "only it said how many"
    assert partitions(stage.anchor, stage.topic_name)[0] in (5, 8)
    assert partitions(stage.anchor, f"{stage.group}.saga") == [8]


def test_who_comes_second_uses_what_the_first_one_made(stage: Stage) -> None:
    """Another process creates the topic between this one's look and its attempt."""
    name = stage.topic_name

    class Raced:
        """The log, on which somebody is quicker once."""

        def describe_topic(self, topic: str) -> TopicInfo:
            if name in [info.name for info in stage.anchor.describe_topics()]:
                return stage.anchor.describe_topic(topic)
            stage.anchor.create_topic(name, 3)
            raise NotFound("it was not there when it was asked for")

        def __getattr__(self, name: str) -> Any:
            return getattr(stage.anchor, name)

    raced: Any = Raced()
    assert ensure_topic(raced, name, 8).partitions == 3


async def test_what_is_there_is_used_as_it_is(stage: Stage) -> None:
    log, name = stage.anchor, stage.topic_name
    log.create_topic(name, 3)
    log.create_topic(f"{stage.group}.saga", 2)
    app = stage.app()
    MessageQueue(app).declare(name)
    SagaOrchestrator(app, stage.group, context=Trip)
    await entered(app)
    assert partitions(log, name, f"{stage.group}.saga") == [3, 2]
    wrong = stage.app()
    MessageQueue(wrong, partitions=4).declare(name)
    with pytest.raises(TopicMismatch, match=f"{name}.* 3 partitions.*declare"):
        await entered(wrong)


# -- retention


async def test_a_topic_is_created_with_the_retention_that_is_declared(stage: Stage) -> None:
    app, week = stage.app(), Retention(seconds=7 * 86_400)
    app.topic(stage.topic_name, int, partitions=2, retention=week)
    MessageQueue(app, retention=week).declare(f"{stage.group}-queue")
    EventBus(app, f"{stage.group}-bus", retention=week)
    SagaOrchestrator(app, stage.group, context=Trip, retention=week)
    for_ever = app.topic(f"{stage.group}-kept", int, partitions=1, retention=Retention())
    await entered(app)
    for name in (stage.topic_name, *(f"{stage.group}{end}" for end in ("-queue", "-bus", ".saga"))):
        assert stage.anchor.describe_topic(name).retention == week, name
    assert stage.anchor.describe_topic(for_ever.name).retention == Retention()


async def test_a_topic_that_is_there_keeps_the_retention_that_it_has(stage: Stage) -> None:
    """A declaration in a program's next release deletes nobody's messages; doctor tells."""
    kept = Retention(seconds=30 * 86_400)
    stage.anchor.create_topic(stage.topic_name, 2, kept)
    app = stage.app()
    app.topic(stage.topic_name, int, partitions=2, retention=Retention(seconds=60))
    await entered(app)
    assert stage.anchor.describe_topic(stage.topic_name).retention == kept


async def test_a_retention_can_be_changed_and_taken_back(stage: Stage) -> None:
    log, name = stage.anchor, stage.topic_name
    log.create_topic(name, 2, Retention(seconds=3600))
    hour = Retention(seconds=7200)
    assert log.set_retention(name, hour).retention == hour
    await stage.until(lambda: log.describe_topic(name).retention == hour, "changed")
    log.set_retention(name, Retention())
    await stage.until(lambda: log.describe_topic(name).retention == Retention(), "for ever")
    assert log.describe_topic(name).partitions == 2


@pytest.mark.parametrize(
    "retention",
    [Retention(messages=100), Retention(bytes=1 << 20), Retention(compacted=True)],
    ids=repr,
)
async def test_what_a_log_cannot_do_is_refused_before_anything_is_created(
    stage: Stage, retention: Retention
) -> None:
    app, name = stage.app(), stage.topic_name
    able = set(retention.bounds_set) <= stage.case.capabilities.retention
    app.topic(name, int, partitions=1, retention=retention)
    if able:
        await entered(app)
        assert stage.anchor.describe_topic(name).retention == retention
        return
    with pytest.raises(ConfigError, match=rf"{name}.*{retention.bounds_set[0]}.*seconds"):
        await entered(app)
    assert name not in [info.name for info in stage.anchor.describe_topics()]


async def test_what_is_published_to_a_missing_topic_says_how_to_create_it(stage: Stage) -> None:
    app = stage.app()
    async with app.connected():
        topic = app.topic(stage.topic_name, int)
        with pytest.raises(LookupError) as caught:
            await topic.publish(1)
        said = str(caught.value)
        assert f"app.topic({stage.topic_name!r}, partitions=" in said
        assert f"streams topics create {stage.topic_name} --partitions" in said
        if stage.case.capabilities.name in ("kafka", "kip848"):
            assert "kafka-topics.sh --bootstrap-server 127.0.0.1:" in said
            assert f"--create --topic {stage.topic_name} --partitions" in said
