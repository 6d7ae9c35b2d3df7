"""A database that answers and cannot work: a full disk, a replica. And those of others."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from streams import (
    Database,
    Message,
    Processor,
    ProcessorDied,
    Retry,
    SQLAlchemy,
    Sqlite,
    Streams,
    Topic,
)
from streams.testing import Harness, harness
from tests.inbox.kinds import KINDS, Kind, Place
from tests.servers.lifetime import until


def by_id(message: Message[Any]) -> str:
    return message.id


async def eventually(ready: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, ready, 60, what)


async def outage_is_waited_out(
    h: Harness, processor: Processor[..., Any], heal: Callable[[], object]
) -> None:
    """While it lasts it is told, and no message uses up an attempt."""
    inbox = processor.inbox
    assert inbox is not None
    await eventually(lambda: not inbox.stats.reachable, "it waits for the database")
    await eventually(lambda: inbox.stats.reruns >= 2, "it tries again")
    assert not processor.health().ok
    await asyncio.to_thread(heal)
    await h.settled(within=120)
    await eventually(lambda: processor.health().database_reachable, "it says that it works again")
    stats = processor.stats()
    assert stats is not None
    assert (stats.dead_letters, stats.retries) == (0, 0)


# -- PostgreSQL


def declared(
    app: Streams, topic: Topic[int], database: Database[Any], handler: Any
) -> Processor[..., Any]:
    """A processor whose messages have one attempt."""
    given: Any = app.processor(
        topic, group="g", concurrency=4, transaction=database, retry=Retry(attempts=1)
    )
    processor: Processor[..., Any] = given(handler)
    return processor


def _fails_on_demand(place: Place) -> None:
    """Statements and COMMITs fail with the code that ``trouble`` has for them."""
    place.execute("CREATE TABLE trouble (place text NOT NULL, code text NOT NULL)")
    place.execute(
        "CREATE FUNCTION look_for_trouble() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "DECLARE found_code text; BEGIN "
        "SELECT t.code INTO found_code FROM trouble AS t WHERE t.place = TG_ARGV[0]; "
        "IF found_code IS NOT NULL THEN RAISE EXCEPTION 'there' USING ERRCODE = found_code; "
        "END IF; RETURN NEW; END $$"
    )


def _add_trigger(place: Place, where: str) -> None:
    table = "streams_inbox" if where == "take" else "effects"
    kind, timing, deferred = "", "BEFORE", ""
    if where == "commit":
        kind, timing, deferred = "CONSTRAINT", "AFTER", "DEFERRABLE INITIALLY DEFERRED"
    place.execute(
        f"CREATE {kind} TRIGGER trouble_{where} {timing} INSERT ON {table} {deferred} "
        f"FOR EACH ROW EXECUTE FUNCTION look_for_trouble('{where}')"
    )


async def test_a_server_without_room_is_waited_for(server_kind: Kind, postgres: str) -> None:
    """In a statement of ours, in one of the handler's, and at COMMIT."""
    place = Place(postgres)
    _fails_on_demand(place)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)
    processor = declared(
        app, topic, server_kind.make(postgres), server_kind.handler(lambda message: None, by_id)
    )
    sent = 0
    async with harness(app) as h:
        for where, code in (("", ""), ("take", "53200"), ("handler", "53100"), ("commit", "58030")):
            if where:
                _add_trigger(place, where)
                place.execute(f"INSERT INTO trouble VALUES ('{where}', '{code}')")
            for _ in range(5):
                sent += 1
                await topic.publish(sent, id=f"m{sent}")
            if where:
                assert processor.inbox is not None
                processor.inbox.stats.reruns = 0
                await outage_is_waited_out(
                    h, processor, lambda: place.execute("DELETE FROM trouble")
                )
            await h.settled()
    assert place.effects() == {f"m{number}": 1 for number in range(1, sent + 1)}


@pytest.mark.parametrize("name", ["psycopg", "async-psycopg"])
async def test_a_message_for_which_the_server_lacks_room_each_time_is_given_up(
    name: str, postgres: str
) -> None:
    """Others are committed meanwhile, so it is no outage."""
    place = Place(postgres)
    place.execute(
        "CREATE FUNCTION lack_memory() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION 'there' USING ERRCODE = 'out_of_memory'; END $$"
    )
    place.execute(
        "CREATE TRIGGER lack_memory BEFORE INSERT ON effects FOR EACH ROW "
        "WHEN (NEW.id = 'poison') EXECUTE FUNCTION lack_memory()"
    )
    (kind,) = (each for each in KINDS if each.name == name)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)
    processor = declared(app, topic, kind.make(postgres), kind.handler(lambda message: None, by_id))
    sent = 0
    async with harness(app) as h:
        await topic.publish(0, id="poison", key="poison")
        async with asyncio.timeout(240):
            while not _dead_letters(processor):
                id = f"m{sent}"
                await topic.publish(sent, id=id, key="others")
                await eventually(partial(_has_effect, place, id), "others are handled")
                sent += 1
        await h.settled(within=120)
        await eventually(lambda: processor.health().database_reachable, "it works")
        assert _dead_letters(processor) == 1
    assert place.effects() == {f"m{number}": 1 for number in range(sent)}


def _has_effect(place: Place, id: str) -> bool:
    return id in place.effects()


def _dead_letters(processor: Processor[..., Any]) -> int:
    stats = processor.stats()
    return 0 if stats is None else stats.dead_letters


async def test_a_replica_is_left_for_the_next_server(server_kind: Kind, postgres: str) -> None:
    """A connection to a server that is read-only is not used again: sessions keep what the
    database said when they began, as connections stay with a server that was demoted."""
    place = Place(postgres)
    name = conninfo_to_dict(postgres)["dbname"]

    def set_read_only(value: str) -> None:
        with psycopg.connect(postgres, autocommit=True) as server:
            server.execute("SET default_transaction_read_only = off")
            server.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'.encode()
            )

    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)
    processor = declared(
        app, topic, server_kind.make(postgres), server_kind.handler(lambda message: None, by_id)
    )
    async with harness(app) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        set_read_only("on")
        with psycopg.connect(postgres, autocommit=True) as server:
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for number in range(1, 6):
            await topic.publish(number, id=f"m{number}")
        await outage_is_waited_out(h, processor, lambda: set_read_only("off"))
    assert place.effects() == {f"m{number}": 1 for number in range(6)}


# -- SQLite


class SmallFile:
    """A SQLite file that may have so many pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pages = 1_000_000

    def limit(self, connection: Any, *_: object) -> None:
        """Of a new connection, by whatever library."""
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {self.pages}")
        cursor.close()

    def fill(self) -> None:
        """There is no room any more."""
        with closing(sqlite3.connect(self.path)) as connection:
            (self.pages,) = connection.execute("PRAGMA page_count").fetchone()

    def database(self, kind: Kind) -> Database[Any]:
        if kind.name == "sqlite":

            def connect() -> sqlite3.Connection:
                connection = sqlite3.connect(self.path, check_same_thread=False)
                self.limit(connection)
                return connection

            return Sqlite(connect)
        from sqlalchemy import NullPool, create_engine, event
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
        from sqlalchemy.orm import sessionmaker

        if kind.asynchronous:
            engine = create_async_engine(f"sqlite+aiosqlite:///{self.path}", poolclass=NullPool)
            event.listen(engine.sync_engine, "connect", self.limit)
            return SQLAlchemy(async_sessionmaker(engine))
        plain = create_engine(f"sqlite:///{self.path}", poolclass=NullPool)
        event.listen(plain, "connect", self.limit)
        return SQLAlchemy(sessionmaker(plain))


class OrderFailed(Exception):
    """A handler's own, around what the driver said."""


def wrapping(kind: Kind, handler: Any) -> Any:
    """The same handler, with errors of its own."""

    async def handle_async(value: Any, message: Any) -> None:
        try:
            await handler(value, message)
        except Exception as error:
            raise OrderFailed from error

    def handle_plain(value: Any, message: Any) -> None:
        try:
            handler(value, message)
        except Exception as error:
            raise OrderFailed from error

    return handle_async if kind.asynchronous else handle_plain


LONG = "x" * 20_000
"""Takes pages of its own."""


@pytest.mark.parametrize("where", ["take", "handler", "handler that wraps"])
async def test_a_file_without_room_is_waited_for(
    file_kind: Kind, where: str, tmp_path: Path
) -> None:
    file = SmallFile(tmp_path / "effects.db")
    place = Place(str(file.path))
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)
    handler = file_kind.handler(
        lambda message: None,
        by_id if where == "take" else lambda message: message.id + LONG * message.value,
    )
    processor = declared(
        app, topic, file.database(file_kind),
        wrapping(file_kind, handler) if where == "handler that wraps" else handler,
    )  # fmt: skip
    async with harness(app) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        file.fill()
        # What is open has no limit yet: the next connection has.
        inbox: Any = processor.inbox
        for connection in getattr(inbox.database, "_free", []):
            file.limit(connection)
        for number in range(1, 5):
            await topic.publish(1, id=f"m{number}" + (LONG if where == "take" else ""))
        await outage_is_waited_out(h, processor, lambda: setattr(file, "pages", 1_000_000))
    assert sorted(each[:2] for each in place.effects()) == [f"m{number}" for number in range(5)]
    assert set(place.effects().values()) == {1}


# -- another database that a handler uses


def full_server(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$")


def full_file(path: str) -> None:
    with closing(sqlite3.connect(f"{path}-other")) as other:
        other.execute("CREATE TABLE IF NOT EXISTS full (value)")
        other.execute("PRAGMA max_page_count = 2")
        other.execute("INSERT INTO full VALUES (?)", (LONG,))


async def test_anothers_lack_of_room_is_the_messages_failure(kind: Kind, place: Place) -> None:
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)

    def use_another(_: Any) -> None:
        if kind.server:
            full_server(place.place)
        else:
            full_file(place.place)

    processor = app.processor(
        topic, group="g", transaction=kind.make(place.place),
        retry=Retry(attempts=3, delay=0.001),
    )(kind.handler(use_another, by_id))  # fmt: skip
    async with harness(app) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        stats = processor.stats()
        assert stats is not None
        assert (stats.dead_letters, stats.retries) == (1, 2)
        assert processor.inbox is not None
        assert processor.inbox.stats.reachable
    assert place.effects() == {}


# -- a handler that goes on after such an error


async def test_what_a_file_without_room_rolled_back_is_not_taken_for_committed(
    file_kind: Kind, tmp_path: Path
) -> None:
    """SQLite ends the transaction by itself, and a driver's commit then does nothing."""
    file = SmallFile(tmp_path / "effects.db")
    place = Place(str(file.path))
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)

    async def swallow_async(value: int, message: Message[int, Any]) -> None:
        await file_kind.write(message.transaction, message.id, value)
        if value:
            with pytest.raises(Exception, match="full"):
                await file_kind.write(message.transaction, LONG, value)

    def swallow_plain(value: int, message: Message[int, Any]) -> None:
        file_kind.write(message.transaction, message.id, value)
        if value:
            with pytest.raises(Exception, match="full"):
                file_kind.write(message.transaction, LONG, value)

    processor = app.processor(
        topic, group="g", transaction=file.database(file_kind), retry=Retry(attempts=1)
    )(swallow_async if file_kind.asynchronous else swallow_plain)
    if file_kind.name == "sqlite":  # it cannot be told from a handler's own ROLLBACK
        with pytest.raises(ProcessorDied, match="or SQLite rolled back"):
            await _handle_in(app, topic, processor, file)
    else:
        await _handle_in(app, topic, processor, file)
    assert place.effects() == {"m0": 1}


async def _handle_in(
    app: Streams, topic: Topic[int], processor: Processor[..., Any], file: SmallFile
) -> None:
    async with harness(app) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        file.fill()
        inbox: Any = processor.inbox
        for connection in getattr(inbox.database, "_free", []):
            file.limit(connection)
        await topic.publish(1, id="m1")
        await h.settled()
        (letter,) = await h.dead(topic, "g")
        assert "SwallowedError" in letter.headers["__streams.errors.exception"]
