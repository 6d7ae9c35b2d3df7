"""Connections to the file, and transactions that write.

Each log has one connection that writes, under the process's write lock; reads take connections from
a small pool. Every read is a separate statement that is run to its end or closed, so no reader
holds back a checkpoint and the write-ahead log stays small.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Generic, TypeVar

import apsw

from streams.clock import Clock
from streams.errors import Fatal, LogError, NotFound, Unavailable
from streams.log.sqlite import schema
from streams.log.sqlite.errors import translate, translate_commit, translate_errors
from streams.log.sqlite.settings import Settings
from streams.log.sqlite.shared_file import SharedFile
from streams.text import get_logger
from streams.wire import MAX_PARTITION

logger = get_logger("streams")

_FIND_VIEWS = "SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name = 'streams_view_groups'"

_PAGE_SIZE = 8192
"""Bytes of a new file's pages: large pages suit blocks of messages, small ones commits of
positions."""

_MAX_IDLE = 4

_PRAGMAS = {"journal_size_limit": 64 << 20, "cache_size": -8192}


_TABLES_READ = re.compile(r"(?:FROM|JOIN) (streams_\w+)")


class BusyHandler:
    """Waits while another process has the lock.

    SQLite's own busy handler sleeps up to 100 ms between two tries; writers here hold the lock for
    about a millisecond.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._waiting_since = 0.0

    def __call__(self, tries: int) -> bool:
        """Wait a little; returns whether to try again."""
        now = time.monotonic()
        if tries == 0:
            self._waiting_since = now
        if now - self._waiting_since >= self.timeout:
            return False
        time.sleep(min(0.002, 0.0002 * (tries + 1)))
        return True


class SqliteConnection(apsw.Connection):
    """A connection to the log's file."""

    def __init__(self, settings: Settings) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE
        if settings.mode == "rwc":
            flags |= apsw.SQLITE_OPEN_CREATE
        # Not SQLITE_OPEN_READONLY for mode=ro: such a connection would leave its -wal and -shm
        # files behind.
        super().__init__(settings.path, flags=flags)
        self.busy_handler = BusyHandler(settings.write_timeout)
        self.set_busy_handler(self.busy_handler)
        self.execute(f"PRAGMA synchronous = {settings.synchronous}")
        for name, value in {**_PRAGMAS, **settings.pragmas}.items():
            self.execute(f"PRAGMA {name} = {value:d}").fetchall()
        if settings.mode == "ro":
            self.execute("PRAGMA query_only = ON")
            with suppress(OSError):
                if os.path.getsize(f"{settings.path}-wal"):
                    # The last connection to close would otherwise checkpoint the -wal that a killed
                    # process left.
                    self.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def fetch_rows(self, sql: str, bindings: Any = ()) -> list[Any]:
        """Run a statement to its end, and return its rows.

        :raises LogError: a text among them is not UTF-8, so the driver refuses it.
        """
        try:
            return self.execute(sql, bindings).fetchall()
        except UnicodeDecodeError as error:
            tables = ", ".join(sorted(set(_TABLES_READ.findall(sql))))
            raise LogError(
                f"{self.filename}: a text in {tables} is not UTF-8, so no client of ours wrote it "
                f"({error}): mend or delete that row"
            ) from error

    def fetch_json(self, sql: str, bindings: Any = ()) -> list[Any]:
        """The rows that a statement returns as one JSON array, and so in one step (see blocks)."""
        found: list[Any] = json.loads(self.fetch_rows(sql, bindings)[0][0])
        return found

    def roll_back(self) -> None:
        """Roll back whatever is open."""
        if self.in_transaction:
            with suppress(apsw.Error):  # nothing can be done about it here; the next BEGIN fails
                self.execute("ROLLBACK", can_cache=False)


def fetch_partition(
    db: SqliteConnection, query: str, name: str, partition: int
) -> tuple[Any, ...] | None:
    """The row of one partition; None: there is no such row.

    :param query: takes the name of the topic or collection, and the partition's number.
    """
    if partition > MAX_PARTITION:
        return None  # the number may be too large for SQLite
    rows: list[tuple[Any, ...]] = db.fetch_rows(query, (name, partition))
    return rows[0] if rows else None


def _has_event_tables(connection: SqliteConnection) -> bool:
    return connection.table_exists("main", schema.EVENT_TABLE_NAMES[-1])


def _has_document_tables(connection: SqliteConnection) -> bool:
    return connection.table_exists("main", "streams_documents")


ConnectionT = TypeVar("ConnectionT", bound=SqliteConnection)


class ConnectionPool(Generic[ConnectionT]):
    """Connections of one kind, to be used again (any thread).

    :param connect: opens another connection.
    :param max_idle: how many idle connections are kept.
    """

    def __init__(self, connect: Callable[[], ConnectionT], max_idle: int | None = None) -> None:
        self._connect = connect
        self._max_idle = max_idle
        self._idle: list[ConnectionT] = []
        self._closed = False

    def acquire(self) -> ConnectionT:
        """A connection for exclusive use, until it is released."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def release(self, connection: ConnectionT) -> None:
        """Give back a connection without open statements or transactions."""
        if self._max_idle is not None and len(self._idle) >= self._max_idle:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are released."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class Database:
    """One log's connections to its file. Usable from any thread of the process that opened it."""

    def __init__(self, settings: Settings, clock: Clock, purpose: str = "log") -> None:
        self.settings = settings
        self.path = settings.path
        self.clock = clock
        may_create = settings.mode == "rwc"
        self.shared_file = SharedFile.acquire(self.path, may_create=may_create, purpose=purpose)
        self._pid = os.getpid()
        self.has_event_tables = False
        """False: the file was made before there were histories, and cannot be extended."""
        self._pool = ConnectionPool(lambda: SqliteConnection(settings), _MAX_IDLE)
        self._closed = False
        with ExitStack() as undo, translate_errors(self.path):
            undo.callback(self.shared_file.release)
            self._write_connection = SqliteConnection(settings)
            undo.callback(self._write_connection.close)
            self._prepare_file(self._write_connection)
            undo.pop_all()

    def _prepare_file(self, connection: SqliteConnection) -> None:
        """Create the missing parts of the log, whatever other processes do at the same time.

        :raises NotFound: the file is another program's, or empty and must not be made a log.
        """
        if self.settings.mode != "rwc" and self._schema_version(connection) is None:
            raise NotFound(f"{self.path} is a SQLite database without a log in it: name another")
        if self.settings.mode == "ro":
            self._check_version(connection)
            return
        connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # these two have an effect on a
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # new file only
        encoding = connection.pragma("encoding")
        if encoding != "UTF-8":
            raise Fatal(f"{self.path}: its encoding is {encoding}; only UTF-8 can be used")
        mode = self._enable_wal(connection)
        if mode != "wal":
            raise Fatal(f"{self.path}: SQLite cannot use a write-ahead log here (it is {mode!r})")
        if self._schema_version(connection) is None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute(schema.TABLES)
                connection.execute(schema.EVENT_TABLES)
                connection.execute(schema.DOCUMENT_TABLES)
                connection.execute(
                    "INSERT OR IGNORE INTO streams_meta VALUES"
                    " ('version', ?), ('partitions', 0), ('members', 0)",
                    (schema.VERSION,),
                )
                connection.execute("COMMIT")
            finally:
                connection.roll_back()
        self._check_version(connection)

    def _check_version(self, connection: SqliteConnection) -> None:
        version = self._schema_version(connection)
        if version != schema.VERSION:
            raise Fatal(
                f"{self.path}: written by another version of this package (schema {version}, "
                f"this one reads {schema.VERSION}); install the version that wrote it"
            )
        for is_there, statements in (
            (_has_event_tables(connection), schema.EVENT_TABLES),
            (_has_document_tables(connection), schema.DOCUMENT_TABLES),
            (connection.fetch_rows(_FIND_VIEWS), schema.VIEWS),
        ):
            if not is_there:
                self._add_to_file(connection, statements)
        self.has_event_tables = _has_event_tables(connection)

    def holds_histories(self, connection: SqliteConnection, topic: str) -> bool:
        """Whether a topic is an event topic."""
        return self.has_event_tables and bool(
            connection.fetch_rows("SELECT 1 FROM streams_event_topics WHERE topic = ?", (topic,))
        )

    def _add_to_file(self, connection: SqliteConnection, statements: str) -> None:
        """Add the tables that are newer than the file."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(statements)
            connection.execute("COMMIT")
        except apsw.Error as error:
            # The log works without them, and the next process that opens the file tries again.
            logger.info("the log's file was not extended: %s", error)
        finally:
            connection.roll_back()

    def _enable_wal(self, connection: SqliteConnection) -> str:
        # Switching needs exclusive access and does not wait: SQLite avoids a deadlock.
        deadline = time.monotonic() + self.settings.write_timeout
        while True:
            try:
                return str(connection.fetch_rows("PRAGMA journal_mode = WAL")[0][0])
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    @staticmethod
    def _schema_version(connection: SqliteConnection) -> int | None:
        if not connection.table_exists("main", "streams_meta"):
            return None
        rows = connection.fetch_rows("SELECT value FROM streams_meta WHERE name = 'version'")
        return int(rows[0][0]) if rows else None

    # -- using it

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that opened the log."""
        return os.getpid() != self._pid

    def require_open(self) -> None:
        """Refuse to work after :meth:`close`, or in a forked child.

        :raises Fatal: in a child: SQLite's connections do not survive a fork.
        :raises Unavailable: it is closed.
        """
        if self.is_forked:
            raise Fatal(f"{self.path}: opened before os.fork(); open the log again in the child")
        if self._closed:
            raise Unavailable(f"{self.path}: the log is closed")

    def acquire(self) -> SqliteConnection:
        """A connection for exclusive use, until it is released."""
        self.require_open()
        with translate_errors(self.path):
            return self._pool.acquire()

    def release(self, connection: SqliteConnection) -> None:
        """Give back a connection without open statements or transactions."""
        self._pool.release(connection)

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Generator[SqliteConnection]:
        """A connection for a few statements that read, on one snapshot if requested."""
        connection = self.acquire()
        try:
            with translate_errors(self.path):
                if snapshot:
                    connection.execute("BEGIN")
                yield connection
                if snapshot:
                    connection.execute("END")  # kept prepared, which roll_back()'s is not
        finally:
            connection.roll_back()
            self.release(connection)

    @contextmanager
    def write(
        self,
        timeout: float | None = None,
        on_committed: Callable[[], None] | None = None,
        *,
        sync: bool = True,
    ) -> Generator[SqliteConnection]:
        """A transaction: it is committed when the block ends, and rolled back if the block raises.

        :param timeout: seconds to wait for the lock, instead of the URL's.
        :param on_committed: called when the transaction is in the file, before another thread may
            write.
        :param sync: False: do not wait until it is on the disk. It survives the end of this
            process; a power cut may undo it, unless a later transaction was flushed.
        :raises Unavailable: another transaction holds the write lock, or the disk is full.
        :raises OutcomeUnknown: the disk failed in the middle of the commit.
        """
        self.require_open()
        if self.settings.mode == "ro":
            raise Fatal(f"{self.path}: it was opened read-only (mode=ro)")
        timeout = self.settings.write_timeout if timeout is None else timeout
        self.shared_file.write_lock.acquire(timeout)
        try:
            self.require_open()  # it may have been closed while this waited
            connection = self._write_connection
            connection.busy_handler.timeout = timeout
            without_sync = not sync and self.settings.synchronous == "full"
            if without_sync:
                connection.execute("PRAGMA synchronous = normal")
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            except apsw.Error as error:
                raise translate(error, self.path) from error
            else:
                try:
                    connection.execute("COMMIT")
                except apsw.Error as error:
                    raise translate_commit(error, self.path) from error
                if on_committed is not None:
                    on_committed()
            finally:
                connection.roll_back()
                if without_sync:
                    connection.execute("PRAGMA synchronous = full")
        finally:
            self.shared_file.write_lock.release()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are released."""
        if self.is_forked or self._closed:
            return
        self._closed = True
        self._pool.close()
        try:
            self.shared_file.write_lock.acquire(self.settings.write_timeout)
            try:
                self._write_connection.close()
            finally:
                self.shared_file.write_lock.release()
        finally:
            self.shared_file.release()
