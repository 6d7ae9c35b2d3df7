"""A handler's own SQL, committed together with the position of what it handled.

Either both are in the file or neither is, so an effect that is rows of this file happens exactly
once. SQLite has one writer at a time: from its first statement to its end a transaction keeps
everybody else from writing to the file, publishers and other handlers included. Keep it short.

The log's own tables (``streams_…``) may be read but not written, and nothing may end the
transaction but :meth:`StoredTransaction.commit` and :meth:`StoredTransaction.rollback`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import apsw

from streams.errors import ConfigError, LogError
from streams.log.protocol import Commit
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.failures import translate, translate_commit
from streams.log.sqlite.roster import Roster
from streams.log.sqlite.settings import Settings

C = TypeVar("C", bound=Connection)

_RESERVED = "streams_"

_SPACE = re.compile(r"(\s|;|--[^\n]*|/\*.*?(\*/|\Z))*", re.DOTALL)

# The actions of SQLite's authorizer that change something, and which of the two names that it
# gives are reserved: a table's (or its own) comes first or second, depending on the action.
_CHANGES = frozenset(
    (
        *(apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE, apsw.SQLITE_ALTER_TABLE),
        *(apsw.SQLITE_CREATE_TABLE, apsw.SQLITE_CREATE_TEMP_TABLE, apsw.SQLITE_CREATE_VTABLE),
        *(apsw.SQLITE_CREATE_INDEX, apsw.SQLITE_CREATE_TEMP_INDEX),
        *(apsw.SQLITE_CREATE_TRIGGER, apsw.SQLITE_CREATE_TEMP_TRIGGER),
        *(apsw.SQLITE_CREATE_VIEW, apsw.SQLITE_CREATE_TEMP_VIEW),
        *(apsw.SQLITE_DROP_TABLE, apsw.SQLITE_DROP_INDEX, apsw.SQLITE_DROP_TRIGGER),
    )
)
_REFUSED = {
    apsw.SQLITE_TRANSACTION: "BEGIN, COMMIT and ROLLBACK are not the handler's: its transaction "
    "commits when it returns and is rolled back when it raises",
    apsw.SQLITE_SAVEPOINT: "SAVEPOINT is not available in a handler's transaction",
    apsw.SQLITE_ATTACH: "ATTACH is not available in a handler's transaction",
    apsw.SQLITE_DETACH: "DETACH is not available in a handler's transaction",
}
PRAGMAS = frozenset(
    (
        *("foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo"),
        *("table_info", "table_list", "table_xinfo"),
    )
)


class HandlerConnection(Connection):
    """A connection that refuses what a handler must not do.

    SQLite asks when it prepares a statement, not when it runs one that was prepared before. So our
    own BEGIN, COMMIT and ROLLBACK are kept out of the connection's cache.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.trusted = False
        """Our own statements pass."""
        self.refused = ""
        """Why the last statement was refused."""
        self.authorizer = self._authorize

    def _authorize(
        self, action: int, one: str | None, two: str | None, base: str | None, inner: str | None
    ) -> int:
        if not self.trusted:
            reason = _REFUSED.get(action, "")
            if action == apsw.SQLITE_PRAGMA and one not in PRAGMAS:
                reason = f"PRAGMA {one} is not available in a handler's transaction"
            elif action in _CHANGES:
                ours = next((n for n in (one, two) if n and n.lower().startswith(_RESERVED)), None)
                if ours:
                    reason = f"{ours} belongs to the log ({_RESERVED}…) and may only be read"
            if reason:
                self.refused = reason
                return apsw.SQLITE_DENY
        return apsw.SQLITE_OK


def only_one(sql: str, caller: str) -> Callable[[apsw.Cursor, str, Any], bool]:
    """A cursor's tracer that refuses to run more than one statement.

    :raises ConfigError: when it is called, if there are several in ``sql``.
    """

    def trace(_: apsw.Cursor, statement: str, __: Any) -> bool:
        if _SPACE.fullmatch(statement):
            return True
        statement = statement.strip()
        if not _SPACE.fullmatch(sql, sql.find(statement) + len(statement)):
            raise ConfigError(f"{caller}: one statement at a time, not several")
        return True

    return trace


class Pool(Generic[C]):
    """Connections of one kind, to be used again. Any thread.

    :param make: makes another one.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._idle: list[C] = []
        self._closed = False

    def take(self) -> C:
        """A connection of one's own, until given back."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()

    def give(self, connection: C) -> None:
        """Give a connection back that has nothing open any more."""
        self._idle.append(connection)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close all; those in use close when given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class StoredTransaction:
    """One handler's transaction. It begins with the first statement; one thread at a time."""

    def __init__(self, database: Database, roster: Roster, pool: Pool[HandlerConnection]) -> None:
        self._database = database
        self._roster = roster
        self._pool = pool
        self._connection: HandlerConnection | None = None
        self._ended = False

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one statement; the rows it returns.

        :param parameters: a sequence for ``?``, a mapping for ``:name``.
        :raises ConfigError: it is more than one statement, would end the transaction, or would
            change the log's own tables.
        :raises Unavailable: others have been writing for too long, or the disk is full.
        :raises LogError: SQLite refuses it, and its own exception is the cause. The transaction
            goes on, unless the message says that nothing is left of it.
        """
        connection = self._begin()
        connection.refused = ""

        cursor = connection.cursor()
        cursor.exec_trace = only_one(sql, "message.transaction")
        try:
            rows = cursor.execute(sql, parameters).fetchall()
        except apsw.Error as error:
            if connection.refused:
                raise ConfigError(f"message.transaction: {connection.refused}") from error
            raise translate(error, self._database.path) from error
        finally:
            cursor.close(True)
            if not connection.in_transaction:
                self._end()
        if self._ended:
            raise LogError("message.transaction: the statement rolled everything back")
        return rows

    def commit(self, commits: Sequence[Commit]) -> None:
        """Commit the handler's rows and these places together.

        :raises Fenced: a partition is no longer owned; everything was rolled back.
        :raises Unavailable: nothing was written, try again.
        :raises OutcomeUnknown: the disk failed in the middle of it.
        """
        connection = self._begin()
        connection.trusted = True
        try:
            stored = [commit for commit in commits if self._roster.store(connection, commit)]
            try:
                connection.execute("COMMIT", can_cache=False)
            except apsw.Error as error:
                raise translate_commit(error, self._database.path) from error
            self._roster.stored(stored)
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        finally:
            self._end()

    def rollback(self) -> None:
        """Undo everything; harmless when there is nothing to undo."""
        if self._connection is not None:
            self._end()
        self._ended = True

    def __del__(self) -> None:
        # A transaction that nobody ended would keep everybody from writing for ever.
        self.rollback()

    def _begin(self) -> HandlerConnection:
        if self._connection is not None:
            return self._connection
        if self._ended:
            raise LogError("message.transaction: it has ended; the handler has returned or failed")
        self._database.check()
        turn = self._database.shared.write
        turn.acquire(self._database.settings.timeout, handler=True)
        connection: HandlerConnection | None = None
        try:
            connection = self._pool.take()
            connection.trusted = True
            connection.execute("BEGIN IMMEDIATE", can_cache=False)
        except BaseException as error:
            turn.release()
            if connection is not None:
                connection.close()
            if isinstance(error, apsw.Error):
                raise translate(error, self._database.path) from error
            raise
        connection.trusted = False
        self._connection = connection
        return connection

    def _end(self) -> None:
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None and not self._database.forked:
            connection.trusted = True
            connection.undo()
            connection.trusted = False
            self._pool.give(connection)
            self._database.shared.write.release()
