"""A bus's processors in its app: added and removed also while the app runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from functools import partial
from typing import Any

from streams.app import Streams
from streams.processor import Processor
from streams.text import get_logger

logger = get_logger("streams.bus")


class BusProcessor:
    """A processor of a bus in its app: declared at once, and started too if the app runs.

    :param declare: declares it.
    """

    def __init__(self, app: Streams, declare: Callable[[], Processor[..., Any]]) -> None:
        self._app = app
        self._processor = declare()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        if app.runtime.is_starting(self._processor):
            app.runtime.spawn_from_any_thread(self._start, partial(_resolve, self._started))
        else:
            self._started.set_result(None)

    @property
    def has_started(self) -> bool:
        """Whether it runs, or starts with the app, so that no caller has to wait for it."""
        return self._started.done()

    async def wait_started(self) -> None:
        """Wait until it runs.

        :raises LogError: it cannot.
        """
        await asyncio.shield(asyncio.wrap_future(self._started))

    async def wait_ended(self) -> None:
        """Wait until its tasks have ended, after :meth:`stop`."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def stop(self) -> None:
        """Start no more handlers, and remove it from the app (any thread)."""
        runtime, processor = self._app.runtime, self._processor
        processor.pause()
        runtime.withdraw_processor(processor)
        runtime.spawn_from_any_thread(
            lambda: runtime.stop_processor(processor), partial(_resolve, self._ended)
        )

    async def _start(self) -> None:
        try:
            await self._app.runtime.start_processor(self._processor)
        except Exception as error:
            logger.error("%s cannot be started: %r", self._processor.name, error, exc_info=error)
            self._started.set_exception(error)


def _resolve(future: concurrent.futures.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
