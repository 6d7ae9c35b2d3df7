"""The poller: polls a processor's subscription, feeds the executor, and commits, in turns.

It is the only user of the subscription, so everything a driver wants from one thread at a time
(polling, committing, rebalance callbacks) happens in a turn, and no handler ever runs in one: the
process stays in its group however slow its handlers are. Turns are taken by a thread of the
poller's own, or by the handler's thread while that is quick
(:mod:`streams.processing.polling_hand_over`).

Assignment: the start is resolved (and committed before anything is delivered), the settled set is
read back from the commit, and the dedup window is rebuilt from the log itself. Revocation: nothing
more is started, what runs is finished up to the drain deadline, a last commit is made, and only
then the partition goes. Loss: everything is discarded and nothing committed.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from streams.clock import SYSTEM
from streams.engine.commit_pace import CommitPace
from streams.engine.dedup_window import PROCESS_BUDGET, DedupWindow
from streams.engine.dispatcher import READ_AHEAD, Delivery, PartitionState
from streams.engine.flow_gate import FlowGate
from streams.engine.progress import (
    PROGRESS_LIMIT,
    FetchedBatch,
    Progress,
    Range,
    decode,
    truncated,
    with_offsets,
)
from streams.errors import Fatal, LogError, NotFound, TopicMismatch, Unavailable
from streams.log.protocol import Assignment, Commit, Log, Subscription, TopicPartition
from streams.message import Batch, identity_suffix, text
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction, TransactionLock
from streams.processing.job import IdReader, Job, KeyParking, Undecodable, check_headers
from streams.processing.polling_hand_over import PollingHandOver
from streams.processing.timing import Durations, Histogram
from streams.text import get_logger

logger = get_logger("streams")

POLL_TIMEOUT = 0.1
"""Real seconds a poll may block: how late a stop or a commit may be noticed at worst."""

POLL_LIMIT = 1_000
"""Messages polled at once, at most, where another thread handles them. They are looked through
several times (offsets, keys, IDs, sizes, decoding): a thousand stay in the cache meanwhile, ten
thousand cost half as much again."""

POLL_LIMIT_HANDED_OVER = 800
"""The same where the thread that handles them polls: 400 to 1,000 took the same time, 160 a tenth
more (on Kafka)."""

POLL_LIMIT_DECODED = 160
"""The same where all are decoded before the first of them is handled, and Python's cyclic garbage
collector is called often (:data:`COLLECTED_SELDOM`): it goes through what lives on meanwhile again
and again. With 1,000, a message cost 40 % more CPU (on Kafka)."""

COLLECTED_SELDOM = 5_000
"""New objects, or more, at which the collector is called seldom. Python's own are 700, and 2,000
from 3.13 on."""

PAUSE_AFTER = 0.25
"""Real seconds the gate may be shut before the driver is paused (which discards its prefetch)."""

SHORTEST_WAIT = 0.001
"""Real seconds that are waited at once, at least."""

READ_AHEAD_WAIT = 0.05
"""Real seconds that an executor gets for the work that lies before it, until more is read ahead."""

KEEP_ALIVE_EVERY = 1.0
"""Seconds between signs of life while handlers are waited for."""

PROGRESS_FULL = PROGRESS_LIMIT * 3 // 4
"""Characters of progress from which on a partition takes in no more, until it shrinks."""


_windows_lock = threading.Lock()
"""Held while a window is made: all processors of the process share one memory for them."""


class PartitionProgress(NamedTuple):
    """How far a processor is in a partition that it owns.

    :param position: everything below is settled.
    :param polled: everything below was taken in.
    :param oldest: when the log took the first message that is taken in and not settled, in seconds
        since the epoch; None where there is none.
    """

    topic: str
    partition: int
    position: int
    polled: int
    oldest: float | None


class _Restored(NamedTuple):
    """What a partition begins with.

    :param beyond_end: the position that was committed, where it lies beyond the log's end.
    :param rejected: what of the progress that was committed is not believed, and why.
    """

    progress: Progress
    window: DedupWindow | None
    beyond_end: int | None
    rejected: str


class PollerStats(NamedTuple):
    """What the poller knows, for statistics."""

    partitions: int
    held: int
    held_bytes: int
    commits: int
    rebalances: int
    losses: int
    rejected: int
    reachable: bool
    progress: tuple[PartitionProgress, ...]
    commit_seconds: Durations


class Poller:
    """Feeds one executor from one subscription. Started and stopped by the app."""

    def __init__(self, log: Log, job: Job, executor: Executor) -> None:
        self._log = log
        self._job = job
        self._executor = executor
        self._clock = job.clock
        self._now = job.clock.monotonic
        self._owned: dict[int, tuple[Assignment, PartitionState]] = {}
        """By the identity of the assignment."""
        self._committed: dict[int, tuple[int, str]] = {}
        """What was committed last, by the same."""
        self._submitted: dict[int, tuple[int, str]] = {}
        """What was stored last, by the same: by a submit, or with a handler's transaction."""
        self._unsaved = False
        """Messages came in since it was last seen that all are settled and stored."""
        self._unsettled = 0
        """Messages that were not settled when it was last counted."""
        self._commit_pending = False
        """The log has not said yet what became of the last submit."""
        self._commit_error: LogError | None = None
        """Why a commit failed in this turn."""
        self._commit_pace = CommitPace(job.flow.commit, log.capabilities.commit_interval)
        self._progress_full: set[int] = set()
        """Assignments whose settled set nears its limit."""
        self._progress_lock = threading.Lock()
        """Held while progress is read or extended: the poller and transactions both do."""
        self._in_transaction: list[PartitionState] = []
        """Partitions whose place a handler's transaction is storing at this moment."""
        self._has_room = threading.Event()
        self._gate = FlowGate(job.flow)
        self._subscription: Subscription | None = None
        self._stopping = threading.Event()
        self._resume_lock = threading.Lock()
        self._finishing = False
        self._paused = False
        self._driver_paused = False
        self._paused_in_driver: set[int] = set()
        """Assignments paused in the driver."""
        self._start_uncommitted = False
        decodes_ahead = any(each.id_reader is not None for each in job.decodings.values())
        poll_limit = log.capabilities.poll_limit
        self._poll_limit = min(poll_limit, POLL_LIMIT_DECODED) if decodes_ahead else poll_limit
        """Messages polled at once where the handler's thread does it and the collector is called
        often."""
        self._restarting: dict[int, tuple[float, Assignment]] = {}
        """Assignments that were let go of and are to be begun again, and when (monotonic)."""
        self._not_offered: list[Batch] = []
        """Polled, and not offered yet: the start is committed before anything is delivered."""
        self._next_commit = self._commit_due = 0.0
        self._pause_before_cycle = 0.0
        """Real seconds to wait before the next turn, after one that failed: not at its end, as what
        it polled may be handled meanwhile."""
        self._thread = threading.Thread(
            target=self._main, name=f"streams-{job.name}-pump", daemon=True
        )
        self.fatal: BaseException | None = None
        """What ended the processor, other than being stopped."""
        self.ended = threading.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.commits = 0
        self._commit_times = Histogram()
        self.rebalances = 0
        self.losses = 0
        self.rejected = 0
        self.reachable = True
        executor.dispatcher.refill = self._has_capacity
        self._hand_over = PollingHandOver(
            partial(self._survive_outage, self._poll_cycle), self._may_hand_over
        )
        if job.clock is SYSTEM:
            # A clock that is moved by hand robs a member of its lease while nobody polls.
            executor.accept_polling(self._hand_over, self._wake)
        if job.key_parking is not None:
            job.key_parking.wake_poller = self._wake

    # -- the app's side

    def start(self) -> None:
        """Join the group and begin."""
        self._thread.start()

    def pause(self) -> None:
        """Start no further handler; stay in the group."""
        self._paused = True
        self._executor.suspend()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._paused = False
        with self._resume_lock:
            if not self._finishing:
                self._executor.resume()
        self._has_room.set()

    def stop(self) -> None:
        """Finish what runs, commit, leave the group: begins that (any thread)."""
        self._stopping.set()
        self._wake()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the poller has ended."""
        return self.ended.wait(timeout)

    def join_thread(self) -> None:
        """Wait until the poller's thread is gone, which has nothing left to do after ``on_end``."""
        self._thread.join()

    def stats(self) -> PollerStats:
        """Figures of this moment."""
        partitions = list(self._owned.values())
        with self._progress_lock:
            held = [state.progress.unsettled() for _, state in partitions]
            progress = tuple(
                _partition_progress(assignment, state.progress) for assignment, state in partitions
            )
        return PollerStats(
            len(partitions),
            sum(messages for messages, _ in held),
            sum(size for _, size in held),
            self.commits,
            self.rebalances,
            self.losses,
            self.rejected,
            self.reachable,
            progress,
            self._commit_times.read(),
        )

    def unfinished(self) -> str:
        """What keeps this processor from being at rest, in words; empty when it is.

        At rest means: everything in the log was polled, and is settled or waits for time to pass.
        """
        executor, dispatcher = self._executor, self._executor.dispatcher
        if executor.running or executor.unconfirmed or dispatcher.has_backlog:
            return "handlers are running"
        for assignment, state in list(self._owned.values()):
            _, end = self._log.watermarks(assignment.topic, assignment.partition)
            if state.progress.polled < end:
                return "messages were not polled yet"
        if not dispatcher.waiting:
            with self._progress_lock:
                held = sum(state.progress.unsettled()[0] for _, state in list(self._owned.values()))
            if held:  # between two threads, perhaps, where nobody else sees them
                return "messages are in hand"
        if self._was_reset():
            return "its positions were reset"
        due = dispatcher.next_due
        if due is not None and due <= self._now():
            return "messages are due to be tried again"
        if self._restarting:
            return "partitions are begun again"
        if self._job.key_parking is not None and (unfinished := self._job.key_parking.unfinished()):
            return unfinished
        return "" if self._job.observer is None else self._job.observer.unfinished()

    def _was_reset(self) -> bool:
        """Somebody has set the group to other positions, and the partitions were not given up here
        yet: for the log they are nobody's by now, or stand behind what was committed here."""
        try:
            group = self._log.group(self._job.group)
        except NotFound:
            return False  # it follows topics without a group
        assigned_partitions = {
            partition for member in group.members for partition in member.partitions
        }
        for assignment, _ in list(self._owned.values()):
            partition, key = (assignment.topic, assignment.partition), id(assignment)
            if partition not in assigned_partitions:
                return True
            found = group.positions.get(partition)
            known = (self._committed.get(key), self._submitted.get(key))
            newest = max((each[0] for each in known if each is not None), default=None)
            if found is not None and newest is not None and found.position < newest:
                return True
        return False

    def next_due(self) -> tuple[float, str] | None:
        """Of a processor at rest: how many seconds from now something that waits for its time is
        due, and what that is; None: nothing waits (any thread)."""
        found: list[tuple[float, str]] = []
        dispatcher = self._executor.dispatcher
        moment, count = dispatcher.next_due, dispatcher.waiting
        if moment is not None and count:
            what = f"{count} message{' waits' if count == 1 else 's wait'} to be tried again"
            for topic, partition, ordering_key, attempt in dispatcher.waiting_keys(1):
                key = f"key {text(ordering_key)!r}" if isinstance(ordering_key, bytes) else "no key"
                what += f", first the one of {topic}/{partition} with {key}, attempt {attempt}"
            found.append((max(0.0, moment - self._now()), what))
        if (
            self._job.observer is not None
            and (waiting := self._job.observer.next_due()) is not None
        ):
            found.append(waiting)
        return min(found, default=None)

    def owned_partitions(self) -> set[TopicPartition]:
        """The partitions that are owned at this moment (any thread)."""
        return {(each.topic, each.partition) for each, _ in list(self._owned.values())}

    def subscribed_topics(self, log: Log) -> tuple[str, ...]:
        """The topics of ``log`` that it reads as a member of its group; none where it is in no
        group (any thread)."""
        return self._job.topics if self._log is log else ()

    @property
    def contested(self) -> int:
        """Partitions as whose owner somebody else has written of late (any thread)."""
        return 0 if self._job.key_parking is None else self._job.key_parking.contested()

    def handler_transaction(self, lock: TransactionLock) -> HandlerTransaction:
        """The transactions of one worker of the executor."""

        def open() -> Any:
            if self._subscription is None:
                raise Unavailable(f"{self._job.name}: not subscribed yet")
            return self._subscription.begin_transaction()

        return HandlerTransaction(
            open, self._commit_in_transaction, lock, may_block=not self._job.asynchronous
        )

    # -- the thread

    def _main(self) -> None:
        try:
            self._subscription = self._subscribe()
            if self._subscription is not None:
                unwatch = self._clock.on_jump(self._wake)
                hand_over = self._hand_over
                try:
                    while not self._should_end():
                        if not hand_over.handler_polls() and hand_over.cycle():
                            self._executor.call_soon(lambda: None)
                    with hand_over.cycle_lock:
                        if hand_over.failure is not None:
                            raise hand_over.failure
                        self._finish()
                finally:
                    unwatch()
                    with hand_over.cycle_lock:
                        self._subscription.close()
            self.fatal = self._executor.fatal
        except BaseException as error:
            self.fatal = self._executor.fatal or error
        finally:
            remaining = [assignment for assignment, _ in self._owned.values()]
            if self._job.observer is not None and remaining:
                self._job.observer.revoked(remaining)
            if self._job.key_parking is not None:
                self._job.key_parking.release(remaining)
            self._executor.close()
            self.ended.set()
            self.on_end()

    def _should_end(self) -> bool:
        """The processor is to end."""
        return (
            self._stopping.is_set()
            or self._executor.fatal is not None
            or self._hand_over.failure is not None
        )

    def _may_hand_over(self) -> bool:
        return self._subscription is not None and not (self._paused or self._should_end())

    def _wake(self) -> None:
        """Come round soon (any thread)."""
        self._has_room.set()
        self._hand_over.recall()
        if self._subscription is not None:
            self._subscription.wakeup()

    def _subscribe(self) -> Subscription | None:
        job = self._job
        pause = 0.1
        while not self._stopping.is_set():
            try:
                return self._log.subscribe(
                    job.group,
                    job.topics,
                    self,
                    flow=job.flow,
                    trim_margin=job.dedup.window,
                    member=job.member,
                )
            except Unavailable as error:
                self._log_unreachable(error)
                self._stopping.wait(pause)
                pause = min(5.0, pause * 2)
        return None

    def _survive_outage(self, poll_cycle: Callable[[], None]) -> None:
        """An outage is waited out, and said; anything worse ends the processor."""
        pause, self._pause_before_cycle = self._pause_before_cycle, 0.0
        if pause:
            self._stopping.wait(pause)
        try:
            poll_cycle()
        except (Fatal, NotFound, TopicMismatch):
            raise
        except Unavailable as error:
            self._pause_before_cycle = 0.5
            self._log_unreachable(error)
        except LogError as error:
            self._pause_before_cycle = 2.0
            self._log_unreachable(error)
        else:
            if not self.reachable:
                logger.warning("%s: the log answers again", self._job.name)
                self.reachable = True

    def _log_unreachable(self, error: BaseException) -> None:
        if self.reachable:
            logger.warning("%s: waiting for the log: %s", self._job.name, error)
        self.reachable = False

    def _poll_cycle(self) -> None:
        subscription = self._subscription
        if subscription is None or self._should_end():  # it may have waited for its turn, or rested
            return
        self._commit_error = None
        capacity = self._capacity()
        if capacity <= 0 or self._paused:
            self._wait_or_pause(subscription)
            capacity = self._capacity()
        if self._now() >= self._commit_due and not self._start_uncommitted:
            self._commit_if_due(subscription)
        if self._not_offered:
            # An outage between a poll and the commit of the start: reading went on past these.
            # Polled all the same: a rebalance is served there, and until then a commit is refused.
            self._not_offered.extend(subscription.poll(1, 0.0))
            self._pause_in_driver(subscription, everything=True)
        elif capacity > 0 and not self._paused:
            self._pause_in_driver(subscription, everything=False)
            self._wait_while_ahead(subscription)
            self._not_offered.extend(
                subscription.poll(min(capacity, self._limit()), self._poll_timeout())
            )
        elif self._driver_paused:
            # Nothing comes, but the membership is kept alive and rebalances are served.
            self._not_offered.extend(subscription.poll(1, 0.0))
            self._pause_in_driver(subscription, everything=True)
        if self._start_uncommitted:
            self._commit(subscription)
        batches, self._not_offered = self._not_offered, []
        for batch in batches:
            self._offer(batch)
        if self._job.key_parking is not None:
            for fetched in self._job.key_parking.take_returned():
                self._executor.call_soon(partial(self._executor.dispatcher.push_returned, fetched))
            self._restart_partitions(subscription, self._job.key_parking)
        if batches or self._executor.dispatcher.has_backlog:
            self._executor.notify()
        if self._commit_error is not None:
            raise self._commit_error

    def _restart_partitions(self, subscription: Subscription, key_parking: KeyParking) -> None:
        """Let go of partitions with which nothing more may be done, and ask for them anew."""
        for assignment, pause in key_parking.replaced_epochs():
            states = [self._owned[id(assignment)][1]]
            self._drop_partitions([assignment])
            self._executor.revoke(states)
            self._executor.cancel(states)
            if self._job.observer is not None:
                self._job.observer.revoked([assignment])
            subscription.pause([assignment])
            self._restarting[id(assignment)] = (self._now() + pause, assignment)
        if self._restarting:
            now = self._now()
            due = [each for when, each in self._restarting.values() if when <= now]
            if due:
                subscription.reassign(due)
                for assignment in due:
                    self._restarting.pop(id(assignment), None)

    def _limit(self) -> int:
        """How many messages to poll at once."""
        if not self._hand_over.handed_over:
            return POLL_LIMIT
        often = 0 < gc.get_threshold()[0] < COLLECTED_SELDOM  # 0: it is called by hand
        batch = min(self._job.batch or 1, POLL_LIMIT)
        limit = max(self._poll_limit if often else POLL_LIMIT_HANDED_OVER, batch)
        return limit - limit % batch  # full batches, without a remainder

    def _poll_timeout(self) -> float:
        """How long to block in poll, in real seconds."""
        return min(POLL_TIMEOUT, max(0.0, self._clock.real_timeout(self._commit_due - self._now())))

    def _capacity(self) -> int:
        """How many more messages may be taken in."""
        with self._progress_lock:
            held = [state.progress.unsettled() for _, state in self._owned.values()]
        messages, size = sum(each[0] for each in held), sum(each[1] for each in held)
        if self._gate.is_byte_bound(size) and self._gate.capacity(messages, size) == 0:
            with self._progress_lock:
                for _, state in self._owned.values():
                    state.progress.release_settled()
                held = [state.progress.unsettled() for _, state in self._owned.values()]
            messages, size = sum(each[0] for each in held), sum(each[1] for each in held)
        self._unsettled = messages
        if messages == 0:
            size = 0  # a single message is taken, however large
        return self._gate.capacity(messages, size)

    def _has_capacity(self) -> None:
        """The executor has room (any thread)."""
        if not self._has_room.is_set():
            self._has_room.set()

    def _wait_while_ahead(self, subscription: Subscription) -> None:
        """Enough lies before an executor that is quick: it takes less time if it has less of it."""
        if self._executor.dispatcher.read_ahead < READ_AHEAD:
            return
        self._has_room.clear()
        if self._executor.dispatcher.read_ahead >= READ_AHEAD and not self._stopping.is_set():
            self._await_capacity(subscription, perf_counter() + READ_AHEAD_WAIT)

    def _await_capacity(self, subscription: Subscription, until: float) -> None:
        """Wait for the executor, up to ``until`` on the real clock; commit meanwhile."""
        while (left := until - perf_counter()) > 0:
            if self._has_room.wait(min(left, max(SHORTEST_WAIT, self._poll_timeout()))):
                return
            if self._now() >= self._commit_due:
                self._commit_if_due(subscription)

    def _wait_or_pause(self, subscription: Subscription) -> None:
        """Enough is held: wait for the executor. A long wait pauses the driver."""
        self._has_room.clear()
        if self._driver_paused:
            self._has_room.wait(self._poll_timeout())
        elif self._capacity() <= 0 or self._paused:
            self._await_capacity(subscription, perf_counter() + PAUSE_AFTER)
            if self._capacity() <= 0 or self._paused:
                self._pause_in_driver(subscription, everything=True)

    def _pause_in_driver(self, subscription: Subscription, *, everything: bool) -> None:
        """Pause in the driver what must not deliver: everything, or what is full."""
        self._driver_paused = everything
        wanted = set(self._owned) if everything else self._progress_full & self._owned.keys()
        if wanted == self._paused_in_driver:
            return
        pause = [self._owned[key][0] for key in wanted - self._paused_in_driver]
        resume = [
            each[0] for key, each in self._owned.items() if key in self._paused_in_driver - wanted
        ]
        self._paused_in_driver = wanted
        if pause:
            subscription.pause(pause)
        if resume:
            subscription.resume(resume)

    def _offer(self, batch: Batch) -> None:
        found = self._owned.get(id(batch.assignment))
        if found is None or not len(batch):
            return
        state = found[1]
        decoding = self._job.decodings[batch.topic]
        batch = decoding.unwrap(batch)
        identify = decoding.id_reader
        with self._progress_lock:
            fetched = state.progress.add(state, batch, None if identify is None else [])
        if identify is None:
            # Messages whose headers cannot be read are looked at one by one; so are their
            # neighbours.
            if not batch.unreadable and not batch.decode_errors:
                fetched.decode = decoding.fast_decoder(batch.values, fetched.largest_value)
        else:
            # Decoded ahead of time: the identity is inside the value.
            fetched.decoded, fetched.ids, whole = self._decode_ahead(
                batch, identify, fetched.largest_value
            )
            if not whole:
                fetched.partly_settled = True  # what could not be decoded is looked at one by one
        if not self._unsaved:
            self._unsaved = True
            self._plan_commit()
        self._gate.record_size(len(fetched), fetched.held_bytes)
        self._executor.dispatcher.offer(fetched)

    def _decode_ahead(
        self, batch: Batch, identify: IdReader, largest: int
    ) -> tuple[list[Any], list[str | None], bool]:
        """Values and identities of a batch, and whether all could be decoded."""
        decoding = self._job.decodings[batch.topic]
        fast = decoding.fast_decoder(batch.values, largest)
        if fast is not None:
            try:
                events = list(map(fast, batch.values))
                if len(events) < len(batch):
                    raise RuntimeError("decoding raised StopIteration, which ends map()")
                found: list[Any] = identify.identify_many(events)
                redrive_marks = batch.identity_suffixes()
                if redrive_marks is not None:
                    found = [id + mark for id, mark in zip(found, redrive_marks, strict=True)]
                if not batch.unreadable and not batch.decode_errors:
                    return events, found, True
            except Exception:  # noqa: S110 - which one it was is found below
                pass
        events, ids, whole = [], list[str | None](), True
        for index in range(len(batch)):
            header_id = batch.ids[index]
            try:
                check_headers(batch, index)
                event = decoding.decode_one(batch, index)
                id = identify(event) + identity_suffix(header_id)
            except Exception as error:
                events.append(Undecodable(error))
                # What its headers say is no ID of a value: it must not stand for one.
                ids.append(None if header_id is None else f"{header_id}\0undecodable")
                whole = False
            else:
                events.append(event)
                ids.append(id)
        return events, ids, whole

    # -- commits

    def _next_commit_of(
        self,
        assignment: Assignment,
        state: PartitionState,
        *already_known: dict[int, tuple[int, str]],
    ) -> Commit | None:
        """What to commit of a partition; None where that is ``known`` to be stored."""
        with self._progress_lock:
            if state in self._in_transaction:
                # Taken now, stored after it, this would take its messages back; what is settled
                # by now is in its own commit.
                return None
            found = state.progress.snapshot()
            state.snapshot_version += 1
            version = state.snapshot_version
        key = id(assignment)
        if not found.complete or len(found.progress) > PROGRESS_FULL:
            if key not in self._progress_full:
                self._progress_full.add(key)
                logger.warning(
                    "%s: %s/%d takes in no more until its settled set is smaller: "
                    "%d characters, position %d",
                    self._job.name, assignment.topic, assignment.partition,
                    len(found.progress), found.position,
                )  # fmt: skip
        elif key in self._progress_full and len(found.progress) * 2 < PROGRESS_FULL:
            self._progress_full.discard(key)
        snapshot = (found.position, found.progress)
        if any(known_of.get(key) == snapshot for known_of in already_known):
            return None
        if self._job.key_parking is not None and not self._job.key_parking.is_confirmed(assignment):
            # Asked after the place was taken, so that it holds for everything below it.
            return None
        return Commit(assignment, *snapshot, version)

    def _commit_if_due(self, subscription: Subscription) -> None:
        """Positions are submitted as soon as something moved and the last submit is paid for; and
        committed, for good, every ``Flow.commit`` seconds.

        If that fails the turn goes on, because a rebalance on account of which a commit is refused
        is served in poll; the turn's end says so.
        """
        if self._commit_error is not None:
            return
        try:
            if self._now() >= self._next_commit:
                self._commit(subscription)
            else:
                self._commit_async(subscription)
        except LogError as error:
            self._commit_error = error

    def _plan_commit(self) -> None:
        """Something has changed that says when to commit next."""
        self._commit_due = self._next_commit
        if self._unsaved and not self._commit_pending:
            self._commit_due = min(self._commit_due, self._commit_pace.due)

    def _commit(self, subscription: Subscription) -> None:
        self._next_commit = self._now() + self._job.flow.commit
        self._plan_commit()
        self._commit_partitions(subscription, list(self._owned.values()))
        self._start_uncommitted = False

    def _commit_async(self, subscription: Subscription) -> None:
        began, cpu_began = perf_counter(), thread_time()
        found = [
            self._next_commit_of(assignment, each, self._committed, self._submitted)
            for assignment, each in list(self._owned.values())
        ]
        commits = [commit for commit in found if commit is not None]
        if commits:
            self._commit_pending = True
            try:
                subscription.commit_async(commits, partial(self._submitted_ended, commits, began))
            except BaseException:
                self._submitted_ended(commits, began, stored=False)
                raise
        # Where the handler's thread commits, it is its time that passes, whoever is busy.
        cost = perf_counter() - began if self._hand_over.handed_over else thread_time() - cpu_began
        if commits:
            self._commit_pace.record_commit(self._now(), cost)
        else:
            self._unsaved = self._unsettled > 0
            self._commit_pace.record_idle_look(self._now(), cost)
        self._plan_commit()

    def _submitted_ended(self, commits: Sequence[Commit], began: float, stored: bool) -> None:
        """What became of a submit: told inside of it, or of a later poll or commit."""
        self._commit_pending = False
        if stored:
            self._commit_times.add(perf_counter() - began)
            self.commits += 1
            self._remember_committed(self._submitted, commits)
        else:
            self._unsaved = True
            self._commit_pace.record_idle_look(self._now(), 0.0)
        self._plan_commit()

    def _remember_committed(
        self, target: dict[int, tuple[int, str]], commits: Sequence[Commit]
    ) -> None:
        for assignment, position, progress, _ in commits:
            if id(assignment) in self._owned:
                target[id(assignment)] = (position, progress)

    def _commit_partitions(
        self, subscription: Subscription, partitions: Sequence[tuple[Assignment, PartitionState]]
    ) -> None:
        found = [
            self._next_commit_of(assignment, each, self._committed)
            for assignment, each in partitions
        ]
        commits = [commit for commit in found if commit is not None]
        if not commits:
            return
        began = perf_counter()
        subscription.commit(commits)
        self._commit_times.add(perf_counter() - began)
        self.commits += 1
        self._remember_committed(self._committed, commits)

    def _commit_in_transaction(self, transaction: Any, deliveries: Sequence[Delivery]) -> None:
        """Commit a handler's transaction together with the places of what it handled."""
        by_state: dict[int, tuple[PartitionState, list[tuple[FetchedBatch, int]]]] = {}
        for each in deliveries:
            state: PartitionState = each.fetched.state
            by_state.setdefault(id(state), (state, []))[1].append((each.fetched, each.index))
        commits: list[Commit] = []
        with self._progress_lock:
            for state, settled in by_state.values():
                found = state.progress.preview_commit(settled)
                state.snapshot_version += 1
                snapshot = (found.position, found.progress)
                commits.append(Commit(state.assignment, *snapshot, state.snapshot_version))
                self._in_transaction.append(state)
        try:
            transaction.commit(commits)
        except BaseException:
            self._transaction_ended(by_state.values(), settled=False)
            raise
        self._remember_committed(self._submitted, commits)
        self._transaction_ended(by_state.values(), settled=True)

    def _transaction_ended(
        self,
        by_state: Collection[tuple[PartitionState, list[tuple[FetchedBatch, int]]]],
        *,
        settled: bool,
    ) -> None:
        with self._progress_lock:
            for state, messages in by_state:
                self._in_transaction.remove(state)
                if settled:
                    for fetched, index in messages:
                        fetched.settled[index] = 1

    # -- what the subscription tells, inside poll and close

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these partitions are ours, or none of them while one cannot be read."""
        kept_alive_at = self._now()
        restored: list[tuple[Assignment, _Restored]] = []
        try:
            for assignment in assignments:
                if (
                    self._now() - kept_alive_at > KEEP_ALIVE_EVERY
                ):  # many windows to rebuild take their time
                    self._keep_alive()
                    kept_alive_at = self._now()
                restored.append((assignment, self._restore_progress(assignment)))
        except BaseException:
            self._drop_partitions(assignments)
            raise
        self.rebalances += 1
        for assignment, (progress, window, beyond_end, rejected) in restored:
            self._report_gap(assignment, progress, beyond_end, rejected)
            assignment.position = progress.position
            state = PartitionState(assignment, progress, window)
            self._executor.assign(state)
            if self._job.key_parking is not None:
                self._job.key_parking.begin(assignment, state)
            assignment.listener_state = state
            self._owned[id(assignment)] = (assignment, state)
            committed = assignment.committed
            if committed is not None:
                self._committed[id(assignment)] = (committed.position, committed.progress)
            if committed is None or committed.position != progress.position:
                self._start_uncommitted = True
        if self._job.observer is not None:
            self._job.observer.assigned(assignments)
        if assignments:
            logger.info("%s: owns %s", self._job.name, partition_names(assignments))

    def _report_gap(
        self, assignment: Assignment, progress: Progress, beyond_end: int | None, rejected: str
    ) -> None:
        """Say where what was committed does not fit the log."""
        name, topic, partition = self._job.name, assignment.topic, assignment.partition
        show, committed = self._log.format_offset, assignment.committed
        if beyond_end is not None:
            self.losses += 1
            logger.error(
                "%s: the committed position of %s/%d, %s, is beyond the log's end: the topic was "
                "made anew, the log has lost its end, or somebody set that position; the group "
                "goes on at %s (streams reset moves it)",
                name, topic, partition, show(beyond_end), show(progress.position),
            )  # fmt: skip
        elif committed is not None and committed.position < progress.position:
            self.losses += 1
            logger.error(
                "%s: messages of %s/%d were deleted before they were handled: committed "
                "position %s, the log begins at %s",
                name, topic, partition, show(committed.position), show(progress.position),
            )  # fmt: skip
        if rejected:
            self.rejected += 1
            logger.warning("%s: %s/%d %s", name, topic, partition, rejected)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Listener: finish and commit these."""
        self.rebalances += 1
        partitions = self._deactivate(assignments)
        states = [each for _, each in partitions]
        self._executor.revoke(states)
        self._drain(states)
        try:
            if self._subscription is not None:
                self._commit_partitions(self._subscription, partitions)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)
        self._drop_partitions(assignments)
        if self._job.observer is not None:
            self._job.observer.revoked(assignments)
        logger.info("%s: gave up %s", self._job.name, partition_names(assignments))

    def lost(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these are somebody else's."""
        self.rebalances += 1
        states = [each for _, each in self._deactivate(assignments)]
        self._drop_partitions(assignments)
        self._executor.revoke(states)
        # What runs cannot be taken back; what is async is cancelled.
        self._executor.cancel(states)
        if self._job.observer is not None:
            self._job.observer.revoked(assignments)
        logger.warning("%s: lost %s", self._job.name, partition_names(assignments))

    def _drain(self, states: Sequence[PartitionState] | None) -> None:
        """Wait for what runs, up to the drain deadline; then cancel what can be cancelled."""
        executor, limit = self._executor, self._job.flow.drain
        deadline = self._now() + limit
        while not executor.wait_idle(states, min(deadline, self._now() + KEEP_ALIVE_EVERY)):
            if executor.fatal is not None:
                return
            if self._now() >= deadline or executor.impatient:
                if not executor.cancel(states):
                    logger.warning(
                        "%s: handlers outlived the drain deadline of %g s; their messages will be "
                        "handled again",
                        self._job.name, limit,
                    )  # fmt: skip
                return
            self._keep_alive()

    def _keep_alive(self) -> None:
        if self._subscription is not None:
            try:
                self._subscription.keep_alive()
            except LogError as error:
                logger.warning("%s: waiting for the log: %s", self._job.name, error)

    def _deactivate(
        self, assignments: Sequence[Assignment]
    ) -> list[tuple[Assignment, PartitionState]]:
        partitions = []
        for assignment in assignments:
            assignment.valid_until = float("-inf")
            found = self._owned.get(id(assignment))
            if found is not None:
                partitions.append(found)
        return partitions

    def _drop_partitions(self, assignments: Sequence[Assignment]) -> None:
        if self._job.key_parking is not None:
            self._job.key_parking.release(assignments)
        for assignment in assignments:
            self._owned.pop(id(assignment), None)
            self._committed.pop(id(assignment), None)
            self._submitted.pop(id(assignment), None)
            self._progress_full.discard(id(assignment))
            self._paused_in_driver.discard(id(assignment))
            self._restarting.pop(id(assignment), None)

    def _restore_progress(self, assignment: Assignment) -> _Restored:
        """Where to go on, and what was settled already.

        What was committed is held against the log, because anybody may have written it, and the
        log may be another one by now. Where messages were deleted before they were handled, the
        group goes on behind them. A position beyond the log's end says nothing of what stands
        there, so the group begins at the first message there is.
        """
        job, committed = self._job, assignment.committed
        topic, partition = assignment.topic, assignment.partition
        first, end = self._log.watermarks(topic, partition)
        settled: list[Range] = []
        beyond_end, rejected = assignment.stored_beyond_end, ""
        if committed is None:
            # A partition younger than its group: nothing of it may be missed.
            position = floor = max(first, job.start_positions.get((topic, partition), first))
        elif committed.position > end and committed.position > self._log.log_end_offset(
            topic, partition
        ):
            beyond_end, position, floor = committed.position, first, first
        else:
            position = floor = committed.position
            if committed.progress:
                try:
                    floor, found = decode(position, committed.progress)
                    settled = truncated(found, end)
                    if settled != found:
                        rejected = (
                            "was committed with messages as settled that are beyond the log's end, "
                            f"{self._log.format_offset(end)}: they will be handled when they come"
                        )
                except ValueError as error:
                    rejected = (
                        f"was committed by something else ({error}): its position "
                        f"{self._log.format_offset(position)} counts, its dedup window is empty"
                    )
            if position < first:
                position = first
                settled = [(max(low, first), high) for low, high in settled if high > first]
        if job.key_parking is not None:
            settled = with_offsets(
                settled,
                job.key_parking.restore(
                    assignment,
                    position,
                    after_reset=floor >= position and not settled,
                    keep_alive=self._keep_alive,
                ),
            )
        progress = Progress(position, floor, settled)
        if not job.dedup.window:
            return _Restored(progress, None, beyond_end, rejected)
        with _windows_lock:
            window = PROCESS_BUDGET.new_window(job.dedup.window, job.dedup.cap)
        high = min(end, settled[-1][1] if settled else position)
        low = max(floor, first, self._log.offset_before(topic, partition, position, window.size))
        if low < high:
            self._rebuild_window(window, topic, partition, low, high, position, settled)
        return _Restored(progress, window, beyond_end, rejected)

    def _rebuild_window(
        self,
        window: DedupWindow,
        topic: str,
        partition: int,
        low: int,
        high: int,
        position: int,
        settled: Sequence[Range],
    ) -> None:
        """Rebuild the dedup window from the log: what was settled below ``high``."""
        decoding = self._job.decodings[topic]
        identify = decoding.id_reader
        reader = self._log.reader(topic, partition, low, high)
        ranges = iter(settled)
        current: Range | None = next(ranges, None)
        kept_alive_at = self._now()
        try:
            while (batch := reader.read(1_000)) is not None:
                if self._now() - kept_alive_at > KEEP_ALIVE_EVERY:  # settled ranges may reach far
                    self._keep_alive()
                    kept_alive_at = self._now()
                batch = decoding.unwrap(batch)
                if identify is None:
                    ids = batch.ids
                else:
                    ids = self._decode_ahead(batch, identify, batch.total_and_largest()[1])[1]
                for offset, identity in zip(batch.offsets, ids, strict=True):
                    if identity is None:
                        continue
                    if offset >= position:
                        while current is not None and current[1] <= offset:
                            current = next(ranges, None)
                        if current is None or offset < current[0]:
                            continue
                    window.add(identity)
        finally:
            reader.close()

    # -- the end

    def _finish(self) -> None:
        """Finish what runs, up to the deadline, and commit."""
        subscription = self._subscription
        if subscription is None:
            return
        with self._resume_lock:
            self._finishing = True
            self._executor.suspend()
        self._drain(None)
        try:
            self._commit(subscription)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)


def _partition_progress(assignment: Assignment, progress: Progress) -> PartitionProgress:
    oldest = progress.oldest_unsettled()  # first, as it moves the position
    return PartitionProgress(
        assignment.topic, assignment.partition, progress.position, progress.polled, oldest
    )


def partition_names(assignments: Sequence[Assignment]) -> str:
    """Partitions as a log line shows them."""
    return ", ".join(f"{each.topic}/{each.partition}" for each in assignments) or "nothing"
