"""The cost of an outbox: relaying rows beside publishing them, and from a commit to the handler.

Each function is a task of a worker process (:mod:`benchmarks.worker`). The rows are those of the
orders that the other cases publish, written before anything is measured.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.counting import percentiles
from benchmarks.orders import PARTITIONS, Order, customer, order
from benchmarks.ours import Answer, run, wait_done
from streams import Streams
from streams.outbox import Outbox

RATE = 200
"""Commits per second, when their latency is measured."""
SKIP = 100
"""The first commits of those, which are a warm-up."""


def _connect(database: str, *, any_thread: bool = False) -> Any:
    if database.startswith("sqlite:///"):
        path = database.removeprefix("sqlite:///")
        return sqlite3.connect(path, timeout=30, check_same_thread=not any_thread)
    return psycopg.connect(database)


def _prepare(database: str) -> None:
    """Set up a SQLite file as docs/outbox.md advises."""
    if database.startswith("sqlite:///"):
        with closing(_connect(database)) as connection:
            connection.execute("PRAGMA journal_mode = wal")


def relay(url: str, database: str, messages: int) -> Answer:
    """Relay rows of one transaction to a new topic, from its commit until all of them are
    confirmed and deleted; the relay runs before."""
    app = Streams(url)
    topic = app.topic(f"relayed-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)
    table = f"outbox_{uuid4().hex[:8]}"
    outbox = Outbox(app, database, table=table, relayed_by="command")
    first = outbox.tables.outbox

    def fill(connection: Any) -> None:
        for number in range(messages):
            outbox.publish_sync(topic, order(number), connection=connection)

    def is_empty(connection: Any) -> bool:
        found = connection.execute(f"SELECT 1 FROM {first} LIMIT 1").fetchall()
        connection.rollback()
        return not found

    async def main() -> float:
        _prepare(database)
        await outbox.create_tables()
        connection = await asyncio.to_thread(partial(_connect, database, any_thread=True))
        async with app.connected():
            await topic.publish_many([order(0)])  # open the connections
            task = asyncio.create_task(outbox.relay())
            while not outbox.stats().buckets:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await asyncio.to_thread(fill, connection)
            await asyncio.to_thread(connection.commit)
            began = time.perf_counter()
            while outbox.stats().relayed < messages or not await asyncio.to_thread(  # noqa: ASYNC110
                is_empty, connection
            ):
                await asyncio.sleep(0.005)
            taken = time.perf_counter() - began
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            connection.close()
            return messages / taken

    try:
        return {"rate": run(main)}
    finally:
        _drop(database, outbox)


def _drop(database: str, outbox: Outbox) -> None:
    tables = outbox.tables
    with closing(_connect(database)) as connection:
        for each in (tables.outbox, tables.relays, tables.buckets):
            connection.execute(f"DROP TABLE IF EXISTS {each}")
        connection.commit()


def commit_to_handler(url: str, database: str, messages: int) -> Answer:
    """Latency from the commit call to the handler's start, at :data:`RATE` commits a second."""
    app = Streams(url)
    topic = app.topic(f"committed-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)
    outbox = Outbox(app, database, table=f"outbox_{uuid4().hex[:8]}")
    count = messages + SKIP
    committed: list[float] = []
    handled: dict[str, float] = {}
    all_handled = threading.Event()

    async def handle(value: Order) -> None:
        handled.setdefault(value.order_id, time.perf_counter())
        if len(handled) == count:
            all_handled.set()

    app.processor(topic, group=f"bench-{uuid4().hex}", concurrency=64)(handle)

    def write() -> None:
        with closing(_connect(database)) as connection:
            begin = time.perf_counter()
            for number in range(count):
                left = begin + number / RATE - time.perf_counter()
                if left > 0:
                    time.sleep(left)
                outbox.publish_sync(topic, order(number), connection=connection)
                committed.append(time.perf_counter())
                connection.commit()

    async def main() -> None:
        _prepare(database)
        await outbox.create_tables()
        async with app:
            await asyncio.to_thread(write)
            await wait_done(all_handled, app)

    run(main)
    _drop(database, outbox)
    taken = [
        (handled[order(number).order_id] - committed[number]) * 1000
        for number in range(SKIP, count)
    ]
    found = {name: round(value, 3) for name, value in percentiles(taken).items()}
    return {"p50": found["p50"], "p99": found["p99"], "quantiles": found}


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task for task in (relay, commit_to_handler)
}
