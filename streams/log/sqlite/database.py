"""Connections to the file, and transactions that write.

One connection a log writes, under the process's write lock; reads take connections from a small
pool. Every read is a statement of its own that is run to its end or closed, so no reader holds
back a checkpoint and the write-ahead log stays small.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import apsw

from streams.clock import Clock
from streams.errors import Fatal, NotFound, Unavailable
from streams.log.sqlite import schema
from streams.log.sqlite.failures import translate, translate_commit, translated
from streams.log.sqlite.settings import Settings
from streams.log.sqlite.shared import Shared
from streams.text import get_logger

logger = get_logger("streams")

_HAS_VIEWS = "SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name = 'streams_view_groups'"

_PAGE_SIZE = 8192
"""Of a new file. Blocks of messages like large pages, commits of positions small ones."""

_IDLE_CONNECTIONS = 4

_PRAGMAS = {"journal_size_limit": 64 << 20, "cache_size": -8192}


class Patience:
    """A busy handler: how long a connection waits while another process has the lock.

    SQLite's own sleeps up to 100 ms between two tries; writers here hold the lock for a
    millisecond or so.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._since = 0.0

    def __call__(self, tries: int) -> bool:
        """Wait a little, and say whether to try again."""
        now = time.monotonic()
        if tries == 0:
            self._since = now
        if now - self._since >= self.timeout:
            return False
        time.sleep(min(0.002, 0.0002 * (tries + 1)))
        return True


def _holds(path: str) -> bool:
    """There is a file, and something in it."""
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


class Connection(apsw.Connection):
    """A connection to the log's file."""

    def __init__(self, settings: Settings) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE
        if settings.mode == "rwc":
            flags |= apsw.SQLITE_OPEN_CREATE
        # Not SQLITE_OPEN_READONLY for one that only looks: such a connection would leave its -wal
        # and -shm files behind.
        super().__init__(settings.path, flags=flags)
        self.patience = Patience(settings.timeout)
        self.set_busy_handler(self.patience)
        self.execute(f"PRAGMA synchronous = {settings.synchronous}")
        for name, value in {**_PRAGMAS, **settings.pragmas}.items():
            self.execute(f"PRAGMA {name} = {value:d}").fetchall()
        if settings.mode == "ro":
            self.execute("PRAGMA query_only = ON")
            if _holds(f"{settings.path}-wal"):
                # The last connection to close would move what a killed process left there.
                self.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def rows(self, sql: str, bindings: Any = ()) -> list[Any]:
        """Run a statement to its end; its rows."""
        return self.execute(sql, bindings).fetchall()

    def array(self, sql: str, bindings: Any = ()) -> list[Any]:
        """What a statement gives as one JSON array: one step, however long it is (see blocks)."""
        found: list[Any] = json.loads(self.rows(sql, bindings)[0][0])
        return found

    def undo(self) -> None:
        """Roll back whatever is open."""
        if self.in_transaction:
            try:
                self.execute("ROLLBACK", can_cache=False)
            except apsw.Error:
                # Nothing can be done about it here, and the next BEGIN will say so.
                return


class Database:
    """One log's connections to its file. Usable from any thread of the process that opened it."""

    def __init__(self, settings: Settings, clock: Clock, what: str = "log") -> None:
        self.settings = settings
        self.path = settings.path
        self.clock = clock
        self.shared = Shared.of(settings.path, make=settings.mode == "rwc", what=what)
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        try:
            with translated(self.path):
                self._writer = Connection(settings)
                try:
                    self._prepare(self._writer)
                except BaseException:
                    self._writer.close()
                    raise
        except BaseException:
            self.shared.give_back()
            raise

    def _prepare(self, connection: Connection) -> None:
        """Make the file ours, whatever other processes do to it at the same time.

        :raises NotFound: it is another program's, or empty, and must not be made a log.
        """
        if self.settings.mode != "rwc" and self._version(connection) is None:
            raise NotFound(f"{self.path} is a SQLite database without a log in it: name another")
        if self.settings.mode == "ro":
            self._check_version(connection)
            return
        connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # these two say something to a
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # new file only
        encoding = connection.pragma("encoding")
        if encoding != "UTF-8":
            raise Fatal(f"{self.path}: its encoding is {encoding}; only UTF-8 can be used")
        mode = self._write_ahead(connection)
        if mode != "wal":
            raise Fatal(f"{self.path}: SQLite cannot use a write-ahead log here (it is {mode!r})")
        if self._version(connection) is None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.execute(schema.TABLES)
                connection.execute(
                    "INSERT OR IGNORE INTO streams_meta VALUES"
                    " ('version', ?), ('partitions', 0), ('members', 0)",
                    (schema.VERSION,),
                )
                connection.execute("COMMIT")
            finally:
                connection.undo()
        self._check_version(connection)

    def _check_version(self, connection: Connection) -> None:
        version = self._version(connection)
        if version != schema.VERSION:
            raise Fatal(
                f"{self.path}: written by another version of this package (schema {version}, "
                f"this one reads {schema.VERSION}); install the version that wrote it"
            )
        if not connection.rows(_HAS_VIEWS):
            self._make_views(connection)

    @staticmethod
    def _make_views(connection: Connection) -> None:
        """Add the views to a file, which may have been made before there were any."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(schema.VIEWS)
            connection.execute("COMMIT")
        except apsw.Error as error:
            # The log itself needs no view: whoever opens the file next tries again.
            logger.info("the views of the log's file were not made: %s", error)
        finally:
            connection.undo()

    def _write_ahead(self, connection: Connection) -> str:
        # Switching needs the file for itself and does not wait: SQLite fears a deadlock.
        deadline = time.monotonic() + self.settings.timeout
        while True:
            try:
                return str(connection.rows("PRAGMA journal_mode = WAL")[0][0])
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    @staticmethod
    def _version(connection: Connection) -> int | None:
        if not connection.table_exists("main", "streams_meta"):
            return None
        rows = connection.rows("SELECT value FROM streams_meta WHERE name = 'version'")
        return int(rows[0][0]) if rows else None

    # -- using it

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the log."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Refuse to work after :meth:`close`, or in a forked child.

        :raises Fatal: in a child: SQLite's connections do not survive a fork.
        :raises Unavailable: it is closed.
        """
        if self.forked:
            raise Fatal(f"{self.path}: opened before os.fork(); open the log again in the child")
        if self._closed:
            raise Unavailable(f"{self.path}: the log is closed")

    def take(self) -> Connection:
        """A connection of one's own, until given back."""
        self.check()
        with self._guard:
            if self._idle:
                return self._idle.pop()
        with translated(self.path):
            return Connection(self.settings)

    def give(self, connection: Connection) -> None:
        """Give a connection back that has nothing open any more."""
        with self._guard:
            if not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Generator[Connection]:
        """A connection for a few statements that read, or for a short look at one snapshot."""
        connection = self.take()
        try:
            with translated(self.path):
                if snapshot:
                    connection.execute("BEGIN")
                yield connection
        finally:
            connection.undo()
            self.give(connection)

    @contextmanager
    def write(
        self,
        timeout: float | None = None,
        committed: Callable[[], None] | None = None,
        *,
        flush: bool = True,
    ) -> Generator[Connection]:
        """A transaction; all of it is in the file when the block ends, nothing if it raises.

        :param timeout: seconds to wait for the turn, instead of the URL's.
        :param committed: called when it is in the file, before anybody else may write.
        :param flush: False: do not wait until it is on the disk. It survives the end of this
            process; a power cut may take it, unless something that was flushed came after it.
        :raises Unavailable: somebody else writes, the disk is full.
        :raises OutcomeUnknown: the disk failed in the middle of the commit.
        """
        self.check()
        if self.settings.mode == "ro":
            raise Fatal(f"{self.path}: it was opened with mode=ro, which only looks")
        timeout = self.settings.timeout if timeout is None else timeout
        self.shared.write.acquire(timeout)
        try:
            self.check()  # it may have been closed while this waited
            connection = self._writer
            connection.patience.timeout = timeout
            relaxed = not flush and self.settings.synchronous == "full"
            if relaxed:
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
                if committed is not None:
                    committed()
            finally:
                connection.undo()
                if relaxed:
                    connection.execute("PRAGMA synchronous = full")
        finally:
            self.shared.write.release()

    def close(self) -> None:
        """Close every connection that is not in use; those in use close when given back."""
        if self.forked or self._closed:
            return
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        try:
            self.shared.write.acquire(self.settings.timeout)
            try:
                self._writer.close()
            finally:
                self.shared.write.release()
        finally:
            self.shared.give_back()
