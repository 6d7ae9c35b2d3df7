"""Attempts that are counted in the log: ``Retry(in_order=False)`` and ``Retry(durable=True)``.

A message that gives its order up, or has none, waits in the group's delay topic,
``{topic}.{group}.delay``, and comes back through ``{topic}.{group}.retry``, which its processor
reads anyway, with the number of its attempts in a header. It holds nothing up meanwhile, takes no
memory, and is settled where it failed: its ID with the redrive count is its identity, so each
attempt is a message of its own to deduplication.

A message that keeps its order stays in its key queue.

Either is noted in ``{topic}.{group}.attempts``, in the partition of the same number, before the
message is settled or tried again. The partition's next owner reads the notes that are younger than
the oldest message that is not settled: it counts on, and passes over what waits elsewhere already.
Notes are kept for :data:`ATTEMPTS_RETENTION` seconds; older ones count for nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from streams import wire
from streams.derived_records import ERROR_ATTEMPTS, ERROR_PREFIX, ORIGIN, attempts_of, redrives_of
from streams.engine.dispatcher import Delivery
from streams.errors import LogError
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Log, Retention, ensure_topic
from streams.message import ID, REDRIVE, TIME, Batch, Position, Record
from streams.processing.job import Outgoing
from streams.processor import Processor
from streams.retries.records import LATEST_DUE, entry_record, retry_entry_id
from streams.retries.scheduler import DeclaringConnection, DelayScheduler, declare_scheduler
from streams.text import get_logger

logger = get_logger("streams.delay")

PENDING_LIMIT = 200_000
"""Messages a partition whose due time is held in memory at once."""

ATTEMPTS_RETENTION = 7 * 86_400.0
"""Seconds for which a note counts."""

CLOCK_SKEW = 3600.0
"""Seconds by which the clocks of those who publish may differ."""

DELAYED = 1 << 30
"""A note that says: the message waits elsewhere. More attempts than there can be."""

_READ_ATTEMPTS = 5


def delay_topic(topic: str, group: str) -> str:
    """Where messages of ``topic`` wait that ``group`` handles later."""
    return f"{topic}.{group}.delay"


class DurableAttemptLog:
    """See :class:`streams.processing.job.ManagedAttemptLog`.

    Making one declares what keeps messages that wait elsewhere: helpers of the processor.
    """

    def __init__(self, app: DeclaringConnection, processor: Processor[..., Any]) -> None:
        options = processor.options
        self._app = app
        self._group = group = processor.group
        self._unordered = not options.retry.in_order
        self._delay_topics: dict[str, str] = {}
        """The delay topic, by the topic read."""
        self._retry_topics: dict[str, str] = {}
        """The topic through which messages come back, by the topic read."""
        self._attempt_topics: dict[str, str] = {}
        """The topic of notes, by the topic read."""
        self._restored_attempts: dict[tuple[str, int, int], int] = {}
        """Attempts of messages of a partition's former owner, by place."""
        self.schedulers: dict[str, DelayScheduler] = {}
        """Who keeps the delay topic, by source topic."""
        for source in options.topics:
            delay = check_topic(delay_topic(source.name, group))
            retry = options.dead_letters.retry(source.name, group)
            for name in (source.name, retry):
                self._delay_topics[name], self._retry_topics[name] = delay, retry
                self._attempt_topics[name] = check_topic(f"{source.name}.{group}.attempts")
            scheduler = self.schedulers[source.name] = declare_scheduler(
                app,
                delay,
                _partition_count_of(source.name),
                {source.name, retry}.__contains__,
                PENDING_LIMIT,
            )
            if scheduler.processor is not None:
                processor.helpers.append(scheduler.processor)

    def prepare(self, log: Log) -> None:
        """Create the topics of notes, and those through which messages come back, each with as
        many partitions as its source: as many members can share the work; blocks."""
        for topic in self.schedulers:
            count = log.topic(topic).partitions
            ensure_topic(
                log, self._attempt_topics[topic], count, Retention(seconds=ATTEMPTS_RETENTION)
            )
            ensure_topic(
                log, self._retry_topics[topic], count, config=log.capabilities.dead_letter_config
            )

    # -- asked by the executor

    def failed_attempts(self, batch: Batch, index: int) -> int:
        """How often a message that was just taken up failed before."""
        if self._restored_attempts:
            restored = self._restored_attempts.get(
                (batch.topic, batch.partition, batch.offsets[index])
            )
            if restored is not None:
                return restored
        return 0 if batch.topic in self.schedulers else attempts_of(batch.headers(index))

    def record_failure(
        self, delivery: Delivery, attempt: int, delay: float
    ) -> tuple[Outgoing | None, Outgoing]:
        """The message as it comes back, if it leaves; and a note."""
        batch, index = delivery.fetched.batch, delivery.index
        if self._unordered or batch.keys[index] is None:
            return self._delayed_copy(batch, index, attempt, delay), self._attempt_record(
                batch, index, DELAYED
            )
        position = (batch.topic, batch.partition, batch.offsets[index])
        if self._restored_attempts.get(position) or attempts_of(batch.headers(index)):
            self._restored_attempts[position] = 0  # from now on it is part of the work
        return None, self._attempt_record(batch, index, attempt)

    def is_delayed(self, batch: Batch, index: int) -> bool:
        """The message waits in the delay topic, or did."""
        restored = self._restored_attempts
        if not restored:
            return False
        return restored.get((batch.topic, batch.partition, batch.offsets[index])) == DELAYED

    def nothing_recorded(self, batch: Batch) -> bool:
        """Nothing is noted, and the headers of these hold no count."""
        return not self._restored_attempts and batch.topic in self.schedulers

    def _attempt_record(self, batch: Batch, index: int, attempt: int) -> Outgoing:
        name = str(Position(batch.topic, batch.partition, batch.offsets[index]))
        record = Record(
            str(attempt).encode(), name.encode(), f"{name}/{attempt}", (), batch.partition
        )
        return self._attempt_topics[batch.topic], record

    def _delayed_copy(self, batch: Batch, index: int, attempt: int, delay: float) -> Outgoing:
        headers = batch.headers(index)
        redrive = redrives_of(headers) + 1
        own_headers = [
            (name, value)
            for name, value in headers
            if name not in (ID, REDRIVE) and not name.startswith(ERROR_PREFIX)
        ]
        if not any(name == TIME for name, _ in own_headers):
            own_headers.append(
                (TIME, wire.utc_from_seconds(batch.time(index)).isoformat().encode())
            )
        if batch.topic in self.schedulers and not any(name == ORIGIN for name, _ in own_headers):
            origin = f"{batch.topic}/{batch.partition}/{batch.offset(index)}"
            own_headers.append((ORIGIN, origin.encode()))
        own_headers += [(REDRIVE, str(redrive).encode()), (ERROR_ATTEMPTS, str(attempt).encode())]
        id = batch.id(index)
        record = Record(batch.values[index], batch.keys[index], id, own_headers)
        due = min(math.ceil((self._app.clock.time() + delay) * 1000), LATEST_DUE)
        known = retry_entry_id(id, headers, redrive)
        retry_topic = self._retry_topics[batch.topic]
        copy = entry_record(record, retry_topic, due, entry_id=known, id=f"{known}/{self._group}")
        return self._delay_topics[batch.topic], copy

    # -- told by the poller

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Read what the former owners noted."""
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
        """Forget what was noted of these."""
        revoked = {(each.topic, each.partition) for each in assignments}
        remaining = {
            position: n
            for position, n in self._restored_attempts.items()
            if position[:2] not in revoked
        }
        self._restored_attempts = remaining

    def unfinished(self) -> str:
        """Nothing happens here by itself."""
        return ""

    def next_due(self) -> None:
        """What waits is in the delay topic, whose own processor says when it is due."""

    def _restore_attempts(self, assignment: Assignment) -> None:
        log, topic, partition = self._app.log, assignment.topic, assignment.partition
        attempt_topic = self._attempt_topics[topic]
        if partition >= log.topic(attempt_topic).partitions:
            return
        first, end = log.watermarks(attempt_topic, partition)
        _, last = log.watermarks(topic, partition)
        if first >= end or assignment.position >= last:
            return
        source_reader = log.reader(topic, partition, assignment.position, last)
        try:
            oldest = source_reader.read(1)
        finally:
            source_reader.close()
        if oldest is None:
            return
        start = max(
            first, log.offset_for_time(attempt_topic, partition, oldest.time(0) - CLOCK_SKEW)
        )
        if start >= end:
            return
        reader = log.reader(attempt_topic, partition, start, end)
        restored: dict[tuple[str, int, int], int] = {}
        try:
            while (batch := reader.read(1_000)) is not None:
                for key, value in zip(batch.keys, batch.values, strict=True):
                    position = wire.parse_position(key)
                    if (
                        position is None
                        or position[0] != topic
                        or position[2] < assignment.position
                    ):
                        continue
                    attempts = wire.parse_int(value)
                    if attempts is not None and attempts <= DELAYED:
                        restored[position] = max(restored.get(position, 0), attempts)
        finally:
            reader.close()
        self._restored_attempts |= restored


def _partition_count_of(topic: str) -> Any:
    return lambda log: log.topic(topic).partitions
