"""Relaying: in order, past whatever cannot be published, whatever else is open or fails."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest

from streams import NotFound, Topic
from streams.clock import SystemClock
from streams.databases.protocol import Statement, Steps
from streams.errors import TooLarge, Unavailable
from streams.outbox import databases, inspection
from streams.outbox.buckets import Buckets
from streams.outbox.databases import (
    AsyncpgDatabase,
    PostgresDatabase,
    PsycopgDatabase,
    RelayDatabase,
    SqliteDatabase,
)
from streams.outbox.groups import GroupPublisher, RowGroup
from streams.outbox.relay import RelayOptions, _RelaySession
from streams.outbox.tables import NO_PARAMETERS, ROW_BYTES, PostgresDialect, RelayRow, TableNames
from streams.testing import harness
from tests.docs.blocks import ROOT, blocks
from tests.outbox.world import PATIENCE, Order, Place, World, committing, running
from tests.servers.lifetime import Lifetime
from tests.servers.postgres import Postgres, database

pytestmark = pytest.mark.anyio

T = TypeVar("T")


def write(world: World, connection: Any, key: str, *numbers: int) -> None:
    for number in numbers:
        world.outbox.publish_sync(world.orders, Order(key, number), connection=connection)


def commit(world: World, place: Place, key: str, *numbers: int) -> None:
    with committing(place) as connection:
        write(world, connection, key, *numbers)


# -- order, and what is open meanwhile


@pytest.mark.parametrize("database", ["postgres"])
async def test_a_transaction_that_commits_late_is_not_passed_over(place: Place) -> None:
    """Its rows have smaller numbers than what was relayed long before."""
    async with running(place.dsn) as world:
        late = place.open()
        write(world, late, "late", 1, 2)
        for number in range(1, 4):
            commit(world, place, "other", number)
        await world.handle(3)
        assert world.of("late") == []
        late.commit()
        commit(world, place, "late", 3)  # began after that had committed
        await world.handle(6)
        assert world.of("late") == [1, 2, 3]
        assert world.of("other") == [1, 2, 3]


@pytest.mark.parametrize("database", ["sqlite"])
async def test_code_that_blocks_the_loop_never_waits_for_a_lock_that_the_loop_holds(
    place: Place,
) -> None:
    async with running(place.dsn, lease=0.1) as world:
        with closing(sqlite3.connect(place.path, timeout=30, isolation_level=None)) as connection:
            beat = 0
            while beat < 20:  # transactions of several statements, that the relay makes meanwhile
                connection.execute("BEGIN IMMEDIATE")
                ((beat,),) = connection.execute(
                    "SELECT coalesce(max(beat), 0) FROM outbox_relays"
                ).fetchall()
                connection.execute("COMMIT")
                await asyncio.sleep(0)
        commit(world, place, "a", 1)
        await world.handle(1)


async def test_rows_that_wait_when_the_relay_begins(place: Place) -> None:
    world = World(place.dsn, batch=7)
    for number in range(50):
        commit(world, place, f"k{number % 3}", number)
    async with world.app:
        await world.handle(50)
        assert [world.of(f"k{key}") for key in range(3)] == [
            [number for number in range(50) if number % 3 == key] for key in range(3)
        ]
        await world.until(lambda: not place.rows(), "the rows are deleted")


@pytest.mark.parametrize("database", ["postgres"])
async def test_open_transactions_stall_nothing(place: Place, postgres_server: Any) -> None:
    """Neither one in another database of the server, nor one here that has written."""
    with database(postgres_server.url) as elsewhere:
        async with running(place.dsn) as world:
            with psycopg.connect(elsewhere) as other:
                other.execute("CREATE TABLE t (x int)")
                other.execute("SELECT pg_current_xact_id()")
                here = place.open()
                write(world, here, "here", 1)
                commit(world, place, "a", 1, 2)
                await world.handle(2)
                assert world.of("a") == [1, 2]
                here.rollback()
                other.rollback()


async def test_a_missed_wake_is_caught_by_the_poll(place: Place) -> None:
    async with running(place.dsn, notify=False, poll=0.05) as world:
        commit(world, place, "a", 1)
        await world.handle(1)


async def test_memory_is_bounded_by_bytes(place: Place) -> None:
    """A batch is cut where it would have too many bytes; what is larger alone is taken alone."""
    async with running(place.dsn, batch_bytes=1000) as world:
        with committing(place) as connection:
            for size in (400, 400, 400, 5000, 10):
                world.outbox.publish_sync(world.raw, b"x" * size, connection=connection)
        await world.handle(5)
        assert sorted(map(len, world.values)) == [10, 400, 400, 400, 5000]


@pytest.mark.parametrize("database", ["sqlite"])
async def test_it_takes_no_thread_from_the_pool_that_everybody_shares(place: Place) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with running(place.dsn) as world:
        commit(world, place, "a", 1)
        await world.handle(1)
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: 7) == 7


# -- what cannot be published


def refuse(world: World, wrong: Any) -> None:
    """The log refuses records for which ``wrong`` gives an error."""
    log: Any = world.app.log
    append = log.append

    def refusing(topic: str, records: Any, on_result: Any) -> None:
        good = [record for record in records if wrong(topic, record) is None]
        answers: list[Any] = []
        if good:
            append(topic, good, answers.extend)
        found = iter(answers)
        on_result([wrong(topic, record) or next(found) for record in records])

    log.append = refusing


def large(topic: str, record: Any) -> Exception | None:
    return TooLarge("12 bytes are too many") if b"large" in (record.value or b"") else None


async def test_what_the_log_refuses_waits_with_its_key(place: Place) -> None:
    async with running(place.dsn) as world:
        log: Any = world.app.log
        refuse(world, large)
        with committing(place) as connection:
            write(world, connection, "a", 1)
            bad = await world.outbox.publish(
                world.orders, Order("a", 2, "large"), connection=connection
            )
        await world.until(lambda: [row[1] for row in place.rows()] == [1], "it is marked")
        commit(world, place, "a", 3)
        commit(world, place, "b", 1, 2)
        await world.handle(3)
        await world.until(lambda: [row[1] for row in place.rows()] == [1, 2], "what follows waits")
        commit(world, place, "a", 4)
        commit(world, place, "b", 3)
        await world.handle(4)
        assert world.of("a") == [1]
        assert world.of("b") == [1, 2, 3]

        found = await inspection.inspect_outbox(world.outbox, 10)
        await world.until(lambda: [row[1] for row in place.rows()] == [1, 2, 2], "this one, too")
        (row,) = found.rows
        assert (row.id, row.topic, row.key, row.error) == (
            bad,
            "orders",
            "a",
            "12 bytes are too many",
        )
        assert found.relays.number == 1

        del log.append  # the log takes it now
        assert await inspection.retry_rows(world.outbox, [bad]) == 1
        await world.handle(7)
        assert world.of("a") == [1, 2, 3, 4]
        await world.until(lambda: not place.rows(), "the rows are deleted")


async def test_a_large_row_is_the_last_of_its_key_in_a_batch(place: Place) -> None:
    """What is behind it is not in the log before it is known that it is there."""
    world = World(place.dsn)
    with committing(place) as connection:
        text = "large" * 10_000
        for key in ("a", "b"):
            write(world, connection, key, 1)
            world.outbox.publish_sync(world.orders, Order(key, 2, text), connection=connection)
            write(world, connection, key, 3)
    async with world.app:
        refuse(world, lambda topic, record: large(topic, record) if record.key == b"a" else None)
        await world.handle(4)
        await world.until(lambda: [row[1] for row in place.rows()] == [1, 2], "it waits")
    assert world.of("a") == [1]
    assert world.of("b") == [1, 2, 3]


async def test_what_was_read_meanwhile_does_not_overtake_what_was_refused(place: Place) -> None:
    """Groups of two rows: those behind the first are read while it is on its way."""
    async with running(place.dsn, batch=4) as world:
        refuse(world, large)
        with committing(place) as connection:
            world.outbox.publish_sync(world.orders, Order("a", 1, "large"), connection=connection)
            write(world, connection, "b", 1)
            write(world, connection, "a", 2, 3, 4)
        await world.until(
            lambda: [row[1] for row in place.rows()] == [1, 2, 2, 2] or world.of("a"), "they wait"
        )
        assert world.of("a") == []


async def test_what_was_read_meanwhile_does_not_overtake_what_was_kept_back(place: Place) -> None:
    """A large row is the last of its key in its group: the next of that has not been sent yet."""
    world = World(place.dsn, batch=4)
    with committing(place) as connection:
        for key in "abcd":
            world.outbox.publish_sync(
                world.orders, Order(key, 1, "large" * 10_000), connection=connection
            )
            write(world, connection, key, 2, 3)
    async with world.app:
        await world.handle(12)
    assert [world.of(key) for key in "abcd"] == [[1, 2, 3]] * 4


OUTBOX = ROOT / "docs" / "outbox.md"

FIVE = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload"


async def test_hostile_rows_stop_their_keys_alone(place: Place) -> None:
    """Whoever may write to the table may write anything there."""
    world = World(place.dsn)
    world.app.add_topic(_internal(world))
    more: list[tuple[str, str, Any, Any, str]] = [
        ("orders", "text", None, "[" * 100_000, "not JSON"),
        ("orders", "text", None, '{"a": 1}', "not a JSON array"),
        ("orders", "text", None, '[["ce_id", "1"]]', "ce_id is among"),
        ("orders", "text", None, '[["a"]]', "not pairs"),
        ("orders", "text", None, '[["a", 1]]', "not pairs"),
        ("orders", "text", None, '[["a", "\\ud800"]]', "not text"),
        (
            "orders",
            "text",
            None,
            "[" + '["a", "b"],' * 50_000 + '["a", "b"]]',
            "not text of at most",
        ),
        ("orders", "what", None, None, "keytype"),
        ("orders", "bytes", None, None, "not hexadecimal"),
        ("orders", "text", "", None, "message ID is empty"),
        ("own", "text", None, None, "toolkit's own"),
    ]
    for number, (topic, keytype, messageid, headers, _) in enumerate(more):
        place.run(
            f"{FIVE}, keytype, messageid, headers) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (str(uuid4()), topic, f"key {number}", "t", b"{}", keytype, messageid, headers),
        )
    async with world.app:
        commit(world, place, "a", 1)
        await world.handle(1)
        await world.until(lambda: [row[1] for row in place.rows()] == [1] * len(more), "all marked")
    for (_, _, error), (*_, said) in zip(place.rows(), more, strict=True):
        assert said in error


@pytest.mark.parametrize("database", ["sqlite"])
async def test_texts_that_are_no_texts_stop_their_keys_alone(place: Place) -> None:
    """SQLite stores in a column of text whatever bytes it is given."""
    columns = ("messageid", "keytype", "aggregatetype", "aggregateid", "headers")
    world = World(place.dsn)
    for number, broken in enumerate(columns):
        values = {
            "id": "?", "aggregatetype": "'orders'", "aggregateid": f"'key {number}'", "type": "'t'",
            "payload": "x'00'", broken: "CAST(x'ff41' AS TEXT)",
        }  # fmt: skip
        names = ", ".join(values)
        place.run(
            f"INSERT INTO outbox ({names}) VALUES ({', '.join(values.values())})", (str(uuid4()),)
        )
    async with world.app:
        commit(world, place, "a", 1)
        await world.handle(1)
        await world.until(
            lambda: [row[1] for row in place.rows()] == [1, 1, 3, 1, 1], "all are marked"
        )
    found = await inspection.inspect_outbox(world.outbox, 10)
    assert len(found.rows) == len(columns) - 1
    assert len(found.undeclared) == 1


def fetch_parameters(database: RelayDatabase, **bounds: int) -> dict[str, Any]:
    """What a relay named "me" gives along when it reads rows, if it has all buckets."""
    dialect = database.dialect
    return {
        "relay": "me",
        "buckets": dialect.list_parameter(range(dialect.bucket_count)),
        "busy": dialect.list_parameter([]),
        "skipped": dialect.list_parameter([]),
        **bounds,
    }


async def test_memory_is_bounded_by_headers_too(place: Place) -> None:
    """Whoever writes to the table, writes headers as long as they like."""
    world = World(place.dsn, relayed_by="command")
    for _ in range(5):
        place.run(
            f"{FIVE}, headers) VALUES (%s, 'orders', 'a', 't', NULL, %s)",
            (str(uuid4()), "x" * 100_000),
        )
    database = world.outbox.open()
    await database.connect(30.0)
    try:
        await database.execute("UPDATE outbox_buckets SET owner = 'me'")
        found = await database.fetch_rows(fetch_parameters(database, limit=100, bytes=150_000))
        assert len(found) == 2
    finally:
        await database.close()


@pytest.mark.parametrize("database", ["sqlite"])
async def test_a_document_of_rows_holds_what_they_hold_one_by_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(place.dsn, relayed_by="command")
    database = world.outbox.open()
    assert isinstance(database, SqliteDatabase)
    await database.connect(30.0)
    columns = "(id, aggregatetype, aggregateid, type, payload, messageid, keytype, headers, state)"
    payloads = ["NULL", "x''", "x'00ff'", "'text ä'", "12", "1.5", f"zeroblob({5_000})"]
    others = ["NULL, 'text', NULL", "'m', 'none', '[[\"a\",\"ä\"]]'", "char(0), 'bytes', '\"'"]
    numbers = 0
    for topic in ("orders", "raw"):
        for key in ("'a'", "'b'", "7", "'ä\"\\'"):
            for payload in payloads:
                for other in others:
                    state = 1 if key == "'b'" and not numbers % 40 else 0
                    numbers += 1
                    place.run(
                        f"INSERT INTO outbox {columns} "
                        f"VALUES ('{uuid4()}', '{topic}', {key}, 't', {payload}, {other}, {state})"
                    )
    one_by_one = database._fetch_one_by_one

    def refuse(*_: object) -> list[RelayRow]:
        raise AssertionError("one by one")

    try:
        await database.execute("UPDATE outbox_buckets SET owner = 'me'")
        of_topics: list[dict[str, Any]] = [
            {},
            *({"topic": each} for each in ("orders", "raw", "?")),
        ]
        for of_topic in of_topics:
            for limit, size in ((1_000, 1 << 30), (7, 1 << 30), (1_000, 1), (1_000, 20_000)):
                given = fetch_parameters(database, limit=limit, bytes=size) | of_topic
                given["skipped"] = database.dialect.list_parameter([2, 3, 90])
                monkeypatch.setattr(database, "_fetch_one_by_one", refuse)
                documented = await database.fetch_rows(given)
                monkeypatch.setattr(database, "_fetch_one_by_one", one_by_one)
                with monkeypatch.context() as broken:
                    broken.setattr(databases, "rows_of_document", lambda *_: int("no document"))
                    assert await database.fetch_rows(given) == documented
                assert bool(documented) == (of_topic.get("topic") != "?")
        everything = fetch_parameters(database, limit=1_000, bytes=1 << 30)
        for key, keytype in (("CAST(x'ff' AS TEXT)", "'text'"), ("'c'", "x'00'")):
            place.run(
                f"INSERT INTO outbox {columns} "
                f"VALUES ('i', 'orders', {key}, 't', NULL, NULL, {keytype}, NULL, 0)"
            )
            found = (await database.fetch_rows(everything))[-1]
            assert (found.key, found.keytype) in {("\udcff", "text"), ("c", b"\0")}
            place.run("DELETE FROM outbox WHERE id = 'i'")
    finally:
        await database.close()


async def test_payloads_of_a_file_whose_texts_are_utf16(tmp_path: Path) -> None:
    """In which SQLite would change bytes that it puts one after the other, and not their number."""
    place = Place(f"sqlite:///{tmp_path / 'utf16.db'}")
    with closing(place.connect()) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE orders (name TEXT)")
    await asyncio.to_thread(place.create)
    payloads = [b"\x00\xd8a\x00", b"", b"\xff\xff", "ä".encode(), None]
    for number, payload in enumerate(payloads):
        place.run(f"{FIVE}) VALUES (?, 'orders', ?, 't', ?)", (str(uuid4()), f"ä{number}", payload))
    database = World(place.dsn, relayed_by="command").outbox.open()
    await database.connect(30.0)
    try:
        await database.execute("UPDATE outbox_buckets SET owner = 'me'")
        found = await database.fetch_rows(fetch_parameters(database, limit=10, bytes=1 << 20))
        assert [row.payload for row in found] == payloads
        assert [row.key for row in found] == [f"ä{number}" for number in range(len(payloads))]
    finally:
        await database.close()


@pytest.mark.parametrize("database", ["postgres"])
async def test_losing_the_connection_that_deletes_loses_and_repeats_nothing(place: Place) -> None:
    async with running(place.dsn, lease=2.0) as world:
        commit(world, place, "a", 1)
        await world.handle(1)
        await world.until(lambda: not place.rows(), "the row is deleted")
        place.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND starts_with(query, 'DELETE FROM ')"
        )
        commit(world, place, "a", 2, 3)
        await world.until(lambda: not place.rows(), "the rows are deleted")
        await world.handle(3)
        assert world.of("a") == [1, 2, 3]
        assert world.outbox.stats().outages


@pytest.mark.parametrize("database", ["postgres"])
async def test_no_row_is_compared_with_failed_ones_where_there_are_none(place: Place) -> None:
    """That would cost a third of reading it."""
    world = World(place.dsn, relayed_by="command")
    commit(world, place, "k", 1, 2, 3)
    database = world.outbox.open()
    await database.connect(30.0)
    try:
        await database.execute("UPDATE outbox_buckets SET owner = 'me'")
        parameters = fetch_parameters(database, limit=10, bytes=10_000)

        async def comparisons() -> list[int]:
            sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {database.dialect.fetch_rows()}"
            ((plans,),) = await database.execute(sql, parameters)
            return [
                node["Actual Loops"]
                for node in _nodes(plans[0]["Plan"])
                if node.get("Index Name") == "outbox_failed" and "Index Cond" in node
            ]

        assert await comparisons() == [0]
        place.run("UPDATE outbox SET state = 1 WHERE sequence = (SELECT min(sequence) FROM outbox)")
        assert await comparisons() == [2]
    finally:
        await database.close()


async def test_rows_of_a_topic_that_waits_are_not_walked_past(place: Place) -> None:
    """There may be millions of them, each time that a row of another topic is to be read."""
    world, many = World(place.dsn, relayed_by="command"), 3_000
    place.run(
        f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many}) "
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type) "
        f"SELECT '{uuid4()}', 'raw', 'k', 't' FROM n"
    )
    commit(world, place, "a", 1, 2)
    database = world.outbox.open()
    options = RelayOptions(lease=30.0, poll=1.0, batch=100, batch_bytes=1 << 20)
    async with _RelaySession(world.app, database, options, world.outbox._relay) as session:
        await session._keep_buckets(0.0)
        session._paused_until["raw"] = math.inf
        rows, visited = await visiting(database, lambda: session._read_rows(100, 1 << 20))
    assert [(row.topic, row.key) for row in rows] == [("orders", "a")] * 2
    assert 0 < visited < many


async def test_of_a_key_that_waits_one_row_is_looked_at(place: Place) -> None:
    """However many wait behind it; and none of a topic that the app does not declare."""
    world, many = World(place.dsn, relayed_by="command"), 3_000
    for key in ("held", "free"):
        place.run(
            f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many}) "
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, state) "
            f"SELECT '{uuid4()}', 'raw', '{key}', 't', 2 FROM n"
        )
    place.run("UPDATE outbox SET state = 1 WHERE sequence = 1")
    database = world.outbox.open()
    await database.connect(30.0)
    try:
        await database.execute("UPDATE outbox_buckets SET owner = 'me'")
        sql, dialect = database.dialect.keys_to_release(), database.dialect
        topics = dialect.list_parameter(["orders", "raw"])
        given = {**fetch_parameters(database), "topics": topics, "limit": 10}
        found, visited = await visiting(database, lambda: database.execute(sql, given))
        assert found == [(many + 1,)]  # of the other key something may go
        assert 0 < visited < many
        given["topics"] = dialect.list_parameter(["orders"])
        assert await database.execute(sql, given) == []
        portion = {"first": many + 1, "limit": 3}
        gone = await database.execute(dialect.release_waiting(), portion)
        assert sorted(row[0] for row in gone) == [many + 1, many + 2, many + 3]
    finally:
        await database.close()


async def visiting(database: RelayDatabase, work: Callable[[], Awaitable[T]]) -> tuple[T, int]:
    """What comes of reading, and how many rows of the outbox its statements look at; on SQLite, how
    many steps they take: a row takes several."""
    execute, statements, visited = database.execute, list[tuple[str, Any]](), 0

    def step() -> None:
        nonlocal visited
        visited += 1

    if isinstance(database, SqliteDatabase):
        file = database._require_connection()
        await database._in_thread(lambda: file.set_progress_handler(step, 1))
        found = await work()
        await database._in_thread(lambda: file.set_progress_handler(None, 1))
        return found, visited

    async def noted(sql: str, parameters: Any = NO_PARAMETERS) -> list[Any]:
        statements.append((sql, parameters))
        return await execute(sql, parameters)

    database.execute = noted  # type: ignore[method-assign]
    found = await work()
    database.execute = execute  # type: ignore[method-assign]
    for sql, parameters in statements:
        plans = await execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)
        visited += sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in _nodes(plans[0][0][0]["Plan"])
            if node.get("Relation Name") == "outbox"
        )
    return found, visited


def test_a_group_is_as_large_as_the_statement_has_it() -> None:
    """So that what two of them leave of the bytes is no room, for which more would be read."""
    row = RelayRow(1, 0, "m", "raw", "k", b"", "text", None, 7, False)
    assert RowGroup("raw", [row, row], 1).size == 2 * (7 + ROW_BYTES)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


async def test_lists_are_parameters_whatever_is_in_them(place: Place) -> None:
    topics = ["a,b", '"q"', "back\\slash", "", "NULL", "{a}", " s ", "ä", "it's"]
    database = World(place.dsn, relayed_by="command").outbox.open()
    await database.connect(30.0)
    try:
        dialect = database.dialect
        for found, kind in ((topics, "text"), ([3, 1 << 62], "bigint"), ([], "text")):
            sql = dialect.list_of("given", kind)
            rows = await database.execute(sql, {"given": dialect.list_parameter(found)})
            assert [row[0] for row in rows] == found
    finally:
        await database.close()


def _internal(world: World) -> Any:
    from streams.topic import InternalTopic

    return InternalTopic(world.app, "own", partitions=1)


async def test_retry_refuses_what_has_not_failed(place: Place) -> None:
    world = World(place.dsn)
    with committing(place) as connection:
        id = world.outbox.publish_sync(world.orders, Order("a", 1), connection=connection)
    for name in (id, "nothing"):
        with pytest.raises(NotFound):
            await inspection.retry_rows(world.outbox, [name])


async def delete_what_another_waits_behind(world: World, place: Place) -> None:
    """Order 1 of a key is refused, 2 waits behind it, and 1 is deleted by hand."""
    refuse(world, large)
    with committing(place) as connection:
        world.outbox.publish_sync(world.orders, Order("a", 1, "large"), connection=connection)
    await world.until(lambda: [row[1] for row in place.rows()] == [1], "it is marked")
    commit(world, place, "a", 2)
    await world.until(lambda: [row[1] for row in place.rows()] == [1, 2], "the next waits")
    place.run("DELETE FROM outbox WHERE state = 1")


async def test_what_waits_behind_a_row_that_somebody_deleted_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.outbox.relay.RELEASE_EVERY", 0.05)
    async with running(place.dsn, lease=0.5) as world:
        await delete_what_another_waits_behind(world, place)
        await world.handle(1)
        assert world.of("a") == [2]


async def test_what_waits_goes_on_in_portions(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its order, up to a row of the key that has failed, too."""
    monkeypatch.setattr("streams.outbox.relay.ROWS_RELEASED_AT_ONCE", 2)
    world = World(place.dsn)
    for key in "abc":
        commit(world, place, key, 1, 2, 3, 4, 5, 6, 7)
    place.run("UPDATE outbox SET state = 2")
    place.run("UPDATE outbox SET state = 1 WHERE sequence IN (12, 15)")  # b5 and c1
    async with world.app:
        await world.handle(11)
        await world.until(lambda: len(place.rows()) == 10, "the rows are deleted")
    assert [world.of(key) for key in "abc"] == [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4], []]


async def test_rows_that_come_later_do_not_overtake_those_that_wait(place: Place) -> None:
    """Neither once what those waited behind was deleted, nor before somebody has looked again."""
    world = World(place.dsn)
    async with world.app:
        await delete_what_another_waits_behind(world, place)
        commit(world, place, "a", 3)
        await world.until(
            lambda: [row[1] for row in place.rows()] == [2, 2] or world.handled, "it waits, too"
        )
        assert world.values == []
    world = World(place.dsn)
    async with world.app:
        await world.handle(2)
    assert world.of("a") == [2, 3]


# -- topics that the relaying app does not declare


def newer(place: Place, url: str | None = None) -> tuple[World, Topic[Order], list[int]]:
    """An app that declares one topic more, and what it handles of that."""
    world = World(place.dsn, url)
    refunds = world.app.topic("refunds", Order, key="id", partitions=2)
    refunded: list[int] = []

    @world.app.processor(refunds, group="refunds")
    async def refund(order: Order) -> None:
        refunded.append(order.number)

    return world, refunds, refunded


def commit_refunds(place: Place, world: World, topic: Topic[Order], *numbers: int) -> None:
    with committing(place) as connection:
        for number in numbers:
            world.outbox.publish_sync(topic, Order("a", number), connection=connection)


async def test_a_topic_of_a_newer_version_waits_for_a_relay_that_declares_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it happens in a rolling deployment: the older version may relay for a while."""
    monkeypatch.setattr("streams.outbox.relay.SAMPLE_EVERY", 0.02)
    monkeypatch.setattr("streams.outbox.relay.HEARTBEATS", 300)  # ten a second
    url = f"memory://outbox-{uuid4().hex}"
    new, refunds, refunded = newer(place, url)
    async with running(place.dsn, url) as old:
        commit_refunds(place, new, refunds, 1, 2)
        await old.until(lambda: old.outbox.stats().undeclared == 2, "they are set aside")
        commit_refunds(place, new, refunds, 3)
        await old.until(lambda: old.outbox.stats().undeclared == 3, "the next is, too")
        commit(old, place, "a", 1)  # nothing else waits
        await old.handle(1)
        assert old.app.health().ok
    assert warned(caplog, "rows of topic refunds") == 1
    found = await inspection.inspect_outbox(new.outbox, 10)
    assert [topic[:2] for topic in found.undeclared] == [("refunds", 3)]
    commit_refunds(place, new, refunds, 4)
    async with new.app:
        await new.until(lambda: len(refunded) == 4, "all go out")
        await new.until(lambda: not place.rows(), "the rows are deleted")
    assert refunded == [1, 2, 3, 4]


async def test_a_row_does_not_overtake_one_that_waits_for_a_relay(place: Place) -> None:
    """A relay that thaws sets rows aside when its successor, which could relay them, has looked."""
    new, refunds, refunded = newer(place)
    async with new.app:
        await new.until(lambda: new.outbox.stats().depth == 0, "it has looked")
        with committing(place) as connection:
            for number in (1, 2):
                new.outbox.publish_sync(refunds, Order("a", number), connection=connection)
            connection.execute("UPDATE outbox SET state = 3")
        commit_refunds(place, new, refunds, 3)
        await new.until(lambda: [row[1] for row in place.rows()] == [3, 3, 2] or refunded, "waits")
        assert refunded == []
    new, _, refunded = newer(place)
    async with new.app:
        await new.until(lambda: len(refunded) == 3, "all go out")
    assert refunded == [1, 2, 3]


async def test_a_relay_leaves_what_waits_in_buckets_of_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their owner would only set it aside again, each time."""
    new, refunds, _ = newer(place)
    with committing(place) as connection:
        new.outbox.publish_sync(refunds, Order("a", 1), connection=connection)
        connection.execute("UPDATE outbox SET state = 3")
    database = new.outbox.open()
    await database.connect(30.0)
    try:
        dialect = database.dialect
        given = fetch_parameters(database) | {"topics": dialect.list_parameter(["refunds"])}
        for owner, state in (("they", 3), ("me", 0)):
            place.run("UPDATE outbox_buckets SET owner = %s", (owner,))
            await database.execute(dialect.release_undeclared(), given)
            assert [row[1] for row in place.rows()] == [state]
    finally:
        await database.close()


# -- Debezium's rows


async def test_a_row_of_debeziums_columns_alone(place: Place) -> None:
    id = str(uuid4())
    async with running(place.dsn) as world:
        place.run(
            f"{FIVE}) VALUES (%s, %s, %s, %s, %s)",
            (id, "orders", "a", "OrderCreated", json.dumps({"id": "a", "number": 1}).encode()),
        )
        await world.handle(1)
        (message,) = world.handled
        assert (message.id, message.key, message.value) == (id, "a", Order("a", 1))
        await world.until(lambda: not place.rows(), "it is deleted")


@pytest.mark.parametrize("database", ["postgres"])
async def test_an_outbox_whose_payload_is_jsonb(place: Place) -> None:
    """As Debezium's documentation has it; others write to it."""
    place.run("ALTER TABLE outbox DROP COLUMN payload")
    place.run("ALTER TABLE outbox ADD COLUMN payload jsonb")
    async with running(place.dsn) as world:
        place.run(
            f"{FIVE}) VALUES (%s, %s, %s, %s, %s)",
            (
                str(uuid4()),
                "orders",
                "a",
                "OrderCreated",
                '{"id": "a", "number": 1, "text": "\u00fc"}',
            ),
        )
        await world.handle(1)
        assert world.values == [Order("a", 1, "ü")]
        await world.until(lambda: not place.rows(), "it is deleted")


DEBEZIUMS = (  # as its documentation has it, "Basic outbox table"
    "CREATE TABLE outbox (id uuid NOT NULL PRIMARY KEY, aggregatetype varchar(255) NOT NULL, "
    "aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)"
)


@pytest.mark.parametrize("database", ["postgres"])
async def test_a_table_that_was_made_for_debezium_gets_its_columns_as_the_docs_say(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for each in ("outbox", "outbox_relays", "outbox_buckets"):
        place.run(f"DROP TABLE {each}")
    place.run(DEBEZIUMS)
    row = (str(uuid4()), "orders", "a", "OrderCreated", '{"id": "a", "number": 1, "text": ""}')
    place.run(f"{FIVE}) VALUES (%s, %s, %s, %s, %s)", row)
    (alter,) = [each.text for each in blocks(OUTBOX) if each.text.startswith("ALTER TABLE outbox")]
    async with running(place.dsn) as world:
        said = "the table outbox has no column sequence, messageid, keytype"
        await world.until(lambda: said in caplog.text, "it says what is missing")
        dialect = PostgresDialect(TableNames("outbox"))
        assert " ".join(alter.split()).rstrip(";") == dialect.add_columns(
            dialect.missing_columns(["id", "payload"])
        )
        place.run(alter)
        await world.handle(1)
        await world.until(lambda: not place.rows(), "it is deleted")


@pytest.mark.parametrize("database", ["postgres"])
async def test_the_columns_are_debeziums(place: Place) -> None:
    """Names, types and modifiers of its documentation ("Basic outbox table"); the payload is bytes,
    as for its BinaryDataConverter. Every other column may be left out."""
    found = place.run(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef, "
        "a.attidentity <> '' FROM pg_attribute a WHERE a.attrelid = 'outbox'::regclass "
        "AND a.attnum > 0 ORDER BY a.attnum"
    )
    columns = {name: (type, not_null) for name, type, not_null, _, _ in found}
    assert {name: columns.pop(name) for name in list(columns)[1:6]} == {
        "id": ("uuid", True),
        "aggregatetype": ("character varying(255)", True),
        "aggregateid": ("character varying(255)", True),
        "type": ("character varying(255)", True),
        "payload": ("bytea", False),
    }
    for name, _, not_null, has_default, is_identity in found:
        if name in columns:
            assert has_default or is_identity or not not_null, name


@pytest.mark.parametrize("database", ["postgres"])
@pytest.mark.parametrize("way", ["publish", "publish_sync"])
async def test_for_debezium_the_row_is_deleted_where_it_was_written(place: Place, way: str) -> None:
    """What its connector reads is the insertion; it ignores deletions."""
    async with running(place.dsn, relayed_by="debezium") as world:
        with committing(place) as connection:
            if way == "publish":
                await world.outbox.publish(world.orders, Order("a", 1), connection=connection)
            else:
                write(world, connection, "a", 1)
        assert not place.rows()
        assert place.run("SELECT last_value FROM outbox_sequence_seq") == [(1,)]
        assert world.outbox.stats().buckets == 0


# -- outages


@pytest.mark.parametrize("has_topic_index", [True, False])
async def test_an_outage_of_the_log_is_no_rows_fault(place: Place, has_topic_index: bool) -> None:
    if not has_topic_index:  # as in an outbox that an earlier version made
        place.run("DROP INDEX outbox_topics")
    async with running(place.dsn) as world:
        down = [True]
        refuse(world, lambda topic, _: Unavailable("away") if down and topic == "orders" else None)
        commit(world, place, "a", 1)
        with committing(place) as connection:
            world.outbox.publish_sync(world.raw, b"1", connection=connection)
        await world.handle(1)  # the other topic goes on
        commit(world, place, "a", 2)
        await world.until(lambda: [row[1] for row in place.rows()] == [0, 0], "both are kept")
        down.clear()
        await world.handle(3)
        assert world.of("a") == [1, 2]


async def test_the_database_is_away_for_a_while(
    lifetime: Lifetime, caplog: pytest.LogCaptureFixture
) -> None:
    with Postgres(lifetime) as server:
        place = Place(server.url)
        await asyncio.to_thread(place.create)
        with caplog.at_level(logging.INFO, "streams"):
            async with running(place.dsn) as world:
                commit(world, place, "a", 1)
                await world.handle(1)
                await asyncio.to_thread(server.kill)
                await world.until(lambda: not world.app.health().ok, "it is noticed")
                assert world.app.health().ready  # handlers go on
                await asyncio.to_thread(server.restart)
                await asyncio.to_thread(commit, world, place, "a", 2)
                await world.handle(2)
                await world.until(lambda: world.app.health().ok, "it is well again")
        assert world.of("a") == [1, 2]
        warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert len(warnings) == 1  # once, not at each attempt


async def test_a_relay_that_cannot_delete_pauses_longer_each_time(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time it publishes the rows again, which the log has already."""
    if place.is_postgres:
        place.run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'not allowed'; END $$"
        )
        place.run("CREATE TRIGGER t BEFORE DELETE ON outbox EXECUTE FUNCTION refuse()")
    else:
        place.run(
            "CREATE TRIGGER t BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'not allowed'); END"
        )
    async with running(place.dsn) as world:
        began = time.monotonic()
        commit(world, place, "a", 1)
        await world.until(lambda: world.outbox.stats().outages >= 5, "it has tried")
        assert time.monotonic() - began >= 0.1 + 0.2 + 0.4 + 0.8
        assert "not allowed" in (world.outbox.health().error or "")
        place.run("DROP TRIGGER t" + (" ON outbox" if place.is_postgres else ""))
        await world.until(lambda: world.outbox.health().ok, "it is well again")
        assert world.of("a") == [1]
    assert len([each for each in caplog.records if "not allowed" in each.message]) == 1


# -- ownership that ends while rows are read, or wait


class Reading:
    """What happens while a relay's rows are read: ``meanwhile(database, rows at most)``; a clock
    for the lease, which that may put forward; and how many were read."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.later = 0.0
        self.rows = 0
        clock = SystemClock()
        clock.monotonic = lambda: time.monotonic() + self.later
        monkeypatch.setattr("streams.outbox.relay.SYSTEM", clock)
        kind = type(World(place.dsn, relayed_by="command").outbox.open())
        fetch = kind.fetch_rows

        async def fetch_slowly(database: RelayDatabase, parameters: Any) -> list[Any]:
            found: list[Any] = await fetch(database, parameters)
            self.rows += len(found)
            await self.meanwhile(database, parameters["limit"])
            return found

        monkeypatch.setattr(kind, "fetch_rows", fetch_slowly)

    async def meanwhile(self, database: RelayDatabase, limit: int) -> None:
        """Nothing, so far."""


def warned(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return len([each for each in caplog.records if words in each.message])


@pytest.mark.parametrize("leases", [0.9, 3.0])
async def test_what_took_long_to_read_is_relayed_if_nobody_has_the_keys(
    place: Place, leases: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(place, monkeypatch)
    async with running(place.dsn, lease=30.0, batch=8) as world:

        async def meanwhile(database: RelayDatabase, limit: int) -> None:
            reading.later += leases * 30.0

        reading.meanwhile = meanwhile  # type: ignore[method-assign]
        commit(world, place, "a", *range(20))
        await world.handle(20)
        assert world.of("a") == list(range(20))
        assert world.outbox.health().ok


async def test_less_is_read_at_once_where_others_take_the_keys_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as that is too much, it is said so, once."""
    reading, most = Reading(place, monkeypatch), 0

    async def meanwhile(database: RelayDatabase, limit: int) -> None:
        if limit > most:
            reading.later += 60.0
            await database.execute("DELETE FROM outbox_relays")  # taken for dead

    reading.meanwhile = meanwhile  # type: ignore[method-assign]
    async with running(place.dsn, lease=30.0, batch=64) as world:
        commit(world, place, "a", *range(20))
        await world.until(lambda: not world.outbox.health().ok, "it is said so")
        assert "nothing is relayed" in (world.outbox.health().error or "")
        before = reading.later
        await world.until(lambda: reading.later > before + 180.0, "it is read again and again")
        assert warned(caplog, "nothing is relayed") == 1
        assert world.values == []
        most = 4
        await world.handle(20)
        assert world.of("a") == list(range(20))
        await world.until(lambda: world.outbox.health().ok, "it is well again")


async def test_a_relay_whose_keys_others_relay_is_well(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was too slow for them, and has nothing to read now."""
    monkeypatch.setattr("streams.outbox.relay.HEARTBEATS", 300)  # ten a second
    reading, look, taken = Reading(place, monkeypatch), Buckets.send_heartbeat, False

    async def meanwhile(database: RelayDatabase, limit: int) -> None:
        reading.later += 60.0
        await database.execute("DELETE FROM outbox_relays")

    async def tick(buckets: Buckets, in_flight: Any) -> None:
        await look(buckets, in_flight)
        if taken:
            buckets.owned = frozenset()

    monkeypatch.setattr(Buckets, "send_heartbeat", tick)
    reading.meanwhile = meanwhile  # type: ignore[method-assign]
    async with running(place.dsn) as world:
        commit(world, place, "a", 1)
        await world.until(lambda: not world.outbox.health().ok, "it is said so")
        taken = True
        await world.until(lambda: world.outbox.health().ok, "it is well")
    assert len(place.rows()) == 1


async def test_rows_whose_bucket_is_given_up_after_they_were_read_are_the_next_owners(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that has read for long says first that it is there, and may have to share then."""
    reading, look = Reading(place, monkeypatch), Buckets.send_heartbeat

    async def meanwhile(database: RelayDatabase, limit: int) -> None:
        reading.later += 27.0

    async def tick(buckets: Buckets, in_flight: Any) -> None:
        await look(buckets, in_flight)
        buckets.owned = frozenset()

    async with running(place.dsn, lease=30.0) as world:
        await world.until(lambda: world.outbox.stats().buckets, "it has buckets")
        monkeypatch.setattr(Buckets, "send_heartbeat", tick)
        reading.meanwhile = meanwhile  # type: ignore[method-assign]
        commit(world, place, "a", 1)
        await world.until(lambda: reading.later and not world.outbox.stats().buckets, "it shares")
    assert len(place.rows()) == 1


async def test_what_was_read_before_it_was_taken_for_dead_is_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its successor has relayed that."""
    monkeypatch.setattr("streams.outbox.relay.HEARTBEATS", 300)  # ten a second
    reading = Reading(place, monkeypatch)
    async with running(place.dsn) as world:
        log: Any = world.app.log
        append, waiting = log.append, list[Any]()
        log.append = lambda *given: waiting.append(given)
        commit(world, place, "a", 1, 2)
        await world.until(lambda: waiting, "the first are on their way")
        commit(world, place, "a", 3, 4)
        await world.until(lambda: reading.rows == 4, "the next are read")
        # In a thread: the relay may have begun a transaction, which this waits for.
        await asyncio.to_thread(place.run, "DELETE FROM outbox WHERE sequence > 2")
        await asyncio.to_thread(place.run, "DELETE FROM outbox_relays")
        await world.until(lambda: warned(caplog, "was taken for dead"), "it begins again")
        log.append = append
        append(*waiting[0])
        commit(world, place, "a", 5)
        await world.until(lambda: 5 in world.of("a"), "it goes on")
        assert world.of("a") == [1, 2, 5]


@pytest.mark.parametrize("database", ["sqlite"])
async def test_no_row_is_tried_alone_once_others_may_have_its_key(place: Place) -> None:
    world = World(place.dsn, relayed_by="command")
    rows = [RelayRow(n, 0, f"m{n}", "raw", f"k{n}", b"", "text", None, 0, False) for n in range(3)]
    answers = iter([True, False])
    async with world.app.connected():
        refuse(world, lambda topic, record: TooLarge("too large"))
        publisher = GroupPublisher(world.app, lambda group: next(answers))
        outcome = await publisher.publish(RowGroup("raw", rows, 1))
    assert [row.key for row, _ in outcome.failures] == ["k0"]


@pytest.mark.parametrize("database", ["sqlite"])
async def test_no_row_is_tried_alone_before_one_of_its_key_that_did_not_arrive(
    place: Place,
) -> None:
    """One batch of an append may be lost in an outage, and the next be too large as a whole."""
    world = World(place.dsn, relayed_by="command")
    rows = [
        RelayRow(n, 0, f"m{n}", "raw", key, b"", "text", None, 0, False)
        for n, key in enumerate(["a", "b", "a", "b"])
    ]
    answered: list[str] = []

    def refused_together(topic: str, record: Any) -> Exception | None:
        answered.append(record.id)
        if len(answered) > 2 * len(rows):  # asked twice for each record of the first append
            return None
        return Unavailable("away") if record.id == "m0" else TooLarge("they are too large")

    async with world.app.connected():
        refuse(world, refused_together)
        outcome = await GroupPublisher(world.app, lambda group: True).publish(
            RowGroup("raw", rows, 1)
        )
    assert outcome.confirmed == [1, 3]
    assert outcome.failures == []
    assert isinstance(outcome.outage, Unavailable)


@pytest.mark.parametrize("database", ["postgres"])
async def test_a_relay_that_has_lost_its_connection_begins_nothing_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free, so others have its keys at once, however long its lease is."""
    monkeypatch.setattr("streams.outbox.relay.FIRST_PAUSE", PATIENCE)  # it does not come back
    noticed, close = asyncio.Event(), _RelaySession._close

    async def closing(session: _RelaySession) -> None:
        noticed.set()
        await close(session)

    monkeypatch.setattr(_RelaySession, "_close", closing)
    async with running(place.dsn) as world:
        log: Any = world.app.log
        calls = list[Any]()
        log.append = lambda *given: calls.append(given)
        commit(world, place, "a", 1)
        await world.until(lambda: calls, "it is on its way")
        place.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'streams outbox relay'"
        )
        commit(world, place, "b", 1)  # wakes it
        await asyncio.wait_for(noticed.wait(), PATIENCE)
        calls[0][2]([TooLarge("too large")])  # so the row would be tried alone
        await world.until(lambda: world.outbox.stats().outages or len(calls) > 1, "it has ended")
        assert len(calls) == 1


# -- several relays


async def test_relays_share_the_keys_and_take_over(place: Place) -> None:
    options: dict[str, Any] = {"lease": 10.0}  # nobody is taken for dead: one leaves
    first, second = World(place.dsn, **options), World(place.dsn, **options)
    second.app.given_url = first.app.given_url  # one log

    def buckets() -> list[int]:
        return [world.outbox.stats().buckets for world in (first, second)]

    total = 16 if place.is_postgres else 1
    async with AsyncExitStack() as outer, AsyncExitStack() as inner:
        await inner.enter_async_context(first.app)
        await first.until(lambda: buckets() == [total, 0], "one has all")
        await outer.enter_async_context(second.app)
        share = [8, 8] if place.is_postgres else [1, 0]
        await first.until(lambda: buckets() == share, "they share")
        for number in range(40):
            commit(first, place, f"k{number % 10}", number)
        await first.until(lambda: len(first.handled) + len(second.handled) == 40, "all handled")
        await first.until(lambda: not place.rows(), "the rows are deleted")
        relayed = [world.outbox.stats().relayed for world in (first, second)]
        assert sum(relayed) == 40
        if place.is_postgres and buckets() == share:
            assert min(relayed) > 0
        await inner.aclose()  # one leaves
        await second.until(lambda: buckets()[1] == total, "the other has all")
        commit(second, place, "k1", 100)
        await second.until(lambda: 100 in second.of("k1"), "it relays")


@pytest.mark.parametrize("database", ["sqlite"])
async def test_relays_that_are_none_hold_up_nobody(place: Place) -> None:
    """Whoever writes to the file may write what is no relay, and keys of its own."""
    async with World(place.dsn).app:  # which makes the tables
        pass
    forged = [
        ("'ghost'", "1", "'../x'"),
        ("CAST(x'ff41' AS TEXT)", "'b'", "1"),
        ("7", "x'00'", "0.5"),
    ]
    for relay, beat, lock in forged:
        place.run(f"INSERT INTO outbox_relays VALUES ({relay}, {beat}, {lock}, 0)")
    place.run("UPDATE outbox_buckets SET owner = 'ghost'")
    world = World(place.dsn)
    async with world.app:
        commit(world, place, "a", 1)
        await world.handle(1)


@pytest.mark.parametrize("missing", ["bucket >= 0", "bucket = 0"])
async def test_buckets_without_a_row_are_added(
    place: Place, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a database that was made of another one's schema alone."""
    place.run(f"DELETE FROM outbox_buckets WHERE {missing}")
    async with running(place.dsn) as world:
        for number in range(40):
            commit(world, place, f"k{number}", number)
        await world.handle(40)
    assert warned(caplog, "buckets of keys were missing") == 1
    buckets = place.run("SELECT bucket FROM outbox_buckets ORDER BY bucket")
    assert [row[0] for row in buckets] == list(range(16 if place.is_postgres else 1))


IDLE_RELAY = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' "
    "AND application_name = 'streams outbox relay' AND query LIKE '%%AS total%%'"
)


@pytest.mark.parametrize("database", ["postgres"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_notify_wakes_a_relay(place: Place, driver: str) -> None:
    """Nothing else does: no poll, and no moment at which it says that it is there."""
    dsn = place.dsn.replace("postgresql:", f"postgresql+{driver}:", 1)
    async with running(dsn, poll=600.0, lease=600.0) as world:
        for number in (1, 2, 3):
            await world.until(lambda: place.run(IDLE_RELAY), "it has read, and found nothing")
            commit(world, place, "a", number)
            await world.handle(number)
            await world.until(lambda: not place.rows(), "the row is deleted")
        assert world.of("a") == [1, 2, 3]


# -- in users' tests


async def test_a_harness_takes_nothing_out_of_an_outbox_unless_it_is_told_to(place: Place) -> None:
    world = World(place.dsn)
    commit(world, place, "a", 1)
    async with harness(world.app) as tested:
        await world.orders.publish(Order("b", 1))
        await tested.settled()
        assert world.outbox.health().running is False
    assert len(place.rows()) == 1
    async with harness(world.app, relay=True):
        await world.handle(2)
    assert (world.of("a"), world.of("b")) == ([1], [1])


# -- cancellation


@pytest.mark.parametrize("library", [PsycopgDatabase, AsyncpgDatabase])
async def test_a_transaction_that_is_cancelled_is_rolled_back_to_the_end(
    library: type[PostgresDatabase], postgres: str
) -> None:
    """However often; until then nobody else has the connection."""
    reached, go = asyncio.Event(), asyncio.Event()

    class Slow(library):  # type: ignore[misc, valid-type]
        async def _execute(self, statement: Statement) -> list[Any]:
            if statement.sql == "ROLLBACK":
                reached.set()
                await go.wait()
            found: list[Any] = await super()._execute(statement)
            return found

    def steps() -> Steps[None]:
        yield Statement("CREATE TABLE begun (value integer)")
        raise LookupError("no further")

    opened = Slow(postgres, TableNames("outbox"))
    await opened.connect(60.0)
    try:
        first = asyncio.create_task(opened.transaction(steps()))
        await reached.wait()
        for _ in range(2):
            first.cancel()
            await asyncio.sleep(0)
        second = asyncio.create_task(
            opened.execute("SELECT count(*) FROM pg_class WHERE relname = 'begun'")
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == [(0,)]
    finally:
        await opened.close()
