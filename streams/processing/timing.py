"""Histograms of how long calls take: recording costs a few additions, any thread may read them.

A handler's calls are timed only on request (:meth:`streams.Streams.measure`), and then in
*samples*: for each batch, slice of the loop, or message, an executor fetches the function to call,
and now and then it gets one that measures its own duration. A sample stands for all calls since the
sample before, so quantiles and rates are those of all calls. A handler that takes long compared
with reading the clock twice is timed every time.

Durations are real seconds (``time.perf_counter``), whatever clock the app runs on.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from streams.callables import run_generator

BUCKET_BOUNDS = (
    0.000_01, 0.000_1, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
"""Upper bounds of the buckets, in seconds."""

SAMPLE_EVERY = 64
"""Of a quick handler's calls, one sample is taken in this many."""

QUICK_CALL = 0.000_05
"""Seconds below which timing every call would cost noticeably."""


class Durations(NamedTuple):
    """Durations seen so far.

    :param counts: how many fell into each bucket: those up to the bound of the same index in
        :data:`BUCKET_BOUNDS`, and above the one before; the last are longer than every bound.
    :param total: all of them together, in seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(BUCKET_BOUNDS) + 1)
    total: float = 0.0

    @property
    def number(self) -> int:
        """How many there were."""
        return sum(self.counts)


NO_DURATIONS = Durations()
"""Nothing was timed."""


class Histogram:
    """Counts durations (any thread)."""

    __slots__ = ("_counts", "_lock", "_total")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BUCKET_BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Something took so long, ``times`` times."""
        at = bisect_left(BUCKET_BOUNDS, seconds)
        with self._lock:
            self._counts[at] += times
            self._total += seconds * times

    def read(self) -> Durations:
        """The durations counted so far."""
        with self._lock:
            return Durations(tuple(self._counts), self._total)


class Timing:
    """Times the calls of one handler, now and then."""

    def __init__(self, *, asynchronous: bool) -> None:
        self._wrap = self._wrap_async if asynchronous else self._wrap_plain
        self._histogram = Histogram()
        self._interval = 1
        self._since_sample = 0
        """Stretches since the last that was timed."""

    def read(self) -> Durations:
        """The handler's calls so far, those that failed included."""
        return self._histogram.read()

    def sample(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, or the same with a clock around it: what to call for the next sample."""
        self._since_sample += 1
        if self._since_sample < self._interval:
            return function
        times, self._since_sample = self._since_sample, 0
        return self._wrap(function, times)

    def _record(self, seconds: float, times: int) -> None:
        self._histogram.add(seconds, times)
        self._interval = SAMPLE_EVERY if seconds < QUICK_CALL else 1

    def _wrap_async(self, function: Callable[..., Any], times: int) -> Callable[..., Any]:
        async def timed(*arguments: Any) -> Any:
            began = perf_counter()
            try:
                return await function(*arguments)
            finally:
                self._record(perf_counter() - began, times)

        return timed

    def _wrap_plain(self, function: Callable[..., Any], times: int) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = perf_counter()
            try:
                return run_generator(function(*arguments))
            finally:
                self._record(perf_counter() - began, times)

        return timed
