"""A member of a group on the memory log.

Theory of operation
-------------------
``poll`` repeats three steps until it has messages to return: *heartbeat* (renew, find lost
partitions, make a plan and follow it) when the group has changed or a heartbeat is due; *read* the
available messages; else *wait*. All access to shared data holds the store's lock, but the listener
is always called without it, so a drain may commit, and may take any time while the other members
continue.

A revoked partition is released only after ``listener.revoked`` has returned; until then its lease
is held, so commits are accepted and no other member gets it. While a member waits or is inside its
listener it counts as alive and its assignments do not expire: it needs no heartbeats, even if a
test advances the clock. Its lease runs by the clock only outside of poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Condition
from typing import NamedTuple

from streams.errors import ConfigError, Fatal, Fenced, TooLarge
from streams.log.membership import DEFAULT_TERMS, INFINITY
from streams.log.memory.faults import FaultPoints
from streams.log.memory.membership import Group, HeldLease
from streams.log.memory.store import Store
from streams.log.memory.topics import Partition, wait_for_messages
from streams.log.names import member_fenced_error
from streams.log.protocol import (
    PROGRESS_LIMIT,
    Assignment,
    Commit,
    Committed,
    OutputsRefused,
    RebalanceListener,
    StaticMember,
    Submitted,
    Subscription,
    TopicPartition,
    Transaction,
    by_topic_of,
)
from streams.message import Batch, Record


@dataclass(eq=False, slots=True)
class _OwnedPartition:
    """One partition this member owns."""

    assignment: Assignment
    partition: Partition
    position: int = 0
    is_paused: bool = False
    committed_version: float = -INFINITY
    """The version of the last commit."""

    @property
    def topic_partition(self) -> TopicPartition:
        return self.assignment.topic_partition


class OwnershipChanges(NamedTuple):
    """The changes that a heartbeat found."""

    lost: list[_OwnedPartition]
    revoked: list[_OwnedPartition]
    """Partitions to be drained and released."""
    assigned: list[_OwnedPartition]


class MemorySubscription(Subscription):
    """A member of a group.

    :param append_as_owners: the function that assignments append with. Its first argument, before
        the usual ones, raises for an assignment that is no longer owned, and is called with the
        lock held.
    :param on_end: called once the subscription has ended, while the store's lock is held.
    """

    def __init__(
        self,
        store: Store,
        faults: FaultPoints,
        append_as_owners: Callable[..., None],
        on_end: Callable[[MemorySubscription], None],
        group: Group,
        topics: Sequence[str],
        listener: RebalanceListener,
        static: StaticMember | None = None,
    ) -> None:
        store.members_joined += 1
        self.id = static.name if static else f"member-{store.members_joined}"
        self.topics = tuple(topics)
        self.expires = DEFAULT_TERMS.expiry(store.clock.monotonic())
        self.is_polling = False
        self.is_killed = False
        self.group_changed = Condition(store.lock)
        self._store = store
        self._faults = faults
        self._append_as_owners = partial(append_as_owners, self._require_owned)
        self._on_end = on_end
        self._group = group
        self._listener = listener
        self._owned: dict[TopicPartition, _OwnedPartition] = {}
        self._rotation = 0
        self._woken = False
        self._end_reason = ""
        self._fenced = False
        self._planned_revision = -1
        """The group's revision at the last plan."""
        self._plan_due = -INFINITY  # when to plan again while busy
        self._idle_plan_due = INFINITY  # when to plan again while idle
        group.join(self)

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        until: float | None = None
        while True:
            self._faults.strike("poll", self._group.name)
            if self._fenced:
                self._raise_fenced()
            with self._store.lock:
                self._require_open()
                if self._fenced:
                    continue
                now = self._store.clock.monotonic()
                if self._planned_revision == self._group.revision and now < self._plan_due:
                    batches = self._read_available(limit)
                    if batches or self._woken:
                        self._woken = False
                        return batches
                    if until is None:
                        until = time.monotonic() + timeout
                    remaining = until - time.monotonic()
                    if remaining <= 0:
                        return ()
                    self._wait_for_news(
                        min(remaining, self._store.clock.real_timeout(self._idle_plan_due - now))
                    )
                    continue
                lost, revoked, assigned = self._heartbeat(now)
            if lost:
                self._listener.lost([owned.assignment for owned in lost])
            if revoked:
                self._revoke(revoked)
            if assigned:
                self._assign(assigned)

    def _read_available(self, limit: int) -> list[Batch]:
        """The available messages by partition; the last partition comes first next time."""
        batches: list[Batch] = []
        owned_partitions = list(self._owned.values())
        rotation = self._rotation % len(owned_partitions) if owned_partitions else 0
        for owned in (*owned_partitions[rotation:], *owned_partitions[:rotation]):
            rotation += 1
            partition = owned.partition
            start = max(owned.position, partition.first)
            count = min(partition.end - start, limit)
            if count <= 0 or owned.is_paused:
                continue
            assignment = owned.assignment
            batches.append(
                partition.batch(assignment.topic, assignment.partition, start, count, assignment)
            )
            owned.position = start + count
            limit -= count
            if not limit:
                break
        self._rotation = rotation
        return batches

    def _wait_for_news(self, timeout: float) -> None:
        """Block until something may have changed (the lock is held, and released while waiting)."""
        with self._kept_alive():
            wait_for_messages(self._store.existing_topics(self.topics), self.group_changed, timeout)

    @contextmanager
    def _kept_alive(self) -> Generator[None, None, None]:
        """A context for waits and callbacks, in which the member is alive by definition, so its
        leases do not expire. (The lock is held on entry and exit.)"""
        self.is_polling = True
        for owned in self._still_held():
            owned.assignment.valid_until = INFINITY
        try:
            yield
        finally:
            if not self._end_reason:
                now = self._store.clock.monotonic()
                self._group.renew_polling(now)
                self.is_polling = False
                self._renew(now)

    # -- ownership

    def _heartbeat(self, now: float) -> OwnershipChanges:
        """Renew the leases, and plan."""
        group = self._group
        self.invalidate_lost()
        lost = [
            owned for owned in self._owned.values() if owned.assignment.valid_until == -INFINITY
        ]
        for owned in lost:
            del self._owned[owned.topic_partition]
        self._renew(now)
        plan = group.plan(self.id, now, self._store.partition_counts(), set(self._owned))
        self._planned_revision = group.revision
        self._idle_plan_due = plan.replan_at
        self._plan_due = min(plan.replan_at, now + DEFAULT_TERMS.heartbeat_interval)
        if plan.release:  # acquiring can wait until after that
            inherited = [partition for partition in plan.release if partition not in self._owned]
            if inherited:
                group.release_leases(inherited)
            revoked = [self._owned[each] for each in plan.release if each in self._owned]
            return OwnershipChanges(lost, revoked, [])
        assigned = [self._acquire(each, epoch, now) for each, epoch in plan.acquire.items()]
        return OwnershipChanges(lost, [], assigned)

    def _acquire(self, partition: TopicPartition, epoch: int, now: float) -> _OwnedPartition:
        topic, number = partition
        committed = self._group.positions.get(partition)
        terms = DEFAULT_TERMS
        assignment = Assignment(
            topic, number, epoch, committed, terms.valid_until(now), terms.lease
        )
        assignment.append_as_owners = self._append_as_owners
        owned = _OwnedPartition(assignment, self._store.topics[topic].partitions[number])
        self._owned[partition] = owned
        self._group.leases[partition] = HeldLease(self.id, epoch)
        return owned

    def _renew(self, now: float) -> None:
        """Extend all leases, which expire with the member's row."""
        was_expired = self.expires <= now
        self.expires = DEFAULT_TERMS.expiry(now)
        if was_expired:  # the others had taken it for dead
            self._group.require_new_plan()
        until = DEFAULT_TERMS.valid_until(now)
        for owned in self._still_held():
            owned.assignment.valid_until = until

    def _still_held(self) -> Iterator[_OwnedPartition]:
        """The owned partitions whose leases were not taken away."""
        return filter(self._holds_lease, self._owned.values())

    def invalidate_lost(self) -> None:
        """Invalidate the assignments whose leases were taken away (the lock is held)."""
        for owned in self._owned.values():
            if not self._holds_lease(owned):
                owned.assignment.valid_until = -INFINITY

    def _assign(self, assigned: Sequence[_OwnedPartition]) -> None:
        """Tell the listener of the new assignments; if it raises, release them again."""
        try:
            with self._without_lock():
                self._listener.assigned([owned.assignment for owned in assigned])
        except BaseException:
            self._release(assigned)
            raise
        for owned in assigned:
            owned.position = owned.assignment.position

    def _revoke(self, revoked: Sequence[_OwnedPartition]) -> None:
        """Let the listener drain, then release the partitions, even if it raises."""
        try:
            with self._without_lock():
                self._listener.revoked([owned.assignment for owned in revoked])
        finally:
            self._release(revoked)

    @contextmanager
    def _without_lock(self) -> Generator[None, None, None]:
        """A context for calls of the listener: the member is alive, and the lock is released."""
        lock = self._store.lock
        with lock, self._kept_alive():
            lock.release()
            try:
                yield
            finally:
                lock.acquire()

    def _release(self, owned_partitions: Iterable[_OwnedPartition]) -> None:
        with self._store.lock:
            if not self._end_reason:
                self._disown(owned_partitions)

    def _disown(self, owned_partitions: Iterable[_OwnedPartition]) -> None:
        """Give up these partitions, and release the leases still held (the lock is held)."""
        leaving = list(owned_partitions)
        held = [owned.topic_partition for owned in leaving if self._holds_lease(owned)]
        for owned in leaving:
            owned.assignment.valid_until = -INFINITY
            self._owned.pop(owned.topic_partition, None)
        self._group.release_leases(held)

    def _holds_lease(self, owned: _OwnedPartition) -> bool:
        held = self._group.leases.get(owned.topic_partition)
        return held == (self.id, owned.assignment.epoch)

    # -- progress

    def commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            if len(commit.progress) > PROGRESS_LIMIT or not commit.progress.isascii():
                raise TooLarge(
                    f"progress of {commit.assignment!r}: at most {PROGRESS_LIMIT} ASCII characters"
                )
        self._faults.strike("commit.before", self._group.name)
        with self._store.lock:
            moved = {each.assignment.topic for each in commits if self._commit_one(each)}
            for topic in self._store.existing_topics(moved):
                self._store.trim_topic(topic)
        self._faults.strike("commit.after", self._group.name)

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        self.commit(commits)
        on_submitted(True)

    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        store, name = self._store, self._group.name
        self._faults.strike("outputs.before", name)
        with store.lock:
            self._require_open()
            for commit in commits:
                self._require_owned(commit.assignment)
            by_topic = by_topic_of(outputs)
            refused = {
                indexes[at]: error
                for topic, indexes in by_topic.items()
                for at, error in store.refusals(
                    topic, [outputs[index][1] for index in indexes]
                ).items()
            }
            if refused:
                raise OutputsRefused(refused)
            for topic, indexes in by_topic.items():
                store.append(topic, [outputs[index][1] for index in indexes])
            for each in commits:
                self._commit_one(each)
            for moved in store.existing_topics({commit.assignment.topic for commit in commits}):
                store.trim_topic(moved)
        self._faults.strike("outputs.after", name)

    def _require_owned(self, assignment: Assignment) -> None:
        """Refuse to write for a partition that is no longer owned (the lock is held)."""
        owned = self._find_owned(assignment)
        if owned is None or not self._holds_lease(owned):
            raise Fenced(
                f"{assignment.topic}/{assignment.partition}: group {self._group.name!r} has given "
                "it to another member; nothing was stored"
            )

    def _commit_one(self, commit: Commit) -> bool:
        owned = self._find_owned(commit.assignment)
        if not (owned and self._holds_lease(owned)) or commit.version < owned.committed_version:
            return False
        owned.committed_version = commit.version
        self._group.positions[owned.topic_partition] = Committed(commit.position, commit.progress)
        return True

    def _find_owned(self, assignment: Assignment) -> _OwnedPartition | None:
        owned = self._owned.get(assignment.topic_partition)
        return owned if owned is not None and owned.assignment is assignment else None

    # -- the rest

    def pause(self, assignments: Iterable[Assignment]) -> None:
        self._set_paused(assignments, True)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        self._set_paused(assignments, False)

    def _set_paused(self, assignments: Iterable[Assignment], paused: bool) -> None:
        for assignment in assignments:
            if owned := self._find_owned(assignment):
                owned.is_paused = paused

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        found = [owned for each in assignments if (owned := self._find_owned(each)) is not None]
        self._release(found)

    def keep_alive(self) -> None:
        """Stay a member while the caller waits for handlers outside of poll."""
        with self._store.lock:
            if not self._end_reason and not self.is_polling:
                self._renew(self._store.clock.monotonic())

    def wakeup(self) -> None:
        """Make a blocked ``poll``, or the next one, return at once (any thread)."""
        with self._store.lock:
            self._woken = True
            self.group_changed.notify_all()

    def begin_transaction(self) -> Transaction:
        raise ConfigError("memory:// has no transactions: message.transaction needs sqlite://")

    def close(self) -> None:
        with self._store.lock:
            if self._end_reason:
                return
            owned = list(self._owned.values())
        try:
            if owned:
                self._revoke(owned)
        finally:
            with self._store.lock:
                self.leave_group("this subscription is closed")

    def leave_group(self, reason: str) -> None:
        """Leave the group without telling the listener (the lock is held)."""
        if self._end_reason:
            return
        self._end_reason = reason
        self.is_polling = False
        if self._group.members.get(self.id) is self:
            del self._group.members[self.id]
        self._disown(list(self._owned.values()))
        self._on_end(self)

    def crash(self) -> None:
        """Simulate that this member is killed with ``kill -9``: it drains, commits and releases
        nothing; the others wait until its lease expires. Its poll raises Fatal."""
        with self._store.lock:
            self.end_killed("this member was crashed by a test")

    def freeze(self) -> None:
        """Simulate that this member's process is stopped (SIGSTOP), even in a wait: its lease runs
        by the clock until it polls again or its listener returns. The caller must keep it from
        doing so."""
        with self._store.lock:
            if not self._end_reason:
                self._renew(self._store.clock.monotonic())
                self.is_polling = False

    def end_killed(self, reason: str) -> None:
        """Do the work of :meth:`crash` (the lock is held)."""
        if self._end_reason:
            return
        self._end_reason = reason
        if self.is_polling:  # a living process would have been renewing its lease all along
            self.expires = DEFAULT_TERMS.expiry(self._store.clock.monotonic())
            self.is_polling = False
        self.is_killed = True
        for owned in self._owned.values():
            owned.assignment.valid_until = -INFINITY
        self._owned.clear()
        self._group.require_new_plan()
        self._on_end(self)

    def fence(self) -> None:
        """Fence this member: another has joined under its static name (the lock is held)."""
        self._fenced = True
        self.invalidate_lost()
        self.group_changed.notify_all()

    def _raise_fenced(self) -> None:
        lost = [owned.assignment for owned in self._owned.values()]
        self._owned.clear()
        if lost:
            self._listener.lost(lost)
        raise member_fenced_error(self._group.name, self.id)

    def _require_open(self) -> None:
        if self._end_reason:
            raise Fatal(f"group {self._group.name!r}, {self.id}: {self._end_reason}")
