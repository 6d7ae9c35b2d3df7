"""When positions are committed next: as often as it is not felt.

What was handled since the last commit is handled again after a crash, so a commit should follow as
soon as something was settled. A commit costs, though, the processor's own time and the log's. So
the next one comes when the last is paid for: after one that took ``cost`` seconds not before
``cost / SHARE`` seconds have passed, and never sooner than the log bears.

Where nothing was settled since the last look, the next look comes later each time.
"""

from __future__ import annotations

SHARE = 1 / 40
"""Commits may take this share of one core's time, at most."""

LOOK = 0.05
"""Seconds between two looks while messages are being handled and none is settled."""


class CommitPace:
    """Says when to commit next; told what each commit cost, and the time.

    :param longest: seconds until the next commit, at most, whatever the last one cost.
    :param shortest: seconds until the next commit, at least, as the log wants it; where
        ``longest`` is less, that counts.
    """

    __slots__ = ("_longest", "_look", "_shortest", "due")

    def __init__(self, longest: float, shortest: float) -> None:
        self._longest = longest
        self._shortest = self._look = min(shortest, longest)
        self.due = float("-inf")
        """The moment from which on what has been settled may be committed."""

    def committed(self, now: float, cost: float) -> None:
        """Something was committed at ``now``, which took ``cost`` seconds."""
        self._look = self._shortest
        self.due = now + self._after(self._shortest, cost)

    def unmoved(self, now: float, cost: float) -> None:
        """Nothing was: it was looked for at ``now`` and not found, or was not accepted."""
        self.due = now + self._after(self._look, cost)
        self._look = max(self._shortest, min(2 * self._look, LOOK))

    def _after(self, least: float, cost: float) -> float:
        return min(self._longest, max(least, cost / SHARE))
