"""Reading along one partition, and looking up places in it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from streams.errors import NotFound, Unavailable
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import Slice, StoredBatch
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.schema import OFFSETS, place
from streams.log.sqlite.shared import Shared, topic_key

_USUAL = 2 * blocks.BYTES
"""A block larger than this is fetched alone, once it is known that there is room for it."""

_MOST = 64
"""Blocks fetched at once, at most."""

# The blocks from the one that holds an offset on, in one row and so in one step (see blocks.py):
# what each is, and the data of all, one after the other. A large one is left out, but listed.
# In a UTF-8 database (no other is opened) group_concat takes the bytes of a BLOB as they are.
_FROM = """
SELECT json_group_array(json_array(b.place, b.count, b.time, length(b.data))),
    CAST(group_concat(CASE WHEN length(b.data) <= :usual THEN b.data END, '') AS BLOB)
FROM (
    SELECT place FROM streams_blocks
    WHERE place < :end AND place >= coalesce((
        SELECT place FROM (
            SELECT place, count FROM streams_blocks
            WHERE place BETWEEN :partition AND :position ORDER BY place DESC LIMIT 1
        ) WHERE place + count > :position
    ), :position)
    ORDER BY place LIMIT :most
) AS wanted JOIN streams_blocks AS b ON b.place = wanted.place
"""


class Tail:
    """Where somebody reads in partition number ``no``. Used by one thread at a time."""

    def __init__(self, no: int, position: int) -> None:
        self.no = no
        self.position = position
        self._left: Slice | None = None
        self._count = 1
        """Messages in a block, about, as far as has been seen."""

    @property
    def ahead(self) -> bool:
        """Whether more is in memory than was taken."""
        return self._left is not None

    def forget(self) -> None:
        """Let go of what is in memory."""
        self._left = None

    def take(
        self, connection: Connection, end: int, limit: int, size: int
    ) -> tuple[list[Slice], int]:
        """The next messages below ``end``, at most ``limit``, and how many bytes were read.

        :param end: an offset up to which the partition is, or once was, filled.
        :param size: stop when this many bytes are reached.
        """
        slices: list[Slice] = []
        if self.position >= end:
            return slices, 0
        before = self.position, self._left
        try:
            return slices, self._fill(slices, connection, end, limit, size)
        except BaseException:
            self.position, self._left = before
            raise

    def _fill(
        self, slices: list[Slice], connection: Connection, end: int, limit: int, size: int
    ) -> int:
        left, self._left = self._left, None
        if left is not None:
            limit -= self._add(slices, left.first, left.time, left.block, end, limit)
            if limit < 1 or self.position >= end:
                return 0
        most = max(1, min(_MOST, size // blocks.BYTES, -(-limit // self._count)))
        found, data = self._fetch(connection, end, most)
        at = read = 0
        for place_, _, time_, length in found:
            if length <= _USUAL:
                packed = data[at : at + length]
                at += length
            elif slices:
                break
            else:
                packed = connection.rows(
                    "SELECT data FROM streams_blocks WHERE place = ?", (place_,)
                )[0][0]
            block = blocks.decode(packed)
            limit -= self._add(slices, place_ & OFFSETS, time_, block, end, limit)
            read += length
            if limit < 1 or read >= size or self.position >= end:
                break
        else:
            if len(found) < most:
                # Nothing more stands below `end`: whatever else was there has been trimmed.
                self.position = end
        return read

    def _fetch(
        self, connection: Connection, end: int, most: int
    ) -> tuple[list[tuple[int, int, int, int]], memoryview]:
        bindings = {
            "usual": _USUAL,
            "partition": place(self.no, 0),
            "position": place(self.no, self.position),
            "end": place(self.no, end),
            "most": most,
        }
        cursor = connection.execute(_FROM, bindings)
        listed, data = next(cursor)
        cursor.close(True)  # not asking for a second row, of which there is none, saves a step
        found = json.loads(listed)
        if found:
            self._count = max(1, sum(count for _, count, _, _ in found) // len(found))
        return found, memoryview(data or b"")

    def _add(
        self, slices: list[Slice], first: int, time: int, block: blocks.Block, end: int, limit: int
    ) -> int:
        low = max(0, self.position - first)
        high = min(len(block.ids), end - first, low + limit)
        slices.append(Slice(first, time, block, low, high))
        self.position = first + high
        if high < len(block.ids):
            self._left = slices[-1]
        return high - low


class News:
    """Waiting for what others write, in this process or another one. Used by one thread at a time.

    Within the process the writer sets our event. Other processes' commits show in SQLite's
    ``data_version``, which costs a few microseconds to ask for; the longer nothing happens, the
    less often it is asked: 20 times a second at last, after a quarter of one.
    """

    _SHORTEST = 0.001
    _LONGEST = 0.05
    _SLOWER = 1.25

    def __init__(self, shared: Shared, keys: Iterable[str]) -> None:
        self.event = threading.Event()
        self._shared = shared
        self._version = -1
        self._pause = self._SHORTEST
        shared.watch(keys, self.event)

    def changed(self, connection: Connection) -> bool:
        """Whether anybody else wrote since the last call."""
        version = connection.rows("PRAGMA data_version")[0][0]
        changed: bool = version != self._version
        self._version = version
        return changed

    def wait(self, connection: Connection, seconds: float) -> bool:
        """Block until there is news or real ``seconds`` are over; whether there is.

        Call it only after looking at the state that the news would be about.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self.changed(connection) or self.event.is_set():
                self.event.clear()
                self._pause = self._SHORTEST
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not self.event.wait(min(self._pause, left)):
                self._pause = min(self._LONGEST, self._pause * self._SLOWER)

    def close(self) -> None:
        """Stop watching."""
        self._shared.unwatch(self.event)


class Part(NamedTuple):
    """A partition as it stands."""

    no: int
    first: int
    next: int


def part(connection: Connection, topic: str, partition: int) -> Part:
    """The partition's facts.

    :raises NotFound: there is no such topic, or it has fewer partitions.
    """
    rows = connection.rows(
        "SELECT no, first, next FROM streams_partitions WHERE topic = ? AND partition = ?",
        (topic, partition),
    )
    if not rows:
        raise NotFound(f"there is no partition {partition} of a topic {topic!r}")
    return Part(*rows[0])


def at(connection: Connection, topic: str, partition: int, moment: float) -> int:
    """Offset of the first message taken at or after ``moment``, the end if there is none.

    Times never go back within a partition, so this is a binary search over its blocks.
    """
    no, first, end = part(connection, topic, partition)
    low, high = first, end
    found: tuple[int, int, int] | None = None  # the earliest block known to end late enough
    while low < high:
        middle = (low + high) // 2
        rows = connection.rows(
            "SELECT place, count, time FROM streams_blocks"
            " WHERE place <= ? AND place >= ? ORDER BY place DESC LIMIT 1",
            (place(no, middle), place(no, 0)),
        )
        if not rows:  # all up to the middle is trimmed
            low = middle + 1
            continue
        (start, count, time_) = rows[0]
        start &= OFFSETS
        if time_ / 1e6 >= moment:
            found = (start, count, time_)
            high = min(middle, start)
        else:
            low = max(middle + 1, start + count)
    if found is None:
        return end
    start, count, time_ = found
    rows = connection.rows("SELECT data FROM streams_blocks WHERE place = ?", (place(no, start),))
    block = blocks.decode(rows[0][0]) if rows else None
    if block is None or not block.times:
        return max(start, first)
    offset = next(i for i, taken in enumerate(block.times) if taken / 1e6 >= moment)
    return max(start + offset, first)


class StoredReader:
    """A plain reading of one partition, outside any group."""

    _SIZE = 4 << 20
    """Bytes taken at once, about."""

    def __init__(
        self, database: Database, topic: str, partition: int, start: int, end: int
    ) -> None:
        self._database = database
        self._topic = topic
        self._partition = partition
        self._end = end
        self._connection: Connection | None = None
        with database.read() as connection:
            no, first, self._next = part(connection, topic, partition)
        self._tail = Tail(no, max(start, first))

    def read(self, limit: int, timeout: float = 5.0) -> StoredBatch | None:
        """The next messages, at most ``limit``; None at the end.

        :raises Unavailable: none came within ``timeout`` seconds.
        :raises NotFound: the topic was deleted.
        """
        if self._tail.position >= self._end:
            return None
        with self._database.read() as connection:
            slices = self._take(connection, limit)
            if slices is None and self._tail.position < self._end:
                slices = self._wait(connection, limit, timeout)
        return StoredBatch(self._topic, self._partition, slices) if slices else None

    def _take(self, connection: Connection, limit: int) -> list[Slice] | None:
        tail = self._tail
        if tail.position >= self._next:
            no, _, self._next = part(connection, self._topic, self._partition)
            if no != tail.no:
                raise NotFound(f"topic {self._topic!r} was deleted while it was read")
        slices, _ = tail.take(connection, min(self._end, self._next), limit, self._SIZE)
        return slices or None

    def _wait(self, connection: Connection, limit: int, timeout: float) -> list[Slice] | None:
        news = News(self._database.shared, [topic_key(self._topic)])
        deadline = time.monotonic() + timeout
        try:
            while True:
                news.changed(connection)
                slices = self._take(connection, limit)
                if slices or self._tail.position >= self._end:
                    return slices
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Unavailable(
                        f"{self._topic}/{self._partition}: nothing behind "
                        f"{self._tail.position} within {timeout:g} s"
                    )
                news.wait(connection, left)
        finally:
            news.close()

    def close(self) -> None:
        """Give back what the reader holds."""
        self._tail.forget()
