"""Reads one partition, and looks up offsets in it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from streams.errors import NotFound, Unavailable
from streams.log.protocol import READ_TIMEOUT
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import BlockSlice, SqliteBatch
from streams.log.sqlite.database import Database, SqliteConnection, fetch_partition
from streams.log.sqlite.schema import OFFSET_MASK, block_key
from streams.log.sqlite.shared_file import SharedFile, topic_event

_LARGE_BLOCK = 2 * blocks.BLOCK_BYTES
"""A block of more bytes is read by itself, if it is the first to be returned."""

_MAX_BLOCKS = 64
"""Blocks fetched at once, at most."""

_SIZED_BLOCKS = 64
"""Blocks from which the size of a partition is estimated."""

# The blocks from the one that holds an offset on, in one row and so in one step (see blocks.py):
# a list of them, and the data of all, one after the other. A large one is listed without its data.
# In a UTF-8 database (no other is opened) group_concat takes the bytes of a BLOB as they are.
_SELECT_BLOCKS = """
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


class _BlockRow(NamedTuple):
    """A block in the list of :class:`PartitionCursor`'s query."""

    key: int
    messages: int
    time: int
    length: int


class PartitionCursor:
    """Reads one partition from a position on. Used by one thread at a time."""

    def __init__(self, number: int, position: int) -> None:
        self.number = number
        self.position = position
        self._buffered: BlockSlice | None = None
        self._messages_per_block = 1
        """The mean number of messages in the blocks that were read last."""

    @property
    def has_buffered(self) -> bool:
        """Whether a part of a block is kept in memory."""
        return self._buffered is not None

    def drop_buffered(self) -> None:
        """Drop the part of a block that is kept in memory."""
        self._buffered = None

    def read(
        self, db: SqliteConnection, end: int, limit: int, byte_limit: int
    ) -> tuple[list[BlockSlice], int]:
        """The next messages below ``end``, at most ``limit``, and how many bytes were read.

        :param end: an offset up to which the partition is, or once was, filled.
        :param byte_limit: stop when this many bytes are reached.
        """
        if self.position >= end:
            return [], 0
        before = self.position, self._buffered
        try:
            return self._read_blocks(db, end, limit, byte_limit)
        except BaseException:
            self.position, self._buffered = before
            raise

    def _read_blocks(
        self, db: SqliteConnection, end: int, limit: int, byte_limit: int
    ) -> tuple[list[BlockSlice], int]:
        slices: list[BlockSlice] = []
        buffered, self._buffered = self._buffered, None
        if buffered is not None:
            part = self._cut(buffered, end, limit)
            slices.append(part)
            limit -= part.high - part.low
            if limit < 1 or self.position >= end:
                return slices, 0
        blocks_wanted = -(-limit // self._messages_per_block)
        max_blocks = min(_MAX_BLOCKS, byte_limit // blocks.BLOCK_BYTES, blocks_wanted) or 1
        found, data = self._fetch_blocks(db, end, max_blocks)
        packed: bytes | memoryview
        start = bytes_read = 0
        for row in found:
            if row.length <= _LARGE_BLOCK:
                packed = data[start : start + row.length]
                start += row.length
            elif slices:
                break
            else:
                packed = _block_data(db, row.key)
            block = blocks.decode_block(packed)
            part = self._cut(BlockSlice(row.key & OFFSET_MASK, row.time, block, 0, 0), end, limit)
            slices.append(part)
            limit -= part.high - part.low
            bytes_read += row.length
            if limit < 1 or bytes_read >= byte_limit or self.position >= end:
                break
        else:
            if len(found) < max_blocks:
                # There is nothing more below `end`: the rest has been trimmed.
                self.position = end
        return slices, bytes_read

    def _fetch_blocks(
        self, db: SqliteConnection, end: int, max_blocks: int
    ) -> tuple[list[_BlockRow], memoryview]:
        bindings = {
            "usual": _LARGE_BLOCK,
            "partition": block_key(self.number, 0),
            "position": block_key(self.number, self.position),
            "end": block_key(self.number, end),
            "most": max_blocks,
        }
        cursor = db.execute(_SELECT_BLOCKS, bindings)
        listed, data = next(cursor)
        cursor.close(True)  # not fetching a second row, which does not exist, saves a step
        found = [_BlockRow(*row) for row in json.loads(listed)]
        if found:
            self._messages_per_block = max(1, sum(row.messages for row in found) // len(found))
        return found, memoryview(data or b"")

    def _cut(self, block_slice: BlockSlice, end: int, limit: int) -> BlockSlice:
        """The messages of a block from the position on; advances the position."""
        first, count = block_slice.first_offset, len(block_slice.block.ids)
        low = max(0, self.position - first)
        high = min(count, end - first, low + limit)
        self.position = first + high
        found = block_slice._replace(low=low, high=high)
        self._buffered = found if high < count else None
        return found


class ChangeWaiter:
    """Waits for changes by others, in this process or another one. Used by one thread at a time.

    Within the process the writer sets our event. Other processes' commits show in SQLite's
    ``data_version``, which costs a few microseconds to read; the longer nothing happens, the less
    often it is read: after a quarter of a second, 20 times a second.
    """

    _MIN_PAUSE = 0.001
    _MAX_PAUSE = 0.05
    _BACKOFF_FACTOR = 1.25

    def __init__(self, shared: SharedFile, keys: Iterable[str]) -> None:
        self.event = threading.Event()
        self._shared = shared
        self._version = -1
        self._pause = self._MIN_PAUSE
        shared.watch(keys, self.event)

    def has_changed(self, db: SqliteConnection) -> bool:
        """Whether another thread or process wrote since the last call."""
        version = db.fetch_rows("PRAGMA data_version")[0][0]
        changed: bool = version != self._version
        self._version = version
        return changed

    def wait(self, db: SqliteConnection, seconds: float) -> bool:
        """Block until the file has changed or real ``seconds`` are over; returns whether it has.

        Call it only after reading the state that may change.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self.has_changed(db) or self.event.is_set():
                self.event.clear()
                self._pause = self._MIN_PAUSE
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if not self.event.wait(min(self._pause, remaining)):
                self._pause = min(self._MAX_PAUSE, self._pause * self._BACKOFF_FACTOR)

    def close(self) -> None:
        """Stop watching."""
        self._shared.unwatch(self.event)


class PartitionRow(NamedTuple):
    """A partition's row in the file."""

    number: int
    first_offset: int
    end_offset: int


def partition_row(db: SqliteConnection, topic: str, partition: int) -> PartitionRow:
    """The partition's facts.

    :raises NotFound: there is no such topic, or it has fewer partitions.
    """
    query = "SELECT no, first, next FROM streams_partitions WHERE topic = ? AND partition = ?"
    row = fetch_partition(db, query, topic, partition)
    if row is None:
        raise NotFound(f"there is no partition {partition} of a topic {topic!r}")
    return PartitionRow(*row)


def partition_bytes(db: SqliteConnection, topic: str, partition: int) -> int:
    """About how many bytes a partition's messages take, estimated from the lengths of the newest
    :data:`_SIZED_BLOCKS` blocks.

    :raises NotFound: there is no such topic, or it has fewer partitions.
    """
    partition_number, first, end = partition_row(db, topic, partition)
    ((messages, size),) = db.fetch_rows(
        "SELECT total(count), total(size) FROM (SELECT count, length(data) AS size"
        " FROM streams_blocks WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT ?)",
        (block_key(partition_number, 0), block_key(partition_number, end), _SIZED_BLOCKS),
    )
    return int(size * (end - first) / messages) if messages > 0 and size > 0 else 0


def offset_for_time(db: SqliteConnection, topic: str, partition: int, moment: float) -> int:
    """Offset of the first message taken at or after ``moment``, the end if there is none.

    Times never go back within a partition, so this is a binary search over its blocks.
    """
    partition_number, first, end = partition_row(db, topic, partition)
    low, high = first, end
    found: int | None = None  # the start of the earliest block known to end late enough
    while low < high:
        middle = (low + high) // 2
        rows = db.fetch_rows(
            "SELECT place, count, time FROM streams_blocks"
            " WHERE place <= ? AND place >= ? ORDER BY place DESC LIMIT 1",
            (block_key(partition_number, middle), block_key(partition_number, 0)),
        )
        if not rows:  # all up to the middle is trimmed
            low = middle + 1
            continue
        (start, count, time_) = rows[0]
        start &= OFFSET_MASK
        if time_ / 1e6 >= moment:
            found, high = start, min(middle, start)
        else:
            low = max(middle + 1, start + count)
    if found is None:
        return end
    start = found
    block = blocks.decode_block(_block_data(db, block_key(partition_number, start)))
    if not block.times:
        return max(start, first)
    offset = next(i for i, time_us in enumerate(block.times) if time_us / 1e6 >= moment)
    return max(start + offset, first)


def _block_data(db: SqliteConnection, key: int) -> bytes:
    rows = db.fetch_rows("SELECT data FROM streams_blocks WHERE place = ?", (key,))
    data: bytes = rows[0][0]
    return data


class SqliteReader:
    """Reads one partition, outside any group."""

    _READ_BYTES = 4 << 20
    """About how many bytes are read at once."""

    def __init__(
        self, database: Database, topic: str, partition: int, start: int, end: int
    ) -> None:
        self._database = database
        self._topic = topic
        self._partition = partition
        self._end = end
        self._connection: SqliteConnection | None = None
        with database.read() as db:
            number, first, self._end_offset = partition_row(db, topic, partition)
        self._cursor = PartitionCursor(number, max(start, first))

    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> SqliteBatch | None:
        """See :meth:`streams.log.protocol.Reader.read`.

        :raises NotFound: the topic was deleted.
        """
        if self._cursor.position >= self._end:
            return None
        with self._database.read() as db:
            slices = self._read_available(db, limit)
            if slices is None and self._cursor.position < self._end:
                slices = self._wait_for_messages(db, limit, timeout)
        return SqliteBatch(self._topic, self._partition, slices) if slices else None

    def _read_available(self, db: SqliteConnection, limit: int) -> list[BlockSlice] | None:
        cursor = self._cursor
        if cursor.position >= self._end_offset:
            partition_number, _, self._end_offset = partition_row(db, self._topic, self._partition)
            if partition_number != cursor.number:
                raise NotFound(f"topic {self._topic!r} was deleted while it was read")
        slices, _ = cursor.read(db, min(self._end, self._end_offset), limit, self._READ_BYTES)
        return slices or None

    def _wait_for_messages(
        self, db: SqliteConnection, limit: int, timeout: float
    ) -> list[BlockSlice] | None:
        changes = ChangeWaiter(self._database.shared_file, [topic_event(self._topic)])
        deadline = time.monotonic() + timeout
        try:
            while True:
                changes.has_changed(db)
                slices = self._read_available(db, limit)
                if slices or self._cursor.position >= self._end:
                    return slices
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise Unavailable(
                        f"{self._topic}/{self._partition}: nothing behind "
                        f"{self._cursor.position} within {timeout:g} s"
                    )
                changes.wait(db, remaining)
        finally:
            changes.close()

    def close(self) -> None:
        """Drop the blocks that the reader keeps in memory."""
        self._cursor.drop_buffered()
