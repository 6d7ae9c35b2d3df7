"""A fair lock for each key: callers get it in the order of their calls."""

from __future__ import annotations

import asyncio
from collections import deque


class KeyedLock:
    """A lock for each key that is held or waited for. On one loop only."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def try_acquire(self, key: str) -> bool:
        """Take a key's lock if it is free."""
        if key in self._waiting:
            return False
        self._waiting[key] = deque()
        return True

    async def wait(self, key: str) -> None:
        """Wait for a key's lock, which is held, until all earlier callers have released it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[key].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(key)  # the lock was handed over just before
            raise

    def release(self, key: str) -> None:
        """Release a key's lock."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
