"""What is pending in one partition of a delay topic: due times and positions, in due order; pure.

An entry takes one integer, ``due << 128 | position`` (a position on Redis has 105 bits), which a
heap orders by due time and then by place in the log, and one more integer that stands for its ID.
Payloads stay in the log.

Memory is bounded by forgetting: past ``limit`` entries those that are due last are dropped, and
the earliest of them is the *horizon*. What is due before the horizon is all here. What is due
from then on is found again by reading the log, once everything before it is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush

_SHIFT = 128
_POSITION = (1 << _SHIFT) - 1

Slot = int
"""An entry: when it is due, and where it stands."""


def slot(due: int, position: int) -> Slot:
    """An entry as one integer."""
    return due << _SHIFT | position


def due_of(slot: Slot) -> int:
    """When it is due, in milliseconds."""
    return slot >> _SHIFT


def position_of(slot: Slot) -> int:
    """Where it stands."""
    return slot & _POSITION


class Index:
    """The pending entries of one partition, the nearest ``limit`` of them.

    Entries are added in the order of their positions, and go in any order.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._slots: dict[int, Slot] = {}
        """By what stands for the ID, in the order of positions."""
        self._heap: list[Slot] = []
        self._gone: set[Slot] = set()
        """In the heap still, or given out, and not pending any more."""
        self._out: set[Slot] = set()
        """Given out by :meth:`take`."""
        self.horizon: Slot | None = None
        """The earliest entry that was dropped."""
        self._dropped_from: int | None = None
        """The lowest position of those that were dropped."""
        self._after: Slot = 0
        self._until = 0
        """What stands before this position, and is due before that, is over."""

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: int) -> bool:
        return name in self._slots

    # -- what the log says

    def add(self, name: int, due: int, position: int) -> None:
        """An entry; it replaces an earlier one of that ID."""
        before = self._slots.get(name)
        if before is not None:
            if position_of(before) >= position:
                return
            self._drop(name, before)
        new = slot(due, position)
        if position < self._until and new < self._after:
            return
        if self.horizon is not None and new >= self.horizon:
            return  # it stands behind what was dropped before
        self._slots[name] = new
        heappush(self._heap, new)
        self._bound()

    def remove(self, name: int, before: int) -> bool:
        """The last word about that ID stands at ``before``; whether something was pending."""
        found = self._slots.get(name)
        if found is None or position_of(found) >= before:
            return False
        self._drop(name, found)
        return True

    def find(self, name: int) -> Slot | None:
        """The pending entry of that ID."""
        return self._slots.get(name)

    # -- what is due

    @property
    def next_due(self) -> int | None:
        """When the next entry that was not given out is due, in milliseconds; None: there is
        none before the horizon."""
        self._sweep()
        return due_of(self._heap[0]) if self._heap else None

    @property
    def exhausted(self) -> bool:
        """Nothing is here, but there is more in the log."""
        self._sweep()
        return not self._heap and not self._out and self.horizon is not None

    def take(self, now: int, count: int) -> list[Slot]:
        """Give out up to ``count`` entries that are due, the earliest first."""
        found: list[Slot] = []
        while len(found) < count:
            self._sweep()
            if not self._heap or due_of(self._heap[0]) > now:
                break
            found.append(heappop(self._heap))
        self._out.update(found)
        return found

    def is_out(self, slot: Slot) -> bool:
        """It was given out and did not come back."""
        return slot in self._out

    def put_back(self, slots: Iterable[Slot]) -> None:
        """Those that were given out and not delivered."""
        back = [each for each in slots if each in self._out]
        self._out.difference_update(back)
        # What was dropped meanwhile may be due before them: then they are to come after that.
        late = {each for each in back if self.horizon is not None and each >= self.horizon}
        for each in back:
            if each not in late:
                heappush(self._heap, each)  # if it is gone meanwhile, it is swept away
        if late:
            self._forget(late - self._gone)
            self._gone -= late
        self._bound()

    def done(self, name: int, slot: Slot) -> None:
        """One that was given out is delivered."""
        self._out.discard(slot)
        self._gone.discard(slot)
        if self._slots.get(name) == slot:
            del self._slots[name]

    def vanished(self, slots: Iterable[Slot]) -> None:
        """Those that were given out do not stand in the log any more: something newer was said
        of their IDs, and the log was compacted since."""
        missing = set(slots)
        self._out -= missing
        self._gone -= missing
        if missing:
            self._slots = {name: each for name, each in self._slots.items() if each not in missing}

    # -- what must be kept

    @property
    def lowest(self) -> int | None:
        """No pending entry stands before this position; None: none is pending."""
        first = next(iter(self._slots.values()), None)
        known = None if first is None else position_of(first)
        if self._dropped_from is None:
            return known
        return self._dropped_from if known is None else min(known, self._dropped_from)

    def clear(self, after: Slot | None = None, until: int = 0) -> None:
        """Forget everything, to be filled again from the log.

        :param after: the horizon of an index that was :attr:`exhausted`: what was due before it is
            over, so that it takes no room from what comes next, as far as it stands before
        :param until: this position.
        """
        self.__init__(self._limit)  # type: ignore[misc]
        self._after, self._until = after or 0, until

    # -- inside

    def _drop(self, name: int, slot: Slot) -> None:
        del self._slots[name]
        self._gone.add(slot)
        if len(self._gone) > 1_000 and len(self._gone) * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each not in self._gone]
            heapify(self._heap)
            self._gone &= self._out

    def _sweep(self) -> None:
        heap, gone = self._heap, self._gone
        while gone and heap and heap[0] in gone:
            gone.discard(heappop(heap))

    def _bound(self) -> None:
        if len(self._slots) > self._limit + max(self._limit // 4, 1):
            self._shrink()

    def _forget(self, dropped: Collection[Slot]) -> None:
        """These are pending, and will be read again from the log."""
        if not dropped:
            return
        lowest = min(map(position_of, dropped))
        before = self._dropped_from
        self._dropped_from = lowest if before is None else min(lowest, before)
        self._slots = {name: each for name, each in self._slots.items() if each not in dropped}

    def _shrink(self) -> None:
        """Drop those that are due last."""
        kept = sorted(each for each in self._heap if each not in self._gone)
        self._gone &= self._out
        dropped = kept[self._limit :]
        self._heap = kept[: self._limit]  # sorted, and so a heap
        if not dropped:
            return
        self.horizon = dropped[0]
        self._forget(frozenset(dropped))
