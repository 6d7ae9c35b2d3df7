"""Topics: a hash of facts for each that was created here; any other stream has one partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streams.errors import ConfigError, LogError, Mismatch, NotFound
from streams.log.names import check_topic, no_topic
from streams.log.protocol import Retention, TopicInfo
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.keys import GROUPS, TOPICS, Part, topic_key, topics_key
from streams.log.redis.stored import names_of, topics_of, unusable
from streams.text import get_logger
from streams.wire import finite, whole

logger = get_logger("streams")

MOST = "most"
"""The one setting of ``create(config=…)``: entries a partition keeps at most, settled or not."""

_MOST_PARTITIONS = 100_000
"""A larger number was never written by this log."""
_SCAN = 1_000

FRESH = 30.0
"""Seconds for which a topic's retention is believed."""


class Facts(NamedTuple):
    """A topic as it is stored."""

    info: TopicInfo
    most: int | None = None
    ours: bool = True
    """It was created here; else it is a stream of others."""

    @property
    def trimmed(self) -> bool:
        """There is something to be trimmed by."""
        kept = self.info.retention
        return kept.seconds is not None or kept.messages is not None or self.most is not None


class Topics:
    """The topics of a log. Usable from any thread.

    Facts are remembered: a topic's number of partitions never changes. Its retention may, so for
    trimming they are read again now and then.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, Facts] = {}
        self._asked: dict[str, float] = {}
        """When each was read last."""
        self._parts: dict[tuple[str, int], Part] = {}

    def create(
        self,
        topic: str,
        partitions: int,
        retention: Retention,
        config: Mapping[str, str] | None,
    ) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.create`."""
        check_topic(topic)
        if partitions < 1:
            raise ConfigError(f"{topic}: {partitions} partitions: at least 1")
        most = _most(topic, config or {})
        given = retention != Retention() or most is not None
        return self._store(topic, partitions, retention, most, replace=given)

    def retain(self, topic: str, retention: Retention) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.retain`."""
        facts = self.facts(topic, fresh=True)
        return self._store(topic, facts.info.partitions, retention, facts.most, replace=True)

    def _store(
        self, topic: str, partitions: int, retention: Retention, most: int | None, *, replace: bool
    ) -> TopicInfo:
        """Write a topic's facts, or find them.

        :param replace: where it exists, it gets this retention.
        """
        answer = self._client.run(
            scripted(
                topic,
                "create",
                (topic_key(topic), topic.encode()),
                partitions,
                *("" if bound is None else repr(bound) for bound in retention_of(retention)),
                "" if most is None else most,
                "1" if replace else "0",
            )
        )
        if not answer[0]:
            raise Mismatch(
                f"{topic} has {_partitions(topic, answer[1])} partitions, not {partitions}: "
                "declare it so, or use another name"
            )
        self._client.run(Command(topic, TOPICS, "SADD", TOPICS, topic))
        facts = _facts(topic, answer[1:])
        self._know(topic, facts)
        return facts.info

    def facts(self, topic: str, *, fresh: bool = False) -> Facts:
        """A topic's facts, from memory unless ``fresh``.

        :raises NotFound: there is none of that name.
        """
        known = None if fresh else self._known.get(topic)
        if known is not None:
            return known
        found = self._read(topic)
        self._know(topic, found)
        return found

    def _read(self, topic: str) -> Facts:
        check_topic(topic)
        key = topic_key(topic)
        stored, kind = self._client.every(
            [
                Command(topic, key, "HMGET", key, "partitions", "seconds", "messages", "most"),
                Command(topic, key, "TYPE", topic),
            ]
        )
        if stored[0] is None and kind == b"none":
            raise no_topic(topic)
        if stored[0] is None and kind != b"stream":
            raise Mismatch(f"the key {topic!r} is a {kind.decode()}, not a stream")
        if stored[0] is None:
            return Facts(TopicInfo(topic, 1), ours=False)
        return _facts(topic, stored)

    def _know(self, topic: str, facts: Facts) -> None:
        self._asked[topic] = time.monotonic()
        self._known[topic] = facts

    def recent(self, topic: str) -> Facts:
        """A topic's facts, its retention not older than :data:`FRESH` seconds.

        :raises NotFound: there is none of that name.
        """
        known = self.facts(topic)
        if self._stale(topic):
            found = self._read(topic)
            # Where the server has lost the facts, what is known here is what :meth:`restore` will
            # write; a topic that was deleted and made anew with other partitions is another one.
            if found.ours and found.info.partitions == known.info.partitions:
                known = found
            self._know(topic, known)
        return known

    def _stale(self, topic: str) -> bool:
        return time.monotonic() >= self._asked.get(topic, float("-inf")) + FRESH

    def trimmed(self, topic: str) -> bool:
        """Whether it may have something to be trimmed by: it is known to, or it was not asked for
        some time."""
        known = self._known.get(topic)
        return known is not None and (known.trimmed or self._stale(topic))

    def all(self) -> list[TopicInfo]:
        """Every topic: those created here, and every plain stream whose name a topic may have."""
        names = set(topics_of(self._client.run(_members(TOPICS))))
        for address in self._client.servers.all():
            names.update(topics_of(self._streams(address)))
        found: list[TopicInfo] = []
        for name in sorted(names):
            try:
                found.append(self.facts(name, fresh=True).info)
            except NotFound:
                continue  # deleted meanwhile
            except Mismatch as error:
                logger.warning("left out: %s", error)
        return found

    def _streams(self, address: tuple[str, int]) -> Iterable[bytes]:
        link, _ = self._client.pool.take(address)
        cursor = b"0"
        try:
            while True:
                cursor, names = link.ask("SCAN", cursor, "COUNT", _SCAN, "TYPE", "stream")
                yield from names
                if cursor == b"0":
                    break
        except BaseException:
            link.close()
            raise
        self._client.pool.give(address, link)

    def delete(self, topic: str) -> None:
        """See :meth:`streams.log.protocol.Log.delete`."""
        info = self.facts(topic, fresh=True).info
        groups = names_of(self._client.run(_members(GROUPS)))
        commands: list[Command] = []
        for partition in range(info.partitions):
            part = Part(topic, partition, info.partitions)
            keys = (part.stream, *part.ids, *map(part.group, groups))
            commands.append(Command(topic, part.stream, "UNLINK", *keys))
        for group in groups:
            key = topics_key(group)
            commands.append(Command(topic, key, "HDEL", key, topic))
        commands.append(Command(topic, topic_key(topic), "UNLINK", topic_key(topic)))
        commands.append(Command(topic, TOPICS, "SREM", TOPICS, topic))
        self._client.every(commands)
        self._known.pop(topic, None)
        for partition in range(info.partitions):
            self._parts.pop((topic, partition), None)

    def restore(self, topic: str) -> None:
        """Write a topic's facts again after the server has lost everything."""
        facts = self._known.get(topic)
        if facts is None or not facts.ours:
            return
        info = facts.info
        config = None if facts.most is None else {MOST: str(facts.most)}
        try:
            self.create(topic, info.partitions, info.retention, config)
        except Mismatch as error:
            raise LogError(f"{topic} was created anew, otherwise than it was: {error}") from error

    def part(self, topic: str, partition: int) -> Part:
        """The keys of a partition.

        :raises NotFound: there is no such topic or partition.
        """
        found = self._parts.get((topic, partition))
        if found is None:
            partitions = self.facts(topic).info.partitions
            if not 0 <= partition < partitions:
                raise NotFound(f"{topic} has partitions 0 to {partitions - 1}, not {partition}")
            found = self._parts[topic, partition] = Part(topic, partition, partitions)
        return found

    def parts(self, topic: str) -> list[Part]:
        """The keys of all its partitions."""
        return [self.part(topic, each) for each in range(self.facts(topic).info.partitions)]


def retention_of(retention: Retention) -> tuple[float | None, int | None]:
    """Its two bounds."""
    return retention.seconds, retention.messages


def _members(key: bytes) -> Command:
    return Command(key.decode(), key, "SMEMBERS", key)


def _facts(topic: str, stored: Iterable[bytes | None]) -> Facts:
    """What the hash of a topic says.

    :raises Mismatch: one of its fields makes no sense.
    """
    partitions, seconds, messages, most = stored
    kept = finite(seconds) if seconds else None
    if seconds and (kept is None or kept <= 0):
        raise _damaged(topic, "seconds", seconds, "set it to the seconds that messages are kept")
    retention = Retention(kept, _count(topic, "messages", messages))
    number = _partitions(topic, partitions) if partitions else 1
    return Facts(TopicInfo(topic, number, retention), _count(topic, "most", most))


def _partitions(topic: str, stored: bytes) -> int:
    found = whole(stored)
    if found is None or not 1 <= found <= _MOST_PARTITIONS:
        raise _damaged(topic, "partitions", stored, "set it to the number that there are")
    return found


def _count(topic: str, field: str, stored: bytes | None) -> int | None:
    if not stored:
        return None
    found = whole(stored)
    if not found:
        raise _damaged(topic, field, stored, "set it to a number from 1 on, or to nothing")
    return found


def _damaged(topic: str, field: str, stored: bytes, instead: str) -> Mismatch:
    return Mismatch(f"topic {topic!r}: {unusable(topic_key(topic), field, stored, instead)}")


def _most(topic: str, config: Mapping[str, str]) -> int | None:
    for name in config:
        if name != MOST:
            raise ConfigError(
                f"{topic}: config={{{name!r}: …}}: on Redis there is only {MOST!r}, the entries a "
                "partition keeps at most, whatever groups have settled"
            )
    text = config.get(MOST)
    if text is None:
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise ConfigError(f"{topic}: {MOST}={text!r}: a number of entries is needed")
    return int(text)
