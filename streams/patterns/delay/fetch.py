"""Payloads by position, and a scan of what was said; both block, and belong into a thread.

Due order is not the order of the log, so payloads are looked up one here, one there. Opening a
reader costs something (much on Kafka, little on the embedded logs), reading on costs something for
each message; :class:`Fetcher` measures both and reads on as long as that is cheaper.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from streams.log.protocol import Log, Reader
from streams.message import Batch, Headers
from streams.patterns.delay.wire import CANCEL, digest, due_of, said

CHUNK = 1_000
"""Messages read at once, at most."""

FIRST = 16
"""Messages read at once after one that was wanted; twice as many as long as that helps."""


class Row(NamedTuple):
    """A record of a delay topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Fetcher:
    """Looks up records of one partition."""

    def __init__(self, log: Log, topic: str, partition: int) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._opening = 1e-4
        """Seconds to open a reader and have its first message, about."""
        self._reading = 1e-6
        """Seconds to read on by one message, about."""

    def fetch(self, positions: Sequence[int], most: int) -> tuple[dict[int, Row | None], bool]:
        """Those at ``positions`` (ascending), None where nothing stands any more.

        :param most: stop when this many bytes are reached.
        :returns: what was found, and whether that is all.
        :raises LogError: the log refuses, or cannot be reached.
        """
        found: dict[int, Row | None] = {}
        size = at = idle = 0
        step = FIRST
        reader: Reader | None = None
        try:
            while at < len(positions):
                if reader is None:
                    began = time.perf_counter()
                    reader = self._log.reader(
                        self._topic, self._partition, positions[at], positions[-1] + 1
                    )
                    batch = reader.read(1)
                    self._opening = _mean(self._opening, time.perf_counter() - began)
                    step, idle = FIRST, 0
                else:
                    began = time.perf_counter()
                    batch = reader.read(step)
                    took = time.perf_counter() - began
                    if batch is not None and len(batch):
                        self._reading = _mean(self._reading, took / len(batch))
                if batch is None:
                    found.update(dict.fromkeys(positions[at:]))
                    break
                before = at
                at, taken = _pick(batch, positions, at, found)
                size += taken
                if size >= most and at < len(positions):
                    return found, False
                if at > before:
                    step, idle = min(CHUNK, step * 2), 0
                    continue
                idle += len(batch)
                if idle * self._reading > self._opening:
                    reader.close()
                    reader = None
        finally:
            if reader is not None:
                reader.close()
        return found, True


def _mean(before: float, now: float) -> float:
    return before + (now - before) / 8


def _pick(
    batch: Batch, positions: Sequence[int], at: int, found: dict[int, Row | None]
) -> tuple[int, int]:
    """Take what is wanted from a batch; the next that is wanted, and the bytes taken."""
    offsets, size = batch.offsets, 0
    last = offsets[-1]
    while at < len(positions) and (position := positions[at]) <= last:
        index = bisect_left(offsets, position)
        if offsets[index] == position:
            value = batch.values[index]
            found[position] = Row(batch.keys[index], value, batch.headers(index))
            size += len(value or b"")
        else:
            found[position] = None  # compacted away
        at += 1
    return at, size


class Said(NamedTuple):
    """What one record of a delay topic says."""

    position: int
    name: int
    """Stands for its ID."""
    due: int | None
    """Of an entry; None for a mark or a request."""
    what: str | None
    """A mark's outcome, or ``cancel``."""


def read(batch: Batch) -> list[Said]:
    """What the records of a batch say; those without a key say nothing."""
    found = []
    for index, position in enumerate(batch.offsets):
        key = batch.keys[index]
        if key is None:
            continue
        headers = batch.headers(index)
        due = due_of(headers) if batch.values[index] is not None else None
        what = said(headers)[0] if due is None else None
        if due is not None or what is not None:
            found.append(Said(position, digest(key), due, what))
    return found


def scan(log: Log, topic: str, partition: int, start: int, end: int) -> Iterator[list[Said]]:
    """What was said from ``start`` to before ``end``, a chunk at a time, requests left out."""
    if start >= end:
        return
    reader = log.reader(topic, partition, start, end)
    try:
        while (batch := reader.read(CHUNK)) is not None:
            yield [each for each in read(batch) if each.what != CANCEL]
    finally:
        reader.close()
