"""How many entries lie below a position: counted along the way, so that nobody has to look.

Redis tells a group's lag, and we tell what was lost and what may be trimmed, from the number of
entries ever added below the group's position (``ENTRIESREAD`` of XGROUP SETID). Redis cannot find
that number for a position in the middle of a stream, but it is known at both ends, and it grows by
one with every entry read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple
from weakref import ref

from streams.log.redis.columns import Offsets
from streams.log.redis.keys import offset


class Span(NamedTuple):
    """One batch that was read."""

    last: bytes
    length: int
    offsets: ref[Offsets]
    """The batch's own. A position inside a batch means that a message of it is not settled, so
    somebody still holds it; there is no need to keep it alive here."""


class Trail:
    """What was read of one partition and is not committed yet."""

    __slots__ = ("_ahead", "_spans", "total")

    def __init__(self, total: int | None) -> None:
        self.total = total
        """Entries ever added up to the last one read; None as long as nothing has told."""
        self._spans: deque[Span] = deque()
        self._ahead = 0
        """Entries in them."""

    def add(self, offsets: Offsets) -> None:
        """These were read next."""
        count = len(offsets)
        self._spans.append(Span(offsets.raw[-1], count, ref(offsets)))
        self._ahead += count
        if self.total is not None:
            self.total += count

    def end(self, added: int) -> int:
        """The last entry read is the stream's last, and this many were ever added: how many of
        them were never read, as they were trimmed or deleted before."""
        missing = 0 if self.total is None else added - self.total
        self.total = added
        return max(0, missing)

    def below(self, position: int) -> int | None:
        """How many entries lie below a position. Positions are asked for in ascending order."""
        spans = self._spans
        while spans and offset(spans[0].last) < position:
            self._ahead -= spans.popleft().length
        if self.total is None:
            return None
        if not spans:
            return self.total
        offsets = spans[0].offsets()
        if offsets is None:
            return None
        return self.total - self._ahead + bisect_left(offsets, position)
