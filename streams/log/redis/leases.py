"""Takes, extends and releases the leases of a member's partitions.

A partition's lease is in the partition's hash slot, in the hash that also holds the group's
position there, so that one script can check the lease before it stores the position, on any node of
a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.errors import LogError, TopicMismatch, Unavailable
from streams.log.protocol import Assignment, Committed, TopicPartition
from streams.log.redis.batch import RawEntries
from streams.log.redis.client import Client, Command, group_command, script_command
from streams.log.redis.keys import PartitionKeys, entry_id, entry_id_before, offset_of
from streams.log.redis.lag_counter import LagCounter
from streams.log.redis.reader import StreamInfo, parse_stream_info
from streams.log.redis.stored_values import count_text, damaged_field
from streams.text import get_logger

logger = get_logger("streams")


class LeaseSnapshot(NamedTuple):
    """A lease as read from Redis."""

    owner: bytes = b""
    epoch: bytes = b""
    confirmations: bytes = b""
    """How often the lease was confirmed."""
    until: bytes = b""


NOT_OWNED = 0
"""State of a lease in a :class:`Renewal`: somebody else has it, or nobody."""
RENEWED = 1
"""The lease is this member's, and was confirmed."""
STREAM_TRUNCATED = 2
"""The same, but the stream ends below what was read of it."""
STREAM_UNCERTAIN = 3
"""The same, but the stream may be another one."""


class Renewal(NamedTuple):
    """What the script ``renew`` returns for one partition."""

    state: int
    lease: LeaseSnapshot
    lease_ms: bytes
    """The length of the lease, if somebody else has it."""
    stream: StreamInfo | None
    """None: the stream was not inspected."""


def parse_renewal(row: Sequence[Any]) -> Renewal:
    """Parse what the script ``renew`` returns for one partition."""
    state, owner, epoch, confirmations, until, lease_ms, *stream = row
    lease = LeaseSnapshot(bytes(owner), bytes(epoch), bytes(confirmations), bytes(until))
    return Renewal(state, lease, bytes(lease_ms), parse_stream_info(*stream) if stream else None)


_HELD = 0
"""State of a lease that the script ``acquire`` did not take: another member holds it."""
_DAMAGED = -1
"""State of a lease that it did not take, as what is stored as the group's position is not one."""


class _Acquired(NamedTuple):
    """What the script ``acquire`` returns with a lease that it took."""

    epoch: int
    position: bytes
    """The group's position, as an entry ID; empty: it has none."""
    progress: bytes | None
    entries_read: bytes
    """Entries below that position; empty: it is not known how many."""
    entries_added: int
    length: int
    first_entry: bytes
    last_entry: bytes
    deleted_entry: bytes
    """The greatest ID that was deleted."""
    beyond_end: bytes
    """The position that was stored before, if it is beyond the end of the stream; else empty."""

    @property
    def stream(self) -> StreamInfo:
        """The stream when the lease was acquired."""
        return parse_stream_info(
            self.entries_added, self.length, self.first_entry, self.last_entry, self.deleted_entry
        )


class _LeaseToRelease(NamedTuple):
    """A lease, and in whose name it is released."""

    keys: PartitionKeys
    owner: str | bytes
    epoch: int | str
    """Empty: whatever epoch it has."""


class StoredOffset(NamedTuple):
    """A group's position in a partition, as this member knows it."""

    position: int
    progress: str = ""
    entries_read: int | None = None


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """A partition that this member owns."""

    assignment: Assignment
    keys: PartitionKeys
    stored: StoredOffset | None
    """The group's position when the lease was acquired."""
    stream: StreamInfo
    """The stream when the lease was acquired."""
    last_read_id: bytes = b"0-0"
    """ID of the last entry read."""
    fetched: RawEntries = field(default_factory=list)
    """Entries that were read and not delivered yet."""
    lag_counter: LagCounter = field(default_factory=LagCounter)
    count_corrected: bool = False
    """Whether the counter was corrected since the last commit."""
    paused: bool = False
    committed_version: int = 0
    """The version of the last commit."""
    sent_version: int = 0
    """The greatest version of a commit that was sent, whatever its outcome."""

    @property
    def partition(self) -> TopicPartition:
        """Topic and partition."""
        return self.assignment.topic_partition


class PartitionLeases:
    """The leases of one member, and its knowledge of others' leases. Used by one thread at a
    time."""

    def __init__(self, client: Client, group: str, member_id: str, trim_margin: int) -> None:
        self._client = client
        self._group = group
        self._member_id = member_id
        self._trim_margin = trim_margin
        self._terms = client.settings.terms
        self._lease_ms = int(self._terms.lease * 1000)
        self.keys: dict[TopicPartition, PartitionKeys] = {}
        """The partitions of all topics that any member reads: the plan depends on all of them."""
        self.initial_offsets: dict[TopicPartition, int] = {}
        """The group's initial offsets."""
        self.stored_offsets: dict[TopicPartition, StoredOffset] = {}
        """The group's last position in each partition that this member ever owned."""
        self.highest_epochs: dict[TopicPartition, int] = {}
        self.expired: dict[TopicPartition, LeaseSnapshot] = {}
        """Leases of others that have expired by this member's clock: unchanged for their whole
        length."""
        self.inherited: dict[TopicPartition, bytes] = {}
        """Leases of a predecessor with the same static name, with its member ID."""
        self._outage_logged = False

    def renew_command(
        self,
        partitions: Iterable[TopicPartition],
        owned_by_partition: dict[TopicPartition, OwnedPartition],
        inspect_streams: bool,
    ) -> Command:
        """Extend the leases of the owned ones of these partitions, and ask who owns the others."""
        keys: list[bytes] = []
        args: list[Any] = [self._member_id, self._lease_ms, self._group, int(inspect_streams)]
        for partition in partitions:
            partition_keys = self.keys[partition]
            keys += (partition_keys.group_key(self._group), partition_keys.stream)
            owned = owned_by_partition.get(partition)
            if owned is None:
                args += (0, b"0-0", "")
                continue
            stored, read = self.stored_offsets.get(partition), None
            if owned.count_corrected and stored is not None:
                read = owned.lag_counter.entries_below(stored.position)
            args += (owned.assignment.epoch, owned.last_read_id, count_text(read))
        return script_command(self._group, "renew", keys, *args)

    def acquire(self, partitions: Sequence[TopicPartition]) -> list[OwnedPartition]:
        """Take these leases; returns the partitions whose leases were taken."""
        sent = time.monotonic()
        replies = self._client.execute_all([self._acquire_command(each) for each in partitions])
        acquired: list[OwnedPartition] = []
        failure: LogError | None = None
        for partition, reply in zip(partitions, replies, strict=True):
            if isinstance(reply, Unavailable):
                self.log_outage_once(reply)
            elif isinstance(reply, LogError):
                failure = reply
            else:
                state, *found = reply
                if state == _DAMAGED:
                    failure = self._damaged_position(self.keys[partition], *found)
                elif state != _HELD:
                    acquired.append(self._begin_owning(partition, sent, _Acquired(*found)))
        if failure is not None:
            self.release(acquired)
            raise failure
        return acquired

    def _acquire_command(self, partition: TopicPartition) -> Command:
        keys, stored = self.keys[partition], self.stored_offsets.get(partition)
        if stored is None and partition in self.initial_offsets:
            stored = StoredOffset(self.initial_offsets[partition])
        return group_command(
            keys, self._group, "acquire",
            self._member_id, self._lease_ms, self._group, self._trim_margin,
            entry_id(stored.position) if stored else b"", stored.progress if stored else "",
            count_text(stored.entries_read if stored else None),
            self.highest_epochs.get(partition, 0), self.inherited.get(partition, b""),
            *self.expired.get(partition, LeaseSnapshot()),
        )  # fmt: skip

    def _begin_owning(
        self, partition: TopicPartition, sent: float, found: _Acquired
    ) -> OwnedPartition:
        stored = committed = None
        if found.position:
            progress = (found.progress or b"").decode("ascii", "replace")
            committed = Committed(offset_of(found.position), progress)
            entries_read = int(found.entries_read) if found.entries_read else None
            stored = StoredOffset(*committed, entries_read)
            self.stored_offsets[partition] = stored
        self.highest_epochs[partition] = found.epoch
        valid_until = self._terms.valid_until(sent)
        assignment = Assignment(*partition, found.epoch, committed, valid_until, self._terms.lease)
        if found.beyond_end:
            assignment.stored_beyond_end = offset_of(found.beyond_end)
        return OwnedPartition(assignment, self.keys[partition], stored, found.stream)

    def _damaged_position(self, keys: PartitionKeys, position: bytes) -> TopicMismatch:
        remedy = (
            f"set it by `streams reset {self._group} {keys.topic} --partition {keys.partition} "
            "--to PLACE`"
        )
        key = keys.group_key(self._group)
        return TopicMismatch(f"{keys}: {damaged_field(key, 'position', position, remedy)}")

    def create_native_groups(self, owned: Sequence[OwnedPartition]) -> None:
        """Create native groups where this group has no position yet, so that no entry it has not
        read is trimmed before its first commit."""
        commands: list[Command] = []
        for each in owned:
            position, total = each.assignment.position, each.lag_counter.entries_read
            read = () if total is None else ("ENTRIESREAD", total)
            stream, last = each.keys.stream, entry_id_before(position)
            call = ("XGROUP", "CREATE", stream, self._group, last, *read)
            commands.append(Command(str(each.keys), stream, *call))
        for reply in self._client.execute_all(commands):
            if isinstance(reply, Unavailable):
                logger.info(
                    "%s: the group is not shown by Redis's own tools yet: %s", self._group, reply
                )

    def release(self, owned: Iterable[OwnedPartition]) -> None:
        """Release leases; a lease whose server cannot be reached now expires by itself."""
        self._release(
            _LeaseToRelease(each.keys, self._member_id, each.assignment.epoch) for each in owned
        )

    def release_inherited(self, partitions: Iterable[TopicPartition]) -> None:
        """Release leases left by a predecessor with this member's static name."""
        inherited = self.inherited
        self._release(
            _LeaseToRelease(self.keys[each], inherited[each], "")
            for each in partitions
            if each in inherited
        )

    def _release(self, leases: Iterable[_LeaseToRelease]) -> None:
        commands = [
            group_command(each.keys, self._group, "release", each.owner, each.epoch)
            for each in leases
        ]
        for reply in self._client.execute_all(commands):
            if isinstance(reply, LogError):
                logger.info("%s: a lease was not released: %s", self._group, reply)

    def log_outage_once(self, failure: LogError | None) -> None:
        """Log that some servers do not answer: once, until they answer again."""
        if failure is not None and not self._outage_logged:
            logger.warning("%s: some of the servers do not answer: %s", self._group, failure)
        self._outage_logged = failure is not None
