"""Outputs of an exactly-once processor that are not yet stored together with its progress.

An outcome of a message (results, a dead letter, a copy that is tried again later) is an *entry*:
its records, and whether the message is settled by them. What a fast path returns for many messages
is one entry, too (:class:`OutputRun`). Entries are in the order in which the outcomes came, so the
outputs of one key are in the order of its messages. A message whose outcome is an entry gives its
key up at once, so the next of the key can be handled; but it counts as settled, in its partition's
progress and in what is held, only when the entry is stored. If storing fails, the entry is still
here, and is stored with the next ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.log.protocol import Assignment
from streams.message import Record

Outgoing = tuple[str, Record]
"""A topic and what is to be written to it."""

RECORD_BYTES = 250
"""Memory that a record takes beside its value, about."""

SettledRange = tuple[FetchedBatch, int, int]
"""Messages of a batch, from an index to before another."""


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
        self.bytes = _bytes_of(outgoing)

    @property
    def state(self) -> PartitionState:
        """The partition state of the assignment under which the message was polled."""
        state: PartitionState = self.delivery.fetched.state
        return state

    @property
    def offset(self) -> int:
        """The offset of the message."""
        return self.delivery.fetched.batch.offset(self.delivery.index)

    @property
    def settled_range(self) -> SettledRange:
        """The messages that are settled once this is stored, if it settles any."""
        fetched, index = self.delivery.fetched, self.delivery.index
        return fetched, index, index + 1

    @property
    def messages(self) -> int:
        """The number of messages that this is the outcome of."""
        return 1

    def take_first(
        self, limit: int | None, *, at_least_one: bool
    ) -> tuple[OutputEntry | None, bool]:
        """See :meth:`OutputRun.take_first`: all of it, or nothing."""
        if limit is not None and len(self.outgoing) > limit and not at_least_one:
            return None, False
        return self, True

    def single_entries(self) -> Sequence[OutputEntry]:
        """The same, message by message."""
        return (self,)


class OutputRun:
    """The results of consecutive messages of one batch. Storing them settles these messages, and
    those in between for which the handler returned nothing.

    One thread adds results while the run is open; another may take them out meanwhile.
    """

    __slots__ = ("_added", "_removed", "fetched", "rows")

    settles = True

    def __init__(self, fetched: FetchedBatch) -> None:
        self.fetched = fetched
        self.rows: deque[tuple[int, Sequence[Outgoing]]] = deque()
        """The index of each message, and its output records."""
        self._added = 0
        """Total bytes added; written by the adding thread only."""
        self._removed = 0
        """Total bytes taken out; written by the taking thread only."""

    def add(self, index: int, outgoing: Sequence[Outgoing]) -> None:
        """Add the records, at least one, of the next message."""
        self.rows.append((index, outgoing))
        self._added += _bytes_of(outgoing)

    def take_first(self, limit: int | None, *, at_least_one: bool) -> tuple[OutputRun | None, bool]:
        """Take out the first messages, with so many records at most; and whether that is all that
        was there."""
        found = OutputRun(self.fetched)
        rows, count, is_all = self.rows, 0, True
        for _ in range(len(rows)):
            index, outgoing = rows[0]
            count += len(outgoing)
            if limit is not None and count > limit and (found.rows or not at_least_one):
                is_all = False
                break
            found.add(index, outgoing)
            rows.popleft()
        self._removed += found.bytes
        return found if found.rows else None, is_all

    @property
    def bytes(self) -> int:
        """Memory that the run takes, about."""
        return self._added - self._removed

    @property
    def messages(self) -> int:
        """The number of messages whose outcomes it holds."""
        return len(self.rows)

    @property
    def outgoing(self) -> Sequence[Outgoing]:
        """All records."""
        return [record for _, outgoing in self.rows for record in outgoing]

    @property
    def state(self) -> PartitionState:
        """The partition state of the assignment under which its messages were polled."""
        state: PartitionState = self.fetched.state
        return state

    @property
    def settled_range(self) -> SettledRange:
        """The messages that are settled once this is stored."""
        return self.fetched, self.rows[0][0], self.rows[-1][0] + 1

    def single_entries(self) -> Sequence[OutputEntry]:
        """The same, message by message."""
        fetched = self.fetched
        return [
            OutputEntry(Delivery(fetched, index, None, fetched.ids[index]), found, settles=True)
            for index, found in self.rows
        ]


AnyEntry: TypeAlias = "OutputEntry | OutputRun"


def _bytes_of(outgoing: Sequence[Outgoing]) -> int:
    """Memory that these records take, about."""
    size = 0
    for _, record in outgoing:
        size += RECORD_BYTES
        if record.value is not None:
            size += len(record.value)
    return size


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
        self._entries: deque[AnyEntry] = deque()
        self._being_noted: dict[tuple[int, int], OutputEntry] = {}
        """The entries of outcomes that are being noted, by their messages."""
        self._open_run: OutputRun | None = None
        """The last entry, while a handler's thread adds to it without the lock."""
        self._bytes = self._messages = 0
        """Memory that all other entries take, about, and the number of their messages."""
        self.wake: Callable[[], None] | None = None
        """Called when there is something new."""
        self.on_full: Callable[[bool], None] = lambda is_full: None
        """Called when no more can be held, and when there is room again."""
        self._is_full = False

    def __len__(self) -> int:
        run = self._open_run
        return self._messages + (0 if run is None else len(run.rows))

    @property
    def bytes(self) -> int:
        """Memory that all entries take, about."""
        run = self._open_run
        return self._bytes + (0 if run is None else run.bytes)

    def _adjust_totals(self, messages: int, size: int) -> None:
        """So many came or went (the lock is held)."""
        self._messages += messages
        self._bytes += size
        is_full = self._bytes >= self._limit
        if is_full is not self._is_full:
            self._is_full = is_full
            self.on_full(is_full)

    @property
    def is_large(self) -> bool:
        """Whether so much is held that it should be stored before its time."""
        return self.bytes * 4 >= self._limit

    @property
    def has_room(self) -> bool:
        """Whether another message may be handled."""
        return self.bytes < self._limit

    # -- where outcomes are reported

    def append(self, delivery: Delivery, outgoing: Sequence[Outgoing]) -> None:
        """Add what was returned for a message, which is settled by that."""
        entry = OutputEntry(delivery, outgoing, settles=True)
        with self._lock:
            self._entries.append(entry)
            self._adjust_totals(1, entry.bytes)
        if self.wake is not None:
            self.wake()

    def open_run(self, fetched: FetchedBatch) -> OpenRun:
        """Takes what is returned for messages of this batch, one after the other; nothing else is
        added between the first of it and its end."""
        return OpenRun(self, fetched)

    def begin_run(self, fetched: FetchedBatch) -> OutputRun:
        """Open a run, whose results count among the entries as soon as they are added; until
        :meth:`end_run`."""
        run = OutputRun(fetched)
        with self._lock:
            self._entries.append(run)
            self._open_run = run
        return run

    def end_run(self, run: OutputRun) -> None:
        """No more is added to it."""
        with self._lock:
            self._open_run = None
            self._adjust_totals(len(run.rows), run.bytes)
            if not run.rows:  # all were stored: it would keep its batch alive
                self._entries.pop()

    def add(
        self,
        deliveries: Sequence[Delivery],
        outgoing: Sequence[Outgoing],
        delivery_indexes: Sequence[int] | None,
        note_outcome: Callable[[], None],
    ) -> None:
        """Add what is to be written.

        :param delivery_indexes: of which delivery each record is; None: all are of the first.
        :param note_outcome: says what becomes of the deliveries; a delivery with records that it
            settles is settled with them (:meth:`defers`).
        """
        by_delivery: dict[int, list[Outgoing]] = {}
        for at, record in enumerate(outgoing):
            index = 0 if delivery_indexes is None else delivery_indexes[at]
            by_delivery.setdefault(index, []).append(record)
        entries = {at: OutputEntry(deliveries[at], found) for at, found in by_delivery.items()}
        keys = {at: _delivery_key(deliveries[at]) for at in entries}
        with self._lock:
            for at, entry in entries.items():
                self._entries.append(entry)
                self._being_noted[keys[at]] = entry
                self._adjust_totals(1, entry.bytes)
            try:
                note_outcome()
            finally:
                for key in keys.values():
                    del self._being_noted[key]
        if self.wake is not None:
            self.wake()

    def defers(self, delivery: Delivery) -> bool:
        """A delivery is settled: whether that counts only when what was added is stored."""
        entry = self._being_noted.get(_delivery_key(delivery))
        if entry is None:
            return False
        entry.settles = True
        return True

    # -- where they are stored

    def take_entries(
        self, owned: Collection[Assignment], wanted: Collection[Assignment], limit: int
    ) -> tuple[list[AnyEntry], bool]:
        """Take out entries of the partitions that are wanted, in order; and whether those are all.

        :param owned: the entries of other partitions are dropped.
        :param limit: records, at most; of more than one message.
        """
        taken: list[AnyEntry] = []
        left: deque[AnyEntry] = deque()
        room, is_all, messages, size = limit, True, 0, 0
        with self._lock:
            for entry in self._entries:
                assignment = entry.state.assignment
                is_owned, is_open = assignment in owned, entry is self._open_run
                if is_owned and assignment not in wanted:
                    left.append(entry)
                    continue
                found, is_whole = entry.take_first(
                    room if is_owned else None, at_least_one=not taken
                )
                if found is not None and not is_open:
                    messages += found.messages
                    size += found.bytes
                if found is not None and is_owned:
                    taken.append(found)
                    room -= len(found.outgoing)
                if not is_whole:
                    room, is_all = 0, False  # and nothing behind it is taken
                if is_open or not is_whole:
                    left.append(entry)
            self._entries = left
            self._adjust_totals(-messages, -size)
        return taken, is_all

    def put_back(self, entries: Iterable[AnyEntry]) -> None:
        """Put entries back that were taken and not stored, before all others."""
        entries = list(entries)
        with self._lock:
            self._entries.extendleft(reversed(entries))
            self._adjust_totals(
                sum(entry.messages for entry in entries), sum(entry.bytes for entry in entries)
            )


class OpenRun:
    """A run for one thread to add to. It begins with the first message that something came of."""

    __slots__ = ("_fetched", "_outputs", "_run")

    def __init__(self, outputs: PendingOutputs, fetched: FetchedBatch) -> None:
        self._outputs = outputs
        self._fetched = fetched
        self._run: OutputRun | None = None

    def add(self, index: int, outgoing: Sequence[Outgoing]) -> None:
        """Add the records, at least one, of the next message."""
        outputs, run = self._outputs, self._run
        if run is None:
            run = self._run = outputs.begin_run(self._fetched)
        run.add(index, outgoing)
        if outputs.wake is not None:
            outputs.wake()

    def end(self) -> None:
        """Others may add something behind it."""
        run, self._run = self._run, None
        if run is not None:
            self._outputs.end_run(run)


def _delivery_key(delivery: Delivery) -> tuple[int, int]:
    return id(delivery.fetched), delivery.index
