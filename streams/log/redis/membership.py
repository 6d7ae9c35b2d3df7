"""A member of a group: its heartbeat, and the leases of its partitions.

Every partition's lease is beside the partition, in the hash that also holds the group's place
there, so that one script can check the one before it stores the other, on any node of a cluster.
Safety rests on that hash alone. Who the members are stands in one hash of the group; it only says
how the partitions should be shared out (:mod:`streams.log.membership`), so it may be late, or lost,
and nothing worse happens than a rebalance.

No clock of a server decides anything, as it may be stepped. Each confirmation counts a number in
the row up; whoever has seen a row stand unchanged for its whole length, on its own monotonic
clock (:class:`streams.log.membership.StalenessTracker`), takes the lease by compare-and-set, or
removes the member. An owner counts its own time from before it asked. The time that is stored
beside (``until``) is for people, and for refusing to move a group that seems to run.

Anybody can write into these keys. What makes no sense there is passed over and written anew, save
a position: without it nobody knows where to go on, so that is an error that says what to do.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.errors import LogError, NotFound, TopicMismatch, Unavailable
from streams.log.membership import (
    INFINITY,
    UNOWNED,
    Lease,
    Member,
    Plan,
    StalenessTracker,
    lease_length,
    plan,
)
from streams.log.names import member_fenced_error
from streams.log.protocol import Assignment, Committed, StaticMember, TopicPartition
from streams.log.redis.batch import RawEntries
from streams.log.redis.client import Client, Command, script_command
from streams.log.redis.groups import Groups
from streams.log.redis.keys import (
    PartitionKeys,
    entry_id,
    entry_id_before,
    members_key,
    offset_of,
    topics_key,
)
from streams.log.redis.lag_counter import LagCounter
from streams.log.redis.reader import StreamInfo, parse_stream_info
from streams.log.redis.stored_values import MAX_DIGITS, damaged_field, parse_member_row, printable
from streams.log.redis.topics import Topics
from streams.text import get_logger
from streams.wire import parse_int

logger = get_logger("streams")

RENEW_BATCH = 500
"""Partitions renewed by one script call, where they are all on one server."""


LeaseSnapshot = tuple[bytes, bytes, bytes, bytes]
"""A lease as it stands: owner, epoch, how often it was confirmed, until when."""


class StoredOffset(NamedTuple):
    """A group's place in a partition, as this member knows it."""

    position: int
    progress: str = ""
    entries_read: int | None = None


class OwnedPartition:
    """A partition that this member owns."""

    __slots__ = (
        "assignment",
        "committed_version",
        "count_corrected",
        "fetched",
        "keys",
        "lag_counter",
        "last_read_id",
        "lease_key",
        "paused",
        "sent_version",
    )

    def __init__(self, assignment: Assignment, keys: PartitionKeys, lease_key: bytes) -> None:
        self.assignment = assignment
        self.keys = keys
        self.lease_key = lease_key
        self.last_read_id = b"0-0"
        """ID of the last entry read."""
        self.fetched: RawEntries = []
        """Read, and not delivered yet."""
        self.lag_counter = LagCounter(None)
        self.count_corrected = False
        """The trail knows better than what was last committed."""
        self.paused = False
        self.committed_version = 0
        """Of the last commit."""
        self.sent_version = 0
        """The greatest version of a commit that was sent, whatever became of it."""

    @property
    def partition(self) -> TopicPartition:
        """Topic and partition."""
        return self.assignment.topic, self.assignment.partition


class AcquiredLease(NamedTuple):
    """A lease that was taken, and what was stored there."""

    keys: PartitionKeys
    epoch: int
    stored: StoredOffset | None
    stream: StreamInfo
    valid_until: float
    stored_beyond_end: int | None
    """The place that was stored, where it lies beyond the stream's end."""


@dataclass(slots=True)
class HeartbeatResult:
    """What came of a heartbeat."""

    plan: Plan = field(default_factory=Plan)
    members_changed: bool = False
    """The members are not those of the last time."""
    lost: list[OwnedPartition] = field(default_factory=list)
    """Somebody else's by now, or gone with all that the server had."""
    truncated: list[OwnedPartition] = field(default_factory=list)
    """Still one's own, but their stream ends below what was read of it."""
    streams: dict[TopicPartition, StreamInfo] = field(default_factory=dict)
    """What is known of the streams of what is owned."""


class Membership:
    """One member of a group. Used by one thread at a time."""

    def __init__(
        self,
        client: Client,
        topics: Topics,
        groups: Groups,
        group: str,
        subscribed: Sequence[str],
        trim_margin: int,
        static: StaticMember | None = None,
    ) -> None:
        self.member_id = str(
            static or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        )
        self._static_name = static.name if static else ""
        self._client = client
        self._topics = topics
        self._groups = groups
        self._group = group
        self._subscribed = tuple(subscribed)
        self._trim_margin = trim_margin
        self.terms = client.settings.terms
        self._lease_ms = int(self.terms.lease * 1000)
        self._keys: dict[TopicPartition, PartitionKeys] = {}
        """Of all topics that any member reads: who takes what depends on all of them."""
        self._partition_counts: dict[str, int] = {}
        self._set_topics(self._subscribed)
        self._initial_offsets = groups.initial_offsets(group, subscribed)
        self.stored_offsets: dict[TopicPartition, StoredOffset] = {}
        """Where the group stood last, in all partitions this member ever owned."""
        self._highest_epochs: dict[TopicPartition, int] = {}
        self._staleness = StalenessTracker(self.terms.heartbeat_interval)
        self._static_holders: dict[str, str] = (
            {self._static_name: self.member_id} if self._static_name else {}
        )
        """Who has a static name now."""
        self._heartbeats = 0
        self._expired: dict[TopicPartition, LeaseSnapshot] = {}
        """Foreign leases whose length is over, as they stood all the time."""
        self._inherited: dict[TopicPartition, bytes] = {}
        """Leases of a predecessor, and its ID."""
        self._dead_members: dict[bytes, bytes] = {}
        """Members whose rows stood unchanged for their whole length, to be removed."""
        self._epochs_missing = False
        """The last heartbeat found partitions without their epochs, which had some before."""
        self._live_ids: frozenset[str] = frozenset()
        self._joined = False
        """The server has been told of this member."""
        self._recovering_until = 0.0
        """After the server lost everything, members must find each other again: until then only
        what this member owned before is taken."""
        self._outage_logged = False
        self._next_inspection = 0.0
        """When the streams are looked at again."""

    # -- heartbeats

    @property
    def partition_count(self) -> int:
        """How many partitions its topics have."""
        return len(self._keys)

    def inspect_streams_next(self) -> None:
        """Look at the streams at the next heartbeat: something may have happened to them."""
        self._next_inspection = 0.0

    def join(self) -> None:
        """Become a member, so that the others count this one. A static one takes its name over.

        :raises LogError: that could not be done.
        """
        self._client.execute(self._heartbeat_command(join=True))
        self._joined = True

    def _set_topics(self, names: Iterable[str]) -> bool:
        """Look after these topics, whoever reads them; whether they are others than before."""
        counts: dict[str, int] = {}
        all_keys: dict[TopicPartition, PartitionKeys] = {}
        for name in sorted({*names, *self._subscribed}):
            try:
                partitions = self._topics.all_partition_keys(name)
            except LogError as error:
                if name in self._subscribed or not isinstance(error, NotFound | TopicMismatch):
                    raise
                continue  # deleted, and its readers do not know yet
            counts[name] = len(partitions)
            all_keys.update(((name, keys.partition), keys) for keys in partitions)
        changed = counts != self._partition_counts
        self._partition_counts, self._keys = counts, all_keys
        return changed

    def heartbeat(self, owned: Sequence[OwnedPartition]) -> HeartbeatResult:
        """Say that this member lives, extend its leases, and see who has the others.

        :raises MemberFenced: another process has this static member's name.
        :raises LogError: nothing of that could be done.
        """
        result = HeartbeatResult()
        sent = time.monotonic()
        inspect_streams = sent >= self._next_inspection
        owned_by_partition = {each.partition: each for each in owned}
        partitions = list(self._keys)
        size = 1 if self._client.servers.is_cluster else RENEW_BATCH
        chunks = [partitions[start : start + size] for start in range(0, len(partitions), size)]
        replies = self._client.execute_all(
            [
                self._heartbeat_command(),
                *(
                    self._renew_command(chunk, owned_by_partition, inspect_streams)
                    for chunk in chunks
                ),
            ]
        )
        if not all(isinstance(reply, LogError) for reply in replies):
            self._staleness.observe(time.monotonic())
        self._epochs_missing = False
        self._expired.clear()
        self._inherited.clear()
        leases: dict[TopicPartition, Lease] = {}
        failure: LogError | None = None
        for chunk, rows in zip(chunks, replies[1:], strict=True):
            if isinstance(rows, LogError):
                failure = rows
                # What is not known is nobody's to take, and mine until it is known not to be.
                for partition in chunk:
                    leases[partition] = (
                        Lease(
                            self.member_id, owned_by_partition[partition].assignment.epoch, INFINITY
                        )
                        if partition in owned_by_partition
                        else Lease("?", 0, INFINITY)
                    )
                continue
            for partition, row in zip(chunk, rows, strict=True):
                leases[partition] = self._read_lease(
                    result, sent, owned_by_partition.get(partition), partition, row
                )
        members = replies[0]
        if isinstance(members, LogError):
            if isinstance(failure, LogError):
                raise members
            failure = members
        self._log_outage_once(failure)
        if inspect_streams and failure is None:
            self._next_inspection = sent + self.terms.lease
        # What has not answered is watched anew: its owners could not reach it either.
        answered: set[Hashable] = {
            partition
            for chunk, rows in zip(chunks, replies[1:], strict=True)
            if not isinstance(rows, LogError)
            for partition in chunk
        }
        if isinstance(members, LogError):
            self._staleness.keep_only(answered)
        else:
            self._staleness.keep_only(answered.union(members[1::2]))
            held = {
                each.partition for each in owned_by_partition.values() if each not in result.lost
            }
            self._update_plan(result, sent, members, leases, held)
        return result

    def renew_leases(self, owned: Sequence[OwnedPartition]) -> list[OwnedPartition]:
        """Extend the leases, and nothing else: those that are not one's own any more.

        :raises LogError: it could not be done for any.
        """
        result = self.heartbeat(owned)
        return [*result.lost, *result.truncated]

    def _heartbeat_command(self, *, join: bool = False) -> Command:
        self._heartbeats += 1
        dead_members, self._dead_members = self._dead_members, {}
        return script_command(
            self._group, "beat", [members_key(self._group)],
            self.member_id, self._static_name, int(join), self._heartbeats, self._lease_ms,
            ",".join(self._subscribed),
            *(word for row in dead_members.items() for word in row),
        )  # fmt: skip

    def _renew_command(
        self,
        partitions: Iterable[TopicPartition],
        owned_by_partition: dict[TopicPartition, OwnedPartition],
        inspect_streams: bool,
    ) -> Command:
        keys: list[bytes] = []
        args: list[Any] = [self.member_id, self._lease_ms, self._group, int(inspect_streams)]
        for partition in partitions:
            keys_of_partition = self._keys[partition]
            keys += (keys_of_partition.group_key(self._group), keys_of_partition.stream)
            owned = owned_by_partition.get(partition)
            if owned is None:
                args += (0, b"0-0", "")
                continue
            entries_read: int | None = None
            if owned.count_corrected and partition in self.stored_offsets:
                entries_read = owned.lag_counter.entries_below(
                    self.stored_offsets[partition].position
                )
            args += (
                owned.assignment.epoch,
                owned.last_read_id,
                "" if entries_read is None else entries_read,
            )
        return script_command(self._group, "renew", keys, *args)

    def _read_lease(
        self,
        result: HeartbeatResult,
        sent: float,
        owned: OwnedPartition | None,
        partition: TopicPartition,
        row: Sequence[Any],
    ) -> Lease:
        state, owner, stored_epoch, confirmations, until, lease_ms, *stream = row
        snapshot: LeaseSnapshot = (
            bytes(owner),
            bytes(stored_epoch),
            bytes(confirmations),
            bytes(until),
        )
        epoch = parse_int(snapshot[1], MAX_DIGITS) or 0
        self._epochs_missing |= not any(snapshot) and self._highest_epochs.get(partition, 0) > 0
        self._highest_epochs[partition] = max(epoch, self._highest_epochs.get(partition, 0))
        if owned is not None:
            if state == 0:
                result.lost.append(owned)
            else:
                owned.assignment.valid_until = self.terms.valid_until(sent)
                owned.count_corrected = False
                if stream:
                    result.streams[partition] = parse_stream_info(stream)
                if state == 2:
                    result.truncated.append(owned)
                elif state == 3:
                    self._next_inspection = 0.0
                    owned.lag_counter.entries_read = None
                return Lease(self.member_id, epoch, INFINITY)
        if not owner:
            return Lease("", epoch, sent) if epoch else UNOWNED
        name = printable(snapshot[0])
        current = self._static_holders.get(name.partition(":")[0]) if ":" in name else None
        if self.member_id in (name, current):
            # A predecessor's of the same name, or taken by a request whose answer never came.
            self._inherited[partition] = snapshot[0]
            return Lease(self.member_id, epoch, INFINITY)
        stored_lease_ms = parse_int(bytes(lease_ms), MAX_DIGITS)
        remaining = self._staleness.remaining(
            partition,
            snapshot,
            lease_length(
                None if stored_lease_ms is None else stored_lease_ms / 1000, self.terms.lease
            ),
        )
        if not remaining:
            self._expired[partition] = snapshot
        return Lease(current or name, epoch, sent + remaining)

    def _update_plan(
        self,
        result: HeartbeatResult,
        sent: float,
        reply: Sequence[Any],
        leases: dict[TopicPartition, Lease],
        held: Collection[TopicPartition],
    ) -> None:
        is_known, *words = reply
        if is_known < 0:
            raise member_fenced_error(self._group, self._static_name)
        if self._joined and not is_known:
            self._recover_from_loss(sent)
        self._joined = True
        rows = self._live_members(sent, dict(zip(words[::2], words[1::2], strict=True)))
        self._static_holders = {row.id.partition(":")[0]: row.id for row in rows if ":" in row.id}
        live_ids = frozenset(row.id for row in rows)
        result.members_changed, self._live_ids = live_ids != self._live_ids, live_ids
        if self._set_topics(topic for row in rows for topic in row.topics):
            # Of some topics it is not known yet who has what: the next heartbeat asks.
            result.members_changed = True
            return
        result.plan = plan(self.member_id, sent, rows, self._partition_counts, leases, held)
        if sent < self._recovering_until:
            owned_before = {
                partition: epoch
                for partition, epoch in result.plan.acquire.items()
                if partition in self.stored_offsets
            }
            result.plan = Plan(
                result.plan.release, owned_before, result.plan.renew, self._recovering_until
            )

    def _live_members(self, sent: float, rows: dict[bytes, bytes]) -> list[Member]:
        """This member and the others that are alive."""
        alive = [Member(self.member_id, self._subscribed, INFINITY)]
        for id, text in rows.items():
            row = parse_member_row(text)
            lease = lease_length(row.lease if row else None, self.terms.lease)
            remaining = self._staleness.remaining(id, text, lease)
            if not remaining:
                self._dead_members[id] = text
            elif row is not None and id:
                alive.append(Member(printable(id), row.topics, sent + remaining))
        return alive

    def _recover_from_loss(self, now: float) -> None:
        """The server does not know this member: others took it for dead, or all is lost there.
        Write again what is known here; what others have written meanwhile stays. After a loss all
        members find themselves in the same state, so none takes what another one may own."""
        logger.warning(
            "%s: not a member any more, as this process stood still or the server has lost its "
            "data; joining again",
            self._group,
        )
        if self._epochs_missing:
            self._recovering_until = now + self.terms.lease
        try:
            for name in self._subscribed:
                self._topics.restore(name)
            self._groups.register(self._group, self._subscribed)
            key = topics_key(self._group)
            for name in self._subscribed:
                positions = " ".join(
                    f"{partition}:{entry_id(start).decode()}"
                    for (topic, partition), start in self._initial_offsets.items()
                    if topic == name
                )
                if positions:
                    self._client.execute(
                        script_command(self._group, "begin", [key], name, positions)
                    )
        except LogError as error:
            logger.warning("%s: not all could be written again: %s", self._group, error)

    def _log_outage_once(self, failure: LogError | None) -> None:
        if failure is not None and not self._outage_logged:
            logger.warning("%s: a part of the servers does not answer: %s", self._group, failure)
        self._outage_logged = failure is not None

    # -- leases

    def acquire(self, partitions: Sequence[TopicPartition]) -> list[AcquiredLease]:
        """Take these leases; those that could be taken."""
        sent = time.monotonic()
        commands: list[Command] = []
        for partition in partitions:
            keys = self._keys[partition]
            stored = self.stored_offsets.get(partition)
            if stored is None and partition in self._initial_offsets:
                stored = StoredOffset(self._initial_offsets[partition])
            commands.append(
                script_command(
                    str(keys), "take", (keys.group_key(self._group), keys.stream),
                    self.member_id, self._lease_ms, self._group, self._trim_margin,
                    entry_id(stored.position) if stored else b"",
                    stored.progress if stored else "",
                    "" if stored is None or stored.entries_read is None else stored.entries_read,
                    self._highest_epochs.get(partition, 0),
                    self._inherited.get(partition, b""),
                    *self._expired.get(partition, (b"", b"", b"", b"")),
                )
            )  # fmt: skip
        acquired: list[AcquiredLease] = []
        failure: LogError | None = None
        for partition, reply in zip(partitions, self._client.execute_all(commands), strict=True):
            if isinstance(reply, LogError):
                if isinstance(reply, Unavailable):
                    self._log_outage_once(reply)
                else:
                    failure = reply
                continue
            if not reply[0]:
                continue
            if reply[0] < 0:
                keys = self._keys[partition]
                failure = TopicMismatch(
                    f"{keys}: "
                    + damaged_field(
                        keys.group_key(self._group), "position", reply[1],
                        f"set it by `streams reset {self._group} {keys.topic} "
                        f"--partition {keys.partition} --to PLACE`",
                    )
                )  # fmt: skip
                continue
            _, epoch, position, progress, read, *stream, beyond = reply
            found: StoredOffset | None = None
            if position:
                text = bytes(progress or b"").decode("ascii", "replace")
                found = StoredOffset(offset_of(position), text, int(read) if read else None)
                self.stored_offsets[partition] = found
            self._highest_epochs[partition] = epoch
            valid_until = self.terms.valid_until(sent)
            stored_beyond_end = offset_of(beyond) if beyond else None
            acquired.append(
                AcquiredLease(
                    self._keys[partition],
                    epoch,
                    found,
                    parse_stream_info(stream),
                    valid_until,
                    stored_beyond_end,
                )
            )
        if failure is not None:
            self.release([self.as_owned(each) for each in acquired])
            raise failure
        return acquired

    def as_owned(self, acquired: AcquiredLease) -> OwnedPartition:
        """A taken lease as an assignment."""
        stored, keys = acquired.stored, acquired.keys
        committed = Committed(stored.position, stored.progress) if stored else None
        assignment = Assignment(
            keys.topic, keys.partition, acquired.epoch, committed, acquired.valid_until
        )
        assignment.stored_beyond_end = acquired.stored_beyond_end
        return OwnedPartition(assignment, keys, keys.group_key(self._group))

    def create_native_groups(self, owned: Sequence[OwnedPartition]) -> None:
        """Make native groups where this one has no place yet, so that until its first commit
        nothing is trimmed that it has not read."""
        commands: list[Command] = []
        for each in owned:
            position, total = each.assignment.position, each.lag_counter.entries_read
            read = () if total is None else ("ENTRIESREAD", total)
            stream, last = each.keys.stream, entry_id_before(position)
            call = ("XGROUP", "CREATE", stream, self._group, last, *read)
            commands.append(Command(str(each.keys), stream, *call))
        for reply in self._client.execute_all(commands):
            if isinstance(reply, Unavailable):
                logger.info("%s: not shown by Redis's own tools yet: %s", self._group, reply)

    def release(self, owned: Iterable[OwnedPartition]) -> None:
        """Set leases free; what cannot be told now runs out by itself."""
        self._send_releases(
            script_command(
                str(each.keys), "release", [each.lease_key], self.member_id, each.assignment.epoch
            )
            for each in owned
        )

    def release_inherited(self, partitions: Iterable[TopicPartition]) -> None:
        """Set leases free that only bear this member's name."""
        self._send_releases(
            script_command("expel", "expel", [self._keys[partition].group_key(self._group)], owner)
            for partition in partitions
            if (owner := self._inherited.get(partition))
        )

    def _send_releases(self, commands: Iterable[Command]) -> None:
        for reply in self._client.execute_all(list(commands)):
            if isinstance(reply, LogError):
                logger.info("%s: a lease was not released: %s", self._group, reply)

    def leave(self) -> None:
        """Not a member any more; what cannot be told now runs out by itself."""
        key = members_key(self._group)
        try:
            self._client.execute(Command(self._group, key, "HDEL", key, self.member_id))
        except LogError as error:
            logger.info("%s: could not take leave: %s", self._group, error)
