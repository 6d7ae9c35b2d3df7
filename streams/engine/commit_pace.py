"""Decides when to commit positions next: as often as commits stay cheap.

Messages handled since the last commit are handled again after a crash, so a commit should follow as
soon as something was settled. But each commit costs time, the processor's own and the log's. So
commits have a budget: a share of one core's time, of which a little is saved up, so that a single
slow commit (the first, or one during a garbage collection of Python's) delays nothing. Two commits
are never closer to each other than the log's shortest interval.

While nothing is settled, the interval between two checks grows.
"""

from __future__ import annotations

CORE_SHARE = 1 / 50
"""Commits may take this share of one core's time, at most."""

SAVED_UP = 0.02
"""Seconds that they may take before their share of the time has passed."""

LONGEST_LOOK = 0.05
"""Seconds between two looks while messages are being handled and none is settled."""


class CommitPace:
    """Says when to commit next, from what commits have cost so far.

    :param longest: seconds until the next commit, at most, whatever they cost.
    :param shortest: seconds until the next commit, at least, as the log wants it; where
        ``longest`` is less, that counts.
    """

    __slots__ = ("_charged_at", "_debt", "_longest", "_look_interval", "_shortest", "due")

    def __init__(self, longest: float, shortest: float) -> None:
        self._longest = longest
        self._shortest = self._look_interval = min(shortest, longest)
        self._debt = 0.0
        """Seconds that commits took and for which their share of the time has not passed..."""
        self._charged_at = float("-inf")
        """...at this moment."""
        self.due = float("-inf")
        """The moment from which on what has been settled may be committed."""

    def record_commit(self, now: float, cost: float) -> None:
        """Something was committed at ``now``, which took ``cost`` seconds."""
        self._look_interval = self._shortest
        self._charge(now, cost, self._shortest)

    def record_idle_check(self, now: float, cost: float) -> None:
        """Nothing was committed at ``now``: there was nothing, or it was not accepted."""
        self._charge(now, cost, self._look_interval)
        self._look_interval = max(
            self._shortest, min(2 * self._look_interval, LONGEST_LOOK, self._longest)
        )

    def _charge(self, now: float, cost: float, least: float) -> None:
        owed = max(0.0, self._debt - (now - self._charged_at) * CORE_SHARE) + cost
        self._debt = min(owed, SAVED_UP + self._longest * CORE_SHARE)  # no more is waited for
        self._charged_at = now
        self.due = now + max(least, (self._debt - SAVED_UP) / CORE_SHARE)
