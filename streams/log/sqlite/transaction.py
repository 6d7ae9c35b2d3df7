"""A user's own SQL, committed together with a write of the log.

Either both are in the file or neither is. Two such transactions exist:

* :class:`SqliteTransaction` is a handler's (``message.transaction``): its rows are committed with
  the position of the messages it handled, so an effect that is rows of this file happens exactly
  once;
* :class:`SqliteFileTransaction` is for any code (``app.transaction()``): its rows are committed
  with the messages that were published in it.

SQLite has one writer at a time: from its beginning to its end a transaction blocks all other
writers of the file, publishers and other handlers included. Keep it short.

The log's own tables (``streams_…``) may be read but not written, and nothing may end the
transaction but its own ``commit`` and ``rollback``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import apsw
from typing_extensions import override

from streams.errors import LogError
from streams.log.protocol import Commit, FileTransaction, Transaction
from streams.log.sqlite.database import ConnectionPool, Database
from streams.log.sqlite.errors import translate, translate_commit
from streams.log.sqlite.offsets import OffsetCommits
from streams.log.sqlite.producer import Writer
from streams.log.sqlite.shared_file import Holder, topic_event
from streams.log.sqlite.user_sql import READ_PRAGMAS, GuardedConnection
from streams.message import Position, Record

_RESERVED_PREFIX = "streams_"

# The actions of SQLite's authorizer that write. The name of a table comes first or
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


class TransactionConnection(GuardedConnection):
    """A connection that refuses statements that are forbidden in a user's transaction.

    SQLite asks when it prepares a statement, not when it runs one that was prepared before. So our
    own BEGIN, COMMIT and ROLLBACK are kept out of the connection's cache.
    """

    place: ClassVar[str]
    """Where the statements run, for errors."""
    ending: ClassVar[str]
    """Why BEGIN, COMMIT and ROLLBACK are refused."""
    is_trusted = False
    """Whether the log's own statement runs now, which is not refused."""

    @override
    def refuse(self, action: int, first: str | None, second: str | None) -> str:
        if self.is_trusted:
            return ""
        if action == apsw.SQLITE_PRAGMA and first not in READ_PRAGMAS:
            return f"PRAGMA {first} is not available in {self.place}"
        if action in _WRITE_ACTIONS:
            for name in (first, second):
                if name and name.lower().startswith(_RESERVED_PREFIX):
                    return f"{name} belongs to the log ({_RESERVED_PREFIX}…) and may only be read"
        if action == apsw.SQLITE_TRANSACTION:
            return self.ending
        refused = {
            apsw.SQLITE_SAVEPOINT: "SAVEPOINT",
            apsw.SQLITE_ATTACH: "ATTACH",
            apsw.SQLITE_DETACH: "DETACH",
        }.get(action)
        return f"{refused} is not available in {self.place}" if refused else ""


class HandlerConnection(TransactionConnection):
    """The connection of ``message.transaction``."""

    caller = "message.transaction"
    place = "a handler's transaction"
    ending = (
        "BEGIN, COMMIT and ROLLBACK are not the handler's: its transaction commits when it returns "
        "and is rolled back when it raises"
    )


class FileConnection(TransactionConnection):
    """The connection of ``app.transaction()``."""

    caller = "app.transaction()"
    place = "app.transaction()"
    ending = (
        "BEGIN, COMMIT and ROLLBACK are the toolkit's: the transaction commits when the block ends "
        "and is rolled back when it raises"
    )
    can_cache = False


ConnectionT = TypeVar("ConnectionT", bound=TransactionConnection)


class _UserTransaction(Generic[ConnectionT]):
    """The common part of both transactions: each begins with its first statement, at the latest."""

    what_ended: ClassVar[str]
    """Why the transaction has ended, if SQLite did not end it."""

    def __init__(self, database: Database, pool: ConnectionPool[ConnectionT], caller: str) -> None:
        self._database = database
        self._pool = pool
        self._caller = caller
        self._connection: ConnectionT | None = None
        self._ended = False

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one statement, and return its rows.

        :param parameters: a sequence for ``?``, a mapping for ``:name``.
        :raises ConfigError: ``sql`` is more than one statement, would end the transaction, or would
            change the log's own tables.
        :raises Unavailable: others have been writing for too long, or the disk is full.
        :raises LogError: SQLite refuses the statement; its own exception is the cause. The
            transaction goes on, unless the message says that it was rolled back.
        """
        connection = self._begin()
        try:
            rows = connection.run(sql, parameters)
        finally:
            if not connection.in_transaction:
                self._end()
        if self._ended:
            raise LogError(f"{self._caller}: the statement rolled everything back")
        return rows

    def rollback(self) -> None:
        """See :meth:`streams.log.protocol.Transaction.rollback`."""
        if self._connection is not None:
            self._end()
        self._ended = True

    def __del__(self) -> None:
        # A transaction that never ends would block all writers for ever.
        self.rollback()

    def _holder(self) -> Holder:
        raise NotImplementedError

    def _begin(self) -> ConnectionT:
        if self._connection is not None:
            return self._connection
        if self._ended:
            raise LogError(f"{self._caller}: it has ended; {self.what_ended}")
        self._database.require_open()
        write_lock = self._database.shared_file.write_lock
        write_lock.acquire(self._database.settings.write_timeout, self._holder())
        connection: ConnectionT | None = None
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

    def _commit(self, connection: ConnectionT) -> None:
        try:
            connection.execute("COMMIT", can_cache=False)
        except apsw.Error as error:
            raise translate_commit(error, self._database.path) from error

    def _end(self) -> None:
        self._ended = True
        connection, self._connection = self._connection, None
        if connection is not None and not self._database.is_forked:
            connection.is_trusted = True
            connection.roll_back()
            connection.is_trusted = False
            self._pool.release(connection)
            self._database.shared_file.write_lock.release()


class SqliteTransaction(_UserTransaction[HandlerConnection], Transaction):
    """One handler's transaction. It begins with the first statement; one thread at a time."""

    what_ended = "the handler has returned or failed"

    def __init__(
        self, database: Database, offsets: OffsetCommits, pool: ConnectionPool[HandlerConnection]
    ) -> None:
        super().__init__(database, pool, "message.transaction")
        self._offsets = offsets

    @override
    def _holder(self) -> Holder:
        return Holder("a handler's transaction")

    def commit(self, commits: Sequence[Commit]) -> None:
        """See :meth:`streams.log.protocol.Transaction.commit`.

        :raises OutcomeUnknown: the disk failed in the middle of the commit.
        """
        connection = self._begin()
        connection.is_trusted = True
        try:
            store = self._offsets.store_offset
            stored = [commit for commit in commits if store(connection, commit)]
            self._commit(connection)
            self._offsets.mark_committed(stored)
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        finally:
            self._end()


class SqliteFileTransaction(_UserTransaction[FileConnection], FileTransaction):
    """A transaction of the user's SQL and messages. It begins when it is created; one thread at a
    time."""

    what_ended = "the block is over, or SQLite has rolled it back"

    def __init__(
        self, database: Database, writer: Writer, pool: ConnectionPool[FileConnection]
    ) -> None:
        """:raises Unavailable: others have been writing for too long."""
        super().__init__(database, pool, "app.transaction()")
        self._writer = writer
        self._held = Holder("a transaction of app.transaction()")
        self._held.thread = None
        self._topics: dict[str, None] = {}
        self._begin()

    @override
    def _holder(self) -> Holder:
        return self._held

    def append(self, topic: str, records: Sequence[Record]) -> list[Position]:
        """See :meth:`streams.log.protocol.FileTransaction.append`."""
        connection = self._begin()
        connection.is_trusted = True
        try:
            positions = self._writer.append_within(connection, topic, records)
        except apsw.Error as error:
            raise translate(error, self._database.path) from error
        finally:
            connection.is_trusted = False
            if not connection.in_transaction:
                self._end()
        self._topics[topic] = None
        return positions

    def commit(self) -> None:
        """See :meth:`streams.log.protocol.FileTransaction.commit`.

        :raises LogError: SQLite rolled it back before.
        """
        connection = self._begin()
        connection.is_trusted = True
        try:
            self._commit(connection)
            self._database.shared_file.notify(map(topic_event, self._topics))
        finally:
            self._end()
        self._writer.trim(self._topics)

    def interrupt(self) -> None:
        """See :meth:`streams.log.protocol.FileTransaction.interrupt`."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def claim_context(self) -> None:
        """See :meth:`streams.log.protocol.FileTransaction.claim_context`."""
        self._held.claim_context()
