"""Commits a member's offsets: one script call for each partition, which checks the lease and its
epoch before it stores anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from streams.errors import Fenced, LogError
from streams.log.protocol import Commit
from streams.log.redis.client import Client, Command, group_command, script_command
from streams.log.redis.keys import entry_id
from streams.log.redis.leases import OwnedPartition, StoredOffset
from streams.log.redis.membership import Membership
from streams.log.redis.stored_values import count_text

_NOT_OWNED = 0
"""What the scripts ``commit`` and ``commit_outputs`` return where another member owns the partition
by now."""
_NEWER_STORED = 2
"""A newer position is stored."""
_STREAM_UNCERTAIN = 3
"""The position was stored, but the stream may be another one than the entries were counted in."""


class _SentCommit(NamedTuple):
    """A commit that was sent, and the position that is stored if it is accepted."""

    owned: OwnedPartition
    commit: Commit
    stored: StoredOffset


class OffsetCommits:
    """The commits of one member. Used by one thread at a time.

    :param on_lost: called with partitions that another member owns by now.
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
        """Store the offsets that are newer than the stored ones; a commit under a lost lease is
        dropped."""
        sent = time.monotonic()
        lease_ms = int(self._membership.terms.lease * 1000)
        sent_commits: list[_SentCommit] = []
        commands: list[Command] = []
        for owned, commit in commits:
            if commit.version <= owned.committed_version:
                continue
            entries_read = owned.lag_counter.entries_below(commit.position)
            stored = StoredOffset(commit.position, commit.progress, entries_read)
            owned.sent_version = max(owned.sent_version, commit.version)
            sent_commits.append(_SentCommit(owned, commit, stored))
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
        for each, reply in zip(sent_commits, replies, strict=True):
            if isinstance(reply, LogError):
                failure = reply
            elif reply == _NOT_OWNED:
                self._on_lost([each.owned])
            else:
                self._accepted(each, reply, sent)
        if failure is not None:
            raise failure

    def _accepted(self, accepted: _SentCommit, reply: int, sent: float) -> None:
        """Handle the script's ``reply`` to a commit that was sent at ``sent``."""
        owned, commit, stored = accepted
        owned.committed_version = commit.version
        owned.assignment.valid_until = self._membership.terms.valid_until(sent)
        if reply == _STREAM_UNCERTAIN:
            owned.lag_counter.entries_read = None
            stored = stored._replace(entries_read=None)
            self._membership.inspect_streams_next()
        if reply != _NEWER_STORED:
            self._membership.leases.stored_offsets[owned.partition] = stored

    def commit_with_records(
        self,
        commits: Sequence[tuple[OwnedPartition, Commit]],
        streams: Sequence[bytes],
        records: bytes,
    ) -> None:
        """Store positions and append records, all or nothing, in one call of a script.

        :param streams: the streams that the records go to.
        :param records: the records, packed for the script.
        :raises Fenced: another member owns a partition by now; nothing was stored.
        """
        sent, settings = time.monotonic(), self._client.settings
        keys: list[bytes] = []
        args: list[Any] = [
            self._membership.member_id, int(self._membership.terms.lease * 1000), self._group,
            records, len(commits),
        ]  # fmt: skip
        sent_commits: list[_SentCommit] = []
        for owned, commit in commits:
            entries_read = owned.lag_counter.entries_below(commit.position)
            stored = StoredOffset(commit.position, commit.progress, entries_read)
            sent_commits.append(_SentCommit(owned, commit, stored))
            owned.sent_version = max(owned.sent_version, commit.version)
            keys += (owned.keys.group_key(self._group), owned.keys.stream)
            args += (
                commit.assignment.epoch, commit.version, entry_id(commit.position),
                commit.progress, count_text(entries_read),
            )  # fmt: skip
        context = f"a transaction of group {self._group!r}"
        command = script_command(
            context, "commit_outputs", [*keys, *streams], *args,
            is_append=True, before_wait=bool(settings.wait_replicas),
        )  # fmt: skip
        command.is_repeatable = False  # the second time it would say that it is not ours
        commands = [command]
        if settings.wait_replicas:
            commands.append(self._client.wait_command(context, keys[0], [command]))
        reply, *waited = self._client.execute_all(commands)
        if isinstance(reply, LogError):
            raise reply
        if _NOT_OWNED in reply:
            _, number = reply  # of the commit, from 1
            owned = sent_commits[number - 1].owned
            self._on_lost([owned])
            raise Fenced(
                f"{owned.keys}: group {self._group!r} has assigned it to another member; nothing "
                "was stored"
            )
        for each, stored_as in zip(sent_commits, reply, strict=True):
            self._accepted(each, stored_as, sent)
        failure = self._client.replication_failure(context, *waited) if waited else None
        if failure is not None:
            raise failure
