"""The terms: a database, a session in it, a statement, and the kinds of failure.

**A session is one transaction on one connection.** It begins when the session does, and ends with
``commit`` or ``rollback``, each of which also gives the connection back; a session of a
:class:`PlainDatabase` belongs to one thread at a time, that of an :class:`AsyncDatabase` to one
task.

**What we run in it is written once**, as a generator (:data:`Steps`) that yields statements and
gets their rows; :func:`run` and :func:`run_async` drive it. A :class:`Statement` has ``$1``, ``$2``
and so on, each once and in that order, which becomes what the driver wants (:func:`marked`).
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
from streams.errors import ConfigError, StreamsError, error_chain

C_co = TypeVar("C_co", covariant=True)
R = TypeVar("R")

Rows: TypeAlias = "list[tuple[Any, ...]]"
DialectName: TypeAlias = Literal["postgresql", "sqlite"]
DIALECTS: tuple[DialectName, ...] = get_args(DialectName)
"""All that the toolkit speaks."""

DAY = 86_400.0
LONGEST_KEEP = 36_500 * DAY
"""Seconds; a time that lies so far back both databases can name."""


class Statement(NamedTuple):
    """One SQL statement with its parameters."""

    sql: str
    parameters: Sequence[Any] = ()


Steps: TypeAlias = "Generator[Statement, Rows, R]"
"""Statements one after the other, each with the rows of the one before, and what they come to."""


class Failure(Enum):
    """What an error of a database means."""

    UNREACHABLE = "unreachable"
    """It cannot be reached, shuts down, takes no connections or no writes: later it may."""
    UNABLE = "unable"
    """It answers, and cannot do this now, which may be any statement: its disk or its memory is
    full, or its device fails."""
    CONFLICT = "conflict"
    """Another transaction was in the way (serialization, deadlock, a lock not had in time): the
    same transaction may succeed when it is run again."""
    FAULT = "fault"
    """The statement's own, or no error of the database at all."""


class Session(ABC, Generic[C_co]):
    """A transaction of a plain database."""

    connection: C_co
    """What the handler gets as ``message.transaction``."""

    @abstractmethod
    def execute(self, statement: Statement) -> Rows:
        """Run one statement of ours; its rows."""

    @abstractmethod
    def commit(self) -> None:
        """Commit, and give the connection back.

        :raises EndedByHandler: the transaction that began with this session is no longer open.
        """

    @abstractmethod
    def rollback(self, *, close: bool = False) -> None:
        """Roll back whatever is open, and give the connection back; raises nothing.

        :param close: close the connection before that, so that the next transaction has a new one,
            perhaps to another server.
        """

    @abstractmethod
    def is_broken(self) -> bool:
        """The connection is lost."""

    @abstractmethod
    def has_failed(self) -> bool:
        """Certainly a statement failed here, and not in another database of the handler's.

        False: none did, or that cannot be told. May ask the server, and raise its errors.
        """


class AsyncSession(ABC, Generic[C_co]):
    """A transaction of an async database."""

    connection: C_co
    """What the handler gets as ``message.transaction``."""

    first: Statement | None = None
    """What it begins with, where it was begun by :meth:`Database.begin_with_async`."""

    async def first_rows(self) -> Rows:
        """The rows of :attr:`first`. Raises its error."""
        return [] if self.first is None else await self.execute(self.first)

    @abstractmethod
    async def execute(self, statement: Statement) -> Rows:
        """Run one statement of ours; its rows."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit, and give the connection back.

        :raises EndedByHandler: the transaction that began with this session is no longer open.
        """

    @abstractmethod
    async def rollback(self, *, close: bool = False) -> None:
        """Roll back whatever is open, and give the connection back; raises nothing.

        :param close: see :meth:`Session.rollback`.
        """

    @abstractmethod
    def is_broken(self) -> bool:
        """The connection is lost."""

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
    """A transaction did not begin in the time there was for it, because another one was in its way:
    one of this process that has a SQLite file, or whoever holds what its first statement needs. The
    database answers."""


class SwallowedError(StreamsError):
    """A handler went on after an error of its transaction, which PostgreSQL rolls back then
    whatever is said at its end, and which SQLite has rolled back where it was out of room. It
    counts as a failure of the message."""

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

    :param keep: seconds for which the inbox remembers a message that its group has settled, at
        least, and a century at most; a copy of the message that comes later is handled again.
    :param create: make the inbox's tables when the processor starts, if they are missing. False:
        they were made by what ``streams inbox ddl`` prints.
    """

    name: str
    """What it is called in error messages."""

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
        """Where it is, as a DSN or a URL; None where that is not known, as a function gives the
        connections."""
        return None

    @property
    @abstractmethod
    def asynchronous(self) -> bool:
        """Its sessions are awaited, and its handlers ``async def``."""

    def suits(self, *, asynchronous: bool) -> bool:
        """Whether handlers of this kind can be called inside its transactions. One that may be of
        either kind is of this one from then on."""
        return self.asynchronous == asynchronous

    @property
    @abstractmethod
    def dialect(self) -> DialectName:
        """Which SQL it speaks; known once it is open.

        :raises ConfigError: none that the toolkit knows.
        """

    @abstractmethod
    def classify(self, error: BaseException) -> Failure:
        """What an error means."""

    def hide_secrets(self, error: BaseException) -> None:
        """Remove what is secret of its address from an error of a new connection, and from those it
        was raised from. Raises nothing: that error is what counts."""
        try:
            address = self.address()
        except Exception:
            return  # nothing of it is known that could be hidden
        if address is not None:
            secrets_of(address).hide_in_error(error)

    # Several processors may share one: it is opened by the first and closed by the last.

    def reserve(self, connections: int) -> None:
        """Somebody will use so many transactions at once."""
        self._reserved += connections

    def enter(self) -> None:
        """Open it, unless it is; of a plain one."""
        self._users += 1
        if self._users == 1:
            try:
                self.open(self._reserved)
            except BaseException:
                self._users = 0
                raise

    def leave(self) -> None:
        """Close it, if nobody else uses it."""
        self._users -= 1
        if not self._users:
            self.close()

    async def enter_async(self) -> None:
        """As :meth:`enter`, of an async one."""
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
        """Open it for so many transactions at once (a pool of the user's is theirs to size)."""

    def close(self) -> None:
        """Close what :meth:`open` opened."""

    def begin(self) -> Session[C_co]:
        """A new transaction, on a connection of the pool."""
        raise NotImplementedError

    def begin_reading(self) -> Session[C_co]:
        """As :meth:`begin`, for statements that change nothing. On a SQLite file it changes nothing
        of the file either, and no writer waits for it."""
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
        do that. Raises what keeps it from beginning; what becomes of the statement is told by
        :meth:`AsyncSession.first_rows`.

        :param patience: seconds that may be waited; None: as long as the driver waits.
        :raises TimeoutError: there was no connection in that time.
        :raises Busy: there was one, and the statement was not done in that time.
        """
        async with asyncio.timeout(patience):
            session = await self.begin_async()
        session.first = first
        return session


class Executing(Protocol):
    """What runs statements: a session, or a connection on which a transaction is open."""

    @property
    def execute(self) -> Callable[[Statement], Rows]:
        """Run one statement of ours; its rows."""
        ...


class AsyncExecuting(Protocol):
    """The same, awaited."""

    @property
    def execute(self) -> Callable[[Statement], Awaitable[Rows]]:
        """Run one statement of ours; its rows."""
        ...


def run(session: Executing, steps: Steps[R]) -> R:
    """Run these statements; what they come to."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send(session.execute(statement))
    except StopIteration as end:
        result: R = end.value
        return result


async def run_async(session: AsyncExecuting, steps: Steps[R], first: Rows | None = None) -> R:
    """As :func:`run`.

    :param first: the rows of the first statement, with which the session began; the steps stand
        there.
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
def marked(sql: str, mark: Mark) -> str:
    """A statement of ours with another kind of parameters: ``%s``, ``?`` or ``:p1``."""
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
"""What a server answers that has become a replica. It does so to the first statement that writes,
which is ours: a handler's is refused like that only if the handler has asked for it."""

_CONFLICTS_OF_OURS = frozenset(
    {
        "57014",  # query_canceled: statement_timeout ended a wait for somebody's lock
        "26000",  # invalid_sql_statement_name
        "42P05",  # duplicate_prepared_statement
    }
)
"""In a statement of ours these are no failure of the message's: another transaction was in the way,
or a pooler gave this one a connection of its own with other prepared statements than the driver
made. In a statement of the handler's they are a failure: it may take too long each time."""

CRASHED = "57P02"
"""What a server says to all its connections when the process behind one of them has crashed."""


def is_conflict_of_ours(error: BaseException) -> bool:
    """Whether a statement of ours, of which this error comes, may succeed when it is run again."""
    chain = error_chain(error, with_suppressed=False)
    return any(state_of(each) in _CONFLICTS_OF_OURS for each in chain)


def failure_of_state(state: str | None) -> Failure:
    """What PostgreSQL's error code means."""
    if state is None:
        return Failure.FAULT
    if state in _CONFLICTS:
        return Failure.CONFLICT
    if state in _UNABLE:
        return Failure.UNABLE
    if state.startswith(_UNREACHABLE_CLASSES) or state == _READ_ONLY:
        return Failure.UNREACHABLE
    return Failure.FAULT


def sqlite_failure(error: BaseException) -> Failure:
    """What an error of the standard library's sqlite3 means."""
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Failure.CONFLICT
    if name.startswith(("SQLITE_IOERR", "SQLITE_FULL")):
        return Failure.UNABLE
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PROTOCOL")):
        return Failure.UNREACHABLE
    return Failure.FAULT


def state_of(error: BaseException | None) -> str | None:
    """PostgreSQL's error code in an error of psycopg, asyncpg or psycopg2; None: there is none."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def failure_of_answer(error: BaseException) -> Failure:
    """What a database has answered, in an error of a driver; a fault, too, where there is no
    answer."""
    import sqlite3

    if isinstance(error, sqlite3.Error):
        return sqlite_failure(error)
    return failure_of_state(state_of(error))


def failure_of_driver(error: BaseException | None, *, from_client: bool) -> Failure:
    """What a driver's error means that a library has wrapped.

    :param from_client: without a code it is the connection that was not had, or is lost.
    """
    import sqlite3  # not at the start of every app

    if error is None:
        return Failure.UNREACHABLE if from_client else Failure.FAULT
    if from_client and not isinstance(error, sqlite3.Error) and state_of(error) is None:
        return Failure.UNREACHABLE
    return failure_of_answer(error)


def known_dialect(name: str) -> DialectName | None:
    """The dialect of this name; None: the toolkit does not speak it."""
    return next((each for each in DIALECTS if each == name), None)


def is_file_of(log: object, file: Path) -> bool:
    """Whether a file is the one that a log is in, which no other SQLite library may open."""
    path = getattr(log, "path", None)
    return isinstance(path, Path) and path.resolve() == file.resolve()


def check_source(name: str, given: Any, what: str, *, libpq: bool = True) -> Any:
    """A DSN, or a function that returns the user's own pool.

    A driver finds out at each connection that a DSN is none, as if that were an outage, and quotes
    it with its password; so it is looked at here.

    :param libpq: the driver is libpq's: a DSN may also be ``host=... dbname=...``.
    :raises ConfigError: it is neither.
    """
    if isinstance(given, str) and given:
        try:
            # One that names a driver is SQLAlchemy's.
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
    causes = (error, getattr(error, "orig", None), error.__cause__)
    return any(state_of(each) == "25P02" for each in causes)  # in_failed_sql_transaction


def has_aborted(driver_connection: Any) -> bool | None:
    """Whether the open transaction of a libpq connection can only be rolled back; None where that
    cannot be known without asking the server."""
    status = getattr(getattr(driver_connection, "info", None), "transaction_status", None)
    return None if status is None else int(status) == IN_ERROR


def has_lost_transaction(driver_connection: Any) -> bool:
    """Whether SQLite has rolled back by itself a transaction that had begun there, as it does where
    there is no room: a commit does nothing then. (sqlite3 and aiosqlite tell; no driver of
    PostgreSQL does.)"""
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
