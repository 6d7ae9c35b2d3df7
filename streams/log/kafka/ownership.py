"""Until when a member certainly owns its partitions, read from the driver's statistics.

The promise is that no handler starts once the time since ownership was last confirmed exceeds the
session. Kafka's coordinator expels a member from which it has heard nothing for the session's
length, so we need *a moment before the last accepted heartbeat was sent*. The driver sends
heartbeats from a thread of its own and does not report when; but its statistics count what it sends
and receives, with a monotonic time stamp.

Theory of operation. Let a *snapshot* be one statistics report. If between two snapshots the count
of heartbeats to the coordinator grew, one was sent after the first snapshot was taken. If a later
snapshot shows nothing outstanding there, nothing timed out, retried or disconnected since, no
search for another coordinator, no rebalance, and a member in its steady state, that heartbeat was
answered without an error. So ownership was certain *at the first snapshot's time*, and is for one
session from there. This is known later, and dated a little earlier, than the truth: it errs only on
the safe side. In detail:

* One thread of the driver reads an answer and another processes it. An answer of the last
  :data:`RESPONSE_GRACE` seconds may not have been processed, so it waits for the next snapshot.
* ``ConsumerGroupHeartbeat`` (KIP-848) is not in the driver's table of counted requests. It is
  the only one that a member sends to its coordinator and the table lacks (KIP-714's telemetry is
  switched off), so it is the difference between what was sent and what the table holds. The two
  are not read at one instant, so only growth over the highest value so far counts.
* A classic member cannot heartbeat while it joins; the SyncGroup that ends a join proves as much.
  It was sent after the last snapshot that had not counted it yet.
* A process that was stopped (SIGSTOP, a paused VM whose clock runs on) wakes with its last
  confirmation a session ago, and its next heartbeat's answer says whether it is still a member:
  nothing starts in between.

The driver's clock is CLOCK_MONOTONIC on Linux, which is Python's; on other systems the difference
between the two is estimated from the promptest report so far.
"""

from __future__ import annotations

import sys

from streams.log.kafka.statistics import COORDINATOR, Broker, Snapshot

RESPONSE_GRACE = 0.02
"""Seconds for the driver's main thread to process an answer."""

_SEPARATE_CLOCK = sys.platform != "linux"

TroubleCounters = tuple[int, ...]


class Ownership:
    """Says by the driver's statistics and a few moments until when ownership is certain.

    :param session_timeout: seconds after which the coordinator expels a silent member.
    :param max_poll_interval: seconds after which the driver itself leaves the group unless polled.
    :param kip848: the group protocol of KIP-848.
    :param now: monotonic time of the joining.
    """

    def __init__(
        self, session_timeout: float, max_poll_interval: float, kip848: bool, now: float
    ) -> None:
        self.session_timeout = session_timeout
        self.max_poll_interval = max_poll_interval
        self.confirmed_at = now
        """A moment at which ownership was certain."""
        self.polled_at = now
        """When the driver was last polled."""
        self._kip848 = kip848
        self._snapshot_at = now
        self._heartbeats_sent = 0
        self._before_heartbeat: float | None = None
        """A moment before the newest unconfirmed heartbeat was sent."""
        self._sync_groups_sent = 0
        self._before_sync_group: float | None = None
        """A moment before a SyncGroup was sent whose assignment has not arrived yet."""
        self._trouble_counters: TroubleCounters | None = None
        self._clock_difference = float("inf")

    @property
    def valid_until(self) -> float:
        """Monotonic time until which ownership is certain."""
        return min(
            self.confirmed_at + self.session_timeout, self.polled_at + self.max_poll_interval
        )

    def confirm(self, moment: float) -> None:
        """Ownership was certain at ``moment``."""
        self.confirmed_at = max(self.confirmed_at, moment)

    def expelled(self) -> None:
        """The coordinator has expelled this member: it owns nothing until it is confirmed anew."""
        self.confirmed_at = float("-inf")

    def assignment_received(self) -> None:
        """An assignment came: a classic member's SyncGroup was answered."""
        if not self._kip848:
            self.confirm(
                self._snapshot_at if self._before_sync_group is None else self._before_sync_group
            )
        self._before_sync_group = None

    def observe(self, snapshot: Snapshot, now: float) -> None:
        """Process a snapshot that was received at ``now``."""
        snapshot_at = snapshot.ts / 1e6
        if _SEPARATE_CLOCK:
            self._clock_difference = min(self._clock_difference, now - snapshot_at)
            snapshot_at += self._clock_difference
        snapshot_at = min(snapshot_at, now)
        previous_at, self._snapshot_at = self._snapshot_at, snapshot_at
        broker = snapshot.brokers.get(COORDINATOR)
        if broker is None or snapshot.cgrp is None:
            return
        self._count_requests(broker, previous_at)
        counters = (
            broker.connects,
            broker.disconnects,
            broker.req_timeouts,
            broker.rxerrs,
            broker.txerrs,
            broker.txretries,
            snapshot.cgrp.rebalance_cnt,
            sum(each.req.get("FindCoordinator", 0) for each in snapshot.brokers.values()),
        )
        steady = snapshot.cgrp.state == "up" and snapshot.cgrp.join_state == "steady"
        if counters != self._trouble_counters or not steady:
            # Requests in flight may have failed: only those sent from now on count.
            self._trouble_counters = counters
            self._before_heartbeat = None
            return
        answered = broker.waitresp_cnt == 0 and broker.outbuf_cnt == 0
        if (
            self._before_heartbeat is not None
            and answered
            and broker.rxidle >= RESPONSE_GRACE * 1e6
        ):
            self.confirm(self._before_heartbeat)
            self._before_heartbeat = None

    def _count_requests(self, broker: Broker, previous_at: float) -> None:
        if self._kip848:
            uncounted = broker.tx - sum(broker.req.values())
            heartbeats = broker.req.get("ConsumerGroupHeartbeat", uncounted)
        else:
            heartbeats = broker.req.get("Heartbeat", 0)
        if heartbeats > self._heartbeats_sent:
            self._heartbeats_sent = heartbeats
            self._before_heartbeat = previous_at
        sync_groups = broker.req.get("SyncGroup", 0)
        if sync_groups > self._sync_groups_sent:
            self._sync_groups_sent = sync_groups
            self._before_sync_group = previous_at
