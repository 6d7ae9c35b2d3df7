"""Groups as the log holds them: where they begin, where they stand, who is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streams.errors import GroupLive, Mismatch, NotFound
from streams.log.membership import LONGEST, length
from streams.log.names import check_group, no_group
from streams.log.protocol import Committed, GroupInfo, MemberInfo
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.keys import GROUPS, Part, entry_id, members_key, topics_key
from streams.log.redis.reading import Reading
from streams.log.redis.stored import names_of, position_of, row_of, shown, topics_of, unusable
from streams.log.redis.topics import Topics
from streams.text import get_logger
from streams.wire import whole

logger = get_logger("streams")

_FIELDS = ("owner", "position", "progress")


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
                number, begun = whole(partition), position_of(place)
                if number is None or begun is None:
                    why = "passed over, a partition without a position begins at its first message"
                    logger.warning("%s: %s", group, unusable(key, topic, word, why))
                    continue
                found[topic, number] = begun
        return found

    def all(self) -> list[str]:
        """See :meth:`streams.log.protocol.Log.groups`."""
        found = self._client.run(Command("groups", GROUPS, "SMEMBERS", GROUPS))
        return sorted(names_of(found))

    def group(self, group: str) -> GroupInfo:
        """See :meth:`streams.log.protocol.Log.group`."""
        parts = self._parts(group)
        rows, starts = self._rows(group, parts), self._starts_of(group, parts)
        members: dict[str, list[tuple[str, int]]] = {name: [] for name in self.members(group)}
        positions: dict[tuple[str, int], Committed] = {}
        for part, (owner, position, progress) in zip(parts, rows, strict=True):
            place = (part.topic, part.partition)
            if position is not None:
                at = position_of(position)
                if at is None:
                    why = f"set it by `streams reset {group} {part.topic} --to PLACE`"
                    said = unusable(part.group(group), "position", position, why)
                    logger.warning("%s: left out: %s", part, said)
                else:
                    text = bytes(progress or b"").decode("ascii", "replace")
                    positions[place] = Committed(at, text)
            elif place in starts:
                positions[place] = Committed(starts[place])
            name = shown(owner or b"")
            if name in members:
                members[name].append(place)
        infos = tuple(MemberInfo(name, tuple(own)) for name, own in sorted(members.items()))
        return GroupInfo(group, infos, positions)

    def members(self, group: str) -> dict[str, list[str]]:
        """The members that seem to live, and their topics. Whoever asks has not watched them, so
        the server's clock has to do: where it was stepped, this is right again with their next
        heartbeat."""
        now, *words = self._client.run(scripted(group, "members", [members_key(group)]))
        found: dict[str, list[str]] = {}
        for id, text in zip(words[::2], words[1::2], strict=True):
            row = row_of(text)
            if id and row is not None:
                left = (row.until - int(now)) / 1000
                if 0 < left <= length(row.lease, LONGEST):
                    found[shown(id)] = list(row.topics)
        return found

    def expel(self, group: str, member: str) -> None:
        """See :meth:`streams.log.protocol.Log.expel`."""
        try:
            parts = self._parts(group)
        except NotFound:
            return
        key = members_key(group)
        self._client.every(
            [
                *(scripted(str(part), "expel", [part.group(group)], member) for part in parts),
                Command(group, key, "HDEL", key, member),
            ]
        )

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
            raise no_group(group)
        parts: list[Part] = []
        for topic in sorted(topics_of(topics)):
            try:
                parts += self._topics.parts(topic)
            except NotFound:
                continue
            except Mismatch as error:
                logger.warning("%s: left out: %s", group, error)
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
