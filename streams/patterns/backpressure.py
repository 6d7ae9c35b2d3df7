"""Backpressure for a service's own calls: bounds how many run at once, and their total size.

Promises
--------
* **Never above the maximum.** A released permit is granted to the next waiter at once, before that
  task has woken up; no other task can take it in between.
* **First come, first served**, also by size: a large request waits until it fits, and those
  behind it wait with it.
* **Nothing leaks.** A waiter that is cancelled, also just after it was granted a permit, passes
  that on to the next; ``async with`` and :meth:`~BackpressureController.with_backpressure` release
  it however the work ends.

This is for calls that a service makes by itself: a database with few connections, a slow API. The
messages that a processor takes from its log are bounded already (``concurrency=``, ``Flow``).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, overload

from streams.errors import InvalidValue, StreamsError
from streams.numbers import is_int
from streams.patterns.arguments import check_int
from streams.patterns.operation import await_call, call_operation, check_operation

__all__ = ["BackpressureController", "NotAcquired"]

R = TypeVar("R")


class NotAcquired(StreamsError, RuntimeError):
    """The permit that was released is not held: the caller released one time too many (a bug)."""


class BackpressureController:
    """Bounds how much runs at once. Belongs to one event loop.

    :param max_concurrency: permits, 1 at least.
    :param max_bytes: bound for the total size of the permits held; None: no bound. A request that
        is larger than the bound is granted when no other bytes are held.
    :raises ConfigError: a bound is impossible.
    """

    def __init__(self, max_concurrency: int, *, max_bytes: int | None = None) -> None:
        check_int("BackpressureController", "max_concurrency", max_concurrency)
        if max_bytes is not None:
            check_int("BackpressureController", "max_bytes", max_bytes)
        self.max_concurrency = max_concurrency
        self.max_bytes = max_bytes
        self._pending = 0
        self._pending_bytes = 0
        self._held_by_size: Counter[int] = Counter()
        """How many permits are held, by size."""
        self._waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return (
            f"<BackpressureController {self._pending} of {self.max_concurrency}, "
            f"{len(self._waiters)} waiting>"
        )

    @property
    def pending(self) -> int:
        """Permits held: acquired, or granted to a waiter that is about to wake up."""
        return self._pending

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return len(self._waiters)

    @property
    def pending_bytes(self) -> int:
        """The total size of the permits held."""
        return self._pending_bytes

    @property
    def waiting_bytes(self) -> int:
        """The total size of the requests that wait."""
        return sum(self._waiters.values())

    async def acquire(self, size: int = 0) -> None:
        """Wait for a permit; give it back with ``release(size)``.

        If it is cancelled, no permit is held. To limit the wait, put ``asyncio.timeout`` around it.

        :param size: bytes, or whatever ``max_bytes`` counts.
        :raises InvalidValue: ``size`` is impossible.
        """
        if not is_int(size, 0):
            raise InvalidValue(f"acquire(size={size!r}): must be a non-negative integer")
        loop = self._running_loop()
        if not self._waiters and self._has_room(size):
            self._grant(size)
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters[waiter] = size
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.release(size)  # it was granted, and will not be used
            else:
                self._waiters.pop(waiter, None)
                self._wake_waiters()  # those behind it may be smaller
            raise

    def release(self, size: int = 0) -> None:
        """Release a permit; the next waiter has it at once.

        :param size: as it was acquired.
        :raises NotAcquired: no permit of that size is held. Nothing changed.
        """
        if self._held_by_size[size] < 1:
            release_call = "release()" if size == 0 else f"release({size!r})"
            raise NotAcquired(
                f"{release_call}: no permit of that size is held ({self._pending} are); release "
                "once for each acquire, with the same size"
            )
        self._held_by_size[size] -= 1
        if not self._held_by_size[size]:
            del self._held_by_size[size]
        self._pending -= 1
        self._pending_bytes -= size
        self._wake_waiters()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.release()

    @asynccontextmanager
    async def sized(self, size: int) -> AsyncIterator[None]:
        """``async with controller.sized(len(data)):`` holds a permit of that size."""
        await self.acquire(size)
        try:
            yield
        finally:
            self.release(size)

    @overload
    async def with_backpressure(
        self, operation: Callable[[], Awaitable[R]], *, size: int = ...
    ) -> R: ...
    @overload
    async def with_backpressure(self, operation: Callable[[], R], *, size: int = ...) -> R: ...
    async def with_backpressure(self, operation: Callable[[], Any], *, size: int = 0) -> Any:
        """Run ``operation`` under a permit, and return what it returns.

        :param operation: ``async def`` without parameters, a lambda around a call of one, or a
            plain function, which runs in a worker thread and holds its permit until it ends, even
            when the caller is cancelled.
        :param size: bytes, or whatever ``max_bytes`` counts.
        """
        check_operation(operation, "with_backpressure(operation)")
        await self.acquire(size)
        try:
            return await await_call(operation, call_operation(operation))
        finally:
            self.release(size)

    # -- waiters

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._pending or self._waiters:
                raise RuntimeError(
                    "this BackpressureController is in use on another event loop; make one for each"
                )
            self._loop = loop
        return loop

    def _has_room(self, size: int) -> bool:
        if self._pending >= self.max_concurrency:
            return False
        if self.max_bytes is None or not size or not self._pending_bytes:
            return True
        return self._pending_bytes + size <= self.max_bytes

    def _grant(self, size: int) -> None:
        self._pending += 1
        self._pending_bytes += size
        self._held_by_size[size] += 1

    def _wake_waiters(self) -> None:
        while self._waiters:
            waiter, size = next(iter(self._waiters.items()))
            if waiter.cancelled():  # its task has not run since
                del self._waiters[waiter]
                continue
            if not self._has_room(size):
                return
            del self._waiters[waiter]
            self._grant(size)
            waiter.set_result(None)
