"""Attempts that are counted in the log: ``Retry(in_order=False)`` and ``Retry(durable=True)``.

A message that need not keep its order (it has no key, or ``in_order`` is False) waits in the
group's delay topic, ``{topic}.{group}.delay``, and comes back through ``{topic}.{group}.retry``,
which its processor reads anyway, with the number of its attempts in a header. Meanwhile it blocks
no other message and takes no memory. At the position where it failed it is settled: its redrive
count is part of its identity (:func:`streams.message.make_identity`), so deduplication treats each
attempt as a separate message.

A message that keeps its order stays in its key queue.

In both cases a note is written to ``{topic}.{group}.attempts``, in the partition of the same
number, before the message is settled or tried again. (With ``exactly_once=True`` the delayed copy
is stored together with the progress, and needs no note.) The partition's next owner reads the notes
that are younger than the oldest unsettled message: it continues the count, and skips messages that
wait in the delay topic. The note of a delayed message is written once its copy is in the log, with
the copy's position, and counts only if the copy is found there.

A note counts until the group is reset: it holds the generation of the group's last reset. An owner
that finds no progress of a former one (the group is new, or was deleted, another tool has set its
position, or the log has lost its end) writes a record to that topic that the group starts over, and
notes before it do not count. So messages that are handled again on purpose begin with their first
attempt.

Notes are kept for :data:`ATTEMPTS_RETENTION` seconds; older ones are ignored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from streams import wire
from streams.derived_records import (
    ERROR_ATTEMPTS,
    ORIGIN,
    attempts_of,
    first_position,
    headers_to_return,
    redrives_of,
)
from streams.engine.dispatcher import Delivery
from streams.engine.progress import is_progress, is_within
from streams.errors import LogError
from streams.log.appending import append_and_wait
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Log, Retention, ensure_topic
from streams.log.range_reader import read_batches_alive, read_first
from streams.log.record_fetcher import RecordFetcher
from streams.message import GENERATION, ID, REDRIVE, TIME, Batch, Position, Record
from streams.processing.job import FailureRecord, Outgoing, reset_generation, settled_ahead
from streams.processor import Processor
from streams.retries.records import LATEST_DUE, entry_key, entry_record, parse_entry, retry_entry_id
from streams.retries.scheduler import DeclaringConnection, declare_scheduler
from streams.text import count_with_noun, get_logger

logger = get_logger("streams.delay")

PENDING_LIMIT = 200_000
"""Messages of a partition whose due times are held in memory, at most."""

ATTEMPTS_RETENTION = 7 * 86_400.0
"""Seconds for which a note is kept."""

CLOCK_SKEW = 3600.0
"""Seconds by which the clocks of publishers may differ."""

DELAYED = 1 << 30
"""The count in the note of a delayed message: more attempts than there can be."""

COPY = "streams_delayed_copy"
"""Header of a note: the position of the message's copy in the delay topic."""

STARTS_OVER = b"starts-over"
"""The key of a record that voids all earlier notes on messages of one topic: its value."""

_READ_ATTEMPTS = 5

_COPIES_AT_ONCE = 1_000
"""Copies that are looked up between two calls of ``keep_alive``, at most."""

_COPY_BYTES = 16 << 20
"""The total size of these copies in bytes, approximately."""


def delay_topic(topic: str, group: str) -> str:
    """The topic in which messages of ``topic`` wait until ``group`` handles them."""
    return f"{topic}.{group}.delay"


class _RetryTopics(NamedTuple):
    """The topics that belong to one source topic."""

    delay: str
    """The topic in which its messages wait."""
    retry: str
    """The topic through which they come back."""
    attempts: str
    """The topic of the notes on their attempts."""


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
        self._topics: dict[str, _RetryTopics] = {}
        """By source topic."""
        self._restored_attempts: dict[Position, int] = {}
        """Attempts that former owners noted, for messages that were not delivered here yet."""
        self._restored_copies: dict[Position, bytes] = {}
        """The keys of entries that were found in the delay topic, by the position of the message
        that a former owner delayed."""
        for source in self._sources:
            topics = _RetryTopics(
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
        """Create the attempts and retry topics, each with as many partitions as its source, so that
        as many members can share the work; blocks."""
        for source in self._sources:
            count, topics = log.describe_topic(source).partitions, self._topics[source]
            ensure_topic(log, topics.attempts, count, Retention(seconds=ATTEMPTS_RETENTION))
            ensure_topic(log, topics.retry, count, config=log.capabilities.dead_letter_config)

    # -- called by the executor

    def failed_attempts(self, batch: Batch, index: int) -> int:
        """How often a message that was just fetched failed before."""
        if self._restored_attempts:
            restored = self._restored_attempts.get(_batch_position(batch, index))
            if restored is not None:
                return restored
        return 0 if batch.topic in self._sources else attempts_of(batch.headers(index))

    def record_failure(self, delivery: Delivery, attempt: int, delay: float) -> FailureRecord:
        """The entry for the delay topic, if the message is to wait there; else a note."""
        batch, index = delivery.fetched.batch, delivery.index
        if self._unordered or batch.keys[index] is None:
            return FailureRecord(self._delayed_copy(delivery, attempt, delay), is_delayed=True)
        position = _batch_position(batch, index)
        if self._restored_attempts.get(position) or attempts_of(batch.headers(index)):
            self._restored_attempts[position] = 0  # from now on the delivery holds it
        return FailureRecord(self._attempt_note(delivery, attempt, []), is_delayed=False)

    def delayed_note(self, delivery: Delivery, copy: Position) -> Outgoing:
        """A note that the message waits in the delay topic, at this position."""
        return self._attempt_note(delivery, DELAYED, [(COPY, str(copy).encode())])

    def is_delayed(self, batch: Batch, index: int) -> bool:
        """Whether the message waits in the delay topic, or has come back from it."""
        if not self._restored_copies:
            return False
        key = self._restored_copies.get(_batch_position(batch, index))
        return key is not None and key == entry_key(self._entry_id(batch, index))

    def has_no_records(self, batch: Batch) -> bool:
        """Whether no note was restored, and the headers of these messages hold no count."""
        return (
            not self._restored_attempts
            and not self._restored_copies
            and batch.topic in self._sources
        )

    def _entry_id(self, batch: Batch, index: int) -> str:
        """Identifies the entry of a message's next attempt."""
        first = first_position(batch, index, has_come_back=batch.topic not in self._sources)
        return retry_entry_id(first, redrives_of(batch.headers(index)) + 1)

    def _attempt_note(
        self, delivery: Delivery, attempt: int, headers: list[tuple[str, bytes | None]]
    ) -> Outgoing:
        batch = delivery.fetched.batch
        name, count = str(_batch_position(batch, delivery.index)), str(attempt).encode()
        generation = reset_generation(delivery.fetched.state.assignment)
        if generation:
            headers.append((GENERATION, str(generation).encode()))
        # A unique ID: a log may keep only one record of each ID, and perhaps the one from before
        # the group started over.
        record = Record(count, name.encode(), uuid4().hex, headers, batch.partition)
        return self._topics[batch.topic].attempts, record

    def _delayed_copy(self, delivery: Delivery, attempt: int, delay: float) -> Outgoing:
        batch, index = delivery.fetched.batch, delivery.index
        headers = batch.headers(index)
        redrive = redrives_of(headers) + 1
        own_headers = headers_to_return(
            delivery, (ID, REDRIVE), has_come_back=batch.topic not in self._sources
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
        known = self._entry_id(batch, index)
        topics = self._topics[batch.topic]
        return topics.delay, entry_record(record, topics.retry, due, entry_id=known)

    # -- called by the poller

    def assigned(self, assignments: Sequence[Assignment], keep_alive: Callable[[], None]) -> None:
        """Read the notes of former owners."""
        # A handler that outlived the last ownership may have noted some.
        self._forget_partitions(assignments)
        for assignment in assignments:
            for tries in range(1, _READ_ATTEMPTS + 1):
                try:
                    self._restore_attempts(assignment, keep_alive)
                    break
                except LogError as error:
                    if tries == _READ_ATTEMPTS:
                        logger.error(
                            "%s: attempts of waiting messages start over: %s", assignment, error
                        )
                    else:
                        time.sleep(0.1 * tries)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Forget the notes on messages of these partitions."""
        self._forget_partitions(assignments)

    def _forget_partitions(self, assignments: Sequence[Assignment]) -> None:
        revoked = {(each.topic, each.partition) for each in assignments}
        restored: tuple[dict[Position, Any], ...] = self._restored_attempts, self._restored_copies
        for noted in restored:
            # Change it in place: the executor writes to it meanwhile.
            for position in list(noted):
                if position[:2] in revoked:
                    noted.pop(position, None)

    def describe_pending_work(self) -> str:
        """Nothing: it does no work of its own."""
        return ""

    def next_due(self) -> None:
        """None: the processor of the delay topic says when delayed messages are due."""

    def _restore_attempts(self, assignment: Assignment, keep_alive: Callable[[], None]) -> None:
        log, topic, partition = self._app.log, assignment.topic, assignment.partition
        attempt_topic = self._topics[topic].attempts
        if partition >= log.describe_topic(attempt_topic).partitions:
            return
        first, end = log.watermarks(attempt_topic, partition)
        _, last = log.watermarks(topic, partition)
        if first >= end:
            return
        committed = assignment.committed
        if (
            committed is None
            or not is_progress(committed.progress)
            or assignment.position < committed.position  # the log has lost its end
        ):
            record = Record(topic.encode(), STARTS_OVER, uuid4().hex, (), partition)
            (answer,) = append_and_wait(log, attempt_topic, [record], keep_alive)
            if isinstance(answer, LogError):
                raise answer
            return
        oldest = read_first(log, topic, partition, assignment.position, last)
        if oldest is None:
            return
        start, taken = first, oldest.time(0)
        # On Kafka the publisher sets the timestamp. One in the future is useless.
        if taken <= self._app.clock.time():
            since = log.offset_for_time(attempt_topic, partition, taken - CLOCK_SKEW)
            start = max(first, since)
        generation, settled = reset_generation(assignment), settled_ahead(committed)
        restored: dict[Position, int] = {}
        copies: dict[Position, Position] = {}
        for batch in read_batches_alive(log, attempt_topic, partition, start, end, keep_alive):
            for index, key in enumerate(batch.keys):
                if key == STARTS_OVER and batch.values[index] == topic.encode():
                    restored, copies = {}, {}
                note = _parse_note(batch, index)
                if note is None or note.generation != generation:
                    continue
                position = note.position
                if (
                    position[:2] != (topic, partition)
                    # A note on a message that does not exist yet was written by another program.
                    or not assignment.position <= position.offset < last
                    or is_within(position.offset, settled)
                ):
                    continue
                if note.attempts < DELAYED:
                    restored[position] = max(restored.get(position, 0), note.attempts)
                elif note.copy is not None:
                    copies[position] = note.copy
        self._restored_attempts |= restored
        self._restored_copies |= self._find_copies(topic, copies, keep_alive)

    def _find_copies(
        self, topic: str, copies: Mapping[Position, Position], keep_alive: Callable[[], None]
    ) -> dict[Position, bytes]:
        """The keys of those entries that are found in the delay topic, by the delayed message.

        :param copies: the noted position of each entry, by the position of the delayed message.
        """
        if not copies:
            return {}
        log, topics = self._app.log, self._topics[topic]
        delay = topics.delay
        count = log.describe_topic(delay).partitions
        wanted: dict[int, set[int]] = {}
        for copy in copies.values():
            if copy.topic == delay and copy.partition < count:
                wanted.setdefault(copy.partition, set()).add(copy.offset)
        keys: dict[Position, bytes] = {}
        for partition, offsets in wanted.items():
            first, end = log.watermarks(delay, partition)
            fetcher = RecordFetcher(log, delay, partition)
            left = sorted(offset for offset in offsets if first <= offset < end)
            while left:
                rows, _ = fetcher.fetch(left[:_COPIES_AT_ONCE], _COPY_BYTES)
                keep_alive()
                left = left[len(rows) :]
                for offset, row in rows.items():
                    entry = row and parse_entry(row.key, row.value, row.headers)
                    if entry and entry.topic == topics.retry:
                        keys[Position(delay, partition, offset)] = entry.key
        found = {position: keys[copy] for position, copy in copies.items() if copy in keys}
        if len(found) < len(copies):
            logger.warning(
                "%s: of %s that wait in %s by what was noted, %d are not there and are handled "
                "again",
                topic, count_with_noun(len(copies), "message"), delay, len(copies) - len(found),
            )  # fmt: skip
        return found


class _AttemptNote(NamedTuple):
    """The content of a record of the attempts topic."""

    position: Position
    attempts: int
    """How often the message failed, or :data:`DELAYED`."""
    generation: int
    """The generation of its group (the last reset) when it failed."""
    copy: Position | None
    """The position of its copy in the delay topic, if it is delayed."""


def _parse_note(batch: Batch, index: int) -> _AttemptNote | None:
    """The note in a record; None: it is not a note."""
    position = wire.parse_position(batch.keys[index])
    attempts = wire.parse_int(batch.values[index])
    if position is None or attempts is None or attempts > DELAYED:
        return None
    headers = dict(batch.headers(index))
    copy = wire.parse_position(headers.get(COPY))
    return _AttemptNote(
        Position(*position),
        attempts,
        wire.parse_int(headers.get(GENERATION)) or 0,
        None if copy is None else Position(*copy),
    )


def _partition_count(topic: str, log: Log) -> int:
    return log.describe_topic(topic).partitions


def _batch_position(batch: Batch, index: int) -> Position:
    return Position(batch.topic, batch.partition, batch.offsets[index])
