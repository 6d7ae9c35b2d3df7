"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ManualClock:
    """See :class:`streams.clock.Clock`. It starts at a moment in 2001, so that a log which asks
    the machine's clock instead is found out."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        return 1000.0 + self._elapsed

    def time(self) -> float:
        return 1_000_000_000.0 + self._elapsed

    def timeout(self, seconds: float) -> float:
        """Until somebody moves it, no time passes."""
        return 0.0 if seconds <= 0 else float("inf")

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            self._watchers.append(moved)
        return lambda: self._unwatch(moved)

    def _unwatch(self, moved: Callable[[], None]) -> None:
        with self._lock:
            if moved in self._watchers:
                self._watchers.remove(moved)

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake whoever waits for it."""
        with self._lock:
            self._elapsed += seconds
            watchers = list(self._watchers)
        for moved in watchers:
            moved()
