"""What was asked for last, by name, kept for whoever asks again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _CacheEntry(Generic[T]):
    value: T
    users: int = 0
    used_at: float = 0.0
    """When its last user was done (monotonic)."""


class IdleCache(Generic[T]):
    """Values by name, each let go once nobody has used it for a while (any thread).

    :param make: makes the value of a name; it may raise.
    :param size: of those that nobody uses now, so many are kept, at most.
    :param seconds: real seconds for which they are.
    :param let_go: called with one that is not kept any more.
    """

    def __init__(
        self,
        make: Callable[[str], T],
        size: int,
        seconds: float,
        let_go: Callable[[T], None] = lambda value: None,
    ) -> None:
        self._make = make
        self._size = size
        self._seconds = seconds
        self._let_go = let_go
        self._lock = threading.Lock()
        self._entries: dict[str, _CacheEntry[T]] = {}
        """That asked for last at the end."""
        self._timer: threading.Timer | None = None
        self._closed = False

    def get(self, name: str) -> T:
        """The value of this name; once the cache is closed, one that was let go at once."""
        with self.hold(name) as value:
            return value

    @contextmanager
    def hold(self, name: str) -> Iterator[T]:
        """The value of this name, which is not let go meanwhile."""
        with self._lock:
            entry = self._entries.pop(name, None) or _CacheEntry(self._make(name))
            self._entries[name] = entry
            entry.users += 1
        try:
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                entry.used_at = time.monotonic()
            self._drop_idle()

    def values_by_name(self) -> dict[str, T]:
        """Those that are kept, by name; the one that was asked for last at the end."""
        with self._lock:
            return {name: entry.value for name, entry in self._entries.items()}

    def close(self) -> None:
        """Let all go, those in use when their users are done, and keep none from now on."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Let go of those that are too many, or that nobody has used for long enough; and look
        again when the time of the next is over."""
        with self._lock:
            now = time.monotonic()
            idle = [(name, entry) for name, entry in self._entries.items() if not entry.users]
            too_many = len(idle) - (0 if self._closed else self._size)
            dropped: list[T] = []
            due: list[float] = []
            for at, (name, entry) in enumerate(idle):
                until = entry.used_at + self._seconds
                if at < too_many or until <= now:
                    dropped.append(self._entries.pop(name).value)
                else:
                    due.append(until)
            if due and self._timer is None:
                self._timer = threading.Timer(min(due) - now, self._on_time)
                self._timer.name, self._timer.daemon = "streams-idle", True
                self._timer.start()
        for value in dropped:
            self._let_go(value)

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
        self._drop_idle()
