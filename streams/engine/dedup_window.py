"""The dedup window: which identities were settled lately.

There are two sets: new identities go into one, and when it is full the other is forgotten and
they swap. So at least ``size`` identities are remembered and at most twice as many, and nothing
is evicted one by one (``del d[next(iter(d))]`` costs ten times the loop). Sets, because a whole
batch is made one, compared and taken in at a third of what dicts cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet


class DedupWindow:
    """The identities settled in one partition, the last ``size`` at least."""

    __slots__ = ("__weakref__", "new", "old", "process_cap", "size", "wanted_size")

    def __init__(self, size: int) -> None:
        self.size = self.wanted_size = size
        self.process_cap = 2 * size
        """Identities that all windows of the process together may hold."""
        self.new: set[str] = set()
        self.old: set[str] = set()

    def __contains__(self, identity: str) -> bool:
        return identity in self.new or identity in self.old

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def add(self, identity: str) -> None:
        """Remember one identity."""
        self.new.add(identity)
        if len(self.new) >= self.size:
            self.rotate()

    def extend(self, identities: Sequence[str]) -> None:
        """Remember many, oldest first."""
        start = 0
        while start < len(identities):
            # As many as there is room for, so that a large batch keeps to the bound as well.
            stop = start + max(1, self.size - len(self.new))
            self.new.update(identities[start:stop])
            start = stop
            if len(self.new) >= self.size:
                self.rotate()

    def add_batch(self, identities: set[str]) -> None:
        """Remember a whole batch in the form that is cheapest: fresh, and not more than ``size``.

        The set is the window's own from here on.
        """
        if len(self.new) + len(identities) > self.size:
            self.rotate()
        if self.new:
            self.new.update(identities)
        else:
            self.new = identities
        if len(self.new) >= self.size:
            self.rotate()

    def rotate(self) -> None:
        """Forget the older half."""
        self.old, self.new = self.new, set()

    def has_none_of(self, identities: set[str]) -> bool:
        """True where none of these is remembered."""
        return self.new.isdisjoint(identities) and self.old.isdisjoint(identities)


class WindowBudget:
    """Shares a cap on remembered identities evenly between all windows of a process."""

    def __init__(self) -> None:
        self._windows: WeakSet[DedupWindow] = WeakSet()

    def new_window(self, size: int, cap: int) -> DedupWindow:
        """A new window of ``size``, or of its share of ``cap`` if that is less. For one caller at a
        time.

        Existing windows shrink by that when they rotate next, and grow again once a call finds
        that others are gone.
        """
        window = DedupWindow(size)
        window.process_cap = cap
        self._windows.add(window)
        windows = list(self._windows)
        for each in windows:
            # A window holds up to twice its size.
            each.size = max(1, min(each.wanted_size, each.process_cap // (2 * len(windows))))
        return window


PROCESS_BUDGET = WindowBudget()
"""The windows of this process."""
