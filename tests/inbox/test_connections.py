"""Connections: they are given back whole, whatever became of them, and what cannot work is said."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from streams import (
    Asyncpg,
    AsyncPsycopg,
    ConfigError,
    Flow,
    Message,
    ProcessorDied,
    Psycopg,
    Retry,
    SQLAlchemy,
    Sqlite,
    Streams,
)
from streams.databases.protocol import FailureKind, Statement, is_conflict_of_ours
from streams.testing import harness
from tests.inbox.kinds import KINDS, Kind, Place
from tests.servers.lifetime import until

ONE = Statement("SELECT CAST($1 AS integer)", (1,))
BY_NAME = {kind.name: kind for kind in KINDS}


def url() -> str:
    return f"memory://{uuid4().hex}"


# -- SQLite


async def test_an_app_is_left_although_a_handler_has_its_transaction_for_ever(
    tmp_path: Path,
) -> None:
    """A plain handler cannot be interrupted; what it does afterwards goes to nobody."""
    app, begun, go_on = Streams(url()), threading.Event(), threading.Event()
    topic = app.topic("numbers", int)

    @app.processor(topic, group="g", transaction=Sqlite(tmp_path / "a.db"), flow=Flow(drain=0.05))
    def stick(value: int, message: Message[int, sqlite3.Connection]) -> None:
        begun.set()
        go_on.wait()

    try:
        async with app:
            await topic.publish(1)
            await asyncio.to_thread(begun.wait)
    finally:
        go_on.set()


def test_an_app_lives_again_on_another_loop(tmp_path: Path) -> None:
    """As in tests that have a loop each; several handlers wait for the database to be opened."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db", poolclass=NullPool)
    app = Streams(url())
    topic = app.topic("numbers", int, partitions=1)

    @app.processor(
        topic, group="g", transaction=SQLAlchemy(async_sessionmaker(engine)), concurrency=4,
        retry=Retry(attempts=1),
    )  # fmt: skip
    async def handle(value: int, message: Message[int, Any]) -> None: ...

    async def live(first: int) -> int:
        async with harness(app) as h:
            for value in range(first, first + 4):
                await topic.publish(value, key=str(value))
            await h.settled()
            return len(await h.dead(topic, "g"))

    assert [asyncio.run(live(first)) for first in (0, 10, 20)] == [0, 0, 0]


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
    database.enter()
    database.begin().rollback()
    with pytest.raises(ConfigError, match="check_same_thread=False"):
        await asyncio.to_thread(database.begin)
    database.begin().rollback()  # nobody is held up
    database.leave()


# -- handlers that are cancelled


@pytest.mark.parametrize("name", ["async-psycopg", "asyncpg", "async-sqlalchemy"])
async def test_handlers_that_are_cancelled_in_a_statement_leave_nothing_behind(
    name: str, postgres: str
) -> None:
    """More of them than the pool has connections, and then one that is not."""
    place, kind, cancelled = Place(postgres), BY_NAME[name], 6
    app = Streams(url())
    topic = app.topic("numbers", int)

    async def wait(value: int, message: Message[int, Any]) -> None:
        await kind.write(message.transaction, message.id, value)
        if value < cancelled:
            sleep: Any = "SELECT pg_sleep(60)"
            await message.transaction.execute(
                sqlalchemy.text(sleep) if name == "async-sqlalchemy" else sleep
            )

    # The last one has seconds, on whatever machine, where the others have no end.
    app.processor(
        topic, group="g", transaction=kind.make(postgres),
        concurrency=3, timeout=6.0, retry=Retry(attempts=1),
    )(wait)  # fmt: skip
    async with harness(app) as h:
        for number in range(cancelled + 1):
            await topic.publish(number, id=f"m{number}")
        await h.settled(within=120)
        assert len(await h.dead(topic, "g")) == cancelled
        busy = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND (query LIKE '%pg_sleep%' OR state LIKE 'idle in%') AND pid <> pg_backend_pid()"
        )
        await asyncio.to_thread(until, lambda: place.execute(busy) == [(0,)], 30, "all have ended")
    assert place.effects() == {f"m{cancelled}": 1}
    assert place.execute("SELECT count(*) FROM streams_inbox WHERE dead") == [(cancelled,)]


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


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[AsyncPsycopg]:
    """With a pool of one connection."""
    database = AsyncPsycopg(dsn)
    database.reserve_connections(1)
    await database.enter_async()
    try:
        yield database
    finally:
        await database.leave_async()


async def test_begin_and_the_first_statement_are_one_round_trip(postgres: str) -> None:
    async with opened(postgres) as database:
        session = await database.begin_with_async(ONE)
        assert await session.first_rows() == [(1,)]
        pid = session.connection.info.backend_pid
        sent = f"SELECT query FROM pg_stat_activity WHERE pid = {pid}"
        assert Place(postgres).execute(sent) == [("BEGIN; SELECT CAST(1 AS integer)",)]
        await session.commit()


async def test_a_transaction_of_our_own_pool_is_not_the_handlers_to_end(postgres: str) -> None:
    place = Place(postgres)
    async with opened(postgres) as database:
        session = await database.begin_with_async(ONE)
        for end in (session.connection.commit, session.connection.rollback):
            with pytest.raises(psycopg.ProgrammingError, match="is the toolkit's"):
                await end()
        with pytest.raises(ZeroDivisionError):
            async with session.connection.transaction():
                await session.connection.execute("INSERT INTO effects VALUES ('lost', 1)")
                raise ZeroDivisionError
        await session.connection.execute("INSERT INTO effects VALUES ('kept', 1)")
        assert place.effects() == {}
        await session.commit()
        assert place.effects() == {"kept": 1}

        session = await database.begin_with_async(ONE)
        await session.connection.execute("COMMIT")
        await session.connection.execute("SELECT 1")
        with pytest.raises(ConfigError, match="committed or rolled back"):
            await session.commit()
        session = await database.begin_async()
        await session.connection.execute("INSERT INTO effects VALUES ('undone', 1)")
        await session.rollback()
        assert place.effects() == {"kept": 1}


@pytest.mark.parametrize(
    "library", [each for each in KINDS if each.server], ids=lambda each: str(each.name)
)
async def test_a_session_that_has_ended_ends_no_other_on_its_connection(
    library: Any, postgres: str
) -> None:
    """Whoever has committed may roll back as well, to be sure."""
    place, database = Place(postgres), library.make(postgres)
    database.reserve_connections(1)
    if not library.asynchronous:
        database.enter()
        first = database.begin()
        first.commit()
        second = database.begin()
        first.rollback()
        library.write(second.connection, "kept", 1)
        assert place.effects() == {}
        second.commit()
        database.leave()
    else:
        await database.enter_async()
        for end in ("commit", "rollback"):
            begun = await database.begin_async()
            await getattr(begun, end)()
            following = await database.begin_async()
            await begun.rollback()
            await library.write(following.connection, "kept", 1)
            assert place.effects() == ({} if end == "commit" else {"kept": 1})
            await (following.rollback() if end == "rollback" else following.commit())
        await database.leave_async()
    assert place.effects() == {"kept": 1}


async def test_a_first_statement_that_fails_is_told_apart_from_a_lost_connection(
    postgres: str,
) -> None:
    async with opened(postgres) as database:
        session = await database.begin_with_async(Statement("SELECT 1 / 0"))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await session.first_rows()
        assert await session.has_failed()
        await session.rollback()
        session = await database.begin_with_async(ONE)
        await session.commit()
        Place(postgres).execute(
            f"SELECT pg_terminate_backend({session.connection.info.backend_pid}, 30000)"
        )
        with pytest.raises(psycopg.OperationalError) as lost:
            await database.begin_with_async(ONE)
        assert database.classify(lost.value) is FailureKind.UNREACHABLE
        session = await database.begin_with_async(ONE)
        assert await session.first_rows() == [(1,)]
        await session.commit()


async def test_a_lost_connection_commits_nothing(postgres: str) -> None:
    """Psycopg's own blocks end there without a word, as after an error that a handler swallowed."""
    with ConnectionPool(postgres, min_size=1) as pool:
        session = Psycopg(lambda: pool).begin()
        session.connection.close()
        with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
            session.commit()
        session.rollback()
        again = Psycopg(lambda: pool).begin()  # it was given back
        assert again.execute(ONE) == [(1,)]
        again.commit()
    async with AsyncConnectionPool(postgres, min_size=1, open=False) as async_pool:
        database = AsyncPsycopg(lambda: async_pool)
        async_session = await database.begin_async()
        await async_session.connection.close()
        with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
            await async_session.commit()
        await async_session.rollback()
        async_again = await database.begin_async()
        assert await async_again.execute(ONE) == [(1,)]
        await async_again.commit()


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


# -- what a function returns, made in the lifespan


@asynccontextmanager
async def sqlalchemy_maker(place: str, *, asynchronous: bool) -> AsyncIterator[Any]:
    if asynchronous:
        engine = create_async_engine(f"sqlite+aiosqlite:///{place}", poolclass=NullPool)
        yield async_sessionmaker(engine)
        await engine.dispose()
    else:
        yield sessionmaker(create_engine(f"sqlite:///{place}", poolclass=NullPool))


@asynccontextmanager
async def asyncpg_pool(place: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(place, min_size=0) as pool:
        yield pool


@pytest.mark.parametrize("name", ["asyncpg", "sqlalchemy-sqlite", "async-sqlalchemy-sqlite"])
async def test_what_is_made_in_the_lifespan_is_asked_for_by_a_function(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = BY_NAME[name]
    where = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "a.db")
    place = Place(where)
    made: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        opened = (
            asyncpg_pool(where)
            if kind.server
            else sqlalchemy_maker(where, asynchronous=kind.asynchronous)
        )
        async with opened as found:
            made.append(found)
            yield

    app = Streams(url(), lifespan=lifespan)
    topic = app.topic("numbers", int)
    library: Any = Asyncpg if kind.server else SQLAlchemy
    for group in ("one", "two"):
        app.processor(topic, group=group, transaction=library(lambda: made[-1]))(
            kind.handler(lambda message: None, lambda message: message.id)
        )
    for _ in range(2):  # made anew with the app
        async with harness(app) as h:
            await topic.publish(1, id="m1")
            await h.settled()
    assert len(made) == 2
    assert place.effects() == {"m1": 4}


async def test_a_function_that_returns_a_maker_for_other_handlers(tmp_path: Path) -> None:
    maker = sessionmaker(create_engine(f"sqlite:///{tmp_path / 'a.db'}"))
    database = SQLAlchemy(lambda: maker)
    app = Streams(url())
    topic = app.topic("numbers", int)
    kind = BY_NAME["async-sqlalchemy-sqlite"]
    app.processor(topic, group="g", transaction=database)(
        kind.handler(lambda message: None, lambda message: message.id)
    )
    with pytest.raises(ConfigError, match="make it `async def`"):  # it is known by now
        app.processor(topic, group="h", transaction=database)(
            BY_NAME["sqlalchemy-sqlite"].handler(lambda message: None, lambda message: message.id)
        )
    with pytest.raises(ProcessorDied, match="returned a sessionmaker, and an async handler needs"):
        async with harness(app) as h:
            await topic.publish(1)
            await h.settled()


async def test_a_pool_of_psycopg_tries_for_as_long_as_somebody_waits() -> None:
    """Its pauses grow to minutes else, and nobody else may try meanwhile."""
    plain, asynchronous = Psycopg("host=127.0.0.1 port=1"), AsyncPsycopg("host=127.0.0.1 port=1")
    plain.open(1)
    await asynchronous.open_async(1)
    try:
        for pool in (plain._pool, asynchronous._pool):
            assert pool is not None
            assert pool.reconnect_timeout == pool.timeout
    finally:
        plain.close()
        await asynchronous.close_async()


# -- behind a pooler, or with a statement_timeout


@pytest.mark.parametrize(
    "statements",
    [
        ["EXECUTE nothing"],
        ["PREPARE known AS SELECT 1", "PREPARE known AS SELECT 1"],
        ["SET LOCAL statement_timeout = 1", "SELECT pg_sleep(60)"],
    ],
    ids=["invalid_sql_statement_name", "duplicate_prepared_statement", "query_canceled"],
)
async def test_what_is_no_failure_of_the_messages_in_a_statement_of_ours(
    server_kind: Kind, statements: list[str], postgres: str
) -> None:
    database = server_kind.make(postgres)
    database.reserve_connections(1)
    with pytest.raises(Exception, match=r"nothing|known|cancel") as caught:
        if server_kind.asynchronous:
            await database.enter_async()
            async_session = await database.begin_async()
            try:
                for each in statements:
                    await async_session.execute(Statement(each))
            finally:
                await async_session.rollback()
                await database.leave_async()
        else:
            database.enter()
            session = database.begin()
            try:
                for each in statements:
                    session.execute(Statement(each))
            finally:
                session.rollback()
                database.leave()
    assert database.classify(caught.value) is FailureKind.FAULT
    assert is_conflict_of_ours(caught.value)
