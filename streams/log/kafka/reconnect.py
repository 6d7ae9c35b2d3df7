"""Whether a client that is cut off for long should be replaced.

The driver reconnects by itself, as a rule. But librdkafka can come out of an outage with a client
that never will (see ``client.py``), and hardly anything in its answers tells that from an outage
that goes on. So where a client had no connection to a broker it needs for a while, another one is
made and asked: if that one is answered, and the first still has no connection some seconds later,
it gives way to a new one, which begins with the addresses of the URL. In an outage nothing is
replaced, as nobody is answered; there it is asked again after twice as long.

One thing tells sooner: a client that needs brokers and does not even try to connect to one has
given up (all its handles are as if nobody needed them). That happens where the metadata named no
broker for a moment, as that of a single broker does that was frozen.
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
"""Seconds without a connection until another client is asked; a member waits for its session's
end, if that is longer."""

NOT_CONNECTING_LIMIT = 3.0
"""Seconds until then, where the driver does not try to connect."""

RECONNECT_GRACE = 2.5
"""Seconds that a client gets to connect, once another one was answered: the outage may have ended
just then, and the driver waits up to a second between two tries."""

MAX_LIMIT = 320.0
"""Seconds until it is asked again, at most."""


class ConnectivityMonitor:
    """Fed with the driver's reports; tells when the client has been cut off for too long."""

    def __init__(self, session_timeout: float = 0.0) -> None:
        self._first_limit = max(DISCONNECTED_LIMIT, session_timeout)
        self._backoff_factor = 1
        """How many times as long as the first time."""
        self.unreached: TopicPartition | None = None
        """A partition whose leader is not reached; None if no broker is."""
        self.last_report_at = float("-inf")
        """When the last report was taken in."""
        self._response_counts: dict[str, int] = {}
        """How often each broker had answered by the last report."""
        self._disconnected_since: float | None = None
        self._not_connecting_since: float | None = None
        """Since when the driver has not even tried."""

    def observe_member(
        self, snapshot: Snapshot, partitions: Collection[TopicPartition], now: float
    ) -> None:
        """Take in a group member's report: it needs its coordinator, and the leaders of
        ``partitions``, which it is to read."""
        reached = self._reached_brokers(snapshot)
        fetch_brokers = {
            partition: broker
            for partition, broker in snapshot.fetch_brokers().items()
            if partition in partitions
        }
        unreached = self._record_unreached(fetch_brokers, snapshot.broker_ids(reached))
        # With nothing to read, no broker is tried in the best of times.
        not_connecting = bool(partitions) and snapshot.is_not_connecting()
        self._update(COORDINATOR in reached and not unreached, not_connecting, now)

    def observe_producer(self, snapshot: Snapshot, now: float) -> None:
        """Take in a producer's report: while records wait it needs a broker, and their leaders."""
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
        """Seconds without a connection until it is too long."""
        return min(MAX_LIMIT, self._first_limit * self._backoff_factor)

    def is_cut_off(self, now: float) -> bool:
        """Cut off for too long."""
        if self._disconnected_since is None:
            return False
        if self._not_connecting_since is not None and now >= self._not_connecting_since + min(
            MAX_LIMIT, NOT_CONNECTING_LIMIT * self._backoff_factor
        ):
            return True
        return now >= self._disconnected_since + self.disconnected_limit

    def back_off(self) -> None:
        """Another client was asked; until the next time it takes longer."""
        self._disconnected_since = self._not_connecting_since = None
        self._backoff_factor *= 2


class IsolationCheck:
    """Whether a client is the only one that is cut off.

    :param probe_broker: whether a client that is new reaches a partition's leader, or any broker if
        none is given; may take some seconds.
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
        """When another client was answered."""

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
