"""Topics and their partitions.

A partition keeps its messages as *columns*, one list of keys, one of values and so on, so that a
batch is a few list slices whatever its length, and an append a few list extensions. ``first`` is
the first position that can be read; the columns start at ``base``, which lags behind: as deleting
at the front of a list moves all the rest, it is done when half of it is dead.
"""

from __future__ import annotations

import secrets
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import repeat
from threading import TIMEOUT_MAX, Condition
from typing import Any

from streams.errors import LogError, NotFound
from streams.log.memory.batch import MemoryBatch, headers_with_id
from streams.log.names import partitions_for
from streams.log.protocol import Retention, TopicInfo
from streams.message import (
    ID,
    IDENTITY_HEADERS,
    Batch,
    Position,
    Record,
    identity_of,
)


class Partition:
    """One partition's messages."""

    def __init__(self) -> None:
        self.first = self.base = self.end = 0
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.ids: list[str | None] = []  # identities
        # The sources of headers, which are created when read: the record, or the ID if there are no
        # others. (A tuple for each message would be work for the garbage collector.)
        self.header_sources: list[Record | str] = []
        self.times = array("d")

    def append(self, records: Sequence[Record], now: float) -> range:
        """Write records, and return their offsets. Log times never go back within a partition."""
        count = len(records)
        if self.times and self.times[-1] > now:
            now = self.times[-1]
        self.keys += [record.key for record in records]
        self.values += [record.value for record in records]
        self.header_sources += [record if record.headers else record.id for record in records]
        self.ids += [
            _identity(record) if record.headers else record.id or None for record in records
        ]
        self.times.extend(repeat(now, count))
        self.end += count
        return range(self.end - count, self.end)

    def batch(self, topic: str, partition: int, start: int, count: int, assignment: Any) -> Batch:
        """``count`` messages from ``start`` on, which must exist."""
        part = slice(start - self.base, start - self.base + count)
        batch = MemoryBatch(
            topic,
            partition,
            range(start, start + count),
            self.keys[part],
            self.values[part],
            self.ids[part],
            times=self.times[part],
            assignment=assignment,
        )
        batch.header_sources = self.header_sources[part]
        return batch

    def offset_for_time(self, time: float) -> int:
        """The position of the first message appended at or after ``time``; the end if there is
        none."""
        return self.base + bisect_left(self.times, time, self.first - self.base)

    def trim(self, first: int) -> None:
        """Drop the messages before position ``first``."""
        if first <= self.first:
            return
        self.first = first
        dead = first - self.base
        if dead * 2 >= self.end - self.base:
            del self.keys[:dead], self.values[:dead], self.ids[:dead]
            del self.header_sources[:dead], self.times[:dead]
            self.base = first


def _identity(record: Record) -> str | None:
    for name, _ in record.headers:
        if name in _IDENTITY_HEADERS:
            return identity_of(headers_with_id(record.id, record.headers))
    return record.id or None


_IDENTITY_HEADERS = frozenset((ID, *IDENTITY_HEADERS))


class Topic:
    """A topic: its partitions, its retention, and the condition to wait for its next message."""

    def __init__(self, name: str, partitions: int, retention: Retention) -> None:
        self.name = name
        self.partitions = [Partition() for _ in range(partitions)]
        self.retention = retention
        self.incarnation = secrets.token_hex(8)
        self.waiters: set[Condition] = set()
        self.is_event_topic = False
        """Whether it holds histories, to which only appends of events may write."""

    @property
    def info(self) -> TopicInfo:
        """The topic's facts, as in the protocol."""
        return TopicInfo(
            self.name, len(self.partitions), self.retention, is_event_topic=self.is_event_topic
        )

    def append(self, records: Sequence[Record], now: float) -> list[Position | LogError]:
        """Write records in order; returns the position or the error of each."""
        if len(self.partitions) == 1 and not any(record.partition for record in records):
            offsets = self.partitions[0].append(records, now)
            return list(map(Position, repeat(self.name), repeat(0), offsets))
        indexes_by_partition: dict[int, list[int]] = {}
        count = len(self.partitions)
        for index, partition in enumerate(partitions_for(records, count)):
            indexes_by_partition.setdefault(partition, []).append(index)
        outcomes: list[Position | LogError] = [_NO_OUTCOME] * len(records)
        for partition, indexes in indexes_by_partition.items():
            if not 0 <= partition < count:
                for index in indexes:
                    outcomes[index] = no_partition(self.name, partition, count)
                continue
            chosen = [records[index] for index in indexes]
            offsets = self.partitions[partition].append(chosen, now)
            for index, offset in zip(indexes, offsets, strict=True):
                outcomes[index] = Position(self.name, partition, offset)
        return outcomes

    def refusals(self, records: Sequence[Record]) -> dict[int, LogError]:
        """The errors of the records whose partition does not exist, by index."""
        count = len(self.partitions)
        return {
            index: no_partition(self.name, partition, count)
            for index, partition in enumerate(partitions_for(records, count))
            if not 0 <= partition < count
        }

    def wake(self) -> None:
        """Wake all callers that wait for a message."""
        for waiting in self.waiters:
            waiting.notify_all()


def wait_for_messages(topics: Sequence[Topic], condition: Condition, timeout: float) -> None:
    """Wait for a message in one of these topics, or for any other notification."""
    for topic in topics:
        topic.waiters.add(condition)
    try:
        condition.wait(bounded_timeout(timeout))
    finally:
        for topic in topics:
            topic.waiters.discard(condition)


def bounded_timeout(timeout: float) -> float:
    """A timeout that a condition accepts: not negative, and bounded."""
    return min(max(0.0, timeout), TIMEOUT_MAX)


_NO_OUTCOME = LogError("the append has no outcome")


def no_partition(topic: str, partition: int, count: int) -> NotFound:
    """The error for a missing partition."""
    return NotFound(f"topic {topic!r} has no partition {partition}: it has 0 to {count - 1}")
