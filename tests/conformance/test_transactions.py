"""Transactions beside each log: the user's database, where the effect is once and what a handler
publishes by itself is not; and those of the log's own file, which SQLite alone has."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streams import ConfigError, Message, Retry, Sqlite
from streams.log.protocol import Committed
from tests.conformance.stage import QUICK, Stage


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction=", "none"])
async def test_what_a_handler_publishes_by_itself_stays_whatever_becomes_of_it(
    stage: Stage, transaction: bool, tmp_path: Path
) -> None:
    """An attempt that fails has published; its effect in a transaction is rolled back, and that of
    the one that succeeds is there once, also when the message comes again."""
    path = tmp_path / "effects.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE effects (value)")
    app = stage.app()
    source = stage.topic(app, partitions=1)
    out = app.topic(f"{stage.topic_name}-out", str, partitions=1)
    attempts: list[int] = []

    def handle(value: int, message: Message[int, sqlite3.Connection]) -> None:
        if transaction:
            message.transaction.execute("INSERT INTO effects VALUES (?)", (value,))
        app.wait(out.publish("unnamed"))
        app.wait(out.publish("named", id=f"mail-{message.id}"))
        attempts.append(value)
        if len(attempts) == 1:
            raise ValueError("after it has published")

    options: dict[str, Any] = {"transaction": Sqlite(path)} if transaction else {}
    retry = Retry(attempts=2, delay=0)
    app.processor(source, group=stage.group, flow=QUICK, retry=retry, **options)(handle)
    async with app:
        await stage.publish(source, 7)
        await stage.committed(app)
        found = await asyncio.to_thread(lambda: list(out.read()))
    assert attempts == [7, 7]
    ids = {word: [each.id for each in found if each.value == word] for word in ("unnamed", "named")}
    assert len(set(ids["unnamed"])) == 2  # nobody downstream takes them for one message
    assert len(set(ids["named"])) == 1  # of which Redis keeps one, and others both
    first = stage.anchor.watermarks(stage.topic_name, 0)[0]
    stage.anchor.reset_offsets(stage.group, stage.topic_name, {0: Committed(first)})
    async with app:
        await stage.committed(app)
    assert len(attempts) == (2 if transaction else 3)
    with closing(sqlite3.connect(path)) as connection:
        effects = connection.execute("SELECT value FROM effects").fetchall()
    assert effects == ([(7,)] if transaction else [])


async def test_a_log_without_a_file_has_no_transaction_of_its_own(stage: Stage) -> None:
    app = stage.app()
    async with app.connected():
        if stage.case.can("transactions"):
            async with app.transaction() as connection:
                assert connection.execute("SELECT 1") == [(1,)]
        else:
            with pytest.raises(ConfigError, match="Outbox"):
                app.transaction()
