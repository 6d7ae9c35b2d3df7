"""What the tests of the outbox have in common: a database, an app on a log in memory, connections
that stay open as long as a test wants."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from msgspec import Struct

from streams import Message, Streams, Topic
from streams.outbox import Outbox

PATIENCE = 60.0
"""Real seconds after which a condition that does not come about fails its test."""


class Order(Struct, frozen=True):
    id: str
    number: int
    text: str = ""


class Place:
    """A database."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._open: list[Any] = []

    @property
    def is_postgres(self) -> bool:
        return self.dsn.startswith("postgresql")

    @property
    def path(self) -> str:
        return self.dsn.removeprefix("sqlite:///")

    def connect(self) -> Any:
        """A plain connection, as a user's: statements are in a transaction until it commits."""
        if self.is_postgres:
            return psycopg.connect(self.dsn)
        return sqlite3.connect(self.path, timeout=30)

    def open(self) -> Any:
        """The same, closed at the test's end."""
        found = self.connect()
        self._open.append(found)
        return found

    def close(self) -> None:
        for each in self._open:
            each.close()

    def create(self) -> None:
        asyncio.run(Outbox(Streams("memory://"), self.dsn).create_tables())

    def run(self, sql: str, parameters: Any = ()) -> list[Any]:
        """The rows of a statement, committed."""
        if not self.is_postgres:
            sql = sql.replace("%s", "?")
        with closing(self.connect()) as connection:
            cursor = connection.execute(sql, parameters)
            rows = cursor.fetchall() if cursor.description else []
            connection.commit()
        return list(rows)

    def rows(self) -> list[Any]:
        """Sequence, state and error of what is in the outbox."""
        return self.run("SELECT sequence, state, error FROM outbox ORDER BY sequence")


async def until(over: Callable[[], Any], what: Callable[[], object]) -> None:
    """Wait for a condition."""
    began = asyncio.get_running_loop().time()
    while not over():
        waited = asyncio.get_running_loop().time() - began
        assert waited < PATIENCE, what()
        await asyncio.sleep(0.005)


class World:
    """An app with an outbox."""

    def __init__(self, dsn: str, url: str | None = None, **options: Any) -> None:
        self.app = Streams(url or f"memory://outbox-{uuid4().hex}")
        self.orders: Topic[Order] = self.app.topic("orders", Order, key="id", partitions=4)
        self.raw = self.app.topic("raw", bytes, partitions=2)
        options.setdefault("lease", 30.0)
        self.outbox = Outbox(self.app, dsn, **options)
        self.handled: list[Message[Any]] = []
        self.values: list[Any] = []

        @self.app.processor(self.orders, self.raw, group="shop", concurrency=16)
        async def handle(value: Any, message: Message[Any]) -> None:
            self.handled.append(message)
            self.values.append(value)

    def of(self, key: str) -> list[int]:
        """The numbers of one key's orders, as they were handled."""
        orders = (each for each in list(self.values) if isinstance(each, Order))
        return [each.number for each in orders if each.id == key]

    async def until(self, over: Callable[[], Any], what: str = "") -> None:
        await until(over, lambda: (what, self.values[-5:], self.outbox.stats()))

    async def handle(self, number: int) -> None:
        """Until so many messages were handled."""
        await self.until(lambda: len(self.handled) >= number, f"{number} handled")


@asynccontextmanager
async def running(*args: Any, **options: Any) -> AsyncIterator[World]:
    world = World(*args, **options)
    async with world.app:
        yield world


@contextmanager
def committing(place: Place) -> Iterator[Any]:
    """A connection whose transaction commits at the end."""
    with closing(place.connect()) as connection:
        yield connection
        connection.commit()
