"""Event loops: which one is used, and one that runs in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

from streams.errors import LogError


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Event loops of uvloop where it is installed, else the standard ones."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextmanager
def enter_in_thread(context: AbstractAsyncContextManager[Any]) -> Iterator[None]:
    """Enter something on a loop in a thread of its own, and leave it at the end.

    :raises Exception: what entering or leaving it raises.
    """
    ready: concurrent.futures.Future[None] = concurrent.futures.Future()
    stop_callbacks: list[Callable[[], object]] = []

    async def run_until_stopped() -> None:
        stop_requested = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop_callbacks.append(lambda: loop.call_soon_threadsafe(stop_requested.set))
        async with context:
            ready.set_result(None)
            await stop_requested.wait()

    failure: list[BaseException] = []

    def main() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(run_until_stopped())
        except BaseException as error:
            if ready.done():
                failure.append(error)
            else:
                ready.set_exception(error)

    thread = threading.Thread(target=main, name="streams-background", daemon=True)
    thread.start()
    try:
        ready.result()
        yield
    finally:
        for stop in stop_callbacks:
            with suppress(RuntimeError):  # the loop is closed: it ended by itself
                stop()
        thread.join()
    if failure:
        raise failure[0]


def answer_futures(answered: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    """Give answers to coroutines that wait, from any thread: all of one loop in one step.

    A :class:`~streams.errors.LogError` is raised where it is awaited.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, answer in answered:
        loop = future.get_loop()
        waiting = by_loop.get(loop)
        if waiting is None:
            waiting = by_loop[loop] = []
        waiting.append((future, answer))
    for loop, waiting in by_loop.items():
        with suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set_answers, waiting)


def _set_answers(answered: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    """On the loop of those who wait."""
    for future, answer in answered:
        if future.done():
            continue
        if isinstance(answer, LogError):
            # Each its own, as a traceback grows on it where it is raised.
            error = type(answer)(str(answer))
            error.__cause__ = answer
            future.set_exception(error)
        else:
            future.set_result(answer)
