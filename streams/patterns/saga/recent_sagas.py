"""The sagas whose last entry is among the newest of their partition, by ID.

To find one saga by its ID, its partition's journal would have to be read from the beginning. So
a partition that was read once is followed: :meth:`RecentSagas.catch_up` reads its newest entries
the first time, and afterwards those written since. A number and an offset are kept for each saga
that has an entry among the last ``min_entries`` that count.

``min_entries`` is at least what deduplication can remember. So a saga that is not found here is
unknown to deduplication too: a second start of it runs it again, as documented.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from streams.message import Position
from streams.patterns.saga.journal import DEFAULT_NEWEST, Journal
from streams.patterns.saga.journal_entry import JournalEntry


class LastEntry(NamedTuple):
    """The last entry of a saga.

    :param has_ended: whether the saga advances only on an explicit command.
    :param is_final: whether no entry follows.
    """

    number: int
    position: Position
    has_ended: bool
    is_final: bool


class _PartitionIndex:
    """The index of one partition, as far as it was read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read_until: int | None = None
        """The offset up to which the partition was read; None before the first time."""
        self.entry_count = 0
        """The number of entries that counted so far."""
        self.sagas: dict[str, tuple[int, LastEntry]] = {}
        """By ID, in the order of their last entries: :attr:`entry_count` then, and that entry."""

    def add_entry(self, entry: JournalEntry, position: Position, min_entries: int) -> None:
        """Add the next entry. The first of a number counts, later ones with that number do not."""
        known = self.sagas.get(entry.saga)
        if known is not None and entry.n <= known[1].number:
            return
        self.entry_count += 1
        self.sagas.pop(entry.saga, None)
        last_entry = LastEntry(entry.n, position, entry.has_ended, entry.is_final)
        self.sagas[entry.saga] = (self.entry_count, last_entry)
        while self.sagas[oldest := next(iter(self.sagas))][0] <= self.entry_count - min_entries:
            del self.sagas[oldest]


class RecentSagas:
    """Sagas of one name by ID; usable from any thread.

    :param min_entries: the minimum of the last entries of a partition that are indexed.
    """

    def __init__(self, min_entries: int) -> None:
        self._min_entries = min_entries
        self._partitions: dict[int, _PartitionIndex] = {}

    def find(self, id: str) -> LastEntry | None:
        """The last entry of a saga, in the part that was read; does not block."""
        for part in list(self._partitions.values()):
            known = part.sagas.get(id)
            if known is not None:
                return known[1]
        return None

    def catch_up(self, journal: Journal, partition: int) -> None:
        """Read the entries that a partition has by now; blocks.

        :raises LogError: the log cannot be read.
        """
        index = self._partitions.setdefault(partition, _PartitionIndex())
        with index.lock:
            first, end = journal.log.watermarks(journal.topic, partition)
            if index.read_until is None or end < index.read_until:  # the topic was recreated
                self._read_newest(index, journal, partition)
                return
            for entry, position in journal.read_range(partition, max(first, index.read_until), end):
                index.add_entry(entry, position, self._min_entries)
            index.read_until = end

    def _read_newest(self, index: _PartitionIndex, journal: Journal, partition: int) -> None:
        """Read the newest entries; further back if many of them do not count."""
        lookback = self._min_entries + self._min_entries // 4
        while True:
            start, end, is_whole = journal.newest_range(partition, lookback)
            index.entry_count, index.sagas = 0, {}
            for entry, position in journal.read_range(partition, start, end):
                index.add_entry(entry, position, self._min_entries)
            enough = index.entry_count >= self._min_entries
            if enough or is_whole or lookback >= DEFAULT_NEWEST:
                index.read_until = end
                return
            lookback = min(DEFAULT_NEWEST, 4 * lookback)
