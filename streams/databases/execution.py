"""Runs a statement of the toolkit on a connection of any library, whoever opened it; and classifies
the drivers' errors.

No transaction is begun or ended here. Rows are tuples, whatever the connection's own row type
(``row_factory``, ``cursor_factory``, dictionaries); a statement without rows returns an empty list.
Drivers are imported when they are used.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from streams.databases.protocol import (
    FailureKind,
    Rows,
    Statement,
    convert_parameters,
    failure_of_state,
)

# -- psycopg


def psycopg_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on a :class:`psycopg.Connection`."""
    from psycopg import Cursor
    from psycopg.rows import tuple_row

    sql: Any = convert_parameters(statement.sql, "%s")
    cursor = Cursor(connection, row_factory=tuple_row)
    cursor.execute(sql, statement.parameters or None)
    return cursor.fetchall() if cursor.rownumber is not None else []


async def async_psycopg_rows(
    connection: Any, statement: Statement, *, binary: bool = False
) -> Rows:
    """Run a statement on a :class:`psycopg.AsyncConnection`.

    :param binary: send values in binary form, which costs less if they are large.
    """
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    sql: Any = convert_parameters(statement.sql, "%s")
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    await cursor.execute(sql, statement.parameters or None, binary=binary)
    return await cursor.fetchall() if cursor.rownumber is not None else []


def psycopg_failure(error: BaseException) -> FailureKind:
    """The kind of failure of an error of psycopg or its pool."""
    try:
        import psycopg
    except ImportError:
        return FailureKind.FAULT
    if not isinstance(error, psycopg.Error):
        return FailureKind.FAULT
    if error.sqlstate is not None:
        return failure_of_state(error.sqlstate)
    # An error without a code comes from the client: no connection could be made, or it is lost.
    return (
        FailureKind.UNREACHABLE
        if isinstance(error, psycopg.OperationalError)
        else FailureKind.FAULT
    )


def psycopg2_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on a connection of psycopg2."""
    from psycopg2.extensions import cursor as plain  # type: ignore[import-untyped]

    with connection.cursor(cursor_factory=plain) as cursor:
        cursor.execute(convert_parameters(statement.sql, "%s"), tuple(statement.parameters) or None)
        return list(cursor.fetchall()) if cursor.description is not None else []


# -- asyncpg


async def asyncpg_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on a connection of asyncpg, also one of a pool."""
    rows = await connection.fetch(statement.sql, *statement.parameters)
    return [tuple(row) for row in rows]


def asyncpg_failure(error: BaseException) -> FailureKind:
    """The kind of failure of an error of asyncpg or its pool."""
    try:
        import asyncpg  # type: ignore[import-untyped]
    except ImportError:
        return FailureKind.FAULT
    if isinstance(error, asyncpg.InternalClientError):
        # A connection that is lost in the middle of an operation may raise this: try another.
        return FailureKind.CONFLICT
    if isinstance(error, asyncpg.PostgresError):
        return failure_of_state(getattr(error, "sqlstate", None))
    if isinstance(error, (asyncpg.InterfaceError, OSError, TimeoutError)):
        return FailureKind.UNREACHABLE
    return FailureKind.FAULT


# -- SQLAlchemy, Django


def sqlalchemy_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on a connection of SQLAlchemy; with parameters on a session, too."""
    if statement.parameters:
        result = connection.execute(*_text_clause(statement))
    else:  # unparsed: statements that create functions have colons
        result = connection.exec_driver_sql(statement.sql)
    return [tuple(row) for row in result] if result.returns_rows else []


async def async_sqlalchemy_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on an async connection of SQLAlchemy."""
    if statement.parameters:
        result = await connection.execute(*_text_clause(statement))
    else:
        result = await connection.exec_driver_sql(statement.sql)
    return [tuple(row) for row in result] if result.returns_rows else []


def _text_clause(statement: Statement) -> tuple[Any, dict[str, Any]]:
    from sqlalchemy import text

    parameters = {f"p{number}": each for number, each in enumerate(statement.parameters, 1)}
    return text(convert_parameters(statement.sql, ":p")), parameters


def commits_each_statement(bound: Any) -> bool:
    """Whether a connection or an engine has ``isolation_level="AUTOCOMMIT"``."""
    level = bound.get_execution_options().get("isolation_level")
    if level is None:  # not among the options if it was given to create_engine()
        level = getattr(bound.dialect, "_on_connect_isolation_level", None)
    return bool(level == "AUTOCOMMIT")


def django_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on one of ``django.db.connections``."""
    with connection.cursor() as cursor:
        cursor.execute(convert_parameters(statement.sql, "%s"), tuple(statement.parameters) or None)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


# -- SQLite


def sqlite_rows(connection: sqlite3.Connection, statement: Statement) -> Rows:
    """Run a statement on a :class:`sqlite3.Connection`."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(convert_parameters(statement.sql, "?"), statement.parameters).fetchall()


async def aiosqlite_rows(connection: Any, statement: Statement) -> Rows:
    """Run a statement on a connection of aiosqlite."""
    async with connection.cursor() as cursor:
        cursor.row_factory = None
        await cursor.execute(convert_parameters(statement.sql, "?"), statement.parameters)
        return [tuple(row) for row in await cursor.fetchall()]
