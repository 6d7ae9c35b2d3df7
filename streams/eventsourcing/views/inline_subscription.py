"""A subscription that handles what it polls, in the poll itself.

It stands between a log's subscription and the poller of a processor. What it polls it gives to its
partition's handler at once, and tells the poller only how far it has come. So the poller does the
rest as for any processor: it waits out outages, commits positions, drains and leaves.

A poll also tells the group that this member lives, and lets it rebalance. So handlers get a second
of it at most, however slow the view's function is: what is handled by then is written, and the
next poll goes on behind it. (One call of the function is never interrupted: it must not take as
long as the member's lease.)

A partition whose handler cannot go on at a message *waits* there, and tries again at growing
intervals. One whose handler failed at the log is given up, and begun anew from what the log says;
where it does not get on, at growing intervals, too. So is one that cannot begin, because the log
has not what its checkpoint says, or go on, because its topic was made anew (which not every log's
subscription tells). Other partitions go on meanwhile.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from typing_extensions import override

from streams.errors import Fenced, LogError, Unavailable
from streams.eventsourcing.views.checkpoint_check import CheckpointBeyondLog, check_incarnations
from streams.eventsourcing.views.incarnations import Incarnations
from streams.log.protocol import (
    Assignment,
    Log,
    RebalanceListener,
    Subscription,
    TopicPartition,
)
from streams.log.wrapped_subscription import WrappedSubscription, log_with_subscribe
from streams.message import Batch
from streams.text import count_with_noun, describe_error, get_logger
from streams.wire import shorten

logger = get_logger("streams.views")

POLL_LIMIT = 2_000
"""Messages that are polled and handled at once, at most."""

HANDLING_TIME = 1.0
"""Seconds after which handlers end, of those that are given what was polled and of those that go on
with what was polled before; each has handled a message at least."""

LEASE_SHARE = 5
"""Where leases are short, handlers end after this part of one: twice that may pass between two
signs of life."""

RETRY_PAUSE = 1.0
"""Seconds after which a partition that waits at a message tries it again; then twice as long."""

MAX_RETRY_PAUSE = 30.0

WAITING_POLL = 0.05
"""Seconds a poll may block while a partition waits."""

OUTAGE_PAUSE = 1.0
"""Longest pause, in seconds, before a partition that an outage stopped is restarted: the poller
waits for the log as well."""

MAX_STOPPED = 10_000
"""Keys of stopped documents remembered per partition, about."""


class HandledBatch(NamedTuple):
    """How far a batch was handled.

    :param stop: the index of the first message that was not handled; the batch's length: all were.
    :param error: why that message cannot be handled; None: only the turn's time was over.
    :param events: the number of events handled.
    :param stopped: the keys of documents that stopped in this batch.
    """

    stop: int
    error: Exception | None
    events: int
    stopped: Collection[bytes] = ()


def position_behind(batch: Batch, start: int, stop: int) -> int:
    """The position below which everything is handled, once the messages of a batch from ``start``
    to ``stop`` are; 0: unknown."""
    position = batch.skipped_to if stop == len(batch) else 0
    return max(position, batch.offsets[stop - 1] + 1) if stop > start else position


class PartitionHandler(Protocol):
    """Handles the messages of one partition. Of no use after a :class:`LogError`."""

    @property
    def position(self) -> int:
        """Everything below is handled."""
        ...

    @property
    def incarnations(self) -> Mapping[str, str]:
        """Of the topics that it goes on from, as far as they are known."""
        ...

    def handle(self, batch: Batch, start: int, until: float = float("inf")) -> HandledBatch:
        """Handle the messages of a batch from ``start`` on, as far as that can be.

        :param until: when to end (on :func:`time.monotonic`) and write what was handled by then;
            one message is handled in any case.
        :raises LogError: nobody knows what of it was written.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class PartitionCounts:
    """Figures of one partition that is or was handled here; written by the polling thread alone."""

    def __init__(self, position: int) -> None:
        self.events = 0
        self.stopped: set[bytes] = set()
        """The keys of documents that have stopped here and stand still, as far as they are kept."""
        self.position = position
        self.waiting = ""
        """Why it waits at a message; empty: it does not."""


class SkippedBatch(Batch):
    """No message: everything below an offset was handled."""

    __slots__ = ("skipped_to",)

    def __init__(self, assignment: Assignment, position: int) -> None:
        super().__init__(
            assignment.topic, assignment.partition, (), [], [], [], None, None, assignment
        )
        self.skipped_to = position


class _PartitionRestart(NamedTuple):
    """The restart of a partition that was given up.

    :param position: where its handler was; -1: it had not begun.
    :param pause: seconds until it is begun anew.
    """

    position: int
    pause: float


H = TypeVar("H", bound=PartitionHandler)


class InlinePartition(Generic[H]):
    """A partition whose batches are handled in the poll."""

    def __init__(self, assignment: Assignment, handler: H) -> None:
        self.assignment = assignment
        self.handler = handler
        self.pending: list[tuple[Batch, int]] = []
        """Polled, and not handled from the index on: it waits at the first of these, or the time
        was over."""
        self.is_paused = False
        """By the poller."""
        self.pause = RETRY_PAUSE
        self.due = 0.0
        """When it is tried again, on :func:`time.monotonic`."""


class InlineSubscription(WrappedSubscription, Generic[H]):
    """See the module.

    :param name: what it is, for log lines.
    :param counts: figures by topic and partition, kept here.
    :param incarnations: of the log's topics.
    """

    def __init__(
        self,
        log: Log,
        name: str,
        counts: dict[tuple[str, int], PartitionCounts],
        incarnations: Incarnations,
    ) -> None:
        super().__init__(cast(Any, None))  # it is there, as the listener is, once it has subscribed
        self._log = log
        self._incarnations = incarnations
        self._name = name
        self._counts = counts
        self._partitions: dict[Assignment, InlinePartition[H]] = {}
        self._given_up: dict[Assignment, float] = {}
        """To be assigned anew, and when (on :func:`time.monotonic`)."""
        self._restarts: dict[TopicPartition, _PartitionRestart] = {}
        """Partitions that were given up and did not get on since."""
        self._not_begun: list[Assignment] = []
        """Those of them that are to be paused: while they are assigned that cannot be."""
        self._told: list[Batch] = []
        """Batches that the next poll that raises nothing returns to the poller."""
        self._until = 0.0
        """The deadline of this turn's handlers, on :func:`time.monotonic`."""
        self._is_turn_new = False
        """Whether no handler has handled anything in this turn yet."""
        self._listener: RebalanceListener = cast(Any, None)

    @abstractmethod
    def _begin_partition(self, assignment: Assignment) -> H:
        """The handler of a partition that was assigned; may set what it has committed.

        :raises LogError: it cannot begin now.
        """

    def _between_polls(self) -> None:
        """Do what else there is to do."""

    def _after_handling(self) -> None:
        """Something was handled."""

    # -- in place of a log's

    def in_place_of(self, log: Log) -> Log:
        """What a poller is given instead of the log, so that it polls this subscription."""
        return log_with_subscribe(log, self.subscribe)

    def subscribe(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, **options: Any
    ) -> Subscription:
        """Join the group."""
        self._listener = listener
        self._subscription = self._log.subscribe(group, topics, self, **options)
        return self

    # -- what the log's subscription tells

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Listener: begin with these."""
        self._incarnations.clear()
        begun: list[InlinePartition[H]] = []
        refused: dict[Assignment, LogError] = {}
        try:
            for each in assignments:
                try:
                    begun.append(InlinePartition(each, self._begin_partition(each)))
                except CheckpointBeyondLog as error:
                    refused[each] = error
            self._listener.assigned([each.assignment for each in begun])
        except BaseException:
            for partition in begun:
                partition.handler.close()
            raise
        for partition in begun:
            assignment = partition.assignment
            self._partitions[assignment] = partition
            counts = self._counts_of(assignment)
            counts.position = partition.handler.position
            restart = self._restarts.get(assignment.topic_partition)
            if restart is None or restart.position < 0 or not restart.pause:
                counts.waiting = ""
        for assignment, reason in refused.items():
            self._schedule_restart(assignment, -1, reason)
            self._not_begun.append(assignment)

    def _counts_of(self, assignment: Assignment) -> PartitionCounts:
        return self._counts.setdefault(assignment.topic_partition, PartitionCounts(0))

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these go elsewhere."""
        self._listener.revoked(assignments)
        self._forget_partitions(assignments)

    def lost(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these have another owner."""
        self._listener.lost(assignments)
        self._forget_partitions(assignments)

    def _forget_partitions(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            partition = self._partitions.pop(assignment, None)
            if partition is not None:
                partition.handler.close()
            if partition is not None or self._given_up.pop(assignment, None) is not None:
                self._counts_of(assignment).waiting = ""

    # -- polling

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        self._reassign()
        self._begin_turn()
        self._retry_held()
        self._between_polls()
        if self._told:
            timeout = 0.0
        elif any(each.pending for each in self._partitions.values()):
            timeout = min(timeout, WAITING_POLL)
        batches = self._subscription.poll(POLL_LIMIT, timeout)
        self._begin_turn()
        for batch in batches:
            partition = self._partitions.get(batch.assignment)
            if partition is None:
                continue
            if partition.pending:
                partition.pending.append((batch, 0))
            elif self._has_time():
                self._handle_batch(partition, batch, 0)
            else:
                self._hold_rest(partition, batch, 0)
        told, self._told = self._told, []
        if told:
            self._after_handling()
        return told

    def _begin_turn(self) -> None:
        """From now on handlers have their time anew."""
        seconds = HANDLING_TIME
        lease = next((each.lease for each in self._partitions), None)  # all have the same
        if lease is not None:
            seconds = min(seconds, lease / LEASE_SHARE)
        self._until = time.monotonic() + seconds
        self._is_turn_new = True

    def _has_time(self) -> bool:
        return self._is_turn_new or time.monotonic() < self._until

    def _handle_batch(self, partition: InlinePartition[H], batch: Batch, start: int) -> None:
        """Handle a batch. Raises nothing of the log's: what else was polled is still to be handled,
        and will not be polled again."""
        self._is_turn_new = False
        where = f"{self._name}: {batch.topic}/{batch.partition}"
        try:
            check_incarnations(self._incarnations, where, partition.handler.incarnations)
            found = partition.handler.handle(batch, start, self._until)
        except LogError as error:
            self._give_up(partition, error)
            return
        self._record_handled(partition, batch, found)
        self._told.append(SkippedBatch(partition.assignment, partition.handler.position))

    def _record_handled(
        self, partition: InlinePartition[H], batch: Batch, found: HandledBatch
    ) -> None:
        assignment = partition.assignment
        counts = self._counts[assignment.topic_partition]
        counts.events += found.events
        counts.position = partition.handler.position
        if found.stopped:
            if len(counts.stopped) < MAX_STOPPED:
                counts.stopped.update(found.stopped)
            logger.error(
                "%s: partition %d: %s because folding failed; run `streams views show`",
                self._name, assignment.partition,
                f"{count_with_noun(len(found.stopped), 'document')} stopped",
            )  # fmt: skip
        if found.error is None:
            self._restarts.pop(assignment.topic_partition, None)
            if counts.waiting:
                logger.warning("%s: partition %d goes on", self._name, assignment.partition)
            counts.waiting, partition.pause = "", RETRY_PAUSE
            if found.stop < len(batch):
                self._hold_rest(partition, batch, found.stop)
            return
        self._hold_rest(partition, batch, found.stop)
        reason = shorten(describe_error(found.error), 300)
        if reason != counts.waiting:
            logger.error(
                "%s: %s/%d waits at %s, and tries again: %s",
                self._name, batch.topic, batch.partition,
                self._log.format_offset(batch.offsets[found.stop]), reason,
            )  # fmt: skip
        counts.waiting = reason
        partition.due = time.monotonic() + partition.pause
        partition.pause = min(2 * partition.pause, MAX_RETRY_PAUSE)

    def _hold_rest(self, partition: InlinePartition[H], batch: Batch, start: int) -> None:
        """Handle the rest of a batch in a later poll: before what comes of its partition until
        then, and behind the other partitions of which something is held."""
        assignment = partition.assignment
        if not partition.pending:
            self._subscription.pause([assignment])
        partition.pending.insert(0, (batch, start))
        self._partitions[assignment] = self._partitions.pop(assignment)

    def _retry_held(self) -> None:
        """Go on with partitions of which something is held, and that are due."""
        now = time.monotonic()
        for partition in list(self._partitions.values()):
            if partition.is_paused:
                continue
            while partition.pending and now >= partition.due and self._has_time():
                batch, start = partition.pending.pop(0)
                self._handle_batch(partition, batch, start)
                if partition.assignment not in self._partitions:
                    break
                if not partition.pending:
                    self._subscription.resume([partition.assignment])

    # -- giving up

    def _give_up(self, partition: InlinePartition[H], error: LogError) -> None:
        """Nobody knows what stands in the log: begin anew from what it says."""
        assignment = partition.assignment
        self.lost([assignment])
        self._schedule_restart(assignment, partition.handler.position, error)
        if self._restarts[assignment.topic_partition].pause:
            self._subscription.pause([assignment])

    def _schedule_restart(self, assignment: Assignment, position: int, error: LogError) -> None:
        """Have a partition assigned again, as it then is: at the next poll, or later where it has
        not got on since it was begun anew the last time."""
        before = self._restarts.get(assignment.topic_partition)
        pause, reason = 0.0, ""
        if position < 0 or (before is not None and before.position == position):
            longest = OUTAGE_PAUSE if isinstance(error, Unavailable) else MAX_RETRY_PAUSE
            pause = min(longest, max(RETRY_PAUSE, 2 * before.pause if before else 0.0))
            reason = shorten(describe_error(error), 300)
        self._restarts[assignment.topic_partition] = _PartitionRestart(position, pause)
        self._given_up[assignment] = time.monotonic() + pause
        level = logger.info if isinstance(error, Fenced) else logger.warning
        level(
            "%s: restarting partition %d%s: %s", self._name, assignment.partition,
            f" in {pause:g} s" if pause else "", error,
        )  # fmt: skip
        self._counts_of(assignment).waiting = reason

    def _restart_partitions(self, assignments: Sequence[Assignment]) -> None:
        """Have partitions assigned again, as they then are, at the next poll."""
        self.lost(assignments)
        for each in assignments:  # not here: it may raise, and the rest is to be handled
            self._given_up[each] = time.monotonic()

    def _reassign(self) -> None:
        """:raises Unavailable: the log cannot be reached; it is tried again at the next poll."""
        if self._not_begun:
            self._subscription.pause([each for each in self._not_begun if each in self._given_up])
            self._not_begun.clear()
        now = time.monotonic()
        due = [each for each, when in self._given_up.items() if when <= now]
        if due:
            self._subscription.reassign(due)
            for each in due:
                self._given_up.pop(each, None)

    # -- what else it changes

    @override
    def pause(self, assignments: Iterable[Assignment]) -> None:
        paused = list(assignments)
        for partition in map(self._partitions.get, paused):
            if partition is not None:
                partition.is_paused = True
        self._subscription.pause(paused)

    @override
    def resume(self, assignments: Iterable[Assignment]) -> None:
        resumed: list[Assignment] = []
        for each in assignments:
            partition = self._partitions.get(each)
            if partition is not None:
                partition.is_paused = False
            if partition is None or not partition.pending:
                resumed.append(each)
        self._subscription.resume(resumed)

    @override
    def close(self) -> None:
        self._subscription.close()
        self._forget_partitions(list(self._partitions))
