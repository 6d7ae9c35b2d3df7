"""Until when a member certainly owns its partitions, read from the driver's statistics.

The promise is that no handler starts once the time since ownership was last confirmed exceeds the
session. Kafka's coordinator gives a member up when it has not heard from it for the session's
length, so what is needed is *a moment before the last heartbeat that the coordinator took was
sent*. The driver sends heartbeats from a thread of its own and tells nobody when; it does count
what it sends and receives, and shows the counts in its statistics, with a monotonic time stamp.

Theory of operation. Let a *snapshot* be one statistics report. If between two snapshots the count
of heartbeats to the coordinator grew, one was sent after the first snapshot was taken. If a later
snapshot shows nothing outstanding there, nothing timed out, retried or disconnected since, no
search for another coordinator, no rebalance, and a member in its steady state, that heartbeat was
answered, and answered well. So ownership was certain *at the first snapshot's time*, and it is
certain for one session from there. That is later known, and a little earlier dated, than the
truth; it errs only to the safe side. In detail:

* An answer is read by one thread of the driver and judged by another. An answer of the last
  :data:`JUDGED` seconds may not have been judged yet, so it waits for the next snapshot.
* ``ConsumerGroupHeartbeat`` (KIP-848) is not in the driver's table of counted requests. It is
  the only one that a member sends to its coordinator and the table lacks (KIP-714's telemetry is
  switched off), so it is the difference between what was sent and what the table holds. The two
  are not read at one instant, so only growth over the highest value so far counts.
* A classic member cannot heartbeat while it joins; the SyncGroup that ends a join proves as much.
  It was sent after the last snapshot that had not counted it yet.
* A process that was stopped (SIGSTOP, a paused VM whose clock goes on) wakes with its last
  confirmation a session ago, and its next heartbeat's answer says whether it is still a member:
  nothing starts in between.

The driver's clock is CLOCK_MONOTONIC on Linux, which is Python's; on other systems the difference
between the two is estimated from the promptest report so far.
"""

from __future__ import annotations

import sys

from streams.log.kafka.statistics import COORDINATOR, Broker, Snapshot

JUDGED = 0.02
"""Seconds that an answer gets to be judged by the driver's main thread."""

_SEPARATE_CLOCK = sys.platform != "linux"

Trouble = tuple[int, ...]


class Ownership:
    """Fed with the driver's reports and a few moments; answers until when ownership is certain.

    :param session: seconds after which the coordinator gives a silent member up.
    :param patience: seconds after which the driver itself leaves the group unless polled.
    :param kip848: the group protocol of KIP-848.
    :param now: monotonic time of the joining.
    """

    def __init__(self, session: float, patience: float, kip848: bool, now: float) -> None:
        self.session = session
        self.patience = patience
        self.confirmed = now
        """A moment at which ownership was certain."""
        self.polled = now
        """When the driver was last polled."""
        self._kip848 = kip848
        self._taken = now
        self._beats = 0
        self._pending: float | None = None
        """A moment before the newest unconfirmed heartbeat was sent."""
        self._syncs = 0
        self._synced: float | None = None
        """A moment before a SyncGroup was sent whose assignment has not come yet."""
        self._trouble: Trouble | None = None
        self._behind = float("inf")

    @property
    def valid_until(self) -> float:
        """Monotonic time until which ownership is certain."""
        return min(self.confirmed + self.session, self.polled + self.patience)

    def confirm(self, moment: float) -> None:
        """Ownership was certain at ``moment``."""
        self.confirmed = max(self.confirmed, moment)

    def assigned(self) -> None:
        """An assignment came: a classic member's SyncGroup was answered."""
        if not self._kip848:
            self.confirm(self._taken if self._synced is None else self._synced)
        self._synced = None

    def take(self, snapshot: Snapshot, now: float) -> None:
        """Take in one snapshot, received at ``now``."""
        taken = snapshot.ts / 1e6
        if _SEPARATE_CLOCK:
            self._behind = min(self._behind, now - taken)
            taken += self._behind
        taken = min(taken, now)
        before, self._taken = self._taken, taken
        broker = snapshot.brokers.get(COORDINATOR)
        if broker is None or snapshot.cgrp is None:
            return
        self._count(broker, before)
        trouble = (
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
        if trouble != self._trouble or not steady:
            # Whatever was under way may have failed: only what is sent from now on counts.
            self._trouble = trouble
            self._pending = None
            return
        answered = broker.waitresp_cnt == 0 and broker.outbuf_cnt == 0
        if self._pending is not None and answered and broker.rxidle >= JUDGED * 1e6:
            self.confirm(self._pending)
            self._pending = None

    def _count(self, broker: Broker, before: float) -> None:
        if self._kip848:
            rest = broker.tx - sum(broker.req.values())
            beats = broker.req.get("ConsumerGroupHeartbeat", rest)
        else:
            beats = broker.req.get("Heartbeat", 0)
        if beats > self._beats:
            self._beats = beats
            self._pending = before
        syncs = broker.req.get("SyncGroup", 0)
        if syncs > self._syncs:
            self._syncs = syncs
            self._synced = before
