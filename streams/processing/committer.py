"""Commits a processor's positions, and decides when.

Positions and settled sets are read off the progress of its partitions, by the thread that polls.
A handler's transaction commits its own, so progress is read and extended under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from streams.engine.commit_pace import CommitPace
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import EncodedProgress, FetchedBatch, Unsettled
from streams.errors import LogError
from streams.log.protocol import Assignment, Commit, Committed, Subscription
from streams.message import Batch
from streams.processing.job import Job
from streams.processing.timing import Durations, Histogram
from streams.text import get_logger
from streams.wire import PROGRESS_LIMIT

logger = get_logger("streams")

PROGRESS_FULL = PROGRESS_LIMIT * 3 // 4
"""Characters of progress from which on a partition takes in no more, until it shrinks."""


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


class PartitionCommitState:
    """A partition that this processor owns, and what was stored of it."""

    __slots__ = ("assignment", "committed", "state", "submitted")

    def __init__(self, state: PartitionState, committed: Committed | None) -> None:
        self.assignment: Assignment = state.assignment
        self.state = state
        self.committed = committed
        """The last commit."""
        self.submitted: Committed | None = None
        """What was last stored by an asynchronous commit, or in a handler's transaction."""


class OffsetCommitter:
    """Commits what is settled of the partitions in ``owned``.

    :param handed_over: whether the handler's thread polls, and commits.
    """

    def __init__(
        self,
        job: Job,
        commit_interval: float,
        owned: Mapping[Assignment, PartitionCommitState],
        handed_over: Callable[[], bool],
    ) -> None:
        self._job = job
        self._now = job.clock.monotonic
        self._owned = owned
        self._handed_over = handed_over
        self._pace = CommitPace(job.flow.commit, commit_interval)
        self._progress_lock = threading.Lock()
        """Held while progress is read or extended: the poller and transactions both do."""
        self.full: set[Assignment] = set()
        """Assignments whose set of settled messages nears its limit: they are polled no further."""
        self._in_transaction: list[PartitionState] = []
        """Partitions whose position a handler's transaction is storing at this moment."""
        self._unsaved = False
        """Whether messages came in since everything was last found settled and committed."""
        self._unsettled = 0
        """Unsettled messages at the last count."""
        self._pending = False
        """Whether the log has not reported the outcome of the last commit yet."""
        self.error: LogError | None = None
        """Why a commit failed in this poll cycle."""
        self.start_uncommitted = False
        """Whether a partition starts at another position than the group's committed one: that is
        committed before any of its messages is delivered."""
        self._next_commit = 0.0
        self.due = 0.0
        """When to commit next, if anything is settled by then."""
        self.commits = 0
        self._commit_times = Histogram()

    @property
    def waits_for_poll(self) -> bool:
        """A commit was refused, most likely as the group has changed: only polling ends that."""
        return self.error is not None

    # -- progress

    def add_batch(
        self, state: PartitionState, batch: Batch, ids: list[str | None] | None
    ) -> FetchedBatch:
        """Add a batch to its partition's progress."""
        with self._progress_lock:
            return state.progress.add(state, batch, ids)

    def skip_to(self, state: PartitionState, offset: int) -> None:
        """A partition has no message between what was polled of it and this offset."""
        with self._progress_lock:
            state.progress.skip_to(offset)
        self.record_intake()

    def record_intake(self) -> None:
        """Note that messages were polled: plan a commit for when they are settled."""
        if not self._unsaved:
            self._unsaved = True
            self._plan_commit()

    def unsettled(self) -> Unsettled:
        """The messages that were polled and are not settled yet (any thread)."""
        with self._progress_lock:
            return self._sum_unsettled()

    @property
    def has_unstored(self) -> bool:
        """Something that came of messages is to be stored with a commit, and is not yet (any
        thread)."""
        return False

    def _sum_unsettled(self) -> Unsettled:
        messages = size = 0
        for each in list(self._owned.values()):
            unsettled = each.state.progress.unsettled()
            messages += unsettled.messages
            size += unsettled.bytes
        return Unsettled(messages, size)

    def count_unsettled(self, is_too_much: Callable[[Unsettled], bool]) -> Unsettled:
        """:meth:`unsettled`; if that ``is_too_much``, the bytes of settled messages are released
        first."""
        with self._progress_lock:
            unsettled = self._sum_unsettled()
            if is_too_much(unsettled):
                for each in self._owned.values():
                    each.state.progress.release_settled()
                unsettled = self._sum_unsettled()
        self._unsettled = unsettled.messages
        return unsettled

    def progress(self) -> tuple[PartitionProgress, ...]:
        """How far each partition is (any thread)."""
        with self._progress_lock:
            return tuple(_partition_progress(each) for each in list(self._owned.values()))

    def commit_seconds(self) -> Durations:
        """How long commits took."""
        return self._commit_times.read()

    # -- when

    def commit_if_due(self, subscription: Subscription) -> None:
        """Positions are submitted as soon as something moved and the last submit is paid for; and
        committed, for good, every ``Flow.commit`` seconds.

        If that fails the poll cycle goes on, because a rebalance on account of which a commit is
        refused is served in poll; the cycle's end raises ``error``.
        """
        now = self._now()
        if now < self.due or self.error is not None:
            return
        try:
            if now >= self._next_commit:
                self.commit_all(subscription)
            else:
                self._submit_commits(subscription)
        except LogError as error:
            self.error = error

    def _plan_commit(self) -> None:
        """Something has changed that says when to commit next."""
        self.due = self._next_commit
        if self._unsaved and not self._pending:
            self.due = min(self.due, self._pace.due)

    # -- what

    def _make_commit(
        self, partition: PartitionCommitState, *stored: Committed | None
    ) -> Commit | None:
        """The commit of a partition; None if just that is ``stored`` already."""
        assignment, state = partition.assignment, partition.state
        with self._progress_lock:
            if state in self._in_transaction:
                # Taken now, stored after it, this would take its messages back; what is settled
                # by now is in its own commit.
                return None
            found = state.progress.snapshot()
            state.snapshot_version += 1
            version = state.snapshot_version
        self._check_settled_size(partition, found)
        snapshot = Committed(found.position, found.progress)
        if snapshot in stored:
            return None
        key_parking = self._job.key_parking
        if key_parking is not None and not key_parking.is_confirmed(assignment):
            # Asked after the snapshot was taken, so that it holds for everything below it.
            return None
        return Commit(assignment, *snapshot, version)

    def _check_settled_size(self, partition: PartitionCommitState, found: EncodedProgress) -> None:
        """See whether the partition's settled set is so large that nothing more is taken in."""
        if partition.state.progress.is_below_restored:
            return  # a former owner has left it so, and what it lacks is to be taken in first
        assignment, size = partition.assignment, len(found.progress)
        if not found.complete or size > PROGRESS_FULL:
            if assignment not in self.full:
                self.full.add(assignment)
                logger.warning(
                    "%s: %s/%d takes in no more messages until its settled set is smaller: "
                    "%d characters, position %d",
                    self._job.name, assignment.topic, assignment.partition, size, found.position,
                )  # fmt: skip
        elif size * 2 < PROGRESS_FULL:
            self.full.discard(assignment)

    def take_uncertain(self) -> list[Assignment]:
        """Partitions of which it is not known what was stored: they are to be begun anew."""
        return []

    def commit_all(self, subscription: Subscription) -> None:
        """Commit what is settled of all partitions, for good."""
        self._next_commit = self._now() + self._job.flow.commit
        self._plan_commit()
        self.commit(subscription, list(self._owned.values()))
        self.start_uncommitted = False

    def commit(
        self, subscription: Subscription, partitions: Sequence[PartitionCommitState]
    ) -> None:
        """Commit what is settled of these, for good."""
        found = [self._make_commit(each, each.committed) for each in partitions]
        commits = [commit for commit in found if commit is not None]
        if not commits:
            return
        began = perf_counter()
        subscription.commit(commits)
        self._record_commit(began)
        for each in commits:
            if (partition := self._owned.get(each.assignment)) is not None:
                partition.committed = Committed(each.position, each.progress)

    def _record_commit(self, began: float) -> None:
        self._commit_times.add(perf_counter() - began)
        self.commits += 1

    def _submit_commits(self, subscription: Subscription) -> None:
        began, cpu_began = perf_counter(), thread_time()
        found = [
            self._make_commit(each, each.committed, each.submitted)
            for each in list(self._owned.values())
        ]
        commits = [commit for commit in found if commit is not None]
        if commits:
            self._pending = True
            try:
                subscription.commit_async(commits, partial(self._on_submitted, commits, began))
            except BaseException:
                self._on_submitted(commits, began, stored=False)
                raise
        # Where the handler's thread commits, it is its time that passes, whoever is busy.
        cost = perf_counter() - began if self._handed_over() else thread_time() - cpu_began
        if commits:
            self._pace.record_commit(self._now(), cost)
        else:
            self._unsaved = self._unsettled > 0
            self._pace.record_idle_check(self._now(), cost)
        self._plan_commit()

    def _on_submitted(self, commits: Sequence[Commit], began: float, stored: bool) -> None:
        """A submit has ended; called inside of it, or of a later poll or commit."""
        self._pending = False
        if stored:
            self._record_commit(began)
            self._remember_submitted(commits)
        else:
            self._unsaved = True
            self._pace.record_idle_check(self._now(), 0.0)
        self._plan_commit()

    def _remember_submitted(self, commits: Sequence[Commit]) -> None:
        for each in commits:
            if (partition := self._owned.get(each.assignment)) is not None:
                partition.submitted = Committed(each.position, each.progress)

    # -- with a handler's transaction

    def commit_in_transaction(self, transaction: Any, deliveries: Sequence[Delivery]) -> None:
        """Commit a handler's transaction together with the positions of what it handled."""
        by_state: dict[PartitionState, list[tuple[FetchedBatch, int, int]]] = {}
        for each in deliveries:
            settling = by_state.setdefault(each.fetched.state, [])
            settling.append((each.fetched, each.index, each.index + 1))
        commits: list[Commit] = []
        with self._progress_lock:
            for state, messages in by_state.items():
                found = state.progress.preview_commit(messages)
                state.snapshot_version += 1
                commits.append(
                    Commit(state.assignment, found.position, found.progress, state.snapshot_version)
                )
                self._in_transaction.append(state)
        is_committed = False
        try:
            transaction.commit(commits)
            is_committed = True
            self._remember_submitted(commits)
        finally:
            with self._progress_lock:
                for state, messages in by_state.items():
                    self._in_transaction.remove(state)
                    if is_committed:
                        for fetched, index, _ in messages:
                            fetched.settled[index] = 1


def _partition_progress(partition: PartitionCommitState) -> PartitionProgress:
    assignment, progress = partition.assignment, partition.state.progress
    oldest = progress.oldest_unsettled()  # first, as it moves the position
    return PartitionProgress(
        assignment.topic, assignment.partition, progress.position, progress.polled, oldest
    )
