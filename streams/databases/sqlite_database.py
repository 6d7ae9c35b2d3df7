"""A SQLite file by the standard library's sqlite3, for plain handlers.

SQLite has one writer at a time. A transaction begins as a writer (``BEGIN IMMEDIATE``), so none is
refused half-way; those of one process wait for each other here, in turn, and those of other
processes in SQLite itself.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from typing_extensions import override

from streams.databases.execution import sqlite_rows
from streams.databases.protocol import (
    DAY,
    Busy,
    Database,
    DialectName,
    EndedByHandler,
    FailureKind,
    Rows,
    Session,
    Statement,
    sqlite_failure,
)
from streams.databases.sqlite_files import connect_existing
from streams.errors import ConfigError

BUSY_TIMEOUT = 5.0
"""Seconds that a transaction waits for those of other processes."""


def _is_in_transaction(connection: sqlite3.Connection) -> bool | None:
    """Whether a connection is in a transaction; None: it was closed."""
    try:
        return connection.in_transaction
    except sqlite3.ProgrammingError:
        return None


class _SqliteSession(Session[sqlite3.Connection]):
    def __init__(
        self,
        connection: sqlite3.Connection,
        give_back: Callable[[sqlite3.Connection], None],
        begin: str = "BEGIN IMMEDIATE",
    ) -> None:
        self.connection = connection
        self._take_back = give_back
        self._open = True
        try:
            connection.execute(begin)
        except BaseException:
            self._return_connection()
            raise

    def _return_connection(self) -> None:
        if self._open:
            self._open = False
            self._take_back(self.connection)

    @override
    def execute(self, statement: Statement) -> Rows:
        return sqlite_rows(self.connection, statement)

    @override
    def commit(self) -> None:
        if not _is_in_transaction(self.connection):
            self._return_connection()
            raise EndedByHandler(
                "Sqlite(...)",
                or_else=" (or SQLite rolled back, as where there is no room, and it went on)",
            )
        try:
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise
        finally:
            self._return_connection()

    @override
    def rollback(self, *, close: bool = False) -> None:
        if self._open:
            with suppress(sqlite3.Error):
                self.connection.close() if close else self.connection.execute("ROLLBACK")
            self._return_connection()

    @override
    def is_broken(self) -> bool:
        return False

    @override
    def has_failed(self) -> bool:
        # Most statements that find the disk full, or fail to read or write, roll the transaction
        # back; if one does not, it is unknown whose statement it was.
        return self._open and _is_in_transaction(self.connection) is False


class _BusyInProcess(Busy, sqlite3.OperationalError):
    """This process's own transactions have the file; handled as if another process had it."""

    sqlite_errorname = "SQLITE_BUSY"


class Sqlite(Database[sqlite3.Connection]):
    """A SQLite file of yours, for plain handlers: ``message.transaction`` is a
    :class:`sqlite3.Connection`. It is another file than that of a ``sqlite://`` log, whose own
    transaction (``message.transaction`` without ``transaction=``) does the same without an inbox.

    :param file: the file's path; or a function that returns a new connection to it each time.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    def __init__(
        self,
        file: str | Path | Callable[[], sqlite3.Connection],
        *,
        keep: float = DAY,
        create: bool = True,
    ) -> None:
        super().__init__(keep=keep, create=create)
        if not (isinstance(file, Path) or (isinstance(file, str) and file) or callable(file)):
            raise ConfigError(
                f"Sqlite({type(file).__name__}): a path, or a function that returns a connection"
            )
        if str(file) == ":memory:":
            raise ConfigError(
                "Sqlite(':memory:'): each connection would have a database of its own"
            )
        if isinstance(file, str) and "://" in file:
            raise ConfigError("Sqlite(...): a path such as 'orders.db', not a URL")
        self._source = file
        self._turn = threading.Lock()
        """Held by the one open transaction."""
        self._free_lock = threading.Lock()
        self._free: list[sqlite3.Connection] = []
        self._is_open = False

    @property
    def path(self) -> Path | None:
        """The file's path; None if a function returns the connections."""
        return None if callable(self._source) else Path(self._source)

    @override
    def address(self) -> str | None:
        return None if self.path is None else f"sqlite:///{quote(str(self.path))}"

    @property
    @override
    def asynchronous(self) -> bool:
        return False

    @property
    @override
    def dialect(self) -> DialectName:
        return "sqlite"

    @override
    def classify(self, error: BaseException) -> FailureKind:
        return sqlite_failure(error) if isinstance(error, sqlite3.Error) else FailureKind.FAULT

    @override
    def open(self, connections: int) -> None:
        with self._free_lock:
            self._is_open = True

    @override
    def close(self) -> None:
        # A handler that outlives the app still has its transaction, which is not waited for here.
        with self._free_lock:
            free, self._free, self._is_open = self._free, [], False
        for connection in free:
            connection.close()

    @override
    def begin(self) -> Session[sqlite3.Connection]:
        if not self._turn.acquire(timeout=BUSY_TIMEOUT):
            raise _BusyInProcess(
                f"Sqlite(...): another transaction has lasted for {BUSY_TIMEOUT:g} s"
            )
        try:
            with self._free_lock:
                free = self._free.pop() if self._free else None
            connection = self._connect() if free is None else free
        except BaseException:
            self._turn.release()
            raise
        try:
            return _SqliteSession(connection, self._return_connection)
        except sqlite3.ProgrammingError as error:
            self._refuse_own_thread(error)
            raise

    @override
    def begin_reading(self) -> Session[sqlite3.Connection]:
        if callable(self._source):
            return self.begin()
        connection = connect_existing(
            str(self._source), reading=True, timeout=BUSY_TIMEOUT, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        return _SqliteSession(connection, sqlite3.Connection.close, "BEGIN")

    def _return_connection(self, connection: sqlite3.Connection) -> None:
        """Take back a session's connection; the next session may begin."""
        try:
            with self._free_lock:
                is_kept = self._is_open and _is_in_transaction(connection) is False
                if is_kept:
                    self._free.append(connection)
            if not is_kept:
                connection.close()
        finally:
            self._turn.release()

    def _connect(self) -> sqlite3.Connection:
        if callable(self._source):
            given: Any = self._source()
            given.isolation_level = None  # BEGIN and COMMIT are the toolkit's
            return cast(sqlite3.Connection, given)
        connection = sqlite3.connect(
            self._source, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_own_thread(self, error: sqlite3.ProgrammingError) -> None:
        """:raises ConfigError: a function's connection belongs to one thread."""
        if callable(self._source) and "same thread" in str(error):
            raise ConfigError(
                "Sqlite(function): handlers run in several threads, and the connections that it "
                "returns belong to one each: sqlite3.connect(..., check_same_thread=False)"
            ) from error
