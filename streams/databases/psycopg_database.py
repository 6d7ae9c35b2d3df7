"""PostgreSQL by psycopg 3: :class:`Psycopg` for plain handlers,
:class:`AsyncPsycopg` for async ones.

On a connection of the user's pool the transaction is psycopg's own block
(``connection.transaction()``): inside it ``commit()`` and ``rollback()`` are refused by psycopg
itself, and a block of the handler's own is a savepoint.

Async connections of a pool of ours have no such block, which would begin with a round trip of its
own. They refuse ``commit()`` and ``rollback()`` themselves, and are in autocommit mode, so that
BEGIN is ours to send: in one message with the first statement, which cannot be a prepared one then.
That pays, as the client is busier than the server.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from streams.databases.execution import async_psycopg_rows, psycopg_failure, psycopg_rows
from streams.databases.protocol import (
    DAY,
    IDLE,
    IN_ERROR,
    AsyncSession,
    Busy,
    Database,
    DialectName,
    EndedByHandler,
    FailureKind,
    Rows,
    Session,
    Statement,
    SwallowedError,
    check_source,
    convert_parameters,
    has_aborted,
    import_error,
)

if TYPE_CHECKING:
    from psycopg import AsyncClientCursor, AsyncConnection, Connection
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

C_co = TypeVar("C_co", covariant=True)

POOL_TIMEOUT = 5.0
"""Seconds that a transaction waits for a connection of the pool."""

_WAITS: Mapping[str, Any] = {"timeout": POOL_TIMEOUT, "reconnect_timeout": POOL_TIMEOUT}
"""The pool tries to connect for no longer than a caller waits. Else it would try less and less
often during an outage, without any other attempts meanwhile."""


def _check_open(connection: Any) -> None:
    """Raise on a lost connection, on which psycopg's own block commits nothing without an error.

    :raises psycopg.OperationalError: the connection is lost and a handler has swallowed the error,
        or has closed it.
    """
    import psycopg

    if connection.closed:
        raise psycopg.OperationalError("the connection is lost: nothing was committed")


class _PsycopgDatabase(Database[C_co]):
    """The common part of both classes."""

    _source: Any
    """A DSN, or the function that returns the user's pool."""

    @override
    def address(self) -> str | None:
        return self._source if isinstance(self._source, str) else None

    @property
    @override
    def dialect(self) -> DialectName:
        return "postgresql"

    @override
    def classify(self, error: BaseException) -> FailureKind:
        return psycopg_failure(error)


class _PsycopgSession(Session["Connection"]):
    def __init__(self, pool: ConnectionPool[Any], connection: Connection) -> None:
        self.connection = connection
        self._pool = pool
        self._block = connection.transaction()
        self._entered = False
        try:
            self._block.__enter__()
            self._entered = True
        except BaseException:
            pool.putconn(connection)
            raise

    @override
    def execute(self, statement: Statement) -> Rows:
        return psycopg_rows(self.connection, statement)

    @override
    def commit(self) -> None:
        _check_open(self.connection)
        if has_aborted(self.connection):
            raise SwallowedError
        self._end(None)

    @override
    def rollback(self, *, close: bool = False) -> None:
        import psycopg

        if self._entered:
            with suppress(Exception):
                if close:
                    self.connection.close()
                self._end(psycopg.Rollback())

    def _end(self, error: Exception | None) -> None:
        import psycopg

        self._entered = False
        idle = self.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        try:
            self._block.__exit__(type(error) if error else None, error, None)
        finally:
            self._pool.putconn(self.connection)
        if error is None and idle:
            raise EndedByHandler("Psycopg(...)")

    @override
    def is_broken(self) -> bool:
        return self.connection.closed

    @override
    def has_failed(self) -> bool:
        return has_aborted(self.connection) is True


class Psycopg(_PsycopgDatabase["Connection"]):
    """PostgreSQL by psycopg 3, for plain handlers: ``message.transaction`` is a
    :class:`psycopg.Connection`.

    :param dsn: where it is (``postgresql://user@host/database``), or a function that returns your
        :class:`psycopg_pool.ConnectionPool`, asked for each transaction.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    def __init__(
        self,
        dsn: str | Callable[[], ConnectionPool[Any]],
        *,
        keep: float = DAY,
        create: bool = True,
    ) -> None:
        super().__init__(keep=keep, create=create)
        self._source = check_source(self.name, dsn, "a psycopg_pool.ConnectionPool")
        self._pool: ConnectionPool[Any] | None = None

    @property
    @override
    def asynchronous(self) -> bool:
        return False

    @override
    def open(self, connections: int) -> None:
        try:
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise import_error(self.name, "psycopg", error) from None
        if isinstance(self._source, str):
            self._pool = ConnectionPool(
                self._source, min_size=0, max_size=connections, open=False, **_WAITS
            )
            self._pool.open()

    @override
    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    @override
    def begin(self) -> Session[Connection]:
        pool = self._pool if self._pool is not None else self._source()
        try:
            return _PsycopgSession(pool, pool.getconn())
        except Exception as error:
            self.hide_secrets(error)
            raise


class _AsyncPsycopgSession(AsyncSession["AsyncConnection"]):
    """A transaction on a connection that is released to its pool when the transaction ends."""

    def __init__(self, pool: AsyncConnectionPool[Any], connection: Any) -> None:
        self.connection: Any = connection
        self._pool = pool

    @abstractmethod
    async def begin(self, first: Statement | None) -> None:
        """Begin, with a statement if one is given; the connection is released if that fails."""

    @override
    async def execute(self, statement: Statement) -> Rows:
        return await async_psycopg_rows(self.connection, statement)

    @override
    def is_broken(self) -> bool:
        return bool(self.connection.closed)

    @override
    async def has_failed(self) -> bool:
        return has_aborted(self.connection) is True


class _BlockSession(_AsyncPsycopgSession):
    """A transaction on a connection of the user's pool."""

    def __init__(self, pool: AsyncConnectionPool[Any], connection: AsyncConnection) -> None:
        super().__init__(pool, connection)
        self._block = connection.transaction()
        self._entered = False

    @override
    async def begin(self, first: Statement | None) -> None:
        self.first = first
        try:
            await self._block.__aenter__()
            self._entered = True
        except BaseException:
            await self._pool.putconn(self.connection)
            raise

    @override
    async def commit(self) -> None:
        _check_open(self.connection)
        if has_aborted(self.connection):
            raise SwallowedError
        await self._end(None)

    @override
    async def rollback(self, *, close: bool = False) -> None:
        import psycopg

        if self._entered:
            with suppress(Exception):
                if close:
                    await self.connection.close()
                await self._end(psycopg.Rollback())

    async def _end(self, error: Exception | None) -> None:
        import psycopg

        self._entered = False
        idle = self.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        try:
            await self._block.__aexit__(type(error) if error else None, error, None)
        finally:
            await self._pool.putconn(self.connection)
        if error is None and idle:
            raise EndedByHandler("AsyncPsycopg(...)")


@cache
def _handler_connection() -> type[AsyncConnection]:
    """The class of the connections in the toolkit's own pools."""
    import psycopg

    class HandlerConnection(psycopg.AsyncConnection):
        """A connection whose transaction the handler cannot end."""

        is_in_session = False
        first_cursor: AsyncClientCursor[Any] | None = None
        """The cursor for a transaction's first statement: creating one costs more than running
        that."""

        @override
        async def commit(self) -> None:
            self._refuse("commit")
            await super().commit()

        @override
        async def rollback(self) -> None:
            self._refuse("rollback")
            await super().rollback()

        def _refuse(self, name: str) -> None:
            if self.is_in_session:
                raise psycopg.ProgrammingError(
                    f"{name}() of message.transaction is the toolkit's, which commits when the "
                    "handler returns and rolls back when it raises (a savepoint of your own is "
                    "fine)"
                )

    return HandlerConnection


class _OwnPoolSession(_AsyncPsycopgSession):
    """A transaction on a connection of the toolkit's own pool."""

    def __init__(self, pool: AsyncConnectionPool[Any], connection: Any) -> None:
        super().__init__(pool, connection)
        self._rows: Rows = []
        self._error: Exception | None = None
        self._has_ended = False
        """Whether the session has ended: its connection may be another session's by now."""

    @override
    async def begin(self, first: Statement | None) -> None:
        from psycopg import AsyncClientCursor
        from psycopg.rows import tuple_row

        cursor = self.connection.first_cursor
        if cursor is None:
            cursor = AsyncClientCursor(self.connection, row_factory=tuple_row)
            self.connection.first_cursor = cursor
        self.connection.is_in_session = True
        try:
            if first is None:
                await cursor.execute("BEGIN", prepare=False)
                return
            sql: Any = f"BEGIN; {convert_parameters(first.sql, '%s')}"
            await cursor.execute(sql, first.parameters or None, prepare=False)
            cursor.nextset()
            if cursor.rownumber is not None:
                self._rows = await cursor.fetchall()
        except BaseException as error:
            if isinstance(error, Exception) and has_aborted(self.connection):
                self._error = error  # the statement's error: the transaction has begun
                return
            await self.rollback()
            raise

    @override
    async def first_rows(self) -> Rows:
        if self._error is not None:
            raise self._error
        return self._rows

    @override
    async def commit(self) -> None:
        status = self.connection.pgconn.transaction_status
        if status == IN_ERROR:
            raise SwallowedError
        self._end()
        try:
            await self.connection.commit()
        finally:
            await self._pool.putconn(self.connection)
        if status == IDLE:
            raise EndedByHandler("AsyncPsycopg(...)")

    @override
    async def rollback(self, *, close: bool = False) -> None:
        if self._has_ended:
            return
        self._end()
        try:
            with suppress(Exception):
                if close:
                    await self.connection.close()
                else:
                    await self.connection.rollback()
        finally:
            with suppress(Exception):
                await self._pool.putconn(self.connection)

    def _end(self) -> None:
        self._has_ended = True
        self.connection.is_in_session = False


class AsyncPsycopg(_PsycopgDatabase["AsyncConnection"]):
    """PostgreSQL by psycopg 3, for async handlers: ``message.transaction`` is a
    :class:`psycopg.AsyncConnection`.

    :param dsn: where it is (``postgresql://user@host/database``), or a function that returns your
        :class:`psycopg_pool.AsyncConnectionPool`, asked for each transaction.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    def __init__(
        self,
        dsn: str | Callable[[], AsyncConnectionPool[Any]],
        *,
        keep: float = DAY,
        create: bool = True,
    ) -> None:
        super().__init__(keep=keep, create=create)
        self._source = check_source(self.name, dsn, "a psycopg_pool.AsyncConnectionPool")
        self._pool: AsyncConnectionPool[Any] | None = None

    @property
    @override
    def asynchronous(self) -> bool:
        return True

    @override
    async def open_async(self, connections: int) -> None:
        try:
            from psycopg_pool import AsyncConnectionPool
        except ImportError as error:
            raise import_error(self.name, "psycopg", error) from None
        if isinstance(self._source, str):
            self._pool = AsyncConnectionPool(
                self._source, min_size=0, max_size=connections, open=False,
                connection_class=_handler_connection(), kwargs={"autocommit": True}, **_WAITS,
            )  # fmt: skip
            await self._pool.open()

    @override
    async def close_async(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    @override
    async def begin_async(self) -> AsyncSession[AsyncConnection]:
        return await self._begin(None, None)

    @override
    async def begin_with_async(
        self, first: Statement, *, patience: float | None = None
    ) -> AsyncSession[AsyncConnection]:
        return await self._begin(first, patience)

    async def _begin(
        self, first: Statement | None, patience: float | None
    ) -> AsyncSession[AsyncConnection]:
        kind = _BlockSession if self._pool is None else _OwnPoolSession
        pool = self._source() if self._pool is None else self._pool
        try:
            async with asyncio.timeout(patience) as limit:
                connection = await pool.getconn()
            session: _AsyncPsycopgSession = kind(pool, connection)
            try:
                async with asyncio.timeout_at(limit.when()):
                    await session.begin(first)
            except TimeoutError as error:
                if self._pool is None:  # it was BEGIN alone, which waits for no lock
                    raise
                raise Busy(
                    f"{self.name}(...): what the transaction begins with was not done in "
                    f"{patience:g} s; another one may hold what it needs"
                ) from error
        except Exception as error:
            self.hide_secrets(error)
            raise
        return session
