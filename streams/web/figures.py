"""The sampler's knowledge of a subject: its current figures, and their past."""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass, field

from streams.web.ages import is_recent

KEPT = 1_800
"""How many samples of a subject are kept: an hour of them."""


class TimeSeries:
    """Numbers with their times, the last :data:`KEPT` of them (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times = array("d")
        self._values = array("d")
        self._next = 0

    def add(self, when: float, value: float) -> None:
        """Add a number."""
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
        """The last numbers, the oldest first."""
        with self._lock:
            order = [*range(self._next, len(self._times)), *range(self._next)]
            return [(self._times[at], self._values[at]) for at in order[-last:]]


@dataclass(slots=True)
class SubjectFigures:
    """The figures of a subject.

    :param now: the figures of the last sample, by name; None: not known.
    :param at: the time of that sample (seconds of real time since the epoch); 0.0: never.
    :param missing: the log has no such topic or group.
    :param series: the past of ``rate`` (a topic's), ``lag`` (a group's) or ``folded`` (a view's).
    """

    now: dict[str, float | int | None] = field(default_factory=dict)
    at: float = 0.0
    missing: bool = False
    stale: bool = False
    """Whether something was changed since."""
    series: TimeSeries = field(default_factory=TimeSeries)
    partitions: int = 0
    partitions_at: float = 0.0
    size: int | None = None
    sized_at: float = 0.0
    """When the log was asked last for the size of a topic in bytes."""
    ends: dict[int, int] = field(default_factory=dict)
    """The end offsets of a topic's partitions at the last sample."""

    def is_fresh(self, seconds: float) -> bool:
        """Whether it was sampled within the last ``seconds``, and nothing was changed here
        since."""
        return not self.stale and is_recent(self.at, seconds)
