"""Topics: each that was created here has a hash of facts; any other stream has one partition."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from redis.exceptions import RedisError

from streams.errors import ConfigError, LogError, NotFound, TopicMismatch, Unavailable
from streams.log.events import events_only, not_an_event_topic, partition_count_mismatch
from streams.log.names import check_topic, topic_mismatch, topic_not_found
from streams.log.protocol import Retention, TopicInfo, TopicPartition
from streams.log.redis.client import Client, Command, key_command, script_command
from streams.log.redis.errors import translate
from streams.log.redis.keys import GROUPS_KEY, TOPICS_KEY, PartitionKeys, topic_key, topics_key
from streams.log.redis.settings import Address
from streams.log.redis.stored_values import count_text, damaged_field, valid_names, valid_topics
from streams.text import get_logger
from streams.wire import parse_float, parse_int, text

logger = get_logger("streams")

MAX_ENTRIES = "most"
"""The one setting of ``create_topic(config=…)``: the most entries that a partition keeps, settled
or not."""

_MAX_PARTITIONS = 100_000
"""The most partitions that a stored number may claim; this log never wrote a larger one."""

CACHE_SECONDS = 30.0
"""Seconds after which a topic's retention is read again, and an event topic's number of
partitions."""

DELETED_KEYS = 1_000
"""Histories deleted in one step."""


_OTHER_PARTITIONS = 0
"""State that the script ``create_topic`` returns: the topic exists, with another number of
partitions."""
_OTHER_KIND = 2
"""The same: it exists, as an event topic although none was asked for, or the other way round."""


class _TopicFields(NamedTuple):
    """The fields of a topic's hash, as they are stored; None or empty: there is none."""

    partitions: bytes | None
    seconds: bytes | None
    messages: bytes | None
    most: bytes | None
    """See :data:`MAX_ENTRIES`."""
    events: bytes | None


class StoredTopic(NamedTuple):
    """A topic's stored facts."""

    info: TopicInfo
    max_entries: int | None = None
    created_here: bool = True
    """False: another program created the stream."""

    @property
    def has_bound(self) -> bool:
        """Whether the topic is trimmed."""
        retention = self.info.retention
        return (retention.seconds, retention.messages, self.max_entries) != (None, None, None)


class Topics:
    """The topics of a log. Usable from any thread.

    Facts are cached: a topic's number of partitions never changes, unless the topic is deleted and
    created again, which is checked before histories are used. Its retention may change, so for
    trimming the facts are read again from time to time.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._cached: dict[str, StoredTopic] = {}
        self._loaded_at: dict[str, float] = {}
        """When each topic's facts were last read."""
        self._keys: dict[TopicPartition, PartitionKeys] = {}
        self._event_topics: dict[str, float] = {}
        """Event topics, and when the number of partitions of each was last read."""
        self._declared: dict[str, int] = {}
        """The numbers of partitions of the event topics that were declared here."""

    def create_topic(
        self, topic: str, partitions: int, retention: Retention, config: Mapping[str, str] | None
    ) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.create_topic`."""
        _check_new(topic, partitions)
        info = TopicInfo(topic, partitions, retention)
        facts = StoredTopic(info, _parse_max_entries(topic, config or {}))
        return self._store(facts, replace=facts.has_bound)

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        """See :meth:`streams.log.events.EventLog.create_event_topic`."""
        _check_new(topic, partitions)
        info = TopicInfo(topic, partitions, is_event_topic=True)
        found = self._store(StoredTopic(info), replace=False)
        self._declared[topic] = partitions
        return found

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.set_retention`."""
        facts = self.lookup(topic, fresh=True)
        if facts.info.is_event_topic:
            raise events_only(topic, "trimmed")
        info = facts.info._replace(retention=retention)
        return self._store(facts._replace(info=info), replace=True)

    def _store(self, facts: StoredTopic, *, replace: bool) -> TopicInfo:
        """Write a topic's facts, unless it exists.

        :param replace: if the topic exists, it gets these bounds.
        """
        info = facts.info
        topic, events, retention = info.name, info.is_event_topic, info.retention
        state, *stored = self._client.execute(
            script_command(
                topic, "create_topic",
                (topic_key(topic), topic.encode(), PartitionKeys(topic, 0, 1).event_key("keys")),
                info.partitions,
                "" if retention.seconds is None else repr(retention.seconds),
                count_text(retention.messages), count_text(facts.max_entries), int(replace),
                "1" if events else "",
            )
        )  # fmt: skip
        if state == _OTHER_KIND:
            raise not_an_event_topic(topic) if events else events_only(topic, "trimmed")
        if state == _OTHER_PARTITIONS:
            found = _parse_partitions(topic, *stored)
            mismatch = partition_count_mismatch if events else topic_mismatch
            raise mismatch(topic, found, info.partitions)
        self._client.execute(key_command(topic, "SADD", TOPICS_KEY, topic))
        created = _parse_topic(topic, _TopicFields(*stored))
        self._remember(topic, created)
        return created.info

    def lookup(self, topic: str, *, fresh: bool = False) -> StoredTopic:
        """A topic's facts, from memory unless ``fresh``.

        :raises NotFound: there is none of that name.
        """
        cached = None if fresh else self._cached.get(topic)
        if cached is not None:
            return cached
        found = self._load(topic)
        self._remember(topic, found)
        return found

    def event_partitions(self, topic: str, *, to_write: bool = False) -> int:
        """How many partitions an event topic has, looked up every :data:`CACHE_SECONDS` seconds: it
        may have been deleted and created again.

        :param to_write: the caller is going to write to the topic.
        :raises NotFound: there is none of that name.
        :raises EventTopicError: it keeps no histories.
        :raises PartitionCountMismatch: it has another number than was declared here.
        """
        now = time.monotonic()
        is_due = now >= self._event_topics.get(topic, float("-inf")) + CACHE_SECONDS
        try:
            info = self.lookup(topic, fresh=is_due).info
        except Unavailable:
            if topic not in self._cached:
                raise
            info = self.lookup(topic).info  # an outage is handled where events are written and read
        if not info.is_event_topic:
            raise not_an_event_topic(topic)
        if is_due:
            self._event_topics[topic] = now
        declared = self._declared.get(topic, info.partitions)
        if to_write and info.partitions != declared:
            raise partition_count_mismatch(topic, info.partitions, declared)
        return info.partitions

    def incarnation(self, topic: str) -> str:
        """See :meth:`streams.log.protocol.Log.incarnation`: a field of the topic's hash, which is
        created when it is first asked for, and deleted with the topic."""
        self.lookup(topic, fresh=True)
        key = topic_key(topic)
        _, found = self._client.execute_or_raise(
            [
                key_command(topic, "HSETNX", key, "incarnation", secrets.token_hex(8)),
                key_command(topic, "HGET", key, "incarnation"),
            ]
        )
        return str(found.decode())

    def _load(self, topic: str) -> StoredTopic:
        check_topic(topic)
        key = topic_key(topic)
        found, kind = self._client.execute_or_raise(
            [
                key_command(topic, "HMGET", key, *_TopicFields._fields),
                Command(topic, key, "TYPE", topic),
            ]
        )
        stored = _TopicFields(*found)
        if stored.partitions is None and kind == b"none":
            raise topic_not_found(topic)
        if stored.partitions is None and kind != b"stream":
            raise TopicMismatch(f"the key {topic!r} is a {kind.decode()}, not a stream")
        if stored.partitions is None:
            return StoredTopic(TopicInfo(topic, 1), created_here=False)
        return _parse_topic(topic, stored)

    def _remember(self, topic: str, facts: StoredTopic) -> None:
        before = self._cached.get(topic)
        if before is not None and before.info.partitions != facts.info.partitions:
            for partition in range(before.info.partitions):
                self._keys.pop((topic, partition), None)
        self._loaded_at[topic] = time.monotonic()
        self._cached[topic] = facts

    def lookup_recent(self, topic: str) -> StoredTopic:
        """A topic's facts, with a retention not older than :data:`CACHE_SECONDS` seconds.

        :raises NotFound: there is none of that name.
        """
        cached = self.lookup(topic)
        if self._is_stale(topic):
            found = self._load(topic)
            # If the server has lost the facts, :meth:`restore` writes those that are cached; a
            # topic that was deleted and created with other partitions is another one.
            if found.created_here and found.info.partitions == cached.info.partitions:
                cached = found
            self._remember(topic, cached)
        return cached

    def _is_stale(self, topic: str) -> bool:
        return time.monotonic() >= self._loaded_at.get(topic, float("-inf")) + CACHE_SECONDS

    def may_need_trimming(self, topic: str) -> bool:
        """Whether the topic is known to have a bound, or its facts have not been read for some
        time."""
        cached = self._cached.get(topic)
        return cached is not None and (cached.has_bound or self._is_stale(topic))

    def list_names(self) -> list[str]:
        """The names of all topics: those created here, and every stream with a valid topic name."""
        created = self._client.execute(key_command("topics", "SMEMBERS", TOPICS_KEY))
        names = set(valid_topics(created))
        for address in self._client.servers.all_addresses():
            names.update(valid_topics(self._scan_streams(address)))
        return sorted(names)

    def list_topics(self) -> list[TopicInfo]:
        """The facts of every topic."""
        found: list[TopicInfo] = []
        for name in self.list_names():
            try:
                found.append(self.lookup(name, fresh=True).info)
            except NotFound:
                continue  # deleted meanwhile
            except TopicMismatch as error:
                logger.warning("left out: %s", error)
        return found

    def _scan_streams(self, address: Address) -> Iterator[bytes]:
        cursor = b""
        while cursor != b"0":
            scan = ("SCAN", cursor or b"0", "COUNT", 1_000, "TYPE", "stream")
            try:
                cursor, names = self._client.request(address, scan, idle=True)
            except (RedisError, OSError) as error:
                raise translate(error, self._client.settings.name) from error
            yield from names

    def delete_topic(self, topic: str) -> None:
        """See :meth:`streams.log.protocol.Log.delete_topic`."""
        facts = self.lookup(topic, fresh=True)
        info = facts.info
        # A stream without stored facts may have been appended to while its topic was deleted.
        has_histories = info.is_event_topic or not facts.created_here
        groups = valid_names(self._client.execute(key_command(topic, "SMEMBERS", GROUPS_KEY)))
        commands: list[Command] = []
        for partition in range(info.partitions):
            keys = PartitionKeys(topic, partition, info.partitions)
            deleted = (keys.stream, *keys.id_hashes, *map(keys.group_key, groups))
            if has_histories:
                deleted += tuple(map(keys.event_key, ("causes", "refusals", "refused")))
                self._delete_histories(topic, keys, deleted)
            else:
                commands.append(Command(topic, keys.stream, "UNLINK", *deleted))
        for group in groups:
            key = topics_key(group)
            commands.append(key_command(topic, "HDEL", key, topic))
        commands.append(key_command(topic, "UNLINK", topic_key(topic)))
        commands.append(key_command(topic, "SREM", TOPICS_KEY, topic))
        self._client.execute_or_raise(commands)
        self._cached.pop(topic, None)
        self._declared.pop(topic, None)
        for partition in range(info.partitions):
            self._keys.pop((topic, partition), None)

    def _delete_histories(self, topic: str, keys: PartitionKeys, others: tuple[bytes, ...]) -> None:
        """Delete a partition's histories, then its other keys, then the snapshots."""
        command = script_command(
            topic,
            "delete_histories",
            (keys.event_key("keys"), *others),
            keys.history_key(b""),
            DELETED_KEYS,
        )
        while self._client.execute(command):
            pass
        kinds = keys.event_key("snapshots")
        stored = self._client.execute(key_command(topic, "SMEMBERS", kinds))
        snapshots = [keys.snapshots_key(text(name)) for name in stored]
        self._client.execute(key_command(topic, "UNLINK", kinds, *snapshots))

    def restore(self, topic: str) -> None:
        """Write a topic's facts again after the server has lost everything."""
        facts = self._cached.get(topic)
        if facts is None or not facts.created_here:
            return
        try:
            self._store(facts, replace=facts.has_bound)
        except TopicMismatch as error:
            raise LogError(f"{topic} was recreated with other settings: {error}") from error

    def partition_keys(self, topic: str, partition: int) -> PartitionKeys:
        """The keys of a partition.

        :raises NotFound: there is no such topic or partition.
        """
        found = self._keys.get((topic, partition))
        if found is None:
            partitions = self.lookup(topic).info.partitions
            if not 0 <= partition < partitions:
                raise NotFound(f"{topic} has partitions 0 to {partitions - 1}, not {partition}")
            found = self._keys[topic, partition] = PartitionKeys(topic, partition, partitions)
        return found

    def memory_usage(self, topic: str) -> int | None:
        """See :meth:`streams.log.protocol.SizedLog.topic_bytes`."""
        self.lookup(topic, fresh=True)
        replies = self._client.execute_all(
            [
                Command(str(keys), keys.stream, "MEMORY", "USAGE", keys.stream)
                for keys in self.all_partition_keys(topic)
            ]
        )
        total = 0
        for reply in replies:
            if isinstance(reply, Unavailable):
                raise reply
            if isinstance(reply, LogError):
                return None
            total += reply or 0  # no key, as nothing was written yet
        return total

    def all_partition_keys(self, topic: str) -> list[PartitionKeys]:
        """The keys of all the topic's partitions."""
        partitions = self.lookup(topic).info.partitions
        return [self.partition_keys(topic, each) for each in range(partitions)]


def _parse_topic(topic: str, stored: _TopicFields) -> StoredTopic:
    """The facts in a topic's hash.

    :raises TopicMismatch: one of its fields makes no sense.
    """
    seconds = parse_float(stored.seconds) if stored.seconds else None
    if stored.seconds and (seconds is None or seconds <= 0):
        remedy = "set it to the seconds that messages are kept"
        raise _damaged_topic(topic, "seconds", stored.seconds, remedy)
    retention = Retention(seconds, _parse_count(topic, "messages", stored.messages))
    number = _parse_partitions(topic, stored.partitions) if stored.partitions else 1
    info = TopicInfo(topic, number, retention, is_event_topic=stored.events == b"1")
    return StoredTopic(info, _parse_count(topic, "most", stored.most))


def _check_new(topic: str, partitions: int) -> None:
    """Check that the topic can be created."""
    check_topic(topic)
    if partitions < 1:
        raise ConfigError(f"{topic}: {partitions} partitions: at least 1")


def _parse_partitions(topic: str, stored: bytes) -> int:
    found = parse_int(stored)
    if found is None or not 1 <= found <= _MAX_PARTITIONS:
        raise _damaged_topic(topic, "partitions", stored, "set it to the number that there are")
    return found


def _parse_count(topic: str, field: str, stored: bytes | None) -> int | None:
    if not stored:
        return None
    found = parse_int(stored)
    if not found:
        raise _damaged_topic(topic, field, stored, "set it to a number from 1 on, or to nothing")
    return found


def _damaged_topic(topic: str, field: str, stored: bytes, remedy: str) -> TopicMismatch:
    damage = damaged_field(topic_key(topic), field, stored, remedy)
    return TopicMismatch(f"topic {topic!r}: {damage}")


def _parse_max_entries(topic: str, config: Mapping[str, str]) -> int | None:
    for name in config:
        if name != MAX_ENTRIES:
            raise ConfigError(
                f"{topic}: config={{{name!r}: …}}: on Redis there is only {MAX_ENTRIES!r}, the "
                "entries a partition keeps at most, whatever groups have settled"
            )
    text = config.get(MAX_ENTRIES)
    if text is None:
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise ConfigError(f"{topic}: {MAX_ENTRIES}={text!r}: a number of entries is needed")
    return int(text)
