"""A member of a group that polls what it owns.

The thread that polls does everything but commits and handlers' transactions, which may come from
any: it takes messages, renews the membership, notices what others have changed, and calls the
listener.

What is known of the partitions' ends is kept, and read again only when SQLite says that the file
has changed, so that a thousand idle partitions cost as much as one.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import apsw

from streams.config import Flow
from streams.errors import LogError, MemberFenced, Unavailable
from streams.log.protocol import Answered, Assignment, Commit, Listener, Static
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import StoredBatch
from streams.log.sqlite.database import Database
from streams.log.sqlite.failures import translated
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.roster import Changes, Roster
from streams.log.sqlite.scan import News, Tail
from streams.log.sqlite.shared import group_key, topic_key
from streams.log.sqlite.transaction import HandlerConnection, Pool, StoredTransaction

_LOOK = 0.25
"""Real seconds between two looks at whether the other members still run."""

_GLANCE = 0.05
"""Real seconds between two looks at whether the file has changed, while there is enough to read."""

_SUBMITTED = 0.02
"""Seconds that a submit waits while others write: the next one comes soon."""

_RESTS = 16
"""Partitions of which a part of a block is held in memory, at most."""


class _Feed(Tail):
    """What a subscription reads of one assignment."""

    def __init__(self, assignment: Assignment, no: int) -> None:
        super().__init__(no, assignment.position)
        self.assignment = assignment
        self.end = 0
        self.paused = False
        self.queued = False


class StoredSubscription:
    """A member of a group. Used by one thread at a time, except :meth:`wake`, :meth:`begin`,
    :meth:`commit` and what they return."""

    def __init__(
        self,
        database: Database,
        trimmer: Trimmer,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        flow: Flow,
        window: int,
        closed: Callable[[StoredSubscription], None],
        member: Static | None = None,
    ) -> None:
        self._database = database
        self._trimmer = trimmer
        self._clock = database.clock
        self._topics = sorted(set(topics))
        self._listener = listener
        self._size = max(blocks.BYTES, flow.bytes // 4)
        self._on_close = closed
        self._roster = Roster(database, group, self._topics, window, member)
        self._connection = database.take()
        try:
            self._roster.join()
        except BaseException:
            database.give(self._connection)
            raise
        self._news = News(database.shared, [group_key(group), *map(topic_key, self._topics)])
        self._unwatch = self._clock.watch(self._news.event.set)
        self._pool = Pool(lambda: HandlerConnection(database.settings))
        self._feeds: dict[Assignment, _Feed] = {}
        self._by_place: dict[tuple[str, int], _Feed] = {}
        self._ready: deque[_Feed] = deque()
        self._rests: set[_Feed] = set()
        self._ends: dict[str, str] = {}
        self._fresh = False
        self._due = self._beat = float("-inf")
        self._look_at = self._glance_at = self._hold = 0.0
        self._woken = False
        self._closed = False

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[StoredBatch]:
        """The next messages, at most ``limit``; waits up to ``timeout`` real seconds for some."""
        deadline = time.monotonic() + timeout
        self._database.check()
        if self._closed:
            raise Unavailable("the subscription is closed")
        with translated(self._database.path):
            while True:
                # Read before attending: whoever wakes a poll wants it to have looked since then.
                woken, self._woken = self._woken, False
                self._attend()
                batches = self._take(limit)
                left = deadline - time.monotonic()
                if batches or woken or left <= 0:
                    return batches
                if self._news.wait(self._connection, min(left, self._until_due())):
                    self._fresh = False

    def _take(self, limit: int) -> list[StoredBatch]:
        batches: list[StoredBatch] = []
        size = self._size
        for _ in range(len(self._ready)):
            if limit < 1 or size <= 0:
                break
            feed = self._ready[0]
            try:
                slices, read = feed.take(self._connection, feed.end, limit, size)
            except (LogError, apsw.Error):
                if batches:  # they have been taken: the error will be there at the next poll, too
                    break
                raise
            size -= read
            if slices:
                assignment = feed.assignment
                batch = StoredBatch(assignment.topic, assignment.partition, slices, assignment)
                batches.append(batch)
                limit -= len(batch)
            self._ready.popleft()
            feed.queued = False
            self._queue(feed)
            self._bound_rests(feed)
        return batches

    def _bound_rests(self, feed: _Feed) -> None:
        """Rests of blocks that were not taken whole are kept in memory, but few of them."""
        self._rests.discard(feed)
        if feed.ahead:
            if len(self._rests) < _RESTS:
                self._rests.add(feed)
            else:
                feed.forget()

    def _queue(self, feed: _Feed) -> None:
        if not feed.paused and not feed.queued and feed.position < feed.end:
            feed.queued = True
            self._ready.append(feed)

    def _unqueue(self, feed: _Feed) -> None:
        feed.forget()
        self._rests.discard(feed)
        if feed.queued:
            feed.queued = False
            self._ready.remove(feed)

    # -- what others do

    def _attend(self) -> None:
        now = time.monotonic()
        if self._ready and now >= self._glance_at:
            self._glance_at = now + _GLANCE
            if self._news.changed(self._connection):
                self._fresh = False
        if not self._fresh:
            self._fresh = True
            self._refresh()
        if now >= self._look_at:
            self._look_at = now + _LOOK
            if self._roster.look(self._connection):
                self._due = float("-inf")
        if now >= self._hold and (self._roster.doubtful or self._clock.monotonic() >= self._due):
            self._step()

    def _refresh(self) -> None:
        """Read the group's generation and the partitions' ends: one row a topic."""
        for topic, generation, ends in self._connection.rows(
            "SELECT t.value, (SELECT generation FROM streams_groups WHERE name = ?),"
            " (SELECT json_group_array(next ORDER BY partition)"
            " FROM streams_partitions WHERE topic = t.value) FROM json_each(?) AS t",
            (self._roster.group, json.dumps(self._topics)),
        ):
            if generation != self._roster.generation:
                self._due = float("-inf")
            if self._ends.get(topic) == ends:
                continue
            self._ends[topic] = ends
            for partition, end in enumerate(json.loads(ends)):
                feed = self._by_place.get((topic, partition))
                if feed is not None:
                    feed.end = end
                    self._queue(feed)

    def _until_due(self) -> float:
        """Real seconds until something has to be attended to."""
        due = self._clock.timeout(max(0.0, self._due - self._clock.monotonic()))
        return min(_LOOK, max(due, self._hold - time.monotonic()))

    # -- membership

    def _step(self) -> None:
        settings, now = self._database.settings, self._clock.monotonic()
        terms = settings.terms
        # As long as what is owned is certain there is better to do than to wait for a writer.
        sure = bool(self._feeds) and self._sure(now)
        try:
            changes = self._roster.step(terms.margin if sure else settings.timeout)
        except MemberFenced:
            lost = list(self._feeds)
            self._remove(lost)
            for assignment in lost:
                assignment.valid_until = float("-inf")
            self._listener.lost(lost)
            raise
        except Unavailable:
            if not sure:
                raise
            self._hold = time.monotonic() + _LOOK
            return
        self._due = self._beat = now + terms.heartbeat
        self._tell(changes)
        for topic in self._topics:
            self._trimmer.now_and_then(topic)

    def _sure(self, now: float) -> bool:
        """Whether what was confirmed last still holds."""
        return all(now < assignment.valid_until for assignment in self._roster.numbers)

    def _tell(self, changes: Changes) -> None:
        self._remove(changes.lost)
        if changes.lost:
            self._listener.lost(changes.lost)
        if changes.release:
            self._remove(changes.release)
            try:
                self._listener.revoked(changes.release)
            finally:
                self._roster.release(changes.release)
        if changes.acquired:
            for assignment in changes.acquired:
                feed = _Feed(assignment, self._roster.numbers[assignment])
                self._feeds[assignment] = feed
                self._by_place[assignment.topic, assignment.partition] = feed
            try:
                self._listener.assigned(changes.acquired)
            except BaseException:
                self._remove(changes.acquired)
                self._roster.release(changes.acquired)
                raise
            # What was trimmed may be there still, within a block.
            firsts = self._connection.array(
                "SELECT json_group_array(json_array(no, first)) FROM streams_partitions"
                " WHERE topic IN (SELECT value FROM json_each(?))",
                (json.dumps(self._topics),),
            )
            first: dict[int, int] = dict(firsts)
            for assignment in changes.acquired:
                feed = self._feeds[assignment]
                feed.position = max(assignment.position, first.get(feed.no, 0))
            self._ends.clear()
            self._refresh()

    def _remove(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            feed = self._feeds.pop(assignment, None)
            if feed is not None:
                self._unqueue(feed)
                self._by_place.pop((assignment.topic, assignment.partition), None)

    # -- the rest

    def commit(self, commits: Sequence[Commit]) -> None:
        """Store these places durably; what is stale or no longer owned is left out."""
        if commits:
            self._roster.commit(commits)

    def submit(self, commits: Sequence[Commit], answered: Answered) -> None:
        """Store these places without waiting for the disk, nor for long while others write."""
        try:
            self._roster.commit(commits, flush=False, patience=_SUBMITTED)
        except Unavailable:
            answered(False)
        else:
            answered(True)

    def restart(self, assignments: Iterable[Assignment]) -> None:
        """Give these up, and have the partitions assigned anew."""
        given = [each for each in assignments if each in self._feeds]
        if not given:
            return
        self._remove(given)
        self._due = float("-inf")
        self._roster.release(given)

    def keep_alive(self) -> None:
        """Stay a member without polling.

        :raises Unavailable: the file cannot be written, and ownership has run out meanwhile.
        """
        now = self._clock.monotonic()
        if now < self._beat:
            return
        terms = self._database.settings.terms
        try:
            self._roster.beat()
        except Unavailable:
            if not self._sure(now):
                raise
        else:
            self._beat = now + terms.heartbeat

    def begin(self) -> StoredTransaction:
        """A transaction for a handler (any thread)."""
        return StoredTransaction(self._database, self._roster, self._pool)

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these until resumed."""
        for assignment in assignments:
            feed = self._feeds.get(assignment)
            if feed is not None:
                feed.paused = True
                self._unqueue(feed)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again, from behind the last message delivered."""
        for assignment in assignments:
            feed = self._feeds.get(assignment)
            if feed is not None:
                feed.paused = False
                self._queue(feed)

    def wake(self) -> None:
        """Make a blocked poll return soon (any thread)."""
        self._woken = True
        self._news.event.set()

    def close(self) -> None:
        """Leave the group; what is still owned is revoked first."""
        if self._closed or self._database.forked:
            return
        self._closed = True
        held = list(self._feeds)
        self._remove(held)
        try:
            if held:
                self._listener.revoked(held)
        finally:
            try:
                self._roster.leave()
            except Unavailable:
                pass  # its lock is free, by which the others know
            finally:
                self._shut()

    def abandon(self) -> None:
        """The log is being closed under it."""
        self._closed = True
        self._roster.abandon()
        self._shut()

    def _shut(self) -> None:
        self._unwatch()
        self._news.close()
        self._news.event.set()
        self._pool.close()
        try:
            self._connection.close()
        except apsw.Error:
            pass  # a poll in another thread is reading: it ends with an error, and then this does
        self._on_close(self)
