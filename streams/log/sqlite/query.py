"""Reading the file with SQL, beside everything that writes it: ``app.query``.

A service that keeps a read model in the log's file must not open that file with another SQLite
library in the same process (closing it would drop the log's locks). These connections belong to the
log's own library and its rules. Readers and writers never wait for each other, and a statement sees
one committed state of the whole file.
"""

from __future__ import annotations

from typing import Any

import apsw
from typing_extensions import override

from streams.log.sqlite.database import ConnectionPool, Database
from streams.log.sqlite.errors import translate
from streams.log.sqlite.user_sql import READ_PRAGMAS, GuardedConnection

_READ_ACTIONS = frozenset(
    (apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE)
)
"""The actions of SQLite's authorizer that change nothing."""


class ReadConnection(GuardedConnection):
    """A connection that refuses everything but reading."""

    caller = "app.query"

    @override
    def refuse(self, action: int, first: str | None, second: str | None) -> str:
        if action in _READ_ACTIONS or (action == apsw.SQLITE_PRAGMA and first in READ_PRAGMAS):
            return ""
        return "the statement does not only read; a handler writes through message.transaction"


class QueryRunner:
    """Statements that read one log's file. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pool = ConnectionPool(lambda: ReadConnection(database.settings))

    def run(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """See :meth:`streams.log.protocol.Queryable.query`."""
        self._database.require_open()
        try:
            connection = self._pool.acquire()
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        try:
            return connection.run(sql, parameters)
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        """Close the connections; those in use close when their statement has ended."""
        self._pool.close()
