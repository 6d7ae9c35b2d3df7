"""``app.query``: a service reads its own tables in the log's file, while everything goes on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from streams import Message, NotRunning, Streams
from streams.errors import ConfigError, LogError
from streams.log.protocol import Retention
from streams.log.url import open_log
from tests.conformance.records import record

TOTALS = "CREATE TABLE IF NOT EXISTS totals (customer TEXT PRIMARY KEY, cents INTEGER)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


def shop(path: Path) -> Streams:
    """An app that keeps each customer's total in the log's file."""
    app = Streams(f"sqlite:///{path}?timeout=60")
    orders = app.topic("orders", dict[str, int], key=lambda order: "ada", partitions=2)

    @app.processor(orders, group="totals")
    def total(order: dict[str, int], message: Message[dict[str, int]]) -> None:
        execute = message.transaction.execute
        execute(TOTALS)
        execute(
            "INSERT INTO totals VALUES (?1, ?2) ON CONFLICT DO UPDATE SET cents = cents + ?2",
            (message.key, order["cents"]),
        )

    return app


async def until_query(app: Streams, sql: str, rows: list[tuple[object, ...]]) -> None:
    """Wait until a statement gives these rows; before there is a table it gives none."""
    async with asyncio.timeout(60):
        while True:
            with suppress(LogError):
                if await app.query(sql) == rows:
                    return
            await asyncio.sleep(0.005)


async def test_a_service_reads_what_its_handlers_wrote(path: Path) -> None:
    app = shop(path)
    async with app:
        for cents in (5, 7):
            await app.topics["orders"].publish({"cents": cents})
        await until_query(app, "SELECT cents FROM totals", [(12,)])
        assert await app.query("SELECT cents FROM totals WHERE customer = ?", ("ada",)) == [(12,)]
        assert await app.query("SELECT :n + 1", {"n": 1}) == [(2,)]
        assert await app.query("SELECT name FROM pragma_table_info('totals')") == [
            ("customer",),
            ("cents",),
        ]
    with pytest.raises(NotRunning):
        await app.query("SELECT 1")


def test_a_synchronous_service_reads_too(path: Path) -> None:
    app = shop(path)
    with app.background():
        app.wait(app.topics["orders"].publish({"cents": 3}))
        app.wait(until_query(app, "SELECT cents FROM totals", [(3,)]))


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO totals VALUES ('bob', 1)",
        "DELETE FROM totals",
        "CREATE TABLE others (a)",
        "CREATE TEMP TABLE others (a)",
        "DROP TABLE totals",
        "UPDATE streams_topics SET partitions = 1",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "SAVEPOINT a",
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA user_version = 3",
        "ATTACH 'other.db' AS other",
        "SELECT 1; SELECT 2",
        "SELECT load_extension('other')",
    ],
)
async def test_nothing_but_reading_is_possible(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute(TOTALS)
        file.execute("INSERT INTO totals VALUES ('ada', 1)")
        file.commit()
    app = shop(path)
    async with app.connected():
        with pytest.raises((ConfigError, LogError), match=r"app\.query|not authorized"):
            await app.query(sql)
        assert await app.query("SELECT * FROM totals") == [("ada", 1)]
        await app.topics["orders"].publish({"cents": 3})
    assert not os.path.exists("other.db")  # noqa: ASYNC240 - nothing else runs


async def test_what_is_wrong_with_a_statement_is_said(path: Path) -> None:
    app = shop(path)
    async with app.connected():
        with pytest.raises(LogError, match="no such table: missing") as caught:
            await app.query("SELECT * FROM missing")
        assert isinstance(caught.value.__cause__, apsw.SQLError)


async def test_a_statement_whose_caller_is_cancelled_ends(path: Path) -> None:
    """The rows to count would take minutes."""
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)"
    async with shop(path).connected() as app:
        running = asyncio.create_task(app.query(f"{count} SELECT count(*) FROM n"))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,), timeout=60)
        assert running.cancelled()
        assert await app.query("SELECT 1") == [(1,)]


async def test_another_log_has_no_sql() -> None:
    async with Streams("memory://").connected() as app:
        with pytest.raises(ConfigError, match=r"app\.query.*sqlite.*memory log"):
            await app.query("SELECT 1")


def test_reading_waits_for_no_writer_and_sees_nothing_half_done(path: Path) -> None:
    log = open_log(f"sqlite:///{path}?timeout=60")
    try:
        log.create_topic("orders", 1)
        query = log.query  # type: ignore[attr-defined]
        writing, over = threading.Event(), threading.Event()

        def write() -> None:
            with log._database.write() as connection:  # type: ignore[attr-defined]
                connection.execute("CREATE TABLE half (a)")
                writing.set()
                over.wait(60)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert writing.wait(60)
            with pytest.raises(LogError, match="half"):
                query("SELECT * FROM half")
        finally:
            over.set()
            writer.join()
        assert query("SELECT * FROM half") == []
    finally:
        log.close()


# -- the public part of the schema


def test_the_views_say_where_groups_are(path: Path) -> None:
    log = open_log(f"sqlite:///{path}")
    try:
        log.create_topic("orders", 2, Retention(seconds=60, messages=5))
        log.create_topic("gone", 1)
        log.initialize_offsets("billing", "orders", {0: 0, 1: 0})
        log.initialize_offsets("billing", "gone", {0: 0})
        log.delete_topic("gone")
        for partition in (0, 1, 1):
            log.append("orders", [record(b"x", partition=partition)], lambda told: None)
        query = log.query  # type: ignore[attr-defined]
        assert query(
            "SELECT topic, partitions, keep_seconds, keep_messages FROM streams_view_topics"
        ) == [("orders", 2, 60.0, 5)]
        rows = query(
            "SELECT topic, partition, first_offset, end_offset, last_time > 1.6e9"
            " FROM streams_view_partitions ORDER BY partition"
        )
        assert rows == [("orders", 0, 0, 1, 1), ("orders", 1, 0, 2, 1)]
        assert query(
            "SELECT group_name, topic, partition, position, lag FROM streams_view_groups"
            " ORDER BY partition"
        ) == [("billing", "orders", 0, 0, 1), ("billing", "orders", 1, 0, 2)]
    finally:
        log.close()


def test_a_file_from_before_the_views_gets_them(path: Path) -> None:
    open_log(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as file:
        for name in ("topics", "partitions", "groups"):
            file.execute(f"DROP VIEW streams_view_{name}")
        file.commit()
    open_log(f"sqlite:///{path}").close()
    program = f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM "
    program += "streams_view_groups').fetchone())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("(0,)\n", "")
