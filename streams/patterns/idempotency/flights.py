"""Many callers of one loop that want the same: one leads, the others wait for what it found.

If the leader fails or is cancelled, the next in line leads in its place, and its own call is made:
a failure is its caller's own. Nobody is ever woken but the one whose turn it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

R = TypeVar("R")


class Flight(Generic[R]):
    """What is under way for one key."""

    __slots__ = ("mark", "running", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Future[tuple[R] | None], None] = {}
        """Who waits, first come first. They are given what was found, or None: lead."""
        self.mark = ""
        """What the leader says of its call."""
        self.running = False
        """The leader has begun the work."""


class Flights(Generic[R]):
    """What is under way, by key."""

    def __init__(self) -> None:
        self._aloft: dict[Hashable, Flight[R]] = {}

    def __len__(self) -> int:
        return len(self._aloft)

    def get(self, key: str) -> Flight[R] | None:
        """What is under way for a key on this loop."""
        return self._aloft.get(self._place(key))

    async def join(self, key: str, lead: Callable[[Flight[R]], Awaitable[R]]) -> tuple[R, bool]:
        """What ``lead`` found, called by this caller or by the one before it; and whether it was
        this one."""
        place = self._place(key)
        flight = self._aloft.get(place)
        if flight is None:
            flight = self._aloft[place] = Flight()
        else:
            found = await self._wait(place, flight)
            if found is not None:
                return found[0], False
        try:
            result = await lead(flight)
        except BaseException:
            self._hand_over(place, flight)
            raise
        del self._aloft[place]
        for future in flight.waiting:
            if not future.done():
                future.set_result((result,))
        return result, True

    async def _wait(self, place: Hashable, flight: Flight[R]) -> tuple[R] | None:
        future: asyncio.Future[tuple[R] | None] = asyncio.get_running_loop().create_future()
        flight.waiting[future] = None
        try:
            return await future
        except asyncio.CancelledError:
            flight.waiting.pop(future, None)
            if future.done() and not future.cancelled() and future.result() is None:
                self._hand_over(place, flight)  # it was to lead, and never will
            raise

    def _hand_over(self, place: Hashable, flight: Flight[R]) -> None:
        while flight.waiting:
            future = next(iter(flight.waiting))
            del flight.waiting[future]
            if not future.done():
                future.set_result(None)
                return
        del self._aloft[place]

    @staticmethod
    def _place(key: str) -> Hashable:
        # Futures belong to a loop; callers on another one are somebody else.
        return asyncio.get_running_loop(), key
