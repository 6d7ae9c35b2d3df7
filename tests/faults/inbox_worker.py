"""A worker of the inbox's fault runs: handlers that write one row each, in their transaction.

``python -m tests.faults.inbox_worker URL TOPIC GROUP DATABASE PLACE [TARGET]``: what is handled is
in the database, so nothing else is written down. With a target, what each handler returns
goes there through an outbox that the workers relay. Rows are purged as soon as they may be, several
times a second, so that a worker that thaws comes upon purged ones.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from typing import Any
from zlib import crc32

from streams import AsyncPsycopg, Database, Message, Outbox, Reject, Retry, Sqlite, Streams
from streams.derived_records import GENERATION, message_generation, redrives_of
from streams.inbox import purging

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
INSERT = (
    "INSERT INTO effects (generation, id, key, value, redrive, worker) VALUES "
    "({0}, {0}, {0}, {0}, {0}, {0})"
)

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


def build(
    url: str, topic: str, group: str, database: str, place: str, target: str | None = None
) -> Streams:
    """The app: ``database`` is ``single``, ``batch`` (of a DSN) or ``sqlite`` (of a file)."""
    app = Streams(url)
    source = app.topic(topic, int)
    found: Database[Any]
    options: dict[str, Any] = {"group": group, "retry": Retry(attempts=5, delay=0.01)}
    declare: Any = app.processor
    if target is not None:
        options["to"] = app.topic(target, dict[str, Any], key="key")
    if database == "sqlite":
        found = Sqlite(place, keep=0)

        def handle_plain(value: int, message: Message[int, sqlite3.Connection]) -> Any:
            message.transaction.execute(INSERT.format("?"), row_of(value, message))
            return result_of(value, message)

        declare(source, concurrency=8, transaction=found, **options)(handle_plain)

    elif database == "single":
        found = AsyncPsycopg(place, keep=0)

        async def handle(value: int, message: Message[int, Any]) -> Any:
            row = row_of(value, message)
            await message.transaction.execute(INSERT.format("%s"), row)
            if value % 20 == 0:
                await asyncio.sleep(0.005)
            return result_of(value, message)

        declare(source, concurrency=CONCURRENCY, transaction=found, **options)(handle)

    else:
        found = AsyncPsycopg(place, keep=0)

        async def handle_batch(values: list[int], messages: list[Message[int, Any]]) -> Any:
            rows = [row_of(*each) for each in zip(values, messages, strict=True)]
            async with messages[0].transaction.cursor() as cursor:
                await cursor.executemany(INSERT.format("%s"), rows)
            return list(map(result_of, values, messages))

        declare(source, concurrency=8, batch=BATCH, transaction=found, **options)(handle_batch)

    if target is not None:
        Outbox(app, found, lease=1.0, poll=0.2)
    return app


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    purging.PURGE_INTERVAL = 0.3
    build(*sys.argv[1:]).run()
