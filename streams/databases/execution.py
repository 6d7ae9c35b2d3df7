"""One statement of ours on a connection of each library, whoever opened that.

Nothing is begun or ended here. Rows are tuples, whatever the connection makes of its user's own
(``row_factory``, ``cursor_factory``, dictionaries), and a statement that returns none has none.
Drivers are imported when they are used.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from streams.databases.protocol import Rows, Statement, marked


def psycopg_rows(connection: Any, statement: Statement) -> Rows:
    """On a :class:`psycopg.Connection`."""
    from psycopg import Cursor
    from psycopg.rows import tuple_row

    sql: Any = marked(statement.sql, "%s")
    cursor = Cursor(connection, row_factory=tuple_row)
    cursor.execute(sql, statement.parameters or None)
    return cursor.fetchall() if cursor.description is not None else []


async def async_psycopg_rows(
    connection: Any, statement: Statement, *, binary: bool = False
) -> Rows:
    """On a :class:`psycopg.AsyncConnection`.

    :param binary: have values sent as they are, which costs less where they are large.
    """
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    sql: Any = marked(statement.sql, "%s")
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    await cursor.execute(sql, statement.parameters or None, binary=binary)
    return await cursor.fetchall() if cursor.description is not None else []


def psycopg2_rows(connection: Any, statement: Statement) -> Rows:
    """On a connection of psycopg2."""
    from psycopg2.extensions import cursor as plain  # type: ignore[import-untyped]

    with connection.cursor(cursor_factory=plain) as cursor:
        cursor.execute(marked(statement.sql, "%s"), tuple(statement.parameters) or None)
        return list(cursor.fetchall()) if cursor.description is not None else []


async def asyncpg_rows(connection: Any, statement: Statement) -> Rows:
    """On a connection of asyncpg, also of a pool."""
    rows = await connection.fetch(statement.sql, *statement.parameters)
    return [tuple(row) for row in rows]


def sqlalchemy_rows(connection: Any, statement: Statement) -> Rows:
    """On a connection of SQLAlchemy; with parameters on a session, too."""
    if statement.parameters:
        result = connection.execute(*_clause(statement))
    else:  # as it is: what creates functions has colons
        result = connection.exec_driver_sql(statement.sql)
    return [tuple(row) for row in result] if result.returns_rows else []


async def async_sqlalchemy_rows(connection: Any, statement: Statement) -> Rows:
    """On an async one."""
    if statement.parameters:
        result = await connection.execute(*_clause(statement))
    else:
        result = await connection.exec_driver_sql(statement.sql)
    return [tuple(row) for row in result] if result.returns_rows else []


def _clause(statement: Statement) -> tuple[Any, dict[str, Any]]:
    from sqlalchemy import text

    parameters = {f"p{number}": each for number, each in enumerate(statement.parameters, 1)}
    return text(marked(statement.sql, ":p")), parameters


def django_rows(connection: Any, statement: Statement) -> Rows:
    """On one of ``django.db.connections``."""
    with connection.cursor() as cursor:
        cursor.execute(marked(statement.sql, "%s"), tuple(statement.parameters) or None)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def sqlite_rows(connection: sqlite3.Connection, statement: Statement) -> Rows:
    """On a :class:`sqlite3.Connection`."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(marked(statement.sql, "?"), statement.parameters).fetchall()


async def aiosqlite_rows(connection: Any, statement: Statement) -> Rows:
    """On a connection of aiosqlite."""
    async with connection.cursor() as cursor:
        cursor.row_factory = None
        await cursor.execute(marked(statement.sql, "?"), statement.parameters)
        return [tuple(row) for row in await cursor.fetchall()]
