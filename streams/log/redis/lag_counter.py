"""Counts the entries below a position while they are read.

Redis derives a group's lag, and this log the entries that were lost or may be trimmed, from the
number of entries ever added below the group's position (``ENTRIESREAD`` of XGROUP SETID). Redis
cannot find that number for a position in the middle of a stream, but it is known at both ends, and
it grows by one with every entry read.
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
    """The batch's own offsets. A position inside the batch means that one of its messages is not
    settled, so the batch is still referenced elsewhere and need not be kept alive here."""


class LagCounter:
    """Counts the entries of one partition that were read and are not committed yet."""

    __slots__ = ("_batches", "_uncommitted", "entries_read")

    def __init__(self, entries_read: int | None = None) -> None:
        self.entries_read = entries_read
        """Entries ever added up to the last one read; None while that is unknown."""
        self._batches: deque[ReadBatch] = deque()
        self._uncommitted = 0
        """Entries in the batches that are not committed."""

    def add_batch(self, offsets: EntryIdOffsets) -> None:
        """Count a batch that was read."""
        count = len(offsets)
        self._batches.append(ReadBatch(offsets.entry_ids[-1], count, ref(offsets)))
        self._uncommitted += count
        if self.entries_read is not None:
            self.entries_read += count

    def recount_at_end(self, added: int) -> int:
        """Correct the count: the last entry read is the stream's last, and this many were ever
        added. Returns how many were never read, as they were trimmed or deleted before."""
        missing = 0 if self.entries_read is None else added - self.entries_read
        self.entries_read = added
        return max(0, missing)

    def entries_below(self, position: int) -> int | None:
        """The number of entries below a position. Callers must ask in ascending order of
        positions."""
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
