"""How many entries lie below a position: counted along the way, so that nobody has to look.

Redis tells a group's lag, and we tell what was lost and what may be trimmed, from the number of
entries ever added below the group's position (``ENTRIESREAD`` of XGROUP SETID). Redis cannot find
that number for a position in the middle of a stream, but it is known at both ends, and it grows by
one with every entry read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from streams.log.redis.columns import Offsets


class Trail:
    """What was read of one partition and is not committed yet."""

    __slots__ = ("_ahead", "_batches", "total")

    def __init__(self, total: int | None) -> None:
        self.total = total
        """Entries ever added up to the last one read; None as long as nothing has told."""
        self._batches: deque[Offsets] = deque()
        self._ahead = 0
        """Entries in them."""

    def add(self, offsets: Offsets) -> None:
        """These were read next."""
        self._batches.append(offsets)
        self._ahead += len(offsets)
        if self.total is not None:
            self.total += len(offsets)

    def end(self, added: int) -> int:
        """The last entry read is the stream's last, and this many were ever added: how many of
        them were never read, as they were trimmed or deleted before."""
        missing = 0 if self.total is None else added - self.total
        self.total = added
        return max(0, missing)

    def below(self, position: int) -> int | None:
        """How many entries lie below a position. Positions are asked for in ascending order."""
        batches = self._batches
        while batches and batches[0][-1] < position:
            self._ahead -= len(batches.popleft())
        if self.total is None:
            return None
        passed = bisect_left(batches[0], position) if batches else 0
        return self.total - self._ahead + passed
