"""Reads a range of a topic again, outside any group: no position moves, no consumer is disturbed.

A :class:`TopicReader` is iterable with ``for`` and ``async for``. Its end is fixed when it is made,
and it ends by position, never by counting messages, so gaps (compaction, transaction markers) do
no harm. Order is the log's within a partition; partitions are merged by log time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, Self, TypeVar

from stream_codecs import DecodeError
from streams.cancellation import run_in_thread
from streams.connection import Connection
from streams.decoding import Source
from streams.errors import ConfigError, InvalidValue, NotFound
from streams.log.protocol import Log
from streams.log.range_reader import (
    READ_LIMIT,
    OffsetRange,
    PartitionCursor,
    RangesReader,
    merge_by_time,
)
from streams.message import Message, Position, make_message, numbered_message
from streams.processing.job import SeveralValues, Skip
from streams.text import get_logger

T = TypeVar("T")

logger = get_logger("streams")

OffsetSpec = Literal["earliest", "latest"] | datetime | timedelta | int | str | Position
"""A place in a topic: the beginning, the current end, a time (the log's), a time span before now,
an offset of one partition, an offset as the log writes it (``1700000000000-0`` on Redis), a
position (in its own partition) or its text, or, as a negative int, that many messages before the
end."""

OFFSET_SPEC_FORMS = (
    "'earliest', 'latest', a datetime, a timedelta, an offset, a position such as orders/0/17, or "
    "-N for N before the end"
)


def resolve_offset(
    log: Log, topic: str, partition: int, spec: OffsetSpec, *, option: str, now: float
) -> int:
    """The offset of ``spec`` in one partition.

    :raises InvalidValue: it has none there.
    """
    if isinstance(spec, bool) or not isinstance(spec, (str, int, datetime, timedelta, Position)):
        raise InvalidValue(f"{option}={spec!r} is not a position in a topic: {OFFSET_SPEC_FORMS}")
    first, end = log.watermarks(topic, partition)
    if isinstance(spec, Position):
        return spec.offset
    if isinstance(spec, timedelta):
        return log.offset_for_time(topic, partition, now - spec.total_seconds())
    if isinstance(spec, datetime):
        if spec.tzinfo is None:
            advice = "say datetime(..., tzinfo=timezone.utc)"
            raise InvalidValue(f"{option}={spec!r} has no time zone: {advice}")
        return log.offset_for_time(topic, partition, spec.timestamp())
    if isinstance(spec, int):
        return log.offset_before(topic, partition, end, -spec) if spec < 0 else spec
    if spec == "earliest":
        return first
    if spec == "latest":
        return end
    if "/" in spec:  # resolve_partition has checked the partition
        spec = spec.rpartition("/")[2]
    try:
        return log.parse_offset(spec)
    except ConfigError as error:
        raise InvalidValue(str(error)) from None


def resolve_ranges(
    log: Log,
    topic: str,
    start: OffsetSpec | Mapping[int, OffsetSpec],
    end: OffsetSpec,
    *,
    partition: int | None = None,
    now: float,
) -> dict[int, OffsetRange]:
    """By partition, the first offset, and the offset before which reading ends.

    :param start: a mapping gives each partition its own start, and no other partition is read.
    :raises NotFound: there is no such topic or partition.
    :raises InvalidValue: start or end mean nothing here.
    """
    count = log.describe_topic(topic).partitions
    starts: dict[int, OffsetSpec]
    if isinstance(start, Mapping):
        if partition is not None:
            raise ConfigError("start names its partitions already: leave partition out")
        starts = dict(start)
        single_partition = next(iter(starts)) if len(starts) == 1 else None
        resolve_partition(topic, {"end": end}, single_partition, count)
    else:
        partition = resolve_partition(topic, {"start": start, "end": end}, partition, count)
        starts = dict.fromkeys(range(count) if partition is None else (partition,), start)
    found: dict[int, OffsetRange] = {}
    for number, spec in starts.items():
        if not isinstance(number, int):
            raise InvalidValue(
                f"start={{{number!r}: ...}}: give a position for each partition number"
            )
        if not 0 <= number < count:
            raise NotFound(f"{topic} has partitions 0 to {count - 1}, not {number}")
        resolve_partition(topic, {"start": spec}, number, count)
        log_start, log_end = log.watermarks(topic, number)
        start_offset = resolve_offset(log, topic, number, spec, option="start", now=now)
        end_offset = resolve_offset(log, topic, number, end, option="end", now=now)
        # Messages after the current end are not part of the range, even if an offset says so.
        found[number] = OffsetRange(max(start_offset, log_start), min(end_offset, log_end))
    return found


def resolve_partition(
    topic: str, specs: Mapping[str, OffsetSpec], partition: int | None, count: int
) -> int | None:
    """The partition to read; None: all of them. An offset belongs to one partition.

    :raises InvalidValue: a value is no place in the topic, an offset lacks a partition, or two
        partitions are named.
    """
    for option, spec in specs.items():
        if isinstance(spec, str) and "/" in spec:
            spec = Position.parse(spec)
        if isinstance(spec, Position):
            if spec.topic != topic or partition not in (None, spec.partition):
                raise InvalidValue(f"{option}={spec}: a position of another partition")
            partition = spec.partition
    for option, spec in specs.items():
        if isinstance(spec, str) and "/" in spec:
            continue
        absolute = isinstance(spec, str) and spec not in ("earliest", "latest")
        if absolute and not str(spec)[:1].isdigit():
            raise InvalidValue(
                f"{option}={spec!r} is not a position in a topic: {OFFSET_SPEC_FORMS}"
            )
        if isinstance(spec, int) and not isinstance(spec, bool):
            absolute = spec >= 0
        if absolute and partition is None and count > 1:
            problem = "is an offset of one partition: say which (partition=...)"
            raise InvalidValue(f"{option}={spec!r} {problem}")
    return partition


class TopicReader(Generic[T]):
    """Reads a range of a topic once. Use it with ``with`` if you may stop early."""

    def __init__(
        self,
        connection: Connection,
        topic: Source[T],
        start: OffsetSpec = "earliest",
        end: OffsetSpec = "latest",
        *,
        partition: int | None = None,
        key: bytes | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> None:
        """:raises NotRunning: the app is not connected.
        :raises NotFound: there is no such topic or partition.
        :raises InvalidValue: start or end mean nothing here.
        """
        if errors not in ("raise", "skip"):
            raise ConfigError(f"errors={errors!r}: 'raise' or 'skip'")
        log = connection.log
        self.topic = topic.name
        self.skipped = 0
        """Messages skipped because they cannot be decoded (``errors="skip"``)."""
        self._decoder = topic.decoding
        self._key = key
        self._skip_errors = errors == "skip"
        now = connection.clock.time()
        self.ranges = resolve_ranges(log, topic.name, start, end, partition=partition, now=now)
        """By partition, the first offset, and the offset before which reading ends."""
        self._cursors = [
            PartitionCursor(
                RangesReader(log.reader, topic.name, number, [each]), self._decoder.unwrap
            )
            for number, each in self.ranges.items()
            if each.start < each.end
        ]
        self._is_closing = False
        self._messages = self._iterate()
        self._read_lock = threading.Lock()
        """Held while a thread reads ahead for ``async for``, which may be cancelled meanwhile."""

    def close(self) -> None:
        """Release the reader's resources; iteration ends at once afterwards."""
        self._is_closing = True  # a thread that searches for a key ends soon
        with self._read_lock:
            for cursor in self._cursors:
                cursor.close()
            self._cursors = []
            self._messages.close()

    # -- iteration

    def __iter__(self) -> Iterator[Message[T]]:
        return self._messages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Message[T]]:
        while True:
            chunk = await asyncio.to_thread(self._read_chunk)
            for item in chunk:
                if isinstance(item, BaseException):
                    raise item
                yield item
            if len(chunk) < READ_LIMIT:
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await run_in_thread(self.close)  # the log may be closed afterwards

    def _read_chunk(self) -> list[Message[T] | BaseException]:
        """The messages of the next read in a thread; an error takes the place where it happened."""
        chunk: list[Message[T] | BaseException] = []
        with self._read_lock:
            try:
                for message in self._messages:
                    chunk.append(message)
                    if len(chunk) == READ_LIMIT:
                        break
            except Exception as error:
                chunk.append(error)
        return chunk

    def _iterate(self) -> Generator[Message[T], None, None]:
        try:
            for batch, index in merge_by_time(self._cursors):
                if self._is_closing:
                    return
                if self._key is not None and batch.keys[index] != self._key:
                    continue
                try:
                    value: Any = self._decoder.decode_one(batch, index)
                except Skip:
                    continue
                except DecodeError as error:
                    where = f"{batch.topic}/{batch.partition}/{batch.offset(index)}"
                    if not self._skip_errors:
                        error.add_note(f"at {where}; errors='skip' reads on")
                        raise
                    self.skipped += 1
                    logger.warning("reading %s: %s", where, error)
                    continue
                message = make_message(value, batch, index, 1)
                if type(value) is not SeveralValues:
                    yield message
                    continue
                for number, each in enumerate(value.values):
                    yield numbered_message(message, each, number)
        finally:
            for cursor in self._cursors:
                cursor.close()
