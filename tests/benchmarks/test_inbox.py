"""The loop by hand beside the inbox does the inbox's transaction."""

from __future__ import annotations

import psycopg

from benchmarks.inbox import _InboxTables, _make_inbox_tables, _Polled


async def test_the_loop_by_hand_records_messages_as_the_inbox_does(postgres: str) -> None:
    _make_inbox_tables(postgres)
    polled = [_Polled(f"m{number}", 0, number, b"{}") for number in range(3)]
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        tables = _InboxTables()
        assert await tables.take(connection, polled[0])
        assert await tables.take_all(connection, polled) == polled[1:]
        assert not await tables.take(connection, polled[2])
