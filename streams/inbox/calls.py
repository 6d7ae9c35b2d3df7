"""Code that makes calls, written once for plain and for async databases and handlers.

Such code is a generator (:data:`Calls`): it yields what a call returned, and gets the call's
result, so that ``yield`` stands where an async function has ``await``. A plain call has returned
its result, which :func:`run_calls` sends back. An async call has returned an awaitable, which
:func:`run_calls_async` awaits; an error of it is raised at the ``yield``.

:class:`Access` has the calls to a database, and to the thread or task in which they are made.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeAlias, TypeVar

from typing_extensions import override

from streams.databases.protocol import AsyncSession, Database, DialectName, Session, Steps

R = TypeVar("R")

Calls: TypeAlias = "Generator[Any, Any, R]"
"""A sequence of calls, the last of which gives a result."""

Answer: TypeAlias = "R | Awaitable[R]"
"""What a call returns: its result, or an awaitable of it."""

AnySession: TypeAlias = "Session[Any] | AsyncSession[Any]"


def run_calls(calls: Calls[R]) -> R:
    """Make plain calls; returns their result."""
    try:
        answer = next(calls)
        while True:
            answer = calls.send(answer)
    except StopIteration as end:
        result: R = end.value
        return result


async def run_calls_async(calls: Calls[R]) -> R:
    """Make async calls; returns their result."""
    try:
        answer = next(calls)
        while True:
            try:
                found = await answer
            except BaseException as error:
                answer = calls.throw(error)
            else:
                answer = calls.send(found)
    except StopIteration as end:
        result: R = end.value
        return result


def execute_steps(session: AnySession, steps: Steps[R]) -> Calls[R]:
    """Run statements in a session; as :func:`streams.databases.protocol.run_steps`."""
    try:
        statement = next(steps)
        while True:
            statement = steps.send((yield session.execute(statement)))
    except StopIteration as end:
        result: R = end.value
        return result


class Lock(Protocol):
    """A lock of threads or of tasks."""

    def acquire(self, seconds: float) -> Answer[bool]:
        """Acquire it; False: that took too long."""
        ...

    def release(self) -> None:
        """Release it."""
        ...


class Access(ABC):
    """The calls to a database of one kind, plain or async."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database

    @property
    @abstractmethod
    def asynchronous(self) -> bool:
        """Whether these calls, and the handler's, are awaited."""

    @abstractmethod
    def enter(self) -> Answer[None]:
        """Open the database, unless it is open."""

    @abstractmethod
    def leave(self) -> Answer[None]:
        """Close it, unless others still use it."""

    @abstractmethod
    def begin(self) -> Answer[AnySession]:
        """A new transaction."""

    @abstractmethod
    def begin_with(self, steps: Steps[Any], patience: float | None) -> Answer[AnySession]:
        """A new transaction whose statements :meth:`run_begun` runs.

        :param patience: the most seconds that an async driver waits for a connection and for the
            first statement; None: its own limit, as of a plain driver.
        """

    @abstractmethod
    def run_begun(self, session: AnySession, steps: Steps[R]) -> Calls[R]:
        """Run the statements with which a transaction was begun."""

    @abstractmethod
    def sleep(self, seconds: float) -> Answer[None]:
        """Wait for so long."""

    @abstractmethod
    def run_blocking(self, function: Callable[..., R], *args: Any) -> Answer[R]:
        """Call a function that blocks; an event loop is not blocked."""

    @abstractmethod
    def run_within(self, calls: Calls[R], seconds: float | None) -> Answer[R]:
        """Make these calls.

        :param seconds: the longest time that async calls may take; None: any.
        :raises TimeoutError: they take longer.
        """

    @abstractmethod
    def new_lock(self) -> Lock:
        """A new lock of threads or of tasks."""

    def run_in_transaction(self, steps_of: Callable[[DialectName], Steps[R]]) -> Calls[R]:
        """Run statements in a transaction of their own, and commit it.

        :param steps_of: the statements in the database's dialect, which is known once there is a
            session.
        """
        session: AnySession = yield self.begin()
        try:
            found = yield from execute_steps(session, steps_of(self.database.dialect))
            yield session.commit()
        except BaseException:
            yield session.rollback()
            raise
        return found


class _PlainLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, seconds: float) -> bool:
        return self._lock.acquire(timeout=seconds)

    def release(self) -> None:
        self._lock.release()


class _PlainAccess(Access):
    @property
    @override
    def asynchronous(self) -> bool:
        return False

    @override
    def enter(self) -> None:
        self.database.enter()

    @override
    def leave(self) -> None:
        self.database.leave()

    @override
    def begin(self) -> Session[Any]:
        return self.database.begin()

    @override
    def begin_with(self, steps: Steps[Any], patience: float | None) -> Session[Any]:
        return self.database.begin()

    @override
    def run_begun(self, session: AnySession, steps: Steps[R]) -> Calls[R]:
        return execute_steps(session, steps)

    @override
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    @override
    def run_blocking(self, function: Callable[..., R], *args: Any) -> R:
        return function(*args)

    @override
    def run_within(self, calls: Calls[R], seconds: float | None) -> R:
        return run_calls(calls)

    @override
    def new_lock(self) -> Lock:
        return _PlainLock()


class _AsyncLock:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def acquire(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._lock.acquire()
        except TimeoutError:
            return False

    def release(self) -> None:
        self._lock.release()


class _AsyncAccess(Access):
    @property
    @override
    def asynchronous(self) -> bool:
        return True

    @override
    def enter(self) -> Awaitable[None]:
        return self.database.enter_async()

    @override
    def leave(self) -> Awaitable[None]:
        return self.database.leave_async()

    @override
    def begin(self) -> Awaitable[AsyncSession[Any]]:
        return self.database.begin_async()

    @override
    def begin_with(self, steps: Steps[Any], patience: float | None) -> Awaitable[AsyncSession[Any]]:
        return self.database.begin_with_async(next(steps), patience=patience)

    @override
    def run_begun(self, session: Any, steps: Steps[R]) -> Calls[R]:
        # The session has begun with the first statement.
        try:
            statement = steps.send((yield session.first_rows()))
            while True:
                statement = steps.send((yield session.execute(statement)))
        except StopIteration as end:
            result: R = end.value
            return result

    @override
    def sleep(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    @override
    def run_blocking(self, function: Callable[..., R], *args: Any) -> Awaitable[R]:
        return asyncio.to_thread(function, *args)

    @override
    async def run_within(self, calls: Calls[R], seconds: float | None) -> R:
        async with asyncio.timeout(seconds):
            return await run_calls_async(calls)

    @override
    def new_lock(self) -> Lock:
        return _AsyncLock()


def access_of(database: Database[Any]) -> Access:
    """The calls to a database, whose kind is known: its processor's handler is of that kind."""
    return _AsyncAccess(database) if database.asynchronous else _PlainAccess(database)
