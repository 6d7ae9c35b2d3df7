"""The cost of the inbox: a processor with ``transaction=`` beside loops by hand that record each
message in the same transaction.

All read the same topic of Kafka in a new group and add each order to its customer's account in a
PostgreSQL of this process's own (without fsync, so that the disk is not what is measured), one
UPDATE a message at 64 at once, or one for each batch of 500. A loop has no order of keys, no
retries and no purging; it commits its offsets when all that was polled is done.

One loop does the same transaction: it records messages with the inbox's own statement, in rows that
can be purged, so that everything around the transaction is compared. The other one
keeps a bare table of message IDs, from which no row can ever be deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import psycopg
from confluent_kafka import Consumer
from confluent_kafka import Message as KafkaMessage
from psycopg_pool import AsyncConnectionPool

from benchmarks import baseline
from benchmarks.counting import MessageCounter
from benchmarks.orders import KEYS, PARTITIONS, Order, customer
from benchmarks.ours import Answer, run, wait_done
from streams import AsyncPsycopg, Message, Streams
from streams.inbox.tables import ddl
from tests.servers import find
from tests.servers.lifetime import Lifetime

CONCURRENCY = 64
BATCH = 500

UPDATE = "UPDATE accounts SET cents = cents + %s WHERE id = %s"
UPDATE_MANY = (
    "UPDATE accounts AS a SET cents = a.cents + n.cents FROM "
    "(SELECT id, sum(cents) AS cents FROM unnest(%s::text[], %s::int[]) AS e (id, cents) "
    "GROUP BY id) AS n WHERE a.id = n.id"
)
INSERT = "INSERT INTO seen (id) VALUES (%s) ON CONFLICT DO NOTHING"
INSERT_MANY = "INSERT INTO seen (id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING RETURNING id"
TAKE = "SELECT streams_inbox_take(%s, %s, %s, %s, %s, %s, %s, %s)"
NONE_CAME_BACK = ("", "")
TIMEOUTS = ("10000", "10000")
"""Timeouts in milliseconds: of a statement for a lock, and between two statements."""

_lifetime = Lifetime()


@lru_cache(maxsize=1)
def _server() -> str:
    return find.postgres(_lifetime).url


def _database() -> str:
    """Create a database with accounts; returns its DSN."""
    name = f"bench_{uuid4().hex[:12]}"
    create: Any = f"CREATE DATABASE {name}"
    with psycopg.connect(_server(), autocommit=True) as connection:
        connection.execute(create)
    dsn = _server().rpartition("/")[0] + f"/{name}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE accounts (id text PRIMARY KEY, cents bigint NOT NULL)")
        connection.execute("CREATE TABLE seen (id text PRIMARY KEY)")
        connection.execute(
            "INSERT INTO accounts SELECT 'customer-' || lpad(n::text, 7, '0'), 0 "
            "FROM generate_series(0, %s) AS n",
            (KEYS - 1,),
        )
        connection.execute("VACUUM ANALYZE accounts")
    return dsn


def _cents(value: Order) -> int:
    return round(value.amount * 100)


def inbox(url: str, topic: str, messages: int, batch: bool = False) -> Answer:
    """A processor with ``transaction=AsyncPsycopg(dsn)``."""
    counter = MessageCounter(messages, skip=BATCH)
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer)
    database = AsyncPsycopg(_database())
    group = f"bench-{uuid4().hex}"
    if batch:

        @app.processor(orders, group=group, batch=BATCH, transaction=database)
        async def add_many(values: list[Order], messages: list[Message[Order, Any]]) -> None:
            await messages[0].transaction.execute(
                UPDATE_MANY, ([each.customer for each in values], list(map(_cents, values)))
            )
            counter.count_batch(values)

    else:

        @app.processor(orders, group=group, concurrency=CONCURRENCY, transaction=database)
        async def add(value: Order, message: Message[Order, Any]) -> None:
            await message.transaction.execute(UPDATE, (_cents(value), value.customer))
            counter.count_one()

    async def main() -> None:
        async with app:
            await wait_done(counter.done, app)

    run(main)
    return counter.result


class _Polled(NamedTuple):
    """A message in the form of a loop by hand."""

    id: str
    partition: int
    offset: int
    value: bytes


class _BareTable:
    """Records messages in a table of their IDs."""

    async def take(self, connection: Any, polled: _Polled) -> bool:
        """Record a message; returns whether it was new."""
        done = await connection.execute(INSERT, (polled.id,))
        return bool(done.rowcount)

    async def take_all(self, connection: Any, found: Sequence[_Polled]) -> list[_Polled]:
        """Record these messages; returns the new ones."""
        done = await connection.execute(INSERT_MANY, ([each.id for each in found],))
        new = {row[0] for row in await done.fetchall()}
        return [each for each in found if each.id in new]


class _InboxTables:
    """Records messages as the inbox does, with its statement."""

    async def take(self, connection: Any, polled: _Polled) -> bool:
        """As :meth:`_BareTable.take`."""
        return bool(await self.take_all(connection, [polled]))

    async def take_all(self, connection: Any, found: Sequence[_Polled]) -> list[_Polled]:
        """As :meth:`_BareTable.take_all`."""
        parameters = (
            ",".join([(b"%08d" % each.partition + each.id.encode()).hex() for each in found]),
            ",".join([str(each.partition) for each in found]),
            ",".join([str(each.offset) for each in found]),
            ",".join(["0"] * len(found)),
            *NONE_CAME_BACK,
            *TIMEOUTS,
        )
        done = await connection.execute(TAKE, parameters)
        verdicts = (await done.fetchone())[0]
        return [each for each, verdict in zip(found, verdicts, strict=True) if verdict == "0"]


def inbox_by_hand(
    url: str, topic: str, messages: int, batch: bool = False, bare: bool = False
) -> Answer:
    """A consumer, 64 tasks and a pool; a transaction for each message, or for each batch.

    :param bare: keep a table of message IDs, and not the inbox's rows.
    """
    counter = MessageCounter(messages, skip=BATCH)
    consumer = Consumer(
        {
            **baseline.KAFKA_CONSUMER,
            "bootstrap.servers": url.partition("://")[2].partition("?")[0],
            "group.id": f"by-hand-{uuid4().hex}",
        }
    )
    decode = msgspec.json.Decoder(Order).decode
    dsn = _database()
    if not bare:
        _make_inbox_tables(dsn)
    table = _BareTable() if bare else _InboxTables()

    def polled_of(message: KafkaMessage) -> _Polled:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        headers: Any = message.headers()
        id = f"{topic}/{partition}/{offset}"
        for name, value in headers or ():
            if name == "ce_id":
                id = value.decode()
        return _Polled(id, partition, offset, message.value() or b"")

    async def one(pool: AsyncConnectionPool[Any], polled: _Polled) -> None:
        value = decode(polled.value)
        async with pool.connection() as connection:
            if await table.take(connection, polled):
                await connection.execute(UPDATE, (_cents(value), value.customer))
        counter.count_one()

    async def all_of(pool: AsyncConnectionPool[Any], found: Sequence[_Polled]) -> None:
        async with pool.connection() as connection:
            new = await table.take_all(connection, found)
            values = [decode(each.value) for each in new]
            await connection.execute(
                UPDATE_MANY, ([each.customer for each in values], list(map(_cents, values)))
            )
        counter.count_batch(values)

    async def main() -> None:
        async with AsyncConnectionPool(dsn, min_size=0, max_size=CONCURRENCY) as pool:
            while not counter.done.is_set():
                received = await asyncio.to_thread(consumer.consume, BATCH, 1.0)
                found = [polled_of(each) for each in received if each.error() is None]
                if not found:
                    continue
                if batch:
                    await all_of(pool, found)
                else:
                    rest = iter(found)

                    async def worker(rest: Any = rest) -> None:
                        for each in rest:
                            await one(pool, each)

                    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
                consumer.commit(asynchronous=True)

    consumer.subscribe([topic])
    try:
        run(main)
    finally:
        consumer.close()
    return counter.result


def _make_inbox_tables(dsn: str) -> None:
    tables: Any = ddl("postgresql")
    with psycopg.connect(dsn) as connection:
        connection.execute(tables)
        connection.execute(
            "INSERT INTO streams_inbox_marks (scope, incarnation, group_name, generation, topic, "
            "partition, mark) SELECT n, '', '', 0, '', n, 0 FROM generate_series(0, %s) AS n",
            (PARTITIONS - 1,),
        )


TASKS: dict[str, Callable[..., Answer]] = {"inbox": inbox, "inbox_by_hand": inbox_by_hand}
