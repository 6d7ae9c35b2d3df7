"""Attempts that are counted in the log: ``Retry(in_order=False)`` and ``Retry(durable=True)``.

A message that need not keep its order (it has no key, or ``in_order`` is False) waits in the
group's delay topic, ``{topic}.{group}.delay``, and comes back through ``{topic}.{group}.retry``,
which its processor reads anyway, with the number of its attempts in a header. Meanwhile it blocks
no other message and takes no memory. It is settled where it failed: its ID and redrive count are
its identity, so deduplication takes each attempt for a message of its own.

A message that keeps its order stays in its key queue.

Both are noted in ``{topic}.{group}.attempts``, in the partition of the same number, before the
message is settled or tried again. The partition's next owner reads the notes that are younger than
the oldest unsettled message: it continues the count, and skips messages that wait elsewhere.
Notes are kept for :data:`ATTEMPTS_RETENTION` seconds; older ones are ignored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from streams import wire
from streams.derived_records import (
    ERROR_ATTEMPTS,
    ERROR_PREFIX,
    ORIGIN,
    attempts_of,
    redrives_of,
    with_generation,
)
from streams.engine.dispatcher import Delivery
from streams.errors import LogError
from streams.log.event_headers import copied_headers
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Log, Retention, ensure_topic
from streams.log.range_reader import read_batches, read_first
from streams.message import ID, REDRIVE, TIME, Batch, Position, Record, headers_without
from streams.processing.job import Outgoing
from streams.processor import Processor
from streams.retries.records import LATEST_DUE, entry_record, retry_entry_id
from streams.retries.scheduler import DeclaringConnection, declare_scheduler
from streams.text import get_logger

logger = get_logger("streams.delay")

PENDING_LIMIT = 200_000
"""Messages of a partition whose due times are held in memory at once."""

ATTEMPTS_RETENTION = 7 * 86_400.0
"""Seconds for which a note is kept."""

CLOCK_SKEW = 3600.0
"""Seconds by which the clocks of publishers may differ."""

DELAYED = 1 << 30
"""The count of a message that waits elsewhere: more attempts than there can be."""

_READ_ATTEMPTS = 5


def delay_topic(topic: str, group: str) -> str:
    """Where messages of ``topic`` wait that ``group`` handles later."""
    return f"{topic}.{group}.delay"


class _Topics(NamedTuple):
    """What belongs to a topic that is read."""

    delay: str
    """Where its messages wait."""
    retry: str
    """Where they come back."""
    attempts: str
    """Where their attempts are noted."""


class DurableAttemptLog:
    """See :class:`streams.processing.job.ManagedAttemptLog`.

    Creating one declares the processors of the delay topics, as helpers of ``processor``.
    """

    def __init__(self, app: DeclaringConnection, processor: Processor[..., Any]) -> None:
        options = processor.options
        self._app = app
        self._group = group = processor.group
        self._unordered = not options.retry.in_order
        self._sources = processor.topics
        self._topics: dict[str, _Topics] = {}
        """By the topic read."""
        self._restored_attempts: dict[Position, int] = {}
        """Attempts that former owners noted, of messages that were not taken up yet."""
        for source in self._sources:
            topics = _Topics(
                check_topic(delay_topic(source, group)),
                options.dead_letters.retry(source, group),
                check_topic(f"{source}.{group}.attempts"),
            )
            self._topics[source] = self._topics[topics.retry] = topics
            allowed = {source, topics.retry}.__contains__
            count = partial(_partition_count, source)
            scheduler = declare_scheduler(app, topics.delay, count, allowed, PENDING_LIMIT)
            processor.helpers.append(scheduler)

    def prepare(self, log: Log) -> None:
        """Create the topics of notes, and those through which messages come back, each with as
        many partitions as its source: as many members can share the work; blocks."""
        for source in self._sources:
            count, topics = log.topic(source).partitions, self._topics[source]
            ensure_topic(log, topics.attempts, count, Retention(seconds=ATTEMPTS_RETENTION))
            ensure_topic(log, topics.retry, count, config=log.capabilities.dead_letter_config)

    # -- called by the executor

    def failed_attempts(self, batch: Batch, index: int) -> int:
        """How often a message that was just taken up failed before."""
        if self._restored_attempts:
            restored = self._restored_attempts.get(_position(batch, index))
            if restored is not None:
                return restored
        return 0 if batch.topic in self._sources else attempts_of(batch.headers(index))

    def record_failure(
        self, delivery: Delivery, attempt: int, delay: float
    ) -> tuple[Outgoing | None, Outgoing]:
        """The message as it is to come back, if it waits in the delay topic; and a note."""
        batch, index = delivery.fetched.batch, delivery.index
        if self._unordered or batch.keys[index] is None:
            copy = self._delayed_copy(delivery, attempt, delay)
            return copy, self._attempt_record(batch, index, DELAYED)
        position = _position(batch, index)
        if self._restored_attempts.get(position) or attempts_of(batch.headers(index)):
            self._restored_attempts[position] = 0  # from now on the delivery holds it
        return None, self._attempt_record(batch, index, attempt)

    def is_delayed(self, batch: Batch, index: int) -> bool:
        """The message waits in the delay topic, or has come back from it."""
        restored = self._restored_attempts
        return bool(restored) and restored.get(_position(batch, index)) == DELAYED

    def nothing_recorded(self, batch: Batch) -> bool:
        """Nothing was restored, and the headers of these messages hold no count."""
        return not self._restored_attempts and batch.topic in self._sources

    def _attempt_record(self, batch: Batch, index: int, attempt: int) -> Outgoing:
        name, count = str(_position(batch, index)), str(attempt).encode()
        record = Record(count, name.encode(), f"{name}/{attempt}", (), batch.partition)
        return self._topics[batch.topic].attempts, record

    def _delayed_copy(self, delivery: Delivery, attempt: int, delay: float) -> Outgoing:
        batch, index = delivery.fetched.batch, delivery.index
        headers = batch.headers(index)
        redrive = redrives_of(headers) + 1
        own_headers = with_generation(
            copied_headers(headers_without(headers, (ID, REDRIVE), ERROR_PREFIX)),
            delivery.fetched.state.assignment,
            has_come_back=batch.topic not in self._sources,
        )
        if not any(name == TIME for name, _ in own_headers):
            taken = wire.utc_from_seconds(batch.time(index))
            own_headers.append((TIME, taken.isoformat().encode()))
        if batch.topic in self._sources and not any(name == ORIGIN for name, _ in own_headers):
            origin = f"{batch.topic}/{batch.partition}/{batch.offset(index)}"
            own_headers.append((ORIGIN, origin.encode()))
        own_headers += [(REDRIVE, str(redrive).encode()), (ERROR_ATTEMPTS, str(attempt).encode())]
        id = batch.id(index)
        record = Record(batch.values[index], batch.keys[index], id, own_headers)
        due = min(math.ceil((self._app.clock.time() + delay) * 1000), LATEST_DUE)
        known = retry_entry_id(id, headers, redrive)
        topics, entry = self._topics[batch.topic], f"{known}/{self._group}"
        return topics.delay, entry_record(record, topics.retry, due, entry_id=known, id=entry)

    # -- called by the poller

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Read the notes of former owners."""
        for assignment in assignments:
            for tries in range(1, _READ_ATTEMPTS + 1):
                try:
                    self._restore_attempts(assignment)
                    break
                except LogError as error:
                    if tries == _READ_ATTEMPTS:
                        logger.error(
                            "%s: attempts of waiting messages start over: %s", assignment, error
                        )
                    else:
                        time.sleep(0.1 * tries)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Forget the notes about these."""
        revoked = {(each.topic, each.partition) for each in assignments}
        # In place: the executor writes there meanwhile.
        for position in list(self._restored_attempts):
            if position[:2] in revoked:
                self._restored_attempts.pop(position, None)

    def unfinished(self) -> str:
        """It does nothing by itself."""
        return ""

    def next_due(self) -> None:
        """Delayed messages are in the delay topic, whose own processor says when they are due."""

    def _restore_attempts(self, assignment: Assignment) -> None:
        log, topic, partition = self._app.log, assignment.topic, assignment.partition
        attempt_topic = self._topics[topic].attempts
        if partition >= log.topic(attempt_topic).partitions:
            return
        first, end = log.watermarks(attempt_topic, partition)
        _, last = log.watermarks(topic, partition)
        if first >= end:
            return
        oldest = read_first(log, topic, partition, assignment.position, last)
        if oldest is None:
            return
        since = log.offset_for_time(attempt_topic, partition, oldest.time(0) - CLOCK_SKEW)
        restored: dict[Position, int] = {}
        for batch in read_batches(log, attempt_topic, partition, max(first, since), end):
            for key, value in zip(batch.keys, batch.values, strict=True):
                parts, attempts = wire.parse_position(key), wire.parse_int(value)
                if parts is None or attempts is None or attempts > DELAYED:
                    continue
                position = Position(*parts)
                # A note about a message that is yet to come is a stranger's.
                if position.topic == topic and assignment.position <= position.offset < last:
                    restored[position] = max(restored.get(position, 0), attempts)
        self._restored_attempts |= restored


def _partition_count(topic: str, log: Log) -> int:
    return log.topic(topic).partitions


def _position(batch: Batch, index: int) -> Position:
    return Position(batch.topic, batch.partition, batch.offsets[index])
