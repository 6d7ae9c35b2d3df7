"""Taking turns by key, in the order of the calls."""

from __future__ import annotations

import asyncio
from collections import deque


class KeyedLock:
    """A lock for each key that somebody holds or waits for. On one loop only."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def try_acquire(self, key: str) -> bool:
        """Take a key's lock if nobody has it."""
        if key in self._waiting:
            return False
        self._waiting[key] = deque()
        return True

    async def wait(self, key: str) -> None:
        """Take a key's lock, which somebody has, when all who came before have given it back."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[key].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(key)  # the lock was handed over just before
            raise

    def release(self, key: str) -> None:
        """Give a key's lock back."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
