"""A member of a group: its heartbeat, and the plan that follows from it.

Safety rests on the leases alone (:mod:`streams.log.redis.leases`). The hash of the group's members
only says how the partitions should be shared out (:mod:`streams.log.membership`), so it may be
late, or lost, and nothing worse happens than a rebalance.

No server's clock decides anything, as it may be stepped. Each confirmation increments a number in
the row; a member that has seen a row unchanged for its lease's length, on its own monotonic clock
(:class:`streams.log.membership.StalenessTracker`), takes the lease by compare-and-set, or removes
the row's member. An owner counts its own lease from before its request. The stored time (``until``)
is for people, and for refusing to reset a group that seems to run.

Other programs can write into these keys. A value that makes no sense is ignored and rewritten,
except a position: without it the place to continue at is unknown, so the error says what to do.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from streams.errors import LogError, NotFound, TopicMismatch
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
from streams.log.protocol import StaticMember, TopicPartition
from streams.log.redis.client import Client, Command, key_command, script_command
from streams.log.redis.groups import Groups, format_initial_offsets
from streams.log.redis.keys import PartitionKeys, members_key, topics_key
from streams.log.redis.leases import (
    NOT_OWNED,
    STREAM_TRUNCATED,
    STREAM_UNCERTAIN,
    OwnedPartition,
    PartitionLeases,
    Renewal,
    parse_renewal,
)
from streams.log.redis.reader import StreamInfo
from streams.log.redis.stored_values import MAX_DIGITS, parse_member_row, printable
from streams.log.redis.topics import Topics
from streams.text import get_logger
from streams.wire import parse_int

logger = get_logger("streams")

RENEW_BATCH = 500
"""Partitions renewed by one script call, if they are all on one server."""


@dataclass(slots=True)
class HeartbeatResult:
    """The result of a heartbeat."""

    plan: Plan = field(default_factory=Plan)
    members_changed: bool = False
    """Whether the members have changed since the last heartbeat."""
    lost: list[OwnedPartition] = field(default_factory=list)
    """Partitions that another member owns by now, or whose lease is gone with the server's data."""
    truncated: list[OwnedPartition] = field(default_factory=list)
    """Partitions still owned, whose streams end below the entries read from them."""
    streams: dict[TopicPartition, StreamInfo] = field(default_factory=dict)
    """The streams of the owned partitions, as far as they are known."""


class _MemberRows(NamedTuple):
    """What the script ``heartbeat`` returns."""

    is_known: bool
    """Whether the server had this member's row."""
    is_fenced: bool
    """Another process has this member's static name; nothing was written."""
    others: dict[bytes, bytes]
    """The rows of the other members, by their IDs."""


def _parse_member_rows(reply: Sequence[Any]) -> _MemberRows:
    state, *rest = reply
    if state < 0:
        return _MemberRows(is_known=False, is_fenced=True, others={})
    others = dict(zip(rest[::2], rest[1::2], strict=True))
    return _MemberRows(is_known=bool(state), is_fenced=False, others=others)


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
        process = f"{socket.gethostname()}-{os.getpid()}"
        self.member_id = str(static or f"{process}-{secrets.token_hex(8)}")
        self._static_name = static.name if static else ""
        self._client = client
        self._topics = topics
        self._groups = groups
        self._group = group
        self._subscribed = tuple(subscribed)
        self.terms = client.settings.terms
        self._lease_ms = int(self.terms.lease * 1000)
        self.leases = PartitionLeases(client, group, self.member_id, trim_margin)
        self._partition_counts: dict[str, int] = {}
        self._set_topics(self._subscribed)
        self.leases.initial_offsets = groups.initial_offsets(group, subscribed)
        self._staleness = StalenessTracker(self.terms.heartbeat_interval)
        self._static_holders = {self._static_name: self.member_id} if static else {}
        """The current member of each static name."""
        self._heartbeats = 0
        self._dead_members: dict[bytes, bytes] = {}
        """Members whose rows have expired by this member's clock, to be removed."""
        self._epochs_missing = False
        """Whether the last heartbeat found partitions without an epoch that had one before."""
        self._live_ids: frozenset[str] = frozenset()
        self._joined = False
        """Whether the server has had this member's row."""
        self._recovering_until = 0.0
        """After the server lost everything, members must find each other again: until then this
        member takes only what it owned before."""
        self._next_inspection = 0.0
        """When the streams are inspected again."""

    # -- heartbeats

    def inspect_streams_next(self) -> None:
        """Have the next heartbeat inspect the streams: they may have been changed."""
        self._next_inspection = 0.0

    def join(self) -> None:
        """Join the group, so that the other members count this one. A static member takes its name
        over."""
        self._client.execute(self._heartbeat_command(join=True))
        self._joined = True

    def _set_topics(self, names: Iterable[str]) -> bool:
        """Set the topics that the group reads; returns whether they have changed."""
        counts: dict[str, int] = {}
        all_keys: dict[TopicPartition, PartitionKeys] = {}
        for name in sorted({*names, *self._subscribed}):
            try:
                partitions = self._topics.all_partition_keys(name)
            except LogError as error:
                if name in self._subscribed or not isinstance(error, NotFound | TopicMismatch):
                    raise
                continue  # the topic was deleted, and its members do not know yet
            counts[name] = len(partitions)
            all_keys.update(((name, keys.partition), keys) for keys in partitions)
        changed = counts != self._partition_counts
        self._partition_counts, self.leases.keys = counts, all_keys
        return changed

    def heartbeat(self, owned: Sequence[OwnedPartition]) -> HeartbeatResult:
        """Confirm this member and its leases, and read the owners of the other partitions.

        :raises MemberFenced: another process has this static member's name.
        """
        result = HeartbeatResult()
        sent = time.monotonic()
        inspect_streams = sent >= self._next_inspection
        owned_by_partition = {each.partition: each for each in owned}
        partitions = list(self.leases.keys)
        size = 1 if self._client.servers.is_cluster else RENEW_BATCH
        chunks = [partitions[start : start + size] for start in range(0, len(partitions), size)]
        renew = self.leases.renew_command
        renewals = [renew(chunk, owned_by_partition, inspect_streams) for chunk in chunks]
        replies = self._client.execute_all([self._heartbeat_command(), *renewals])
        heartbeat, *lease_replies = replies
        if not all(isinstance(reply, LogError) for reply in replies):
            self._staleness.observe(time.monotonic())
        self._epochs_missing = False
        self.leases.expired.clear()
        self.leases.inherited.clear()
        leases: dict[TopicPartition, Lease] = {}
        answered: set[Hashable] = set()
        failure: LogError | None = None
        for chunk, rows in zip(chunks, lease_replies, strict=True):
            if isinstance(rows, LogError):
                failure = rows
                for partition in chunk:
                    mine = owned_by_partition.get(partition)
                    # A lease of unknown state is not taken, and this member's own leases stay its
                    # own.
                    leases[partition] = (
                        Lease(self.member_id, mine.assignment.epoch, INFINITY)
                        if mine is not None
                        else Lease("?", 0, INFINITY)
                    )
                continue
            answered.update(chunk)
            for partition, row in zip(chunk, rows, strict=True):
                mine = owned_by_partition.get(partition)
                renewal = parse_renewal(row)
                leases[partition] = self._read_lease(result, sent, mine, partition, renewal)
        if isinstance(heartbeat, LogError):
            if failure is not None:
                raise heartbeat
            failure = heartbeat
        self.leases.log_outage_once(failure)
        if inspect_streams and failure is None:
            self._next_inspection = sent + self.terms.lease
        # Lease owners could not reach a server that did not answer either: the wait for their
        # leases starts over.
        if isinstance(heartbeat, LogError):
            self._staleness.keep_only(answered)
        else:
            members = _parse_member_rows(heartbeat)
            self._staleness.keep_only(answered.union(members.others))
            held = owned_by_partition.keys() - {each.partition for each in result.lost}
            self._update_plan(result, sent, members, leases, held)
        return result

    def _heartbeat_command(self, *, join: bool = False) -> Command:
        self._heartbeats += 1
        dead_members, self._dead_members = self._dead_members, {}
        return script_command(
            self._group, "heartbeat", [members_key(self._group)],
            self.member_id, self._static_name, int(join), self._heartbeats, self._lease_ms,
            ",".join(self._subscribed),
            *(word for row in dead_members.items() for word in row),
        )  # fmt: skip

    def _read_lease(
        self,
        result: HeartbeatResult,
        sent: float,
        owned: OwnedPartition | None,
        partition: TopicPartition,
        renewal: Renewal,
    ) -> Lease:
        snapshot = renewal.lease
        epoch = parse_int(snapshot.epoch, MAX_DIGITS) or 0
        highest_epoch = self.leases.highest_epochs.get(partition, 0)
        self._epochs_missing |= not any(snapshot) and highest_epoch > 0
        self.leases.highest_epochs[partition] = max(epoch, highest_epoch)
        if owned is not None:
            if renewal.state == NOT_OWNED:
                result.lost.append(owned)
            else:
                owned.assignment.valid_until = self.terms.valid_until(sent)
                owned.count_corrected = False
                if renewal.stream is not None:
                    result.streams[partition] = renewal.stream
                if renewal.state == STREAM_TRUNCATED:
                    result.truncated.append(owned)
                elif renewal.state == STREAM_UNCERTAIN:
                    self._next_inspection = 0.0
                    owned.lag_counter.entries_read = None
                return Lease(self.member_id, epoch, INFINITY)
        if not snapshot.owner:
            return Lease("", epoch, sent) if epoch else UNOWNED
        name = printable(snapshot.owner)
        current = self._static_holders.get(name.partition(":")[0]) if ":" in name else None
        if self.member_id in (name, current):
            # The lease of a predecessor with the same name, or one taken by a request that got no
            # answer.
            self.leases.inherited[partition] = snapshot.owner
            return Lease(self.member_id, epoch, INFINITY)
        stored_ms = parse_int(renewal.lease_ms, MAX_DIGITS)
        length = lease_length(None if stored_ms is None else stored_ms / 1000, self.terms.lease)
        remaining = self._staleness.remaining(partition, snapshot, length)
        if not remaining:
            self.leases.expired[partition] = snapshot
        return Lease(current or name, epoch, sent + remaining)

    def _update_plan(
        self,
        result: HeartbeatResult,
        sent: float,
        members: _MemberRows,
        leases: dict[TopicPartition, Lease],
        held: Collection[TopicPartition],
    ) -> None:
        if members.is_fenced:
            raise member_fenced_error(self._group, self._static_name)
        if self._joined and not members.is_known:
            self._recover_from_loss(sent)
        self._joined = True
        rows = self._live_members(sent, members.others)
        self._static_holders = {row.id.partition(":")[0]: row.id for row in rows if ":" in row.id}
        live_ids = frozenset(row.id for row in rows)
        result.members_changed, self._live_ids = live_ids != self._live_ids, live_ids
        if self._set_topics(topic for row in rows for topic in row.topics):
            # The owners of some topics' partitions are not known yet: the next heartbeat asks.
            result.members_changed = True
            return
        result.plan = plan(self.member_id, sent, rows, self._partition_counts, leases, held)
        if sent < self._recovering_until:
            stored, acquire = self.leases.stored_offsets, result.plan.acquire
            owned_before = {each: epoch for each, epoch in acquire.items() if each in stored}
            until = self._recovering_until
            result.plan = replace(result.plan, acquire=owned_before, replan_at=until)

    def _live_members(self, sent: float, rows: dict[bytes, bytes]) -> list[Member]:
        """The rows of this member and the others that are alive."""
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
        """Recover when the server does not know this member: others took it for dead, or the server
        lost its data. Write again what this member knows, without overwriting what others have
        written meanwhile. After a loss all members do so, and none takes a partition that another
        one may own."""
        logger.warning(
            "%s: no longer a member, because this process was frozen or the server has lost its "
            "data; rejoining",
            self._group,
        )
        if self._epochs_missing:
            self._recovering_until = now + self.terms.lease
        try:
            for name in self._subscribed:
                self._topics.restore(name)
            self._groups.register(self._group, self._subscribed)
            key, initial_offsets = topics_key(self._group), self.leases.initial_offsets.items()
            for name in self._subscribed:
                positions = {p: at for (topic, p), at in initial_offsets if topic == name}
                text = format_initial_offsets(positions)
                if text:
                    command = script_command(self._group, "initial_offsets", [key], name, text)
                    self._client.execute(command)
        except LogError as error:
            logger.warning("%s: could not restore all group metadata: %s", self._group, error)

    def leave(self) -> None:
        """Leave the group; if the server cannot be reached now, the row expires by itself."""
        key = members_key(self._group)
        try:
            self._client.execute(key_command(self._group, "HDEL", key, self.member_id))
        except LogError as error:
            logger.info("%s: could not leave the group: %s", self._group, error)
