"""A member of a group that polls what it owns.

The thread that polls does everything except commits and handlers' transactions, which may come from
any thread: it reads messages, renews the membership, notices others' changes, and calls the
listener.

The partitions' ends are cached, and read again only when SQLite says that the file has changed, so
that a thousand idle partitions cost as much as one.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import apsw

from streams.config import Flow
from streams.errors import LogError, MemberFenced, Unavailable
from streams.log.protocol import (
    Assignment,
    Commit,
    RebalanceListener,
    StaticMember,
    Submitted,
    Subscription,
)
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import SqliteBatch
from streams.log.sqlite.database import ConnectionPool, Database
from streams.log.sqlite.errors import translate_errors
from streams.log.sqlite.member_rows import SELECT_REVISION
from streams.log.sqlite.membership import Membership, OwnershipChanges
from streams.log.sqlite.producer import Writer
from streams.log.sqlite.reader import ChangeWaiter, PartitionCursor
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.shared_file import group_event, topic_event
from streams.log.sqlite.transaction import HandlerConnection, SqliteTransaction
from streams.message import Record

_LIVENESS_INTERVAL = 0.25
"""Real seconds between two checks whether the other members still run."""

_CHANGE_CHECK_INTERVAL = 0.05
"""Real seconds between two checks whether the file has changed, while there is enough to read."""

_SUBMIT_TIMEOUT = 0.02
"""Seconds that an asynchronous commit waits while others write; the next commit follows soon."""

_MAX_BUFFERED = 16
"""Partitions of which a part of a block is kept in memory, at most."""


class _OwnedPartition(PartitionCursor):
    """An assignment, with the subscription's cursor in it."""

    def __init__(self, assignment: Assignment, number: int) -> None:
        super().__init__(number, assignment.position)
        self.assignment = assignment
        self.end_offset = 0
        self.is_paused = False
        self.is_queued = False


class SqliteSubscription(Subscription):
    """A member of a group. Used by one thread at a time, except :meth:`wakeup`,
    :meth:`begin_transaction`, :meth:`commit` and what they return."""

    def __init__(
        self,
        database: Database,
        trimmer: Trimmer,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        flow: Flow,
        trim_margin: int,
        on_close: Callable[[SqliteSubscription], None],
        writer: Writer,
        member: StaticMember | None = None,
    ) -> None:
        self._database = database
        self._writer = writer
        self._trimmer = trimmer
        self._clock = database.clock
        self._topics = sorted(set(topics))
        self._listener = listener
        self._byte_limit = max(blocks.BLOCK_BYTES, flow.bytes // 4)
        self._on_close = on_close
        self._membership = Membership(database, group, self._topics, trim_margin, member)
        self._append_as_owners = partial(writer.append_as_owners, self._membership.commits)
        self._connection = database.acquire()
        try:
            self._membership.join()
        except BaseException:
            database.release(self._connection)
            raise
        events = [group_event(group), *map(topic_event, self._topics)]
        self._changes = ChangeWaiter(database.shared_file, events)
        self._stop_clock_watch = self._clock.on_jump(self._changes.event.set)
        self._pool = ConnectionPool(lambda: HandlerConnection(database.settings))
        self._owned: dict[Assignment, _OwnedPartition] = {}
        self._ready: deque[_OwnedPartition] = deque()
        self._buffered: set[_OwnedPartition] = set()
        self._end_offsets: dict[str, str] = {}
        self._is_current = False
        self._plan_due = self._heartbeat_due = float("-inf")
        self._liveness_check_due = self._change_check_due = self._plan_not_before = 0.0
        self._woken = False
        self._closed = False

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[SqliteBatch]:
        deadline = time.monotonic() + timeout
        self._database.require_open()
        if self._closed:
            raise Unavailable("the subscription is closed")
        with translate_errors(self._database.path):
            while True:
                # Read first: a wakeup after this must not be missed.
                woken, self._woken = self._woken, False
                self._follow_changes()
                batches = self._read_ready(limit)
                remaining = deadline - time.monotonic()
                if batches or woken or remaining <= 0:
                    return batches
                if self._changes.wait(self._connection, min(remaining, self._seconds_until_due())):
                    self._is_current = False

    def _read_ready(self, limit: int) -> list[SqliteBatch]:
        batches: list[SqliteBatch] = []
        byte_limit = self._byte_limit
        for _ in range(len(self._ready)):
            if limit < 1 or byte_limit <= 0:
                break
            owned = self._ready[0]
            db, end = self._connection, owned.end_offset
            try:
                slices, bytes_read = owned.read(db, end, limit, byte_limit)
            except (LogError, apsw.Error):
                if batches:  # they are returned first: the next poll raises, too
                    break
                raise
            byte_limit -= bytes_read
            if slices:
                assignment = owned.assignment
                batch = SqliteBatch(assignment.topic, assignment.partition, slices, assignment)
                batches.append(batch)
                limit -= len(batch)
            self._ready.popleft()
            owned.is_queued = False
            self._queue(owned)
            self._limit_buffered(owned)
        return batches

    def _limit_buffered(self, owned: _OwnedPartition) -> None:
        """Limit the partly read blocks that are kept in memory."""
        self._buffered.discard(owned)
        if owned.has_buffered:
            if len(self._buffered) < _MAX_BUFFERED:
                self._buffered.add(owned)
            else:
                owned.drop_buffered()

    def _queue(self, owned: _OwnedPartition) -> None:
        if not owned.is_paused and not owned.is_queued and owned.position < owned.end_offset:
            owned.is_queued = True
            self._ready.append(owned)

    def _unqueue(self, owned: _OwnedPartition) -> None:
        owned.drop_buffered()
        self._buffered.discard(owned)
        if owned.is_queued:
            owned.is_queued = False
            self._ready.remove(owned)

    # -- what others do

    def _follow_changes(self) -> None:
        now = time.monotonic()
        if self._ready and now >= self._change_check_due:
            self._change_check_due = now + _CHANGE_CHECK_INTERVAL
            if self._changes.has_changed(self._connection):
                self._is_current = False
        if not self._is_current:
            self._refresh_ends()
            self._is_current = True
        if now >= self._liveness_check_due:
            self._liveness_check_due = now + _LIVENESS_INTERVAL
            if self._membership.has_dead_members(self._connection):
                self._plan_due = float("-inf")
        if now >= self._plan_not_before and (
            self._membership.commits.was_refused or self._clock.monotonic() >= self._plan_due
        ):
            self._update_membership()

    def _refresh_ends(self) -> None:
        """Read the group's revision and the partitions' ends: one row per topic."""
        changed: dict[str, dict[int, int]] = {}
        for topic, revision, ends in self._connection.fetch_rows(
            f"SELECT t.value, ({SELECT_REVISION}),"  # noqa: S608 - our own statement
            " (SELECT json_group_array(next ORDER BY partition)"
            " FROM streams_partitions WHERE topic = t.value) FROM json_each(?) AS t",
            (self._membership.group, json.dumps(self._topics)),
        ):
            if revision != self._membership.revision:
                self._plan_due = float("-inf")
            if self._end_offsets.get(topic) != ends:
                self._end_offsets[topic] = ends
                changed[topic] = dict(enumerate(json.loads(ends)))
        for assignment, owned in self._owned.items() if changed else ():
            end = changed.get(assignment.topic, {}).get(assignment.partition)
            if end is not None:
                owned.end_offset = end
                self._queue(owned)

    def _seconds_until_due(self) -> float:
        """Real seconds until something is due."""
        due = self._clock.real_timeout(max(0.0, self._plan_due - self._clock.monotonic()))
        return min(_LIVENESS_INTERVAL, max(due, self._plan_not_before - time.monotonic()))

    # -- membership

    def _update_membership(self) -> None:
        settings, now = self._database.settings, self._clock.monotonic()
        terms = settings.terms
        # While ownership is certain, reading continues instead of waiting for a writer.
        is_certain = bool(self._owned) and self._is_ownership_certain(now)
        try:
            changes = self._membership.heartbeat_and_plan(
                terms.safety_margin if is_certain else settings.write_timeout
            )
        except MemberFenced:
            lost = list(self._owned)
            for assignment in lost:
                assignment.valid_until = float("-inf")
            self._tell_lost(lost)
            raise
        except Unavailable:
            if not is_certain:
                raise
            self._plan_not_before = time.monotonic() + _LIVENESS_INTERVAL
            return
        self._plan_due = self._heartbeat_due = now + terms.heartbeat_interval
        self._apply_changes(changes)
        for topic in self._topics:
            self._trimmer.trim_if_due(topic)

    def _is_ownership_certain(self, now: float) -> bool:
        """Whether the last confirmation still holds."""
        return all(now < each.valid_until for each in self._membership.partition_numbers)

    def _tell_lost(self, lost: Sequence[Assignment]) -> None:
        self._remove(lost)
        if lost:
            self._listener.lost(lost)

    def _apply_changes(self, changes: OwnershipChanges) -> None:
        self._tell_lost(changes.lost)
        if changes.release:
            self._remove(changes.release)
            try:
                self._listener.revoked(changes.release)
            finally:
                self._plan_due = float("-inf")  # others may be acquired now
                self._membership.release(changes.release)
        if changes.acquired:
            for assignment in changes.acquired:
                assignment.append_as_owners = self._append_as_owners
                owned = _OwnedPartition(assignment, self._membership.partition_numbers[assignment])
                self._owned[assignment] = owned
            try:
                self._listener.assigned(changes.acquired)
            except BaseException:
                self._remove(changes.acquired)
                self._membership.release(changes.acquired)
                raise
            for assignment in changes.acquired:
                self._owned[assignment].position = assignment.position
            self._end_offsets.clear()
            self._is_current = False
            # Trimmed messages may still be in the file, within a block.
            first_offsets: dict[int, int] = dict(
                self._connection.fetch_json(
                    "SELECT json_group_array(json_array(no, first)) FROM streams_partitions"
                    " WHERE topic IN (SELECT value FROM json_each(?))",
                    (json.dumps(self._topics),),
                )
            )
            for assignment in changes.acquired:
                owned = self._owned[assignment]
                owned.position = max(owned.position, first_offsets.get(owned.number, 0))
            self._refresh_ends()

    def _remove(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            owned = self._owned.pop(assignment, None)
            if owned is not None:
                self._unqueue(owned)

    # -- the rest

    def commit(self, commits: Sequence[Commit]) -> None:
        if commits:
            self._membership.commits.commit(commits)

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        """Store these positions without waiting for the disk, and not for long while others
        write."""
        try:
            self._membership.commits.commit(commits, sync=False, timeout=_SUBMIT_TIMEOUT)
        except Unavailable:
            on_submitted(False)
        else:
            on_submitted(True)

    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        self._writer.append_with_commits(outputs, self._membership.commits, commits)

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        owned = [each for each in assignments if each in self._owned]
        if owned:
            self._remove(owned)
            self._plan_due = float("-inf")
            self._membership.release(owned)

    def keep_alive(self) -> None:
        """Stay a member without polling.

        :raises Unavailable: the file cannot be written, and ownership has expired meanwhile.
        """
        now = self._clock.monotonic()
        if now < self._heartbeat_due:
            return
        try:
            self._membership.heartbeat()
        except Unavailable:
            if not self._is_ownership_certain(now):
                raise
        else:
            self._heartbeat_due = now + self._database.settings.terms.heartbeat_interval

    def begin_transaction(self) -> SqliteTransaction:
        return SqliteTransaction(self._database, self._membership.commits, self._pool)

    def pause(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            owned = self._owned.get(assignment)
            if owned is not None:
                owned.is_paused = True
                self._unqueue(owned)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            owned = self._owned.get(assignment)
            if owned is not None:
                owned.is_paused = False
                self._queue(owned)

    def wakeup(self) -> None:
        self._woken = True
        self._changes.event.set()

    def close(self) -> None:
        if self._closed or self._database.is_forked:
            return
        self._closed = True
        owned = list(self._owned)
        self._remove(owned)
        try:
            if owned:
                self._listener.revoked(owned)
        finally:
            try:
                self._membership.leave()
            except Unavailable:
                pass  # its lock is free, which the others notice
            finally:
                self._release_resources()

    def abandon(self) -> None:
        """Give up the membership: the log is being closed while the subscription is open."""
        self._closed = True
        self._membership.abandon()
        self._release_resources()

    def _release_resources(self) -> None:
        self._stop_clock_watch()
        self._changes.close()
        self._changes.event.set()
        self._pool.close()
        try:
            self._connection.close()
        except apsw.Error:
            pass  # another thread is polling: it ends with an error
        self._on_close(self)
