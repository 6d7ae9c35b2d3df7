"""A database that cannot be reached, and one whose answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from streams import (
    Asyncpg,
    AsyncPsycopg,
    Database,
    Dedup,
    Message,
    Processor,
    Retry,
    SQLAlchemy,
    Sqlite,
    Streams,
)
from streams.inbox.inbox import Inbox
from streams.inbox.partitions import Partitions
from streams.inbox.recording import Timeouts
from streams.inbox.reruns import RUNS_IN_PLACE
from streams.processing.outcomes import TransactionPostponed
from streams.testing import harness
from tests.inbox.kinds import KINDS, Kind, Place
from tests.servers.lifetime import Lifetime, until
from tests.servers.postgres import Postgres


@pytest.fixture(scope="module")
def own(lifetime: Lifetime) -> Postgres:
    server = Postgres(lifetime)
    server.start()
    return server


async def eventually(ready: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, ready, 60, what)


def set_for_new_connections(url: str, name: str, value: str) -> None:
    """A setting of a database; its connections are ended."""
    with psycopg.connect(url, autocommit=True) as server:
        database = server.info.dbname
        server.execute(f"ALTER DATABASE \"{database}\" SET {name} = '{value}'".encode())
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_while_it_is_down_the_processor_waits_and_no_attempt_is_used(
    server_kind: Kind, own: Postgres
) -> None:
    if not own.process.alive:
        own.restart()
    place = Place(own.url)
    try:
        app = Streams(f"memory://{uuid4().hex}")
        topic = app.topic("numbers", int)
        processor = app.processor(
            topic, group=uuid4().hex, concurrency=8, transaction=server_kind.make(own.url),
            retry=Retry(attempts=1),
        )(server_kind.handler(lambda message: None, lambda message: message.id))  # fmt: skip
        async with harness(app) as h:
            await topic.publish(0, id="m0")
            await h.settled()
            own.kill()
            for number in range(1, 40):
                await topic.publish(number, id=f"m{number}")
            inbox = processor.inbox
            assert inbox is not None
            await eventually(lambda: not inbox.stats.reachable, "it waits for the database")
            own.restart()
            await h.settled(within=120)
            assert inbox.stats.reachable
            stats = processor.stats()
            assert stats is not None
            assert (stats.dead_letters, stats.retries) == (0, 0)
        assert place.effects() == {f"m{number}": 1 for number in range(40)}
    finally:
        place.execute("DROP TABLE effects")


@pytest.mark.parametrize("library", KINDS[:2], ids=lambda kind: str(kind.name))
@pytest.mark.parametrize("concurrency", [1, 64])
async def test_an_app_that_stops_does_not_wait_for_its_database(
    own: Postgres, library: Kind, concurrency: int
) -> None:
    """Nor do handlers, one after the other."""
    if not own.process.alive:
        own.restart()
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int)
    processor = app.processor(
        topic, group="g", concurrency=concurrency,
        transaction=library.make(own.url.replace(str(own.port), "1")),
    )(library.handler(lambda message: None, lambda message: message.id))  # fmt: skip
    async with harness(app):
        for number in range(concurrency):
            await topic.publish(number, key=str(number), id=f"m{number}")
        inbox = processor.inbox
        assert inbox is not None
        await eventually(lambda: not inbox.stats.reachable, "it waits for the database")
        loop = asyncio.get_running_loop()
        began = loop.time()
    assert loop.time() - began < 25  # the drain deadline alone is 30 s


@contextlib.asynccontextmanager
async def losing_answers(url: str, lose: Callable[[], bool]) -> AsyncIterator[str]:
    """A proxy before the server: when ``lose`` says so, it hands a COMMIT on and ends the
    connection without its answer."""
    target = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        inner_reader, inner_writer = await asyncio.open_connection(target.hostname, target.port)
        lost = False

        async def answers() -> None:
            while data := await inner_reader.read(65536):
                if lost:
                    return
                writer.write(data)
                await writer.drain()
            writer.close()

        back = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                if b"COMMIT" in data.upper() and lose():
                    lost = True
                    inner_writer.write(data)
                    await back  # the server has answered
                    return
                inner_writer.write(data)
                await inner_writer.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            for each in (writer, inner_writer):
                each.close()
                with contextlib.suppress(ConnectionError):
                    await each.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield urlunsplit(target._replace(netloc=f"postgres@127.0.0.1:{port}"))
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_commit_whose_answer_is_lost_is_looked_up(server_kind: Kind, postgres: str) -> None:
    place = Place(postgres)
    lost = 0
    handling = False

    def lose() -> bool:
        nonlocal lost
        if handling and lost < 2:
            lost += 1
            return True
        return False

    calls: list[int] = []

    def begin(message: Any) -> None:
        nonlocal handling
        handling = True
        calls.append(message.value)

    async with losing_answers(postgres, lose) as url:
        app = Streams(f"memory://{uuid4().hex}")
        topic = app.topic("numbers", int)
        processor = app.processor(
            topic, group="g", transaction=server_kind.make(url), retry=Retry(attempts=1)
        )(server_kind.handler(begin, lambda message: message.id))  # fmt: skip
        async with harness(app) as h:
            for number in range(5):
                await topic.publish(number, id=f"m{number}")
            await h.settled()
            inbox = processor.inbox
            assert inbox is not None
            assert inbox.stats.duplicates == 2  # found when they were looked up
    assert lost == 2
    assert place.effects() == {f"m{number}": 1 for number in range(5)}
    assert len(calls) == 5


@pytest.mark.parametrize("library", [Asyncpg, AsyncPsycopg])
async def test_who_is_not_let_in_uses_up_no_attempt(library: Any, own: Postgres) -> None:
    """The role is not there yet. No message is to blame for what fails before it is handled."""
    if not own.process.alive:
        own.restart()
    role = f"late_{uuid4().hex[:8]}"
    address = urlsplit(own.url)
    url = urlunsplit(address._replace(netloc=f"{role}@{address.hostname}:{address.port}"))
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    @app.processor(topic, group=uuid4().hex, transaction=library(url), retry=Retry(attempts=1))
    async def handle(value: int, message: Message[int, Any]) -> None:
        handled.append(value)

    place = Place(own.url)
    try:
        async with harness(app) as h:
            await topic.publish_many(range(3))
            inbox = handle.inbox
            assert inbox is not None
            await eventually(lambda: not inbox.stats.reachable, "it waits to be let in")
            assert handled == []
            place.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
            await h.settled(within=120)
            stats = handle.stats()
            assert stats is not None
            assert (stats.handled, stats.dead_letters, stats.retries) == (3, 0, 0)
    finally:
        place.execute("DROP TABLE IF EXISTS effects")


async def test_a_handlers_timeout_is_none_of_the_database(own: Postgres) -> None:
    """Waiting for a connection takes longer than the handler may: that is no failed attempt."""
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    nowhere = own.url.replace(str(own.port), "1")

    @app.processor(
        topic, group="g", transaction=AsyncPsycopg(nowhere), timeout=4.0,
        retry=Retry(attempts=100, delay=0.01),
    )  # fmt: skip
    async def handle(value: int, message: Message[int, Any]) -> None: ...

    async with app:
        await topic.publish(1)
        inbox: Any = handle.inbox
        postponed = _count_postponed(inbox)
        await eventually(lambda: len(postponed) >= 2 or _retries(handle) > 0, "it is tried again")
        assert _retries(handle) == 0
        assert not inbox.stats.reachable


async def test_a_handlers_timeout_is_not_used_up_by_waiting_for_a_row(
    postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a frozen owner's transaction, say: the message comes again, and that is no failed attempt.
    Nor is it an outage."""
    monkeypatch.setattr("streams.inbox.handling.PATIENCE_WITH_TIMEOUT", 3.0)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    @app.processor(topic, group="g", transaction=AsyncPsycopg(postgres), timeout=20.0)
    async def handle(value: int, message: Message[int, Any]) -> None:
        handled.append(value)

    async with app:
        await topic.publish(1)
        await eventually(lambda: handled == [1], "the tables are there")
        postponed = _count_postponed(handle.inbox)
        async with await psycopg.AsyncConnection.connect(postgres) as other:
            await other.execute("LOCK TABLE streams_inbox")
            await topic.publish(2)
            await eventually(lambda: bool(postponed) or _retries(handle) > 0, "it comes again")
        await eventually(lambda: handled == [1, 2], "it is handled")
        assert _retries(handle) == 0
    assert "waiting for its database" not in caplog.text


def _count_postponed(inbox: Any) -> list[TransactionPostponed]:
    """What an inbox raises from now on instead of beginning a transaction."""
    found: list[TransactionPostponed] = []
    begin = inbox.transactions.begin

    def counted(*args: Any, **options: Any) -> Any:
        try:
            return (yield from begin(*args, **options))
        except TransactionPostponed as error:
            found.append(error)
            raise

    inbox.transactions.begin = counted
    return found


def _retries(handle: Any) -> int:
    stats = handle.stats()
    return 0 if stats is None else int(stats.retries)


async def test_a_file_that_another_process_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.databases.sqlite_database.BUSY_TIMEOUT", 0.01)
    file = tmp_path / "a.db"
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    @app.processor(topic, group="g", transaction=Sqlite(file), retry=Retry(attempts=1))
    def handle(value: int, message: Message[int, sqlite3.Connection]) -> None:
        handled.append(value)

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await topic.publish(2)
        inbox = handle.inbox
        assert inbox is not None
        await eventually(lambda: not inbox.stats.reachable, "health tells")
        other.execute("ROLLBACK")
        await h.settled(within=120)
        assert handled == [1, 2]
        assert inbox.stats.reachable
        other.close()


@pytest.mark.parametrize(
    ("name", "statement_timeout"),
    [
        ("psycopg", ""), ("asyncpg", ""), ("sqlalchemy-file", ""),
        ("psycopg", "200ms"), ("asyncpg", "200ms"),
    ],
)  # fmt: skip
async def test_a_lock_that_is_not_had_uses_up_no_attempt(
    name: str,
    statement_timeout: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handler was not called, however often that happens."""
    lock = 60.0 if statement_timeout else 0.05
    monkeypatch.setattr(Partitions, "timeouts", Timeouts(lock=lock, idle=60.0))
    database: Database[Any]
    if name == "sqlalchemy-file":
        file = str(tmp_path / "a.db")
        engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.01})
        database = SQLAlchemy(sessionmaker(engine))
    else:
        kind = next(each for each in KINDS if each.name == name)
        file = request.getfixturevalue("postgres")
        database = kind.make(file)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    def handle(value: int) -> None:
        handled.append(value)

    async def handle_async(value: int) -> None:
        handled.append(value)

    processor: Processor[..., Any] = app.processor(
        topic, group="g", transaction=database, retry=Retry(attempts=1)
    )(handle_async if database.asynchronous else handle)
    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        inbox = processor.inbox
        assert isinstance(inbox, Inbox)
        if statement_timeout:
            set_for_new_connections(file, "statement_timeout", statement_timeout)
        with contextlib.closing(
            sqlite3.connect(file, isolation_level=None)
            if name == "sqlalchemy-file"
            else psycopg.connect(file)
        ) as other:
            other.execute("BEGIN IMMEDIATE" if name == "sqlalchemy-file" else "LOCK streams_inbox")
            await topic.publish(2)
            await eventually(lambda: inbox.stats.reruns > 2 * RUNS_IN_PLACE, "it meets the lock")
        await h.settled(within=120)
        assert handled == [1, 2]
        stats = processor.stats()
        assert stats is not None
        assert (stats.dead_letters, stats.retries) == (0, 0)


async def test_what_is_known_already_does_not_wait_for_an_outage_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be written for it."""
    monkeypatch.setattr("streams.inbox.outage.LONGEST_TRIAL_PAUSE", 1e6)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    @app.processor(topic, group="g", transaction=Sqlite(tmp_path / "a.db"), dedup=Dedup(window=0))
    def handle(value: int) -> None:
        handled.append(value)

    async with harness(app) as h:
        records = [topic.record(number, id=f"m{number}") for number in range(12)]
        await app.publisher.publish_many(topic.name, records)
        await h.settled()
        inbox = handle.inbox
        assert isinstance(inbox, Inbox)
        inbox.reachability.note_unable(sqlite3.OperationalError("database or disk is full"))
        trials = inbox.reachability._trials
        assert trials is not None
        trials._pause = 1e6  # as after many of them
        trials._next = 0.0
        await app.publisher.publish_many(topic.name, records)
        await eventually(lambda: inbox.stats.duplicates == 12, "they are found to be known")
        assert not inbox.stats.reachable
        await topic.publish(12)
        await h.settled(within=120)
        assert inbox.stats.reachable
    assert handled == list(range(13))


# -- a message that is to blame itself


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_message_that_ends_its_connection_each_time_is_given_up(
    server_kind: Kind, swallows: bool, postgres: str
) -> None:
    """The database is there again each time. Others are handled. A handler that goes on all the
    same has committed nothing."""
    place = Place(postgres)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)
    calls: list[int] = []
    errors: Any = contextlib.suppress(Exception) if swallows else contextlib.nullcontext()
    end = "SELECT pg_terminate_backend(pg_backend_pid())"

    async def end_async(transaction: Any) -> None:
        with errors:
            await server_kind.execute(transaction, end)

    def end_connection(message: Any) -> Any:
        calls.append(message.value)
        if message.value != 1:
            return None
        if server_kind.asynchronous:
            return end_async(message.transaction)
        with errors:
            server_kind.execute(message.transaction, end)
        return None

    processor = app.processor(
        topic, group="g", transaction=server_kind.make(postgres),
        retry=Retry(attempts=2, delay=0.001),
    )(server_kind.handler(end_connection, lambda message: message.id))  # fmt: skip
    async with harness(app) as h:
        for number in range(3):
            await topic.publish(number, id=f"m{number}")
        await h.settled(within=120)
        stats = processor.stats()
        assert stats is not None
        assert (stats.dead_letters, stats.retries) == (1, 1)
    assert sorted(calls) == [0, *[1] * (2 * RUNS_IN_PLACE), 2]
    assert place.effects() == {"m0": 1, "m2": 1}


@pytest.mark.parametrize("name", ["psycopg", "async-psycopg"])
async def test_a_handler_that_closes_its_connection_fails(name: str, postgres: str) -> None:
    place, kind = Place(postgres), next(each for each in KINDS if each.name == name)
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)

    def close(message: Any) -> Any:
        return message.transaction.close() if message.value == 1 else None

    processor = app.processor(
        topic, group="g", transaction=kind.make(postgres), retry=Retry(attempts=1)
    )(kind.handler(close, lambda message: message.id))
    async with harness(app) as h:
        for number in range(3):
            await topic.publish(number, id=f"m{number}")
        await h.settled(within=120)
        stats = processor.stats()
        assert stats is not None
        assert stats.dead_letters == 1
    assert place.effects() == {"m0": 1, "m2": 1}


# -- what is no outage


async def test_a_handler_that_waits_for_another_ones_transaction_is_no_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A SQLite file has one transaction at a time, and this process has it."""
    monkeypatch.setattr("streams.databases.sqlite_database.BUSY_TIMEOUT", 0.01)
    begun, go_on, waited = threading.Event(), threading.Event(), list[int]()
    database = Sqlite(tmp_path / "a.db")
    app = Streams(f"memory://{uuid4().hex}")
    topic = app.topic("numbers", int, partitions=1)

    @app.processor(topic, group="g", transaction=database, concurrency=2)
    def handle(value: int, message: Message[int, sqlite3.Connection]) -> None:
        if value == 1:
            begun.set()
            assert go_on.wait(120)

    begin = database.begin

    def counted() -> Any:
        if begun.is_set():
            waited.append(1)
        return begin()

    monkeypatch.setattr(database, "begin", counted)
    async with harness(app) as h:
        await topic.publish(1, key="a")
        await asyncio.to_thread(begun.wait, 60)
        await topic.publish(2, key="b")
        await eventually(lambda: len(waited) > 3, "the other one waits, and waits again")
        assert handle.health().database_reachable
        go_on.set()
        await h.settled(within=120)
    assert "waiting for its database" not in caplog.text
