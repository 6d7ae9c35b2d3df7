"""A member of a group that reads the partitions it owns.

One thread polls. A poll sends the heartbeat when it is due and applies the plan, returns the
entries read, requests the next batch (after a small one, the next poll does), and waits only while
there are none. It uses two kinds of connections: the fetchers', each with a read in progress, and
those of the log's pool for everything that must not wait behind such a read.

The group's position never depends on what the server counts as delivered: each owner reads with
plain XREAD, from its own position. A member that was frozen and wakes up reads, at worst, entries
that another member handles by now; it takes no entry from that member, its commits are refused by
their epoch, and no handler starts after ``valid_until``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from streams.config import Flow
from streams.errors import ConfigError, Fenced, LogError, MemberFenced, Unavailable
from streams.log.protocol import (
    AppendAsOwners,
    Assignment,
    Commit,
    RebalanceListener,
    Submitted,
    Subscription,
    TopicPartition,
    Transaction,
)
from streams.log.redis.batch import RedisBatch
from streams.log.redis.client import Client
from streams.log.redis.fetcher import Fetchers
from streams.log.redis.keys import entry_id, entry_id_before
from streams.log.redis.leases import OwnedPartition
from streams.log.redis.membership import Membership
from streams.log.redis.offsets import OffsetCommits
from streams.log.redis.outputs import pack_outputs
from streams.log.redis.reader import StreamInfo
from streams.log.redis.retention import Trimmer
from streams.log.redis.topics import Topics
from streams.message import Record
from streams.text import get_logger

logger = get_logger("streams")

SMALL_BATCH = 16
"""A batch of at most this many entries is returned before the next request is sent: the group has
caught up, and the request would only delay the batch. After a larger batch, the server reads ahead
while it is handled."""

STABLE_HEARTBEAT = 1.0
"""Seconds between heartbeats, unless there are thousands of partitions."""

REBALANCE_HEARTBEAT = 0.1
"""Seconds between heartbeats while members come and go."""

ASSIGN_BATCH = 32
"""Partitions that are handed to the listener at once: it may have to read for each of them, and
leases are renewed between the batches."""


class RedisSubscription(Subscription):
    """A member of a group. Used by one thread at a time, but for :meth:`wakeup`.

    :param append_as_owners: appends as an owner of its assignments; None: these servers cannot do
        it.
    """

    def __init__(
        self,
        client: Client,
        trimmer: Trimmer,
        membership: Membership,
        group: str,
        listener: RebalanceListener,
        flow: Flow,
        topics: Topics,
        append_as_owners: AppendAsOwners | None,
    ) -> None:
        self._append_as_owners = append_as_owners
        self._trimmer = trimmer
        self._topics = topics
        self._membership = membership
        self._leases = membership.leases
        self._group = group
        self._listener = listener
        self._owned: dict[Assignment, OwnedPartition] = {}
        self._fetchers = Fetchers(client, group, flow, membership.inspect_streams_next)
        self._commits = OffsetCommits(client, membership, group, self._mark_lost)
        self._lost_untold: list[OwnedPartition] = []
        """Lost partitions that the listener has not been told of yet."""
        self._next_heartbeat = 0.0
        self._rebalancing_until = 0.0
        self._renewed_at = 0.0
        self._rotation = 0
        self._closed = False

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[RedisBatch]:
        if self._closed:
            raise Unavailable(f"{self._group}: the subscription is closed")
        until = time.monotonic() + timeout
        limit = max(1, limit)
        finished = False
        while True:
            now = time.monotonic()
            if now >= self._next_heartbeat or self._lost_untold:
                self._heartbeat()
            self._fetchers.interrupt_outdated()
            batches = self._take_fetched(limit)
            if batches and sum(map(len, batches)) <= SMALL_BATCH:
                return batches
            try:
                self._fetchers.send_reads(limit)
            except LogError:
                # Entries that were read are returned first; the next poll raises, if the read still
                # fails.
                if not batches:
                    raise
            if batches or finished:
                return batches
            seconds = min(until, self._next_heartbeat) - time.monotonic()
            readable, finished = self._fetchers.waiter.wait(seconds)
            self._fetchers.read_replies(readable)
            finished = finished or time.monotonic() >= until

    def _take_fetched(self, limit: int) -> list[RedisBatch]:
        """Entries read before, at most ``limit``, beginning with another partition each time."""
        batches: list[RedisBatch] = []
        with_entries = [each for each in self._owned.values() if each.fetched and not each.paused]
        if not with_entries:
            return batches
        self._rotation += 1
        start = self._rotation % len(with_entries)
        for owned in (*with_entries[start:], *with_entries[:start]):
            if limit <= 0:
                break
            entries, owned.fetched = owned.fetched, []
            if len(entries) > limit:
                entries, owned.fetched = entries[:limit], entries[limit:]
            limit -= len(entries)
            keys = owned.keys
            batch = RedisBatch(keys.topic, keys.partition, entries, owned.assignment)
            owned.lag_counter.add_batch(batch.offsets)
            batches.append(batch)
        return batches

    # -- pausing

    def pause(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            owned = self._owned.get(assignment)
            if owned is not None:
                owned.paused = True

    def resume(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            owned = self._owned.get(assignment)
            if owned is not None and owned.paused:
                owned.paused = False
                self._fetchers.is_outdated = True

    def wakeup(self) -> None:
        self._fetchers.waiter.wake()

    def begin_transaction(self) -> Transaction:
        raise ConfigError("a redis:// log has no transactions for a handler's own SQL")

    # -- committing

    def commit(self, commits: Sequence[Commit]) -> None:
        if self._closed:
            raise Unavailable(f"{self._group}: the subscription is closed")
        owned = [(o, each) for each in commits if (o := self._owned.get(each.assignment))]
        self._commits.commit([(o, each) for o, each in owned if o not in self._lost_untold])

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        self.commit(commits)
        on_submitted(True)

    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        if self._closed:
            raise Unavailable(f"{self._group}: the subscription is closed")
        owned: list[tuple[OwnedPartition, Commit]] = []
        for commit in commits:
            found = self._owned.get(commit.assignment)
            if found is None or found in self._lost_untold:
                raise Fenced(
                    f"{commit.assignment.topic}/{commit.assignment.partition}: group "
                    f"{self._group!r} has assigned it to another member; nothing was stored"
                )
            owned.append((found, commit))
        packed = pack_outputs(self._topics, outputs)
        self._commits.commit_with_records(
            owned, [keys.stream for keys in packed.partitions], packed.records
        )
        for keys in packed.partitions:
            self._trimmer.trim_if_due(keys)

    # -- membership

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        to_give_up = [o for each in assignments if (o := self._owned.get(each)) is not None]
        if not to_give_up:
            return
        self._lost_untold = [each for each in self._lost_untold if each not in to_give_up]
        self._remove(to_give_up)
        self._leases.release(to_give_up)
        self._next_heartbeat = 0.0

    def keep_alive(self) -> None:
        if self._closed:
            return
        self._renewed_at = time.monotonic()
        owned = [o for o in self._owned.values() if o not in self._lost_untold]
        result = self._membership.heartbeat(owned)
        self._mark_lost([*result.lost, *result.truncated])

    def _heartbeat(self) -> None:
        """Send a heartbeat, and apply the plan that follows from it."""
        now = self._renewed_at = time.monotonic()
        membership = self._membership
        stable_interval = min(
            max(STABLE_HEARTBEAT, len(self._leases.keys) / 500), membership.terms.heartbeat_interval
        )
        # Even if this heartbeat fails, the next does not follow at once.
        self._next_heartbeat = now + min(stable_interval, 2 * REBALANCE_HEARTBEAT)
        self._notify_lost()
        try:
            result = membership.heartbeat(list(self._owned.values()))
        except MemberFenced:
            self._mark_lost(list(self._owned.values()))
            self._notify_lost()
            raise
        if result.members_changed or result.plan.release or result.plan.acquire or result.lost:
            self._rebalancing_until = now + 3 * stable_interval
        is_rebalancing = now < self._rebalancing_until
        self._next_heartbeat = now + (
            min(REBALANCE_HEARTBEAT, stable_interval) if is_rebalancing else stable_interval
        )
        self._report_gaps(result.streams)
        self._mark_lost([*result.lost, *result.truncated])
        self._notify_lost()
        # A lease whose stream ends below the entries read is acquired again, at a position of the
        # stream.
        self._leases.release(result.truncated)
        revoked = set(result.plan.release)
        to_revoke = [each for each in self._owned.values() if each.partition in revoked]
        self._revoke(to_revoke)
        self._leases.release_inherited(revoked.difference(o.partition for o in to_revoke))
        acquire = sorted(result.plan.acquire)
        failure: Unavailable | None = None
        for start in range(0, len(acquire), ASSIGN_BATCH):
            if time.monotonic() - self._renewed_at > stable_interval:
                self.keep_alive()
            try:
                self._acquire(acquire[start : start + ASSIGN_BATCH])
            except Unavailable as error:
                failure = error  # the other partitions do not wait for these
        self._fetchers.disconnect_misrouted()
        for owned in list(self._owned.values()):
            self._trimmer.trim_if_due(owned.keys)
        if failure is not None:
            raise failure

    def _report_gaps(self, streams: dict[TopicPartition, StreamInfo]) -> None:
        """Report entries that others trimmed or deleted before this group could read them."""
        for owned in self._owned.values():
            stream = streams.get(owned.partition)
            if stream is None or owned.fetched or entry_id(stream.last) != owned.last_read_id:
                continue
            if owned.lag_counter.entries_read == stream.added:
                continue
            owned.count_corrected = True
            missing = owned.lag_counter.recount_at_end(stream.added)
            if missing:
                logger.error(
                    "%s: %d messages of %s were trimmed or deleted before they were read",
                    self._group, missing, owned.keys,
                )  # fmt: skip

    def _mark_lost(self, lost: Iterable[OwnedPartition]) -> None:
        for owned in lost:
            if owned.assignment in self._owned and owned not in self._lost_untold:
                owned.assignment.valid_until = float("-inf")
                self._lost_untold.append(owned)

    def _notify_lost(self) -> None:
        lost, self._lost_untold = self._lost_untold, []
        if lost:
            self._remove(lost)
            self._listener.lost([each.assignment for each in lost])

    def _revoke(self, revoked: Sequence[OwnedPartition]) -> None:
        if not revoked:
            return
        try:
            # The listener may still commit.
            self._listener.revoked([each.assignment for each in revoked])
        finally:
            self._remove(revoked)
            self._leases.release(revoked)
            self._lost_untold = [each for each in self._lost_untold if each not in revoked]

    def _acquire(self, partitions: Sequence[TopicPartition]) -> None:
        acquired = self._leases.acquire(partitions)
        if not acquired:
            return
        self._owned.update((owned.assignment, owned) for owned in acquired)
        for owned in acquired:
            owned.assignment.append_as_owners = self._append_as_owners
        try:
            self._listener.assigned([owned.assignment for owned in acquired])
        except BaseException:
            self._remove(acquired)
            self._leases.release(acquired)
            raise
        for owned in acquired:
            position, stored = owned.assignment.position, owned.stored
            owned.last_read_id = entry_id_before(position)
            entries_read = owned.stream.entries_below(position)
            if entries_read is None and stored is not None and position == stored.position:
                entries_read = stored.entries_read
            owned.lag_counter.entries_read = entries_read
            self._fetchers.add(owned)
        self._leases.create_native_groups([owned for owned in acquired if owned.stored is None])

    def _remove(self, removed: Sequence[OwnedPartition]) -> None:
        for owned in removed:
            owned.assignment.valid_until = float("-inf")
            owned.fetched = []
            self._owned.pop(owned.assignment, None)
        self._fetchers.remove(removed)

    def close(self) -> None:
        if self._closed:
            return
        try:
            self._notify_lost()
            self._revoke(list(self._owned.values()))
        finally:
            self._closed = True
            self._membership.leave()
            self._fetchers.close()
