"""The data of one memory log: its topics and its groups.

Plain data under one lock, :attr:`Store.lock`. Callers of this module, :mod:`topics
<streams.log.memory.topics>` and :mod:`membership <streams.log.memory.membership>` hold it. Nothing
here blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock

from streams.clock import Clock
from streams.errors import ConfigError, LogError
from streams.log.events import (
    AppendOutcome,
    EventAppend,
    events_only,
    not_an_event_topic,
    partition_count_mismatch,
)
from streams.log.memory.documents import Collection
from streams.log.memory.events import EventIndex
from streams.log.memory.membership import Group
from streams.log.memory.topics import Partition, Topic, no_partition
from streams.log.names import (
    check_group,
    check_topic,
    group_not_found,
    topic_mismatch,
    topic_not_found,
)
from streams.log.protocol import Retention, TopicInfo
from streams.message import Position, Record

KEEP_FOREVER = Retention()


def _list_names(names: Iterable[str]) -> str:
    found = sorted(names)
    return f"there are {', '.join(found[:8])}{', …' * (len(found) > 8)}" if found else "none yet"


class Store:
    """The data of one memory log, which lives until its last opener closes it."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.lock = Lock()
        self.users = 0
        self.topics: dict[str, Topic] = {}
        self._event_indexes: dict[str, EventIndex] = {}
        self.collections: dict[str, Collection] = {}
        self._groups: dict[str, Group] = {}
        self.members_joined = 0
        self._unwatch: Callable[[], None] = clock.on_jump(self._clock_advanced)

    def _clock_advanced(self) -> None:
        """Wake waiting members, as a test has advanced its clock."""
        with self.lock:
            for group in self._groups.values():
                for member in group.members.values():
                    member.group_changed.notify_all()

    def close(self) -> None:
        """Close the store, as its last opener has closed it."""
        self._unwatch()

    # -- topics

    def create_topic(self, name: str, partitions: int, retention: Retention) -> TopicInfo:
        """Create a topic; if it exists, a given retention replaces its own."""
        check_topic(name)
        if partitions < 1:
            raise ConfigError(f"topic {name!r}: partitions={partitions!r}, at least 1")
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, partitions, retention)
            for group in self._groups.values():
                group.require_new_plan()
        elif len(topic.partitions) != partitions:
            raise topic_mismatch(name, len(topic.partitions), partitions)
        elif retention != KEEP_FOREVER:
            _check_may_trim(topic)
            topic.retention = retention
        return topic.info

    def create_event_topic(self, name: str, partitions: int) -> TopicInfo:
        """Create an event topic, or check that the existing one is as declared."""
        if name not in self.topics:
            self.create_topic(name, partitions, KEEP_FOREVER)
            topic = self.topics[name]
            topic.is_event_topic = True
            self._event_indexes[name] = EventIndex(topic)
            return topic.info
        topic = self.topics[name]
        if not topic.is_event_topic:
            raise not_an_event_topic(name)
        if len(topic.partitions) != partitions:
            raise partition_count_mismatch(name, len(topic.partitions), partitions)
        return topic.info

    def event_index(self, name: str) -> EventIndex:
        """The histories of an event topic."""
        self.topic(name)
        found = self._event_indexes.get(name)
        if found is None:
            raise not_an_event_topic(name)
        return found

    def append_events(self, name: str, appends: Sequence[EventAppend]) -> list[AppendOutcome]:
        """Append to histories, and wake the callers that wait for messages."""
        index, now = self.event_index(name), self.clock.time()
        outcomes = [index.append(append, now) for append in appends]
        self.topics[name].wake()
        return outcomes

    def set_retention(self, name: str, retention: Retention) -> TopicInfo:
        """Change a topic's retention."""
        topic = self.topic(name)
        _check_may_trim(topic)
        topic.retention = retention
        self.trim_topic(topic)
        return topic.info

    def topic(self, name: str) -> Topic:
        """A topic by name."""
        topic = self.topics.get(name)
        if topic is None:
            raise topic_not_found(name, f" (memory://{self.name}: {_list_names(self.topics)})")
        return topic

    def existing_topics(self, names: Iterable[str]) -> list[Topic]:
        """The topics among these that exist."""
        return [self.topics[name] for name in names if name in self.topics]

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has."""
        return {name: len(topic.partitions) for name, topic in self.topics.items()}

    def partition(self, name: str, partition: int) -> Partition:
        """One partition, after trimming."""
        topic = self.topic(name)
        if not 0 <= partition < len(topic.partitions):
            raise no_partition(name, partition, len(topic.partitions))
        self.trim_topic(topic)
        return topic.partitions[partition]

    def delete_topic(self, name: str) -> None:
        """Delete a topic, its positions and its leases."""
        topic = self.topic(name)
        del self.topics[name]
        self._event_indexes.pop(name, None)
        for group in self._groups.values():
            group.positions = {p: c for p, c in group.positions.items() if p[0] != name}
            group.release_leases([partition for partition in group.leases if partition[0] == name])
        topic.wake()

    def trim_topic(self, topic: Topic) -> None:
        """Trim by retention, except what a group may still need."""
        retention = topic.retention
        if retention == KEEP_FOREVER:
            return
        users = [group for group in self._groups.values() if group.needs_topic(topic.name)]
        for number, partition in enumerate(topic.partitions):
            first = partition.first
            if retention.messages is not None:
                first = max(first, partition.end - retention.messages)
            if retention.seconds is not None:
                first = max(first, partition.offset_for_time(self.clock.time() - retention.seconds))
            for group in users:
                first = min(first, group.needed_from(topic.name, number))
            partition.trim(first)

    def append(self, name: str, records: Sequence[Record]) -> list[Position | LogError]:
        """Write records in order, and wake the callers that wait for messages."""
        topic = self.topic(name)
        if topic.is_event_topic:
            return [events_only(name, "published to")] * len(records)
        outcomes = topic.append(records, self.clock.time())
        self.trim_topic(topic)
        topic.wake()
        return outcomes

    def refusals(self, name: str, records: Sequence[Record]) -> dict[int, LogError]:
        """The errors of the records that could not be written, by index.

        :raises NotFound: there is no such topic.
        """
        topic = self.topic(name)
        if topic.is_event_topic:
            return dict.fromkeys(range(len(records)), events_only(name, "published to"))
        return topic.refusals(records)

    # -- groups

    def group(self, name: str) -> Group:
        """An existing group: one with positions or members."""
        group = self._groups.get(name)
        if group is None or not self._group_exists(group):
            raise group_not_found(name, f" (memory://{self.name}: {_list_names(self.groups())})")
        return group

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return sorted(name for name, group in self._groups.items() if self._group_exists(group))

    def ensure_group(self, name: str) -> Group:
        """A group, created if it does not exist."""
        return self._groups.setdefault(check_group(name), Group(name))

    def delete_group(self, name: str) -> None:
        """Delete a group and its positions. Its epochs stay, so that none is used twice and a
        member that was frozen cannot commit."""
        group = self.group(name)
        group.positions.clear()
        group.trim_margins.clear()
        group.release_leases(group.leases)

    def _group_exists(self, group: Group) -> bool:
        return bool(group.positions) or any(
            True for _ in group.live_members(self.clock.monotonic())
        )


def _check_may_trim(topic: Topic) -> None:
    if topic.is_event_topic:
        raise events_only(topic.name, "trimmed")
