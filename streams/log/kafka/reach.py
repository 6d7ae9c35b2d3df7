"""Whether a client that is cut off for long should be replaced.

The driver reconnects by itself, as a rule. But librdkafka can come out of an outage with a client
that never will (see ``client.py``), and nothing in its answers tells that from an outage that goes
on. So a client that had no connection to a broker it needs for :data:`PATIENCE` seconds on end
gives way to a new one, which begins with the addresses of the URL; in an outage that goes on, after
twice as long each time. By then its session is over, and nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from streams.log.kafka.statistics import COORDINATOR, UP, Snapshot

PATIENCE = 20.0
"""Seconds without a connection until the first replacement."""

MOST = 320.0
"""Seconds until the later ones, at most."""


class Reach:
    """Fed with the driver's reports; tells when it has been cut off for too long."""

    def __init__(self) -> None:
        self.patience = PATIENCE
        """Seconds until it is too long."""
        self.missed: tuple[str, int] | None = None
        """A partition whose leader is not reached; None if no broker is."""
        self._since: float | None = None

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
            self._since, self.patience = None, PATIENCE
        elif self._since is None:
            self._since = now

    def over(self, now: float) -> bool:
        """Cut off for too long."""
        return self._since is not None and now >= self._since + self.patience

    def handled(self) -> None:
        """Something was done about it; until the next time it takes longer."""
        self._since = None
        self.patience = min(MOST, self.patience * 2)
