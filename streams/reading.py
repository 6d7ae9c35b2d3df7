"""Reading a range of a topic again, outside any group: no position moves, nobody is disturbed.

A :class:`Reading` is iterable with ``for`` and ``async for``. Its end is fixed when it is made,
and it ends by position, never by counting messages, so gaps (compaction, transaction markers) do
no harm. Order is the log's within a partition; partitions are merged by the log's time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from datetime import datetime, timedelta
from heapq import heapify, heappop, heapreplace
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

from stream_codecs import DecodeError
from streams.errors import ConfigError, InvalidValue, NotFound
from streams.log.protocol import Log, Reader
from streams.message import Batch, Message, Position, deliver
from streams.runners.job import Skip
from streams.shielding import in_thread
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.topic import Source

T = TypeVar("T")

logger = get_logger("streams")

When = Literal["earliest", "latest"] | datetime | timedelta | int | str | Position
"""A place in a topic: the beginning, the end (as it is now), a time (the log's), that long ago, an
offset of one partition, an offset as the log writes it (``1700000000000-0`` on Redis), a position
(its partition is meant) or its text, or, as a negative int, that many messages before the end."""

PLACES = (
    "'earliest', 'latest', a datetime, a timedelta, an offset, a position such as orders/0/17, or "
    "-N for N before the end"
)

CHUNK = 1_000
"""Messages read at once from a partition."""


def resolve(log: Log, topic: str, partition: int, when: When, *, option: str, now: float) -> int:
    """The offset that ``when`` means in one partition.

    :raises InvalidValue: it means none.
    """
    if isinstance(when, bool) or not isinstance(when, (str, int, datetime, timedelta, Position)):
        raise InvalidValue(f"{option}={when!r} is no place in a topic: {PLACES}")
    first, end = log.bounds(topic, partition)
    if isinstance(when, Position):
        return when.offset
    if isinstance(when, timedelta):
        return log.at(topic, partition, now - when.total_seconds())
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise InvalidValue(
                f"{option}={when!r} has no time zone: say datetime(..., tzinfo=timezone.utc)"
            )
        return log.at(topic, partition, when.timestamp())
    if isinstance(when, int):
        return log.back(topic, partition, end, -when) if when < 0 else when
    if when == "earliest":
        return first
    if when == "latest":
        return end
    if "/" in when:  # whose partition is meant was looked at before
        when = when.rpartition("/")[2]
    try:
        return log.parse(when)
    except ConfigError as error:
        raise InvalidValue(str(error)) from None


def ranges(
    log: Log,
    topic: str,
    start: When | Mapping[int, When],
    end: When,
    *,
    partition: int | None = None,
    now: float,
) -> dict[int, tuple[int, int]]:
    """First offset, and the one before which reading ends, by partition.

    :param start: a mapping starts each partition at a place of its own, and reads no other.
    :raises NotFound: there is no such topic or partition.
    :raises InvalidValue: start or end mean nothing here.
    """
    count = log.topic(topic).partitions
    starts: dict[int, When]
    if isinstance(start, Mapping):
        if partition is not None:
            raise ConfigError("start names its partitions already: leave partition out")
        starts = dict(start)
        only = next(iter(starts)) if len(starts) == 1 else None
        one_partition(topic, {"end": end}, only, count)
    else:
        partition = one_partition(topic, {"start": start, "end": end}, partition, count)
        starts = dict.fromkeys(range(count) if partition is None else (partition,), start)
    found: dict[int, tuple[int, int]] = {}
    for number, when in starts.items():
        if not isinstance(number, int):
            raise InvalidValue(f"start={{{number!r}: ...}}: a place for each partition's number")
        if not 0 <= number < count:
            raise NotFound(f"{topic} has partitions 0 to {count - 1}, not {number}")
        one_partition(topic, {"start": when}, number, count)
        first, last = log.bounds(topic, number)
        low = resolve(log, topic, number, when, option="start", now=now)
        high = resolve(log, topic, number, end, option="end", now=now)
        # What is behind the end now is not part of the range, even if an offset says so.
        found[number] = (max(low, first), min(high, last))
    return found


def one_partition(
    topic: str, places: Mapping[str, When], partition: int | None, count: int
) -> int | None:
    """The one partition that is meant, None: all of them. An offset belongs to one.

    :raises InvalidValue: it is not said which, or two are said.
    """
    for option, when in places.items():
        if isinstance(when, str) and "/" in when:
            when = Position.parse(when)
        if isinstance(when, Position):
            if when.topic != topic or partition not in (None, when.partition):
                raise InvalidValue(f"{option}={when}: a position of another partition")
            partition = when.partition
    for option, when in places.items():
        if isinstance(when, str) and "/" in when:
            continue
        absolute = isinstance(when, str) and when not in ("earliest", "latest")
        if absolute and not str(when)[:1].isdigit():
            raise InvalidValue(f"{option}={when!r} is no place in a topic: {PLACES}")
        if isinstance(when, int) and not isinstance(when, bool):
            absolute = when >= 0
        if absolute and partition is None and count > 1:
            raise InvalidValue(
                f"{option}={when!r} is an offset of one partition: say which (partition=...)"
            )
    return partition


class Reading(Generic[T]):
    """A range of a topic, read once. Give it back with ``with`` when you may stop early."""

    def __init__(
        self,
        app: Streams,
        topic: Source[T],
        start: When = "earliest",
        end: When = "latest",
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
        log = app.log
        self.topic = topic.name
        self.skipped = 0
        """Messages passed over because they cannot be decoded (``errors="skip"``)."""
        self._decoding = topic.decoding
        self._key = key
        self._skip = errors == "skip"
        self._lanes: list[_Lane] = []
        self.ranges = ranges(log, topic.name, start, end, partition=partition, now=app.clock.time())
        """First offset and the one before which reading ends, by partition."""
        for number, (low, high) in self.ranges.items():
            if low < high:
                self._lanes.append(
                    _Lane(log.reader(topic.name, number, low, high), self._decoding.opened)
                )
        self._messages = self._read()
        self._hop = threading.Lock()
        """Held while a thread reads ahead for ``async for``, which may be cancelled meanwhile."""

    def close(self) -> None:
        """Give back what the reading holds; reading on afterwards ends at once."""
        with self._hop:
            for lane in self._lanes:
                lane.close()
            self._lanes = []
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
            chunk = await asyncio.to_thread(self._chunk)
            for item in chunk:
                if isinstance(item, BaseException):
                    raise item
                yield item
            if len(chunk) < CHUNK:
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await in_thread(self.close)  # the log may be closed next

    def _chunk(self) -> list[Message[T] | BaseException]:
        """What the next thread hop brings; an error comes where it happened."""
        chunk: list[Message[T] | BaseException] = []
        with self._hop:
            try:
                for message in self._messages:
                    chunk.append(message)
                    if len(chunk) == CHUNK:
                        break
            except Exception as error:
                chunk.append(error)
        return chunk

    def _read(self) -> Generator[Message[T], None, None]:
        try:
            for batch, index in _merge(self._lanes):
                if self._key is not None and batch.keys[index] != self._key:
                    continue
                try:
                    value = self._decoding.one(batch, index)
                except Skip:
                    continue
                except DecodeError as error:
                    if not self._skip:
                        error.add_note(
                            f"at {batch.topic}/{batch.partition}/{batch.offset(index)}; "
                            "errors='skip' reads on"
                        )
                        raise
                    self.skipped += 1
                    logger.warning(
                        "reading %s/%d/%s: %s",
                        batch.topic, batch.partition, batch.offset(index), error,
                    )  # fmt: skip
                    continue
                yield deliver(value, batch, index, 1)
        finally:
            for lane in self._lanes:
                lane.close()


class _Lane:
    """One partition of a reading: the batch at hand, and the next message in it."""

    def __init__(
        self, reader: Reader, opened: Callable[[Batch], Batch] = lambda batch: batch
    ) -> None:
        self._reader = reader
        self._opened = opened
        self._open = True
        self.batch: Batch | None = None
        self.index = 0

    def advance(self) -> bool:
        """Move to the next message; False at the end."""
        self.index += 1
        if self.batch is None or self.index >= len(self.batch):
            self.batch = self._reader.read(CHUNK) if self._open else None
            self.index = 0
            while self.batch is not None and not len(self.batch):
                self.batch = self._reader.read(CHUNK)
            if self.batch is not None:
                self.batch = self._opened(self.batch)
        return self.batch is not None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._reader.close()


def _merge(lanes: list[_Lane]) -> Iterator[tuple[Batch, int]]:
    """All messages of the lanes, the earliest (log time) next."""
    if len(lanes) == 1:
        lane = lanes[0]
        while lane.advance():
            if lane.batch is not None:
                yield lane.batch, lane.index
        return
    heap: list[tuple[float, int]] = []
    for number, lane in enumerate(lanes):
        if lane.advance() and lane.batch is not None:
            heap.append((lane.batch.time(lane.index), number))
    heapify(heap)
    while heap:
        _, number = heap[0]
        lane = lanes[number]
        if lane.batch is not None:
            yield lane.batch, lane.index
        if lane.advance() and lane.batch is not None:
            heapreplace(heap, (lane.batch.time(lane.index), number))
        else:
            heappop(heap)
