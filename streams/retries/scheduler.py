"""The processor of a delay topic: the owners of its partitions deliver the due messages.

The processor reads every record of the topic (entries, marks, requests to cancel) and settles it at
once: the topic itself is the store. Each owned partition has a *partition scheduler*, which

1. reads the last *checkpoint* and the partition from there on, or without one from the *floor* on
   (nothing below it is pending), and so knows the due time and position of every pending message,
   without its payload;
2. writes each due message to its topic, in due order, under the message's own ID, and a *mark* once
   the write is confirmed. After a crash in between, the message is written again under the same
   ID;
3. moves the floor, which is the position of a group without members (``{topic}.floor``): nothing
   above it is trimmed, and on a log without compaction everything below it is;
4. writes a checkpoint (:mod:`streams.retries.checkpoint_writer`) when the next owner would have to
   read much without it.

How much a partition scheduler knows at once is bounded (see :mod:`streams.retries.due_index`). A
new message that is due soon overtakes every message that is due late.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

from typing_extensions import override

from streams.cancellation import run_in_thread, wait_for_callback
from streams.config import DeadLetters, Dedup, Retry
from streams.connection import Connection
from streams.derived_records import dead_letter_record
from streams.errors import Fatal, Fenced, InvalidValue, LogError, NotFound, TopicMismatch
from streams.log.floor import ensure_topic_with_floor, floor_group
from streams.log.protocol import Assignment, Committed, Log, Retention, TopicInfo
from streams.log.range_reader import read_batches
from streams.log.record_fetcher import FetchedRow, RecordFetcher
from streams.message import ID, Message, Record, headers_without, text
from streams.processing.job import Job, Outgoing
from streams.processor import Processor, ProcessorOptions
from streams.retries import records
from streams.retries.checkpoint_writer import CheckpointWriter
from streams.retries.checkpoints import CheckpointPlace, find_checkpoint
from streams.retries.due_index import DueEntry, DueIndex, IndexState, due_time, log_position
from streams.retries.records import ScannedRecord
from streams.text import count_with_noun, get_logger
from streams.topic import Topic

T = TypeVar("T")

logger = get_logger("streams.delay")

READ_BATCH = 1_000
"""Records of the delay topic that are handled in one batch, at most."""

DELIVERY_BATCH = 4_000
"""Messages delivered in one batch, at most: the more, the closer together they are in the log."""

DELIVERY_BYTES = 4 << 20
"""Bytes of one batch of deliveries, at most; a single larger message goes alone."""

RECENT_OUTCOMES = 10_000
"""Messages whose outcome is remembered, at least."""

SCAN_BACKLOG = 100_000
"""Records that arrive and wait while a partition is scanned, at most."""

FLOOR_INTERVAL = 5.0
"""Real seconds between two moves of the floor, at least."""

DELAY_RETENTION = Retention(messages=RECENT_OUTCOMES)
"""Retention of a delay topic on a log that trims: everything from the floor on, and some more."""

OWNERSHIP_RECHECK = 0.05
"""Real seconds between checks whether ownership was confirmed again."""

LONGEST_SLEEP = 1.0
"""Real seconds of one sleep, at most. A sleep is measured by the monotonic clock. Due times are in
wall-clock time, which can be set forward, and goes on while the machine is suspended: then a
message is due before a longer sleep would end."""

FLOOR_RENEWAL = 86_400.0
"""Real seconds after which an unchanged floor is committed again: Kafka forgets the
positions of a group without members (``offsets.retention.minutes``, a week unless set)."""

DEAD_LETTER_PAUSE = 1.0
"""Seconds before refused dead letters are written again; doubled each time, up to
:data:`LONGEST_DEAD_LETTER_PAUSE`."""

LONGEST_DEAD_LETTER_PAUSE = 60.0

STOP_TIMEOUT = 5.0
"""Real seconds to wait for the partitions that are given up, in total."""

_PENDING = "pending"
"""The outcome of an entry that is still pending."""


class _DelayDeadLetters(DeadLetters):
    """Dead letters of a delay topic. They are entries, so a redrive puts them back into the delay
    topic itself, and they are delivered from there. It has no retry topic."""

    RETRY: ClassVar[str] = "{topic}"


def ensure_delay_topic(log: Log, name: str, partitions: int) -> TopicInfo:
    """Create a delay topic if it is missing; blocks."""
    group = floor_group(name)
    return ensure_topic_with_floor(log, name, partitions, group, DELAY_RETENTION, compacted=True)


class DeclaringConnection(Connection, Protocol):
    """The part of an app that a scheduler needs: to read, write, and declare its processor."""

    def declare(
        self,
        function: Callable[..., Any],
        options: ProcessorOptions,
        processor_class: Callable[..., Processor[..., Any]],
    ) -> Processor[..., Any]:
        """Declare a processor."""
        ...


def declare_scheduler(
    app: DeclaringConnection,
    name: str,
    partition_count: Callable[[Log], int],
    is_allowed: Callable[[str], bool],
    pending: int,
) -> DelayScheduler:
    """Declare the processor of the delay topic ``name``.

    :param partition_count: the number of partitions, if the topic must be created.
    :param is_allowed: whether messages may be delivered to a topic: a header alone is not trusted.
    :param pending: pending messages of a partition that are held in memory, at most.
    """

    async def receive(values: list[bytes | None], messages: list[Message[Any]]) -> None:
        await scheduler.receive(messages)

    receive.__name__ = name
    source: Topic[Any] = Topic(app, name, bytes | None)
    options = ProcessorOptions(
        (source,),
        name,
        batch=READ_BATCH,
        # Entries are identified by position, and a later one of the same ID replaces the earlier.
        dedup=Dedup(window=0),
        retry=Retry(),
        dead_letters=_DelayDeadLetters(topic="{topic}.dead"),
    )
    new_scheduler = partial(DelayScheduler, app, partition_count, is_allowed, pending)
    scheduler = cast(DelayScheduler, app.declare(receive, options, new_scheduler))
    return scheduler


@dataclass(slots=True)
class DelayStats:
    """Statistics of a delay topic in this process."""

    pending: int = 0
    """Pending messages that are held in memory: those that are due next."""
    delivered: int = 0
    cancelled: int = 0
    dead: int = 0
    """Messages that could not be delivered."""
    scans: int = 0
    """How often a partition was scanned, from a checkpoint or from its floor on."""
    overdue: float = 0.0
    """Seconds since the first pending message was due; 0.0: none is due."""


class DelayScheduler(Processor[..., Any]):
    """The processor of a delay topic, with a scheduler for each partition that it owns."""

    shares_group = True
    has_own_options = False

    def __init__(
        self,
        app: Connection,
        partition_count: Callable[[Log], int],
        is_allowed: Callable[[str], bool],
        pending_limit: int,
        function: Callable[..., Any],
        options: ProcessorOptions,
        name: str,
    ) -> None:
        super().__init__(function, options, name)
        self.app = app
        self.topic = self.topics[0]
        self.is_allowed = is_allowed
        self.pending_limit = pending_limit
        self.counters = DelayStats()
        self._partition_count = partition_count
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_partition: dict[int, PartitionScheduler] = {}

    @override
    def ensure_topics(self, connection: Connection) -> None:
        ensure_delay_topic(connection.log, self.topic, self._partition_count(connection.log))

    @override
    def adapt_job(self, job: Job) -> Job:
        self._loop = asyncio.get_running_loop()
        return replace(job, observer=self)

    # -- the poller's side (its thread)

    def assigned(self, assignments: Sequence[Assignment], keep_alive: Callable[[], None]) -> None:
        """Start scheduling these partitions."""
        for assignment in assignments:
            if assignment.topic == self.topic:
                partition = PartitionScheduler(self, assignment)
                self._by_partition[assignment.partition] = partition
                self.call_on_loop(partition.start)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Stop delivering from these partitions."""
        revoked = [
            partition
            for each in assignments
            if (partition := self._by_partition.get(each.partition)) is not None
            and partition.assignment is each
        ]
        for partition in revoked:
            del self._by_partition[partition.assignment.partition]
            partition.stopped = True
            self.call_on_loop(partition.stop)
        deadline = time.monotonic() + STOP_TIMEOUT
        for partition in revoked:
            if not partition.ended.wait(max(0.0, deadline - time.monotonic())):
                logger.warning("%s: has not ended yet; a delivery may be under way", partition)

    def call_on_loop(self, action: Callable[[], None]) -> None:
        """Schedule this on the app's event loop. Any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(action)

    def describe_pending_work(self) -> str:
        """What is overdue, or not scanned yet, in words (any thread)."""
        now = self.app.clock.time() * 1000
        for partition in list(self._by_partition.values()):
            if not partition.is_idle:
                return "delayed messages are being checked"
            if partition.idle_until is not None and partition.idle_until <= now:
                return "delayed messages are due"
        return ""

    def next_due(self) -> tuple[float, str] | None:
        """The due time of the next delayed message (any thread)."""
        idle_until = [each.idle_until for each in list(self._by_partition.values())]
        moments = [moment for moment in idle_until if moment is not None]
        if not moments:
            return None
        count = self.delay_stats().pending
        what = f"{count} delayed message{' waits' if count == 1 else 's wait'}"
        return max(0.0, min(moments) / 1000 - self.app.clock.time()), what

    def delay_stats(self) -> DelayStats:
        """Current statistics (any thread)."""
        partitions = list(self._by_partition.values())
        pending = sum(len(partition.index) for partition in partitions)
        due = [each.idle_until for each in partitions if each.idle_until is not None]
        overdue = self.app.clock.time() - min(due) / 1000 if due else 0.0
        return replace(self.counters, pending=pending, overdue=max(0.0, overdue))

    # -- on the loop

    async def receive(self, messages: Sequence[Message[Any]]) -> None:
        """Receive records of the topic, in order."""
        for message in messages:
            partition = self._by_partition.get(message.partition)
            if partition is not None:  # else another member owns the partition by now
                await partition.receive(message, messages)

    def fail(self, error: BaseException) -> None:
        """End the processor with the error of a partition that cannot go on."""
        if self.executor is not None:
            self.executor.fail(error)


class _ScanPlan(NamedTuple):
    """The range that a scan reads.

    :param place: the place of the checkpoint that it begins with; ``state`` is its content.
    """

    start: int
    end: int
    place: CheckpointPlace | None
    state: IndexState | None


class _ScannedBatch(NamedTuple):
    """A batch of records that a scan has read.

    :param last: the position of the last record.
    :param size: the number of records.
    :param records: the entries and marks among them.
    """

    last: int
    size: int
    records: list[ScannedRecord]


class _DeliveryOutcome(NamedTuple):
    """The outcome of an entry that was due."""

    entry: DueEntry
    key: bytes
    error: BaseException | None
    """Why it cannot be delivered; None: it was delivered."""


class PartitionScheduler:
    """The pending entries of one owned partition, and their delivery. On the loop only.

    One class, because scans, records that arrive meanwhile and deliveries take turns to change one
    index, and each has to know how far the others are.

    A scan is *bounded* once its end is known: records after that end are received from then on. It
    is *complete* once everything up to its end was applied, and then the records that were received
    meanwhile. Then due entries are delivered in batches. When no known entry is left and more are
    pending in the log, the next scan begins.
    """

    def __init__(self, scheduler: DelayScheduler, assignment: Assignment) -> None:
        self.assignment = assignment
        self.index = DueIndex(scheduler.pending_limit)
        self.stopped = False
        self.ended = threading.Event()
        """Set once no task of this scheduler runs any more."""
        self.is_idle = False
        """Whether there is nothing to do before :attr:`idle_until`."""
        self.idle_until: int | None = None
        """The due time of the first undelivered entry, in milliseconds; None: none is known to be
        pending."""
        self._scheduler = scheduler
        self._app = scheduler.app
        self._log = scheduler.app.log
        self._topic = assignment.topic
        self._partition = assignment.partition
        self._clock = scheduler.app.clock
        self._fetcher = RecordFetcher(self._log, self._topic, self._partition)
        self._recent_outcomes = OutcomeCache(RECENT_OUTCOMES)
        self._scan_number = 0
        """The number of scans that were started."""
        self._scan_bounded = asyncio.Event()
        """Set once the end of the scan is known; records after it are received."""
        self._scan_complete = asyncio.Event()
        """Set once the scan is complete: every entry before the horizon is in the index."""
        self._batch_delivered = asyncio.Event()
        """Set (and replaced) each time the current batch has been delivered."""
        self._wake = asyncio.Event()
        self._scanned_end = 0
        """The scan covers everything below this position."""
        self._known_end = 0
        """Every record below this position was applied to the index."""
        self._received_meanwhile: list[ScannedRecord] = []
        """Records that were received while a scan runs."""
        self._resume_after: DueEntry | None = None
        """Entries that are due before this one were delivered or ended ..."""
        self._resume_below = 0
        """... if they are below this position; later records were not known then."""
        self._batch_size = DELIVERY_BATCH
        self._committed = Committed(-1, "")
        """The floor and the checkpoint's place, as this scheduler last committed them."""
        self._floor_committed_at = float("-inf")
        self._renew_floor_at = float("-inf")
        """When they are committed again although unchanged (the loop's time)."""
        self._checkpoints = CheckpointWriter(
            self._partition,
            lambda parts: self._write_records([(self._topic, part) for part in parts]),
        )
        self._uncounted = 0
        """Records that were received while a scan runs."""
        self._at_hand: Sequence[Message[Any]] = ()
        """The batch of records that is being received."""
        self._outcome_at: dict[int, str | None] = {}
        """The outcomes that the log gives for the requests to cancel in that batch, by the
        positions of the requests."""
        self._cancelling: dict[int, asyncio.Task[None]] = {}
        """Answers to requests to cancel that are not known to be written, by the positions of the
        requests. Meanwhile an entry that left the index may not be marked in the log yet, so no
        scan begins, the floor does not move, and no checkpoint is written."""
        self._set_aside: set[DueEntry] = set()
        """Entries whose dead letters were refused. In the index they count as given out."""
        self._set_aside_until = 0.0
        """When their dead letters are tried again (monotonic)."""
        self._refusals = 0
        """How many times in a row dead letters were refused."""
        self._unwatch: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"{self._topic}/{self._partition}"

    def start(self) -> None:
        """Start scanning and delivering."""
        if self.stopped:
            return  # stop() follows
        loop = asyncio.get_running_loop()

        def on_clock_moved() -> None:
            self._scheduler.call_on_loop(self._wake.set)

        self._unwatch = self._clock.on_jump(on_clock_moved)
        self._task = loop.create_task(self._main(), name=f"streams-delay-{self}")
        self._task.add_done_callback(self._on_end)

    def stop(self) -> None:
        """Stop; records that were handed to the publisher are still written."""
        for answering in self._cancelling.values():
            answering.cancel()
        if self._task is None:
            self.ended.set()
        else:
            self._task.cancel()

    def _on_end(self, _: asyncio.Task[None]) -> None:
        # Not in the task: a task that is cancelled before its first step runs no code.
        self._unwatch()
        self.ended.set()

    async def _main(self) -> None:
        try:
            while not self.stopped:
                await self._retry_outages(self._scan)
                await self._deliver_due()
                self._resume_after, self._resume_below = self.index.horizon, self._known_end
        except asyncio.CancelledError:
            if not self.stopped:
                raise
        except Exception as error:
            self._scheduler.fail(error)

    async def _retry_outages(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation, again after each outage, until the log answers."""
        pause = 0.1
        while True:
            try:
                return await operation()
            except (Fatal, NotFound, TopicMismatch):
                raise
            except LogError as error:
                logger.warning("%s: waiting for the log: %s", self, error)
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    # -- finding the pending entries

    async def _scan(self) -> None:
        """Read the partition, from a checkpoint or from its floor on."""
        self.is_idle = False
        self._scan_complete.clear()
        self._scan_number += 1
        self._outcome_at.clear()
        self._scheduler.counters.scans += 1
        plan = await run_in_thread(self._plan_scan)
        self._scanned_end = self._known_end = max(plan.end, self._known_end)
        self.index.reset(self._resume_after, self._resume_below)
        if plan.state is not None:
            self.index.restore(plan.state)
        covered = 0 if plan.place is None else plan.place.position
        self._checkpoints.begin_scan(plan.place)
        self._uncounted = 0
        self._scan_bounded.set()
        source = self._scan_log(plan.start, self._scanned_end)
        while (batch := await run_in_thread(next, source, None)) is not None:
            self._checkpoints.count_records(batch.last, batch.size)
            for record in batch.records:
                if record.position >= covered:
                    self._apply_record(record)
                else:
                    self._note_outcome(record)
        received, self._received_meanwhile = self._received_meanwhile, []
        for record in received:
            if record.position >= self._scanned_end:
                self._apply_record(record)
        self._checkpoints.count_records(self._known_end - 1, self._uncounted)
        self._scan_complete.set()

    def _plan_scan(self) -> _ScanPlan:
        """The start of a scan, and the current end of the partition; blocks."""
        log, topic, partition = self._log, self._topic, self._partition
        start, end, floor = self._read_floor()
        place = state = None
        if self._resume_after is None:  # a checkpoint lacks the entries that the index has dropped
            found = find_checkpoint(log, topic, partition, floor, start, end)
            if found is not None:
                place, state = found
                start = place.position
        start = min(start, log.offset_before(topic, partition, end, RECENT_OUTCOMES))
        return _ScanPlan(start, end, place, state)

    def _read_floor(self) -> tuple[int, int, Committed | None]:
        """The first position that may be pending, the current end of the partition, and the
        committed floor; blocks."""
        log, topic, partition = self._log, self._topic, self._partition
        first, end = log.watermarks(topic, partition)
        floor = log.committed(floor_group(topic), topic).get(partition)
        return first if floor is None else max(first, floor.position), end, floor

    def _scan_log(self, start: int, end: int) -> Iterator[_ScannedBatch]:
        """The entries and marks from ``start`` to before ``end``, a batch at a time; blocks."""
        for batch in read_batches(self._log, self._topic, self._partition, start, end):
            found = [
                records.scan_record(batch.offsets[at], key, batch.values[at], batch.headers(at))
                for at, key in enumerate(batch.keys)
                if key is not None
            ]
            said = [each for each in found if each is not None and each.mark != records.CANCEL]
            yield _ScannedBatch(batch.offsets[-1], len(batch.offsets), said)

    def _apply_record(self, record: ScannedRecord) -> None:
        is_news = self._note_outcome(record)
        if record.due is not None and is_news:
            self.index.add(record.id_digest, record.due, record.position)
        elif record.mark is not None:
            self.index.remove(record.id_digest, record.end)

    def _note_outcome(self, record: ScannedRecord) -> bool:
        """Remember the outcome in a mark; False: the record is an entry that has ended."""
        if record.due is not None:
            known = self.index.find(record.id_digest)
            replaces = known is not None and log_position(known) < record.position
            return self._recent_outcomes.begin(record.id_digest, record.position, replaces=replaces)
        if record.mark is not None:
            self._recent_outcomes.add(record.id_digest, record.mark, record.end)
        return True

    async def receive(self, message: Message[Any], at_hand: Sequence[Message[Any]]) -> None:
        """Receive the next record that the processor read.

        :param at_hand: the batch that the record was read in.
        """
        await self._scan_bounded.wait()
        key, value, headers = message.raw
        position = int(message.offset)
        if position < self._scanned_end:
            pass  # the scan counts it
        elif self._scan_complete.is_set():
            self._checkpoints.count_records(position)
        else:
            self._uncounted += 1
        if key is None:
            return
        record = records.scan_record(position, key, value, headers)
        if record is None:
            if self._checkpoints.read_part(position, key, headers):
                self._floor_committed_at = float("-inf")  # it need not wait
                self._wake.set()
        elif record.mark == records.CANCEL:
            self._at_hand = at_hand
            await self._answer_cancel(key, message.id, position)
            self._at_hand = ()
        elif position >= self._scanned_end:
            if self._scan_complete.is_set():
                self._apply_record(record)
                self.is_idle = False
                self._wake.set()
            else:
                self._received_meanwhile.append(record)
                if len(self._received_meanwhile) >= SCAN_BACKLOG:
                    await self._scan_complete.wait()
        self._known_end = max(self._known_end, position + 1)

    # -- cancelling

    @property
    def _is_owned(self) -> bool:
        """Whether the partition is certainly owned."""
        return self._clock.monotonic() < self.assignment.valid_until

    async def _answer_cancel(self, key: bytes, request: str, position: int) -> None:
        """Cancel the entry if it is pending, and answer the request with the outcome."""
        before = self._cancelling.get(position)
        if before is not None:
            # It was received before, but the handler that awaited the answer was cancelled.
            await asyncio.shield(before)
        id_digest = records.id_digest(key)
        outcome = await self._find_outcome(id_digest, position)
        is_given_up = self.assignment.valid_until == float("-inf")
        # A partition that is given up is owned until this handler has ended. If ownership is in
        # doubt, another owner may be delivering.
        while not is_given_up and not self._is_owned:
            await asyncio.sleep(OWNERSHIP_RECHECK)
            outcome = await self._find_outcome(id_digest, position)
        id = f"{request}/answer"
        entry = None
        if outcome == _PENDING:
            answer = records.mark_record(key, "cancelled", id, request, end=position)
            entry = self.index.find(id_digest)  # None: it is due after the horizon
            self.index.remove(id_digest, position)
            self._recent_outcomes.add(id_digest, "cancelled", position)
        else:
            # Not a mark of that ID: compaction would remove a newer entry that may be in the log.
            known = records.parse_outcome(outcome) or "unknown"
            answer = records.mark_record(request.encode(), known, id, request)
        answer.partition = self._partition
        answering = asyncio.get_running_loop().create_task(
            self._write_answer(answer, id_digest, entry, is_cancelled=outcome == _PENDING)
        )
        self._cancelling[position] = answering
        answering.add_done_callback(lambda _: self._on_answered(position))
        # The executor cancels a handler that has records of any partition that was lost. An answer
        # that was handed to the publisher is still written, and its outcome must be tracked.
        await asyncio.shield(answering)

    async def _write_answer(
        self, answer: Record, id_digest: int, entry: DueEntry | None, *, is_cancelled: bool
    ) -> None:
        """Write the answer to a request.

        :param entry: the entry that it cancels, if the index had it.
        """
        (refused,) = await self._write_records([(self._topic, answer)], self.assignment)
        if refused is not None:
            if not isinstance(refused, Fenced):  # else another owner answers
                logger.error("%s: a request to cancel could not be answered: %r", self, refused)
            if is_cancelled:
                self._recent_outcomes.forget(id_digest)
            if entry is not None:
                self.index.put_back(id_digest, entry)
        elif is_cancelled:
            self._scheduler.counters.cancelled += 1

    def _on_answered(self, position: int) -> None:
        del self._cancelling[position]
        self.is_idle = False
        self._wake.set()

    async def _find_outcome(self, id_digest: int, position: int) -> str | None:
        """The outcome of the entry that was pending when a request to cancel was written, or
        :data:`_PENDING`; None: no such entry is known."""
        while True:
            await self._scan_complete.wait()
            entry = self.index.find(id_digest)
            is_taken = entry is not None and self.index.is_taken(entry)
            if is_taken and entry not in self._set_aside:
                await self._batch_delivered.wait()
                continue
            if entry is not None and log_position(entry) < position:
                return _PENDING
            outcome = self._recent_outcomes.get(id_digest)
            if outcome is not None or self.index.horizon is None:
                return outcome
            scan = self._scan_number
            outcome = await self._find_outcome_in_log(id_digest, position)
            if scan == self._scan_number:
                return outcome
            self._outcome_at.clear()  # entries beyond the horizon may be delivered meanwhile

    async def _find_outcome_in_log(self, id_digest: int, position: int) -> str | None:
        """Like :meth:`_find_outcome`, for an entry that is due after the horizon. The log is read
        once for all requests of a batch."""
        if position not in self._outcome_at:
            requests = {position: id_digest}
            for message in self._at_hand:
                key, value, headers = message.raw
                if message.partition == self._partition and key is not None:
                    later = records.scan_record(int(message.offset), key, value, headers)
                    if later is not None and later.mark == records.CANCEL:
                        requests[later.position] = later.id_digest
            self._outcome_at = await self._retry_outages(
                lambda: run_in_thread(self._read_outcomes, requests)
            )
        return self._outcome_at[position]

    def _read_outcomes(self, requests: Mapping[int, int]) -> dict[int, str | None]:
        """The outcomes of entries, by the positions of the requests to cancel them, as far as the
        log was read; blocks.

        :param requests: the ID digests of the entries, by the positions of the requests.
        """
        found: dict[int, str | None] = dict.fromkeys(requests)
        last_entries: dict[int, int] = {}
        """The position of the last entry before each request."""
        positions: dict[int, list[int]] = {}
        for position, id_digest in requests.items():
            positions.setdefault(id_digest, []).append(position)
        start, _, _ = self._read_floor()
        for batch in self._scan_log(start, max(self._known_end, *requests)):
            for record in batch.records:
                for position in positions.get(record.id_digest, ()):
                    if record.due is None and record.end <= last_entries.get(position, -1):
                        continue  # the mark of an earlier entry
                    if record.position < position:
                        found[position] = None if record.due is None else _PENDING
                        if record.due is not None:
                            last_entries[position] = record.position
                    elif found[position] == _PENDING:
                        found[position] = record.mark  # of another entry: None
        return found

    # -- delivering

    async def _deliver_due(self) -> None:
        """Deliver due entries, until a scan is needed."""
        while not self._is_scan_needed:
            if self._set_aside and self._clock.monotonic() >= self._set_aside_until:
                self.index.return_entries(self._set_aside)
                self._set_aside = set()
            entries = self.index.take_due(int(self._clock.time() * 1000), self._batch_size)
            if not entries:
                await self._commit_floor()
                await self._wait_until_due()
                continue
            self.is_idle, self.idle_until = False, due_time(entries[0])
            is_owned = self._is_owned
            try:
                if is_owned:
                    await self._retry_outages(partial(self._deliver_batch, entries))
            finally:
                # The entries that were not delivered.
                self.index.return_entries([each for each in entries if each not in self._set_aside])
                delivered, self._batch_delivered = self._batch_delivered, asyncio.Event()
                delivered.set()
            if is_owned:
                await self._commit_floor()
            else:
                await asyncio.sleep(OWNERSHIP_RECHECK)

    @property
    def _is_scan_needed(self) -> bool:
        return self.index.is_exhausted and not self._cancelling

    async def _wait_until_due(self) -> None:
        """Wait until an entry is due, or a record was received."""
        self._wake.clear()
        due = self.index.next_due
        seconds = LONGEST_SLEEP if due is None else due / 1000 - self._clock.time()
        if seconds <= 0 or self._is_scan_needed:
            return
        self.idle_until, self.is_idle = due, True
        seconds = min(LONGEST_SLEEP, self._clock.real_timeout(seconds))
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _deliver_batch(self, entries: list[DueEntry]) -> None:
        """Write these entries' messages to their topics, and mark them."""
        positions = sorted(map(log_position, entries))
        rows, is_complete = await run_in_thread(self._fetcher.fetch, positions, DELIVERY_BYTES)
        limit = self._batch_size * 2 if is_complete else len(entries) // 2
        self._batch_size = min(DELIVERY_BATCH, max(1, limit))
        outgoing: list[Outgoing] = []
        sent: list[tuple[DueEntry, bytes]] = []
        undeliverable: list[_DeliveryOutcome] = []
        missing: list[DueEntry] = []
        # Up to the first whose payload was not fetched: later ones must not overtake it.
        for entry in takewhile(lambda each: log_position(each) in rows, entries):
            row = rows[log_position(entry)]
            if row is None or row.key is None:
                missing.append(entry)
                continue
            delay_entry = records.parse_entry(row.key, row.value, row.headers)
            if delay_entry is None or not self._scheduler.is_allowed(delay_entry.topic):
                error = _undeliverable_error(delay_entry)
                undeliverable.append(_DeliveryOutcome(entry, row.key, error))
            else:
                outgoing.append((delay_entry.topic, delay_entry.record))
                sent.append((entry, row.key))
        self.index.remove_missing(missing)
        answers = await self._write_records(outgoing)
        outcomes = [
            _DeliveryOutcome(*each, answer) for each, answer in zip(sent, answers, strict=True)
        ]
        refused = [each for each in outcomes if each.error is not None]
        # Mark these first: they are delivered, whatever happens to the others.
        await self._write_marks([each for each in outcomes if each.error is None])
        if undeliverable or refused:
            await self._write_dead_letters(undeliverable + refused, rows)

    async def _write_marks(self, outcomes: Sequence[_DeliveryOutcome]) -> None:
        marks: list[Outgoing] = []
        for entry, key, error in outcomes:
            mark: records.Outcome = "delivered" if error is None else "dead"
            position = log_position(entry)
            id = f"{text(key)}/{position}/{mark}"
            record = records.mark_record(key, mark, id, end=position + 1)
            record.partition = self._partition
            marks.append((self._topic, record))
        for answer in await self._write_records(marks):
            if answer is not None:  # after a restart it is delivered again, under the same ID
                logger.error("%s: a delivery could not be marked: %r", self, answer)
        counters = self._scheduler.counters
        for entry, key, error in outcomes:
            id_digest = records.id_digest(key)
            self.index.remove_delivered(id_digest, entry)
            outcome = "delivered" if error is None else "dead"
            self._recent_outcomes.add(id_digest, outcome, log_position(entry) + 1)
            counters.dead += error is not None
            counters.delivered += error is None

    async def _write_dead_letters(
        self, undeliverable: Sequence[_DeliveryOutcome], rows: Mapping[int, FetchedRow | None]
    ) -> None:
        """Write undeliverable entries, as they are in the log, as dead letters, and mark them.
        Entries whose dead letters are refused are set aside."""
        dead: list[tuple[_DeliveryOutcome, Outgoing]] = []
        for outcome in undeliverable:
            entry, key, error = outcome
            position = log_position(entry)
            row = rows[position]
            if row is None or error is None:
                continue
            failed_at = (self._topic, self._partition, self._log.format_offset(position))
            logger.warning("%s/%d/%s: cannot be delivered: %s", *failed_at, error)
            headers = headers_without(row.headers, (ID,))
            record = Record(row.value, key, f"{text(key)}/{position}", headers)
            now = self._clock.time()
            dead_letter = dead_letter_record(record, error, 1, self._topic, failed_at, now)
            dead.append((outcome, (f"{self._topic}.dead", dead_letter)))
        answers = await self._write_records([letter for _, letter in dead])
        written: list[_DeliveryOutcome] = []
        refused: dict[DueEntry, BaseException] = {}
        for (outcome, _), answer in zip(dead, answers, strict=True):
            if answer is None:
                written.append(outcome)
            else:
                refused[outcome.entry] = answer
        await self._write_marks(written)
        if refused:
            self._set_refused_aside(refused)
        else:
            self._refusals = 0

    def _set_refused_aside(self, refused: Mapping[DueEntry, BaseException]) -> None:
        """Try these entries again after a pause. They hold up no other entry meanwhile."""
        now = self._clock.monotonic()
        if not self._set_aside:
            pause = DEAD_LETTER_PAUSE * 2.0 ** min(self._refusals, 10)
            self._set_aside_until = now + min(pause, LONGEST_DEAD_LETTER_PAUSE)
            self._refusals += 1
        self._set_aside.update(refused)
        logger.error(
            "%s: cannot write the dead letters of %s, retrying in %.1f s: %r",
            self, count_with_noun(len(refused), "message"), self._set_aside_until - now,
            next(iter(refused.values())),
        )  # fmt: skip

    async def _write_records(
        self, outgoing: Sequence[Outgoing], owner: Assignment | None = None
    ) -> Sequence[BaseException | None]:
        """Write these, waiting out outages; returns, for each, None or why it was refused.

        :param owner: write only while this assignment is owned, if the log can check that.
        """
        if not outgoing:
            return ()
        write = partial(self._app.publisher.publish_durably, outgoing, owner=owner)
        answers = await wait_for_callback(write)
        return [answer if isinstance(answer, BaseException) else None for answer in answers]

    # -- the floor, and checkpoints

    async def _commit_floor(self) -> None:
        """Commit the floor, below which nothing is pending, every few seconds."""
        now = asyncio.get_running_loop().time()
        if now < self._floor_committed_at + FLOOR_INTERVAL:
            return
        if not self._is_owned:
            return
        self._floor_committed_at = now
        if self._cancelling:
            return
        lowest = self.index.lowest_position
        floor = max(self._known_end if lowest is None else lowest, self._committed.position)
        refused = await self._checkpoints.write_if_due(self.index, self._known_end, floor)
        if refused is not None:
            logger.info("%s: a checkpoint could not be written: %s", self, refused)
        checkpoint = self._checkpoints.newest
        # A checkpoint below the floor saves nothing.
        is_needed = checkpoint is not None and checkpoint.position > floor
        committed = Committed(floor, str(checkpoint) if is_needed else "")
        if committed == self._committed and now < self._renew_floor_at:
            return
        group, topic, position = floor_group(self._topic), self._topic, {self._partition: committed}
        try:
            await run_in_thread(self._log.reset_offsets, group, topic, position, force=True)
            self._committed = committed
            self._renew_floor_at = now + FLOOR_RENEWAL
        except LogError as error:
            logger.info("%s: the floor stays where it is: %s", self, error)


def _undeliverable_error(entry: records.DelayEntry | None) -> InvalidValue:
    if entry is None:
        return InvalidValue("this is no entry that a delay topic can hold")
    return InvalidValue(f"due for topic {entry.topic!r}, which this app does not declare")


class _EndedEntries(NamedTuple):
    """The outcome of all entries of an ID before a position; None: the one there is pending."""

    outcome: str | None
    end: int


class OutcomeCache:
    """The outcomes of the most recent IDs, at least ``size`` of them.

    An ID whose last entry is pending has no outcome, however its earlier entries ended.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._new: dict[int, _EndedEntries] = {}
        self._old: dict[int, _EndedEntries] = {}

    def add(self, id_digest: int, outcome: str, end: int) -> None:
        """Remember an outcome, unless a later entry is known.

        :param end: all entries of that ID before this position have this outcome.
        """
        known = self._find(id_digest)
        first_end = 0 if known is None else known.end + (known.outcome is None)
        if end >= first_end:
            self._remember(id_digest, _EndedEntries(outcome, end))

    def begin(self, id_digest: int, position: int, *, replaces: bool = False) -> bool:
        """Note an entry of that ID at this position; returns whether it is pending. False: it has
        ended, and was read again.

        :param replaces: it replaces a pending one, whose mark may still come.
        """
        known = self._find(id_digest)
        if known is not None and position < known.end:
            return False
        if known is not None or replaces:
            self._remember(id_digest, _EndedEntries(None, position))
        return True

    def _remember(self, id_digest: int, known: _EndedEntries) -> None:
        self._new[id_digest] = known
        if len(self._new) >= self._size:
            self._new, self._old = {}, self._new

    def forget(self, id_digest: int) -> None:
        """Forget the outcome of an ID."""
        self._new.pop(id_digest, None)
        self._old.pop(id_digest, None)

    def get(self, id_digest: int) -> str | None:
        """The outcome of an ID; None: it is not remembered."""
        known = self._find(id_digest)
        return None if known is None else known.outcome

    def _find(self, id_digest: int) -> _EndedEntries | None:
        return self._new.get(id_digest) or self._old.get(id_digest)
