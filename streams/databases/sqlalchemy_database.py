"""Any engine of SQLAlchemy 2 on PostgreSQL or SQLite: plain handlers by a ``sessionmaker``, async
ones by an ``async_sessionmaker``.

The handler gets a session in which a transaction has begun; the toolkit's statements run on its
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from typing_extensions import override

from streams.databases.execution import (
    async_sqlalchemy_rows,
    commits_each_statement,
    sqlalchemy_rows,
)
from streams.databases.protocol import (
    DAY,
    AsyncSession,
    Database,
    DialectName,
    EndedByHandler,
    FailureKind,
    Rows,
    Session,
    Statement,
    SwallowedError,
    failure_of_driver,
    has_aborted,
    has_lost_transaction,
    import_error,
    is_in_failed_transaction,
    known_dialect,
)
from streams.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession as SqlAsyncSession
    from sqlalchemy.ext.asyncio import async_sessionmaker
    from sqlalchemy.orm import Session as SqlSession
    from sqlalchemy.orm import sessionmaker

C = TypeVar("C")
S = TypeVar("S", bound="SqlSession")
A = TypeVar("A", bound="SqlAsyncSession")


def _is_in_transaction(core: Any) -> bool:
    return getattr(core.connection.driver_connection, "in_transaction", None) is True


class _SqlSession(Session[Any]):
    def __init__(self, session: Any) -> None:
        self.connection = session
        self._open = True
        self._began = False
        """On SQLite: a statement has begun the transaction."""
        try:
            self._transaction = session.begin()
            self._core = session.connection()
        except BaseException:
            self.rollback()
            raise

    @property
    def core(self) -> Any:
        """The connection under the session."""
        return self._core

    @override
    def execute(self, statement: Statement) -> Rows:
        rows = sqlalchemy_rows(self._core, statement)
        self._began = self._began or _is_in_transaction(self._core)
        return rows

    @override
    def commit(self) -> None:
        session = self.connection
        if not self._transaction.is_active or session.get_transaction() is not self._transaction:
            raise EndedByHandler("SQLAlchemy(...)")
        session.flush()
        if self._has_aborted():
            raise SwallowedError
        self._transaction.commit()
        self._open = False
        with suppress(Exception):
            session.close()

    def _has_aborted(self) -> bool:
        """The transaction can only be rolled back, or was."""
        driver_connection = self._core.connection.driver_connection
        if self._began and has_lost_transaction(driver_connection):
            return True
        failed = has_aborted(driver_connection)
        if failed is None and self._core.dialect.name == "postgresql":
            try:
                self._core.exec_driver_sql("SELECT 1")
            except Exception as error:
                if not is_in_failed_transaction(error):
                    raise
                return True
        return failed is True

    @override
    def rollback(self, *, close: bool = False) -> None:
        if self._open:
            self._open = False
            if close:
                with suppress(Exception):
                    self._core.invalidate()
            with suppress(Exception):
                self.connection.rollback()
            with suppress(Exception):
                self.connection.close()

    @override
    def is_broken(self) -> bool:
        return bool(self._core.invalidated)

    @override
    def has_failed(self) -> bool:
        # A session that failed to flush has rolled back, and reports nothing else.
        return not self.connection.is_active or self._has_aborted()


class _SqlAsyncSession(AsyncSession[Any]):
    def __init__(self, session: Any) -> None:
        self.connection = session
        self._transaction: Any = None
        self._core: Any = None
        self._open = True
        self._began = False
        """On SQLite: a statement has begun the transaction."""

    async def enter(self) -> None:
        """Begin the transaction."""
        try:
            self._transaction = await self.connection.begin()
            self._core = await self.connection.connection()
        except BaseException:
            await self.rollback()
            raise

    @property
    def core(self) -> Any:
        """The connection under the session."""
        return self._core.sync_connection

    @override
    async def execute(self, statement: Statement) -> Rows:
        rows = await async_sqlalchemy_rows(self._core, statement)
        self._began = self._began or _is_in_transaction(self.core)
        return rows

    @override
    async def commit(self) -> None:
        session = self.connection
        current = session.sync_session.get_transaction()
        if not self._transaction.is_active or current is not self._transaction.sync_transaction:
            raise EndedByHandler("SQLAlchemy(...)")
        await session.flush()
        if await self._has_aborted():
            raise SwallowedError
        await self._transaction.commit()
        self._open = False
        with suppress(Exception):
            await session.close()

    async def _has_aborted(self) -> bool:
        """The transaction can only be rolled back, or was."""
        driver_connection = (await self._core.get_raw_connection()).driver_connection
        if self._began and has_lost_transaction(driver_connection):
            return True
        failed = has_aborted(driver_connection)
        if failed is None and self._core.dialect.name == "postgresql":
            try:
                await self._core.exec_driver_sql("SELECT 1")
            except Exception as error:
                if not is_in_failed_transaction(error):
                    raise
                return True
        return failed is True

    @override
    async def rollback(self, *, close: bool = False) -> None:
        if self._open:
            self._open = False
            if close:
                with suppress(Exception):
                    await self._core.invalidate()
            with suppress(Exception):
                await self.connection.rollback()
            with suppress(Exception):
                await self.connection.close()

    @override
    def is_broken(self) -> bool:
        return bool(self._core.invalidated)

    @override
    async def has_failed(self) -> bool:
        # A session that failed to flush has rolled back, and reports nothing else.
        return not self.connection.is_active or await self._has_aborted()


class SQLAlchemy(Database[C], Generic[C]):
    """SQLAlchemy 2 on PostgreSQL or SQLite: ``message.transaction`` is a session of the given
    maker, in a transaction. With a ``sessionmaker`` for plain handlers, with an
    ``async_sessionmaker`` for async ones.

    :param maker: your session maker, or a function that returns it, asked for each transaction.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    @overload
    def __init__(
        self: SQLAlchemy[S],
        maker: sessionmaker[S] | Callable[[], sessionmaker[S]],
        *,
        keep: float = DAY,
        create: bool = True,
    ) -> None: ...
    @overload
    def __init__(
        self: SQLAlchemy[A],
        maker: async_sessionmaker[A] | Callable[[], async_sessionmaker[A]],
        *,
        keep: float = DAY,
        create: bool = True,
    ) -> None: ...
    def __init__(self, maker: Any, *, keep: float = DAY, create: bool = True) -> None:
        super().__init__(keep=keep, create=create)
        try:
            from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker
            from sqlalchemy.orm import scoped_session, sessionmaker
        except ImportError as error:
            raise import_error(self.name, "sqlalchemy", error) from None
        self._makers = (sessionmaker, async_sessionmaker)
        self._source: Callable[[], Any] = lambda: maker
        """Returns the maker."""
        self._maker: Callable[[], Any] | None = None
        """None: a function returns the maker."""
        self._asynchronous: bool | None = None
        """None: the kind of the first handler decides."""
        self._dialect: DialectName | None = None
        if isinstance(maker, self._makers):
            self._maker = maker
            self._asynchronous = isinstance(maker, async_sessionmaker)
        elif callable(maker) and not isinstance(
            maker, (type, scoped_session, async_scoped_session)
        ):
            self._source = maker
        else:
            raise ConfigError(
                f"SQLAlchemy({type(maker).__name__}): a sessionmaker(engine) for plain handlers, "
                "an async_sessionmaker(engine) for async ones, or a function that returns it"
            )

    @override
    def address(self) -> str | None:
        bind = getattr(self._maker, "kw", {}).get("bind")
        url = getattr(bind, "url", None)
        if url is None or not url.database or url.database == ":memory:":
            return None
        return str(url.render_as_string(hide_password=False))

    @property
    @override
    def asynchronous(self) -> bool:
        return self._asynchronous is True

    @override
    def supports_handler(self, *, asynchronous: bool) -> bool:
        if self._asynchronous is None:
            self._asynchronous = asynchronous
        return self._asynchronous == asynchronous

    def _new_session(self) -> Any:
        """A new session of the user's maker.

        :raises ConfigError: the user's function returned something other than a maker for it.
        """
        maker = self._source()
        wanted = self._makers[self.asynchronous]
        if not isinstance(maker, wanted):
            kind = "an async" if self.asynchronous else "a plain"
            raise ConfigError(
                f"transaction=SQLAlchemy(function): it returned a {type(maker).__name__}, and "
                f"{kind} handler needs one of {wanted.__name__}(engine)"
            )
        return maker()

    @property
    @override
    def dialect(self) -> DialectName:
        if self._dialect is None:
            raise RuntimeError("not known before the first session")
        return self._dialect

    def _check_engine(self, core: Any) -> None:
        """Check the engine, which is known by a connection.

        :raises ConfigError: the inbox does not work there.
        """
        if commits_each_statement(core):
            raise ConfigError(
                "transaction=SQLAlchemy(...): its engine has isolation_level='AUTOCOMMIT', with "
                "which no transaction is ever open: give the maker an engine without it"
            )
        self._set_dialect(core.dialect.name)

    def _set_dialect(self, name: str) -> None:
        """Learn the engine's dialect.

        :raises ConfigError: the inbox does not work there.
        """
        found = known_dialect(name)
        if found is None:
            raise ConfigError(
                f"transaction=SQLAlchemy(...): its engine is {name}; the inbox works on PostgreSQL "
                "and SQLite"
            )
        self._dialect = found

    @override
    def classify(self, error: BaseException) -> FailureKind:
        from sqlalchemy import exc

        if isinstance(error, exc.TimeoutError):  # no connection of the pool is free
            return FailureKind.UNREACHABLE
        if isinstance(error, exc.DBAPIError):
            if error.connection_invalidated:
                return FailureKind.UNREACHABLE
            from_client = isinstance(error, exc.OperationalError)
            return failure_of_driver(error.orig, from_client=from_client)
        if self.asynchronous and isinstance(error, OSError):  # asyncpg's, of a new connection
            return FailureKind.UNREACHABLE
        return FailureKind.FAULT

    @override
    def begin(self) -> Session[C]:
        try:
            session = _SqlSession(self._new_session())
        except Exception as error:
            self.hide_secrets(error)
            raise
        if self._dialect is None:
            try:
                self._check_engine(session.core)
            except BaseException:
                session.rollback()
                raise
        return session

    @override
    async def begin_async(self) -> AsyncSession[C]:
        try:
            session = _SqlAsyncSession(self._new_session())
            await session.enter()
        except Exception as error:
            self.hide_secrets(error)
            raise
        if self._dialect is None:
            try:
                self._check_engine(session.core)
            except BaseException:
                await session.rollback()
                raise
        return session
