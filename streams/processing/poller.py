"""The poller: polls a processor's subscription, feeds the executor, and commits, in cycles.

It is the only user of the subscription, so everything a driver wants from one thread at a time
(polling, committing, rebalance callbacks) happens in a poll cycle, and no handler ever runs in one:
the process stays in its group however slow its handlers are. Cycles run in a thread of the poller's
own, or in the handler's thread while that is quick (:mod:`streams.processing.polling_hand_over`).

What is committed, and when, is in :mod:`streams.processing.committer`; what happens to a partition
that is assigned or taken away, in :mod:`streams.processing.partition_lifecycle`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from streams.clock import SYSTEM
from streams.engine.dispatcher import READ_AHEAD
from streams.engine.flow_gate import FlowGate
from streams.errors import Fatal, LogError, NotFound, TopicMismatch, Unavailable
from streams.log.protocol import Assignment, Log, Subscription, TopicPartition
from streams.log.range_reader import is_message_free
from streams.message import Batch, text
from streams.processing.committer import OffsetCommitter, PartitionCommitState, PartitionProgress
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction, TransactionLock
from streams.processing.job import Job, decode_ahead
from streams.processing.partition_lifecycle import PartitionLifecycle
from streams.processing.pipeline_committer import PipelineCommitter
from streams.processing.polling_hand_over import PollingHandOver
from streams.processing.timing import Durations
from streams.text import get_logger

logger = get_logger("streams")

POLL_TIMEOUT = 0.1
"""Real seconds a poll may block: how late a stop or a commit may be noticed at worst."""

POLL_LIMIT = 800
"""Messages polled at once, at most. They are looked through several times (offsets, keys, IDs,
sizes, decoding) and stay in the processor's cache meanwhile; each poll has its price, too. On Kafka
400 to 1,000 took the same time, 256 a tenth more."""

POLL_LIMIT_DECODED = 320
"""The same where all are decoded before the first of them is handled: while they live on, Python's
cyclic garbage collector goes through them again and again. With 1,000, a message cost 40 % more CPU
(on Kafka)."""

LARGEST_BATCH = 1_000
"""Messages polled at once for a handler of batches, at most, so that its batches are full."""

PAUSE_AFTER = 0.25
"""Real seconds the gate may be shut before the driver is paused (which discards its prefetch), or
more where the driver needs longer to go on: what is still held when the gate opens lasts about as
long as it was shut, so messages come again in time."""

SHORTEST_WAIT = 0.001
"""Real seconds of the shortest single wait."""

READ_AHEAD_WAIT = 0.05
"""Real seconds that an executor gets for its queued work before more is read ahead."""


class PollerStats(NamedTuple):
    """The poller's statistics."""

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
    """Feeds one executor from one subscription. Started and stopped by the app.

    One class, because a cycle polls, offers, pauses and commits by the same few attributes, which
    belong to whichever thread runs it; what can be told apart (committing, partitions, handing the
    cycle over) is in modules of its own.
    """

    def __init__(self, log: Log, job: Job, executor: Executor) -> None:
        self._log = log
        self._job = job
        self._executor = executor
        self._clock = job.clock
        self._now = job.clock.monotonic
        self._owned: dict[Assignment, PartitionCommitState] = {}
        self._hand_over = PollingHandOver(
            partial(self._survive_outage, self._poll_cycle), self._may_hand_over
        )
        self._committer = self._make_committer()
        self._partitions = PartitionLifecycle(log, job, executor, self._committer, self._owned)
        self._has_room = threading.Event()
        self._shut_at: float | None = None
        """Since when the gate is shut because the limit on held messages is reached
        (``perf_counter()``); None: it is open."""
        self._woken = False
        """Whether the next poll cycle is to begin at once."""
        self._gate = FlowGate(job.flow)
        self._subscription: Subscription | None = None
        self._stopping = threading.Event()
        self._resume_lock = threading.Lock()
        self._finishing = False
        self._paused = False
        self._driver_paused = False
        self._paused_in_driver: set[Assignment] = set()
        batch = min(job.batch or 1, LARGEST_BATCH)
        decodes_ahead = any(each.id_reader is not None for each in job.decodings.values())
        limit = POLL_LIMIT_DECODED if decodes_ahead else POLL_LIMIT
        self._poll_limit = max(batch, limit // batch * batch)  # full batches, no remainder
        self._not_offered: list[Batch] = []
        """Polled, and not offered yet: the start is committed before anything is delivered."""
        self._pause_before_cycle = 0.0
        """Real seconds to wait before the next cycle, after one that failed: not at its end, as
        what it polled may be handled meanwhile."""
        self._outputs_prepared = job.outputs is None
        self._thread = threading.Thread(
            target=self._main, name=f"streams-{job.name}-poller", daemon=True
        )
        self.fatal: BaseException | None = None
        """The error that ended the processor; None if it runs or was stopped."""
        self.ended = threading.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.reachable = True
        executor.dispatcher.refill = self._signal_room
        if job.outputs is not None and job.clock is not SYSTEM:
            job.outputs.wake = self._wake  # nothing else tells it when to commit
        if job.clock is SYSTEM:
            # Where a test moves the clock, a lease runs out while a handler's thread does not poll.
            executor.accept_polling(self._hand_over, self._wake)
        if job.key_parking is not None:
            job.key_parking.wake_poller = self._wake

    def _make_committer(self) -> OffsetCommitter:
        job, executor, capabilities = self._job, self._executor, self._log.capabilities
        if job.outputs is not None:
            return PipelineCommitter(
                job, capabilities.outputs_at_once, self._owned, executor.dispatcher,
                executor.call_soon,
            )  # fmt: skip
        interval = capabilities.commit_interval
        return OffsetCommitter(job, interval, self._owned, lambda: self._hand_over.handed_over)

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

    def join_thread(self) -> None:
        """Wait until the poller's thread is gone, which has nothing left to do after ``on_end``."""
        self._thread.join()

    def stats(self) -> PollerStats:
        """Figures of this moment."""
        unsettled, partitions = self._committer.unsettled(), self._partitions
        return PollerStats(
            len(self._owned),
            unsettled.messages,
            unsettled.bytes,
            self._committer.commits,
            partitions.rebalances,
            partitions.losses,
            partitions.rejected,
            self.reachable,
            self._committer.progress(),
            self._committer.commit_seconds(),
        )

    @property
    def losses(self) -> int:
        """How often unhandled messages were found missing: deleted, or beyond the log's end."""
        return self._partitions.losses

    @property
    def rejected(self) -> int:
        """How often a committed progress was rejected as invalid."""
        return self._partitions.rejected

    def describe_pending_work(self) -> str:
        """What keeps this processor from being at rest, in words; empty when it is.

        At rest means: everything in the log was polled, and is settled or waits for time to pass.
        """
        executor, dispatcher = self._executor, self._executor.dispatcher
        if executor.running or executor.unconfirmed or dispatcher.has_backlog:
            return "handlers are running"
        for each in list(self._owned.values()):
            if each.assignment.valid_until == float("-inf"):
                return "partitions are being revoked"  # they may have come back already
            partition, polled = each.assignment.topic_partition, each.state.progress.polled
            _, end = self._log.watermarks(*partition)
            if not is_message_free(self._log, *partition, polled, end):
                return "messages were not polled yet"
        if not dispatcher.waiting and self._committer.unsettled().messages:
            return "messages are in hand"  # between two threads, perhaps
        if self._committer.has_unstored:
            return "results are not stored yet"
        if self._was_reset():
            return "its positions were reset"
        due = dispatcher.next_due
        if due is not None and due <= self._now():
            return "messages are due for a retry"
        if self._partitions.restarting:
            return "partitions are being restarted"
        if self._job.key_parking is not None and (
            unfinished := self._job.key_parking.describe_pending_work()
        ):
            return unfinished
        return "" if self._job.observer is None else self._job.observer.describe_pending_work()

    def _was_reset(self) -> bool:
        """The group was reset to other positions, and the partitions were not given up here yet: in
        the log they have no owner by now, or stand before what was committed here."""
        owned = list(self._owned.values())
        topics = {each.assignment.topic for each in owned}
        try:
            group = self._log.describe_group(self._job.group, topics)
        except NotFound:
            return False  # it follows topics without a group
        assigned_partitions = {
            partition for member in group.members for partition in member.partitions
        }
        for each in owned:
            partition = each.assignment.topic_partition
            if partition not in assigned_partitions:
                return True
            found = group.positions.get(partition)
            known = [stored.position for stored in (each.committed, each.submitted) if stored]
            if found is not None and known and found.position < max(known):
                return True
        return False

    def next_due(self) -> tuple[float, str] | None:
        """For a processor at rest: in how many seconds the next waiting message is due, and a
        description of it; None: nothing waits (any thread)."""
        found: list[tuple[float, str]] = []
        dispatcher = self._executor.dispatcher
        moment, count = dispatcher.next_due, dispatcher.waiting
        if moment is not None and count:
            what = f"{count} message{' waits' if count == 1 else 's wait'} to be tried again"
            for topic, partition, ordering_key, attempt in dispatcher.waiting_keys(1):
                key = f"key {text(ordering_key)!r}" if isinstance(ordering_key, bytes) else "no key"
                what += f", first the one of {topic}/{partition} with {key}, attempt {attempt}"
            if held_back := dispatcher.held_back:
                what += f" ({held_back} for newer code)"
            found.append((max(0.0, moment - self._now()), what))
        if (
            self._job.observer is not None
            and (waiting := self._job.observer.next_due()) is not None
        ):
            found.append(waiting)
        return min(found, default=None)

    def owned_partitions(self) -> set[TopicPartition]:
        """The partitions that are owned at this moment (any thread)."""
        return {each.topic_partition for each in list(self._owned)}

    def subscribed_topics(self, log: Log) -> tuple[str, ...]:
        """The topics of ``log`` that it reads as a member of its group; none where it is in no
        group (any thread)."""
        return self._job.topics if self._log is log else ()

    @property
    def contested_partitions(self) -> int:
        """Partitions as whose owner another process has written recently (any thread)."""
        return 0 if self._job.key_parking is None else self._job.key_parking.contested_partitions()

    def closed_keys(self) -> tuple[int, int]:
        """Keys that are closed in the partitions that it owns, and messages that wait behind those
        that close them (any thread)."""
        return (0, 0) if self._job.key_parking is None else self._job.key_parking.closed_keys()

    def handler_transaction(self, lock: TransactionLock) -> HandlerTransaction:
        """The transactions of one worker of the executor."""

        def open() -> Any:
            if self._subscription is None:
                raise Unavailable(f"{self._job.name}: not subscribed yet")
            return self._subscription.begin_transaction()

        return HandlerTransaction(
            open, self._committer.commit_in_transaction, lock, may_block=not self._job.asynchronous
        )

    # -- the thread

    def _main(self) -> None:
        try:
            self._subscription = self._partitions.subscription = self._subscribe()
            if self._subscription is not None:
                unwatch = self._clock.on_jump(self._wake)
                hand_over = self._hand_over
                try:
                    while not self._should_end():
                        if not hand_over.handler_polls() and hand_over.run_cycle():
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
            remaining = list(self._owned)
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
        """Begin the next cycle soon (any thread)."""
        self._woken = True
        self._has_room.set()
        self._hand_over.wake_poller()
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
                    self._partitions,
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
        subscription, committer = self._subscription, self._committer
        if subscription is None or self._should_end():  # while this waited for the lock
            return
        committer.error = None
        if not self._outputs_prepared:
            subscription.prepare_outputs()
            self._outputs_prepared = True
        capacity = self._capacity()
        if capacity <= 0 or self._paused:
            self._wait_or_pause(subscription)
            self._woken = False
            capacity = self._capacity()
        if not committer.start_uncommitted:
            committer.commit_if_due(subscription)
        if self._not_offered:
            # An outage between a poll and the commit of the start: reading went on past these.
            # Polled all the same: a rebalance is served there, and until then a commit is refused.
            self._not_offered.extend(subscription.poll(1, 0.0))
            self._pause_in_driver(subscription, everything=True)
        elif capacity > 0 and not self._paused:
            self._shut_at = None
            self._pause_in_driver(subscription, everything=False)
            self._wait_while_ahead(subscription)
            self._not_offered.extend(
                subscription.poll(min(capacity, self._poll_limit), self._poll_timeout())
            )
        elif self._driver_paused:
            # Nothing comes, but the membership is kept alive and rebalances are served.
            self._not_offered.extend(subscription.poll(1, 0.0))
            self._pause_in_driver(subscription, everything=True)
        if committer.start_uncommitted:
            committer.commit_all(subscription)
        batches, self._not_offered = self._not_offered, []
        for batch in batches:
            self._offer(batch)
        if self._job.key_parking is not None:
            for fetched in self._job.key_parking.take_returned():
                self._executor.call_soon(partial(self._executor.dispatcher.push_returned, fetched))
        if self._job.key_parking is not None or self._job.outputs is not None:
            self._partitions.restart_replaced(subscription)
        if batches or self._executor.dispatcher.has_backlog:
            self._executor.notify()
        if committer.error is not None:
            raise committer.error

    def _poll_timeout(self) -> float:
        """How long to block in poll, in real seconds."""
        until_commit = self._clock.real_timeout(self._committer.due - self._now())
        return min(POLL_TIMEOUT, max(0.0, until_commit))

    def _capacity(self) -> int:
        """How many more messages may be taken in."""
        gate = self._gate
        messages, size = self._committer.count_unsettled(
            lambda found: gate.is_byte_bound(found.bytes) and gate.capacity(*found) == 0
        )
        if messages == 0:
            size = 0  # a single message is taken, however large
        return gate.capacity(messages, size)

    def _signal_room(self) -> None:
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
        while (left := until - perf_counter()) > 0 and not self._should_end():
            if self._has_room.wait(min(left, max(SHORTEST_WAIT, self._poll_timeout()))):
                return
            self._committer.commit_if_due(subscription)

    def _wait_or_pause(self, subscription: Subscription) -> None:
        """Enough is held: wait for the executor. A long wait pauses the driver."""
        self._has_room.clear()
        if self._driver_paused:
            self._has_room.wait(self._poll_timeout())
            return
        if self._shut_at is None:
            self._shut_at = perf_counter()
        until = self._shut_at + max(PAUSE_AFTER, subscription.resume_delay)
        committer = self._committer
        # An idle executor signals room again and again, though there is none until what it has
        # written is confirmed. What a commit settles gives room without a signal.
        while not self._woken and not self._should_end():
            if self._capacity() > 0 and not self._paused:
                return
            left = until - perf_counter()
            if left <= 0 or committer.waits_for_poll:
                self._pause_in_driver(subscription, everything=True)
                return
            self._has_room.wait(min(left, max(SHORTEST_WAIT, self._poll_timeout())))
            self._has_room.clear()
            committer.commit_if_due(subscription)

    def _pause_in_driver(self, subscription: Subscription, *, everything: bool) -> None:
        """Pause in the driver what must not deliver: everything, or what is full."""
        self._driver_paused = everything
        self._paused_in_driver &= self._owned.keys()
        wanted = set(self._owned) if everything else self._committer.full.copy()
        if wanted == self._paused_in_driver:
            return
        pause, resume = wanted - self._paused_in_driver, self._paused_in_driver - wanted
        self._paused_in_driver = wanted
        if pause:
            subscription.pause(pause)
        if resume:
            subscription.resume(resume)

    def _offer(self, batch: Batch) -> None:
        owned = self._owned.get(batch.assignment)
        if owned is None:
            return
        skipped_to = batch.skipped_to
        if not len(batch):
            if skipped_to:
                self._committer.skip_to(owned.state, skipped_to)
            return
        decoding, state = self._job.decodings[batch.topic], owned.state
        batch = decoding.unwrap(batch)
        ids_inside = decoding.id_reader is not None
        fetched = self._committer.add_batch(state, batch, [] if ids_inside else None)
        if ids_inside:
            decoded = decode_ahead(decoding, batch, fetched.largest_value)
            fetched.decoded, fetched.ids = decoded.values, decoded.ids
            if not decoded.all_decoded:
                fetched.partly_settled = True  # what could not be decoded is looked at one by one
        elif not batch.unreadable and not batch.decode_errors:
            # Messages whose headers cannot be read are looked at one by one; so are their
            # neighbours.
            fetched.decode = decoding.fast_decoder(batch.values, fetched.largest_value)
        self._committer.record_intake()
        self._gate.record_size(len(fetched), fetched.held_bytes)
        self._executor.dispatcher.offer(fetched)
        if skipped_to:
            self._committer.skip_to(state, skipped_to)

    # -- the end

    def _finish(self) -> None:
        """Finish what runs, up to the deadline, and commit."""
        subscription = self._subscription
        if subscription is None:
            return
        with self._resume_lock:
            self._finishing = True
            self._executor.suspend()
        self._partitions.drain(None)
        try:
            self._committer.commit_all(subscription)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)
