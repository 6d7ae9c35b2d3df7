"""Sharing one call among callers of one loop: one leads, the others wait for its result.

If the leader fails or is cancelled, the next waiter leads, with its own call: each caller gets only
its own failure. Only the waiter that leads next is woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

R = TypeVar("R")


class SharedCall(Generic[R]):
    """The running call for one key."""

    __slots__ = ("fingerprint", "is_running", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[asyncio.Future[tuple[R] | None], None] = {}
        """The waiters, in order of arrival. They get the result, or None: they lead."""
        self.fingerprint = ""
        """The fingerprint of the leader's request."""
        self.is_running = False
        """Whether the leader has begun the work."""


class SingleFlight(Generic[R]):
    """The running calls, by key."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, SharedCall[R]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, key: str) -> SharedCall[R] | None:
        """The running call for a key on this loop."""
        return self._calls.get(self._loop_key(key))

    async def run(self, key: str, lead: Callable[[SharedCall[R]], Awaitable[R]]) -> tuple[R, bool]:
        """The result of ``lead``, called by this caller or by an earlier one; and whether it was
        this one."""
        loop_key = self._loop_key(key)
        call = self._calls.get(loop_key)
        if call is None:
            call = self._calls[loop_key] = SharedCall()
        else:
            found = await self._wait_for_leader(loop_key, call)
            if found is not None:
                return found[0], False
        try:
            result = await lead(call)
        except BaseException:
            self._promote_next(loop_key, call)
            raise
        del self._calls[loop_key]
        for future in call.waiters:
            if not future.done():
                future.set_result((result,))
        return result, True

    async def _wait_for_leader(self, loop_key: Hashable, call: SharedCall[R]) -> tuple[R] | None:
        future: asyncio.Future[tuple[R] | None] = asyncio.get_running_loop().create_future()
        call.waiters[future] = None
        try:
            return await future
        except asyncio.CancelledError:
            call.waiters.pop(future, None)
            if future.done() and not future.cancelled() and future.result() is None:
                self._promote_next(loop_key, call)  # it was cancelled before it began
            raise

    def _promote_next(self, loop_key: Hashable, call: SharedCall[R]) -> None:
        while call.waiters:
            future = next(iter(call.waiters))
            del call.waiters[future]
            if not future.done():
                future.set_result(None)
                return
        del self._calls[loop_key]

    @staticmethod
    def _loop_key(key: str) -> Hashable:
        # Futures belong to a loop, so callers on another one do not share a call.
        return asyncio.get_running_loop(), key
