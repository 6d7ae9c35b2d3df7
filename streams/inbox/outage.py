"""Whether a processor's database can be used, and which transactions may try it while it cannot.

A database that cannot be reached is tried by every transaction that is to begin. A database that
answers but cannot work (its disk is full, it has become a replica) is noticed within a transaction.
From then on single transactions, each after a longer pause, try whether it works again; the first
one that is committed ends the outage.
"""

from __future__ import annotations

import threading
import time

from streams.health import InboxStats
from streams.text import describe_error, get_logger

logger = get_logger("streams.inbox")

RETRY_PAUSE = 0.25
"""Seconds between two attempts to reach the database."""

LONGEST_TRIAL_PAUSE = 2.0
"""The most seconds between two transactions that try whether a database that answers works
again."""


class _Trials:
    """The trials of a database that answers but cannot work. For any thread."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.since = time.monotonic()
        """When the outage began: the commit of a transaction that began earlier does not end it."""
        self._pause = RETRY_PAUSE
        self._next = self.since + self._pause
        self._lock = threading.Lock()

    def may_try(self) -> bool:
        """Whether a transaction may begin; if so, the next one has to wait."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._pause = min(2 * self._pause, LONGEST_TRIAL_PAUSE)
            self._next = now + self._pause
            return True

    def try_at_once(self) -> None:
        """Let the next transaction begin at once."""
        with self._lock:
            self._pause = RETRY_PAUSE
            self._next = time.monotonic()


class Reachability:
    """Whether a processor's database can be used; keeps ``stats.reachable``. For any thread."""

    def __init__(self, stats: InboxStats, processor_name: str, database_name: str) -> None:
        self._stats = stats
        self._processor_name = processor_name
        self._database_name = database_name
        self._trials: _Trials | None = None
        """Set while the database answers but cannot work."""

    def refusal(self) -> Exception | None:
        """None: a transaction may begin now; else the error because of which it may not."""
        trials = self._trials
        return None if trials is None or trials.may_try() else trials.error

    def note_outage(self, error: BaseException) -> None:
        """Note, and log once, that the database cannot be used."""
        if self._stats.reachable:
            self._stats.reachable = False
            logger.warning(
                "%s: waiting for its database (%s): %s",
                self._processor_name, self._database_name, describe_error(error),
            )  # fmt: skip

    def note_unable(self, error: Exception) -> None:
        """Note that the database answers but cannot work."""
        if self._trials is None:
            self._trials = _Trials(error)
        self.note_outage(error)

    def note_begun(self) -> None:
        """Note that a transaction has begun: the database can be reached."""
        if not self._stats.reachable and self._trials is None:
            self._stats.reachable = True
            logger.warning("%s: its database answers again", self._processor_name)

    def note_committed(self, began: float) -> None:
        """Note the commit of a transaction that began at this monotonic time."""
        trials = self._trials
        if trials is not None and began >= trials.since:
            self._trials = None
            self.note_begun()

    def note_unchanged(self) -> None:
        """Note that a transaction had nothing to write: its database answers, and the next
        transaction shows whether it can work."""
        if self._trials is not None:
            self._trials.try_at_once()

    def forget(self) -> None:
        """Forget an outage of the run that has ended."""
        self._trials = None
