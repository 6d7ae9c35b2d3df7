"""PostgreSQL by asyncpg, for async handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.databases.execution import asyncpg_failure, asyncpg_rows
from streams.databases.protocol import (
    DAY,
    AsyncSession,
    Database,
    DialectName,
    EndedByHandler,
    FailureKind,
    Rows,
    Statement,
    SwallowedError,
    check_source,
    import_error,
)

if TYPE_CHECKING:
    from asyncpg import Connection  # type: ignore[import-untyped]

CLOSE_TIMEOUT = 10.0
"""Seconds within which connections must be released and closed."""

POOL_TIMEOUT = 5.0
"""Seconds that a transaction waits for a connection of the pool."""


class _AsyncpgSession(AsyncSession["Connection"]):
    def __init__(self, pool: Any, connection: Any) -> None:
        self.connection = connection
        self._pool = pool
        self._transaction = connection.transaction()
        self._open = False

    async def enter(self) -> None:
        """Begin the transaction; the connection is released if that fails."""
        try:
            await self._transaction.start()
            self._open = True
        except BaseException:
            await self._pool.release(self.connection)
            raise

    @override
    async def execute(self, statement: Statement) -> Rows:
        return await asyncpg_rows(self.connection, statement)

    @override
    async def commit(self) -> None:
        if not self.is_broken() and not self.connection.is_in_transaction():
            raise EndedByHandler("Asyncpg(...)")
        # asyncpg's commit() drops the answer, which is ROLLBACK where a statement failed.
        if await self.has_failed():
            raise SwallowedError
        await self._transaction.commit()
        self._open = False
        await self._pool.release(self.connection)

    @override
    async def rollback(self, *, close: bool = False) -> None:
        if not self._open:
            return
        self._open = False
        try:
            with suppress(Exception):
                if close:
                    self.connection.terminate()
                else:
                    await self._transaction.rollback()
        finally:
            with suppress(Exception):
                await self._pool.release(self.connection)

    @override
    def is_broken(self) -> bool:
        import asyncpg

        try:
            return bool(self.connection.is_closed())
        except asyncpg.InterfaceError:  # its pool has noticed, and taken it back
            return True

    @override
    async def has_failed(self) -> bool:
        import asyncpg

        try:
            # asyncpg knows the state of a transaction but does not expose it, so the server is
            # asked.
            await self.connection.execute("SELECT 1")
        except asyncpg.InFailedSQLTransactionError:
            return True
        return False


class Asyncpg(Database["Connection"]):
    """PostgreSQL by asyncpg, for async handlers: ``message.transaction`` is an
    :class:`asyncpg.Connection`, as its pool gives them out.

    :param dsn: the address (``postgresql://user@host/database``), or a function that returns your
        :class:`asyncpg.Pool`, called for each transaction.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    def __init__(
        self, dsn: str | Callable[[], Any], *, keep: float = DAY, create: bool = True
    ) -> None:
        super().__init__(keep=keep, create=create)
        self._source = check_source(self.name, dsn, "an asyncpg.Pool", libpq=False)
        self._pool: Any = None

    @override
    def address(self) -> str | None:
        return self._source if isinstance(self._source, str) else None

    @property
    @override
    def asynchronous(self) -> bool:
        return True

    @property
    @override
    def dialect(self) -> DialectName:
        return "postgresql"

    @override
    def classify(self, error: BaseException) -> FailureKind:
        return asyncpg_failure(error)

    @override
    async def open_async(self, connections: int) -> None:
        try:
            import asyncpg
        except ImportError as error:
            raise import_error(self.name, "asyncpg", error) from None
        if isinstance(self._source, str):
            try:
                self._pool = await asyncpg.create_pool(
                    self._source, min_size=0, max_size=connections, timeout=POOL_TIMEOUT
                )
            except Exception as error:
                self.hide_secrets(error)
                raise

    @override
    async def close_async(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), CLOSE_TIMEOUT)
            except TimeoutError:
                pool.terminate()

    @override
    async def begin_async(self) -> AsyncSession[Connection]:
        pool = self._pool if self._pool is not None else self._source()
        try:
            session = _AsyncpgSession(pool, await pool.acquire(timeout=POOL_TIMEOUT))
            await session.enter()
        except Exception as error:
            self.hide_secrets(error)
            raise
        return session
