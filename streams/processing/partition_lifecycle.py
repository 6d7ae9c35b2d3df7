"""Handles the assignment of partitions to a processor, and their revocation.

Assignment: the start is resolved (and committed before anything is delivered), the settled set is
read back from the commit, and the dedup window is rebuilt from the log itself. Revocation: nothing
more is started, what runs is finished up to the drain deadline, a last commit is made, and only
then the partition goes. Loss: everything is discarded and nothing committed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from streams.engine.dedup_window import PROCESS_BUDGET, DedupWindow
from streams.engine.dispatcher import PartitionState
from streams.engine.progress import (
    Progress,
    Range,
    add_offsets,
    decode_generation,
    decode_progress,
    is_progress,
    truncate_ranges,
)
from streams.errors import LogError
from streams.log.protocol import Assignment, Log, Subscription
from streams.log.range_reader import read_batches
from streams.processing.committer import OffsetCommitter, PartitionCommitState
from streams.processing.executor import Executor
from streams.processing.job import Job, identify_batch
from streams.text import get_logger

logger = get_logger("streams")

KEEP_ALIVE_EVERY = 1.0
"""Seconds between signs of life while handlers are waited for."""

_windows_lock = threading.Lock()
"""Held while a window is made: all processors of the process share one memory for them."""


class _RestoredState(NamedTuple):
    """The state that a partition starts from.

    :param beyond_end: the committed position, if it lies beyond the log's end.
    :param rejected: which part of the committed progress is rejected, and why; for the log line.
    """

    progress: Progress
    window: DedupWindow | None
    beyond_end: int | None
    rejected: str


class PartitionLifecycle:
    """The subscription's listener: begins partitions, and gives them up. Only the thread that polls
    calls it.

    :param owned: the partitions that are owned; kept here.
    """

    def __init__(
        self,
        log: Log,
        job: Job,
        executor: Executor,
        committer: OffsetCommitter,
        owned: dict[Assignment, PartitionCommitState],
    ) -> None:
        self._log = log
        self._job = job
        self._executor = executor
        self._committer = committer
        self._owned = owned
        self._now = job.clock.monotonic
        self.subscription: Subscription | None = None
        """Set once there is one."""
        self.restarting: dict[Assignment, float] = {}
        """Assignments that were let go of and are to be begun again, and when (monotonic)."""
        self._last_deadline = float("inf")
        """Until when handlers are waited for at the end of all (monotonic)."""
        self.rebalances = 0
        self.losses = 0
        self.rejected = 0

    # -- what the subscription tells, inside poll and close

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these partitions are ours, or none of them while one cannot be read."""
        kept_alive_at = self._now()
        restored: list[tuple[Assignment, _RestoredState]] = []
        try:
            for assignment in assignments:
                if self._now() - kept_alive_at > KEEP_ALIVE_EVERY:  # many windows take their time
                    self.keep_alive()
                    kept_alive_at = self._now()
                restored.append((assignment, self._restore_progress(assignment)))
        except BaseException:
            self.drop(assignments)
            raise
        self.rebalances += 1
        for assignment, (progress, window, beyond_end, rejected) in restored:
            self._report_gap(assignment, progress, beyond_end, rejected)
            assignment.position = progress.position
            state = PartitionState(assignment, progress, window)
            self._executor.assign(state)
            if self._job.key_parking is not None:
                self._job.key_parking.begin(assignment, state)
            committed = assignment.committed
            self._owned[assignment] = PartitionCommitState(state, committed)
            if (
                committed is None
                or committed.position != progress.position
                or (self._job.attempt_log is not None and not is_progress(committed.progress))
            ):
                self._committer.start_uncommitted = True
        if self._job.observer is not None:
            self._job.observer.assigned(assignments, self.keep_alive)
        if self._job.on_assigned is not None:
            self._job.on_assigned(assignments)
        if assignments:
            logger.info("%s: owns %s", self._job.name, partition_names(assignments))

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Listener: finish and commit these."""
        self.rebalances += 1
        partitions = self._deactivate(assignments)
        states = [each.state for each in partitions]
        self._executor.revoke(states)
        self.drain(states)
        try:
            if self.subscription is not None:
                self._committer.commit(self.subscription, partitions)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)
        self.drop(assignments)
        if self._job.observer is not None:
            self._job.observer.revoked(assignments)
        logger.info("%s: gave up %s", self._job.name, partition_names(assignments))

    def lost(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these have another owner."""
        self.rebalances += 1
        self._discard(assignments, [each.state for each in self._deactivate(assignments)])
        logger.warning("%s: lost %s", self._job.name, partition_names(assignments))

    def _deactivate(self, assignments: Sequence[Assignment]) -> list[PartitionCommitState]:
        for assignment in assignments:
            assignment.valid_until = float("-inf")
        return [self._owned[each] for each in assignments if each in self._owned]

    def _discard(self, assignments: Sequence[Assignment], states: Sequence[PartitionState]) -> None:
        self._executor.revoke(states)
        self.drop(assignments)
        # Running sync handlers cannot be stopped; async ones are cancelled.
        self._executor.cancel(states)
        if self._job.observer is not None:
            self._job.observer.revoked(assignments)

    def drop(self, assignments: Sequence[Assignment]) -> None:
        """Know nothing of these any more."""
        if self._job.key_parking is not None:
            self._job.key_parking.release(assignments)
        for assignment in assignments:
            self._owned.pop(assignment, None)
            self.restarting.pop(assignment, None)
            self._committer.full.discard(assignment)

    def restart_replaced(self, subscription: Subscription) -> None:
        """Let go of partitions with which nothing more may be done, and ask for them anew."""
        key_parking = self._job.key_parking
        replaced = [] if key_parking is None else list(key_parking.replaced_epochs())
        replaced += [(each, 0.0) for each in self._committer.take_uncertain()]
        for assignment, pause in replaced:
            if assignment not in self._owned:
                continue
            self._discard([assignment], [self._owned[assignment].state])
            subscription.pause([assignment])
            self.restarting[assignment] = self._now() + pause
        now = self._now()
        due = [each for each, when in self.restarting.items() if when <= now]
        if due:
            subscription.reassign(due)
            for assignment in due:
                self.restarting.pop(assignment, None)

    # -- waiting for handlers

    def drain(self, states: Sequence[PartitionState] | None) -> None:
        """Wait for what runs, up to the drain deadline; then cancel what can be cancelled.

        :param states: None: of all, for good; the partitions that are given up after that have no
            other deadline.
        """
        executor, limit = self._executor, self._job.flow.drain
        deadline = min(self._now() + limit, self._last_deadline)
        if states is None:
            self._last_deadline = deadline
        while not executor.wait_idle(states, min(deadline, self._now() + KEEP_ALIVE_EVERY)):
            if executor.fatal is not None:
                return
            if self._now() >= deadline or executor.impatient:
                told = states is not None and self._last_deadline < float("inf")
                if not executor.cancel(states) and not told:
                    logger.warning(
                        "%s: handlers outlived the drain deadline of %g s; their messages will be "
                        "handled again",
                        self._job.name, limit,
                    )  # fmt: skip
                return
            self.keep_alive()

    def keep_alive(self) -> None:
        """Stay in the group while no poll does it."""
        if self.subscription is not None:
            try:
                self.subscription.keep_alive()
            except LogError as error:
                logger.warning("%s: waiting for the log: %s", self._job.name, error)

    # -- what a partition begins with

    def _restore_progress(self, assignment: Assignment) -> _RestoredState:
        """Where to go on, and what was settled already.

        What was committed is held against the log, because anybody may have written it, and the
        log may be another one by now. Where messages were deleted before they were handled, the
        group goes on behind them. A position beyond the log's end says nothing of what stands
        there, so the group begins at the first message there is.
        """
        job, committed = self._job, assignment.committed
        topic, partition = assignment.topic, assignment.partition
        first, end = self._log.watermarks(topic, partition)
        if job.on_assigned is not None:
            assignment.log_end = self._log.log_end_offset(topic, partition)
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
                    floor, found = decode_progress(position, committed.progress)
                    settled = truncate_ranges(found, end)
                    if settled != found:
                        rejected = (
                            "was committed with settled messages beyond the log's end, "
                            f"{self._log.format_offset(end)}: what is written there will be handled"
                        )
                except ValueError as error:
                    rejected = (
                        f"was committed by another program ({error}): the position "
                        f"{self._log.format_offset(position)} is used; the dedup window starts "
                        "empty"
                    )
            if position < first:
                position = first
                settled = [(max(low, first), high) for low, high in settled if high > first]
        if job.key_parking is not None:
            settled = add_offsets(
                settled,
                job.key_parking.restore(
                    assignment,
                    position,
                    after_reset=floor >= position and not settled,
                    keep_alive=self.keep_alive,
                ),
            )
        generation = 0 if committed is None else decode_generation(committed.progress)
        progress = Progress(position, floor, settled, generation=generation)
        if not job.dedup.window:
            return _RestoredState(progress, None, beyond_end, rejected)
        with _windows_lock:
            window = PROCESS_BUDGET.new_window(job.dedup.window, job.dedup.cap)
        high = min(end, settled[-1][1] if settled else position)
        low = max(floor, first, self._log.offset_before(topic, partition, position, window.size))
        if low < high:
            self._rebuild_window(window, topic, partition, low, high, position, settled)
        return _RestoredState(progress, window, beyond_end, rejected)

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
        ranges = iter(settled)
        current: Range | None = next(ranges, None)
        kept_alive_at = self._now()
        for batch in read_batches(self._log, topic, partition, low, high):
            if self._now() - kept_alive_at > KEEP_ALIVE_EVERY:  # settled ranges may reach far
                self.keep_alive()
                kept_alive_at = self._now()
            unwrapped = decoding.unwrap(batch)
            ids = identify_batch(decoding, unwrapped).ids
            for offset, identity in zip(unwrapped.offsets, ids, strict=True):
                if identity is None:
                    continue
                if offset >= position:
                    while current is not None and current[1] <= offset:
                        current = next(ranges, None)
                    if current is None or offset < current[0]:
                        continue
                window.add(identity)

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
                "recreated, the log has lost its end, or another tool set that position; the group "
                "continues at %s (streams reset moves it)",
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


def partition_names(assignments: Sequence[Assignment]) -> str:
    """Partitions as a log line shows them."""
    return ", ".join(f"{each.topic}/{each.partition}" for each in assignments) or "nothing"
