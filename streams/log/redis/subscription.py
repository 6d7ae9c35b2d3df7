"""A member of a group that reads the partitions it owns.

One thread polls. A poll sends the heartbeat when it is due and does what the members agreed on,
hands out what was read, asks for the next batch (of a few, the next poll asks), and waits for news
only where there is nothing.
Two kinds of connections serve it: the feeds, each with a read under way, and the log's pool for
everything that must not stand in line behind one.

The group's position never depends on what the server counts as delivered: each owner reads from
where it stands with plain XREAD. A member that was frozen and wakes up reads, at worst, what
somebody else handles by now; it can take no entry from anybody, its commits are refused by their
epoch, and no handler starts after ``valid_until``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from streams.config import Flow
from streams.errors import ConfigError, LogError, MemberFenced, Unavailable
from streams.log.protocol import Answered, Assignment, Commit, Listener, Transaction
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.columns import Entries, Rows
from streams.log.redis.feed import BLOCK, Feed, Waiter
from streams.log.redis.keys import before, entry_id
from streams.log.redis.membership import Membership, Owned, Place, Saved, Taken
from streams.log.redis.reading import Stream
from streams.log.redis.trimming import Trimmer
from streams.text import get_logger

logger = get_logger("streams")

AHEAD = 2_000
"""Entries asked for at once, over all partitions: with 200-byte events, half a megabyte. More was
no faster, and leaves the processor's cache."""

FIRST = 64
"""Entries asked for at first, while their size is not known."""

FEW = 16
"""Entries that are handed out before more is asked for: who reads so few at a time has caught up,
and asking would only hold them up. With more, the server works while these are handled."""

SAMPLE = 8
"""Entries of each partition's answer that are measured."""

STEADY = 1.0
"""Seconds between heartbeats, if it is not thousands of partitions; while members come and go:"""
RESTLESS = 0.1

SOME = 32
"""Partitions that are handed to the listener at once: it may have to read for each of them, and
leases are renewed in between."""


class RedisSubscription:
    """See :class:`streams.log.protocol.Subscription`."""

    def __init__(
        self,
        client: Client,
        trimmer: Trimmer,
        membership: Membership,
        group: str,
        listener: Listener,
        flow: Flow,
    ) -> None:
        self._client = client
        self._trimmer = trimmer
        self._membership = membership
        self._group = group
        self._listener = listener
        self._waiter = Waiter()
        self._owned: dict[int, Owned] = {}
        """By the identity of the assignment."""
        self._feeds: list[Feed] = [] if client.servers.clustered else [Feed(client, self._waiter)]
        self._gone: list[Owned] = []
        """Lost, and the listener does not know yet."""
        self._stale = False
        """A read under way leaves out a partition that is wanted."""
        self._next_beat = 0.0
        self._restless_until = 0.0
        self._renewed = 0.0
        self._limit = FIRST
        self._size = 1024.0
        """Bytes of an entry, as the last ones were."""
        self._budget = max(1, flow.bytes // 8)
        self._most = max(1, flow.messages)
        self._turn = 0
        self._failures = 0
        """Reads that failed since one did not."""
        self._closed = False

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[Entries]:
        """See :meth:`streams.log.protocol.Subscription.poll`."""
        if self._closed:
            raise Unavailable(f"{self._group}: the subscription is closed")
        until = time.monotonic() + timeout
        self._limit = max(1, limit)
        over = False
        while True:
            now = time.monotonic()
            if now >= self._next_beat or self._gone:
                self._beat()
            if self._stale:
                self._stale = False
                for feed in self._feeds:
                    if self._leaves_out(feed):
                        feed.interrupt()
            batches = self._deliver(self._limit)
            if batches and sum(map(len, batches)) <= FEW:
                return batches
            try:
                self._ask()
            except LogError:
                # What is handed out is handed out; if it is not over, the next poll will say so.
                if not batches:
                    raise
            if batches or over:
                return batches
            readable, over = self._waiter.wait(min(until, self._next_beat) - time.monotonic())
            self._receive(readable)
            over = over or time.monotonic() >= until

    def _deliver(self, limit: int) -> list[Entries]:
        """What was read before, at most ``limit``; partitions take turns at being first."""
        batches: list[Entries] = []
        waiting = [each for each in self._owned.values() if each.rows and not each.paused]
        if not waiting:
            return batches
        self._turn += 1
        start = self._turn % len(waiting)
        for owned in (*waiting[start:], *waiting[:start]):
            if limit <= 0:
                break
            rows, owned.rows = owned.rows, []
            if len(rows) > limit:
                rows, owned.rows = rows[:limit], rows[limit:]
            limit -= len(rows)
            part = owned.part
            batch = Entries(part.topic, part.partition, rows, owned.assignment)
            owned.trail.add(batch.offsets)
            batches.append(batch)
        return batches

    def _ask(self) -> None:
        """Have a read under way on every connection that has nothing waiting to be delivered."""
        failure: LogError | None = None
        asked = 0
        for feed in self._feeds:
            if feed.asked:
                asked += 1
                continue
            wanted = [each for each in feed.owned if not each.paused]
            if not wanted or any(each.rows for each in wanted):
                continue
            try:
                feed.ask(wanted, self._share(feed, len(wanted)), self._block())
                asked += 1
            except Unavailable as error:
                failure = error
        if failure is not None and not asked:
            raise failure

    def _share(self, feed: Feed, partitions: int) -> int:
        """Entries to ask for from each partition. It grows by steps, as nobody knows how large
        the next ones are, and what comes is held in memory whatever it is."""
        total = min(self._limit, AHEAD, self._most, int(self._budget / self._size))
        share = max(1, total // partitions)
        return min(share, max(FIRST // partitions, 1, 4 * feed.count))

    def _block(self) -> float:
        # Many connections that wait in vain should not add up to work.
        return max(BLOCK, len(self._feeds) / 20)

    def _receive(self, readable: set[int]) -> None:
        """Take in what has come.

        :raises Unavailable: a read failed, and so did the one before.
        """
        failure: LogError | None = None
        for feed in self._feeds:
            try:
                if not feed.ready(readable):
                    continue
                answers = feed.answer()
            except Unavailable as error:
                failure = error
                continue
            self._failures = 0
            for owned, rows in answers:
                if id(owned.assignment) not in self._owned:
                    continue  # given up meanwhile
                owned.cursor = rows[-1][0]
                owned.rows = rows if not owned.rows else owned.rows + rows
            if answers:
                self._measure([rows for _, rows in answers])
        if failure is not None:
            self._membership.look()
            # Connecting anew mostly helps; where it does not, somebody has to wait a while.
            self._failures += 1
            if self._failures > 1:
                raise failure
            logger.info("%s: reading again: %s", self._group, failure)

    def _measure(self, answers: Sequence[Rows]) -> None:
        count = size = 0
        for rows in answers:
            for _, row in rows[:: len(rows) // SAMPLE + 1]:
                size += sum(map(len, row))
                count += 1
        mean = size / count + 64
        # A growth counts at once, a decline slowly.
        self._size = mean if mean > self._size else (7 * self._size + mean) / 8

    def _leaves_out(self, feed: Feed) -> bool:
        if not feed.asked:
            return False
        asked = set(map(id, feed.asked))
        return any(not each.paused and id(each) not in asked for each in feed.owned)

    # -- pausing

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """See :meth:`streams.log.protocol.Subscription.pause`."""
        for assignment in assignments:
            owned = self._owned.get(id(assignment))
            if owned is not None:
                owned.paused = True

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """See :meth:`streams.log.protocol.Subscription.resume`."""
        for assignment in assignments:
            owned = self._owned.get(id(assignment))
            if owned is not None and owned.paused:
                owned.paused = False
                self._stale = True

    def wake(self) -> None:
        """See :meth:`streams.log.protocol.Subscription.wake`."""
        self._waiter.wake()

    def begin(self) -> Transaction:
        """See :meth:`streams.log.protocol.Subscription.begin`."""
        raise ConfigError("a redis:// log has no transactions for a handler's own SQL")

    # -- committing

    def commit(self, commits: Sequence[Commit]) -> None:
        """See :meth:`streams.log.protocol.Subscription.commit`."""
        if self._closed:
            raise Unavailable(f"{self._group}: the subscription is closed")
        sent = time.monotonic()
        term = int(self._membership.terms.lease * 1000)
        own: list[tuple[Owned, Commit, Saved]] = []
        commands: list[Command] = []
        for commit in commits:
            owned = self._owned.get(id(commit.assignment))
            if owned is None or owned in self._gone or commit.version <= owned.version:
                continue
            saved = Saved(commit.position, commit.progress, owned.trail.below(commit.position))
            owned.sent = max(owned.sent, commit.version)
            own.append((owned, commit, saved))
            commands.append(
                scripted(
                    str(owned.part), "commit", (owned.lease, owned.part.stream),
                    self._membership.me, commit.assignment.epoch, term, self._group,
                    commit.version, entry_id(commit.position), commit.progress,
                    "" if saved.read is None else saved.read, owned.sent,
                )
            )  # fmt: skip
        failure: LogError | None = None
        for (owned, commit, saved), answer in zip(own, self._client.run_all(commands), strict=True):
            if isinstance(answer, LogError):
                failure = answer
            elif answer == 0:
                self._lose([owned])
            else:
                owned.version = commit.version
                owned.assignment.valid_until = self._membership.terms.valid_until(sent)
                if answer == 3:
                    owned.trail.total, saved = None, saved._replace(read=None)
                    self._membership.look()
                if answer != 2:
                    self._membership.saved[owned.place] = saved
        if failure is not None:
            raise failure

    def submit(self, commits: Sequence[Commit], answered: Answered) -> None:
        """See :meth:`streams.log.protocol.Subscription.submit`: one call of a script."""
        self.commit(commits)
        answered(True)

    # -- membership

    def restart(self, assignments: Iterable[Assignment]) -> None:
        """See :meth:`streams.log.protocol.Subscription.restart`."""
        given = [owned for each in assignments if (owned := self._owned.get(id(each))) is not None]
        if not given:
            return
        self._gone = [each for each in self._gone if each not in given]
        self._remove(given)
        self._membership.release(given)
        self._next_beat = 0.0

    def keep_alive(self) -> None:
        """See :meth:`streams.log.protocol.Subscription.keep_alive`."""
        if self._closed:
            return
        self._renewed = time.monotonic()
        self._lose(self._membership.renew([o for o in self._owned.values() if o not in self._gone]))

    def _beat(self) -> None:
        """A heartbeat, and what follows from it."""
        now = self._renewed = time.monotonic()
        member = self._membership
        steady = min(max(STEADY, member.partitions / 500), member.terms.heartbeat)
        # Also where this one fails, the next is not to come at once.
        self._next_beat = now + min(steady, 2 * RESTLESS)
        self._tell_lost()
        try:
            beat = self._membership.beat(list(self._owned.values()))
        except MemberFenced:
            self._lose(list(self._owned.values()))
            self._tell_lost()
            raise
        if beat.changed or beat.plan.release or beat.plan.acquire or beat.lost:
            self._restless_until = now + 3 * steady
        restless = now < self._restless_until
        self._next_beat = now + (min(RESTLESS, steady) if restless else steady)
        self._look_for_gaps(beat.streams)
        self._lose([*beat.lost, *beat.adrift])
        self._tell_lost()
        # What has drifted away from its stream is taken again, from a place that the stream has.
        self._membership.release(beat.adrift)
        leaving = set(beat.plan.release)
        mine = [each for each in self._owned.values() if each.place in leaving]
        self._give_up(mine)
        self._membership.give_up(leaving.difference(each.place for each in mine))
        acquire = sorted(beat.plan.acquire)
        trouble: Unavailable | None = None
        for at in range(0, len(acquire), SOME):
            if time.monotonic() - self._renewed > steady:
                self.keep_alive()
            try:
                self._take(acquire[at : at + SOME])
            except Unavailable as error:
                trouble = error  # the others are not to wait for these
        for feed in self._feeds:
            if self._astray(feed):
                feed.drop()
        for owned in list(self._owned.values()):
            self._trimmer.turn(owned.part)
        if trouble is not None:
            raise trouble

    def _astray(self, feed: Feed) -> bool:
        try:
            return feed.astray()
        except LogError:
            return False  # not known now

    def _look_for_gaps(self, streams: dict[Place, Stream]) -> None:
        """Entries that others trimmed or deleted before this group could read them."""
        for owned in self._owned.values():
            stream = streams.get(owned.place)
            if stream is None or owned.rows or entry_id(stream.last) != owned.cursor:
                continue
            if owned.trail.total == stream.added:
                continue
            owned.recounted = True
            missing = owned.trail.end(stream.added)
            if missing:
                logger.error(
                    "%s: %d messages of %s were trimmed or deleted before they were read",
                    self._group, missing, owned.part,
                )  # fmt: skip

    def _lose(self, lost: Iterable[Owned]) -> None:
        for owned in lost:
            if id(owned.assignment) in self._owned and owned not in self._gone:
                owned.assignment.valid_until = float("-inf")
                self._gone.append(owned)

    def _tell_lost(self) -> None:
        gone, self._gone = self._gone, []
        if gone:
            self._remove(gone)
            self._listener.lost([each.assignment for each in gone])

    def _give_up(self, leaving: Sequence[Owned]) -> None:
        if not leaving:
            return
        try:
            # Commits still count in there.
            self._listener.revoked([each.assignment for each in leaving])
        finally:
            self._remove(leaving)
            self._membership.release(leaving)
            self._gone = [each for each in self._gone if each not in leaving]

    def _take(self, places: Sequence[Place]) -> None:
        taken = self._membership.take(places)
        own = [(self._membership.own(each), each) for each in taken]
        if not own:
            return
        for owned, _ in own:
            self._owned[id(owned.assignment)] = owned
        try:
            self._listener.assigned([owned.assignment for owned, _ in own])
        except BaseException:
            self._remove([owned for owned, _ in own])
            self._membership.release([owned for owned, _ in own])
            raise
        for owned, each in own:
            self._start(owned, each)
        self._membership.show([owned for owned, each in own if each.saved is None])

    def _start(self, owned: Owned, taken: Taken) -> None:
        position = owned.assignment.position
        owned.cursor = before(position)
        known = taken.stream.read_below(position)
        if known is None and taken.saved is not None and position == taken.saved.position:
            known = taken.saved.read
        owned.trail.total = known
        if self._client.servers.clustered:
            self._feeds.append(Feed(self._client, self._waiter))
        self._feeds[-1].owned.append(owned)
        self._stale = True

    def _remove(self, leaving: Sequence[Owned]) -> None:
        for owned in leaving:
            owned.assignment.valid_until = float("-inf")
            owned.rows = []
            self._owned.pop(id(owned.assignment), None)
        gone = {id(each) for each in leaving}
        for feed in self._feeds:
            feed.owned = [each for each in feed.owned if id(each) not in gone]
        if self._client.servers.clustered:
            for feed in self._feeds:
                if not feed.owned:
                    feed.drop()
            self._feeds = [feed for feed in self._feeds if feed.owned]

    def close(self) -> None:
        """See :meth:`streams.log.protocol.Subscription.close`."""
        if self._closed:
            return
        try:
            self._tell_lost()
            self._give_up(list(self._owned.values()))
        finally:
            self._closed = True
            self._membership.leave()
            for feed in self._feeds:
                feed.drop()
            self._waiter.close()
