"""Finds partitions of a group's member from which nothing comes although there is more.

The driver can stop fetching one partition while all brokers are reached, and says nothing about it:
it waits for an answer that was lost with a connection, for example (librdkafka's issue 4492 reports
one such case). So where the driver's statistics show no progress in a partition for
:data:`STALL_TIMEOUT`, the log is asked where the partition ends, in a thread of its own. For an
idle partition the interval doubles each time. A partition that stays behind its end is re-fetched;
after two failed attempts the consumer is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streams.log.kafka.partition_probe import PartitionProbe
from streams.log.kafka.statistics import Snapshot
from streams.log.protocol import TopicPartition

STALL_TIMEOUT = 10.0
"""Seconds without progress until the log is asked."""

MAX_INTERVAL = 320.0
"""Seconds between two questions about an idle partition, at most."""

CONFIRMATION = 3.0
"""Seconds that the driver gets to fetch what the log is known to have."""

RESTARTS = 2
"""How often a partition is fetched anew before the consumer is replaced."""


@dataclass(slots=True)
class Progress:
    """How far the driver has come in one partition."""

    next_offset: int
    """The offset that it fetches next; negative before the first."""
    ask_at: float
    """When the log is asked, in monotonic time."""
    interval: float = STALL_TIMEOUT
    """Seconds from the last question to the next."""
    is_asked: bool = False
    """The log was asked since it last moved."""
    behind_since: float | None = None
    """When the log was found to have more."""
    restarts: int = 0
    """How often it was fetched anew since it last moved."""


def _has_moved(next_offset: int, progress: Progress) -> bool:
    """An offset that is not known, as while a fetch begins, says nothing."""
    return next_offset >= 0 and next_offset != progress.next_offset


class Stalled(NamedTuple):
    """The measures against stalled partitions."""

    partitions: list[TopicPartition]
    """Those to be fetched anew."""
    is_hopeless: bool
    """Fetching one of them anew has not helped: another consumer is needed."""


class FetchWatch:
    """Watches the partitions that one consumer fetches.

    :param end_of: the end of what can be read of a topic's partition; may take seconds, and raises
        LogError.
    """

    def __init__(self, end_of: Callable[[str, int], int]) -> None:
        self._ends = PartitionProbe(end_of)
        self._progress: dict[TopicPartition, Progress] = {}

    def close(self) -> None:
        """Ask no more."""
        self._ends.close()

    def observe(
        self, snapshot: Snapshot, positions: Mapping[TopicPartition, int], now: float
    ) -> Stalled | None:
        """Process a report of the driver's. Never waits.

        :param positions: the partitions that it should fetch now, and where each fetch began.
        :returns: what stands still; None: nothing does.
        """
        known, self._progress = self._progress, {}
        for key, found in snapshot.all_partitions():
            if key not in positions:
                continue
            progress = known.get(key)
            if progress is None or found.fetchq_cnt or _has_moved(found.next_offset, progress):
                progress = Progress(found.next_offset, now + STALL_TIMEOUT)
            self._progress[key] = progress
        self._take_answers(positions, now)
        self._ask_where_due(now)
        return self._find_stalled(now)

    def _take_answers(self, positions: Mapping[TopicPartition, int], now: float) -> None:
        for key, end in self._ends.take_outcomes().items():
            progress = self._progress.get(key)
            if end is None or progress is None or not progress.is_asked:
                continue  # its end could not be read, or its position has moved meanwhile
            if end <= max(progress.next_offset, positions[key]):
                progress.behind_since = None
            elif progress.behind_since is None:
                progress.behind_since = now

    def _ask_where_due(self, now: float) -> None:
        due = [key for key, each in self._progress.items() if each.ask_at <= now]
        if not due or self._ends.is_busy:
            return
        for key in due:
            progress = self._progress[key]
            progress.is_asked = True
            progress.ask_at = now + progress.interval
            progress.interval = min(MAX_INTERVAL, progress.interval * 2)
        self._ends.start(due)

    def _find_stalled(self, now: float) -> Stalled | None:
        stalled, is_hopeless = [], False
        for key, progress in self._progress.items():
            since = progress.behind_since
            if since is None or now < since + CONFIRMATION:
                continue
            stalled.append(key)
            is_hopeless = is_hopeless or progress.restarts >= RESTARTS
            progress.restarts += 1
            progress.behind_since = None
            # Longer each time: a fetch that only takes its time must be able to end.
            progress.interval = min(MAX_INTERVAL, STALL_TIMEOUT * 2**progress.restarts)
            progress.ask_at = now + progress.interval
        return Stalled(stalled, is_hopeless) if stalled else None
