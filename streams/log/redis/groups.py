"""Groups: their initial and committed offsets, and their members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streams.errors import NotFound, TopicMismatch
from streams.log.membership import MAX_LEASE, lease_length
from streams.log.names import check_group, group_not_empty, group_not_found
from streams.log.protocol import Committed, GroupInfo, MemberInfo, TopicPartition
from streams.log.redis.client import Client, Command, group_command, key_command, script_command
from streams.log.redis.keys import GROUPS_KEY, PartitionKeys, entry_id, members_key, topics_key
from streams.log.redis.reader import OffsetLookup
from streams.log.redis.stored_values import (
    count_text,
    damaged_field,
    parse_entry_id,
    parse_member_row,
    printable,
    valid_names,
    valid_topics,
)
from streams.log.redis.topics import Topics
from streams.text import get_logger
from streams.wire import parse_int

logger = get_logger("streams")

_LEASE_FIELDS = ("owner", "position", "progress")


def format_initial_offsets(positions: Mapping[int, int]) -> str:
    """A group's first positions in a topic, by partition, as they are stored."""
    return " ".join(f"{each}:{entry_id(offset).decode()}" for each, offset in positions.items())


class Groups:
    """The groups of a log. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics, lookup: OffsetLookup) -> None:
        self._client = client
        self._topics = topics
        self._offsets = lookup

    def register(self, group: str, topics: Sequence[str] = ()) -> None:
        """Store the names of a group and of its topics. Writes only what is missing, so that a
        member can come back while the server takes no writes that need memory."""
        key = topics_key(group)
        is_registered, fields = self._registration(group)
        commands = [] if is_registered else [key_command(group, "SADD", GROUPS_KEY, group)]
        commands += [
            key_command(group, "HSETNX", key, topic, "")
            for topic in topics
            if topic.encode() not in fields
        ]
        self._client.execute_or_raise(commands)

    def _registration(self, group: str) -> tuple[bool, list[bytes]]:
        """Whether a group is known, and its topics."""
        key = topics_key(group)
        is_registered, topics = self._client.execute_or_raise(
            [key_command(group, "SISMEMBER", GROUPS_KEY, group), key_command(group, "HKEYS", key)]
        )
        return bool(is_registered), topics

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """See :meth:`streams.log.protocol.Log.initialize_offsets`.

        One hash decides, for all partitions at once; then each partition's is written. If this
        process dies in between, the owner of a partition reads that hash (:meth:`initial_offsets`).
        """
        check_group(group)
        keys_of = self._topics.partition_keys
        all_keys = {keys_of(topic, each): offset for each, offset in positions.items()}
        text = format_initial_offsets(positions)
        self.register(group)
        key = topics_key(group)
        command = script_command(group, "initial_offsets", [key], topic, text or " ")
        if not self._client.execute(command):
            return False
        self._client.execute_or_raise(
            [
                group_command(
                    keys, group, "initialize_offsets",
                    group, entry_id(offset), count_text(self._offsets.entries_below(keys, offset)),
                )
                for keys, offset in all_keys.items()
            ]
        )  # fmt: skip
        return True

    def initial_offsets(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """The group's initial offsets, by topic and partition."""
        key = topics_key(group)
        replies = self._client.execute(key_command(group, "HMGET", key, *topics))
        found: dict[TopicPartition, int] = {}
        for topic, reply in zip(topics, replies, strict=True):
            for word in bytes(reply or b"").split():
                partition, _, id_text = word.partition(b":")
                number, offset = parse_int(partition), parse_entry_id(id_text)
                if number is None or offset is None:
                    hint = "ignored: a partition without a position begins at its first message"
                    logger.warning("%s: %s", group, damaged_field(key, topic, word, hint))
                    continue
                found[topic, number] = offset
        return found

    def list_groups(self) -> list[str]:
        """See :meth:`streams.log.protocol.Log.list_groups`."""
        found = self._client.execute(key_command("groups", "SMEMBERS", GROUPS_KEY))
        return sorted(valid_names(found))

    def describe_group(self, group: str) -> GroupInfo:
        """See :meth:`streams.log.protocol.Log.describe_group`."""
        all_keys = self._partitions_of(group)
        rows = self._client.execute_or_raise(
            [
                Command(str(keys), (key := keys.group_key(group)), "HMGET", key, *_LEASE_FIELDS)
                for keys in all_keys
            ]
        )
        topics = sorted({keys.topic for keys in all_keys})
        initial_offsets = self.initial_offsets(group, topics) if topics else {}
        members: dict[str, list[TopicPartition]] = {id: [] for id in self.live_members(group)}
        positions: dict[TopicPartition, Committed] = {}
        for keys, (owner, position, progress) in zip(all_keys, rows, strict=True):
            partition = (keys.topic, keys.partition)
            if position is not None:
                offset = parse_entry_id(position)
                if offset is None:
                    remedy = f"set it by `streams reset {group} {keys.topic} --to PLACE`"
                    damage = damaged_field(keys.group_key(group), "position", position, remedy)
                    logger.warning("%s: left out: %s", keys, damage)
                else:
                    text = bytes(progress or b"").decode("ascii", "replace")
                    positions[partition] = Committed(offset, text)
            elif partition in initial_offsets:
                positions[partition] = Committed(initial_offsets[partition])
            owner_id = printable(owner or b"")
            if owner_id in members:
                members[owner_id].append(partition)
        infos = [MemberInfo(id, tuple(partitions)) for id, partitions in sorted(members.items())]
        return GroupInfo(group, tuple(infos), positions)

    def live_members(self, group: str) -> dict[str, list[str]]:
        """The members that seem to be alive, and their topics. This process has not watched their
        rows, so the server's clock decides: if it was stepped, the answer is right again after
        their next heartbeat."""
        now, *words = self._client.execute(script_command(group, "members", [members_key(group)]))
        found: dict[str, list[str]] = {}
        for id, text in zip(words[::2], words[1::2], strict=True):
            row = parse_member_row(text)
            if id and row is not None:
                remaining = (row.until - int(now)) / 1000
                if 0 < remaining <= lease_length(row.lease, MAX_LEASE):
                    found[printable(id)] = list(row.topics)
        return found

    def remove_member(self, group: str, member: str) -> None:
        """See :meth:`streams.log.protocol.Log.remove_member`."""
        try:
            all_keys = self._partitions_of(group)
        except NotFound:
            return
        key = members_key(group)
        releases = [group_command(keys, group, "release", member, "") for keys in all_keys]
        self._client.execute_or_raise([*releases, key_command(group, "HDEL", key, member)])

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """See :meth:`streams.log.protocol.Log.reset_offsets`."""
        check_group(group)
        if not force:
            self._require_no_members(group, topic)
        self.register(group, [topic])
        keys_of = self._topics.partition_keys
        all_keys = {keys_of(topic, each): committed for each, committed in offsets.items()}
        replies = self._client.execute_or_raise(
            [
                group_command(
                    keys, group, "reset_offsets",
                    group, int(force), entry_id(committed.position), committed.progress,
                    count_text(self._offsets.entries_below(keys, committed.position)),
                )
                for keys, committed in all_keys.items()
            ]
        )  # fmt: skip
        if not all(replies):
            raise group_not_empty(group, None)

    def delete_group(self, group: str) -> None:
        """See :meth:`streams.log.protocol.Log.delete_group`."""
        all_keys = self._partitions_of(group)
        self._require_no_members(group)
        commands = [group_command(keys, group, "delete_group", group) for keys in all_keys]
        if not all(self._client.execute_or_raise(commands)):
            raise group_not_empty(group, None)
        self._client.execute_or_raise(
            [
                key_command(group, "DEL", topics_key(group)),
                key_command(group, "DEL", members_key(group)),
                key_command(group, "SREM", GROUPS_KEY, group),
            ]
        )

    def _require_no_members(self, group: str, topic: str | None = None) -> None:
        members = self.live_members(group).items()
        running = [member for member, topics in members if topic is None or topic in topics]
        if running:
            raise group_not_empty(group, len(running), f" (such as {running[0]})")

    def _partitions_of(self, group: str) -> list[PartitionKeys]:
        """Every partition of the group's topics.

        :raises NotFound: there is no such group.
        """
        check_group(group)
        is_registered, topics = self._registration(group)
        if not is_registered:
            raise group_not_found(group)
        all_keys: list[PartitionKeys] = []
        for topic in sorted(valid_topics(topics)):
            try:
                all_keys += self._topics.all_partition_keys(topic)
            except NotFound:
                continue
            except TopicMismatch as error:
                logger.warning("%s: left out: %s", group, error)
        return all_keys
