"""Reading along one partition, and looking up places in it."""

from __future__ import annotations

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

_USUAL = 4 * blocks.BYTES
"""A block larger than this is fetched alone, once it is known that there is room for it."""

_FROM = """
SELECT place, count, time, CASE WHEN length(data) <= ?1 THEN data END
FROM streams_blocks
WHERE place >= coalesce(
    (SELECT max(place) FROM streams_blocks WHERE place BETWEEN ?2 AND ?3), ?3
) AND place < ?4
ORDER BY place
"""


class Tail:
    """Where somebody reads in partition number ``no``. Used by one thread."""

    def __init__(self, no: int, position: int) -> None:
        self.no = no
        self.position = position
        self._left: Slice | None = None

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
        read = 0
        cursor = connection.execute(
            _FROM, (_USUAL, place(self.no, 0), place(self.no, self.position), place(self.no, end))
        )
        try:
            for at, count, time_, data in cursor:
                first = at & OFFSETS
                if first + count <= self.position:
                    continue
                if data is None:
                    if slices:
                        break
                    rows = connection.rows("SELECT data FROM streams_blocks WHERE place = ?", (at,))
                    data = rows[0][0]
                limit -= self._add(slices, first, time_, blocks.decode(data), end, limit)
                read += len(data)
                if limit < 1 or read >= size or self.position >= end:
                    break
            else:
                # Nothing more stands below `end`: whatever else was there has been trimmed.
                self.position = end
        finally:
            cursor.close(True)
        return read

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
    """Waiting for what others write, in this process or another one. Used by one thread.

    Within the process the writer sets our event. Other processes' commits show in SQLite's
    ``data_version``, which costs a few microseconds to ask for; the longer nothing happens, the
    less often it is asked, up to 40 times a second.
    """

    _SHORTEST = 0.001
    _LONGEST = 0.025

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
                self._pause = min(self._LONGEST, self._pause * 2)

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
