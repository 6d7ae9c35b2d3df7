"""Reading the file with SQL, beside everything that writes it: ``app.query``.

A service that keeps a read model in the log's file must not open that file with another SQLite
library in the same process (closing it would drop the log's locks). These connections belong to the
log's own library and its rules. Readers and writers never wait for each other, and a statement sees
one committed state of the whole file.
"""

from __future__ import annotations

from typing import Any

import apsw

from streams.errors import ConfigError
from streams.log.sqlite.database import ConnectionPool, Database, SqliteConnection
from streams.log.sqlite.errors import translate
from streams.log.sqlite.settings import Settings
from streams.log.sqlite.user_sql import READ_PRAGMAS, single_statement

_READ_ACTIONS = frozenset(
    (apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE)
)
"""The actions of SQLite's authorizer that change nothing."""


class ReadConnection(SqliteConnection):
    """A connection that refuses everything but reading."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.was_refused = False
        """The last statement was refused."""
        self.authorizer = self._authorize

    def _authorize(
        self, action: int, first: str | None, two: str | None, base: str | None, inner: str | None
    ) -> int:
        if action in _READ_ACTIONS or (action == apsw.SQLITE_PRAGMA and first in READ_PRAGMAS):
            return apsw.SQLITE_OK
        self.was_refused = True
        return apsw.SQLITE_DENY


class QueryRunner:
    """Statements that read one log's file. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pool = ConnectionPool(lambda: ReadConnection(database.settings))

    def run(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement.

        :raises ConfigError: it is more than one statement, or does not only read.
        :raises LogError: SQLite refuses it, and its own exception is the cause.
        """
        self._database.require_open()
        try:
            connection = self._pool.acquire()
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        connection.was_refused = False
        cursor = connection.cursor()
        cursor.exec_trace = single_statement(sql, "app.query")
        try:
            return cursor.execute(sql, parameters).fetchall()
        except apsw.Error as error:
            if connection.was_refused:
                raise ConfigError(
                    "app.query: the statement does not only read; a handler writes through "
                    "message.transaction"
                ) from error
            raise translate(error, self._database.path) from error
        finally:
            cursor.close(True)
            self._pool.release(connection)

    def close(self) -> None:
        """Close the connections; those in use close when their statement has ended."""
        self._pool.close()
