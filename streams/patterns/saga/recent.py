"""The sagas whose last entry is among the newest of their partition, by ID.

Whoever asks for one saga by its ID would else read its partition's journal from the beginning. So
what was asked for once is followed: :meth:`Recent.follow` reads the newest entries of a partition
the first time, and afterwards what was written since. What is kept of a saga is a number and an
offset, of no more sagas than have an entry among the last ``keep`` that count.

``keep`` is at least what deduplication can remember. So a saga that is not found here is unknown to
deduplication too: a second start of it runs it again, as the promise says.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from streams.message import Position
from streams.patterns.saga.entry import Entry
from streams.patterns.saga.journal import NEWEST, Journal

__all__ = ["Recent", "Seen"]


class Seen(NamedTuple):
    """The last entry of a saga.

    :param n: its number.
    :param position: where it stands.
    :param ended: nobody goes on with the saga by himself.
    :param over: nothing is left to be done, so no entry follows.
    """

    n: int
    position: Position
    ended: bool
    over: bool


class _Part:
    """One partition, as far as it was read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.end: int | None = None
        """Everything before this offset was read; None before the first time."""
        self.count = 0
        """Entries that counted so far."""
        self.sagas: dict[str, tuple[int, Seen]] = {}
        """By ID, in the order in which they moved: what :attr:`count` was then, the last entry."""

    def take(self, entry: Entry, position: Position, keep: int) -> None:
        """The next entry. The first of a number counts, what was written too late does not."""
        known = self.sagas.get(entry.saga)
        if known is not None and entry.n <= known[1].n:
            return
        self.count += 1
        self.sagas.pop(entry.saga, None)
        seen = Seen(entry.n, position, entry.ended, entry.over)
        self.sagas[entry.saga] = (self.count, seen)
        while self.sagas[oldest := next(iter(self.sagas))][0] <= self.count - keep:
            del self.sagas[oldest]


class Recent:
    """Sagas of one name by ID; usable from any thread.

    :param keep: how many of the last entries of a partition are looked at, at least.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._parts: dict[int, _Part] = {}

    def find(self, id: str) -> Seen | None:
        """The last entry of a saga, as far as was read; does not block."""
        for part in list(self._parts.values()):
            known = part.sagas.get(id)
            if known is not None:
                return known[1]
        return None

    def follow(self, journal: Journal, partition: int) -> None:
        """Read what a partition holds by now; blocks.

        :raises LogError: the log cannot be read.
        """
        part = self._parts.setdefault(partition, _Part())
        with part.lock:
            first, end = journal.log.bounds(journal.topic, partition)
            if part.end is None or end < part.end:  # the topic was made anew
                self._begin(part, journal, partition, first, end)
                return
            for entry, position in journal.scan(partition, max(first, part.end), end):
                part.take(entry, position, self._keep)
            part.end = end

    def _begin(self, part: _Part, journal: Journal, partition: int, first: int, end: int) -> None:
        """Read the newest entries: further back where many of them do not count."""
        back = self._keep + self._keep // 4
        while True:
            start = max(first, journal.log.back(journal.topic, partition, end, back))
            part.count, part.sagas = 0, {}
            for entry, position in journal.scan(partition, start, end):
                part.take(entry, position, self._keep)
            whole = start <= first or journal.log.back(journal.topic, partition, start, 1) >= start
            if part.count >= self._keep or whole or back >= NEWEST:
                part.end = end
                return
            back = min(NEWEST, 4 * back)
