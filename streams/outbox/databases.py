"""A relay's own connections to the database: PostgreSQL by psycopg or asyncpg, SQLite by sqlite3.

A relay runs statements one after the other on one connection, and is woken by another: by
PostgreSQL's ``LISTEN``, and on SQLite by polling ``PRAGMA data_version`` every few milliseconds.
Errors of a driver become :class:`~streams.errors.Unavailable` if another attempt may succeed, else
:class:`~streams.errors.LogError`.

Statements are run, and errors classified, by :mod:`streams.databases`. Its sessions are not used:
each is a transaction on a connection of a pool, while a relay has one connection for its whole
life, on which statements are committed one by one, and which holds a lock and has its own settings.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from typing_extensions import override

from streams.cancellation import run_to_completion
from streams.databases import execution
from streams.databases.addresses import (
    has_words,
    place_of,
    read_postgres,
    scheme_of,
    secrets_of,
    sqlite_file,
)
from streams.databases.protocol import (
    FailureKind,
    Statement,
    Steps,
    convert_parameters,
    run_steps,
    run_steps_async,
    sqlite_failure,
    sqlstate_of,
)
from streams.databases.sqlite_files import connect_existing
from streams.errors import ConfigError, LogError, Unavailable
from streams.log.protocol import OpenMode
from streams.outbox.connections import AsyncConnection, PlainConnection
from streams.outbox.tables import (
    NO_PARAMETERS,
    ROW_BYTES,
    Dialect,
    Parameters,
    PostgresDialect,
    RelayRow,
    SqliteDialect,
    TableNames,
    rows_of_document,
    statement,
)
from streams.text import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOOK_EVERY = 0.005
"""Seconds between two checks whether a SQLite file has changed."""

FORMS = "postgresql://user@host/database, or sqlite:///file.db"


T = TypeVar("T")


class RelayDatabase(ABC):
    """One connection, opened by :meth:`connect`. Statements run one at a time, in the order of the
    calls."""

    def __init__(self, place: str) -> None:
        self.place = place
        """The database's address without secrets."""
        self._deleting: RelayDatabase = self
        """The database on whose connection rows are deleted."""

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """The database's statements."""

    @abstractmethod
    async def connect(self, lease: float) -> None:
        """Connect.

        :param lease: seconds after which an idle transaction is given up.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the open connections."""

    @abstractmethod
    async def execute(self, sql: str, parameters: Parameters = NO_PARAMETERS) -> list[Any]:
        """Run one statement and commit it; returns its rows."""

    async def fetch_rows(self, parameters: Parameters) -> list[RelayRow]:
        """The rows of :meth:`~streams.outbox.tables.Dialect.fetch_rows`, of one topic if one is
        given."""
        sql = self.dialect.fetch_rows(of_topic="topic" in parameters)
        return list(map(RelayRow._make, await self.execute(sql, parameters)))

    async def connect_to_delete(self, lease: float) -> None:  # noqa: B027 - where it is of use
        """Open a connection on which rows are deleted while others are read.

        :param lease: see :meth:`connect`.
        """

    async def delete_rows(self, sequences: Sequence[int]) -> None:
        """Delete rows that the log has confirmed."""
        given = {"sequences": self.dialect.list_parameter(sequences)}
        await self._deleting.execute(self.dialect.delete_rows(), given)

    @abstractmethod
    async def transaction(self, steps: Steps[T]) -> T:
        """Run statements that are committed together; returns the result of ``steps``.

        :param steps: may run in another thread, and changes nothing but the database.
        """

    @abstractmethod
    async def listen(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever rows were written, until it fails or is cancelled."""

    async def create_tables(self) -> None:
        """Create the tables where they are missing.

        :raises LogError: that is not allowed.
        """
        if await self.has_tables():
            return
        await self.transaction(self._create_tables())

    def _create_tables(self) -> Steps[None]:
        yield from self.lock_relays()
        for sql in self.dialect.schema():
            yield statement(sql)
        for bucket in range(self.dialect.bucket_count):
            yield statement(self.dialect.add_bucket(), {"bucket": bucket})

    @abstractmethod
    async def has_tables(self) -> bool:
        """Whether all tables exist."""

    async def has_topic_index(self) -> bool:
        """Whether one topic's rows can be read alone: an outbox that an earlier version of this
        package created has no index for that."""
        return bool((await self.execute(self.dialect.has_topic_index()))[0][0])

    @abstractmethod
    def lock_relays(self) -> Steps[None]:
        """Keep other relays from creating tables or changing ownership until the transaction
        ends."""

    @abstractmethod
    async def take_lock(self, number: int) -> None:
        """Hold a lock for the life of this connection, which shows the other relays that it
        lives."""

    @abstractmethod
    def is_gone(self, number: int) -> Steps[bool]:
        """Whether the holder of this lock has certainly ended."""


# -- PostgreSQL

_HAS_TABLES = "SELECT to_regclass(:outbox) IS NOT NULL AND to_regclass(:buckets) IS NOT NULL"
_COLUMN_TYPES = (
    "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute "
    "WHERE attrelid = to_regclass(:outbox) AND attnum > 0 AND NOT attisdropped"
)
_IN_ORDER = tuple(f"SET enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort"))
"""Makes the planner read rows in the order of their index, and no further than needed, whatever its
statistics: those of a queue are always outdated."""

_FEWER_PROMISES = "SET synchronous_commit = off"
"""If a crash of the server undoes a deletion, the row is published again, under the same ID."""


class PostgresDatabase(RelayDatabase):
    """The common part of both drivers."""

    def __init__(self, dsn: str, tables: TableNames) -> None:
        super().__init__(place_of(dsn))
        self.dsn = dsn
        self._secrets = secrets_of(dsn)
        self._dialect = PostgresDialect(tables)
        self._turn = asyncio.Lock()

    @property
    @override
    def dialect(self) -> PostgresDialect:
        return self._dialect

    @abstractmethod
    def _classify(self, error: Exception) -> FailureKind:
        """The kind of failure of a driver's error."""

    async def _translate_errors(self, awaitable: Any) -> Any:
        """Await a call of the driver, and translate its errors.

        :raises Unavailable: it may succeed later.
        :raises LogError: the server refuses it.
        """
        try:
            return await awaitable
        except Exception as error:
            self._secrets.hide_in_error(error)
            failure = self._classify(error)
            if failure is FailureKind.FAULT and sqlstate_of(error) is None:
                raise  # not an answer of the server
            kind = LogError if failure is FailureKind.FAULT else Unavailable
            raise kind(f"{self.place}: {one_line(str(error))}") from error

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def _execute(self, statement: Statement) -> list[Any]: ...

    @override
    async def execute(self, sql: str, parameters: Parameters = NO_PARAMETERS) -> list[Any]:
        async with self._turn:
            return await self._execute(statement(sql, parameters))

    @override
    async def connect(self, lease: float) -> None:
        await self.open(lease)
        tables = self.dialect.tables
        types = dict(map(tuple, await self.execute(_COLUMN_TYPES, {"outbox": tables.outbox})))
        if types and (missing := self.dialect.missing_columns(types)):
            raise LogError(
                f"{self.place}: the table {tables.table} has no column {', '.join(missing)}, as "
                f"one that was made for Debezium; run: {self.dialect.add_columns(missing)}"
            )
        if "payload" in types:
            self.dialect.read_payload_as(types["payload"])

    @override
    async def connect_to_delete(self, lease: float) -> None:
        self._deleting = other = type(self)(self.dsn, self.dialect.tables)
        await other.open(lease)

    async def open(self, lease: float) -> None:
        """Connect, without checking the tables.

        :param lease: see :meth:`connect`.
        """
        await self._open()
        milliseconds = max(1, int(lease * 1000))
        for setting in (
            f"SET idle_in_transaction_session_timeout = {milliseconds}",
            f"SET lock_timeout = {milliseconds}",
            "SET application_name = 'streams outbox relay'",
            *_IN_ORDER,
            _FEWER_PROMISES,
        ):
            await self.execute(setting)

    @override
    async def close(self) -> None:
        if self._deleting is not self:
            await self._deleting.close()
        await self._close()

    @override
    async def has_tables(self) -> bool:
        tables = self.dialect.tables
        names = {"outbox": tables.outbox, "buckets": tables.buckets}
        return bool((await self.execute(_HAS_TABLES, names))[0][0])

    @override
    async def transaction(self, steps: Steps[T]) -> T:
        async with self._turn:
            try:
                await self._execute(Statement("BEGIN"))
                result = await run_steps_async(AsyncConnection("postgresql", self._execute), steps)
                await self._execute(Statement("COMMIT"))
            except BaseException:
                with suppress(LogError):
                    await run_to_completion(self._execute(Statement("ROLLBACK")))
                raise
            return result

    @override
    def lock_relays(self) -> Steps[None]:
        yield statement(
            "SELECT pg_advisory_xact_lock(hashtext(:channel), 1)",
            {"channel": self.dialect.tables.channel},
        )

    @override
    async def take_lock(self, number: int) -> None:
        await self.execute("SELECT pg_advisory_lock(CAST(:number AS bigint))", {"number": number})

    @override
    def is_gone(self, number: int) -> Steps[bool]:
        sql = "SELECT pg_try_advisory_xact_lock(CAST(:number AS bigint))"
        return bool((yield statement(sql, {"number": number}))[0][0])


class PsycopgDatabase(PostgresDatabase):
    """PostgreSQL by psycopg 3."""

    _connection: Any = None

    @override
    async def _open(self) -> None:
        import psycopg

        self._connection = await self._translate_errors(
            psycopg.AsyncConnection.connect(self.dsn, autocommit=True, connect_timeout=10)
        )

    @override
    def _classify(self, error: Exception) -> FailureKind:
        return execution.psycopg_failure(error)

    @override
    async def _execute(self, statement: Statement) -> list[Any]:
        rows = execution.async_psycopg_rows(self._connection, statement, binary=True)
        found: list[Any] = await self._translate_errors(rows)
        return found

    @override
    async def listen(self, wake: Callable[[], None]) -> None:
        import psycopg
        from psycopg import sql

        async def follow() -> None:
            async with await psycopg.AsyncConnection.connect(
                self.dsn, autocommit=True, connect_timeout=10
            ) as connection:
                channel = sql.Identifier(self.dialect.tables.channel)
                await connection.execute(sql.SQL("LISTEN {}").format(channel))
                wake()  # for what was written before
                async for _ in connection.notifies():
                    wake()

        await self._translate_errors(follow())

    @override
    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken, and is not used any more
                await connection.close()


class AsyncpgDatabase(PostgresDatabase):
    """PostgreSQL by asyncpg."""

    _connection: Any = None

    @override
    async def _open(self) -> None:
        import asyncpg  # type: ignore[import-untyped]

        self._connection = await self._translate_errors(asyncpg.connect(self.dsn, timeout=10))

    @override
    def _classify(self, error: Exception) -> FailureKind:
        return execution.asyncpg_failure(error)

    @override
    async def _execute(self, statement: Statement) -> list[Any]:
        found: list[Any] = await self._translate_errors(
            execution.asyncpg_rows(self._connection, statement)
        )
        return found

    @override
    async def listen(self, wake: Callable[[], None]) -> None:
        import asyncpg

        connection: Any = await self._translate_errors(asyncpg.connect(self.dsn, timeout=10))
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            await self._translate_errors(
                connection.add_listener(self.dialect.tables.channel, lambda *_: wake())
            )
            wake()  # for what was written before
            await ended.wait()
            raise Unavailable(f"{self.place}: the connection that listens has ended")
        finally:
            with suppress(Exception):
                await connection.close(timeout=1)

    @override
    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken, and is not used any more
                await connection.close(timeout=1)


# -- SQLite


class SqliteDatabase(RelayDatabase):
    """A SQLite file by the standard library's sqlite3, in its own thread.

    The file's write lock is never held while the thread waits for the loop: code that blocks the
    loop may be waiting for that lock.
    """

    def __init__(self, path: str, tables: TableNames, mode: OpenMode = "rwc") -> None:
        super().__init__(path)
        self.path = path
        self._mode: OpenMode = mode
        self._dialect = SqliteDialect(tables)
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._lock: IO[bytes] | None = None

    @property
    @override
    def dialect(self) -> SqliteDialect:
        return self._dialect

    @override
    async def connect(self, lease: float) -> None:
        self._thread = ThreadPoolExecutor(1, "streams-outbox")
        self._connection = await self._in_thread(self._open_file)

    def _open_file(self) -> sqlite3.Connection:
        options: Any = {"timeout": 10, "isolation_level": None}
        found: sqlite3.Connection
        if self._mode == "rwc":
            found = sqlite3.connect(self.path, **options)
        else:
            found = connect_existing(self.path, reading=self._mode == "ro", **options)
        # SQLite stores any bytes as text: a row with invalid text is not a message.
        found.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            found.execute("SELECT 1 FROM sqlite_master").fetchall()
            if found.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                # A power cut may undo a deletion: the row is published again, under the same ID.
                found.execute("PRAGMA synchronous = normal")
        except BaseException:
            found.close()
            raise
        return found

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        thread = self._thread
        if thread is None:
            raise Unavailable(f"{self.place}: it is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, function)
        except sqlite3.Error as error:
            kind = LogError if sqlite_failure(error) is FailureKind.FAULT else Unavailable
            raise kind(f"{self.place}: {one_line(str(error))}") from error

    @override
    async def execute(self, sql: str, parameters: Parameters = NO_PARAMETERS) -> list[Any]:
        given = statement(sql, parameters)

        def execute() -> list[Any]:
            return execution.sqlite_rows(self._require_connection(), given)

        found: list[Any] = await self._in_thread(execute)
        return found

    @override
    async def transaction(self, steps: Steps[T]) -> T:
        def transact() -> T:
            connection = self._require_connection()
            statements = PlainConnection("sqlite", partial(execution.sqlite_rows, connection))
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = run_steps(statements, steps)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

        found: T = await self._in_thread(transact)
        return found

    def _require_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Unavailable(f"{self.place}: it is closed")
        return self._connection

    @override
    async def fetch_rows(self, parameters: Parameters) -> list[RelayRow]:
        """Fetch the rows as one document if possible: for each row from SQLite, the thread would
        wait for the interpreter lock, which other threads may hold."""
        of_topic = "topic" in parameters
        document = statement(self.dialect.fetch_as_document(of_topic=of_topic), parameters)
        ready = statement(self.dialect.ready_rows(of_topic=of_topic), parameters)

        def fetch_rows() -> list[RelayRow]:
            connection = self._require_connection()
            with suppress(sqlite3.Error, ValueError):
                return rows_of_document(*execution.sqlite_rows(connection, document)[0])
            return self._fetch_one_by_one(connection, ready, parameters["bytes"])

        rows: list[RelayRow] = await self._in_thread(fetch_rows)
        return rows

    def _fetch_one_by_one(
        self, connection: sqlite3.Connection, ready: Statement, limit: int
    ) -> list[RelayRow]:
        """Fetch row by row, adding up sizes only as far as rows are wanted."""
        found: list[RelayRow] = []
        total = 0
        with closing(
            connection.execute(convert_parameters(ready.sql, "?"), ready.parameters)
        ) as cursor:
            for each in cursor:
                row = RelayRow._make(each)
                found.append(row)
                total += row.size + ROW_BYTES
                if total >= limit:
                    break
        return found

    @override
    async def has_tables(self) -> bool:
        tables = self.dialect.tables
        names = (tables.name, f"{tables.name}_buckets")
        sql = "SELECT count(*) FROM sqlite_master WHERE name IN (:one, :two)"
        found = await self.execute(sql, dict(zip(("one", "two"), names, strict=True)))
        return bool(found[0][0] == 2)

    @override
    async def listen(self, wake: Callable[[], None]) -> None:
        loop, stopped = asyncio.get_running_loop(), False

        def watch() -> None:
            with closing(self._open_file()) as connection:
                before = -1
                while not stopped:
                    (now,) = connection.execute("PRAGMA data_version").fetchone()
                    if now != before:
                        before = now
                        with suppress(RuntimeError):  # the loop is closed
                            loop.call_soon_threadsafe(wake)
                    time.sleep(LOOK_EVERY)

        # Not one of the loop's own threads, which this would occupy for as long as the app runs.
        thread = ThreadPoolExecutor(1, "streams-outbox-watch")
        try:
            await loop.run_in_executor(thread, watch)
        except sqlite3.Error as error:
            raise Unavailable(f"{self.place}: {one_line(str(error))}") from error
        finally:
            stopped = True
            thread.shutdown(wait=False)

    @override
    def lock_relays(self) -> Steps[None]:
        yield from ()  # a transaction that writes is exclusive anyway

    # A lock file beside the database, one per relay: a process that has ended does not hold it.

    def _lock_path(self, number: int) -> Path:
        return Path(f"{self.path}-relay-{number:x}")

    @override
    async def take_lock(self, number: int) -> None:
        if fcntl is not None:
            self._drop_lock()
            self._lock = self._lock_path(number).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _drop_lock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            Path(lock.name).unlink(missing_ok=True)
            lock.close()

    @override
    def is_gone(self, number: int) -> Steps[bool]:
        yield from ()
        if fcntl is None:
            return False
        path = self._lock_path(number)
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        path.unlink(missing_ok=True)
        return True

    @override
    async def close(self) -> None:
        self._drop_lock()
        thread, self._thread = self._thread, None
        connection, self._connection = self._connection, None
        if thread is None:
            return

        def close_file() -> None:
            if connection is not None:
                connection.close()

        with suppress(sqlite3.Error):
            await asyncio.get_running_loop().run_in_executor(thread, close_file)
        thread.shutdown(wait=False)


# -- which one


def open_database(dsn: str, tables: TableNames, mode: OpenMode = "rwc") -> RelayDatabase:
    """The database at an address.

    :param dsn: a URL; on PostgreSQL also libpq's form (``host=... dbname=...``).
    :param mode: for a SQLite file: ``ro`` only reads, ``rw`` uses an existing file, ``rwc`` creates
        it if it does not exist. If the file is missing and must not be created, connecting raises
        :class:`~streams.errors.NotFound`.
    :raises ConfigError: ``dsn`` is no valid address, or the driver is missing.
    """
    if not isinstance(dsn, str) or not dsn.strip():
        raise ConfigError(f"Outbox: the database's address is missing: {FORMS}")
    kind, driver, rest = scheme_of(dsn)
    if kind == "sqlite" or dsn.startswith("sqlite:"):
        file = sqlite_file(dsn)
        if file is None:
            raise ConfigError("Outbox: a SQLite file is written as sqlite:///file.db")
        return SqliteDatabase(file, tables, mode)
    if kind == "postgresql":
        return _postgres_database(f"postgresql:{rest}", driver, tables)
    if has_words(dsn):
        return _postgres_database(dsn, "psycopg", tables)
    raise ConfigError(f"Outbox: no address of a database (its scheme is not known): {FORMS}")


def _postgres_database(dsn: str, driver: str, tables: TableNames) -> PostgresDatabase:
    from importlib.util import find_spec

    by_psycopg = driver != "asyncpg" and find_spec("psycopg") is not None
    if by_psycopg or (find_spec("asyncpg") is not None and not has_words(dsn)):
        try:
            read_postgres(dsn, libpq=by_psycopg)
        except ConfigError as error:
            raise ConfigError(f"Outbox: {error}") from None
        return (PsycopgDatabase if by_psycopg else AsyncpgDatabase)(dsn, tables)
    raise ConfigError("Outbox: a relay on PostgreSQL needs psycopg (pip install 'psycopg[binary]')")
