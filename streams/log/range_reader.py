"""Reading ranges of a topic's partitions, outside any group; blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

from streams.log.event_headers import copied_headers
from streams.log.events import EventLog
from streams.log.protocol import READ_TIMEOUT, Log, Reader
from streams.message import ID, Batch, Headers, Position, Record, headers_without

READ_LIMIT = 1_000
"""Messages read at once from a partition."""

CHUNK_BYTES = 4 << 20
"""Bytes of one chunk, about."""

KEEP_ALIVE_EVERY = 1.0
"""Real seconds between two signs of life of a member that does something else than poll."""

SCAN_SECONDS = 0.1
"""Real seconds that messages are passed over in one go by whoever may be stopped, or tells how far
it has come."""

SKIP_LIMIT = 16
"""Ranges of a partition that are passed over instead of read, at most: a reader is opened behind
each."""


class OffsetRange(NamedTuple):
    """Offsets of a partition, from ``start`` to before ``end``."""

    start: int
    end: int


OffsetRanges = Mapping[int, OffsetRange]
"""By partition, what is to be read of it."""


def is_message_free(log: Log, topic: str, partition: int, start: int, end: int) -> bool:
    """Whether there is no message from one position to before another, and none will come: what
    stood there was deleted, or is the end of a transaction, for example."""
    first, log_end = log.watermarks(topic, partition)
    if end > log_end:
        return False  # it may come yet, or the log has lost what was there
    start = max(start, first)
    if start >= end:
        return True
    with closing(log.reader(topic, partition, start, end)) as reader:
        return reader.read(1) is None


def read_batches(
    log: Log, topic: str, partition: int, start: int, end: int, limit: int = READ_LIMIT
) -> Iterator[Batch]:
    """The batches of a range, up to ``limit`` messages each."""
    if start < end:
        with closing(log.reader(topic, partition, start, end)) as reader:
            while (batch := reader.read(limit)) is not None:
                yield batch


def at_intervals(keep_alive: Callable[[], None]) -> Callable[[], None]:
    """What calls ``keep_alive`` every :data:`KEEP_ALIVE_EVERY` seconds, however often it is called
    itself."""
    alive_at = time.monotonic()

    def call() -> None:
        nonlocal alive_at
        if time.monotonic() - alive_at > KEEP_ALIVE_EVERY:
            keep_alive()
            alive_at = time.monotonic()

    return call


def read_batches_alive(
    log: Log, topic: str, partition: int, start: int, end: int, keep_alive: Callable[[], None]
) -> Iterator[Batch]:
    """The batches of a range, for a member of a group that may take long over them.

    :param keep_alive: of its subscription; called every :data:`KEEP_ALIVE_EVERY` seconds.
    """
    stay_alive = at_intervals(keep_alive)
    for batch in read_batches(log, topic, partition, start, end):
        stay_alive()
        yield batch


class NewestRange(NamedTuple):
    """The newest messages of a range.

    :param start: where they begin.
    :param is_complete: nothing of the range stands before them.
    """

    start: int
    is_complete: bool


def newest_of(
    log: Log, topic: str, partition: int, start: int, end: int, count: int | None
) -> NewestRange:
    """Where the newest ``count`` messages of a range begin; None: all of them are meant."""
    if count is None:
        return NewestRange(start, is_complete=True)
    begin = log.offset_before(topic, partition, end, count)
    if begin <= start:
        return NewestRange(start, is_complete=True)
    previous = log.offset_before(topic, partition, begin, 1)
    # At the first message there is, there is none before it.
    return NewestRange(begin, is_complete=previous >= begin or previous < start)


def read_first(log: Log, topic: str, partition: int, start: int, end: int) -> Batch | None:
    """The first message from an offset on, in a batch of its own; None: there is none before
    ``end``."""
    if start >= end:
        return None
    with closing(log.reader(topic, partition, start, end)) as reader:
        return reader.read(1)


class PartitionCursor:
    """One partition of a reading: the batch at hand, and the next message in it.

    :param convert: what becomes of each batch that is read; it may leave messages out.
    :param read_limit: messages read at once.
    """

    def __init__(
        self,
        reader: Reader,
        convert: Callable[[Batch], Batch] = lambda batch: batch,
        read_limit: int = READ_LIMIT,
    ) -> None:
        self._reader = reader
        self._convert = convert
        self._read_limit = read_limit
        self.is_open = True
        """The end was not reached, and nobody closed it."""
        self.batch: Batch | None = None
        self.index = 0

    def load(self, until: float = math.inf) -> bool:
        """Have a next message at hand; False at the end.

        :param until: False as well where none was found by then (``time.monotonic()``).
        """
        while self.batch is None and self.is_open:
            batch = self._reader.read(self._read_limit)
            if batch is None:
                self.close()
            elif len(batch) and len(converted := self._convert(batch)):
                self.batch, self.index = converted, 0
            elif time.monotonic() >= until:
                break
        return self.batch is not None

    def advance(self) -> bool:
        """Move to the next message; False at the end."""
        self.index += 1
        if self.batch is not None and self.index >= len(self.batch):
            self.batch = None
        return self.load()

    def close(self) -> None:
        """Give the reader back."""
        if self.is_open:
            self.is_open = False
            self._reader.close()


def merge_by_time(cursors: Sequence[PartitionCursor]) -> Iterator[tuple[Batch, int]]:
    """All messages of these partitions, the earliest (log time) next."""
    if len(cursors) == 1:
        cursor = cursors[0]
        while cursor.advance() and cursor.batch is not None:
            yield cursor.batch, cursor.index
        return
    heap = [
        (cursor.batch.time(cursor.index), number)
        for number, cursor in enumerate(cursors)
        if cursor.advance() and cursor.batch is not None
    ]
    heapify(heap)
    while heap:
        _, number = heap[0]
        cursor = cursors[number]
        if cursor.batch is not None:
            yield cursor.batch, cursor.index
        if cursor.advance() and cursor.batch is not None:
            heapreplace(heap, (cursor.batch.time(cursor.index), number))
        else:
            heappop(heap)


@dataclass(frozen=True, slots=True)
class LogRow:
    """One message, as a row of a batch."""

    batch: Batch
    index: int

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.batch.topic, self.batch.partition, self.batch.offset(self.index))

    @property
    def offset(self) -> int:
        """Its offset, as a plain number."""
        return self.batch.offsets[self.index]

    @property
    def id(self) -> str:
        """Its message ID; one without an ID is named by its position."""
        return self.batch.id(self.index)

    @property
    def value(self) -> bytes | None:
        """Its value."""
        return self.batch.values[self.index]

    @property
    def headers(self) -> Headers:
        """Its headers, the ID included."""
        return self.batch.headers(self.index)

    def record(self) -> Record:
        """The same message, to be written elsewhere, under the ID that it goes by here."""
        key = self.batch.keys[self.index]
        headers = copied_headers(headers_without(self.headers, (ID,)))
        return Record(self.value, key, self.id, headers)


class RangeReader:
    """The messages of a range as they stand, partitions merged by the log's time.

    It opens no reader before it is iterated: once, in one thread at a time. Then close it.

    :param key: messages of this key only.
    :param raw: of an event topic, have its records as they stand, those too that are no events.
    :param skip: by partition, ranges of offsets that need not be read, ascending. They are
        passed over where that saves more than it costs, so some of them may come all the same.
    :param read_limit: messages read at once from a partition.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        ranges: OffsetRanges,
        *,
        key: bytes | None = None,
        raw: bool = False,
        skip: Mapping[int, Sequence[tuple[int, int]]] | None = None,
        read_limit: int = READ_LIMIT,
    ) -> None:
        self._key = key
        self._cursors: list[PartitionCursor] = []
        for partition, each in ranges.items():
            remaining = _remaining_ranges(each, (skip or {}).get(partition, ()))
            if remaining:
                open_reader = log.raw_reader if raw and isinstance(log, EventLog) else log.reader
                reader = RangesReader(open_reader, topic, partition, remaining)
                self._cursors.append(PartitionCursor(reader, read_limit=read_limit))
        self._merged = merge_by_time(self._cursors)
        self.scanned = 0
        """Messages looked at."""
        self.is_at_end = False
        """:meth:`read_chunk` has come to the end."""

    def __iter__(self) -> Iterator[LogRow]:
        for batch, index in self._merged:
            self.scanned += 1
            if self._key is None or batch.keys[index] == self._key:
                yield LogRow(batch, index)

    def read_chunk(self, messages: int, size: int = CHUNK_BYTES) -> list[LogRow]:
        """The next messages: so many at most, no more once they have so many bytes, and those that
        were found within :data:`SCAN_SECONDS`. There may be none, and more behind:
        :attr:`is_at_end` says when there are not."""
        found: list[LogRow] = []
        until = time.monotonic() + SCAN_SECONDS
        for batch, index in self._merged:
            self.scanned += 1
            if self._key is None or batch.keys[index] == self._key:
                row = LogRow(batch, index)
                found.append(row)
                size -= len(row.value or b"") + len(batch.keys[index] or b"")
                if size <= 0 or len(found) >= messages:
                    return found
            if time.monotonic() >= until:
                return found
        self.is_at_end = True
        return found

    def close(self) -> None:
        """Close its readers."""
        for cursor in self._cursors:
            cursor.close()


class RangesReader:
    """Reads several ranges of a partition, one after the other (a :class:`Reader`). A range is
    opened when it is read: until then there is nothing to close."""

    def __init__(
        self,
        open_reader: Callable[[str, int, int, int], Reader],
        topic: str,
        partition: int,
        ranges: Sequence[OffsetRange],
    ) -> None:
        self._open_reader = open_reader
        self._topic = topic
        self._partition = partition
        self._ranges_left = list(reversed(ranges))
        self._reader: Reader | None = None

    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> Batch | None:
        """The next messages of the range at hand, or of the next one."""
        while self._ranges_left:
            if self._reader is None:
                range = self._ranges_left[-1]
                self._reader = self._open_reader(self._topic, self._partition, *range)
            batch = self._reader.read(limit, timeout)
            if batch is not None:
                return batch
            self.close()
            self._ranges_left.pop()
        return None

    def close(self) -> None:
        """Close the reader at hand."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _remaining_ranges(
    whole: tuple[int, int], skipped: Sequence[tuple[int, int]]
) -> list[OffsetRange]:
    """What is left of a range without the widest of these others."""
    low, high = whole
    widest = sorted(sorted(skipped, key=lambda each: each[0] - each[1])[:SKIP_LIMIT])
    remaining: list[OffsetRange] = []
    for start, end in widest:
        if low < min(start, high):
            remaining.append(OffsetRange(low, min(start, high)))
        low = max(low, end)
    return [*remaining, OffsetRange(low, high)] if low < high else remaining
