"""Event loops: which one is used, and one that runs in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any


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
