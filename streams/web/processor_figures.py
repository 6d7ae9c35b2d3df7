"""Figures of the processors that run in this process: rates, durations of their handlers' calls.

From the first request on, the handlers' calls are timed (:meth:`streams.Streams.measure`, which
costs next to nothing); without one they are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.errors import NotFound
from streams.processing import BUCKET_BOUNDS

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.processing import Durations
    from streams.web.figures import SubjectFigures
    from streams.web.sampler import Sample

QUANTILES = (0.5, 0.95, 0.99)
"""The quantiles that are shown."""

STALE = 20.0
"""Seconds of real time after which a figure is too old for a rate."""


def processor_sample(app: Streams) -> Sample:
    """Samples ``processor:NAME`` (:mod:`streams.web.sampler`)."""

    def sample(log: Log, name: str, figures: SubjectFigures, now: float) -> None:
        processor = next((each for each in app.processors if each.name == name), None)
        stats = None if processor is None else processor.stats()
        if stats is None:
            raise NotFound(f"processor {name!r} does not run here")
        before, seconds = figures.now.get("handled"), now - figures.at
        rate: float | None = None
        if before is not None and 0 < seconds < STALE and stats.handled >= before:
            rate = (stats.handled - before) / seconds
            figures.series.add(now, rate)
        figures.now = {
            "rate": rate,
            "handled": stats.handled,
            "in_flight": stats.in_flight,
            "running": stats.running,
            "waiting": stats.waiting,
            "retries": stats.retries,
            "dead_letters": stats.dead_letters,
            "partitions": stats.partitions,
        }

    return sample


class Bar(NamedTuple):
    """One bucket of a histogram.

    :param low: its calls took longer than this many seconds; ``high``: and no longer than this;
        None: there is no bound.
    :param share: its share of all calls, from 0 to 1.
    :param height: from 0 to 1, the highest bar is 1.
    """

    low: float
    high: float | None
    number: int
    share: float
    height: float


def bars(durations: Durations) -> list[Bar]:
    """A histogram, from the first bucket that is not empty to the last."""
    total, most = durations.number, max(durations.counts)
    if not total:
        return []
    filled = [at for at, number in enumerate(durations.counts) if number]
    return [
        Bar(
            BUCKET_BOUNDS[at - 1] if at else 0.0,
            BUCKET_BOUNDS[at] if at < len(BUCKET_BOUNDS) else None,
            durations.counts[at],
            durations.counts[at] / total,
            durations.counts[at] / most,
        )
        for at in range(filled[0], filled[-1] + 1)
    ]


def quantile(durations: Durations, share: float) -> float | None:
    """Seconds within which this share of the calls ended, as exactly as the buckets say (the upper
    bound of one of them); None: there were no calls, or it is beyond the last bound."""
    passed, wanted = 0, share * durations.number
    for bound, number in zip(BUCKET_BOUNDS, durations.counts, strict=False):
        passed += number
        if passed and passed >= wanted:
            return bound
    return None


def seconds_text(seconds: float | None) -> str:
    """A duration with the unit that suits it: ``50 µs``, ``2.5 ms``, ``1 s``."""
    if seconds is None:
        return "\N{EN DASH}"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
