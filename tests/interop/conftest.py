"""A broker with Kafka's own tools, and the one type that all of these tests exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import pytest

from streams import Message, Streams
from tests.servers.find import KafkaAddress
from tests.servers.kafka import tool


class Order(msgspec.Struct):
    """What is exchanged, as JSON."""

    customer: str
    cents: int


class Seen(NamedTuple):
    """What a handler was given."""

    order: Order
    id: str
    key: str | None
    headers: dict[str, str]


class Broker(NamedTuple):
    """The session's broker, and Kafka's own tools."""

    url: str
    bootstrap: str
    folder: Path

    def tool(self, name: str, *arguments: str, input: str | None = None) -> str:
        """See :meth:`tests.servers.kafka.Kafka.tool`."""
        return tool(self.bootstrap, self.folder, name, *arguments, input=input)


@pytest.fixture
def broker(kafka: KafkaAddress, tmp_path: Path) -> Broker:
    return Broker(kafka.url, kafka.bootstrap, tmp_path)


def name(what: str) -> str:
    """A name that no other test uses."""
    return f"{what}-{uuid4().hex[:8]}"


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so; it is asked in a thread, for it may ask a server."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"it did not come about that {what}"
            time.sleep(0.02)

    await asyncio.to_thread(wait)


@asynccontextmanager
async def reading(url: str, topic: str, group: str) -> AsyncIterator[list[Seen]]:
    """A typed processor of ours on an existing topic, and what it was given."""
    app = Streams(url)
    seen: list[Seen] = []

    @app.processor(app.topic(topic, Order, key="customer"), group=group)
    async def note(order: Order, message: Message[Order]) -> None:
        seen.append(Seen(order, message.id, message.key, dict(message.headers)))

    async with app:
        yield seen


async def publish(url: str, topic: str, orders: list[tuple[str, Order]], partitions: int) -> None:
    """Our publisher: message IDs and values, each with a header of its own."""
    app = Streams(url)
    target = app.topic(topic, Order, key="customer", partitions=partitions)
    async with app.connected():
        for id, order in orders:
            await target.publish(order, id=id, headers={"origin": "ours"})
