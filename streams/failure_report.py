"""Which processor died and took its app down, and whoever waits to be told."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from streams.errors import NotRunning, ProcessorDied, StreamsError


class FailureReport:
    """What the first processor to die died of, until the app is entered again."""

    def __init__(self) -> None:
        self.failure: ProcessorDied | None = None
        self.waiters: set[asyncio.Future[ProcessorDied]] = set()
        """Resolved when a processor has died; they may belong to different loops."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget the failure: the app is entered again."""
        self.failure = None

    def report(self, failure: ProcessorDied) -> None:
        """Wake everybody who waits for a processor's death."""
        with self._lock:
            self.failure = failure
            waiting = list(self.waiters)
        for waiter in waiting:
            with suppress(RuntimeError):  # that loop is closed: nobody waits any more
                waiter.get_loop().call_soon_threadsafe(_set_failure, waiter, failure)

    async def wait(self) -> ProcessorDied:
        """Wait until a processor dies; at once where one did."""
        with self._lock:
            if self.failure is not None:
                return self.failure
            waiter: asyncio.Future[ProcessorDied] = asyncio.get_running_loop().create_future()
            self.waiters.add(waiter)
        try:
            return await waiter
        finally:
            with self._lock:
                self.waiters.discard(waiter)

    def not_running_error(self, message: str) -> StreamsError:
        """The error for a use of an app that does not run; if a processor's death has ended the
        app, the error says so."""
        failure = self.failure
        if failure is None:
            return NotRunning(message)
        error = ProcessorDied(f"the app has stopped: {failure}")
        error.__cause__ = failure.__cause__
        return error


def _set_failure(waiter: asyncio.Future[ProcessorDied], failure: ProcessorDied) -> None:
    if not waiter.done():
        waiter.set_result(failure)
