"""A worker of the inbox's fault runs: handlers that write one row each, in their transaction.

``python -m tests.faults.inbox_worker URL TOPIC GROUP DATABASE PLACE [TARGET] [--replay]``: what is
handled is in the database, so nothing else is written down. With a target, what each handler
returns goes there through an outbox that the workers relay. With ``--replay`` it replays the topic
into the handler instead, beside the group, and ends. Rows are purged as soon as they may be,
several times a second, so that a worker that thaws comes upon purged ones.

It takes orders on stdin, a line each, and ends when that does. ``freeze``: at the next message that
it is about to record, it says on stdout what the inbox calls that one (:class:`Frozen`) and stops
itself by SIGSTOP. ``disarm``: it does not do that any more, and says so, unless it has. ``below``:
it says how many messages were refused by their partition's mark. ``topics``: it says the topic of
each partition that it owns.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from zlib import crc32

from streams import (
    Asyncpg,
    AsyncPsycopg,
    Database,
    Django,
    Message,
    Outbox,
    Processor,
    Psycopg,
    Reject,
    Retry,
    SQLAlchemy,
    Sqlite,
    Streams,
)
from streams.derived_records import message_generation, redrives_of
from streams.inbox import handling, purging, recording
from streams.inbox.identity import Entry
from streams.inbox.inbox import Inbox
from streams.message import GENERATION
from streams.replay import replay

TABLE = """\
CREATE TABLE effects (
    number {serial},
    generation {big} NOT NULL,
    id text NOT NULL,
    key text NOT NULL,
    value integer NOT NULL,
    redrive integer NOT NULL,
    worker integer NOT NULL
)"""
_INSERT = "INSERT INTO effects (generation, id, key, value, redrive, worker) VALUES "
INSERT = _INSERT + "({0}, {0}, {0}, {0}, {0}, {0})"
NUMBERED_INSERT = _INSERT + "($1, $2, $3, $4, $5, $6)"
NAMED_INSERT = _INSERT + "(:generation, :id, :key, :value, :redrive, :worker)"

CONCURRENCY = 64
BATCH = 50


def is_poison(value: int) -> bool:
    """It is given up in the first generation, and handled once it was put back. (In a second one,
    what is put back once more would be a duplicate in the retry topic, by its redrive count.)"""
    return value % 199 == 7


def row_of(value: int, message: Message[int, Any]) -> tuple[Any, ...]:
    """The effect of a message.

    :raises Reject: it is given up.
    :raises ConnectionError: it fails now and then.
    """
    redrive = redrives_of(message.raw.headers)
    came_back = message.topic.endswith(".retry")
    header = message.header(GENERATION) if came_back else None
    generation = message_generation(header, message.assignment)
    if is_poison(value) and not redrive and not generation:
        raise Reject("not at first")
    if crc32(b"%d" % value) % 100 == 1 and message.attempt == 1:
        raise ConnectionError("now and then")
    return generation, message.id, message.key, value, redrive, os.getpid()


def result_of(value: int, message: Message[int, Any]) -> dict[str, Any]:
    """What is published for a message, where there is a target."""
    redriven = redrives_of(message.raw.headers) > 0
    return {"key": message.key, "value": value, "redriven": redriven}


def named_insert(row: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """The statement and its parameters, for SQLAlchemy."""
    from sqlalchemy import text

    names = "generation", "id", "key", "value", "redrive", "worker"
    return text(NAMED_INSERT), dict(zip(names, row, strict=True))


def sessions(place: str) -> Any:
    """Sessions of SQLAlchemy upon psycopg."""
    from sqlalchemy import create_engine
    from sqlalchemy.orm import sessionmaker

    url = place.replace("postgresql://", "postgresql+psycopg://")
    return sessionmaker(create_engine(url, pool_size=CONCURRENCY, max_overflow=2))


def async_sessions(place: str) -> Any:
    """Sessions of SQLAlchemy upon psycopg, for async handlers."""
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    url = place.replace("postgresql://", "postgresql+psycopg://")
    return async_sessionmaker(create_async_engine(url, pool_size=CONCURRENCY, max_overflow=2))


def set_up_django(place: str) -> None:
    """Django's settings, with this database as the default one."""
    import django  # type: ignore[import-untyped]
    from django.conf import settings  # type: ignore[import-untyped]

    found = urlsplit(place)
    database = {
        "ENGINE": "django.db.backends.postgresql", "NAME": found.path.lstrip("/"),
        "HOST": found.hostname, "PORT": found.port, "USER": found.username,
        "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True,
    }  # fmt: skip
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=[])
    django.setup()


class Worker(NamedTuple):
    """What runs in a worker."""

    app: Streams
    processor: Processor[..., Any]


def build(
    url: str, topic: str, group: str, database: str, place: str, target: str | None = None
) -> Worker:
    """The app: ``database`` is ``single``, ``batch`` (of a DSN, with async handlers), the same with
    ``plain-`` before it (with plain ones), ``asyncpg``, ``sqlalchemy``, ``plain-sqlalchemy``,
    ``plain-django`` (message by message, too), or ``sqlite`` (of a file)."""
    app = Streams(url)
    source = app.topic(topic, int)
    found: Database[Any]
    options: dict[str, Any] = {"group": group, "retry": Retry(attempts=5, delay=0.01)}
    declare: Any = app.processor
    if target is not None:
        options["to"] = app.topic(target, dict[str, Any], key="key")

    def handle_plain(value: int, message: Message[int, Any]) -> Any:
        mark = "?" if database == "sqlite" else "%s"
        message.transaction.execute(INSERT.format(mark), row_of(value, message))
        return result_of(value, message)

    async def handle(value: int, message: Message[int, Any]) -> Any:
        await message.transaction.execute(INSERT.format("%s"), row_of(value, message))
        if value % 20 == 0:
            await asyncio.sleep(0.005)
        return result_of(value, message)

    def handle_batch_plain(values: list[int], messages: list[Message[int, Any]]) -> Any:
        rows = [row_of(*each) for each in zip(values, messages, strict=True)]
        with messages[0].transaction.cursor() as cursor:
            cursor.executemany(INSERT.format("%s"), rows)
        return list(map(result_of, values, messages))

    async def handle_batch(values: list[int], messages: list[Message[int, Any]]) -> Any:
        rows = [row_of(*each) for each in zip(values, messages, strict=True)]
        async with messages[0].transaction.cursor() as cursor:
            await cursor.executemany(INSERT.format("%s"), rows)
        return list(map(result_of, values, messages))

    async def handle_by_asyncpg(value: int, message: Message[int, Any]) -> Any:
        await message.transaction.execute(NUMBERED_INSERT, *row_of(value, message))
        return result_of(value, message)

    async def handle_by_sqlalchemy(value: int, message: Message[int, Any]) -> Any:
        await message.transaction.execute(*named_insert(row_of(value, message)))
        return result_of(value, message)

    def handle_by_plain_sqlalchemy(value: int, message: Message[int, Any]) -> Any:
        message.transaction.execute(*named_insert(row_of(value, message)))
        return result_of(value, message)

    def handle_by_django(value: int, message: Message[int, Any]) -> Any:
        from django.db import connection  # type: ignore[import-untyped]

        with connection.cursor() as cursor:
            cursor.execute(INSERT.format("%s"), row_of(value, message))
        return result_of(value, message)

    function: Any
    if database == "sqlite":
        found, function = Sqlite(place, keep=0), handle_plain
    elif database == "asyncpg":
        # It does not read PGAPPNAME.
        name = quote(application_name(os.getpid()))
        found, function = Asyncpg(f"{place}?application_name={name}", keep=0), handle_by_asyncpg
    elif database == "sqlalchemy":
        found, function = SQLAlchemy(async_sessions(place), keep=0), handle_by_sqlalchemy
    elif database == "plain-sqlalchemy":
        found, function = SQLAlchemy(sessions(place), keep=0), handle_by_plain_sqlalchemy
    elif database == "plain-django":
        set_up_django(place)
        found, function = Django(keep=0), handle_by_django
    elif database.startswith("plain-"):
        found = Psycopg(place, keep=0)
        function = handle_batch_plain if database == "plain-batch" else handle_plain
    else:
        found = AsyncPsycopg(place, keep=0)
        function = handle_batch if database == "batch" else handle
    is_narrow = database == "sqlite" or database.endswith("batch")
    options["concurrency"] = 8 if is_narrow else CONCURRENCY
    if database.endswith("batch"):
        options["batch"] = BATCH
    processor = declare(source, transaction=found, **options)(function)
    if target is not None:
        Outbox(app, found, lease=1.0, poll=0.2)
    return Worker(app, processor)


class Frozen(NamedTuple):
    """A message that a worker was about to record when it stopped."""

    id: str
    """The row's, in hexadecimal."""
    scope: int
    position: int


class Freezer:
    """Stops this process at a message, when it was told to.

    On PostgreSQL that is in the message's transaction, before its first statement. On SQLite it is
    just before the transaction: one that is open there has the file, and nobody could go on.
    """

    def __init__(self, inbox: Inbox) -> None:
        self.armed = threading.Event()
        self._turn = threading.Lock()
        if isinstance(inbox.database, Sqlite):
            check_owned = inbox.partitions.check_owned

            def check(message: Message[Any]) -> None:
                check_owned(message)
                entry = inbox.identities.known_entry(message)
                # What is not begun yet, who thaws does not begin: he is not refused by a mark.
                if entry is not None and message.assignment in inbox.partitions.begun:
                    self._at([entry])

            inbox.partitions.check_owned = check  # type: ignore[method-assign]
        else:
            take = recording.take

            def take_or_stop(dialect: Any, entries: Sequence[Entry], timeouts: Any) -> Any:
                self._at(entries)
                return (yield from take(dialect, entries, timeouts))

            vars(handling)["take"] = take_or_stop

    def disarm(self) -> bool:
        """Stop at no message; whether it was still to stop at one."""
        with self._turn:
            was_armed = self.armed.is_set()
            self.armed.clear()
            return was_armed

    def _at(self, entries: Sequence[Entry]) -> None:
        entry = entries[0]
        if not self.armed.is_set() or entry.redrive:
            return
        with self._turn:
            if self.armed.is_set():
                self.armed.clear()
                say(Frozen(entry.id.hex(), entry.scope, entry.position))
                signal.raise_signal(signal.SIGSTOP)  # this thread goes no step further


def application_name(pid: int) -> str:
    """What PostgreSQL shows of a worker's connections."""
    return f"worker {pid}"


def say(what: object) -> None:
    """A line on stdout."""
    os.write(1, json.dumps(what).encode() + b"\n")


def _obey(freezer: Freezer, inbox: Inbox) -> None:
    with open(0, "rb", buffering=0, closefd=False) as orders:
        for order in orders:
            if order == b"freeze\n":
                freezer.armed.set()
            elif order == b"disarm\n":
                if freezer.disarm():
                    say("disarmed")
            elif order == b"below\n":
                say(inbox.stats.below_mark)
            elif order == b"topics\n":
                partitions = inbox.partitions
                say([each.topic for each in partitions.owned() if partitions.is_owned(each)])
    os._exit(1)


async def _replay(worker: Worker, topic: str) -> None:
    async with worker.app.connected():
        await replay(worker.app, topic, into=worker.processor)


def main(arguments: list[str]) -> None:
    os.environ["PGAPPNAME"] = application_name(os.getpid())
    worker = build(*[each for each in arguments if each != "--replay"])
    inbox = worker.processor.inbox
    assert isinstance(inbox, Inbox)
    freezer = Freezer(inbox)
    threading.Thread(target=_obey, args=(freezer, inbox), daemon=True).start()
    purging.PURGE_INTERVAL = 0.3
    if "--replay" in arguments:
        asyncio.run(_replay(worker, arguments[1]))
    else:
        worker.app.run()


if __name__ == "__main__":
    main(sys.argv[1:])
