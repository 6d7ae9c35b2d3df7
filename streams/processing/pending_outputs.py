"""What an exactly-once processor has to publish, until it is stored together with its progress.

An outcome of a message (results, a dead letter, a copy that is tried again later) is an *entry*:
its records, and whether the message is settled by them. Entries are in the order in which the
outcomes came, so the outputs of one key are in the order of its messages. A message whose outcome
is an entry gives its key up at once, so the next of the key can be handled; but it counts as
settled, in its partition's progress and in what is held, only when the entry is stored. If storing
fails, the entry is still here, and is stored with the next ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from streams.engine.dispatcher import Delivery
from streams.engine.progress import FetchedBatch
from streams.log.protocol import Assignment
from streams.message import Record

Outgoing = tuple[str, Record]
"""A topic and what is to be written to it."""

RECORD_BYTES = 250
"""What a record takes in memory beside its value, about."""


class OutputEntry:
    """The outcome of one message, or a note about it, that is not stored yet."""

    __slots__ = ("bytes", "delivery", "outgoing", "settles")

    def __init__(
        self, delivery: Delivery, outgoing: Sequence[Outgoing], *, settles: bool = False
    ) -> None:
        self.delivery = delivery
        self.outgoing = outgoing
        self.settles = settles
        """The message is settled once this is stored."""
        size = 0
        for _, record in outgoing:
            size += RECORD_BYTES
            if record.value is not None:
                size += len(record.value)
        self.bytes = size

    @property
    def assignment(self) -> Assignment:
        """Under which its message was polled."""
        assignment: Assignment = self.delivery.fetched.state.assignment
        return assignment

    @property
    def offset(self) -> int:
        """Of its message."""
        return self.delivery.fetched.batch.offset(self.delivery.index)

    @property
    def settled(self) -> tuple[FetchedBatch, int]:
        """Which byte says that its message is settled."""
        return self.delivery.fetched, self.delivery.index


class PendingOutputs:
    """The entries of one processor (any thread).

    :param limit: bytes from which on no further message is handled until some are stored.
    :param count_stored: called with how many records were stored.
    """

    def __init__(self, limit: int, count_stored: Callable[[int], None]) -> None:
        self._limit = limit
        self.count_stored = count_stored
        self._lock = threading.RLock()
        """Held while an outcome is noted: nobody sees its records without its message's state."""
        self._entries: deque[OutputEntry] = deque()
        self._being_noted: dict[tuple[int, int], OutputEntry] = {}
        """The entries of outcomes that are being noted, by their messages."""
        self.bytes = 0
        """What all entries take in memory, about."""
        self.wake: Callable[[], None] | None = None
        """Called when there is something new."""
        self.on_full: Callable[[bool], None] = lambda is_full: None
        """Called when no more can be held, and when there is room again."""
        self._is_full = False

    def __len__(self) -> int:
        return len(self._entries)

    def _count_bytes(self, added: int) -> None:
        """So many bytes came or went (the lock is held)."""
        self.bytes += added
        is_full = self.bytes >= self._limit
        if is_full is not self._is_full:
            self._is_full = is_full
            self.on_full(is_full)

    @property
    def is_large(self) -> bool:
        """Whether so much is held that it should be stored before its time."""
        return self.bytes * 4 >= self._limit

    # -- where outcomes are reported

    def append(self, delivery: Delivery, outgoing: Sequence[Outgoing]) -> None:
        """Add what was returned for a message, which is settled by that."""
        entry = OutputEntry(delivery, outgoing, settles=True)
        with self._lock:
            self._entries.append(entry)
            self._count_bytes(entry.bytes)
        if self.wake is not None:
            self.wake()

    def add(
        self,
        deliveries: Sequence[Delivery],
        outgoing: Sequence[Outgoing],
        owners: Sequence[int] | None,
        note_outcome: Callable[[], None],
    ) -> None:
        """Add what is to be written.

        :param owners: of which delivery each record is, by index; None: all are of the first.
        :param note_outcome: says what becomes of the deliveries; a delivery with records that it
            settles is settled with them (:meth:`defers`).
        """
        by_owner: dict[int, list[Outgoing]] = {}
        for at, record in enumerate(outgoing):
            by_owner.setdefault(0 if owners is None else owners[at], []).append(record)
        entries = {owner: OutputEntry(deliveries[owner], by_owner[owner]) for owner in by_owner}
        keys = {owner: _key(deliveries[owner]) for owner in entries}
        with self._lock:
            for owner, entry in entries.items():
                self._entries.append(entry)
                self._being_noted[keys[owner]] = entry
                self._count_bytes(entry.bytes)
            try:
                note_outcome()
            finally:
                for key in keys.values():
                    del self._being_noted[key]
        if self.wake is not None:
            self.wake()

    def defers(self, delivery: Delivery) -> bool:
        """A delivery is settled: whether that counts only when what was added is stored."""
        entry = self._being_noted.get(_key(delivery))
        if entry is None:
            return False
        entry.settles = True
        return True

    # -- where they are stored

    def take(
        self, owned: Collection[Assignment], wanted: Collection[Assignment], limit: int
    ) -> tuple[list[OutputEntry], bool]:
        """Take out entries of the partitions that are wanted, in order; and whether those are all.

        :param owned: the entries of other partitions are dropped.
        :param limit: records, at most; of more than one entry.
        """
        taken: list[OutputEntry] = []
        left: deque[OutputEntry] = deque()
        count, is_all, gone = 0, True, 0
        with self._lock:
            for entry in self._entries:
                if entry.assignment not in owned:
                    gone += entry.bytes
                elif entry.assignment not in wanted:
                    left.append(entry)
                elif taken and count + len(entry.outgoing) > limit:
                    left.append(entry)
                    count, is_all = limit, False  # none behind it, either
                else:
                    taken.append(entry)
                    count += len(entry.outgoing)
                    gone += entry.bytes
            self._entries = left
            self._count_bytes(-gone)
        return taken, is_all

    def put_back(self, entries: Iterable[OutputEntry]) -> None:
        """Put entries back that were taken and not stored, before all others."""
        entries = list(entries)
        with self._lock:
            self._entries.extendleft(reversed(entries))
            self._count_bytes(sum(entry.bytes for entry in entries))


def _key(delivery: Delivery) -> tuple[int, int]:
    return id(delivery.fetched), delivery.index
