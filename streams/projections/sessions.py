"""A transaction of any of the databases, from a coroutine.

That of a plain database is used in one thread from its beginning to its end, as its library may
want that (Django's connections belong to threads).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, ParamSpec, TypeVar

from streams.cancellation import run_to_completion
from streams.databases.protocol import AsyncSession, Database, Session, Steps, run, run_async

P = ParamSpec("P")
T = TypeVar("T")


class OpenSession:
    """A transaction, open until it is committed or the block that opened it ends."""

    def __init__(self, session: Any, worker: ThreadPoolExecutor | None) -> None:
        self._session = session
        self._worker = worker

    async def run(self, steps: Steps[T]) -> T:
        """Run statements; what they come to."""
        if self._worker is None:
            asynchronous: AsyncSession[Any] = self._session
            return await run_async(asynchronous, steps)
        plain: Session[Any] = self._session
        return await in_worker(self._worker, run, plain, steps)

    async def call(self, function: Callable[[Any], object]) -> None:
        """Call a function of the user's with the connection or session, as handlers get it."""
        if self._worker is not None:
            await in_worker(self._worker, function, self._session.connection)
            return
        found = function(self._session.connection)
        if isawaitable(found):
            await found

    async def commit(self) -> None:
        """Commit."""
        if self._worker is None:
            await self._session.commit()
        else:
            await in_worker(self._worker, self._session.commit)


class Transactions:
    """Transactions of one database, one at a time."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self._worker: ThreadPoolExecutor | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin(self, *, reading: bool = False) -> AsyncIterator[OpenSession]:
        """A new transaction, rolled back at the block's end unless it was committed.

        :param reading: its statements change nothing.
        """
        async with self._turn, self._begin(reading) as session:
            yield session

    @asynccontextmanager
    async def _begin(self, reading: bool) -> AsyncIterator[OpenSession]:
        if self.database.asynchronous:
            asynchronous = await self.database.begin_async()
            try:
                yield OpenSession(asynchronous, None)
            finally:
                await run_to_completion(asynchronous.rollback())
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "streams-projection")
        begun: list[Session[Any]] = []
        try:
            # A cancellation comes when it has begun all the same, and has to be undone.
            begin = self.database.begin_reading if reading else self.database.begin
            await in_worker(self._worker, lambda: begun.append(begin()))
            yield OpenSession(begun[0], self._worker)
        finally:
            for plain in begun:
                await in_worker(self._worker, plain.rollback)

    def close(self) -> None:
        """No transaction is open any more; one may be begun again, on another loop, too."""
        self._turn = asyncio.Lock()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=False)


async def in_worker(
    worker: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a function in a thread, to its end."""
    future = worker.submit(function, *args, **kwargs)
    return await run_to_completion(asyncio.wrap_future(future))
