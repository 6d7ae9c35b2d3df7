"""Runs statements on a connection of the user's with an open transaction.

A connection of any known library is used unchanged; nothing is begun, committed or rolled back. The
caller has imported its library already, so none is imported here.

A connection in autocommit mode is refused: a row written there would be published even if the
caller's work is not committed.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from streams.databases import execution
from streams.databases.protocol import DialectName, Rows, Statement, known_dialect
from streams.errors import ConfigError
from streams.inbox.results import NoTransaction

KNOWN = (
    "psycopg, asyncpg, SQLAlchemy (connection or session), Django (django.db.connection), sqlite3, "
    "aiosqlite or psycopg2"
)

_WHERE = "outbox: connection="


@dataclass(frozen=True, slots=True)
class PlainConnection:
    """A connection whose statements block.

    :param execute: runs one statement; its rows.
    """

    dialect: DialectName
    execute: Callable[[Statement], Rows]


@dataclass(frozen=True, slots=True)
class AsyncConnection:
    """A connection whose statements are awaited.

    :param execute: runs one statement; its rows.
    """

    dialect: DialectName
    execute: Callable[[Statement], Awaitable[Rows]]


def connection_of(given: Any) -> PlainConnection | AsyncConnection:
    """Wrap a connection, session or cursor of one of the known libraries.

    :raises NoTransaction: no transaction is open there.
    :raises ConfigError: it is not a connection of a known library.
    """
    for library, adapt in _ADAPTERS.items():
        module = sys.modules.get(library)
        found = None if module is None else adapt(module, given)
        if found is not None:
            return found
    raise ConfigError(f"{_WHERE}{type(given).__name__}: none of {KNOWN}")


def _no_transaction(advice: str) -> NoTransaction:
    return NoTransaction(
        f"{_WHERE}...: no transaction is open there, so the row would be published whatever "
        f"becomes of your work: {advice}"
    )


def _dialect(name: str) -> DialectName:
    found = known_dialect(name)
    if found is None:
        raise ConfigError(f"{_WHERE}...: an outbox is on PostgreSQL or SQLite, not on {name}")
    return found


def _psycopg(psycopg: Any, given: Any) -> PlainConnection | AsyncConnection | None:
    cursors = (psycopg.AsyncCursor, psycopg.Cursor)
    connection = given.connection if isinstance(given, cursors) else given
    if not isinstance(connection, (psycopg.AsyncConnection, psycopg.Connection)):
        return None
    if connection.autocommit and connection.info.transaction_status == 0:
        raise _no_transaction("write `async with connection.transaction():` (plain: `with`)")
    if isinstance(connection, psycopg.AsyncConnection):
        return AsyncConnection("postgresql", partial(execution.async_psycopg_rows, connection))
    return PlainConnection("postgresql", partial(execution.psycopg_rows, connection))


def _asyncpg(asyncpg: Any, given: Any) -> AsyncConnection | None:
    if not isinstance(given, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
        return None
    if not given.is_in_transaction():
        raise _no_transaction("write `async with connection.transaction():`")
    return AsyncConnection("postgresql", partial(execution.asyncpg_rows, given))


def _sqlalchemy(sqlalchemy: Any, given: Any) -> PlainConnection | AsyncConnection | None:
    orm = sys.modules.get("sqlalchemy.orm")
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio is not None and isinstance(
        given, (asyncio.AsyncConnection, asyncio.AsyncSession, asyncio.async_scoped_session)
    ):
        dialect = _sqlalchemy_dialect(getattr(given, "sync_connection", None) or given)
        return AsyncConnection(dialect, partial(execution.async_sqlalchemy_rows, given))
    plain: tuple[Any, ...] = (sqlalchemy.Connection,)
    if orm is not None:
        plain = (*plain, orm.Session, orm.scoped_session)
    if not isinstance(given, plain):
        return None
    dialect = _sqlalchemy_dialect(given)
    return PlainConnection(dialect, partial(execution.sqlalchemy_rows, given))


def _sqlalchemy_dialect(given: Any) -> DialectName:
    """The dialect of a connection or session, which must not be in autocommit mode."""
    bind = given if hasattr(given, "dialect") else given.get_bind()
    if execution.commits_each_statement(bind):
        raise _no_transaction("give a connection without isolation_level='AUTOCOMMIT'")
    return _dialect(bind.dialect.name)


def _django(django: Any, given: Any) -> PlainConnection | None:
    base = sys.modules.get("django.db.backends.base.base")
    if base is None:
        return None
    proxy = sys.modules["django.utils.connection"].ConnectionProxy
    if not isinstance(given, (proxy, base.BaseDatabaseWrapper)):
        return None
    if not (given.in_atomic_block or not given.get_autocommit()):
        raise _no_transaction("write `with transaction.atomic():`")
    return django_connection(given)


def django_connection(connection: Any) -> PlainConnection:
    """A connection of Django's, whether a transaction is open there or not."""
    return PlainConnection(_dialect(connection.vendor), partial(execution.django_rows, connection))


def _sqlite3(sqlite3: Any, given: Any) -> PlainConnection | None:
    connection = given.connection if isinstance(given, sqlite3.Cursor) else given
    if not isinstance(connection, sqlite3.Connection):
        return None
    _check_sqlite(connection)
    return PlainConnection("sqlite", partial(execution.sqlite_rows, connection))


def _aiosqlite(aiosqlite: Any, given: Any) -> AsyncConnection | None:
    if not isinstance(given, aiosqlite.Connection):
        return None
    _check_sqlite(given)
    return AsyncConnection("sqlite", partial(execution.aiosqlite_rows, given))


def _check_sqlite(connection: Any) -> None:
    """Refuse autocommit: ``isolation_level=None``, and Python 3.12's ``autocommit=True``."""
    by_itself = getattr(connection, "autocommit", -1)
    commits = by_itself is True or (by_itself == -1 and connection.isolation_level is None)
    if commits and not connection.in_transaction:
        raise _no_transaction("run BEGIN first, or leave isolation_level as it is")


def _psycopg2(psycopg2: Any, given: Any) -> PlainConnection | None:
    cursor = isinstance(given, psycopg2.extensions.cursor)
    connection = given.connection if cursor else given
    if not isinstance(connection, psycopg2.extensions.connection):
        return None
    if connection.autocommit:
        raise _no_transaction("leave autocommit off")
    return PlainConnection("postgresql", partial(execution.psycopg2_rows, connection))


_ADAPTERS: Mapping[str, Callable[[Any, Any], PlainConnection | AsyncConnection | None]] = {
    "psycopg": _psycopg,
    "asyncpg": _asyncpg,
    "sqlalchemy": _sqlalchemy,
    "django": _django,
    "sqlite3": _sqlite3,
    "aiosqlite": _aiosqlite,
    "psycopg2": _psycopg2,
}
