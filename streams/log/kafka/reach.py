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

from streams.log.kafka.statistics import COORDINATOR, Key, Snapshot
from streams.text import get_logger

logger = get_logger("streams.kafka")

PATIENCE = 10.0
"""Seconds without a connection until another client is asked; a member waits for its session's
end, if that is longer."""

GIVEN_UP = 3.0
"""Seconds until then, where the driver does not try to connect."""

SETTLED = 2.5
"""Seconds that a client gets to connect, once another one was answered: the outage may have ended
just then, and the driver waits up to a second between two tries."""

MOST = 320.0
"""Seconds until it is asked again, at most."""


class Reach:
    """Fed with the driver's reports; tells when the client has been cut off for too long."""

    def __init__(self, session: float = 0.0) -> None:
        self._first = max(PATIENCE, session)
        self._times = 1
        """How many times as long as the first time."""
        self.missed: Key | None = None
        """A partition whose leader is not reached; None if no broker is."""
        self.latest = float("-inf")
        """When the last report was taken in."""
        self._answers: dict[str, int] = {}
        """How often each broker had answered by the last report."""
        self._since: float | None = None
        self._still: float | None = None
        """Since when the driver has not even tried."""

    def member(self, snapshot: Snapshot, parts: Collection[Key], now: float) -> None:
        """Take in a group member's report: it needs its coordinator, and the leaders of ``parts``,
        which it is to read."""
        reached = self._reached(snapshot)
        read = {part: broker for part, broker in snapshot.read().items() if part in parts}
        missed = self._missed(read, snapshot.ids(reached))
        # With nothing to read, no broker is tried in the best of times.
        still = bool(parts) and snapshot.idle()
        self._take(COORDINATOR in reached and not missed, still, now)

    def producer(self, snapshot: Snapshot, now: float) -> None:
        """Take in a producer's report: while records wait it needs a broker, and their leaders."""
        waits = bool(snapshot.msg_cnt)
        connected = snapshot.ids(self._reached(snapshot))
        missed = self._missed(snapshot.written(), connected)
        self._take((not waits or bool(connected)) and not missed, waits and snapshot.idle(), now)

    def _reached(self, snapshot: Snapshot) -> set[str]:
        reached = snapshot.reached(self._answers)
        self._answers = snapshot.answers()
        return reached

    def _missed(self, needed: Mapping[Key, int], connected: Collection[int]) -> bool:
        """Note a partition whose broker is not reached; whether there is one."""
        missing = (part for part, broker in needed.items() if broker not in connected)
        self.missed = next(missing, None)
        return self.missed is not None

    def _take(self, reached: bool, still: bool, now: float) -> None:
        self.latest = now
        if reached:
            self._since = self._still = None
            self._times = 1
            return
        if self._since is None:
            self._since = now
        if not still:
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
        """Another client was asked; until the next time it takes longer."""
        self._since = self._still = None
        self._times *= 2


class Alone:
    """Whether a client is the only one that is cut off.

    :param answered: whether a client that is new reaches a partition's leader, or any broker if
        none is given; may take some seconds.
    """

    def __init__(self, reach: Reach, answered: Callable[[Key | None], bool]) -> None:
        self._reach = reach
        self._answered = answered
        self._asking: threading.Thread | None = None
        self._since: float | None = None
        """When another client was answered."""

    def turn(self, now: float) -> bool:
        """True once this client should be replaced. Never waits; called again and again."""
        if not self._reach.over(now):
            self._since = None
            return False
        if self._asking is not None and self._asking.is_alive():
            return False
        if self._since is not None:
            return self._reach.latest >= self._since + SETTLED
        self._asking = threading.Thread(target=self._ask, name="streams-kafka-reach", daemon=True)
        self._asking.start()
        return False

    def _ask(self) -> None:
        answered = False
        try:
            answered = self._answered(self._reach.missed)
        except Exception:
            logger.exception("asking with another client")
        if answered:
            self._since = time.monotonic()
        else:
            self._reach.handled()
