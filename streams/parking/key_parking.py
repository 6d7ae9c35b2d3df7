"""Key parking for a processor: the owner of a source partition keeps its closed keys.

The rules, and the effects of a crash, are at the head of :mod:`streams.parking.records`. This is
their I/O. For each source partition that is owned there is a :class:`PartitionParking`, which

1. reads the partition's records from the *floor* on and opens its epoch, before any message of the
   partition is handled; the floor is the position of a group without members, named like the topic;
2. decides for each message that is about to be handled whether its key is closed, and what to write
   in that case;
3. reads back its records before the source's position is committed: all that were confirmed since
   the last commit at once, and none if nothing was parked;
4. reads on while keys are closed, fetches the messages that are to be handled again, and has the
   processor handle them before the other messages in their key queue;
5. moves the floor.

If the log can do so (:attr:`~streams.log.protocol.Assignment.append_as_owners`), a record is
written in one step with a check that the partition is still owned.

An owner whose record is refused by that check, that reads that its epoch was replaced, or whose
confirmed records are not in the log, stops working on the partition: the poller gives it up, and
starts it again at the committed position, if it still owns it
(:meth:`DurableKeyParking.replaced_epochs`).

Memory holds keys, offsets and positions, never payloads, of at most :data:`PARKED_LIMIT` messages
of a partition. At that limit, messages wait in their key queues instead of being parked. Payloads
are fetched at most :data:`FETCH_AHEAD` messages ahead, per key.

The poller's thread starts partitions, reads and fetches; the calls of the executor need no I/O.
Each partition has a lock that guards it against both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from streams.connection import Connection
from streams.derived_records import header_text
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.errors import (
    Fatal,
    Fenced,
    LogError,
    NotFound,
    OutcomeUnknown,
    TopicMismatch,
    Unavailable,
)
from streams.log.appending import append_and_wait
from streams.log.floor import ensure_topic_with_floor
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Committed, Log, Retention, ensure_topic
from streams.log.range_reader import read_batches
from streams.log.record_fetcher import FetchedRow, RecordFetcher
from streams.message import UNREADABLE, Batch, Record
from streams.parking import records
from streams.parking.reading import read_floor
from streams.parking.records import MessageKind, ParkedQueue, ParkingState, parked_topic
from streams.processing.job import Outgoing, ParkDecision
from streams.processor import Processor
from streams.text import get_logger

logger = get_logger("streams.dead")

PARKED_LIMIT = 500_000
"""Messages in the queues of a partition's closed keys, at most."""

FETCH_AHEAD = 64
"""Messages of one key that are fetched ahead, at most."""

FETCH_LIMIT = 1_000
"""Messages of a partition in one fetch, at most."""

FETCH_BYTES = 4 << 20
"""Bytes of one fetch, at most; a single larger message is fetched alone."""

READ_INTERVAL = 0.25
"""Real seconds between two reads of new records, while keys are closed."""

FLOOR_INTERVAL = 5.0
"""Real seconds between two moves of the floor, at least."""

LOST_AFTER = 10.0
"""Real seconds after which a confirmed record that cannot be read counts as lost."""

RESTART_PAUSE = 1.0
"""Real seconds before a partition whose epoch was replaced twice is started again; doubled each
time after that, up to 30. After the first replacement it is started again at once."""

REPLACEMENT_MEMORY = 60.0
"""Real seconds without another replacement after which the next one counts as the first."""

PARKED_RETENTION = Retention(messages=10_000)
"""Retention of the topic on a log that trims: everything from the floor on, and some more."""

RETRY_PAUSE = 0.5
"""Seconds until another try to read a partition that could not be read."""


class ReturnedBatch(FetchedBatch):
    """Parked messages that come back to the handler, as they were in their source."""

    __slots__ = ("recall_numbers",)

    def __init__(self, state: PartitionState, batch: Batch, recall_numbers: list[int]) -> None:
        super().__init__(state, batch)
        self.recall_numbers = recall_numbers


class DurableKeyParking:
    """See :class:`streams.processing.job.ManagedKeyParking`."""

    def __init__(self, connection: Connection, processor: Processor[..., Any]) -> None:
        self._connection = connection
        self._group = group = processor.group
        self._topics = {each: check_topic(parked_topic(each, group)) for each in processor.topics}
        """The topic of closed keys, by source topic."""
        self._partitions: dict[tuple[str, int], PartitionParking] = {}
        self._replacements: dict[tuple[str, int], tuple[int, float]] = {}
        """How often the epoch of a partition was replaced recently, and when it last was."""
        self.wake_poller: Callable[[], None] = lambda: None

    def prepare(self, log: Log) -> None:
        """Create the topics of closed keys, with as many partitions as their sources."""
        for topic, name in self._topics.items():
            ensure_parked_topic(log, name, log.describe_topic(topic).partitions, topic)

    # -- the poller's side

    def restore(
        self,
        assignment: Assignment,
        position: int,
        *,
        after_reset: bool,
        keep_alive: Callable[[], None],
    ) -> Collection[int]:
        """Read which keys are closed, and open an epoch."""
        name = self._topics.get(assignment.topic)
        if name is None:
            return ()
        now = self._connection.clock.monotonic
        partition = PartitionParking(self._connection.log, assignment, name, self._group, now)
        partition.open_epoch(position, after_reset=after_reset, keep_alive=keep_alive)
        self._partitions[assignment.topic, assignment.partition] = partition
        return list(partition.state.source_offsets)

    def begin(self, assignment: Assignment, state: PartitionState) -> None:
        """Note that the partition's messages are handled from now on."""
        partition = self._owned_partition(assignment)
        if partition is not None:
            partition.partition_state = state

    def release(self, assignments: Sequence[Assignment]) -> None:
        """Note that these partitions are given up or lost."""
        for each in assignments:
            if self._owned_partition(each) is not None:
                del self._partitions[each.topic, each.partition]

    def _owned_partition(self, assignment: Assignment) -> PartitionParking | None:
        partition = self._partitions.get((assignment.topic, assignment.partition))
        return partition if partition is not None and partition.assignment is assignment else None

    def take_returned(self) -> Sequence[FetchedBatch]:
        """Read new records, and fetch the messages that are to be handled. A partition that cannot
        be read now holds up no other, and messages that were fetched of others are not lost."""
        now = time.monotonic()
        found: list[FetchedBatch] = []
        for partition in list(self._partitions.values()):
            try:
                fetched = partition.take_returned(now)
            except (Fatal, NotFound):
                raise
            except LogError as error:
                partition.record_read_failure(error)
            else:
                if fetched is not None:
                    found.append(fetched)
        return found

    def is_confirmed(self, assignment: Assignment) -> bool:
        """Whether all parked records of a partition were read back, so that it may be committed."""
        partition = self._owned_partition(assignment)
        try:
            return partition is None or partition.is_confirmed()
        except LogError as error:
            # The position is committed later, once the log answers.
            logger.warning("%s: cannot be read back: %s", partition, error)
            return False

    def replaced_epochs(self) -> Sequence[tuple[Assignment, float]]:
        """Assignments that must be started again, and after how many seconds."""
        found: list[tuple[Assignment, float]] = []
        now = time.monotonic()
        for partition, parking in list(self._partitions.items()):
            if not parking.ended_reason:
                continue
            if parking.is_fenced:  # an ordinary loss: no second owner wrote
                logger.warning("%s/%d: %s", parking.name, parking.partition, parking.ended_reason)
                found.append((parking.assignment, 0.0))
                continue
            count, last = self._replacements.get(partition, (0, 0.0))
            count = count + 1 if now - last < REPLACEMENT_MEMORY else 1
            self._replacements[partition] = (count, now)
            longest = 0.0 if count == 1 else REPLACEMENT_MEMORY / 2
            pause = min(longest, RESTART_PAUSE * 2.0 ** min(count - 2, 10))
            logger.error(
                "%s/%d: %s; begins again at the committed position%s",
                parking.name, parking.partition, parking.ended_reason,
                f" in {pause:g} s" if pause else "",
            )  # fmt: skip
            found.append((parking.assignment, pause))
        return found

    def contested_partitions(self) -> int:
        """How many partitions another owner wrote to recently (any thread)."""
        since = time.monotonic() - REPLACEMENT_MEMORY
        return sum(last > since for _, last in list(self._replacements.values()))

    def closed_keys(self) -> tuple[int, int]:
        """How many keys are closed, and how many messages wait behind their heads."""
        states = [each.state for each in list(self._partitions.values())]
        keys = sum(len(each.keys) for each in states)
        return keys, max(0, sum(each.parked_messages for each in states) - keys)

    def describe_pending_work(self) -> str:
        """Why parking is not idle, in words (any thread)."""
        for partition in list(self._partitions.values()):
            if partition.has_returning:
                return "parked messages are coming back"
            if partition.has_unread:
                return "what was said of closed keys was not read yet"
        return ""

    # -- the executor's side

    def decide(self, delivery: Delivery) -> ParkDecision | None:
        """None: the message is to be handled."""
        partition = self._partition_of(delivery)
        if partition is not None:
            return partition.decide(delivery)
        if self._was_released(delivery):
            raise _released_error(delivery)
        return None

    def is_closed(self, delivery: Delivery) -> bool:
        """Whether the message's key is closed, the message has come back, or its partition was
        released."""
        partition = self._partition_of(delivery)
        if partition is None:
            return self._was_released(delivery)
        key = delivery.fetched.keys[delivery.index]
        return key is not None and key in partition.state.keys

    def _was_released(self, delivery: Delivery) -> bool:
        """Whether the message's partition was released, and the executor has not been told yet: its
        closed keys are no longer known, and the partition's next owner handles the message."""
        return delivery.fetched.batch.topic in self._topics

    def no_key_closed(self, fetched: FetchedBatch) -> bool:
        """Whether no key of the partition is closed."""
        batch = fetched.batch
        if batch.topic not in self._topics:
            return True
        partition = self._partitions.get((batch.topic, batch.partition))
        return (
            partition is not None
            and partition.partition_state is fetched.state
            and not partition.state.keys
        )

    def has_returned(self, delivery: Delivery) -> bool:
        """Whether the message came back through :meth:`take_returned`."""
        return type(delivery.fetched) is ReturnedBatch

    def close_key(self, delivery: Delivery, dead_letter: Outgoing) -> Outgoing:
        """The record by which a dead message closes its key; a message without a key goes to the
        dead letters."""
        partition = self._partition_of(delivery)
        if partition is not None:
            return partition.close_key(delivery, dead_letter)
        if self._was_released(delivery) and delivery.fetched.keys[delivery.index] is not None:
            raise _released_error(delivery)
        return dead_letter

    def handled_record(self, delivery: Delivery) -> Outgoing:
        """The done record of a message that had come back and was handled."""
        fetched, index = delivery.fetched, delivery.index
        partition, key = self._partition_of(delivery), fetched.keys[index]
        if partition is None or key is None:
            raise _released_error(delivery)
        offset = fetched.batch.offsets[index]
        return partition.name, records.done_record(
            partition.epoch, partition.partition, offset, key
        )

    def write_confirmed(self, delivery: Delivery) -> bool:
        """Note that the record of this message is confirmed. False: the record is void, as the
        partition is no longer owned."""
        fetched, index = delivery.fetched, delivery.index
        if fetched.batch.topic not in self._topics or fetched.keys[index] is None:
            return True  # an ordinary dead letter
        partition = self._partition_of(delivery)
        if not fetched.state.is_owned or partition is None:
            return False
        if type(fetched) is not ReturnedBatch:
            partition.write_confirmed(fetched.batch.offsets[index])
        elif delivery.reason is None and partition.handled_confirmed(delivery):
            self.wake_poller()
        return True

    def write_refused(self, delivery: Delivery) -> None:
        """Note that the log refused the record of this message."""
        partition = self._partition_of(delivery)
        if partition is not None and type(delivery.fetched) is not ReturnedBatch:
            partition.write_refused(delivery)

    def write_fenced(self, delivery: Delivery) -> None:
        """Note that the log refused the record of this message, as the partition is no longer
        owned."""
        delivery.fetched.state.assignment.valid_until = float("-inf")  # start no further handler
        partition = self._partition_of(delivery)
        if partition is not None:
            partition.write_fenced()
            self.wake_poller()

    def _partition_of(self, delivery: Delivery) -> PartitionParking | None:
        batch = delivery.fetched.batch
        partition = self._partitions.get((batch.topic, batch.partition))
        current = partition is not None and partition.partition_state is delivery.fetched.state
        return partition if current else None


def _released_error(delivery: Delivery) -> Unavailable:
    return Unavailable(f"{delivery.fetched.batch.topic}: not owned any more")


class _ReturnCandidate(NamedTuple):
    """A message that is to be fetched and handled."""

    key: bytes
    queue: ParkedQueue
    recall_number: int
    source_offset: int
    position: int


class PartitionParking:
    """The closed keys of one source partition that is owned."""

    def __init__(
        self, log: Log, assignment: Assignment, name: str, group: str, now: Callable[[], float]
    ) -> None:
        self._log = log
        self._now = now
        self._group = group
        self.assignment = assignment
        self.name = name
        self.partition = assignment.partition
        self.epoch = ""
        """The epoch of this owner, once it is open; empty before."""
        self.ended_reason = ""
        """Why the partition is to be given up; empty while it is not."""
        self.is_fenced = False
        """Whether the reason is that the log refused a write of this owner."""
        self.state = ParkingState()
        self.partition_state: PartitionState | None = None
        self._lock = threading.Lock()
        self._read_end = 0
        """Everything below this position was read."""
        self._fetcher = RecordFetcher(log, name, assignment.partition)
        self._limit_reported = False
        """Whether it was logged that the limit is reached."""
        self._next_read = 0.0
        self._read_soon = False
        self._not_before = float("-inf")
        """When the partition may be read again after a failed read (monotonic)."""
        self._is_unreadable = False
        self._committed_floor = -1
        self._next_floor_commit = time.monotonic() + FLOOR_INTERVAL
        self._floor_read_end = -1
        """The read end at which the floor last caught up with it."""
        self._unconfirmed: set[int] = set()
        """Source offsets whose records are being written."""
        self._confirmed_unread: set[int] = set()
        """Source offsets whose records are confirmed, and not read back yet."""
        self._missing_since: float | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.partition}"

    # -- the poller's side

    def open_epoch(
        self, position: int, *, after_reset: bool, keep_alive: Callable[[], None]
    ) -> None:
        """Read the partition, open the epoch, and read on up to its record.

        :raises Unavailable: another owner opened one meanwhile, the partition is owned no longer,
            or the log cannot be reached.
        """
        log, name, partition = self._log, self.name, self.partition
        start, end, in_force = read_floor(log, name, partition)
        self.state = ParkingState(in_force, keep_from=position)
        if in_force:
            self.state.epochs.append((start - 1, in_force))
        self._read_end = self._committed_floor = start
        self._read_to(end, keep_alive)
        owner, replaces = uuid4().hex, self.state.epoch
        opening = records.owner_record(owner, replaces, partition, after_reset=after_reset)
        (answer,) = append_and_wait(log, name, [opening], keep_alive, self.assignment)
        if isinstance(answer, (OutcomeUnknown, Fenced)):
            raise Unavailable(str(answer)) from answer
        if isinstance(answer, LogError):
            raise answer
        self.epoch = records.epoch_name(answer.offset, owner)
        self._read_to(answer.offset + 1, keep_alive)
        if self.state.epoch != self.epoch:
            # Either the other owner has the partition now, or its epoch is replaced at the next
            # try. The log tells which when the partition is requested again.
            raise Unavailable(
                f"{self}: another owner record was written between looking and writing"
            )
        if self.state.keys:
            logger.info("%s: %d keys are closed", self, len(self.state.keys))

    def _read_to(self, end: int, keep_alive: Callable[[], None] = lambda: None) -> None:
        """Read and apply the records up to a position."""
        if self._read_end >= end:
            return
        state, refused = self.state, self.state.refused_owners
        for batch in read_batches(self._log, self.name, self.partition, self._read_end, end):
            keep_alive()
            parsed = records.parse_batch(batch)
            with self._lock:
                for record in parsed:
                    state.apply(*record)
            self._read_end = batch.offsets[-1] + 1
        self._read_end = end
        if state.refused_owners > refused and self.epoch:
            logger.warning(
                "%s: an owner record is ignored: a former owner wrote it late, or a worker of "
                "an older release runs beside this one, or another program wrote it",
                self,
            )  # fmt: skip
        if self.epoch and state.epoch != self.epoch and not self.ended_reason:
            self.ended_reason = "another owner record has replaced this owner's"

    def is_confirmed(self) -> bool:
        """Whether every parked record so far was read back, so that later positions may be
        committed; reads new records.

        :raises LogError: the partition cannot be read now.
        """
        with self._lock:
            wanted = set(self._confirmed_unread)
        if not wanted:
            return True
        if self.ended_reason:
            return False
        self._read_to(self._log_end())
        with self._lock:
            missing = wanted.difference(self.state.source_offsets)
            self._confirmed_unread -= wanted - missing
        now = time.monotonic()
        if not missing:
            self._missing_since = None
            return True
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since >= LOST_AFTER and not self.ended_reason:
            self.ended_reason = "records that were confirmed are not in the log"
        return False

    def record_read_failure(self, error: LogError) -> None:
        """Note that the partition cannot be read now, and retry in a moment; logged once."""
        self._not_before = time.monotonic() + RETRY_PAUSE
        if not self._is_unreadable:
            logger.warning("%s: messages of closed keys wait for the log: %s", self, error)
        self._is_unreadable = True

    def take_returned(self, now: float) -> FetchedBatch | None:
        """Read new records if it is time to; returns the messages to be handled next.

        :raises LogError: the partition cannot be read now.
        """
        if self.ended_reason or now < self._not_before:
            return None
        found = self._take_returned(now)
        if self._is_unreadable:
            logger.warning("%s: can be read again", self)
            self._is_unreadable = False
        return found

    def _take_returned(self, now: float) -> FetchedBatch | None:
        state = self.state
        if state.has_unread and (now >= self._next_read or self._read_soon):
            self._next_read, self._read_soon = now + READ_INTERVAL, False
            self._read_to(self._log_end())
        if now >= self._next_floor_commit:
            self._next_floor_commit = now + FLOOR_INTERVAL
            self._commit_floor()
        return self._fetch_returned() if state.returning and not self.ended_reason else None

    @property
    def has_returning(self) -> bool:
        """Whether messages of some key are to be handled, and were not handed out yet."""
        with self._lock:
            return any(not queue.handed_out for queue in self.state.returning.values())

    @property
    def has_unread(self) -> bool:
        """Whether keys are closed, and there are records that were not read."""
        return bool(self.state.keys) and self._read_end < self._log_end()

    def _log_end(self) -> int:
        return self._log.watermarks(self.name, self.partition)[1]

    def _return_candidates(self) -> list[_ReturnCandidate]:
        candidates: list[_ReturnCandidate] = []
        with self._lock:
            for key, queue in self.state.returning.items():
                if queue.handed_out:
                    continue  # further messages would precede these in the key queue
                for index in range(min(len(queue), FETCH_AHEAD)):
                    position = queue.position_of(index)
                    if position < 0:
                        break
                    offset = queue.source_offsets[index]
                    candidates.append(
                        _ReturnCandidate(key, queue, queue.recall_number, offset, position)
                    )
                if len(candidates) >= FETCH_LIMIT:
                    break
        return candidates

    def _fetch_returned(self) -> FetchedBatch | None:
        """Fetch the messages that are to be handled next, those of a key in order."""
        partition_state, candidates = self.partition_state, self._return_candidates()
        if partition_state is None or not candidates:
            return None
        rows, _ = self._fetcher.fetch(sorted(each.position for each in candidates), FETCH_BYTES)
        chosen: list[tuple[_ReturnCandidate, FetchedRow]] = []
        skipped_keys: set[bytes] = set()
        with self._lock:
            for candidate in candidates:
                queue = candidate.queue
                if candidate.key in skipped_keys or self.state.keys.get(candidate.key) is not queue:
                    continue
                handed_out = queue.handed_out
                if (
                    queue.recall_number != candidate.recall_number
                    or candidate.position not in rows
                    or handed_out >= len(queue)
                    or queue.source_offsets[handed_out] != candidate.source_offset
                ):
                    skipped_keys.add(candidate.key)
                    continue
                row = rows[candidate.position]
                if row is None:
                    skipped_keys.add(candidate.key)
                    if handed_out == 0:
                        self._message_deleted(candidate)
                    continue
                queue.handed_out += 1
                chosen.append((candidate, row))
        return self._returned_batch(partition_state, chosen) if chosen else None

    def _message_deleted(self, candidate: _ReturnCandidate) -> None:
        logger.error(
            "%s: the message parked at %s was deleted before it was handled",
            self, self._log.format_offset(candidate.position),
        )  # fmt: skip
        self.state.remove_handled(candidate.key, candidate.source_offset)

    def _returned_batch(
        self, partition_state: PartitionState, chosen: Sequence[tuple[_ReturnCandidate, FetchedRow]]
    ) -> FetchedBatch:
        found = [records.read_original(row.headers) for _, row in chosen]
        batch = Batch(
            self.assignment.topic,
            self.partition,
            [each.source_offset for each, _ in chosen],
            [each.key for each, _ in chosen],
            [row.value for _, row in chosen],
            [each.id for each in found],
            [each.headers for each in found],
            [each.time for each in found],
            self.assignment,
            unreadable=_unreadable_reasons([row for _, row in chosen]),
        )
        return ReturnedBatch(partition_state, batch, [each.recall_number for each, _ in chosen])

    def _commit_floor(self) -> None:
        """Commit the floor, from which the next owner has to read; it never moves back."""
        if self._now() >= self.assignment.valid_until or self._read_end == self._floor_read_end:
            return
        log, name, topic = self._log, self.name, self.assignment.topic
        committed = log.committed(self._group, topic).get(self.partition)
        if committed is None:
            return
        with self._lock:
            read_end = self._read_end
            floor, epoch = self.state.floor(read_end, committed.position)
        if floor > self._committed_floor:
            current = log.committed(name, name).get(self.partition)
            if current is None or current.position < floor:
                log.reset_offsets(name, name, {self.partition: Committed(floor, epoch)}, force=True)
            self._committed_floor = floor
        if floor >= read_end:
            self._floor_read_end = read_end

    # -- the executor's side

    def decide(self, delivery: Delivery) -> ParkDecision | None:
        """None: the message is to be handled."""
        fetched, index = delivery.fetched, delivery.index
        key = fetched.keys[index]
        if key is None:
            return None
        if isinstance(fetched, ReturnedBatch):
            return self._check_order(key, fetched, index)
        if key not in self.state.keys:
            return None
        offset = fetched.batch.offsets[index]
        with self._lock:
            queue = self.state.keys.get(key)
            if queue is None or offset < queue.source_offsets[0]:
                # Messages before the head were handled before the head failed. They come again
                # because their position was not committed, or the group was reset.
                return None
            if offset in queue or offset in self.state.source_offsets:
                return ParkDecision(None)  # its record is in the log already
            self._check_limit(queue)
            self.state.expect_record(key, offset, dead=False)
            self._unconfirmed.add(offset)
        batch = fetched.batch
        headers = records.message_headers(batch.headers(index))
        message = Record(batch.values[index], key, batch.id(index), headers)
        return ParkDecision(self._parked_record("waits", batch, index, message))

    def _check_order(self, key: bytes, fetched: ReturnedBatch, index: int) -> ParkDecision | None:
        """None: a message that has come back is still the next one of its key."""
        with self._lock:
            queue = self.state.keys.get(key)
            if (
                queue is not None
                and not queue.is_dead
                and queue.recall_number == fetched.recall_numbers[index]
                and queue.source_offsets[0] == fetched.batch.offsets[index]
            ):
                return None
        return ParkDecision(None, is_duplicate=False)

    def close_key(self, delivery: Delivery, dead_letter: Outgoing) -> Outgoing:
        """The record that closes a dead message's key, or keeps it closed."""
        fetched, index = delivery.fetched, delivery.index
        batch, key = fetched.batch, fetched.keys[index]
        if key is None:
            return dead_letter
        offset = batch.offsets[index]
        if type(fetched) is not ReturnedBatch:
            with self._lock:
                queue = self.state.keys.get(key)
                if queue is not None and offset < queue.source_offsets[0]:
                    return dead_letter  # handled again, and before every parked message
                self._check_limit(queue)
                self.state.expect_record(key, offset, dead=True)
                self._unconfirmed.add(offset)
        return self._parked_record("dead", batch, index, dead_letter[1])

    def _parked_record(
        self, kind: MessageKind, batch: Batch, index: int, message: Record
    ) -> Outgoing:
        offset, time, partition = batch.offsets[index], batch.time(index), self.partition
        record = records.parked_record(kind, self.epoch, partition, offset, message, time)
        return self.name, record

    def _check_limit(self, queue: ParkedQueue | None) -> None:
        """Check the limit of parked messages. A message whose key is coming back is parked even
        beyond it: the returning messages make room, and cannot while this one blocks the key.

        :raises Unavailable: no more messages are parked for now.
        """
        if self.state.parked_messages < PARKED_LIMIT or (queue is not None and not queue.is_dead):
            self._limit_reported = False
            return
        complaint = (
            f"{self} holds {PARKED_LIMIT} messages of closed keys: retry or drop the dead ones, "
            "see streams dead keys"
        )
        if not self._limit_reported:
            logger.error("%s; until then their keys wait where they are", complaint)
            self._limit_reported = True
        raise Unavailable(complaint)

    def handled_confirmed(self, delivery: Delivery) -> bool:
        """Note that the done record of a message that came back is confirmed. True: more messages
        of its key are to be fetched."""
        fetched, index = delivery.fetched, delivery.index
        key = fetched.keys[index]
        if key is None:
            return False
        with self._lock:
            self.state.remove_handled(key, fetched.batch.offsets[index], unread=True)
            queue = self.state.keys.get(key)
            if queue is None or queue.handed_out:
                return False
            self._read_soon = True
            return True

    def write_confirmed(self, offset: int) -> None:
        """Note that the record of a dead or parked message is written. It counts once it was read
        back."""
        with self._lock:
            if offset in self._unconfirmed:
                self._unconfirmed.discard(offset)
                self._confirmed_unread.add(offset)

    def write_fenced(self) -> None:
        """Note that the log refused a write of this owner."""
        if not self.ended_reason:
            self.is_fenced = True
            self.ended_reason = "a record was refused, as the partition is not owned any more"

    def write_refused(self, delivery: Delivery) -> None:
        """Note that the record of a dead or parked message was not written."""
        fetched, index = delivery.fetched, delivery.index
        key, offset = fetched.keys[index], fetched.batch.offsets[index]
        if key is not None:
            with self._lock:
                self.state.cancel_expected(key, offset)
                self._unconfirmed.discard(offset)


def ensure_parked_topic(log: Log, name: str, partitions: int, source: str) -> None:
    """Create a topic of closed keys if it is missing; blocks.

    :raises TopicMismatch: it does not have as many partitions as its source.
    """
    info = ensure_topic(log, name, partitions, config=log.capabilities.dead_letter_config)
    if info.partitions != partitions:
        raise TopicMismatch(
            f"topic {name!r} has {info.partitions} partitions, but {source!r}, whose closed keys "
            f"it holds, has {partitions}; give it as many"
        )
    ensure_topic_with_floor(log, name, partitions, name, PARKED_RETENTION, compacted=False)


def _unreadable_reasons(rows: Sequence[FetchedRow]) -> dict[int, str]:
    """Why the headers of messages that no handler has seen could not be read in the source.

    A message that is dead for this reason and comes back is handled: an operator decided so.
    """
    found: dict[int, str] = {}
    for index, row in enumerate(rows):
        why = header_text(row.headers, UNREADABLE)
        if why is not None and header_text(row.headers, records.KIND) == "waits":
            found[index] = why
    return found
