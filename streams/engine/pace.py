"""When positions are committed next: as often as it is not felt.

What was handled since the last commit is handled again after a crash, so a commit should follow as
soon as something was settled. A commit costs, though, the processor's own time and the log's. So
there is a budget: a share of one core's time, of which a little is saved up, so that a single
commit that took long (the first, one in which Python collected its garbage) delays nothing. And no
two commits follow each other sooner than the log bears.

Where nothing was settled since the last look, the next look comes later each time.
"""

from __future__ import annotations

SHARE = 1 / 50
"""Commits may take this share of one core's time, at most."""

CREDIT = 0.02
"""Seconds that they may take before their share of the time has passed."""

LOOK = 0.05
"""Seconds between two looks while messages are being handled and none is settled."""


class CommitPace:
    """Says when to commit next; told what each commit cost, and the time.

    :param longest: seconds until the next commit, at most, whatever they cost.
    :param shortest: seconds until the next commit, at least, as the log wants it; where
        ``longest`` is less, that counts.
    """

    __slots__ = ("_longest", "_look", "_owed", "_shortest", "_since", "due")

    def __init__(self, longest: float, shortest: float) -> None:
        self._longest = longest
        self._shortest = self._look = min(shortest, longest)
        self._owed = 0.0
        """Seconds that commits took and for which their share of the time has not passed..."""
        self._since = float("-inf")
        """...at this moment."""
        self.due = float("-inf")
        """The moment from which on what has been settled may be committed."""

    def committed(self, now: float, cost: float) -> None:
        """Something was committed at ``now``, which took ``cost`` seconds."""
        self._look = self._shortest
        self._spend(now, cost, self._shortest)

    def unmoved(self, now: float, cost: float) -> None:
        """Nothing was: it was looked for at ``now`` and not found, or was not accepted."""
        self._spend(now, cost, self._look)
        self._look = max(self._shortest, min(2 * self._look, LOOK, self._longest))

    def _spend(self, now: float, cost: float, least: float) -> None:
        owed = max(0.0, self._owed - (now - self._since) * SHARE) + cost
        self._owed = min(owed, CREDIT + self._longest * SHARE)  # no more is waited for
        self._since = now
        self.due = now + max(least, (self._owed - CREDIT) / SHARE)
