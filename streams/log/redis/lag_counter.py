"""How many entries lie below a position: counted while they are read.

Redis knows a group's lag, and we know what was lost and what may be trimmed, from the number of
entries ever added below the group's position (``ENTRIESREAD`` of XGROUP SETID). Redis cannot find
that number for a position in the middle of a stream, but it is known at both ends, and it grows by
one with every entry read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple
from weakref import ref

from streams.log.redis.batch import EntryIdOffsets
from streams.log.redis.keys import offset_of


class ReadBatch(NamedTuple):
    """One batch that was read."""

    last_entry_id: bytes
    length: int
    offsets: ref[EntryIdOffsets]
    """The batch's own. A position inside a batch means that a message of it is not settled, so
    somebody still holds it; there is no need to keep it alive here."""


class LagCounter:
    """What was read of one partition and is not committed yet."""

    __slots__ = ("_batches", "_uncommitted", "entries_read")

    def __init__(self, entries_read: int | None = None) -> None:
        self.entries_read = entries_read
        """Entries ever added up to the last one read; None while that is not known."""
        self._batches: deque[ReadBatch] = deque()
        self._uncommitted = 0
        """Entries in them."""

    def add_batch(self, offsets: EntryIdOffsets) -> None:
        """Count what was read next."""
        count = len(offsets)
        self._batches.append(ReadBatch(offsets.entry_ids[-1], count, ref(offsets)))
        self._uncommitted += count
        if self.entries_read is not None:
            self.entries_read += count

    def recount_at_end(self, added: int) -> int:
        """The last entry read is the stream's last, and this many were ever added: how many of
        them were never read, as they were trimmed or deleted before."""
        missing = 0 if self.entries_read is None else added - self.entries_read
        self.entries_read = added
        return max(0, missing)

    def entries_below(self, position: int) -> int | None:
        """How many entries lie below a position. Positions are asked for in ascending order."""
        batches = self._batches
        while batches and offset_of(batches[0].last_entry_id) < position:
            self._uncommitted -= batches.popleft().length
        if self.entries_read is None:
            return None
        if not batches:
            return self.entries_read
        offsets = batches[0].offsets()
        if offsets is None:
            return None
        return self.entries_read - self._uncommitted + bisect_left(offsets, position)
