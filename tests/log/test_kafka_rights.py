"""What a login may do on a broker with ACLs: the rights that the documentation lists are enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from msgspec import Struct

from streams import DeadLetters, Flow, Reject, Retry, Streams
from streams.errors import Unavailable
from streams.log.kafka.index_records import index_topic_name
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from streams.patterns import (
    Delays,
    EventBus,
    MessageQueue,
    QueueMessage,
    SagaOrchestrator,
    SagaStep,
)
from tests.conformance.histories import grow, history
from tests.eventsourcing.bank import deposit
from tests.log.secured import SECURED, SecuredKafka, secured
from tests.managers.purses import Order, World
from tests.servers.lifetime import until
from tests.views.bank import Bank, Holder, fold_holder, owner_of

__all__ = ["secured"]

pytestmark = SECURED

USER = "User:shop"

Grant = Callable[..., None]


@pytest.fixture
def name() -> str:
    """What the names of a test begin with."""
    return f"r{uuid4().hex[:8]}"


@pytest.fixture
def grant(secured: SecuredKafka) -> Grant:
    """Gives the service's login rights to what begins with a name."""
    admin = AdminClient({"bootstrap.servers": secured.broker.bootstrap})

    def give(kind: ResourceType, prefix: str, *operations: str) -> None:
        bindings = [
            AclBinding(
                kind,
                prefix,
                ResourcePatternType.PREFIXED,
                USER,
                "*",
                getattr(AclOperation, each),
                AclPermissionType.ALLOW,
            )
            for each in operations
        ]
        for future in admin.create_acls(bindings).values():
            future.result(30)

    return give


def service_rights(grant: Grant, name: str) -> None:
    """Those of a service that publishes, and handles what it has published."""
    grant(ResourceType.TOPIC, name, "DESCRIBE", "READ", "WRITE", "CREATE")
    grant(ResourceType.GROUP, name, "READ")


def has_snapshot(log: KafkaLog, topic: str) -> bool:
    kept = index_topic_name(topic)
    return kept in log.list_topics() and log.watermarks(kept, 0)[1] > 0


def test_deciding_with_snapshots_of_the_index(
    secured: SecuredKafka, grant: Grant, name: str
) -> None:
    """Those that the page names for event topics and for snapshots of their index; no group."""
    topic = f"{name}.events"
    grant(ResourceType.TOPIC, topic, "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "CREATE")
    grant(ResourceType.TRANSACTIONAL_ID, f"{topic}.index-", "WRITE", "DESCRIBE")
    for _ in range(2):
        log = open_log(f"{secured.url}&index_snapshots=1")
        assert isinstance(log, KafkaLog)
        log.create_event_topic(topic, 1)
        head = grow(log, topic, b"k", b"1", b"2")
        until(partial(has_snapshot, log, topic), 60, "the snapshot")
        assert history(log, topic, b"k").head == head
        # The driver asks for the coordinator of a group that nobody joins, and is refused.
        end = log.watermarks(topic, 0)[1]
        with closing(log.reader(topic, 0, end, end + 1)) as reader, pytest.raises(Unavailable):
            reader.read(1, 3.0)
        assert log._events.indexes.get(topic).error is None
        log.close()


@pytest.mark.parametrize("is_keyed", [False, True], ids=["view", "keyed view"])
async def test_folding_a_view(
    secured: SecuredKafka, grant: Grant, name: str, is_keyed: bool
) -> None:
    grant(ResourceType.TOPIC, name, "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "CREATE")
    grant(
        ResourceType.TOPIC,
        "__streams.views.events",
        "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "CREATE",
    )  # fmt: skip
    grant(ResourceType.TRANSACTIONAL_ID, name, "WRITE", "DESCRIBE")
    grant(ResourceType.GROUP, name, "READ")
    grant(ResourceType.TOPIC, f"{name}.holders.v1.keyed", "DELETE")
    bank = Bank(Streams(secured.url), name, partitions=1)
    holders = bank.accounts.view("holders", Holder, key=owner_of)(fold_holder) if is_keyed else None
    async with bank.app:
        for cents in range(1, 4):
            done = await bank.accounts.decide("a", deposit, cents)
            found = await bank.balances.get("a", wait_for=done, timeout=60)
        assert found is not None
        assert found.cents == 6
        if holders is not None:
            assert await holders.get("ada", wait_for=done, timeout=60) is None
        assert bank.app.health().ok


async def test_an_exactly_once_pipeline(secured: SecuredKafka, grant: Grant, name: str) -> None:
    service_rights(grant, name)
    grant(ResourceType.TRANSACTIONAL_ID, name, "WRITE", "DESCRIBE")
    app = Streams(secured.url)
    source = app.topic(f"{name}.in", int, partitions=2)
    target = app.topic(f"{name}.out", int, partitions=1)

    @app.processor(source, group=f"{name}.g", to=target, exactly_once=True, flow=Flow(commit=0.1))
    async def double(number: int) -> int:
        if number == 3:
            raise Reject("three")
        return 2 * number

    def written() -> bool:
        return app.log.watermarks(f"{name}.out", 0)[1] >= 9

    async with app:
        await source.publish_many(range(10))
        await asyncio.to_thread(until, written, 60, "the results")
        found = sorted([each.value async for each in target.read()])
    assert found == [2 * each for each in range(10) if each != 3]


class Trip(Struct):
    city: str


async def test_patterns(secured: SecuredKafka, grant: Grant, name: str) -> None:
    """A queue with delays, durable retries, letters in sequence, a bus, a saga: the rights of a
    service, as all that the toolkit adds begins with the name of what it belongs to."""
    service_rights(grant, name)
    app = Streams(secured.url)
    orders = app.topic(f"{name}.orders", int, partitions=1)
    seen: list[Any] = []
    tried: list[int] = []

    @app.processor(
        orders, group=f"{name}.billing", retry=Retry(attempts=2, delay=0.01, durable=True)
    )
    async def bill(number: int) -> None:
        tried.append(number)
        if len(tried) == 1:
            raise ValueError("again")
        seen.append(number)

    @app.processor(orders, group=f"{name}.closing", dead_letters=DeadLetters(sequenced=True))
    async def close(number: int) -> None:
        raise Reject("never")

    async def send(message: QueueMessage[Any]) -> None:
        seen.append(message.data)

    async def book(trip: Trip) -> None:
        seen.append(trip.city)

    queue = MessageQueue(app)
    consumer = queue.subscribe(f"{name}.mails", send)
    bus = EventBus(app, f"{name}.bus")
    bus.subscribe("seen", lambda event: seen.append(event), group=f"{name}.watching")
    trips = SagaOrchestrator(app, f"{name}.trips", context=Trip)
    trips.add_step(SagaStep("book", book))
    delays = Delays(app, f"{name}.later")
    async with app:
        _ = await consumer
        await orders.publish(1)
        await queue.publish(f"{name}.mails", "mail", delay=0.1)
        await delays.publish(orders, 2, delay=0.1)
        await bus.publish("seen", "event")
        await trips.execute(Trip("Rome"), id="ann")
        await asyncio.to_thread(until, lambda: len(seen) >= 5, 60, "all of it")
    assert {1, 2, "mail", "Rome"} <= {each for each in seen if isinstance(each, int | str)}


async def test_a_process_manager(secured: SecuredKafka, grant: Grant, name: str) -> None:
    grant(ResourceType.TOPIC, name, "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "CREATE")
    grant(ResourceType.GROUP, name, "READ")
    world = World(Streams(secured.url), name)
    async with world.app:
        await world.open(ada=100, bob=0, reserve=50)
        await world.orders.publish(Order("t1", "ada", "bob", 70))
        async with asyncio.timeout(60):
            while not await world.has_ended("t1"):  # noqa: ASYNC110 - it is in the log
                await asyncio.sleep(0.05)
        assert world.app.health().ok
