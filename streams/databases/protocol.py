"""The terms: a database, a session in it, a statement, and the kinds of failure.

**A session is one transaction on one connection.** It begins when the session does, and ends with
``commit`` or ``rollback``, each of which also releases the connection. A :class:`Session` belongs
to one thread at a time, an :class:`AsyncSession` to one task.

**The toolkit's statements are written once**, as a generator (:data:`Steps`) that yields statements
and gets their rows; :func:`run_steps` and :func:`run_steps_async` drive it. A :class:`Statement`
has ``$1``, ``$2`` and so on, each once and in that order, which become the driver's own kind of
parameters (:func:`convert_parameters`).
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, get_args

from typing_extensions import TypeVar

from streams.databases.addresses import read_postgres, scheme_of, secrets_of
from streams.errors import ConfigError, StreamsError, attribute_of, error_chain

C_co = TypeVar("C_co", covariant=True)
R = TypeVar("R")

Rows: TypeAlias = "list[tuple[Any, ...]]"
DialectName: TypeAlias = Literal["postgresql", "sqlite"]
DIALECTS: tuple[DialectName, ...] = get_args(DialectName)
"""All dialects that the toolkit supports."""

DAY = 86_400.0
LONGEST_KEEP = 36_500 * DAY
"""Seconds; both databases can represent a time that long ago."""


class Statement(NamedTuple):
    """One SQL statement with its parameters."""

    sql: str
    parameters: Sequence[Any] = ()


Steps: TypeAlias = "Generator[Statement, Rows, R]"
"""A sequence of statements; each gets the rows of the one before, and the last ones give a
result."""


class FailureKind(Enum):
    """The kind of failure of a database's error."""

    UNREACHABLE = "unreachable"
    """The database cannot be reached, shuts down, or accepts no connections or no writes for
    now."""
    UNABLE = "unable"
    """The database answers but cannot execute statements now: its disk or its memory is full, or
    its device fails."""
    CONFLICT = "conflict"
    """Another transaction was in the way (serialization, deadlock, lock timeout): the same
    transaction may succeed when it is run again."""
    FAULT = "fault"
    """The statement is at fault, or it is no error of the database at all."""


class Session(ABC, Generic[C_co]):
    """A transaction of a plain database."""

    connection: C_co
    """The handler's ``message.transaction``."""

    @abstractmethod
    def execute(self, statement: Statement) -> Rows:
        """Run one statement of the toolkit; returns its rows."""

    @abstractmethod
    def commit(self) -> None:
        """Commit, and release the connection.

        :raises EndedByHandler: the transaction that began with this session is no longer open.
        """

    @abstractmethod
    def rollback(self, *, close: bool = False) -> None:
        """Roll back whatever is open, and release the connection; raises nothing.

        :param close: close the connection before that, so that the next transaction has a new one,
            perhaps to another server.
        """

    @abstractmethod
    def is_broken(self) -> bool:
        """Whether the connection is lost."""

    @abstractmethod
    def has_failed(self) -> bool:
        """Whether a statement certainly failed here, and not in another database that the handler
        uses.

        False: none did, or it cannot be known. May ask the server, and raise its errors.
        """


class AsyncSession(ABC, Generic[C_co]):
    """A transaction of an async database."""

    connection: C_co
    """The handler's ``message.transaction``."""

    first: Statement | None = None
    """The first statement, if the session was begun by :meth:`Database.begin_with_async`."""

    async def first_rows(self) -> Rows:
        """The rows of :attr:`first`. Raises its error."""
        return [] if self.first is None else await self.execute(self.first)

    @abstractmethod
    async def execute(self, statement: Statement) -> Rows:
        """Run one statement of the toolkit; returns its rows."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit, and release the connection.

        :raises EndedByHandler: the transaction that began with this session is no longer open.
        """

    @abstractmethod
    async def rollback(self, *, close: bool = False) -> None:
        """Roll back whatever is open, and release the connection; raises nothing.

        :param close: see :meth:`Session.rollback`.
        """

    @abstractmethod
    def is_broken(self) -> bool:
        """Whether the connection is lost."""

    @abstractmethod
    async def has_failed(self) -> bool:
        """See :meth:`Session.has_failed`."""


class EndedByHandler(ConfigError):
    """A handler ended the transaction that it was given."""

    def __init__(self, name: str, *, or_else: str = "") -> None:
        super().__init__(
            f"transaction={name}: the handler committed or rolled back message.transaction "
            f"itself{or_else}; leave that to the toolkit, which commits when the handler returns "
            "and rolls back when it raises (a savepoint of your own is fine)"
        )


class Busy(StreamsError):
    """A transaction did not begin in time, because another one was in its way: one of this process
    that has the SQLite file, or one that holds a lock which its first statement needs. The database
    answers."""


class SwallowedError(StreamsError):
    """A handler continued after an error in its transaction, which PostgreSQL then rolls back even
    at COMMIT, and which SQLite has rolled back if it was out of space. It counts as a failure of
    the message."""

    def __init__(self) -> None:
        super().__init__(
            "a statement of the handler's failed in message.transaction, and it returned all the "
            "same: nothing of that transaction can be committed; let the error pass, or wrap the "
            "statement in a savepoint"
        )


class Database(ABC, Generic[C_co]):
    """What ``transaction=`` takes: a :class:`~streams.Psycopg`, :class:`~streams.AsyncPsycopg`,
    :class:`~streams.Asyncpg`, :class:`~streams.Sqlite`, :class:`~streams.SQLAlchemy` or
    :class:`~streams.Django`.

    :param keep: seconds for which the inbox remembers, at least, a message that its group has
        settled; at most a century. A copy of the message that comes later is handled again.
    :param create: create the inbox's tables when the processor starts, if they are missing. False:
        they were created with the output of ``streams inbox ddl``.
    """

    name: str
    """The database's name in error messages."""

    def __init__(self, *, keep: float, create: bool) -> None:
        is_number = isinstance(keep, (int, float)) and not isinstance(keep, bool)
        if not is_number or not 0 <= keep <= LONGEST_KEEP:
            raise ConfigError(
                f"{type(self).__name__}(keep={keep!r}): seconds, 0 or more, and a century "
                f"({LONGEST_KEEP:g}) at most"
            )
        self.keep = float(keep)
        self.create = create
        self.name = type(self).__name__
        self._reserved = 0
        self._users = 0

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def address(self) -> str | None:
        """The address, as a DSN or a URL; None if it is unknown, as a function returns the
        connections."""
        return None

    @property
    @abstractmethod
    def asynchronous(self) -> bool:
        """Whether sessions are awaited and handlers are ``async def``."""

    def supports_handler(self, *, asynchronous: bool) -> bool:
        """Whether handlers of this kind can be called inside the transactions. A database that may
        be of either kind is of this kind from then on."""
        return self.asynchronous == asynchronous

    @property
    @abstractmethod
    def dialect(self) -> DialectName:
        """The database's SQL dialect; known once it is open.

        :raises ConfigError: the toolkit does not support it.
        """

    @abstractmethod
    def classify(self, error: BaseException) -> FailureKind:
        """The kind of failure of an error."""

    def hide_secrets(self, error: BaseException) -> None:
        """Remove the address's secrets from an error of a new connection, and from its causes.
        Raises nothing, so that it does not hide that error."""
        try:
            address = self.address()
        except Exception:
            return  # there is no known secret to hide
        if address is not None:
            secrets_of(address).hide_in_error(error)

    # Several processors may share a database: the first one opens it, the last one closes it.

    def reserve_connections(self, connections: int) -> None:
        """Reserve this many concurrent transactions for a user of the database."""
        self._reserved += connections

    def enter(self) -> None:
        """Open a plain database, unless it is open."""
        self._users += 1
        if self._users == 1:
            try:
                self.open(self._reserved)
            except BaseException:
                self._users = 0
                raise

    def leave(self) -> None:
        """Close it, unless others still use it."""
        self._users -= 1
        if not self._users:
            self.close()

    async def enter_async(self) -> None:
        """As :meth:`enter`, for an async database."""
        self._users += 1
        if self._users == 1:
            try:
                await self.open_async(self._reserved)
            except BaseException:
                self._users = 0
                raise

    async def leave_async(self) -> None:
        """As :meth:`leave`."""
        self._users -= 1
        if not self._users:
            await self.close_async()

    # A plain database has the first four, an async one the others. One class, because SQLAlchemy
    # is either, by what it is given.

    def open(self, connections: int) -> None:
        """Open it for this many concurrent transactions (the user sizes a pool of their own)."""

    def close(self) -> None:
        """Undo :meth:`open`."""

    def begin(self) -> Session[C_co]:
        """A new transaction, on a connection of the pool."""
        raise NotImplementedError

    def begin_reading(self) -> Session[C_co]:
        """As :meth:`begin`, for statements that change nothing. It does not change a SQLite file
        either, and no writer waits for it."""
        return self.begin()

    async def open_async(self, connections: int) -> None:
        """As :meth:`open`."""

    async def close_async(self) -> None:
        """As :meth:`close`."""

    async def begin_async(self) -> AsyncSession[C_co]:
        """As :meth:`begin`."""
        raise NotImplementedError

    async def begin_with_async(
        self, first: Statement, *, patience: float | None = None
    ) -> AsyncSession[C_co]:
        """A new transaction that begins with this statement, in one round trip where the driver can
        do that. Raises the errors of beginning; :meth:`AsyncSession.first_rows` gives the
        statement's rows, or raises its error.

        :param patience: seconds to wait at most; None: the driver's own limit.
        :raises TimeoutError: there was no connection in that time.
        :raises Busy: there was one, but the statement was not done in that time.
        """
        async with asyncio.timeout(patience):
            session = await self.begin_async()
        session.first = first
        return session


class StatementRunner(Protocol):
    """Runs statements: a session, or a connection on which a transaction is open."""

    @property
    def execute(self) -> Callable[[Statement], Rows]:
        """Run one statement of the toolkit; returns its rows."""
        ...


class AsyncStatementRunner(Protocol):
    """As :class:`StatementRunner`, awaited."""

    @property
    def execute(self) -> Callable[[Statement], Awaitable[Rows]]:
        """Run one statement of the toolkit; returns its rows."""
        ...


def run_steps(session: StatementRunner, steps: Steps[R]) -> R:
    """Run these statements; returns their result."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(session.execute(statement))
    except StopIteration as end:
        result: R = end.value
        return result


async def run_steps_async(
    session: AsyncStatementRunner, steps: Steps[R], first: Rows | None = None
) -> R:
    """As :func:`run_steps`.

    :param first: the rows of the first statement, with which the session began; the steps have
        yielded it.
    """
    try:
        statement = next(steps) if first is None else steps.send(first)
        while True:
            statement = steps.send(await session.execute(statement))
    except StopIteration as end:
        result: R = end.value
        return result


Mark: TypeAlias = Literal["%s", "?", ":p"]
_MARK = re.compile(r"\$(\d+)")


@lru_cache(maxsize=256)
def convert_parameters(sql: str, mark: Mark) -> str:
    """A statement's SQL with another kind of parameters: ``%s``, ``?`` or ``:p1``."""
    return _MARK.sub(r":p\1" if mark == ":p" else mark, sql)


_UNREACHABLE_CLASSES = ("08", "53", "57P", "58")
"""PostgreSQL's error codes (Appendix A): connection exceptions; too many connections, a limit of
its configuration; shutting down, crashed, starting; system errors."""
_UNABLE = frozenset(
    {
        "53000",  # insufficient_resources
        "53100",  # disk_full
        "53200",  # out_of_memory
        "58000",  # system_error
        "58030",  # io_error
    }
)
_CONFLICTS = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "40002",  # transaction_integrity_constraint_violation
        "55P03",  # lock_not_available: lock_timeout
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
    }
)
_READ_ONLY = "25006"
"""The answer of a server that has become a replica, to the first statement that writes. That is one
of the toolkit's: a handler's statement is refused like that only if the handler made its
transaction read-only."""

_CONFLICTS_OF_OURS = frozenset(
    {
        "57014",  # query_canceled: statement_timeout ended a wait for somebody's lock
        "26000",  # invalid_sql_statement_name
        "42P05",  # duplicate_prepared_statement
    }
)
"""In the toolkit's statements these are no failure of the message: another transaction was in the
way, or a pooler gave this one a server connection without the driver's prepared statements. In a
handler's statement they are a failure: it may take too long each time."""

CRASHED = "57P02"
"""The error that a server sends to all its connections when the process behind one of them has
crashed."""


def is_conflict_of_ours(error: BaseException) -> bool:
    """Whether the toolkit's statement that raised this error may succeed when it is run again."""
    chain = error_chain(error, with_suppressed=False)
    return any(sqlstate_of(each) in _CONFLICTS_OF_OURS for each in chain)


def failure_of_state(state: str | None) -> FailureKind:
    """The kind of failure of a PostgreSQL error code."""
    if state is None:
        return FailureKind.FAULT
    if state in _CONFLICTS:
        return FailureKind.CONFLICT
    if state in _UNABLE:
        return FailureKind.UNABLE
    if state.startswith(_UNREACHABLE_CLASSES) or state == _READ_ONLY:
        return FailureKind.UNREACHABLE
    return FailureKind.FAULT


def sqlite_failure(error: BaseException) -> FailureKind:
    """The kind of failure of an error of the standard library's sqlite3."""
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return FailureKind.CONFLICT
    if name.startswith(("SQLITE_IOERR", "SQLITE_FULL")):
        return FailureKind.UNABLE
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PROTOCOL")):
        return FailureKind.UNREACHABLE
    return FailureKind.FAULT


def sqlstate_of(error: BaseException | None) -> str | None:
    """The PostgreSQL error code of an error of psycopg, asyncpg or psycopg2; None: it has none."""
    code: str | None = attribute_of(error, "sqlstate") or attribute_of(error, "pgcode")
    return code


def failure_of_answer(error: BaseException) -> FailureKind:
    """The kind of failure that the database answered, from a driver's error; a fault if there is no
    answer."""
    import sqlite3

    if isinstance(error, sqlite3.Error):
        return sqlite_failure(error)
    return failure_of_state(sqlstate_of(error))


def failure_of_driver(error: BaseException | None, *, from_client: bool) -> FailureKind:
    """The kind of failure of a driver's error that a library has wrapped.

    :param from_client: an error without a code means that there was no connection, or that it is
        lost.
    """
    import sqlite3  # not at the start of every app

    if error is None:
        return FailureKind.UNREACHABLE if from_client else FailureKind.FAULT
    if from_client and not isinstance(error, sqlite3.Error) and sqlstate_of(error) is None:
        return FailureKind.UNREACHABLE
    return failure_of_answer(error)


def known_dialect(name: str) -> DialectName | None:
    """The dialect of this name; None: the toolkit does not support it."""
    return next((each for each in DIALECTS if each == name), None)


def is_file_of(log: object, file: Path) -> bool:
    """Whether a file is a log's own, which no other SQLite library may open."""
    path = getattr(log, "path", None)
    return isinstance(path, Path) and path.resolve() == file.resolve()


def check_source(name: str, given: Any, what: str, *, libpq: bool = True) -> Any:
    """Check a DSN, or a function that returns the user's own pool.

    With an invalid DSN a driver would fail at each connection, as in an outage, and quote it with
    its password; so it is checked here.

    :param libpq: the driver uses libpq: a DSN may also be ``host=... dbname=...``.
    :raises ConfigError: ``source`` is neither.
    """
    if isinstance(given, str) and given:
        try:
            # A DSN that names a driver is SQLAlchemy's.
            read_postgres("" if scheme_of(given).driver else given, libpq=libpq)
        except ConfigError as error:
            raise ConfigError(f"{name}(...): {error}") from None
        return given
    if callable(given) and not isinstance(given, type):
        return given
    shown = "an empty text" if isinstance(given, str) else type(given).__name__
    raise ConfigError(f"{name}({shown}): a DSN, or a function that returns {what}")


def is_in_failed_transaction(error: BaseException) -> bool:
    """Whether PostgreSQL refused a statement because an earlier one of its transaction failed."""
    causes = (error, attribute_of(error, "orig"), error.__cause__)
    return any(sqlstate_of(each) == "25P02" for each in causes)  # in_failed_sql_transaction


def has_aborted(driver_connection: Any) -> bool | None:
    """Whether the open transaction of a libpq connection can only be rolled back; None if that
    cannot be known without asking the server."""
    status = getattr(getattr(driver_connection, "info", None), "transaction_status", None)
    return None if status is None else int(status) == IN_ERROR


def has_lost_transaction(driver_connection: Any) -> bool:
    """Whether SQLite itself has rolled back a transaction that had begun there, as it does when it
    is out of space: a commit does nothing then. (Known for sqlite3 and aiosqlite, not for
    PostgreSQL's drivers.)"""
    return getattr(driver_connection, "in_transaction", None) is False


IDLE, IN_ERROR = 0, 3
"""libpq's PQTRANS_IDLE and PQTRANS_INERROR, for psycopg and psycopg2 alike."""


_PACKAGES = {
    "psycopg": "'psycopg[binary,pool]'",
    "asyncpg": "asyncpg",
    "sqlalchemy": "'sqlalchemy[asyncio]'",
    "django": "django",
}


def import_error(name: str, extra: str, error: ImportError) -> ConfigError:
    """The error for a driver that is not installed."""
    return ConfigError(
        f"{name} needs a package that is not installed ({error.name}; the extra {extra}): "
        f"pip install {_PACKAGES[extra]}"
    )
