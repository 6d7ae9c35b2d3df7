"""Commits outputs and progress of an exactly-once processor together, and decides when.

Every ``Flow(commit=)`` seconds the entries of :mod:`streams.processing.pending_outputs` are taken
out and stored by the log in one step with the progress as it is once their messages are settled.
Only when that is in the log are they settled. So whatever happens, a message's outputs are in the
log if and only if its group will not handle it again.

* The entries of partitions that are not owned any more are dropped: their new owner handles those
  messages.
* Where the settled set does not fit into a commit and is cut, so are the entries: those of messages
  behind the cut wait for a later commit.
* What the log can never take (a record that is too large) becomes a dead letter in the same step.
* Where it cannot be known whether something was stored, the partitions are begun anew, from what
  the log has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from msgspec.structs import replace
from typing_extensions import override

from streams.clock import SYSTEM
from streams.engine.dispatcher import DeadLetterReason, Delivery, Dispatcher, PartitionState
from streams.engine.progress import EncodedProgress, Unsettled, decode_progress
from streams.errors import ConfigError, Fenced, LogError, OutcomeUnknown, Unavailable
from streams.log.protocol import Assignment, Commit, Committed, OutputsRefused, Subscription
from streams.processing.committer import OffsetCommitter, PartitionCommitState
from streams.processing.job import Job
from streams.processing.outcomes import WRITE_PAUSE, location
from streams.processing.pending_outputs import AnyEntry, Outgoing, OutputEntry, SettledRange
from streams.text import count_with_noun, get_logger

logger = get_logger("streams")

LOOK_INTERVAL = 0.02
"""Seconds until it is looked again for outputs, while messages are being handled."""

FENCED_PAUSE = 0.05
"""Seconds until it is tried again, where partitions may be about to go."""

FENCED_FOR_LONG = 10.0
"""Seconds after which that is an outage, and said."""


class PipelineCommitter(OffsetCommitter):
    """Commits outputs and progress of the partitions in ``owned``. Used by the thread that polls.

    :param at_once: records that the log stores in one step, at most.
    :param call_soon: runs an action where the dispatcher may be touched.
    """

    def __init__(
        self,
        job: Job,
        at_once: int,
        owned: Mapping[Assignment, PartitionCommitState],
        dispatcher: Dispatcher,
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__(job, job.flow.commit, owned, lambda: False)
        outputs, dead_letter = job.outputs, job.dead_letter
        if outputs is None or dead_letter is None:
            raise ValueError("this job has no outputs to commit")
        self._outputs = outputs
        self._at_once = at_once
        self._make_dead_letter = dead_letter
        self._dispatcher = dispatcher
        self._call_soon = call_soon
        self._interval = job.flow.commit
        # A clock that a test moves may stand still for long: there is no pace then.
        self._is_paced = job.clock is SYSTEM
        self._last_ended = float("-inf")
        self._fenced_since: float | None = None
        self._uncertain: list[Assignment] = []
        self._is_storing = False
        """Entries are taken out to be stored."""

    # -- when

    @property
    @override
    def waits_for_poll(self) -> bool:
        return super().waits_for_poll or self._fenced_since is not None

    @override
    def commit_if_due(self, subscription: Subscription) -> None:
        if self.error is not None or not self._is_due():
            return
        try:
            self._commit_owned(subscription)
        except Fenced as error:
            # Most likely a rebalance, which is served in poll.
            now = self._now()
            self._fenced_since = since = now if self._fenced_since is None else self._fenced_since
            self.due = now + FENCED_PAUSE
            if now > since + FENCED_FOR_LONG:
                self.error = error
            elif now == since:
                logger.info("%s: nothing was stored, retrying soon: %s", self._job.name, error)
        except OutcomeUnknown as error:
            logger.warning(
                "%s: restarting its partitions from what was stored: %s", self._job.name, error
            )
        except LogError as error:
            self.error = error
        else:
            self._fenced_since = None

    def _is_due(self) -> bool:
        if self._now() >= self.due:
            return True
        outputs, flow = self._outputs, self._job.flow
        return bool(outputs) and (
            not self._is_paced or len(outputs) * 2 >= flow.messages or outputs.is_large
        )

    @override
    def _plan_commit(self) -> None:
        self.due = self._last_ended + self._interval if self._unsaved else self._now() + 1.0

    @override
    def commit_all(self, subscription: Subscription) -> None:
        """Commit what is settled of all partitions, and what is to be published with it."""
        try:
            self._commit_owned(subscription)
        except Fenced as error:
            raise Unavailable(str(error)) from error

    def _commit_owned(self, subscription: Subscription) -> None:
        began = self._now()
        found_something = self._commit(subscription, list(self._owned.values()))
        self.start_uncommitted = False
        if found_something:
            self._last_ended = self._now()
            self._plan_commit()
        else:
            self._unsaved = self._unsettled > 0
            self._plan_commit()
            if self._unsaved:
                self.due = max(self.due, began + LOOK_INTERVAL)

    # -- what

    @override
    def commit(
        self, subscription: Subscription, partitions: Sequence[PartitionCommitState]
    ) -> None:
        self._commit(subscription, partitions)

    def take_uncertain(self) -> list[Assignment]:
        """Partitions of which it is not known what was stored: they are to be begun anew."""
        uncertain, self._uncertain = self._uncertain, []
        return uncertain

    def _commit(
        self, subscription: Subscription, partitions: Sequence[PartitionCommitState]
    ) -> bool:
        """Store everything there is of these partitions; whether there was anything."""
        # Progress upon what is not known to be stored would take it back, if it was.
        wanted = {
            each.assignment: each for each in partitions if each.assignment not in self._uncertain
        }
        postponed: list[AnyEntry] = []
        ends: dict[PartitionState, int] = {}
        self._is_storing = True
        try:
            return self._store_all(subscription, wanted, postponed, ends)
        finally:
            self._outputs.put_back(postponed)
            self._is_storing = False

    @property
    @override
    def has_unstored(self) -> bool:
        # In this order: what is taken out to be stored is seen by one of both.
        return len(self._outputs) > 0 or self._is_storing

    def _store_all(
        self,
        subscription: Subscription,
        wanted: Mapping[Assignment, PartitionCommitState],
        postponed: list[AnyEntry],
        ends: dict[PartitionState, int],
    ) -> bool:
        """Store in as many steps as it takes.

        :param postponed: is given the entries that have to wait. They stay aside until the end, as
            those behind them may be what they wait for.
        :param ends: is given, of each partition with entries that wait, the first of their offsets.
        """
        found_something = False
        while True:
            limit = subscription.outputs_limit or self._at_once
            entries, is_all = self._outputs.take_entries(self._owned, wanted, limit)
            commits, stored, waiting = self._prepare_commits(entries, wanted, ends)
            if not commits:
                postponed += waiting
                if is_all:
                    return found_something
                continue
            found_something = True
            began = perf_counter()
            try:
                subscription.commit_outputs(
                    [record for entry in stored for record in entry.outgoing], commits
                )
            except OutputsRefused as error:
                try:
                    entries = [*self._without_refused(stored, error), *waiting]
                finally:
                    self._outputs.put_back(entries)
                continue
            except OutcomeUnknown:
                self._uncertain += [each.assignment for each in commits]
                self._outputs.put_back(waiting)
                raise
            except BaseException:
                self._outputs.put_back(entries)
                raise
            postponed += waiting
            self._record_stored(stored, commits)
            self._record_commit(began)
            if is_all:
                return True

    def _prepare_commits(
        self,
        entries: Sequence[AnyEntry],
        wanted: Mapping[Assignment, PartitionCommitState],
        ends: dict[PartitionState, int],
    ) -> tuple[list[Commit], list[AnyEntry], list[AnyEntry]]:
        """The partitions' commits, the entries that go with them, and the entries that wait.

        :param ends: by partition, the first offset whose entry waits. Entries behind it wait, too,
            even if there is room by now: their outputs would overtake those that wait already.
        """
        candidates, behind = _split_at_ends(entries, ends)
        by_state: defaultdict[PartitionState, list[SettledRange]] = defaultdict(list)
        for entry in candidates:
            settling = by_state[entry.state]
            if entry.settles:
                settling.append(entry.settled_range)
        snapshots: list[tuple[PartitionCommitState, Committed]] = []
        cut: dict[PartitionState, int] = {}
        with self._progress_lock:
            for partition in wanted.values():
                state = partition.state
                found = state.progress.preview_commit(by_state.get(state, ()))
                self._check_settled_size(partition, found)
                if not found.complete:
                    cut[state] = _covered_offset(found)
                snapshots.append((partition, Committed(found.position, found.progress)))
            stored, waiting = _split_at_ends(candidates, cut)
            for entry in waiting:
                ends[entry.state] = min(entry.offset, ends.get(entry.state, entry.offset))
            changed = {entry.state for entry in stored}
            commits: list[Commit] = []
            for partition, snapshot in snapshots:
                state = partition.state
                if state in changed or snapshot != partition.committed:
                    state.snapshot_version += 1
                    commits.append(Commit(state.assignment, *snapshot, state.snapshot_version))
        return commits, stored, [*waiting, *behind]

    def _record_stored(self, entries: Sequence[AnyEntry], commits: Sequence[Commit]) -> None:
        self._outputs.count_stored(sum(len(entry.outgoing) for entry in entries))
        with self._progress_lock:
            for entry in entries:
                if entry.settles:
                    fetched, start, stop = entry.settled_range
                    fetched.settled[start:stop] = b"\1" * (stop - start)
        for each in commits:
            if (partition := self._owned.get(each.assignment)) is not None:
                partition.committed = Committed(each.position, each.progress)

    # -- what the log refuses

    def _without_refused(
        self, runs_and_entries: Sequence[AnyEntry], refused: OutputsRefused
    ) -> list[OutputEntry]:
        """The entries without what the log can never take: a message whose outputs it is becomes a
        dead letter; what is a dead letter already is written again later."""
        entries = [each for found in runs_and_entries for each in found.single_entries()]
        errors: dict[OutputEntry, LogError] = {}
        at = 0
        for entry in entries:
            for _ in entry.outgoing:
                if (error := refused.errors.get(at)) is not None:
                    errors.setdefault(entry, error)
                at += 1
        if not errors:  # without a record to leave out, it would be refused again
            raise refused
        return [
            found
            for entry in entries
            if (found := self._replace_refused(entry, errors[entry]) if entry in errors else entry)
        ]

    def _replace_refused(self, entry: OutputEntry, error: LogError) -> OutputEntry | None:
        delivery, name = entry.delivery, self._job.name
        if not entry.settles:
            logger.error("%s: could not record an attempt: %r", name, error)
            return None
        if delivery.reason is not None:
            self._write_again_later(delivery, delivery.reason, error)
            return None
        reason = DeadLetterReason(error, delivery.attempt)
        dead = replace(delivery, alone=True, reason=reason)
        logger.warning(
            "%s: dead letter after %s: what the handler returned for %s cannot be published: %r",
            name, count_with_noun(reason.attempts, "attempt"), location(delivery), error,
        )  # fmt: skip
        try:
            letter: Outgoing = self._make_dead_letter(dead)
        except ConfigError:
            raise
        except Exception as failure:
            self._write_again_later(dead, reason, failure)
            return None

        def count() -> None:
            self._dispatcher.counts.handled -= 1
            self._dispatcher.counts.dead_lettered += 1

        self._call_soon(count)
        return OutputEntry(dead, [letter], settles=True)

    def _write_again_later(
        self, delivery: Delivery, reason: DeadLetterReason, error: BaseException
    ) -> None:
        pause = min(60.0, WRITE_PAUSE * 2.0 ** min(reason.failed_writes, 10))
        logger.error(
            "%s: cannot write the dead letter of %s, retrying in %g s: %r",
            self._job.name, location(delivery), pause, error,
        )  # fmt: skip
        again = replace(
            delivery,
            ordering_key=None,  # the key's next message may be in flight
            reason=reason._replace(failed_writes=reason.failed_writes + 1),
        )

        def deliver_again() -> None:
            counts = self._dispatcher.counts
            if delivery.reason is not None:
                counts.dead_lettered -= 1
            else:
                counts.handled -= 1
            self._dispatcher.deliver_at(again, self._now() + pause)

        self._call_soon(deliver_again)

    # -- how much is held

    @override
    def _sum_unsettled(self) -> Unsettled:
        unsettled = super()._sum_unsettled()
        return unsettled._replace(bytes=unsettled.bytes + self._outputs.bytes)


def _split_at_ends(
    entries: Sequence[AnyEntry], ends: Mapping[PartitionState, int]
) -> tuple[list[AnyEntry], list[OutputEntry]]:
    """Those that may be stored, and those whose messages stand behind an end."""
    if not ends:
        return list(entries), []
    before: list[AnyEntry] = []
    behind: list[OutputEntry] = []
    for entry in entries:
        end = ends.get(entry.state)
        if end is None:
            before.append(entry)
            continue
        for each in entry.single_entries():
            (behind if each.settles and each.offset >= end else before).append(each)
    return before, behind


def _covered_offset(found: EncodedProgress) -> int:
    """Below which offset everything that is settled is in a snapshot that was cut."""
    _, settled = decode_progress(found.position, found.progress)
    return settled[-1][1] if settled else found.position
