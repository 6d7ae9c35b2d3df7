"""The transaction that a handler may join, offered as ``message.transaction``.

Begun by its first use, ended by the handler's outcome. A log takes one writer at a time, so the
handlers of a process take *turns*: a plain handler waits in :meth:`Joint.execute`; an async one
must not block its loop, and waits in ``async with message.transaction:`` instead. Nobody waits in
a thread of a pool: a pool full of those who wait would leave none to whom they wait for.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Self

from streams.engine.dispatch import Work
from streams.errors import Unavailable

PATIENCE = 60.0
"""Seconds a plain handler waits for another handler's transaction to end."""


class Turns:
    """One holder at a time, first come, first served; threads and loops alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, handed: Callable[[], None]) -> bool:
        """True: it is ours. False: ``handed`` is called, from any thread, once it is."""
        with self._lock:
            if self._held:
                self._waiting.append(handed)
                return False
            self._held = True
            return True

    def withdraw(self, handed: Callable[[], None]) -> bool:
        """Wait no more. False: too late, it is ours already."""
        with self._lock:
            try:
                self._waiting.remove(handed)
            except ValueError:
                return False
            return True

    def acquire(self, timeout: float) -> bool:
        """Wait for it in this thread; False: ``timeout`` seconds were not enough."""
        come = threading.Event()
        handed = come.set
        return self.take(handed) or come.wait(timeout) or not self.withdraw(handed)

    async def wait(self) -> None:
        """Wait for it on a loop."""
        loop = asyncio.get_running_loop()
        come: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not come.done():
                come.set_result(None)

        def handed() -> None:
            try:
                loop.call_soon_threadsafe(tell)
            except RuntimeError:  # the loop is closed, and who waited went with it
                self.release()

        if self.take(handed):
            return
        try:
            await come
        except BaseException:
            if not self.withdraw(handed):
                self.release()
            raise

    def release(self) -> None:
        """Give it to who waits longest."""
        with self._lock:
            if not self._waiting:
                self._held = False
                return
            handed = self._waiting.popleft()
        handed()


class _Mark:
    """One transaction, as seen from the contexts in which it was used."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = False


_mark: ContextVar[_Mark | None] = ContextVar("streams-transaction", default=None)


def joined() -> bool:
    """Whether this context's transaction is open: to publish would be to wait for oneself."""
    mark = _mark.get()
    return mark is not None and mark.open


class Joint:
    """The transactions of one worker, one after the other."""

    def __init__(
        self,
        open: Callable[[], Any],
        commit: Callable[[Any, Sequence[Work]], None],
        turns: Turns,
        *,
        may_block: bool,
    ) -> None:
        self._open = open
        self._commit = commit
        self._turns = turns
        self._may_block = may_block
        self._held = False
        self._mark = _Mark()
        self._transaction: Any = None

    async def __aenter__(self) -> Self:
        """Wait for other handlers' transactions to end; ours ends with the handler."""
        if not self._held:
            await self._turns.wait()
            self._held = True
        _mark.set(self._mark)
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    @property
    def begun(self) -> bool:
        """Something was executed since the last outcome."""
        return self._transaction is not None

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement in the transaction that will commit this message's position.

        :returns: the rows, as tuples.
        """
        if self._transaction is None:
            if not self._held:
                if not self._turns.acquire(PATIENCE if self._may_block else 0):
                    raise Unavailable(
                        "another handler's transaction is open: in an async handler use "
                        "`async with message.transaction:`, which waits for it"
                    )
                self._held = True
            self._transaction = self._open()
            self._mark.open = True
            _mark.set(self._mark)
        rows: list[tuple[Any, ...]] = self._transaction.execute(sql, parameters)
        return rows

    def commit(self, works: Sequence[Work]) -> None:
        """The handler succeeded."""
        transaction, self._transaction = self._transaction, None
        try:
            self._commit(transaction, works)
        finally:
            self._leave()

    def rollback(self) -> None:
        """The handler failed, or its message is not ours any more."""
        transaction, self._transaction = self._transaction, None
        try:
            if transaction is not None:
                transaction.rollback()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._held:
            self._held = False
            # What the handler started and left behind keeps the old mark: it may publish.
            self._mark.open = False
            self._mark = _Mark()
            self._turns.release()
