"""A transaction of any of the databases, from a coroutine.

Its actions are written once, as a generator (:data:`Work`). On a plain database all of them run in
one call of one thread, from the transaction's beginning to its end. The library may require that
(Django's connections belong to threads); and a SQLite file's write lock is never held while the
thread waits for the loop: code that blocks the loop may be waiting for that lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from inspect import isawaitable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from streams.cancellation import run_to_completion
from streams.databases.protocol import Database, Statement

T = TypeVar("T")


class BlockingCall(NamedTuple):
    """A blocking call, such as one of a log; the generator that yields it gets its result."""

    function: Callable[[], Any]


class ConnectionCall(NamedTuple):
    """A call of a function of the user's with the connection or session, as handlers get it."""

    function: Callable[[Any], object]


class CommitRequest(NamedTuple):
    """Commits the transaction; without it the transaction is rolled back."""


Action: TypeAlias = "Statement | BlockingCall | ConnectionCall | CommitRequest"

Work: TypeAlias = "Generator[Action, Any, T]"
"""The actions of a transaction, one after the other, and its result."""


class Transactions:
    """Transactions of one database, one at a time."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self._worker: ThreadPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Work[T], *, reading: bool = False) -> T:
        """Do this work in a transaction; returns its result.

        :param reading: the work changes nothing.
        """
        async with self._turn:
            if self.database.asynchronous:
                return await self._run_async(work)
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "streams-projection")
            future = self._worker.submit(self._run_plain, work, reading)
            # A cancellation takes effect only when the call has ended.
            return await run_to_completion(asyncio.wrap_future(future))

    def _run_plain(self, work: Work[T], reading: bool) -> T:
        session = self.database.begin_reading() if reading else self.database.begin()
        try:
            action = next(work)
            while True:
                found: Any = None
                if isinstance(action, Statement):
                    found = session.execute(action)
                elif isinstance(action, BlockingCall):
                    found = action.function()
                elif isinstance(action, ConnectionCall):
                    action.function(session.connection)
                else:
                    session.commit()
                action = work.send(found)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            session.rollback()

    async def _run_async(self, work: Work[T]) -> T:
        session = await self.database.begin_async()
        try:
            action = next(work)
            while True:
                found: Any = None
                if isinstance(action, Statement):
                    found = await session.execute(action)
                elif isinstance(action, BlockingCall):
                    found = await asyncio.to_thread(action.function)
                elif isinstance(action, ConnectionCall):
                    returned = action.function(session.connection)
                    if isawaitable(returned):
                        await returned
                else:
                    await session.commit()
                action = work.send(found)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            await run_to_completion(session.rollback())

    def close(self) -> None:
        """Close the resources, when no transaction is open any more; another may be begun later,
        also on another loop."""
        self._turn = asyncio.Lock()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown(wait=False)
