"""Waiting on a clock that a test may move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

from streams.clock import Clock


async def sleep_until(clock: Clock, due: float) -> None:
    """Return once a clock says ``due``, in monotonic seconds."""
    loop = asyncio.get_running_loop()
    advanced = asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: no task is left to be woken
            loop.call_soon_threadsafe(advanced.set)

    unwatch = clock.on_jump(wake)
    try:
        while (seconds_left := due - clock.monotonic()) > 0:
            advanced.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(clock.real_timeout(seconds_left)):
                    await advanced.wait()
    finally:
        unwatch()


class Interrupted(Exception):
    """A block was interrupted by :func:`interrupt_after`; its argument is the result of
    ``wait()``."""


class interrupt_after:  # noqa: N801 - it is used like a function
    """``async with``: cancel the block once ``wait()`` has returned.

    :param due: ``wait()`` returns no earlier, in monotonic seconds of the clock. It is called by
        then, or once the clock has jumped.
    :raises Interrupted: the block was cancelled because ``wait()`` returned.
    """

    # A class, as a generator costs an operation that ends at once a tenth of its time.

    def __init__(self, clock: Clock, due: float, wait: Callable[[], Awaitable[object]]) -> None:
        self._clock = clock
        self._due = due
        self._wait = wait
        self._timeout = asyncio.timeout(None)
        self._results: list[object] = []
        self._start: asyncio.Handle
        self._unwatch: Callable[[], None]
        self._waiting: asyncio.Task[None] | None = None
        self._is_over = False

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        # A block that ends before the due time costs a timer, and no task.
        loop, clock = asyncio.get_running_loop(), self._clock
        seconds = clock.real_timeout(self._due - clock.monotonic())
        self._start = loop.call_later(seconds, self._start_waiting)

        def start_soon() -> None:
            with suppress(RuntimeError):  # the loop is closed: the block is over
                loop.call_soon_threadsafe(self._start_waiting)

        self._unwatch = clock.on_jump(start_soon)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unwatch()
        self._start.cancel()
        self._is_over = True
        if self._waiting is not None:
            self._waiting.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Interrupted(*self._results) from None

    def _start_waiting(self) -> None:
        if self._waiting is None and not self._is_over:
            self._waiting = asyncio.create_task(self._interrupt())

    async def _interrupt(self) -> None:
        self._results.append(await self._wait())
        self._timeout.reschedule(asyncio.get_running_loop().time())
