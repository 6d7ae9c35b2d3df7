"""What the driver's statistics say of a member's consumer, beside ownership: whether it is cut off
from brokers that others reach (``reconnect.py``), and which partitions it has stopped fetching
(``fetch_watch.py``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from streams.log.kafka.fetch_watch import FetchWatch, Stalled
from streams.log.kafka.reconnect import ConnectivityMonitor, IsolationCheck
from streams.log.kafka.statistics import Snapshot
from streams.log.protocol import TopicPartition


class DriverReports:
    """The findings about the consumers of one member, of which one replaces the other. Never waits;
    used by the thread that polls.

    :param session_timeout: seconds after which the coordinator gives up a silent member.
    :param probe_broker: see :class:`~streams.log.kafka.reconnect.IsolationCheck`.
    :param end_of: see :class:`~streams.log.kafka.fetch_watch.FetchWatch`.
    """

    def __init__(
        self,
        session_timeout: float,
        probe_broker: Callable[[TopicPartition | None], bool],
        end_of: Callable[[str, int], int],
    ) -> None:
        self._connectivity = ConnectivityMonitor(session_timeout)
        self._isolation = IsolationCheck(self._connectivity, probe_broker)
        self._end_of = end_of
        self._fetch_watch = FetchWatch(end_of)
        self._stalled: Stalled | None = None

    def observe(
        self, snapshot: Snapshot, positions: Mapping[TopicPartition, int], now: float
    ) -> None:
        """Process a report.

        :param positions: the partitions that the consumer should fetch now, and where each fetch
            began.
        """
        self._connectivity.observe_member(snapshot, positions, now)
        self._stalled = self._fetch_watch.observe(snapshot, positions, now) or self._stalled

    def is_isolated(self) -> bool:
        """Whether the consumer is cut off, and another client is not."""
        return self._isolation.should_replace(time.monotonic())

    @property
    def has_stalled(self) -> bool:
        """Whether there are partitions from which nothing comes although there is more."""
        return self._stalled is not None

    def take_stalled(self) -> Stalled | None:
        """Those partitions; the next call returns None unless there are new ones."""
        stalled, self._stalled = self._stalled, None
        return stalled

    def consumer_failed(self) -> None:
        """Note that a consumer was given up: wait longer before the next one is."""
        self._connectivity.back_off()

    def consumer_replaced(self) -> None:
        """Note that the next reports are about another consumer."""
        self._fetch_watch.close()
        self._fetch_watch = FetchWatch(self._end_of)
        self._stalled = None

    def close(self) -> None:
        """Stop asking the log."""
        self._fetch_watch.close()
