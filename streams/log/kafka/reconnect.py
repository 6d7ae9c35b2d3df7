"""Whether a client that is cut off for long should be replaced.

The driver usually reconnects by itself. But librdkafka can come out of an outage with a client that
never will (see ``client.py``), and hardly anything distinguishes that from an outage that
continues. So when a client has been without a connection to a broker that it needs for a while,
another client is made as a probe: if that one gets an answer, and the first still has no connection
some seconds later, a new client replaces it, starting with the addresses of the URL. In an outage
nothing is replaced, as the probe gets no answer; the next probe comes after twice as long.

One sign shows it sooner: a client that needs brokers and does not even try to connect has given up
(all its handles are in the state of brokers that are not needed). That happens where the metadata
named no broker for a moment, as with a single broker that was frozen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from streams.log.kafka.statistics import COORDINATOR, Snapshot
from streams.log.protocol import TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

DISCONNECTED_LIMIT = 10.0
"""Seconds without a connection until the probe; a member waits for its session's end, if that is
longer."""

NOT_CONNECTING_LIMIT = 3.0
"""Seconds until then, where the driver does not try to connect."""

RECONNECT_GRACE = 2.5
"""Seconds that a client gets to connect after the probe was answered: the outage may have ended
just then, and the driver waits up to a second between two tries."""

MAX_LIMIT = 320.0
"""Seconds until the next probe, at most."""


class ConnectivityMonitor:
    """Says by the driver's statistics whether a client has been cut off for too long."""

    def __init__(self, session_timeout: float = 0.0) -> None:
        self._first_limit = max(DISCONNECTED_LIMIT, session_timeout)
        self._backoff_factor = 1
        """By which the limits are multiplied."""
        self.unreached: TopicPartition | None = None
        """A partition whose leader is not reached; None if no broker is."""
        self.last_report_at = float("-inf")
        """Monotonic time of the last report."""
        self._response_counts: dict[str, int] = {}
        """How often each broker had answered by the last report."""
        self._disconnected_since: float | None = None
        self._not_connecting_since: float | None = None
        """Since when the driver has not even tried."""

    def observe_member(
        self, snapshot: Snapshot, partitions: Collection[TopicPartition], now: float
    ) -> None:
        """Process a group member's report: it needs its coordinator, and the leaders of the
        ``partitions`` that it reads."""
        reached = self._reached_brokers(snapshot)
        fetch_brokers = {
            partition: broker
            for partition, broker in snapshot.fetch_brokers().items()
            if partition in partitions
        }
        unreached = self._record_unreached(fetch_brokers, snapshot.broker_ids(reached))
        # With nothing to read, the driver connects to no broker anyway.
        not_connecting = bool(partitions) and snapshot.is_not_connecting()
        self._update(COORDINATOR in reached and not unreached, not_connecting, now)

    def observe_producer(self, snapshot: Snapshot, now: float) -> None:
        """Process a producer's report: while records wait, it needs a broker and their leaders."""
        records_wait = bool(snapshot.msg_cnt)
        connected = snapshot.broker_ids(self._reached_brokers(snapshot))
        unreached = self._record_unreached(snapshot.produce_leaders(), connected)
        self._update(
            (not records_wait or bool(connected)) and not unreached,
            records_wait and snapshot.is_not_connecting(),
            now,
        )

    def _reached_brokers(self, snapshot: Snapshot) -> set[str]:
        reached = snapshot.reached_brokers(self._response_counts)
        self._response_counts = snapshot.response_counts()
        return reached

    def _record_unreached(
        self, needed: Mapping[TopicPartition, int], connected: Collection[int]
    ) -> bool:
        """Note a partition whose broker is not reached; whether there is one."""
        missing = (partition for partition, broker in needed.items() if broker not in connected)
        self.unreached = next(missing, None)
        return self.unreached is not None

    def _update(self, reached: bool, not_connecting: bool, now: float) -> None:
        self.last_report_at = now
        if reached:
            self._disconnected_since = self._not_connecting_since = None
            self._backoff_factor = 1
            return
        if self._disconnected_since is None:
            self._disconnected_since = now
        if not not_connecting:
            self._not_connecting_since = None
        elif self._not_connecting_since is None:
            self._not_connecting_since = now

    @property
    def disconnected_limit(self) -> float:
        """Seconds without a connection that are too long."""
        return min(MAX_LIMIT, self._first_limit * self._backoff_factor)

    def is_cut_off(self, now: float) -> bool:
        """Whether the client has been cut off for too long."""
        if self._disconnected_since is None:
            return False
        if self._not_connecting_since is not None and now >= self._not_connecting_since + min(
            MAX_LIMIT, NOT_CONNECTING_LIMIT * self._backoff_factor
        ):
            return True
        return now >= self._disconnected_since + self.disconnected_limit

    def back_off(self) -> None:
        """Wait longer until the next probe."""
        self._disconnected_since = self._not_connecting_since = None
        self._backoff_factor *= 2


class IsolationCheck:
    """Whether a client is the only one that is cut off.

    :param probe_broker: whether a new client reaches a partition's leader, or any broker if none is
        given; may take some seconds.
    """

    def __init__(
        self,
        connectivity: ConnectivityMonitor,
        probe_broker: Callable[[TopicPartition | None], bool],
    ) -> None:
        self._connectivity = connectivity
        self._probe_broker = probe_broker
        self._probe_thread: threading.Thread | None = None
        self._other_reached_at: float | None = None
        """When the probe was answered."""

    def should_replace(self, now: float) -> bool:
        """True once this client should be replaced. Never waits; called again and again."""
        if not self._connectivity.is_cut_off(now):
            self._other_reached_at = None
            return False
        if self._probe_thread is not None and self._probe_thread.is_alive():
            return False
        if self._other_reached_at is not None:
            return self._connectivity.last_report_at >= self._other_reached_at + RECONNECT_GRACE
        self._probe_thread = threading.Thread(
            target=self._probe, name="streams-kafka-reach", daemon=True
        )
        self._probe_thread.start()
        return False

    def _probe(self) -> None:
        reached = False
        try:
            reached = self._probe_broker(self._connectivity.unreached)
        except Exception:
            logger.exception("asking with another client")
        if reached:
            self._other_reached_at = time.monotonic()
        else:
            self._connectivity.back_off()
