"""Connections: they are given back whole, whatever became of them, and what cannot work is said."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from streams import (
    Asyncpg,
    AsyncPsycopg,
    ConfigError,
    Message,
    ProcessorDied,
    Psycopg,
    Retry,
    SQLAlchemy,
    Sqlite,
    Streams,
)
from streams.databases.protocol import Statement
from streams.testing import harness
from tests.inbox.kinds import KINDS, Place

ONE = Statement("SELECT CAST($1 AS integer)", (1,))
BY_NAME = {kind.name: kind for kind in KINDS}


def url() -> str:
    return f"memory://{uuid4().hex}"


# -- SQLite


async def test_a_handler_that_closes_its_connection_ends_the_processor(tmp_path: Path) -> None:
    """And holds up nobody else who uses the file."""
    database = Sqlite(tmp_path / "a.db")
    app = Streams(url())
    topic = app.topic("numbers", int)

    @app.processor(topic, group="g", transaction=database, retry=Retry(attempts=1))
    def close(value: int, message: Message[int, sqlite3.Connection]) -> None:
        message.transaction.close()

    with pytest.raises(ProcessorDied, match=r"committed or rolled back message\.transaction"):
        async with harness(app) as h:
            await topic.publish(1)
            await h.settled()
    session = database.begin()  # it is somebody else's turn
    assert session.execute(ONE) == [(1,)]
    session.rollback()
    database.close()


async def test_connections_of_a_function_that_are_one_threads_own(tmp_path: Path) -> None:
    database = Sqlite(lambda: sqlite3.connect(tmp_path / "a.db"))
    database.begin().rollback()
    with pytest.raises(ConfigError, match="check_same_thread=False"):
        await asyncio.to_thread(database.begin)
    database.begin().rollback()  # nobody is held up
    database.close()


# -- psycopg


async def test_cursors_of_the_users_own_kind(postgres: str) -> None:
    """A pool may make cursors with other parameters (``$1``), or of other rows."""

    def configure(connection: psycopg.Connection[Any]) -> None:
        connection.cursor_factory = psycopg.RawCursor

    async def configure_async(connection: psycopg.AsyncConnection[Any]) -> None:
        connection.cursor_factory = psycopg.AsyncRawCursor

    with ConnectionPool(postgres, configure=configure, min_size=1) as pool:
        session = Psycopg(lambda: pool).begin()
        assert session.execute(ONE) == [(1,)]
        session.commit()
    async with AsyncConnectionPool(
        postgres, configure=configure_async, min_size=1, open=False
    ) as async_pool:
        async_session = await AsyncPsycopg(lambda: async_pool).begin_async()
        assert await async_session.execute(ONE) == [(1,)]
        await async_session.commit()


# -- an address that is none


@pytest.mark.parametrize("library", [Psycopg, AsyncPsycopg, Asyncpg])
@pytest.mark.parametrize("dsn", ["postgres//user:secret@host/shop", "mysql://user:secret@host/a"])
def test_an_address_that_is_none_is_said_at_once_and_not_quoted(library: Any, dsn: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://user@host/database") as caught:
        library(dsn)
    assert "secret" not in str(caught.value)


# -- SQLAlchemy


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("where", ["engine", "option"])
@pytest.mark.parametrize("server", [False, True], ids=["sqlite", "postgres"])
async def test_an_engine_that_commits_each_statement_is_refused(
    asynchronous: bool, where: str, server: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = Place(request.getfixturevalue("postgres") if server else str(tmp_path / "a.db"))
    options: dict[str, Any] = {"poolclass": NullPool}
    if where == "engine":
        options["isolation_level"] = "AUTOCOMMIT"
    else:
        options["execution_options"] = {"isolation_level": "AUTOCOMMIT"}
    if server:
        driver = "postgresql+asyncpg:" if asynchronous else "postgresql+psycopg:"
        address = place.place.replace("postgresql:", driver)
    else:
        address = f"sqlite{'+aiosqlite' if asynchronous else ''}:///{place.place}"
    maker: Any = (
        async_sessionmaker(create_async_engine(address, **options))
        if asynchronous
        else sessionmaker(create_engine(address, **options))
    )
    kind = BY_NAME["async-sqlalchemy" if asynchronous else "sqlalchemy"]
    app = Streams(url())
    topic = app.topic("numbers", int)
    app.processor(topic, group="g", transaction=SQLAlchemy(maker))(
        kind.handler(lambda message: None, lambda message: message.id)
    )
    with pytest.raises(ProcessorDied, match="AUTOCOMMIT"):
        async with harness(app) as h:
            await topic.publish(1)
            await h.settled()
    assert place.effects() == {}
