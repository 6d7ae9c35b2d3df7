"""Publishing in a transaction, on every kind of connection: it commits or nothing is published."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiosqlite
import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import class_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from stream_codecs import EncodeError
from streams import ConfigError, InvalidValue, Streams, TooLarge
from streams.outbox import Outbox
from tests.outbox.world import Order, Place, World, committing, running

pytestmark = pytest.mark.anyio


class Rollback(Exception):
    """The user's transaction fails."""


# -- the kinds of connections, each in a transaction that ends with the block


@asynccontextmanager
async def psycopg_async(dsn: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield connection


@asynccontextmanager
async def psycopg_cursor(dsn: str) -> AsyncIterator[Any]:
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        yield cursor


@asynccontextmanager
async def asyncpg_connection(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncIterator[Any]:
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection


def _engine(dsn: str, driver: str) -> Any:
    return create_async_engine(dsn.replace("://", f"+{driver}://", 1))


@asynccontextmanager
async def alchemy_session(dsn: str, driver: str) -> AsyncIterator[Any]:
    engine = _engine(dsn, driver)
    try:
        async with AsyncSession(engine) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


@asynccontextmanager
async def alchemy_connection(dsn: str, driver: str) -> AsyncIterator[Any]:
    engine = _engine(dsn, driver)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def aiosqlite_connection(dsn: str) -> AsyncIterator[Any]:
    async with aiosqlite.connect(dsn.removeprefix("sqlite:///")) as connection:
        yield connection
        await connection.commit()


ASYNC: dict[str, Any] = {
    "psycopg": (psycopg_async, "postgres"),
    "a cursor of psycopg": (psycopg_cursor, "postgres"),
    "asyncpg": (asyncpg_connection, "postgres"),
    "a pool of asyncpg": (asyncpg_pool, "postgres"),
    "SQLAlchemy, a session on psycopg": (lambda dsn: alchemy_session(dsn, "psycopg"), "postgres"),
    "SQLAlchemy, a session on asyncpg": (lambda dsn: alchemy_session(dsn, "asyncpg"), "postgres"),
    "SQLAlchemy, on asyncpg": (lambda dsn: alchemy_connection(dsn, "asyncpg"), "postgres"),
    "SQLAlchemy, on aiosqlite": (lambda dsn: alchemy_connection(dsn, "aiosqlite"), "sqlite"),
    "aiosqlite": (aiosqlite_connection, "sqlite"),
}


@contextmanager
def plain(dsn: str) -> Iterator[Any]:
    with committing(Place(dsn)) as connection:
        yield connection


@contextmanager
def plain_cursor(dsn: str) -> Iterator[Any]:
    with committing(Place(dsn)) as connection:
        yield connection.cursor()


@contextmanager
def plain_session(dsn: str) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


PLAIN: dict[str, Any] = {
    "psycopg": (plain, "postgres"),
    "a cursor of psycopg": (plain_cursor, "postgres"),
    "SQLAlchemy": (plain_session, "postgres"),
    "sqlite3": (plain, "sqlite"),
    "a cursor of sqlite3": (plain_cursor, "sqlite"),
    "SQLAlchemy on SQLite": (plain_session, "sqlite"),
}


def _parameters(kinds: dict[str, Any]) -> Any:
    return [pytest.param(of, database, id=name) for name, (of, database) in kinds.items()]


@pytest.mark.parametrize(("kind", "database"), _parameters(ASYNC))
async def test_it_is_published_if_the_transaction_commits(kind: Any, place: Place) -> None:
    async with running(place.dsn) as world:
        with pytest.raises(Rollback):
            async with kind(place.dsn) as connection:
                await world.outbox.publish(world.orders, Order("a", 0), connection=connection)
                raise Rollback
        async with kind(place.dsn) as connection:
            first = await world.outbox.publish(world.orders, Order("a", 1), connection=connection)
            await world.outbox.publish(world.orders, Order("a", 2), connection=connection)
        await world.handle(2)
        assert world.of("a") == [1, 2]
        assert world.handled[0].id == first
        await world.until(lambda: not place.rows(), "the rows are deleted")


@pytest.mark.parametrize(("kind", "database"), _parameters(PLAIN))
async def test_plain_code(kind: Any, place: Place) -> None:
    async with running(place.dsn) as world:
        with pytest.raises(Rollback), kind(place.dsn) as connection:
            world.outbox.publish_sync(world.orders, Order("a", 0), connection=connection)
            raise Rollback
        with kind(place.dsn) as connection:
            world.outbox.publish_sync(world.orders, Order("a", 1), connection=connection)
            await world.outbox.publish(world.orders, Order("a", 2), connection=connection)
        await world.handle(2)
        assert world.of("a") == [1, 2]


async def test_a_message_is_what_topic_publish_makes_of_it(place: Place) -> None:
    """ID, key, headers, time, value: the same as of a message that was published directly."""
    async with running(place.dsn) as world:
        own = str(uuid4())
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        given: list[dict[str, Any]] = [
            {"value": b"1", "id": own},
            {"value": b"2", "id": "order-17-paid", "key": "k"},
            {"value": b"3", "key": b"\xff\x00\xfe", "id": own.upper()},
            {"value": b"", "key": "nul\0", "headers": {"a": "1", "ü": "\udcff", "b": ""}},
            {"value": b"\x00\xff", "key": UUID(int=7), "timestamp": moment},
            {"value": b"{}", "key": "ü" * 255, "id": "x" * 300},
        ]
        with committing(place) as connection:
            for options in given:
                options = dict(options)
                value = options.pop("value")
                await world.outbox.publish(world.raw, value, connection=connection, **options)
        await world.handle(len(given))
        found = {message.raw.value: message for message in world.handled}
        for options in given:
            options = dict(options)
            value = options.pop("value")
            record = world.raw.record(value, **options)
            message = found[value]
            if "id" in options:
                assert message.id == record.id
            assert message.raw.key == record.key
            headers = [pair for pair in message.raw.headers if pair[0] != "ce_id"]
            assert headers == list(record.headers)


async def test_a_tombstone(place: Place) -> None:
    world = World(place.dsn)
    maybe = world.app.topic("maybe", Order | None, key="id")
    with committing(place) as connection:
        world.outbox.publish_sync(maybe, None, key="gone", connection=connection)
    async with world.app:
        await world.until(lambda: not place.rows(), "it is relayed")
        found = [message async for message in maybe.read()]
    assert [(each.key, each.value) for each in found] == [("gone", None)]


async def test_what_does_not_fit_fails_in_the_transaction(place: Place) -> None:
    world = World(place.dsn, max_bytes=1000)
    other = Streams("memory://").topic("orders", Order)
    wrong: Any = "no order"
    with committing(place) as connection:
        for error, topic, value, options in [
            (EncodeError, world.orders, wrong, {}),
            (TooLarge, world.raw, b"x" * 1001, {}),
            (InvalidValue, world.raw, b"", {"key": "k" * 256}),
            (InvalidValue, world.raw, b"", {"key": b"\xff" * 128}),
            (InvalidValue, world.raw, b"", {"id": "m\udcff"}),
            (EncodeError, world.raw, b"", {"headers": {"ce_id": "1"}}),
            (ConfigError, other, Order("a", 1), {}),
            (ConfigError, "orders", Order("a", 1), {}),
        ]:
            with pytest.raises(error):
                await world.outbox.publish(topic, value, connection=connection, **options)  # type: ignore[arg-type]
    assert not place.rows()


@pytest.mark.parametrize("database", ["postgres"])
async def test_a_connection_that_commits_by_itself_is_refused(place: Place) -> None:
    world = World(place.dsn)

    async def refused(connection: Any) -> None:
        with pytest.raises(ConfigError, match="no transaction is open"):
            await world.outbox.publish(world.orders, Order("a", 1), connection=connection)

    with psycopg.connect(place.dsn, autocommit=True) as connection:
        await refused(connection)
    found = await asyncpg.connect(place.dsn)
    await refused(found)
    await found.close()
    engine = sqlalchemy.create_engine(place.dsn.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as alchemy:
        await refused(alchemy)
    engine.dispose()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as sqlite:
        await refused(sqlite)
    assert not place.rows()


class _Own:
    """What a user makes of a row, which is no row of ours."""

    def __init__(self, **columns: object) -> None:
        assert "name" in columns


@contextmanager
def psycopg_of_own_rows(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn, row_factory=class_row(_Own)) as connection:
        yield connection


@contextmanager
def psycopg_of_own_cursors(dsn: str) -> Iterator[Any]:
    with psycopg.connect(dsn, cursor_factory=psycopg.RawCursor) as connection:
        yield connection


@contextmanager
def sqlite_of_own_rows(dsn: str) -> Iterator[Any]:
    with closing(sqlite3.connect(dsn.removeprefix("sqlite:///"))) as connection:
        connection.row_factory = lambda cursor, row: {}
        yield connection
        connection.commit()


@pytest.mark.parametrize(
    ("connect", "database", "relayed_by"),
    [
        (psycopg_of_own_rows, "postgres", "command"),
        (psycopg_of_own_rows, "postgres", "debezium"),
        (psycopg_of_own_cursors, "postgres", "command"),
        (psycopg_of_own_cursors, "postgres", "debezium"),
        (sqlite_of_own_rows, "sqlite", "command"),
    ],
)
async def test_connections_with_rows_or_cursors_of_the_users_own(
    connect: Any, place: Place, relayed_by: Any
) -> None:
    world = World(place.dsn, relayed_by=relayed_by)
    with connect(place.dsn) as connection:
        await world.outbox.publish(world.orders, Order("a", 1), connection=connection)
    assert len(place.rows()) == (relayed_by == "command")


@pytest.mark.parametrize("database", ["postgres", "sqlite"])
async def test_an_engine_that_commits_each_statement_is_refused(place: Place) -> None:
    world = World(place.dsn)
    url = place.dsn.replace("postgresql:", "postgresql+psycopg:", 1)
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(ConfigError, match="AUTOCOMMIT"):
        await world.outbox.publish(world.orders, Order("a", 1), connection=connection)
    with Session(engine) as session, pytest.raises(ConfigError, match="AUTOCOMMIT"):
        world.outbox.publish_sync(world.orders, Order("a", 1), connection=session)
    engine.dispose()
    assert not place.rows()


async def test_what_is_no_connection_is_refused() -> None:
    world = World("sqlite:///:memory:")
    with pytest.raises(ConfigError, match="none of psycopg, asyncpg"):
        await world.outbox.publish(world.orders, Order("a", 1), connection=object())
    async with aiosqlite.connect(":memory:") as connection:
        with pytest.raises(ConfigError, match=r"await outbox\.publish"):
            world.outbox.publish_sync(world.orders, Order("a", 1), connection=connection)


@pytest.mark.parametrize(
    ("database", "options", "said"),
    [
        ("mysql://a:secret@b/c", {}, "scheme is not known"),
        ("sqlite://relative.db", {}, "sqlite:///file.db"),
        ("", {}, "address is missing"),
        ("sqlite:///a.db", {"table": "Drop table; --"}, "a name such as outbox"),
        ("sqlite:///a.db", {"lease": 0}, "lease=0"),
        ("sqlite:///a.db", {"batch": 0}, "batch=0"),
        ("sqlite:///a.db", {"relayed_by": "nobody"}, "'app', 'command', 'debezium'"),
        ("sqlite:///a.db", {"relayed_by": "debezium"}, "from a SQLite file nothing would be"),
        ("sqlite:///a.db", {"table": "postgresql://u:secret@h/d"}, "a name such as outbox"),
    ],
)
def test_declarations_that_cannot_work(database: str, options: Any, said: str) -> None:
    with pytest.raises(ConfigError) as found:
        Outbox(Streams("memory://"), database, **options)
    assert said in str(found.value)
    assert "secret" not in str(found.value)


def test_an_address_in_the_apps_place_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="app is a Streams app, not a str") as found:
        Outbox("postgresql://u:secret@h/d", Streams("memory://"))  # type: ignore[arg-type]
    assert "secret" not in str(found.value)


async def test_what_debezium_cannot_relay_is_refused_when_it_is_known(tmp_path: Path) -> None:
    """Where the database is, a function says: when the app is entered, or somebody publishes."""
    file = tmp_path / "shop.db"
    app = Streams("memory://")
    outbox = Outbox(app, lambda: f"sqlite:///{file}", relayed_by="debezium")
    orders = app.topic("orders", Order)
    with pytest.raises(ConfigError, match="relayed_by='debezium' is for PostgreSQL"):
        await app.__aenter__()
    with (
        closing(sqlite3.connect(file)) as connection,
        pytest.raises(ConfigError, match="relayed_by='debezium' is for PostgreSQL"),
    ):
        outbox.publish_sync(orders, Order("a", 1), connection=connection)
