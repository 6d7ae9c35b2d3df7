"""Committing a member's offsets: one call of a script for each partition, which checks the lease
and its epoch before it stores anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from streams.errors import LogError
from streams.log.protocol import Commit
from streams.log.redis.client import Client, Command, group_command
from streams.log.redis.keys import entry_id
from streams.log.redis.leases import OwnedPartition, StoredOffset
from streams.log.redis.membership import Membership
from streams.log.redis.stored_values import count_text


class OffsetCommits:
    """The commits of one member. Used by one thread at a time.

    :param on_lost: called with partitions that are another member's by now.
    """

    def __init__(
        self,
        client: Client,
        membership: Membership,
        group: str,
        on_lost: Callable[[Sequence[OwnedPartition]], None],
    ) -> None:
        self._client = client
        self._membership = membership
        self._group = group
        self._on_lost = on_lost

    def commit(self, commits: Iterable[tuple[OwnedPartition, Commit]]) -> None:
        """Store what is newer than what was stored; a commit of a lease that is lost is dropped."""
        sent = time.monotonic()
        lease_ms = int(self._membership.terms.lease * 1000)
        to_store: list[tuple[OwnedPartition, Commit, StoredOffset]] = []
        commands: list[Command] = []
        for owned, commit in commits:
            if commit.version <= owned.committed_version:
                continue
            entries_read = owned.lag_counter.entries_below(commit.position)
            stored = StoredOffset(commit.position, commit.progress, entries_read)
            owned.sent_version = max(owned.sent_version, commit.version)
            to_store.append((owned, commit, stored))
            commands.append(
                group_command(
                    owned.keys, self._group, "commit",
                    self._membership.member_id, commit.assignment.epoch, lease_ms, self._group,
                    commit.version, entry_id(commit.position), commit.progress,
                    count_text(entries_read), owned.sent_version,
                )
            )  # fmt: skip
        failure: LogError | None = None
        replies = self._client.execute_all(commands)
        for (owned, commit, stored), reply in zip(to_store, replies, strict=True):
            if isinstance(reply, LogError):
                failure = reply
            elif reply == 0:
                self._on_lost([owned])
            else:
                owned.committed_version = commit.version
                owned.assignment.valid_until = self._membership.terms.valid_until(sent)
                if reply == 3:
                    owned.lag_counter.entries_read = None
                    stored = stored._replace(entries_read=None)
                    self._membership.inspect_streams_next()
                if reply != 2:
                    self._membership.leases.stored_offsets[owned.partition] = stored
        if failure is not None:
            raise failure
