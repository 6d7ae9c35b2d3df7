"""Finishing work that must not be left half done, although whoever awaits it is cancelled.

``asyncio.shield`` alone does half of it: it keeps the work running, and leaves its caller without
the work's end. Whoever closes what the work uses has to wait for that end, and only then be
cancelled. So a cancellation is remembered while the work goes on, and raised once it has ended.

The cancellation is raised as it came, and ``Task.uncancel()`` is never called: an
``asyncio.timeout`` or a ``TaskGroup`` further out counts its own cancellations and needs them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from streams.text import get_logger

P = ParamSpec("P")
T = TypeVar("T")

logger = get_logger("streams")


async def run_to_completion(
    awaitable: Awaitable[T], on_cancel: Callable[[], None] = lambda: None
) -> T:
    """Await ``awaitable`` to its end, whatever happens to the caller meanwhile.

    A caller that is cancelled gets its ``CancelledError`` when the work has ended, whether that
    succeeded or failed. What the work failed with is then the cancellation's cause, and logged:
    whoever catches the cancellation (a timeout, a task group) may drop it unread. A cancellation
    that was requested before the work could begin does not keep it from running.

    :param on_cancel: called at each cancellation, to make the work end sooner; must not raise.
    :raises CancelledError: the caller was cancelled, or the work was.
    """
    task = asyncio.ensure_future(awaitable)
    cancelled = await wait_deferring_cancel(task, on_cancel)
    if cancelled is None:
        return task.result()
    failure = None if task.cancelled() else task.exception()
    if failure is None:
        raise cancelled
    logger.warning("what had to be finished before a cancellation failed: %r", failure,
                 exc_info=failure)  # fmt: skip
    raise cancelled from failure


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread``, to the end: no thread can be interrupted, so a caller that is
    cancelled waits until nothing of it runs any more.

    :raises CancelledError: the caller was cancelled.
    """
    return await run_to_completion(asyncio.to_thread(function, *args, **kwargs))


async def wait_for_callback(start: Callable[[Callable[[T], None]], object]) -> T:
    """What a callback is called with, which may be in any thread.

    :param start: is given the callback.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def resolve(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def callback(result: T) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(resolve, result)

    start(callback)
    return await future


async def wait_deferring_cancel(
    task: asyncio.Future[Any], on_cancel: Callable[[], None] = lambda: None
) -> asyncio.CancelledError | None:
    """Wait until ``task`` is done, and neither cancel it nor raise what it raised.

    For a caller that needs the outcome although it was cancelled.

    :param on_cancel: called at each cancellation of the caller.
    :returns: the cancellation that came meanwhile (of several, the last), which the caller must
        raise in the end, or know to be somebody else's.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    return cancelled
