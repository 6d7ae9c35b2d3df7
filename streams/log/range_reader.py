"""Reads ranges of a topic's partitions, outside any group; blocks."""

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
"""About how many bytes one chunk has."""

KEEP_ALIVE_EVERY = 1.0
"""Real seconds between two calls of ``keep_alive`` for a member that does other work than
polling."""

SCAN_SECONDS = 0.1
"""Real seconds after which a reading that skips messages returns, to be stopped or to report its
progress."""

SKIP_LIMIT = 16
"""Ranges of a partition that are skipped instead of read, at most: a reader is opened behind
each."""


class OffsetRange(NamedTuple):
    """Offsets of a partition, from ``start`` up to, not including, ``end``."""

    start: int
    end: int


OffsetRanges = Mapping[int, OffsetRange]
"""The range to read of each partition."""


def is_message_free(log: Log, topic: str, partition: int, start: int, end: int) -> bool:
    """Whether there is no message from one position up to, not including, another, and none will
    come: for example, the offsets are those of deleted messages or of a transaction's markers."""
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
    """A function that calls ``keep_alive`` every :data:`KEEP_ALIVE_EVERY` seconds, however often it
    is called itself."""
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

    :param keep_alive: the method of the member's subscription; called every
        :data:`KEEP_ALIVE_EVERY` seconds.
    """
    stay_alive = at_intervals(keep_alive)
    for batch in read_batches(log, topic, partition, start, end):
        stay_alive()
        yield batch


class NewestRange(NamedTuple):
    """The newest messages of a range.

    :param start: the position of the first of them.
    :param is_complete: the range has no messages before them.
    """

    start: int
    is_complete: bool


def newest_of(
    log: Log, topic: str, partition: int, start: int, end: int, count: int | None
) -> NewestRange:
    """The newest ``count`` messages of a range; None: all of them."""
    if count is None:
        return NewestRange(start, is_complete=True)
    begin = log.offset_before(topic, partition, end, count)
    if begin <= start:
        return NewestRange(start, is_complete=True)
    previous = log.offset_before(topic, partition, begin, 1)
    # The first existing message has none before it.
    return NewestRange(begin, is_complete=previous >= begin or previous < start)


def read_first(log: Log, topic: str, partition: int, start: int, end: int) -> Batch | None:
    """The first message from an offset on, as a batch of one; None: there is none before
    ``end``."""
    if start >= end:
        return None
    with closing(log.reader(topic, partition, start, end)) as reader:
        return reader.read(1)


class PartitionCursor:
    """One partition of a reading: the current batch, and the next message in it.

    :param convert: converts each batch that is read; it may leave messages out.
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
        """Whether the end was not reached, and the cursor not closed."""
        self.batch: Batch | None = None
        self.index = 0

    def load(self, until: float = math.inf) -> bool:
        """Load the next message; False at the end.

        :param until: also return False if no message was found by then (``time.monotonic()``).
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
        """Close the reader."""
        if self.is_open:
            self.is_open = False
            self._reader.close()


def merge_by_time(cursors: Sequence[PartitionCursor]) -> Iterator[tuple[Batch, int]]:
    """All messages of these partitions, in the order of their log times."""
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
        """The message's position."""
        return Position(self.batch.topic, self.batch.partition, self.batch.offset(self.index))

    @property
    def offset(self) -> int:
        """The message's offset, as a plain number."""
        return self.batch.offsets[self.index]

    @property
    def id(self) -> str:
        """The message ID; a message without one is named by its position."""
        return self.batch.id(self.index)

    @property
    def value(self) -> bytes | None:
        """The message's value."""
        return self.batch.values[self.index]

    @property
    def headers(self) -> Headers:
        """The message's headers, including the ID."""
        return self.batch.headers(self.index)

    def record(self) -> Record:
        """The message as a record to be written elsewhere, with the ID that :attr:`id` gives."""
        key = self.batch.keys[self.index]
        headers = copied_headers(headers_without(self.headers, (ID,)))
        return Record(self.value, key, self.id, headers)


class RangeReader:
    """The messages of a range, with the partitions merged by log time.

    It opens no reader before it is iterated, which may be done once, in one thread at a time. Then
    close it.

    :param key: only messages with this key.
    :param raw: on an event topic, read all records, including those that are not events.
    :param skip: by partition, ranges of offsets that need not be read, ascending. They are skipped
        where that saves more than it costs, so some of their messages may be returned all the same.
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
        """The number of messages read."""
        self.is_at_end = False
        """Whether :meth:`read_chunk` has reached the end."""

    def __iter__(self) -> Iterator[LogRow]:
        for batch, index in self._merged:
            self.scanned += 1
            if self._key is None or batch.keys[index] == self._key:
                yield LogRow(batch, index)

    def read_chunk(self, messages: int, size: int = CHUNK_BYTES) -> list[LogRow]:
        """The next messages, bounded by number, by bytes, and by :data:`SCAN_SECONDS` of reading. A
        chunk may be empty although more messages follow: :attr:`is_at_end` says when none do."""
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
        """Close the readers."""
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
        """The next messages of the current range, or of the next one."""
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
        """Close the current reader."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _remaining_ranges(
    whole: tuple[int, int], skipped: Sequence[tuple[int, int]]
) -> list[OffsetRange]:
    """The parts of a range that remain without the widest of the skipped ranges."""
    low, high = whole
    widest = sorted(sorted(skipped, key=lambda each: each[0] - each[1])[:SKIP_LIMIT])
    remaining: list[OffsetRange] = []
    for start, end in widest:
        if low < min(start, high):
            remaining.append(OffsetRange(low, min(start, high)))
        low = max(low, end)
    return [*remaining, OffsetRange(low, high)] if low < high else remaining
