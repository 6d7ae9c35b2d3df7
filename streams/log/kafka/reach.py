"""Whether a client that is cut off for long should be replaced.

The driver reconnects by itself, as a rule. But librdkafka can come out of an outage with a client
that never will (see ``client.py``), and hardly anything in its answers tells that from an outage
that goes on. So a client that had no connection to a broker it needs for a while gives way to a new
one, which begins with the addresses of the URL; in an outage that goes on, after twice as long each
time. By then its session is over, and nothing is lost by it.

One thing does tell: a client that needs brokers and has none it even tries to connect to has given
up (all its handles are as if nobody needed them). That happens where the metadata named no broker
for a moment, as that of a single broker does that was frozen. There is nothing to wait for then.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from streams.log.kafka.statistics import COORDINATOR, UP, Snapshot

PATIENCE = 10.0
"""Seconds without a connection until the first replacement; a member waits for its session's end,
if that is longer."""

GIVEN_UP = 3.0
"""Seconds until then, where the driver does not try to connect."""

MOST = 320.0
"""Seconds until the later ones, at most."""


class Reach:
    """Fed with the driver's reports; tells when it has been cut off for too long."""

    def __init__(self, session: float = 0.0) -> None:
        self._first = max(PATIENCE, session)
        self._times = 1
        """How many times as long as the first time."""
        self.missed: tuple[str, int] | None = None
        """A partition whose leader is not reached; None if no broker is."""
        self._since: float | None = None
        self._still: float | None = None
        """Since when the driver has not even tried."""

    def member(self, snapshot: Snapshot, parts: Container[tuple[str, int]], now: float) -> None:
        """Take in a group member's report: it needs its coordinator, and the leaders of ``parts``,
        which it is to read."""
        coordinator = snapshot.brokers.get(COORDINATOR)
        joined = coordinator is not None and coordinator.state == UP
        led = {part: leader for part, leader in snapshot.leaders().items() if part in parts}
        self._take(joined, led, snapshot, now)

    def producer(self, snapshot: Snapshot, now: float) -> None:
        """Take in a producer's report: while records wait it needs a broker, and their leaders."""
        idle = not snapshot.msg_cnt
        self._take(idle or bool(snapshot.connected()), snapshot.awaited(), snapshot, now)

    def _take(
        self, reached: bool, led: Mapping[tuple[str, int], int], snapshot: Snapshot, now: float
    ) -> None:
        connected = snapshot.connected()
        missed = [part for part, leader in led.items() if leader not in connected]
        self.missed = missed[0] if missed else None
        if reached and not missed:
            self._since = self._still = None
            self._times = 1
            return
        if self._since is None:
            self._since = now
        if not snapshot.idle():
            self._still = None
        elif self._still is None:
            self._still = now

    @property
    def patience(self) -> float:
        """Seconds without a connection until it is too long."""
        return min(MOST, self._first * self._times)

    def over(self, now: float) -> bool:
        """Cut off for too long."""
        if self._since is None:
            return False
        if self._still is not None and now >= self._still + min(MOST, GIVEN_UP * self._times):
            return True
        return now >= self._since + self.patience

    def handled(self) -> None:
        """Something was done about it; until the next time it takes longer."""
        self._since = self._still = None
        self._times *= 2
