"""A range of a topic as a subscription, so that a replay runs on the same poller, executors and
engine as a processor, which provide order per key, concurrency, retries, batches, dedup and bounded
memory.

It belongs to no group: it owns every partition of its range from its first poll on. Commits are
only remembered, as the positions from which another replay would go on.

Messages of several partitions come in the order of the log's time. If only one handler runs at a
time, that order is exact, so a message follows all older ones, whatever their partition; otherwise
slices of some hundred messages are taken in turn, since order matters only within a key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heapreplace

from typing_extensions import override

from streams.engine.progress import encode_progress
from streams.log.protocol import Assignment, Commit, Committed, Log, Reader
from streams.log.range_reader import (
    READ_LIMIT,
    SCAN_SECONDS,
    OffsetRange,
    OffsetRanges,
    PartitionCursor,
    RangesReader,
)
from streams.message import Batch
from streams.replay.groupless import GrouplessSubscription
from streams.replay.token_bucket import TokenBucket

MERGE_SLICE = 250
"""Messages taken from one partition before the next one, if the order need not be exact."""

END_RECHECK = 0.005
"""Seconds between checks whether every message is settled, once all were given out."""


class RangeSubscription(GrouplessSubscription["_PartitionRange"]):
    """The subscription. Polled by one thread at a time.

    :param key: give out messages of this key only.
    :param exact: merge partitions message by message.
    :param on_all_read: called repeatedly, once every message was given out.
    :param generation: distinguishes this replay from any other, like the generation of a group.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        ranges: OffsetRanges,
        *,
        key: bytes | None,
        exact: bool,
        rate_limit: TokenBucket,
        on_all_read: Callable[[], None],
        generation: int,
    ) -> None:
        self._rate_limit = rate_limit
        self._exact = exact
        self._on_all_read = on_all_read
        self._wake = threading.Event()
        self.positions = {partition: low for partition, (low, _) in ranges.items()}
        """By partition, the position from which to go on: every message before it was handled or
        skipped."""
        self.read = 0
        """Messages given out."""
        self.scanned = 0
        """Messages scanned, those of other keys included."""
        self._key = key
        partitions = [
            _PartitionRange(
                Assignment(topic, partition, 0, _begun_at(low, generation)),
                RangesReader(log.reader, topic, partition, [OffsetRange(low, high)]),
                self._of_key,
            )
            for partition, (low, high) in ranges.items()
            if low < high
        ]
        super().__init__("a replay", "reset the group instead", partitions)
        self._is_searching = False
        """Whether messages of other keys were skipped, and none of this key was found yet."""
        self._heap: list[tuple[float, int, _PartitionRange]] | None = None
        """Open partitions with a message at hand, the earliest first; None: to be built."""

    def _of_key(self, batch: Batch) -> Batch:
        """The messages of a batch that have the wanted key."""
        self.scanned += len(batch)
        if self._key is None:
            return batch
        return _select_rows(batch, [row for row, key in enumerate(batch.keys) if key == self._key])

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        """The next messages of the range; empty at the end of the range, or while messages of the
        wanted key are searched for."""
        self._assign()
        available = self._rate_limit.available(min(limit, READ_LIMIT))
        if available <= 0:
            self._wait(min(timeout, self._rate_limit.seconds_to_next()))
            return ()
        batches = self._merge_next(available)
        if batches:
            taken = sum(map(len, batches))
            self._rate_limit.consume(taken)
            self.read += taken
        elif not self._is_searching:
            self._wait(min(timeout, END_RECHECK))
            if not any(each.is_open for each in self._partitions):
                self._on_all_read()
        return batches

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._wake.wait(seconds)
        self._wake.clear()

    def _merge_next(self, room: int) -> list[Batch]:
        self._is_searching = False
        if self._heap is None:
            until = time.monotonic() + SCAN_SECONDS
            unpaused = [
                (number, each)
                for number, each in enumerate(self._partitions)
                if each.assignment.partition not in self._paused
            ]
            heap = [(each.next_time, number, each) for number, each in unpaused if each.load(until)]
            if any(each.is_open and each.batch is None for _, each in unpaused):
                self._is_searching = True
                return []
            heapify(heap)
            self._heap = heap
        heap = self._heap
        batches: list[Batch] = []
        while room > 0 and heap:
            _, number, partition = heap[0]
            if len(heap) == 1:
                batch = partition.take(room)
            elif self._exact:
                other = min(heap[1:3])
                # Of two messages with the same time, that of the lower partition comes first.
                batch = partition.take(room, other[0], including=number < other[1])
            else:
                batch = partition.take(min(room, MERGE_SLICE))
            batches.append(batch)
            room -= len(batch)
            if partition.batch is None:
                # Give out the messages already taken before reading more, which may fail.
                self._heap = None
                break
            heapreplace(heap, (partition.next_time, number, partition))
        return batches

    @override
    def commit(self, commits: Sequence[Commit]) -> None:
        """Remember the positions from which to go on."""
        for commit in commits:
            self.positions[commit.assignment.partition] = commit.position

    @override
    def pause(self, assignments: Iterable[Assignment]) -> None:
        super().pause(assignments)
        self._heap = None

    @override
    def resume(self, assignments: Iterable[Assignment]) -> None:
        super().resume(assignments)
        self._heap = None

    @override
    def wakeup(self) -> None:
        self._wake.set()


def _begun_at(position: int, generation: int) -> Committed:
    progress = encode_progress(position, position, (), generation=generation).progress
    return Committed(position, progress)


class _PartitionRange(PartitionCursor):
    """One partition of the range."""

    def __init__(
        self, assignment: Assignment, reader: Reader, convert: Callable[[Batch], Batch]
    ) -> None:
        super().__init__(reader, convert)
        self.assignment = assignment

    @property
    def next_time(self) -> float:
        """The log's time of the next message."""
        return 0.0 if self.batch is None else self.batch.time(self.index)

    def take(self, limit: int, before: float | None = None, *, including: bool = False) -> Batch:
        """The next message, and those after it that the log appended before a time."""
        batch, start = self.batch, self.index
        if batch is None:
            raise ValueError("nothing is loaded")
        end = min(len(batch), start + limit)
        if before is not None:
            stop = start + 1
            while stop < end:
                time = batch.time(stop)
                if time > before or (time == before and not including):
                    break
                stop += 1
            end = stop
        self.index = end
        if end == len(batch):
            self.batch = None
        taken = _select_rows(batch, range(start, end))
        taken.assignment = self.assignment
        return taken


def _select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch as a new batch; the batch itself if they are all of it."""
    if len(rows) == len(batch):
        return batch
    ids, unreadable = batch.ids, batch.unreadable
    return Batch(
        batch.topic,
        batch.partition,
        [batch.offset(row) for row in rows],
        [batch.keys[row] for row in rows],
        [batch.values[row] for row in rows],
        [ids[row] for row in rows],
        [batch.headers(row) for row in rows],
        [batch.time(row) for row in rows],
        unreadable={index: unreadable[row] for index, row in enumerate(rows) if row in unreadable}
        if unreadable
        else unreadable,
    )
