"""Groups as the log holds them: where they begin, where they stand, who is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streams.errors import GroupLive, NotFound
from streams.log.names import check_group
from streams.log.protocol import Committed, GroupInfo, MemberInfo
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.keys import (
    GROUPS,
    Part,
    entry_id,
    members_key,
    offset,
    topics_key,
)
from streams.log.redis.reading import Reading
from streams.log.redis.topics import Topics

_FIELDS = ("owner", "until", "position", "progress")


class Groups:
    """The groups of a log. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics, reading: Reading) -> None:
        self._client = client
        self._topics = topics
        self._reading = reading

    def register(self, group: str, topics: Sequence[str] = ()) -> None:
        """Have a group known, and its topics. Writes only what is missing, so that a member can
        come back while the server takes no writes that need memory."""
        key = topics_key(group)
        known, fields = self._client.every(
            [
                Command(group, GROUPS, "SISMEMBER", GROUPS, group),
                Command(group, key, "HKEYS", key),
            ]
        )
        commands = [] if known else [Command(group, GROUPS, "SADD", GROUPS, group)]
        commands += [
            Command(group, key, "HSETNX", key, topic, "")
            for topic in topics
            if topic.encode() not in fields
        ]
        self._client.every(commands)

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """See :meth:`streams.log.protocol.Log.begin`.

        One hash decides, for all partitions at once; then the partitions are told. Should this
        process end in between, whoever takes a partition looks there (:meth:`starts`).
        """
        check_group(group)
        parts = {self._topics.part(topic, each): place for each, place in positions.items()}
        text = " ".join(
            f"{part.partition}:{entry_id(place).decode()}" for part, place in parts.items()
        )
        self.register(group)
        key = topics_key(group)
        if not self._client.run(scripted(group, "begin", [key], topic, text or " ")):
            return False
        self._client.every(
            [
                scripted(
                    str(part), "seed", (part.group(group), part.stream),
                    group, entry_id(place), _text(self._reading.read_below(part, place)),
                )
                for part, place in parts.items()
            ]
        )  # fmt: skip
        return True

    def starts(self, group: str, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        """Where the group began, by topic and partition."""
        key = topics_key(group)
        answers = self._client.run(Command(group, key, "HMGET", key, *topics))
        found: dict[tuple[str, int], int] = {}
        for topic, answer in zip(topics, answers, strict=True):
            for word in bytes(answer or b"").split():
                partition, _, place = word.partition(b":")
                found[topic, int(partition)] = offset(place)
        return found

    def all(self) -> list[str]:
        """See :meth:`streams.log.protocol.Log.groups`."""
        return sorted(
            bytes(name).decode()
            for name in self._client.run(Command("groups", GROUPS, "SMEMBERS", GROUPS))
        )

    def group(self, group: str) -> GroupInfo:
        """See :meth:`streams.log.protocol.Log.group`."""
        parts = self._parts(group)
        rows, starts = self._rows(group, parts), self._starts_of(group, parts)
        members: dict[str, list[tuple[str, int]]] = {name: [] for name in self.members(group)}
        positions: dict[tuple[str, int], Committed] = {}
        for part, (owner, _, position, progress) in zip(parts, rows, strict=True):
            place = (part.topic, part.partition)
            if position is not None:
                positions[place] = Committed(offset(position), bytes(progress or b"").decode())
            elif place in starts:
                positions[place] = Committed(starts[place])
            name = bytes(owner or b"").decode()
            if name in members:
                members[name].append(place)
        infos = tuple(MemberInfo(name, tuple(own)) for name, own in sorted(members.items()))
        return GroupInfo(group, infos, positions)

    def members(self, group: str) -> dict[str, list[str]]:
        """The living members and their topics."""
        answer = self._client.run(scripted(group, "members", [members_key(group)]))
        words = [bytes(word).decode() for word in answer]
        return {
            name: topics.split(",") for name, topics in zip(words[::2], words[1::2], strict=True)
        }

    def move(
        self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """See :meth:`streams.log.protocol.Log.move`."""
        check_group(group)
        if not force:
            self._check_idle(group, topic)
        self.register(group, [topic])
        parts = {self._topics.part(topic, each): place for each, place in places.items()}
        answers = self._client.every(
            [
                scripted(
                    str(part), "move", (part.group(group), part.stream),
                    group, int(force), entry_id(place.position), place.progress,
                    _text(self._reading.read_below(part, place.position)),
                )
                for part, place in parts.items()
            ]
        )  # fmt: skip
        if not all(answers):
            raise GroupLive(f"{group} has running members in {topic}: stop them first, or force it")

    def forget(self, group: str) -> None:
        """See :meth:`streams.log.protocol.Log.forget`."""
        parts = self._parts(group)
        self._check_idle(group)
        answers = self._client.every(
            [
                scripted(str(part), "forget", (part.group(group), part.stream), group)
                for part in parts
            ]
        )
        if not all(answers):
            raise GroupLive(f"{group} has running members: stop them first")
        self._client.every(
            [
                Command(group, topics_key(group), "DEL", topics_key(group)),
                Command(group, members_key(group), "DEL", members_key(group)),
                Command(group, GROUPS, "SREM", GROUPS, group),
            ]
        )

    def _check_idle(self, group: str, topic: str | None = None) -> None:
        for member, topics in self.members(group).items():
            if topic is None or topic in topics:
                raise GroupLive(f"{group} has a running member, {member}: stop it first")

    def _parts(self, group: str) -> list[Part]:
        """Every partition the group has to do with.

        :raises NotFound: there is no such group.
        """
        check_group(group)
        key = topics_key(group)
        known, topics = self._client.every(
            [
                Command(group, GROUPS, "SISMEMBER", GROUPS, group),
                Command(group, key, "HKEYS", key),
            ]
        )
        if not known:
            raise NotFound(f"there is no group {group!r}")
        parts: list[Part] = []
        for topic in sorted(bytes(each).decode() for each in topics):
            try:
                parts += self._topics.parts(topic)
            except NotFound:
                continue
        return parts

    def _rows(self, group: str, parts: Sequence[Part]) -> list[list[Any]]:
        return self._client.every(
            [
                Command(str(part), part.group(group), "HMGET", part.group(group), *_FIELDS)
                for part in parts
            ]
        )

    def _starts_of(self, group: str, parts: Sequence[Part]) -> dict[tuple[str, int], int]:
        topics = sorted({part.topic for part in parts})
        return self.starts(group, topics) if topics else {}


def _text(read: int | None) -> str:
    return "" if read is None else str(read)
