"""A bus's processors in its app: there as long as they are wanted, also while the app runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from streams.app import Streams
from streams.processor import Processor
from streams.text import get_logger

logger = get_logger("streams.bus")


class BusProcessor:
    """A processor of a bus in its app, declared at once; on a running app also started.

    :param declare: declares it.
    """

    def __init__(self, app: Streams, declare: Callable[[], Processor[..., Any]]) -> None:
        self._app = app
        self._processor = declare()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        if self._processor in app._starting:
            self.spawn(self._start, make_resolver(self._started))
        else:
            self._started.set_result(None)

    @property
    def has_started(self) -> bool:
        """Nobody has to wait for it."""
        return self._started.done()

    async def wait_started(self) -> None:
        """Wait until it runs.

        :raises LogError: it cannot.
        """
        await asyncio.shield(asyncio.wrap_future(self._started))

    async def wait_ended(self) -> None:
        """Wait until nothing of it runs, after :meth:`end`."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def stop(self) -> None:
        """Begin nothing more, and take it out of the app (any thread)."""
        app, processor = self._app, self._processor
        processor.pause()
        app._starting.discard(processor)
        with suppress(ValueError):
            app.processors.remove(processor)
        self.spawn(lambda: app.stop_processor(processor), make_resolver(self._ended))

    async def _start(self) -> None:
        try:
            await self._app.start_processor(self._processor)
        except Exception as error:
            logger.error("%s cannot be started: %r", self._processor.name, error, exc_info=error)
            self._started.set_exception(error)

    def spawn(
        self,
        coroutine_function: Callable[[], Coroutine[Any, Any, None]],
        on_done: Callable[[], None],
    ) -> None:
        """Run something on the app's loop (any thread); the app's end cancels it.

        :param on_done: called once it has ended, however that was, or cannot be run.
        """
        loop = self._app._loop
        if loop is None:
            on_done()
            return

        def start_task() -> None:
            # Not a `finally` in the work: what is cancelled before its first step has none.
            self._app.spawn(coroutine_function()).add_done_callback(lambda _: on_done())

        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            start_task()
            return
        try:
            loop.call_soon_threadsafe(start_task)
        except RuntimeError:
            on_done()


def make_resolver(future: concurrent.futures.Future[None]) -> Callable[[], None]:
    """Ends a future that has not ended."""

    def resolve() -> None:
        if not future.done():
            future.set_result(None)

    return resolve
