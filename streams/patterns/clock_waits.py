"""Waiting on a clock that a test may move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from streams.clock import Clock


async def sleep_until(clock: Clock, due: float) -> None:
    """Return once a clock says ``due``, in monotonic seconds."""
    loop = asyncio.get_running_loop()
    advanced = asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
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
    """A block was interrupted by :func:`interrupt_after`; its argument is what that awaited."""


@asynccontextmanager
async def interrupt_after(wait: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Cancel the block once ``wait()`` has returned.

    :raises Interrupted: the block was cancelled for that.
    """
    timeout = asyncio.timeout(None)
    results: list[object] = []

    async def interrupt() -> None:
        results.append(await wait())
        timeout.reschedule(asyncio.get_running_loop().time())

    try:
        async with timeout:
            waiting = asyncio.create_task(interrupt())
            try:
                yield
            finally:
                waiting.cancel()
    except TimeoutError:
        if not timeout.expired():
            raise
        raise Interrupted(*results) from None
