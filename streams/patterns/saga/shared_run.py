"""One blocking action that many callers need at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class SharedRun:
    """Runs one blocking action for callers that need a run which *began* after their call: all
    calls during one run share the next one. Used on one loop."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        """The run that has not begun."""

    async def wait_for_next(self) -> None:
        """Wait for a run that has not begun yet.

        :raises Exception: the action's error.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
            self._next.add_done_callback(retrieve_exception)
        await asyncio.shield(self._next)

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._action)


def retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Read the exception, as the waiter may be gone: asyncio would log that it was not
    retrieved."""
    if not future.cancelled():
        future.exception()
