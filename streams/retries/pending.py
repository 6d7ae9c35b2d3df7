"""Reads the pending entries of a delay topic from the log alone, without a scheduler or writes.

Blocks. The newest records are read, as many as the caller asked for, and only the payloads that the
caller wants are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from streams.log.floor import floor_group
from streams.log.protocol import Log
from streams.log.range_reader import newest_of, read_batches
from streams.message import Record
from streams.retries.records import parse_entry, scan_record

T = TypeVar("T")


class PendingEntry(NamedTuple, Generic[T]):
    """A message that waits.

    :param due: when it is due, in milliseconds since the epoch.
    :param value: the caller's result for it.
    """

    partition: int
    due: int
    value: T


class PendingEntries(NamedTuple, Generic[T]):
    """The pending messages of a delay topic, by due time.

    :param is_complete: every pending message was read.
    """

    entries: list[PendingEntry[T]]
    is_complete: bool


def read_pending(
    log: Log, topic: str, read: Callable[[str, Record], T | None], newest: int | None
) -> PendingEntries[T]:
    """The pending messages. A requested cancellation counts as done: the scheduler will do it.

    :param read: returns the caller's result for an entry, given its target topic and the record to
        be written there; None: the entry is not the caller's, and is left out.
    :param newest: read this many of the newest records of each partition, at most; None: all.
    :raises NotFound: there is no such topic.
    :raises LogError: the topic cannot be read.
    """
    found: list[PendingEntry[T]] = []
    is_complete = True
    floors = log.committed(floor_group(topic), topic)
    for partition in range(log.describe_topic(topic).partitions):
        first, end = log.watermarks(topic, partition)
        floor = floors.get(partition)
        start = first if floor is None else max(first, floor.position)
        start, has_all = newest_of(log, topic, partition, start, end, newest)
        is_complete = is_complete and has_all
        pending: dict[int, PendingEntry[T]] = {}
        positions: dict[int, int] = {}
        """The positions of the last entries, by ID digest."""
        for batch in read_batches(log, topic, partition, start, end):
            for at, key in enumerate(batch.keys):
                if key is None:
                    continue
                headers, value = batch.headers(at), batch.values[at]
                scanned = scan_record(batch.offsets[at], key, value, headers)
                if scanned is None:
                    continue
                id_digest = scanned.id_digest
                if scanned.due is not None:
                    positions[id_digest] = scanned.position
                elif scanned.end <= positions.get(id_digest, -1):
                    continue  # the mark of an earlier entry
                pending.pop(id_digest, None)
                entry = parse_entry(key, value, headers)
                made = None if entry is None else read(entry.topic, entry.record)
                if entry is not None and made is not None:
                    pending[id_digest] = PendingEntry(partition, entry.due, made)
        found += pending.values()
    found.sort(key=lambda each: each.due)
    return PendingEntries(found, is_complete)
