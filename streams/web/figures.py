"""What the sampler knows of a subject: the figures of now, and their past."""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass, field

from streams.web.ages import is_recent

KEPT = 1_800
"""Samples kept of a subject: an hour of them."""


class Series:
    """Numbers and when they were, the last :data:`KEPT` of them (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times = array("d")
        self._values = array("d")
        self._next = 0

    def add(self, when: float, value: float) -> None:
        """One more."""
        with self._lock:
            if len(self._times) < KEPT:
                self._times.append(when)
                self._values.append(value)
                return
            self._times[self._next], self._values[self._next] = when, value
            self._next = (self._next + 1) % KEPT

    def __len__(self) -> int:
        return len(self._times)

    def points(self, last: int = KEPT) -> list[tuple[float, float]]:
        """The last so many, the oldest first."""
        with self._lock:
            order = [*range(self._next, len(self._times)), *range(self._next)]
            return [(self._times[at], self._values[at]) for at in order[-last:]]


@dataclass(slots=True)
class Figures:
    """What is known of a subject.

    :param now: the figures of the last sample, by name; None: not known.
    :param at: when that was (real seconds since the epoch); 0.0: never.
    :param missing: the log has no such topic or group.
    :param series: the past of ``rate`` (a topic's), ``lag`` (a group's) or ``folded`` (a view's).
    """

    now: dict[str, float | int | None] = field(default_factory=dict)
    at: float = 0.0
    missing: bool = False
    stale: bool = False
    """Something was changed since."""
    series: Series = field(default_factory=Series)
    partitions: int = 0
    partitions_at: float = 0.0
    size: int | None = None
    sized_at: float = 0.0
    """Of a topic, when the log was asked how many bytes it takes."""
    ends: dict[int, int] = field(default_factory=dict)
    """Of a topic, where its partitions ended at the last sample."""

    def is_fresh(self, seconds: float) -> bool:
        """It was asked for within the last so many seconds, and nothing was changed here since."""
        return not self.stale and is_recent(self.at, seconds)
