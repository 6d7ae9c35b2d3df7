"""The log that a dashboard looks at: the app's own while the app is entered, else one that is
opened when somebody looks, and again after a failure.

Logs block, so screens run in threads of the dashboard's own: at most :data:`THREADS`, so that a log
that does not answer holds up neither the service that the dashboard is mounted in nor its memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from streams.errors import NotRunning, StreamsError, Unavailable
from streams.log.url import open_log
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log, OpenMode

T = TypeVar("T")

logger = get_logger("streams")

THREADS = 8
"""Screens and actions at once; more wait."""

PATIENCE = 15.0
"""Seconds that a screen may take; then the visitor is told that the log does not answer."""


class LogSource:
    """Where a dashboard's log comes from.

    :param app: whose log it is.
    :param mode: how it is opened where the app is not entered.
    """

    def __init__(self, app: Streams, mode: OpenMode) -> None:
        self.app = app
        self._mode: OpenMode = mode
        self._lock = threading.Lock()
        self._opened: Log | None = None
        self._threads = ThreadPoolExecutor(THREADS, "streams-web")
        self._closed = False

    @property
    def description(self) -> str:
        """Which log it is, without secrets."""
        return str(self.app.url_source).partition(" (")[0]

    def log(self) -> Log:
        """The log, open; blocks.

        :raises LogError: it cannot be opened.
        :raises ConfigError: there is no such log.
        :raises NotRunning: the dashboard was closed.
        """
        own = self.app.runtime.log
        if own is not None:
            return own
        with self._lock:
            if self._closed:
                raise NotRunning("the dashboard is closed")
            if self._opened is None:
                app = self.app
                self._opened = open_log(app.url, app.driver_config, app.clock, mode=self._mode)
            return self._opened

    def can_open(self) -> bool:
        """Whether there is such a log, and it can be opened now (blocks)."""
        try:
            self.log()
        except StreamsError:
            return False
        return True

    def reopen(self) -> None:
        """Let go of a log of our own that failed, without waiting for it: the next visitor opens it
        anew."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            # A server that is frozen holds up the closing, too; nobody waits for that.
            threading.Thread(
                target=_close, args=(opened,), name="streams-web-close", daemon=True
            ).start()

    def close(self) -> None:
        """Let go of what was opened here."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
        self.reopen()

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in one of the threads.

        :raises Unavailable: it took longer than :data:`PATIENCE`, or all threads are taken for as
            long; what began goes on to its end.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                return await loop.run_in_executor(self._threads, function)
        except TimeoutError:
            raise Unavailable(f"no answer within {PATIENCE:.0f} s") from None
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise NotRunning("the dashboard is closed") from error
            raise


def _close(log: Log) -> None:
    try:
        log.close()
    except StreamsError as error:
        logger.debug("closing the dashboard's log: %s", error)
