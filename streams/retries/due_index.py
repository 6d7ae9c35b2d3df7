"""The pending entries of one partition of a delay topic: due times and positions, in due order.

An entry takes one integer, ``due << 128 | position`` (a position on Redis has 105 bits), which a
heap orders by due time and then by position, and one more integer, the digest of its ID. Payloads
stay in the log. This module does no I/O.

Memory is bounded: beyond ``limit`` entries, those that are due last are dropped, and the earliest
of them is the *horizon*. The index holds every entry that is due before the horizon. Later ones are
found again by reading the log, once all entries before the horizon are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush, nsmallest
from typing import NamedTuple

_SHIFT = 128
_POSITION = (1 << _SHIFT) - 1

DueEntry = int
"""An entry: its due time and position in one integer."""


def due_entry(due: int, position: int) -> DueEntry:
    """An entry as one integer."""
    return due << _SHIFT | position


def due_time(entry: DueEntry) -> int:
    """The due time of an entry, in milliseconds."""
    return entry >> _SHIFT


def log_position(entry: DueEntry) -> int:
    """The position of an entry in the log."""
    return entry & _POSITION


class IndexState(NamedTuple):
    """The content of an index, to be stored and restored.

    :param entries: the pending entries by ID digest, in the order of positions.
    :param horizon: the earliest entry that was dropped; None: none was.
    :param lowest_dropped: the lowest position of the dropped entries.
    """

    entries: Mapping[int, DueEntry]
    horizon: DueEntry | None = None
    lowest_dropped: int | None = None


class DueIndex:
    """The ``limit`` pending entries of one partition that are due first.

    Entries are added in the order of their positions, and removed in any order.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reset()

    def reset(self, resume_after: DueEntry | None = None, resume_below: int = 0) -> None:
        """Forget everything, to be filled again from the log.

        :param resume_after: the horizon of an index that was :attr:`is_exhausted`. Entries that are
            due before it and are below ``resume_below`` were delivered, and are not added again.
        """
        self._by_id: dict[int, DueEntry] = {}
        """Pending entries by ID digest, in the order of positions."""
        self._heap: list[DueEntry] = []
        self._discarded: set[DueEntry] = set()
        """Entries that are no longer pending, and still in the heap or given out."""
        self._taken: set[DueEntry] = set()
        """Entries that :meth:`take_due` gave out."""
        self.horizon: DueEntry | None = None
        """The earliest entry that was dropped."""
        self._lowest_dropped: int | None = None
        """The lowest position of the dropped entries."""
        self._resume_after, self._resume_below = resume_after or 0, resume_below
        """Entries below this position that are due before that entry were delivered already."""

    def __len__(self) -> int:
        return len(self._by_id)

    def state(self) -> IndexState:
        """The current content; a copy."""
        return IndexState(dict(self._by_id), self.horizon, self._lowest_dropped)

    def restore(self, state: IndexState) -> None:
        """Replace the content with that of another index."""
        self.reset()
        self._by_id = dict(state.entries)
        self.horizon, self._lowest_dropped = state.horizon, state.lowest_dropped
        if self.horizon is not None:  # an entry that was given out may be due after it
            horizon = self.horizon
            self._drop_entries({each for each in self._by_id.values() if each >= horizon})
        self._heap = list(self._by_id.values())
        heapify(self._heap)
        self._enforce_limit()

    # -- records of the log

    def add(self, id_digest: int, due: int, position: int) -> None:
        """Add an entry; it replaces an earlier one of that ID. An entry that is due after the
        horizon is not added: it is pending in the log, but not known here by its ID.
        """
        replaced = self._by_id.get(id_digest)
        if replaced is not None:
            if log_position(replaced) >= position:
                return
            self._discard(id_digest, replaced)
        entry = due_entry(due, position)
        if position < self._resume_below and entry < self._resume_after:
            return
        if self.horizon is not None and entry >= self.horizon:
            return  # it is due after the horizon
        self._by_id[id_digest] = entry
        heappush(self._heap, entry)
        self._enforce_limit()

    def remove(self, id_digest: int, end: int) -> bool:
        """Apply the mark that ends the entries of an ID before ``end``; returns whether one was
        pending here. The mark also ends an entry that is due after the horizon, when the log is
        read.
        """
        found = self._by_id.get(id_digest)
        if found is None or log_position(found) >= end:
            return False
        self._discard(id_digest, found)
        return True

    def put_back(self, id_digest: int, entry: DueEntry) -> None:
        """Undo the removal of an entry that is pending after all. No record was added meanwhile."""
        if self.horizon is not None and entry >= self.horizon:
            self._drop_entries({entry})
            return
        entries = {**self._by_id, id_digest: entry}.items()
        self._by_id = dict(sorted(entries, key=lambda each: log_position(each[1])))
        if entry in self._discarded:
            self._discarded.remove(entry)  # it is still in the heap
        else:
            heappush(self._heap, entry)
        self._enforce_limit()

    def first_due(self, count: int) -> list[DueEntry]:
        """The entries that are due first, in due order, without those that were given out."""
        return nsmallest(count, (each for each in self._heap if each not in self._discarded))

    def find(self, id_digest: int) -> DueEntry | None:
        """The pending entry of that ID, if there is one before the horizon."""
        return self._by_id.get(id_digest)

    # -- what is due

    @property
    def next_due(self) -> int | None:
        """The due time of the next entry that was not given out, in milliseconds; None: there is
        none before the horizon."""
        self._pop_discarded()
        return due_time(self._heap[0]) if self._heap else None

    @property
    def is_exhausted(self) -> bool:
        """Whether no entry is left here, but more are pending in the log."""
        self._pop_discarded()
        return not self._heap and not self._taken and self.horizon is not None

    def take_due(self, now: int, count: int) -> list[DueEntry]:
        """Give out up to ``count`` entries that are due, the earliest first."""
        taken: list[DueEntry] = []
        while len(taken) < count:
            self._pop_discarded()
            if not self._heap or due_time(self._heap[0]) > now:
                break
            taken.append(heappop(self._heap))
        self._taken.update(taken)
        return taken

    def is_taken(self, entry: DueEntry) -> bool:
        """Whether an entry was given out, and not given back or removed since."""
        return entry in self._taken

    def return_entries(self, entries: Iterable[DueEntry]) -> None:
        """Take entries back that were given out and not delivered."""
        returned = [each for each in entries if each in self._taken]
        self._taken.difference_update(returned)
        # Entries that were dropped meanwhile may be due before these, and must be delivered first.
        horizon = self.horizon
        beyond_horizon = {each for each in returned if horizon is not None and each >= horizon}
        for each in returned:
            if each not in beyond_horizon:
                heappush(self._heap, each)  # one that is discarded is popped later
        if beyond_horizon:
            self._drop_entries(beyond_horizon - self._discarded)
            self._discarded -= beyond_horizon
        self._enforce_limit()

    def remove_delivered(self, id_digest: int, entry: DueEntry) -> None:
        """Remove an entry that was given out and is delivered."""
        self._taken.discard(entry)
        self._discarded.discard(entry)
        if self._by_id.get(id_digest) == entry:
            del self._by_id[id_digest]

    def remove_missing(self, entries: Iterable[DueEntry]) -> None:
        """Remove entries that were given out and are no longer in the log: their IDs have newer
        records, and the log was compacted since."""
        missing = set(entries)
        self._taken -= missing
        self._discarded -= missing
        if missing:
            self._by_id = {id: each for id, each in self._by_id.items() if each not in missing}

    # -- what must be kept

    @property
    def lowest_position(self) -> int | None:
        """The lowest position of a pending entry; None: none is pending."""
        first = next(iter(self._by_id.values()), None)
        known = None if first is None else log_position(first)
        if self._lowest_dropped is None:
            return known
        return self._lowest_dropped if known is None else min(known, self._lowest_dropped)

    # -- inside

    def _discard(self, id_digest: int, entry: DueEntry) -> None:
        del self._by_id[id_digest]
        self._discarded.add(entry)
        if len(self._discarded) > 1_000 and len(self._discarded) * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each not in self._discarded]
            heapify(self._heap)
            self._discarded &= self._taken

    def _pop_discarded(self) -> None:
        heap, discarded = self._heap, self._discarded
        while discarded and heap and heap[0] in discarded:
            discarded.discard(heappop(heap))

    def _enforce_limit(self) -> None:
        if len(self._by_id) > self._limit + max(self._limit // 4, 1):
            self._drop_latest()

    def _drop_entries(self, dropped: Collection[DueEntry]) -> None:
        """Drop pending entries; they will be read again from the log."""
        if not dropped:
            return
        lowest = min(map(log_position, dropped))
        previous = self._lowest_dropped
        self._lowest_dropped = lowest if previous is None else min(lowest, previous)
        self._by_id = {id: each for id, each in self._by_id.items() if each not in dropped}

    def _drop_latest(self) -> None:
        """Drop the entries that are due last."""
        remaining = sorted(each for each in self._heap if each not in self._discarded)
        self._discarded &= self._taken
        dropped = remaining[self._limit :]
        self._heap = remaining[: self._limit]  # sorted, and so a heap
        if not dropped:
            return
        self.horizon = dropped[0]
        self._drop_entries(frozenset(dropped))
