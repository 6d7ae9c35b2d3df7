"""A scan of what was said in a delay topic; blocks, and belongs into a thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streams.log.protocol import Log
from streams.message import Batch
from streams.retries.records import CANCEL, id_digest, read_due, read_mark

READ_LIMIT = 1_000
"""Messages read at once, at most."""


class ScannedRecord(NamedTuple):
    """What one record of a delay topic says."""

    position: int
    id_digest: int
    """Stands for its ID."""
    due: int | None
    """Of an entry; None for a mark or a request."""
    mark: str | None
    """A mark's outcome, or ``cancel``."""


def scan_batch(batch: Batch) -> list[ScannedRecord]:
    """What the records of a batch say; those without a key say nothing."""
    records = []
    for index, position in enumerate(batch.offsets):
        key = batch.keys[index]
        if key is None:
            continue
        headers = batch.headers(index)
        due = read_due(headers) if batch.values[index] is not None else None
        mark = read_mark(headers)[0] if due is None else None
        if due is not None or mark is not None:
            records.append(ScannedRecord(position, id_digest(key), due, mark))
    return records


def scan_partition(
    log: Log, topic: str, partition: int, start: int, end: int
) -> Iterator[list[ScannedRecord]]:
    """What was said from ``start`` to before ``end``, a chunk at a time, requests left out."""
    if start >= end:
        return
    reader = log.reader(topic, partition, start, end)
    try:
        while (batch := reader.read(READ_LIMIT)) is not None:
            yield [each for each in scan_batch(batch) if each.mark != CANCEL]
    finally:
        reader.close()
