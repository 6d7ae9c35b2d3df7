"""Delayed messages, for occasional inspection, and for cancelling some of them.

A delay topic (:mod:`streams.retries`) is recognized by the group that stores its floor. Its pending
messages are read from its records, as its scheduler does, and the first :data:`MAX_PENDING` of a
partition by due time are kept, without their payloads.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from typing_extensions import override

from streams.inspection.reading_on import CountingReader
from streams.log.appending import append_and_wait
from streams.log.range_reader import read_batches
from streams.log.record_fetcher import RecordFetcher
from streams.message import text
from streams.retries import (
    DelayEntry,
    DueIndex,
    Outcome,
    cancel_record,
    due_time,
    find_checkpoint,
    floor_group,
    id_digest,
    log_position,
    parse_entry,
    parse_outcome,
    read_mark,
    scan_record,
)

if TYPE_CHECKING:
    from streams.log.protocol import Log

MAX_PENDING = 20_000
"""Messages of a partition that are kept, at most: those that are due first, about 200 bytes
each."""

READ_BYTES = 16 << 20
"""Bytes of messages that are read for one page, approximately."""

PAUSE = 0.05
"""Real seconds between two polls for an answer."""


def delay_topics(topics: Collection[str], groups: Collection[str]) -> list[str]:
    """The delay topics among these topics, by name.

    :param groups: the names of all groups.
    """
    known = set(groups)
    return sorted(name for name in topics if floor_group(name) in known)


class PendingCounts(NamedTuple):
    """The counts of a delay topic.

    :param number: messages that are known to be pending.
    :param has_more: further messages are due after these.
    :param next_due: when the first of them is due, in seconds since the epoch; None: there is none.
    :param is_complete: every record was read.
    """

    number: int
    has_more: bool
    next_due: float | None
    is_complete: bool


class PendingPosition(NamedTuple):
    """A pending message, without its payload.

    :param due: the due time, in seconds since the epoch.
    """

    due: float
    partition: int
    position: int


class DelayIndex(CountingReader[PendingCounts]):
    """The pending messages of a delay topic, as far as it was read (any thread)."""

    @override
    def _forget(self) -> None:
        self._pending: dict[int, DueIndex] = {}
        self._next: dict[int, int] = {}

    @override
    def _read(self, log: Log) -> bool:
        floors = log.committed(floor_group(self.name), self.name)
        for partition in range(log.describe_topic(self.name).partitions):
            first, end = log.watermarks(self.name, partition)
            floor = floors.get(partition)
            begin = first if floor is None else max(first, floor.position)
            pending, start = self._pending.get(partition), self._next.get(partition, -1)
            if pending is None or start < first or pending.is_exhausted:
                is_exhausted = pending is not None and pending.is_exhausted
                pending, start = DueIndex(MAX_PENDING), begin
                if not is_exhausted:  # a checkpoint lacks the entries that the index dropped
                    checkpoint = find_checkpoint(log, self.name, partition, floor, begin, end)
                    if checkpoint is not None:
                        place, state = checkpoint
                        pending.restore(state)
                        start = place.position
                with self._lock:
                    self._pending[partition] = pending
            start = max(start, begin) if not len(pending) else start
            for batch in read_batches(log, self.name, partition, start, end):
                with self._lock:
                    for index, key in enumerate(batch.keys):
                        if key is not None:
                            self._apply_record(
                                pending, key, batch.offsets[index], batch.values[index],
                                batch.headers(index),
                            )  # fmt: skip
                    start = batch.offsets[-1] + 1 if len(batch) else start
                    self._next[partition] = start
                if self._is_to_stop:
                    return False
            self._next[partition] = max(start, end)
        return True

    @staticmethod
    def _apply_record(
        pending: DueIndex,
        key: bytes,
        position: int,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> None:
        found = scan_record(position, key, value, headers)
        if found is None:
            return
        if found.due is not None:
            pending.add(found.id_digest, found.due, position)
        elif parse_outcome(found.mark) is not None:
            pending.remove(found.id_digest, found.end)

    @override
    def _counts(self, is_complete: bool) -> PendingCounts:
        with self._lock:
            pending = list(self._pending.values())
            due = [each.next_due for each in pending]
        first = min((each for each in due if each is not None), default=None)
        return PendingCounts(
            sum(map(len, pending)),
            any(each.horizon is not None for each in pending),
            None if first is None else first / 1000,
            is_complete,
        )

    def positions(self, start: int, count: int) -> list[PendingPosition]:
        """The pending messages, by due time.

        :param start: how many to skip at the beginning.
        """
        with self._lock:
            nearest = [
                [
                    PendingPosition(due_time(entry) / 1000, partition, log_position(entry))
                    for entry in each.first_due(start + count)
                ]
                for partition, each in self._pending.items()
            ]
        return list(islice(merge(*nearest), start, start + count))

    def may_hold(self, partition: int, position: int) -> bool:
        """Whether this position was read, so that an entry may be known there."""
        with self._lock:
            return 0 <= position < self._next.get(partition, 0)

    def is_pending(self, partition: int, position: int, key: bytes) -> bool:
        """Whether the entry at this position is still pending, as far as the topic was read."""
        with self._lock:
            pending = self._pending.get(partition)
            found = None if pending is None else pending.find(id_digest(key))
            return found is not None and log_position(found) == position


def read_entries(
    log: Log, topic: str, positions: Collection[tuple[int, int]]
) -> dict[tuple[int, int], DelayEntry]:
    """The entries at these partitions and positions; blocks. Entries that are gone, or too large to
    be read with the others, are left out."""
    found: dict[tuple[int, int], DelayEntry] = {}
    for partition in {each for each, _ in positions}:
        wanted = sorted(position for each, position in positions if each == partition)
        rows, _ = RecordFetcher(log, topic, partition).fetch(wanted, READ_BYTES)
        for position, row in rows.items():
            entry = None if row is None else parse_entry(row.key, row.value, row.headers)
            if entry is not None:
                found[partition, position] = entry
    return found


def cancel_entries(
    log: Log, topic: str, entries: Sequence[tuple[int, DelayEntry]], seconds: float
) -> list[Outcome | None]:
    """Request that messages not be delivered; blocks.

    :param entries: each with its partition.
    :param seconds: real seconds to wait for the answers of the topic's scheduler.
    :returns: the outcome of each; None: no answer came, and the request stays in effect.
    :raises LogError: a request could not be written; others may have been.
    """
    requests = [str(uuid4()) for _ in entries]
    records = []
    for (partition, entry), request in zip(entries, requests, strict=True):
        record = cancel_record(text(entry.key), request)
        record.partition = partition
        records.append(record)
    start = {partition: log.watermarks(topic, partition)[1] for partition, _ in entries}
    for answer in append_and_wait(log, topic, records):
        if isinstance(answer, BaseException):
            raise answer
    answers: dict[str, Outcome] = {}
    deadline = time.monotonic() + seconds
    while True:
        for partition in start:
            _, end = log.watermarks(topic, partition)
            for batch in read_batches(log, topic, partition, start[partition], end):
                for index, value in enumerate(batch.values):
                    if value is None:
                        mark, request_id = read_mark(batch.headers(index))
                        outcome = parse_outcome(mark)
                        if request_id in requests and outcome is not None:
                            answers[request_id] = outcome
            start[partition] = max(start[partition], end)
        if len(answers) == len(requests) or time.monotonic() > deadline:
            return [answers.get(each) for each in requests]
        time.sleep(PAUSE)
