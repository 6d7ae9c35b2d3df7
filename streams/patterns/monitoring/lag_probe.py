"""The lag of a processor in each partition that it owns, and of a view, as the log reports it now.

The log is asked in a thread of its own: a scrape is never blocked by a log that does not
answer; it then gets nothing rather than an old figure. An unknown lag is unknown, never 0.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from streams.app import Streams
from streams.errors import LogError, StreamsError
from streams.health import Stats, ViewBacklog
from streams.log.protocol import Log
from streams.log.range_reader import read_first
from streams.processing import PartitionProgress
from streams.text import get_logger

logger = get_logger("streams")


class PartitionLag(NamedTuple):
    """The unsettled part of one partition.

    :param processor: the processor's name.
    :param lag: messages from the first one that is not settled to the partition's end; None where
        the log cannot tell.
    :param age: seconds since the log took that first one; 0 where everything is settled, None where
        it cannot be known.
    """

    processor: str
    topic: str
    partition: int
    lag: int | None
    age: float | None


class LagReport(NamedTuple):
    """How far processors and views are behind."""

    partitions: Sequence[PartitionLag]
    views: Sequence[ViewBacklog]


def report_lag(app: Streams, stats: Stats) -> LagReport:
    """Ask the log about the app's processors and views; blocks. Figures that it does not give are
    left out."""
    views: list[ViewBacklog] = []
    for name, view in list(app.views.items()):
        try:
            views.append(view.backlog())
        except LogError as error:
            logger.debug("view %s: %s", name, error)
    return LagReport(measure_lag(app, stats), views)


def measure_lag(app: Streams, stats: Stats) -> list[PartitionLag]:
    """Ask the log about every partition that the app's processors own; blocks.

    Partitions for which it does not answer are left out.
    """
    found: list[PartitionLag] = []
    for name, processor_stats in stats.processors.items():
        for progress in processor_stats.progress:
            try:
                lag, age = _lag_and_age(app.log, progress, app.clock.time())
            except LogError as error:
                logger.debug("%s: %s/%d: %s", name, progress.topic, progress.partition, error)
                continue
            found.append(PartitionLag(name, progress.topic, progress.partition, lag, age))
    return found


def _lag_and_age(log: Log, part: PartitionProgress, now: float) -> tuple[int | None, float | None]:
    lag = log.lag(part.topic, part.partition, part.position)
    if lag == 0:
        return 0, 0.0
    oldest_at = part.oldest
    if oldest_at is None:  # the first one was not taken in yet
        _, end = log.watermarks(part.topic, part.partition)
        batch = read_first(log, part.topic, part.partition, part.position, end)
        if batch is None:  # nothing but gaps up to the end
            return 0, 0.0
        oldest_at = batch.time(0)
    return lag, max(0.0, now - oldest_at)


class LagProbe:
    """Asks the log for callers whose waiting time is bounded.

    :param app: the app to measure.
    """

    def __init__(self, app: Streams) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running: Future[LagReport | None] | None = None

    def measure(self, stats: Stats, timeout: float) -> LagReport | None:
        """The remaining work now; None if the log has not answered within ``timeout``
        seconds. One measurement runs at a time."""
        with self._lock:
            running = self._running
            if running is None or running.done():
                running = self._running = Future()
                threading.Thread(
                    target=self._run, args=(running, stats), name="streams-backlog", daemon=True
                ).start()
        try:
            return running.result(timeout)
        except TimeoutError:
            return None

    def _run(self, running: Future[LagReport | None], stats: Stats) -> None:
        found = None
        try:
            found = report_lag(self._app, stats)
        except StreamsError as error:  # the app is closing
            logger.debug("backlog: %s", error)
        finally:
            running.set_result(found)
