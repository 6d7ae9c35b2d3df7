"""A handler's own SQL, committed together with the position of what it handled.

Either both are in the file or neither is, so an effect that is rows of this file happens exactly
once. SQLite has one writer at a time: from its first statement to its end a transaction blocks all
other writers of the file, publishers and other handlers included. Keep it short.

The log's own tables (``streams_…``) may be read but not written, and nothing may end the
transaction but :meth:`SqliteTransaction.commit` and :meth:`SqliteTransaction.rollback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
from typing_extensions import override

from streams.errors import LogError
from streams.log.protocol import Commit, Transaction
from streams.log.sqlite.database import ConnectionPool, Database
from streams.log.sqlite.errors import translate, translate_commit
from streams.log.sqlite.offsets import OffsetCommits
from streams.log.sqlite.user_sql import READ_PRAGMAS, GuardedConnection

_RESERVED_PREFIX = "streams_"

# The actions of SQLite's authorizer that change something. The name of a table comes first or
# second, depending on the action.
_WRITE_ACTIONS = frozenset(
    (
        *(apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE, apsw.SQLITE_ALTER_TABLE),
        *(apsw.SQLITE_CREATE_TABLE, apsw.SQLITE_CREATE_TEMP_TABLE, apsw.SQLITE_CREATE_VTABLE),
        *(apsw.SQLITE_CREATE_INDEX, apsw.SQLITE_CREATE_TEMP_INDEX),
        *(apsw.SQLITE_CREATE_TRIGGER, apsw.SQLITE_CREATE_TEMP_TRIGGER),
        *(apsw.SQLITE_CREATE_VIEW, apsw.SQLITE_CREATE_TEMP_VIEW),
        *(apsw.SQLITE_DROP_TABLE, apsw.SQLITE_DROP_INDEX, apsw.SQLITE_DROP_TRIGGER),
    )
)
_REFUSED_ACTIONS = {
    apsw.SQLITE_TRANSACTION: "BEGIN, COMMIT and ROLLBACK are not the handler's: its transaction "
    "commits when it returns and is rolled back when it raises",
    apsw.SQLITE_SAVEPOINT: "SAVEPOINT is not available in a handler's transaction",
    apsw.SQLITE_ATTACH: "ATTACH is not available in a handler's transaction",
    apsw.SQLITE_DETACH: "DETACH is not available in a handler's transaction",
}


class HandlerConnection(GuardedConnection):
    """A connection that refuses what a handler must not do.

    SQLite asks when it prepares a statement, not when it runs one that was prepared before. So our
    own BEGIN, COMMIT and ROLLBACK are kept out of the connection's cache.
    """

    caller = "message.transaction"
    is_trusted = False
    """Our own statements are not refused."""

    @override
    def refuse(self, action: int, first: str | None, second: str | None) -> str:
        if self.is_trusted:
            return ""
        if action == apsw.SQLITE_PRAGMA and first not in READ_PRAGMAS:
            return f"PRAGMA {first} is not available in a handler's transaction"
        if action in _WRITE_ACTIONS:
            for name in (first, second):
                if name and name.lower().startswith(_RESERVED_PREFIX):
                    return f"{name} belongs to the log ({_RESERVED_PREFIX}…) and may only be read"
        return _REFUSED_ACTIONS.get(action, "")


class SqliteTransaction(Transaction):
    """One handler's transaction. It begins with the first statement; one thread at a time."""

    def __init__(
        self, database: Database, offsets: OffsetCommits, pool: ConnectionPool[HandlerConnection]
    ) -> None:
        self._database = database
        self._offsets = offsets
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
        try:
            rows = connection.run(sql, parameters)
        finally:
            if not connection.in_transaction:
                self._end()
        if self._ended:
            raise LogError("message.transaction: the statement rolled everything back")
        return rows

    def commit(self, commits: Sequence[Commit]) -> None:
        """See :meth:`streams.log.protocol.Transaction.commit`.

        :raises OutcomeUnknown: the disk failed in the middle of it.
        """
        connection = self._begin()
        connection.is_trusted = True
        try:
            store = self._offsets.store_offset
            stored = [commit for commit in commits if store(connection, commit)]
            try:
                connection.execute("COMMIT", can_cache=False)
            except apsw.Error as error:
                raise translate_commit(error, self._database.path) from error
            self._offsets.mark_committed(stored)
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        finally:
            self._end()

    def rollback(self) -> None:
        """See :meth:`streams.log.protocol.Transaction.rollback`."""
        if self._connection is not None:
            self._end()
        self._ended = True

    def __del__(self) -> None:
        # A transaction that is never ended would block all writers for ever.
        self.rollback()

    def _begin(self) -> HandlerConnection:
        if self._connection is not None:
            return self._connection
        if self._ended:
            raise LogError("message.transaction: it has ended; the handler has returned or failed")
        self._database.require_open()
        write_lock = self._database.shared_file.write_lock
        write_lock.acquire(self._database.settings.write_timeout, for_handler=True)
        connection: HandlerConnection | None = None
        try:
            connection = self._pool.acquire()
            connection.is_trusted = True
            connection.execute("BEGIN IMMEDIATE", can_cache=False)
        except BaseException as error:
            write_lock.release()
            if connection is not None:
                connection.close()
            if isinstance(error, apsw.Error):
                raise translate(error, self._database.path) from error
            raise
        connection.is_trusted = False
        self._connection = connection
        return connection

    def _end(self) -> None:
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None and not self._database.is_forked:
            connection.is_trusted = True
            connection.roll_back()
            connection.is_trusted = False
            self._pool.release(connection)
            self._database.shared_file.write_lock.release()
