"""The transaction that a handler may join, offered as ``message.transaction``.

It begins with its first statement and ends with the handler's outcome. The log takes one writer at
a time, so the handlers of a process share a lock: a plain handler waits for it in
:meth:`HandlerTransaction.execute`; an async one must not block its loop, and waits in
``async with message.transaction:`` instead. No handler waits in a thread of a pool: a pool full of
waiting handlers would leave no thread to the one that has the lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, Self

from streams.engine.dispatcher import Delivery
from streams.errors import ConfigError, Unavailable

LOCK_TIMEOUT = 60.0
"""Seconds a plain handler waits for another handler's transaction to end."""


class TransactionLock:
    """A fair lock for threads and tasks alike: whoever waits longest gets it next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._waiters: deque[Callable[[], None]] = deque()

    def acquire_or_enqueue(self, on_acquired: Callable[[], None]) -> bool:
        """True: the caller has it. False: ``on_acquired`` is called once it has (any thread)."""
        with self._lock:
            if self._held:
                self._waiters.append(on_acquired)
                return False
            self._held = True
            return True

    def withdraw(self, on_acquired: Callable[[], None]) -> bool:
        """Wait no more. False: too late, the caller has it already."""
        with self._lock:
            try:
                self._waiters.remove(on_acquired)
            except ValueError:
                return False
            return True

    def acquire(self, timeout: float) -> bool:
        """Wait for it in this thread; False: ``timeout`` seconds were not enough."""
        acquired = threading.Event()
        on_acquired = acquired.set
        return (
            self.acquire_or_enqueue(on_acquired)
            or acquired.wait(timeout)
            or not self.withdraw(on_acquired)
        )

    async def acquire_async(self) -> None:
        """Wait for it on a loop."""
        loop = asyncio.get_running_loop()
        acquired: asyncio.Future[None] = loop.create_future()

        def set_acquired() -> None:
            if not acquired.done():
                acquired.set_result(None)

        def on_acquired() -> None:
            try:
                loop.call_soon_threadsafe(set_acquired)
            except RuntimeError:  # the loop is closed, and the task that waited is gone
                self.release()

        if self.acquire_or_enqueue(on_acquired):
            return
        try:
            await acquired
        except BaseException:
            if not self.withdraw(on_acquired):
                self.release()
            raise

    def release(self) -> None:
        """Give it to the one that waits longest."""
        with self._lock:
            if not self._waiters:
                self._held = False
                return
            on_acquired = self._waiters.popleft()
        on_acquired()


class _OpenFlag:
    """One transaction, as seen from the contexts in which it was used."""

    __slots__ = ("held", "open")

    def __init__(self) -> None:
        self.held = False
        """It has its turn."""
        self.open = False
        """Something was executed in it."""


_open_flag: ContextVar[_OpenFlag | None] = ContextVar("streams-transaction", default=None)


def in_transaction() -> bool:
    """Whether this context's transaction is open: publishing would wait for its own end."""
    flag = _open_flag.get()
    return flag is not None and flag.open


def has_turn() -> bool:
    """Whether this context's transaction keeps all others from beginning."""
    flag = _open_flag.get()
    return flag is not None and flag.held


class OpenBlock(Protocol):
    """A transaction of ``app.transaction()``, as seen from the contexts that it was opened in."""

    @property
    def is_open(self) -> bool:
        """It has not ended."""
        ...


block_of_context: ContextVar[OpenBlock | None] = ContextVar("streams-block", default=None)
"""The last block of ``app.transaction()`` that was entered in this context, or in the one that it
is a copy of."""


def in_block() -> bool:
    """Whether this context is inside a block of ``app.transaction()``."""
    block = block_of_context.get()
    return block is not None and block.is_open


class HandlerTransaction:
    """The transactions of one handler task or thread, one after the other."""

    def __init__(
        self,
        begin: Callable[[], Any],
        commit: Callable[[Any, Sequence[Delivery]], None],
        lock: TransactionLock,
        *,
        may_block: bool,
    ) -> None:
        self._begin = begin
        self._commit = commit
        self._lock = lock
        self._may_block = may_block
        self._held = False
        self._ended = False
        self._open_flag = _OpenFlag()
        self._transaction: Any = None

    def begin_handler(self) -> None:
        """Note that a handler is about to run; :meth:`rollback` is called once it has ended."""
        self._ended = False

    async def __aenter__(self) -> Self:
        """Wait for other handlers' transactions to end; ours ends with the handler."""
        if not self._held:
            self._refuse_after_end()
            self._refuse_in_block()
            await self._lock.acquire_async()
            try:
                self._refuse_after_end()
            except ConfigError:
                self._lock.release()
                raise
            self._held = self._open_flag.held = True
        _open_flag.set(self._open_flag)
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    @property
    def is_open(self) -> bool:
        """Something was executed since the last outcome."""
        return self._transaction is not None

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement in the transaction that will commit this message's position.

        :returns: the rows, as tuples.
        """
        if self._transaction is None:
            if not self._held:
                self._refuse_after_end()
                self._refuse_in_block()
                if not self._lock.acquire(LOCK_TIMEOUT if self._may_block else 0):
                    raise Unavailable(
                        "another handler's transaction is open: in an async handler use "
                        "`async with message.transaction:`, which waits for it"
                    )
                self._held = self._open_flag.held = True
            self._transaction = self._begin()
            self._open_flag.open = True
            _open_flag.set(self._open_flag)
        rows: list[tuple[Any, ...]] = self._transaction.execute(sql, parameters)
        return rows

    def _refuse_after_end(self) -> None:
        if self._ended:  # nobody would commit it, and all other writers would wait for it
            raise ConfigError(
                "message.transaction after its handler has ended: tasks and threads that the "
                "handler started must end before it"
            )

    @staticmethod
    def _refuse_in_block() -> None:
        if in_block():
            raise ConfigError(
                "message.transaction inside a block of app.transaction() would wait for its end: "
                "use the block's own connection, or message.transaction after it"
            )

    def commit(self, deliveries: Sequence[Delivery]) -> None:
        """Commit, as the handler succeeded."""
        transaction, self._transaction = self._transaction, None
        try:
            self._commit(transaction, deliveries)
        finally:
            self._release()

    def rollback(self) -> None:
        """Note that the handler has ended; undo its transaction, if that was not committed."""
        self._ended = True
        transaction, self._transaction = self._transaction, None
        try:
            if transaction is not None:
                transaction.rollback()
        finally:
            self._release()

    def _release(self) -> None:
        if self._held:
            self._held = False
            # A task that the handler started keeps the old flag: it may publish.
            self._open_flag.open = self._open_flag.held = False
            self._open_flag = _OpenFlag()
            self._lock.release()
