"""What a Debezium that is real makes of an outbox, with the configuration that is shipped for it.

A long run: it takes a PostgreSQL with ``wal_level=logical`` and a Kafka Connect of its own, whose
jars are fetched once.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec import Struct

import streams.outbox
from streams import Message, Streams
from streams.outbox import Outbox
from tests.outbox.world import until
from tests.servers.debezium import Debezium
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import Lifetime
from tests.servers.postgres import Postgres, database

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SHIPPED = Path(streams.outbox.__file__).parent / "debezium.json"
KEYS = 7


class Order(Struct, frozen=True):
    key: str
    number: int


@pytest.fixture(scope="module")
def logical(lifetime: Lifetime) -> Iterator[str]:
    """A PostgreSQL whose log can be read by others."""
    with Postgres(lifetime, {"wal_level": "logical"}) as server:
        yield server.url


@contextmanager
def connector(
    lifetime: Lifetime, kafka: KafkaAddress, dsn: str, **options: Any
) -> Iterator[Debezium]:
    """Debezium as it is shipped, and its slot removed at the end."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    with Debezium(lifetime, kafka.bootstrap, dsn, shipped, **options) as debezium:
        yield debezium
    with psycopg.connect(dsn, autocommit=True) as connection:
        # The server may not have noticed yet that whoever read it was killed.
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 30000) FROM pg_replication_slots "
            "WHERE active AND database = current_database()"
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE database = current_database()"
        )


async def test_each_message_once_and_in_the_order_of_its_key_though_it_is_killed(
    logical: str, kafka: KafkaAddress, lifetime: Lifetime
) -> None:
    choose = random.Random(17)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    written: defaultdict[str, list[int]] = defaultdict(list)
    with database(logical) as dsn:
        app = Streams(kafka.url)
        orders = app.topic(f"orders-{uuid4().hex}", Order, key="key", partitions=3)
        outbox = Outbox(app, dsn, relayed_by="debezium")
        await outbox.create_tables()

        @app.processor(orders, group="g")
        async def note(order: Order) -> None:
            seen[order.key].append(order.number)

        async def write(connection: Any, transactions: int, first: int) -> None:
            for number in range(first, first + transactions):
                key = f"k{choose.randrange(KEYS)}"
                order = Order(key, number)
                await outbox.publish(orders, order, connection=connection, id=f"m{number}")
                if choose.random() < 0.2:
                    await connection.rollback()
                else:
                    await connection.commit()
                    written[key].append(number)

        async with app:
            # It notes how far it is once in an hour: all comes again after each kill.
            with connector(lifetime, kafka, dsn, flush_ms=3_600_000) as debezium:
                async with await psycopg.AsyncConnection.connect(dsn) as connection:
                    for life in range(4):
                        if life:
                            await asyncio.to_thread(debezium.kill)
                            await write(connection, 100, 1_000 * life)  # while it is away
                            await asyncio.to_thread(debezium.start)
                        await write(connection, 100, 1_000 * life + 500)
                        await until(lambda: seen == written, lambda: (seen, written))
                    rows = await connection.execute("SELECT 1 FROM outbox")
                    assert not await rows.fetchall()
            stats = app.processors[0].stats()
    assert stats is not None
    assert stats.duplicates > 0  # it did send some again


async def test_what_becomes_of_keys_values_ids_and_headers(
    logical: str, kafka: KafkaAddress, lifetime: Lifetime
) -> None:
    with database(logical) as dsn:
        app = Streams(kafka.url)
        name = uuid4().hex
        raw = app.topic(f"raw-{name}", bytes, partitions=1)
        maybe = app.topic(f"maybe-{name}", Order | None, key="key", partitions=1)
        outbox = Outbox(app, dsn, relayed_by="debezium")
        await outbox.create_tables()
        found: list[Message[Any]] = []

        @app.processor(raw, group="g")
        async def note(value: bytes, message: Message[bytes]) -> None:
            found.append(message)

        @app.processor(maybe, group="g")
        async def note_too(value: Order | None, message: Message[Order | None]) -> None:
            found.append(message)

        async with app:
            with connector(lifetime, kafka, dsn):
                async with await psycopg.AsyncConnection.connect(dsn) as connection:
                    sent: list[tuple[bytes, dict[str, Any]]] = [
                        (b"\x00\xff", {"id": "a", "headers": {"source": "test"}}),
                        (b"", {"id": "b", "key": "text"}),
                        (b"x" * 900_000, {"id": "c", "key": b"\xfe\x00"}),
                    ]
                    for value, options in sent:
                        await outbox.publish(raw, value, connection=connection, **options)
                    await outbox.publish(maybe, Order("k", 1), connection=connection, id="d")
                    await outbox.publish(maybe, None, key="k", connection=connection, id="e")
                    await connection.commit()
                await until(lambda: len(found) == 5, lambda: found)
    by_id = {each.id: each for each in found}
    assert {id: each.value for id, each in by_id.items()} == {
        "a": b"\x00\xff", "b": b"", "c": b"x" * 900_000, "d": Order("k", 1), "e": None,
    }  # fmt: skip
    # As the page says: without a key it is the row's, and one that is no text is in digits.
    assert [by_id[id].raw.key for id in "bcde"] == [b"text", b"fe00", b"k", b"k"]
    assert str(UUID(by_id["a"].key)) == by_id["a"].key
    assert "source" not in by_id["a"].headers  # headers of the row's own are not sent
