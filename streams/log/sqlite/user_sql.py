"""Users' SQL: the common part of handlers' statements and queries, and queries (``app.query``).

A service that keeps a read model in the log's file must not open that file with another SQLite
library in the same process (closing it would drop the log's locks). The connections here use the
log's own library and follow its rules. Readers and writers never wait for each other, and a
statement sees one committed state of the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import apsw
from typing_extensions import override

from streams.errors import ConfigError
from streams.log.sqlite.database import ConnectionPool, Database, SqliteConnection
from streams.log.sqlite.errors import translate
from streams.log.sqlite.settings import Settings

_BLANK_SQL = re.compile(r"(\s|;|--[^\n]*|/\*.*?(\*/|\Z))*", re.DOTALL)

READ_PRAGMAS = frozenset(
    (
        *("foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo"),
        *("table_info", "table_list", "table_xinfo"),
    )
)
"""Pragmas that only read the schema."""


class GuardedConnection(SqliteConnection):
    """A connection for users' statements, some of which it refuses."""

    caller: ClassVar[str]
    """The name of the call that runs the statements, for errors."""
    can_cache: ClassVar[bool] = True
    """Whether prepared statements may be reused. False where the log's own are run, too: SQLite
    asks the authorizer when it prepares a statement, not when it runs one again."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._path = settings.path
        self._refusal = ""
        """Why the last statement was refused."""
        self.authorizer = self._authorize

    def refuse(self, action: int, first: str | None, second: str | None) -> str:
        """Why an action of SQLite's authorizer, with its arguments, is refused; empty: it is
        allowed."""
        raise NotImplementedError

    def _authorize(
        self, action: int, first: str | None, two: str | None, base: str | None, inner: str | None
    ) -> int:
        reason = self.refuse(action, first, two)
        self._refusal = reason or self._refusal
        return apsw.SQLITE_DENY if reason else apsw.SQLITE_OK

    def run(self, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of one statement.

        :raises ConfigError: ``sql`` is more than one statement, or it is refused.
        :raises LogError: SQLite reports an error, which is the cause.
        """
        self._refusal = ""
        cursor = self.cursor()
        cursor.exec_trace = single_statement(sql, self.caller)
        try:
            return cursor.execute(sql, parameters, can_cache=self.can_cache).fetchall()
        except apsw.Error as error:
            if self._refusal:
                raise ConfigError(f"{self.caller}: {self._refusal}") from error
            raise translate(error, self._path) from error
        finally:
            cursor.close(True)


def single_statement(sql: str, caller: str) -> Callable[[apsw.Cursor, str, Any], bool]:
    """A cursor's tracer that refuses to run more than one statement.

    :raises ConfigError: when it is called, if there are several in ``sql``.
    """

    def trace(_: apsw.Cursor, statement: str, __: Any) -> bool:
        if _BLANK_SQL.fullmatch(statement):
            return True
        statement = statement.strip()
        if not _BLANK_SQL.fullmatch(sql, sql.find(statement) + len(statement)):
            raise ConfigError(f"{caller}: one statement at a time, not several")
        return True

    return trace


_READ_ACTIONS = frozenset(
    (apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE)
)
"""The actions of SQLite's authorizer that change nothing."""


class ReadConnection(GuardedConnection):
    """A connection that refuses everything except reading."""

    caller = "app.query"

    @override
    def refuse(self, action: int, first: str | None, second: str | None) -> str:
        if action in _READ_ACTIONS or (action == apsw.SQLITE_PRAGMA and first in READ_PRAGMAS):
            return ""
        return "the statement does not only read; a handler writes through message.transaction"


STEPS = 100_000
"""Instructions of SQLite's virtual machine between two checks for a cancellation: they take about a
millisecond."""


class QueryRunner:
    """Runs statements that read one log's file. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pool = ConnectionPool(lambda: ReadConnection(database.settings))

    def run(
        self, sql: str, parameters: Any = (), is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[tuple[Any, ...]]:
        """See :meth:`streams.log.protocol.Queryable.query`."""
        self._database.require_open()
        try:
            connection = self._pool.acquire()
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        connection.set_progress_handler(is_cancelled, STEPS)
        try:
            return connection.run(sql, parameters)
        finally:
            connection.set_progress_handler(None)
            self._pool.release(connection)

    def close(self) -> None:
        """Close the connections; those in use close when their statement has ended."""
        self._pool.close()
