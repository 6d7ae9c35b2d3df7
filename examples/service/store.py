"""The stock, in a database of its own: a small pool of connections for coroutines.

It stands for a service's resources (a database's pool, an HTTP client): opened when the service
starts, shared by its handlers, closed after the last of them has ended.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, left INTEGER NOT NULL CHECK (left >= 0));
CREATE TABLE IF NOT EXISTS reserved (id TEXT PRIMARY KEY, ok INTEGER NOT NULL);
"""


class Store:
    """Stock by SKU. Use it inside ``async with store:``."""

    def __init__(self, path: str, connections: int = 4) -> None:
        self._path = path
        self._count = connections
        self._idle: asyncio.Queue[sqlite3.Connection] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            self._idle.put_nowait(await asyncio.to_thread(self._connect))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for _ in range(self._count):  # wait for connections that are still in use
            connection = await self._idle.get()
            await asyncio.to_thread(connection.close)

    def _connect(self) -> sqlite3.Connection:
        Path(self._path).touch(mode=0o600)  # only its owner may read a new file
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.executescript(SCHEMA)
        return connection

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[sqlite3.Connection]:
        connection = await self._idle.get()
        try:
            yield connection
        finally:
            self._idle.put_nowait(connection)

    async def fill(self, sku: str, count: int) -> None:
        """Put ``count`` pieces on the shelf."""
        async with self._connection() as connection:
            await asyncio.to_thread(_fill, connection, sku, count)

    async def left(self, sku: str) -> int:
        """The number of pieces that are not reserved."""
        async with self._connection() as connection:
            return await asyncio.to_thread(_left, connection, sku)

    async def reserve(self, id: str, sku: str, count: int) -> bool:
        """Reserve ``count`` pieces, once per ``id``; returns whether there were enough.

        A second call with the same ID gives the same answer and takes nothing: that makes a
        handler harmless when a crash lets its message be handled a second time.
        """
        async with self._connection() as connection:
            return await asyncio.to_thread(_reserve, connection, id, sku, count)


def _fill(connection: sqlite3.Connection, sku: str, count: int) -> None:
    connection.execute(
        "INSERT INTO stock VALUES (?1, ?2) ON CONFLICT (sku) DO UPDATE SET left = left + ?2",
        (sku, count),
    )


def _left(connection: sqlite3.Connection, sku: str) -> int:
    found = connection.execute("SELECT left FROM stock WHERE sku = ?", (sku,)).fetchone()
    return 0 if found is None else int(found[0])


def _reserve(connection: sqlite3.Connection, id: str, sku: str, count: int) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        decided = connection.execute("SELECT ok FROM reserved WHERE id = ?", (id,)).fetchone()
        if decided is None:
            ok = connection.execute(
                "UPDATE stock SET left = left - ?2 WHERE sku = ?1 AND left >= ?2", (sku, count)
            ).rowcount
            connection.execute("INSERT INTO reserved VALUES (?, ?)", (id, ok))
            decided = (ok,)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return bool(decided[0])
