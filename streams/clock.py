"""Time, as everything below the app asks for it, so that a test can hold it in its hand.

``monotonic`` measures how long (leases, backoff), ``time`` says when (timestamps). Whoever waits
asks :meth:`Clock.real_timeout` how long to block in real seconds, and is woken through
:meth:`Clock.on_jump` when a clock that a test advances has moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """A source of time. The real one is :data:`SYSTEM`; tests use ``streams.testing.Clock``."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def time(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    def real_timeout(self, seconds: float) -> float:
        """How long to block, in real seconds, so as not to miss ``seconds`` of this clock;
        infinity is allowed, and comes back as it is or as something long."""
        ...

    def on_jump(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` (from any thread, under no lock of the clock's) whenever the clock
        jumps; returns the way to stop."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def real_timeout(self, seconds: float) -> float:
        """Real seconds are this clock's seconds."""
        return max(0.0, seconds)

    def on_jump(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Never jumps, so nothing is ever called."""
        return lambda: None


SYSTEM = SystemClock()
