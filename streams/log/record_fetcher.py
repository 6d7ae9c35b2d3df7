"""Looks up records of one partition by their positions; blocks, so it belongs in a thread.

Records fall due in another order than that of the log, so lookups are scattered. Opening a reader
has a cost (high on Kafka, low on the embedded logs), and so has each message that is read on;
:class:`RecordFetcher` measures both and reads on as long as that is cheaper.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from streams.log.protocol import Reader
from streams.log.range_reader import READ_LIMIT
from streams.message import Batch, Headers

FIRST_READ = 16
"""Messages read at once after a wanted one; doubled as long as that helps."""


class FetchedRow(NamedTuple):
    """A record that was looked up.

    :param time: when the log appended it, in seconds since the epoch.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    time: float


class OpensReaders(Protocol):
    """A log, or another object that opens readers of it."""

    def reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        """See :meth:`streams.log.protocol.Log.reader`."""
        ...


class RecordFetcher:
    """Looks up records of one partition."""

    def __init__(self, log: OpensReaders, topic: str, partition: int) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._open_seconds = 1e-4
        """About how many seconds it takes to open a reader and get its first message."""
        self._read_seconds = 1e-6
        """About how many seconds it takes to read one more message."""

    def fetch(
        self, positions: Sequence[int], max_bytes: int
    ) -> tuple[dict[int, FetchedRow | None], bool]:
        """The records at ``positions`` (ascending), None for those that no longer exist.

        :param max_bytes: stop when this many bytes are reached.
        :returns: the records, and whether these are all of them.
        :raises LogError: the log refuses, or cannot be reached.
        """
        found: dict[int, FetchedRow | None] = {}
        size = next_index = idle = 0
        step = FIRST_READ
        reader: Reader | None = None
        try:
            while next_index < len(positions):
                if reader is None:
                    began = time.perf_counter()
                    reader = self._log.reader(
                        self._topic, self._partition, positions[next_index], positions[-1] + 1
                    )
                    batch = reader.read(1)
                    self._open_seconds = _moving_mean(
                        self._open_seconds, time.perf_counter() - began
                    )
                    step, idle = FIRST_READ, 0
                else:
                    began = time.perf_counter()
                    batch = reader.read(step)
                    took = time.perf_counter() - began
                    if batch is not None and len(batch):
                        self._read_seconds = _moving_mean(self._read_seconds, took / len(batch))
                if batch is None:
                    found.update(dict.fromkeys(positions[next_index:]))
                    break
                previous = next_index
                next_index, taken = _pick_wanted(batch, positions, next_index, found)
                size += taken
                if size >= max_bytes and next_index < len(positions):
                    return found, False
                if next_index > previous:
                    step, idle = min(READ_LIMIT, step * 2), 0
                    continue
                idle += len(batch)
                if idle * self._read_seconds > self._open_seconds:
                    reader.close()
                    reader = None
        finally:
            if reader is not None:
                reader.close()
        return found, True


def _moving_mean(before: float, now: float) -> float:
    return before + (now - before) / 8


def _pick_wanted(
    batch: Batch, positions: Sequence[int], next_index: int, found: dict[int, FetchedRow | None]
) -> tuple[int, int]:
    """Take the wanted records from a batch; returns the next wanted one, and the bytes taken."""
    offsets, size = batch.offsets, 0
    last = offsets[-1]
    while next_index < len(positions) and (position := positions[next_index]) <= last:
        index = bisect_left(offsets, position)
        if offsets[index] == position:
            value = batch.values[index]
            found[position] = FetchedRow(
                batch.keys[index], value, batch.headers(index), batch.time(index)
            )
            size += len(value or b"")
        else:
            found[position] = None  # compacted away
        next_index += 1
    return next_index, size
