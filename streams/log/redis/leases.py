"""The leases of a member's partitions: taking, extending and releasing them.

Every partition's lease is beside the partition, in the hash that also holds the group's place
there, so that one script can check the one before it stores the other, on any node of a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from streams.errors import LogError, TopicMismatch, Unavailable
from streams.log.protocol import Assignment, Committed, TopicPartition
from streams.log.redis.batch import RawEntries
from streams.log.redis.client import Client, Command, script_command
from streams.log.redis.keys import PartitionKeys, entry_id, entry_id_before, offset_of
from streams.log.redis.lag_counter import LagCounter
from streams.log.redis.reader import StreamInfo, parse_stream_info
from streams.log.redis.stored_values import damaged_field
from streams.text import get_logger

logger = get_logger("streams")

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
        return self.assignment.topic_partition


class AcquiredLease(NamedTuple):
    """A lease that was taken, and what was stored there."""

    keys: PartitionKeys
    epoch: int
    stored: StoredOffset | None
    stream: StreamInfo
    valid_until: float
    stored_beyond_end: int | None
    """The place that was stored, where it lies beyond the stream's end."""


class PartitionLeases:
    """The leases of one member, and what it knows of those of others. Used by one thread at a
    time."""

    def __init__(self, client: Client, group: str, member_id: str, trim_margin: int) -> None:
        self._client = client
        self._group = group
        self._member_id = member_id
        self._trim_margin = trim_margin
        self._terms = client.settings.terms
        self._lease_ms = int(self._terms.lease * 1000)
        self.keys: dict[TopicPartition, PartitionKeys] = {}
        """Of all topics that any member reads: who takes what depends on all of them."""
        self.initial_offsets: dict[TopicPartition, int] = {}
        """Where the group begins, as its topics say."""
        self.stored_offsets: dict[TopicPartition, StoredOffset] = {}
        """Where the group stood last, in all partitions this member ever owned."""
        self.highest_epochs: dict[TopicPartition, int] = {}
        self.expired: dict[TopicPartition, LeaseSnapshot] = {}
        """Foreign leases whose length is over, as they stood all the time."""
        self.inherited: dict[TopicPartition, bytes] = {}
        """Leases of a predecessor, and its ID."""
        self._outage_logged = False

    def renew_command(
        self,
        partitions: Iterable[TopicPartition],
        owned_by_partition: dict[TopicPartition, OwnedPartition],
        inspect_streams: bool,
    ) -> Command:
        """Extend the leases of what is owned of these, and ask who has the others."""
        keys: list[bytes] = []
        args: list[Any] = [self._member_id, self._lease_ms, self._group, int(inspect_streams)]
        for partition in partitions:
            keys_of_partition = self.keys[partition]
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

    def acquire(self, partitions: Sequence[TopicPartition]) -> list[AcquiredLease]:
        """Take these leases; those that could be taken."""
        sent = time.monotonic()
        commands: list[Command] = []
        for partition in partitions:
            keys = self.keys[partition]
            stored = self.stored_offsets.get(partition)
            if stored is None and partition in self.initial_offsets:
                stored = StoredOffset(self.initial_offsets[partition])
            commands.append(
                script_command(
                    str(keys), "take", (keys.group_key(self._group), keys.stream),
                    self._member_id, self._lease_ms, self._group, self._trim_margin,
                    entry_id(stored.position) if stored else b"",
                    stored.progress if stored else "",
                    "" if stored is None or stored.entries_read is None else stored.entries_read,
                    self.highest_epochs.get(partition, 0),
                    self.inherited.get(partition, b""),
                    *self.expired.get(partition, (b"", b"", b"", b"")),
                )
            )  # fmt: skip
        acquired: list[AcquiredLease] = []
        failure: LogError | None = None
        for partition, reply in zip(partitions, self._client.execute_all(commands), strict=True):
            if isinstance(reply, LogError):
                if isinstance(reply, Unavailable):
                    self.log_outage_once(reply)
                else:
                    failure = reply
                continue
            if not reply[0]:
                continue
            if reply[0] < 0:
                keys = self.keys[partition]
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
            self.highest_epochs[partition] = epoch
            valid_until = self._terms.valid_until(sent)
            stored_beyond_end = offset_of(beyond) if beyond else None
            acquired.append(
                AcquiredLease(
                    self.keys[partition],
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
                str(each.keys), "release", [each.lease_key], self._member_id, each.assignment.epoch
            )
            for each in owned
        )

    def release_inherited(self, partitions: Iterable[TopicPartition]) -> None:
        """Set leases free that only bear this member's name."""
        self._send_releases(
            script_command("expel", "expel", [self.keys[partition].group_key(self._group)], owner)
            for partition in partitions
            if (owner := self.inherited.get(partition))
        )

    def _send_releases(self, commands: Iterable[Command]) -> None:
        for reply in self._client.execute_all(list(commands)):
            if isinstance(reply, LogError):
                logger.info("%s: a lease was not released: %s", self._group, reply)

    def log_outage_once(self, failure: LogError | None) -> None:
        """Say that a part of the servers does not answer, until it does."""
        if failure is not None and not self._outage_logged:
            logger.warning("%s: a part of the servers does not answer: %s", self._group, failure)
        self._outage_logged = failure is not None
