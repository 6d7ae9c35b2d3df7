"""The databases under test: how each is made, and how a handler of its kind writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from streams import (
    Asyncpg,
    AsyncPsycopg,
    Database,
    Psycopg,
    SQLAlchemy,
    Sqlite,
)

TABLE = "CREATE TABLE effects (id text NOT NULL, number integer NOT NULL)"
INSERT = "INSERT INTO effects VALUES ({}, {})"


@dataclass(frozen=True)
class Kind:
    """A database, as a test uses it.

    :param asynchronous: its handlers are async.
    :param make: the database, of a DSN or a file.
    :param write: writes an effect in the handler's transaction.
    :param server: it needs PostgreSQL.
    """

    name: str
    asynchronous: bool
    make: Callable[..., Database[Any]]
    write: Callable[[Any, str, int], Any]
    server: bool = True

    def execute(self, transaction: Any, sql: str) -> Any:
        """Run a statement in the handler's transaction; awaited if the kind is asynchronous."""
        if "sqlalchemy" in self.name:
            from sqlalchemy import text

            return transaction.execute(text(sql))
        return transaction.execute(sql)

    def handler(self, before: Callable[[Any], Any], key: Callable[[Any], str]) -> Any:
        """A handler that calls ``before`` and writes the message's effect."""
        write = self.write

        async def handle_async(value: Any, message: Any) -> None:
            await write(message.transaction, key(message), value)
            found = before(message)
            if isinstance(found, Awaitable):
                await found

        def handle_plain(value: Any, message: Any) -> None:
            write(message.transaction, key(message), value)
            before(message)

        return handle_async if self.asynchronous else handle_plain


def _psycopg(connection: Any, key: str, number: int) -> None:
    connection.execute(INSERT.format("%s", "%s"), (key, number))


async def _async_psycopg(connection: Any, key: str, number: int) -> None:
    await connection.execute(INSERT.format("%s", "%s"), (key, number))


async def _asyncpg(connection: Any, key: str, number: int) -> None:
    await connection.execute(INSERT.format("$1", "$2"), key, number)


def _sqlite(connection: Any, key: str, number: int) -> None:
    connection.execute(INSERT.format("?", "?"), (key, number))


def _sqlalchemy(session: Any, key: str, number: int) -> None:
    from sqlalchemy import text

    session.execute(text(INSERT.format(":key", ":number")), {"key": key, "number": number})


async def _async_sqlalchemy(session: Any, key: str, number: int) -> None:
    from sqlalchemy import text

    await session.execute(text(INSERT.format(":key", ":number")), {"key": key, "number": number})


def _sqlalchemy_maker(place: str, **options: Any) -> Database[Any]:
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.orm import sessionmaker

    url = place.replace("postgresql://", "postgresql+psycopg://")
    url = url if "://" in url else f"sqlite:///{url}"
    return SQLAlchemy(sessionmaker(create_engine(url, poolclass=NullPool)), **options)


def _async_sqlalchemy_maker(place: str, **options: Any) -> Database[Any]:
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    url = place.replace("postgresql://", "postgresql+asyncpg://")
    url = url if "://" in url else f"sqlite+aiosqlite:///{url}"
    return SQLAlchemy(async_sessionmaker(create_async_engine(url, poolclass=NullPool)), **options)


KINDS = [
    Kind("psycopg", False, Psycopg, _psycopg),
    Kind("async-psycopg", True, AsyncPsycopg, _async_psycopg),
    Kind("asyncpg", True, Asyncpg, _asyncpg),
    Kind("sqlalchemy", False, _sqlalchemy_maker, _sqlalchemy),
    Kind("async-sqlalchemy", True, _async_sqlalchemy_maker, _async_sqlalchemy),
    Kind("sqlite", False, Sqlite, _sqlite, server=False),
    Kind("sqlalchemy-sqlite", False, _sqlalchemy_maker, _sqlalchemy, server=False),
    Kind("async-sqlalchemy-sqlite", True, _async_sqlalchemy_maker, _async_sqlalchemy, server=False),
]


class Place:
    """A database of the test's own, read past the toolkit."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._is_server = "://" in place
        self.execute(TABLE)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement and commit; its rows."""
        if self._is_server:
            with psycopg.connect(self.place, autocommit=True) as server:
                cursor = server.execute(sql)
                return cursor.fetchall() if cursor.description else []
        file = sqlite3.connect(self.place, isolation_level=None, timeout=30)
        try:
            return file.execute(sql).fetchall()
        finally:
            file.close()

    def effects(self) -> dict[str, int]:
        """How often each key was written."""
        return dict(self.execute("SELECT id, count(*) FROM effects GROUP BY id"))
