"""A member of a group on the memory log.

Theory of operation
-------------------
``poll`` goes round three steps until it has something to return: *heartbeat* (renew, find out
what was lost, make a plan and act on it) when the group has changed or the time for it has come;
*take* what there is; else *wait*. Everything that touches shared data holds the store's lock, but
the listener is always called without it, so a drain may take as long as it likes while the others
go on, and may commit.

A partition that has to go is released only after ``listener.revoked`` has returned; until then its
lease is held, so commits count and nobody else gets it. While a member waits or is inside its
listener it counts as alive and its assignments are valid without end: it needs no heartbeats, and
an advanced clock does not rob it. Its lease runs by the clock only while it is away from poll.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING

from streams.errors import ConfigError, Fatal, TooLarge
from streams.log.membership import NEVER, TERMS, Part
from streams.log.memory.store import Group, Partition, Store, wait_on
from streams.log.names import member_fenced
from streams.log.protocol import (
    PROGRESS_LIMIT,
    Answered,
    Assignment,
    Commit,
    Committed,
    Listener,
    Static,
    Transaction,
)
from streams.message import Batch

if TYPE_CHECKING:
    from streams.log.memory.log import MemoryLog


class _Owned:
    """One partition this member owns."""

    __slots__ = ("assignment", "next", "partition", "paused", "version")

    def __init__(self, assignment: Assignment, partition: Partition) -> None:
        self.assignment = assignment
        self.partition = partition
        self.next = 0
        self.paused = False
        self.version = -NEVER  # of the last commit

    @property
    def part(self) -> Part:
        return self.assignment.topic, self.assignment.partition


class MemorySubscription:
    """See :class:`~streams.log.protocol.Subscription`."""

    def __init__(
        self,
        log: MemoryLog,
        store: Store,
        group: Group,
        topics: Sequence[str],
        listener: Listener,
        static: Static | None = None,
    ) -> None:
        store.joined += 1
        self.id = static.name if static else f"member-{store.joined}"
        self.topics = tuple(topics)
        self.expires = TERMS.expires(store.clock.monotonic())
        self.inside = False
        self.dead = False
        self.wakeup = Condition(store.lock)
        self._log = log
        self._store = store
        self._group = group
        self._listener = listener
        self._owned: dict[Part, _Owned] = {}
        self._turn = 0
        self._woken = False
        self._ended = ""
        self._fenced = False
        self._seen = -1  # the group's version that was planned for
        self._due = -NEVER  # when to plan again while busy
        self._again = NEVER  # when to plan again while idle
        group.join(self)

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        """The next messages; see the protocol."""
        until: float | None = None
        while True:
            self._log.point("poll", self._group.name)
            if self._fenced:
                self._end_fenced()
            with self._store.lock:
                self._check()
                if self._fenced:
                    continue
                now = self._store.clock.monotonic()
                if self._seen == self._group.version and now < self._due:
                    batches = self._take(limit)
                    if batches or self._woken:
                        self._woken = False
                        return batches
                    if until is None:
                        until = time.monotonic() + timeout
                    left = until - time.monotonic()
                    if left <= 0:
                        return ()
                    self._wait(min(left, self._store.clock.timeout(self._again - now)))
                    continue
                lost, revoked, assigned = self._heartbeat(now)
            if lost:
                self._listener.lost([owned.assignment for owned in lost])
            if revoked:
                self._give_up(revoked)
            if assigned:
                self._welcome(assigned)

    def _take(self, limit: int) -> list[Batch]:
        """What is there, from one partition after the other; who was last begins next time."""
        batches: list[Batch] = []
        ring = list(self._owned.values())
        turn = self._turn % len(ring) if ring else 0
        for owned in (*ring[turn:], *ring[:turn]):
            turn += 1
            partition = owned.partition
            start = max(owned.next, partition.first)
            count = min(partition.end - start, limit)
            if count <= 0 or owned.paused:
                continue
            assignment = owned.assignment
            batches.append(
                partition.slice(assignment.topic, assignment.partition, start, count, assignment)
            )
            owned.next = start + count
            limit -= count
            if not limit:
                break
        self._turn = turn
        return batches

    def _wait(self, timeout: float) -> None:
        """Block until something may have changed (the lock is held, and given up meanwhile)."""
        with self._staying():
            wait_on(self._store.having(self.topics), self.wakeup, timeout)

    @contextmanager
    def _staying(self) -> Generator[None, None, None]:
        """Inside a wait or a callback: alive by definition, so all that is owned is valid without
        end. (The lock is held on the way in and out.)"""
        self.inside = True
        for owned in self._held():
            owned.assignment.valid_until = NEVER
        try:
            yield
        finally:
            if not self._ended:
                now = self._store.clock.monotonic()
                self._group.refresh(now)
                self.inside = False
                self._renew(now)

    # -- ownership

    def _heartbeat(self, now: float) -> tuple[list[_Owned], list[_Owned], list[_Owned]]:
        """Renew and plan: what was lost, what must be given up, what is newly owned."""
        group = self._group
        self.check_held()
        lost = [owned for owned in self._owned.values() if owned.assignment.valid_until == -NEVER]
        for owned in lost:
            del self._owned[owned.part]
        self._renew(now)
        plan = group.plan(self.id, now, self._store.partition_counts(), set(self._owned))
        self._seen = group.version
        self._again = plan.again
        self._due = min(plan.again, now + TERMS.heartbeat)
        if plan.release:  # what can be acquired is still there after that
            inherited = [part for part in plan.release if part not in self._owned]
            if inherited:
                group.take_away(inherited)
            return lost, [self._owned[part] for part in plan.release if part in self._owned], []
        return lost, [], [self._acquire(part, epoch, now) for part, epoch in plan.acquire.items()]

    def _acquire(self, part: Part, epoch: int, now: float) -> _Owned:
        topic, number = part
        committed = self._group.positions.get(part)
        assignment = Assignment(topic, number, epoch, committed, TERMS.valid_until(now))
        owned = _Owned(assignment, self._store.topics[topic].partitions[number])
        self._owned[part] = owned
        self._group.holders[part] = self.id, epoch
        return owned

    def _renew(self, now: float) -> None:
        """Extend all leases: the row's expiry is theirs."""
        back = self.expires <= now
        self.expires = TERMS.expires(now)
        if back:  # the others had given it up
            self._group.changed()
        until = TERMS.valid_until(now)
        for owned in self._held():
            owned.assignment.valid_until = until

    def _held(self) -> Iterator[_Owned]:
        """What is owned and was not taken away."""
        holders = self._group.holders
        for part, owned in self._owned.items():
            if holders.get(part) == (self.id, owned.assignment.epoch):
                yield owned

    def check_held(self) -> None:
        """Stop trusting assignments that were taken away (the lock is held)."""
        held = set(map(id, self._held()))
        for owned in self._owned.values():
            if id(owned) not in held:
                owned.assignment.valid_until = -NEVER

    def _welcome(self, assigned: Sequence[_Owned]) -> None:
        """Tell the listener what is new; what it cannot take is released again."""
        try:
            with self._outside():
                self._listener.assigned([owned.assignment for owned in assigned])
        except BaseException:
            self._release(assigned)
            raise
        for owned in assigned:
            owned.next = owned.assignment.position

    def _give_up(self, revoked: Sequence[_Owned]) -> None:
        """Let the listener drain, however it ends, then release."""
        try:
            with self._outside():
                self._listener.revoked([owned.assignment for owned in revoked])
        finally:
            self._release(revoked)

    @contextmanager
    def _outside(self) -> Generator[None, None, None]:
        """In the listener: alive, and without the lock."""
        lock = self._store.lock
        with lock, self._staying():
            lock.release()
            try:
                yield
            finally:
                lock.acquire()

    def _release(self, given: Iterable[_Owned]) -> None:
        with self._store.lock:
            if not self._ended:
                self._drop(given)

    def _drop(self, given: Iterable[_Owned]) -> None:
        """Own these no longer, and free the leases that are still held (the lock is held)."""
        gone = list(given)
        held = [owned.part for owned in gone if self._holds(owned)]
        for owned in gone:
            owned.assignment.valid_until = -NEVER
            self._owned.pop(owned.part, None)
        self._group.take_away(held)

    def _holds(self, owned: _Owned) -> bool:
        held = self._group.holders.get(owned.part)
        return held == (self.id, owned.assignment.epoch)

    # -- progress

    def commit(self, commits: Sequence[Commit]) -> None:
        """Store these places; see the protocol."""
        for commit in commits:
            if len(commit.progress) > PROGRESS_LIMIT or not commit.progress.isascii():
                raise TooLarge(
                    f"progress of {commit.assignment!r}: at most {PROGRESS_LIMIT} ASCII characters"
                )
        self._log.point("commit.before", self._group.name)
        with self._store.lock:
            moved = {
                assignment.topic
                for assignment, position, progress, version in commits
                if self._commit(assignment, Committed(position, progress), version)
            }
            for topic in self._store.having(moved):
                self._store.trim(topic)
        self._log.point("commit.after", self._group.name)

    def submit(self, commits: Sequence[Commit], answered: Answered) -> None:
        """The same: it costs little."""
        self.commit(commits)
        answered(True)

    def _commit(self, assignment: Assignment, place: Committed, version: int) -> bool:
        owned = self._find(assignment)
        if owned is None or not self._holds(owned) or version < owned.version:
            return False
        owned.version = version
        self._group.positions[owned.part] = place
        return True

    def _find(self, assignment: Assignment) -> _Owned | None:
        owned = self._owned.get((assignment.topic, assignment.partition))
        return owned if owned is not None and owned.assignment is assignment else None

    # -- the rest

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these until resumed; they stay owned."""
        self._set_paused(assignments, True)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again, from behind the last message delivered."""
        self._set_paused(assignments, False)

    def _set_paused(self, assignments: Iterable[Assignment], paused: bool) -> None:
        for assignment in assignments:
            if owned := self._find(assignment):
                owned.paused = paused

    def restart(self, assignments: Iterable[Assignment]) -> None:
        """Free the leases of these, so that the next plan finds them without an owner."""
        found = [owned for each in assignments if (owned := self._find(each)) is not None]
        self._release(found)

    def keep_alive(self) -> None:
        """Stay a member while handlers are waited for outside of poll."""
        with self._store.lock:
            if not self._ended and not self.inside:
                self._renew(self._store.clock.monotonic())

    def wake(self) -> None:
        """Make a blocked ``poll``, or the next one, return at once (any thread)."""
        with self._store.lock:
            self._woken = True
            self.wakeup.notify_all()

    def begin(self) -> Transaction:
        """There are no transactions in memory.

        :raises ConfigError: always.
        """
        raise ConfigError("memory:// has no transactions: message.transaction needs sqlite://")

    def close(self) -> None:
        """Drain what is owned, release it, leave the group."""
        with self._store.lock:
            if self._ended:
                return
            owned = list(self._owned.values())
        try:
            if owned:
                self._give_up(owned)
        finally:
            with self._store.lock:
                self.detach("this subscription is closed")

    def detach(self, why: str) -> None:
        """Leave without a word to the listener (the lock is held)."""
        if self._ended:
            return
        self._ended = why
        self.inside = False
        if self._group.members.get(self.id) is self:
            del self._group.members[self.id]
        self._drop(list(self._owned.values()))
        self._log.left(self)

    def crash(self) -> None:
        """As if this member were killed with ``kill -9``: it drains nothing, commits nothing, and
        releases nothing; the others wait for its lease to run out. Its poll raises Fatal."""
        with self._store.lock:
            self.kill("this member was crashed by a test")

    def freeze(self) -> None:
        """As if this member's process were stopped (SIGSTOP), wherever it is: its lease runs out
        by the clock, until it polls again or comes out of its listener. Whoever calls this keeps
        it from doing so."""
        with self._store.lock:
            if not self._ended:
                self._renew(self._store.clock.monotonic())
                self.inside = False

    def kill(self, why: str) -> None:
        """What :meth:`crash` does (the lock is held)."""
        if self._ended:
            return
        self._ended = why
        if self.inside:  # a living process would have been renewing its lease all along
            self.expires = TERMS.expires(self._store.clock.monotonic())
            self.inside = False
        self.dead = True
        for owned in self._owned.values():
            owned.assignment.valid_until = -NEVER
        self._owned.clear()
        self._group.changed()
        self._log.left(self)

    def fence(self) -> None:
        """Another member has joined under this one's name (the lock is held)."""
        self._fenced = True
        self.check_held()
        self.wakeup.notify_all()

    def _end_fenced(self) -> None:
        lost = [owned.assignment for owned in self._owned.values()]
        self._owned.clear()
        if lost:
            self._listener.lost(lost)
        raise member_fenced(self._group.name, self.id)

    def _check(self) -> None:
        if self._ended:
            raise Fatal(f"group {self._group.name!r}, {self.id}: {self._ended}")
