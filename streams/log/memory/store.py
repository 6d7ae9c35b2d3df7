"""What the memory log holds: topics, their partitions as columns, groups.

Plain data under one lock, :attr:`Store.lock`; whoever calls here holds it. Nothing here blocks.

A partition keeps its messages as *columns*, one list of keys, one of values and so on, so that a
batch is a few list slices whatever its length, and an append a few list extensions. ``first`` is
the first position that can be read; the columns start at ``base``, which lags behind, because
deleting at the front of a list moves all the rest: it is done when half of it is dead.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from threading import TIMEOUT_MAX, Condition, Lock
from typing import Any, Protocol

from streams.clock import Clock
from streams.errors import ConfigError, LogError, NotFound, TopicMismatch
from streams.log.membership import (
    DEFAULT_TERMS,
    INFINITY,
    Lease,
    Member,
    Plan,
    plan,
)
from streams.log.names import (
    check_group,
    check_topic,
    group_not_found,
    partitions_for,
    topic_not_found,
)
from streams.log.protocol import TRIM_MARGIN, Committed, Retention, TopicInfo, TopicPartition
from streams.message import ID, REDRIVE, SOURCE, Batch, Headers, Position, Record, identity_of

KEEP_FOREVER = Retention()


class MemoryBatch(Batch):
    """A slice of a partition. The ID header of a message without others is made when read."""

    __slots__ = ("header_sources",)

    header_sources: list[Record | str]

    def headers(self, index: int) -> Headers:
        """The headers of one message, the ID first where there is one."""
        found = self.header_sources[index]
        return (
            _headers_with_id(found, ())
            if isinstance(found, str)
            else _headers_with_id(found.id, found.headers)
        )

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID."""
        found = self.header_sources[index]
        return () if isinstance(found, str) else found.headers


def _headers_with_id(id: str, others: Headers) -> Headers:
    return ((ID, id.encode("utf-8", "surrogateescape")), *others) if id else others


class Partition:
    """One partition's messages."""

    __slots__ = (
        "_times",
        "base",
        "columns",
        "end",
        "first",
        "header_sources",
        "ids",
        "keys",
        "values",
    )

    def __init__(self) -> None:
        self.first = self.base = self.end = 0
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.ids: list[str | None] = []  # identities
        # What headers are made from when they are read: the record, or the ID if there is no
        # other. (A tuple a message would be work for the garbage collector; a record is none.)
        self.header_sources: list[Record | str] = []
        self._times = array("d")
        self.columns: tuple[list[Any] | array[float], ...] = (
            self.keys,
            self.values,
            self.ids,
            self.header_sources,
            self._times,
        )

    def append(self, records: Sequence[Record], now: float) -> range:
        """Write records; the offsets they got. Log times never go back within a partition."""
        count = len(records)
        if self._times and self._times[-1] > now:
            now = self._times[-1]
        self.keys += [record.key for record in records]
        self.values += [record.value for record in records]
        self.header_sources += [record if record.headers else record.id for record in records]
        self.ids += [
            _identity(record) if record.headers else record.id or None for record in records
        ]
        self._times.extend(repeat(now, count))
        self.end += count
        return range(self.end - count, self.end)

    def batch(self, topic: str, partition: int, start: int, count: int, assignment: Any) -> Batch:
        """``count`` messages from ``start`` on, which must be there."""
        index = start - self.base
        to = index + count
        batch = MemoryBatch(
            topic,
            partition,
            range(start, start + count),
            self.keys[index:to],
            self.values[index:to],
            self.ids[index:to],
            None,
            self._times[index:to],
            assignment,
        )
        batch.header_sources = self.header_sources[index:to]
        return batch

    def offset_for_time(self, time: float) -> int:
        """Position of the first message taken at or after ``time``; the end if none."""
        return self.base + bisect_left(self._times, time, self.first - self.base)

    def trim(self, first: int) -> None:
        """Drop what is before position ``first``."""
        if first <= self.first:
            return
        self.first = first
        dead = first - self.base
        if dead * 2 >= self.end - self.base:
            for column in self.columns:
                del column[:dead]
            self.base = first


def _identity(record: Record) -> str | None:
    for name, _ in record.headers:
        if name in _IDENTITY_HEADERS:
            return identity_of(_headers_with_id(record.id, record.headers))
    return record.id or None


_IDENTITY_HEADERS = frozenset((ID, SOURCE, REDRIVE))


class Topic:
    """A topic: its partitions, its retention, and who waits for its next message."""

    def __init__(self, name: str, partitions: int, retention: Retention) -> None:
        self.name = name
        self.partitions = [Partition() for _ in range(partitions)]
        self.retention = retention
        self.waiters: set[Condition] = set()

    @property
    def info(self) -> TopicInfo:
        """This topic as the protocol shows it."""
        return TopicInfo(self.name, len(self.partitions), self.retention)

    def append(self, records: Sequence[Record], now: float) -> list[Position | LogError]:
        """Write records in order; where each one stands, or why it does not."""
        if len(self.partitions) == 1 and not any(record.partition for record in records):
            offsets = self.partitions[0].append(records, now)
            return list(map(Position, repeat(self.name), repeat(0), offsets))
        indexes_by_partition: dict[int, list[int]] = {}
        count = len(self.partitions)
        for index, partition in enumerate(partitions_for(records, count)):
            indexes_by_partition.setdefault(partition, []).append(index)
        outcomes: list[Position | LogError] = [_NO_OUTCOME] * len(records)
        for partition, indexes in indexes_by_partition.items():
            if not 0 <= partition < count:
                for index in indexes:
                    outcomes[index] = no_partition(self.name, partition, count)
                continue
            chosen = [records[index] for index in indexes]
            offsets = self.partitions[partition].append(chosen, now)
            for index, offset in zip(indexes, offsets, strict=True):
                outcomes[index] = Position(self.name, partition, offset)
        return outcomes

    def wake(self) -> None:
        """Make everyone who waits for a message look again."""
        for waiting in self.waiters:
            waiting.notify_all()


def wait_for_messages(topics: Sequence[Topic], condition: Condition, timeout: float) -> None:
    """Wait for a message in one of these topics, or for whatever else notifies the condition."""
    for topic in topics:
        topic.waiters.add(condition)
    try:
        condition.wait(bounded_timeout(timeout))
    finally:
        for topic in topics:
            topic.waiters.discard(condition)


def bounded_timeout(timeout: float) -> float:
    """A timeout as a condition takes it: not negative, not for ever."""
    return min(max(0.0, timeout), TIMEOUT_MAX)


_NO_OUTCOME = LogError("the append has no outcome")


def no_partition(topic: str, partition: int, count: int) -> NotFound:
    """What to raise for a partition that is not there."""
    return NotFound(f"topic {topic!r} has no partition {partition}: it has 0 to {count - 1}")


class GroupMember(Protocol):
    """What a group knows of a subscription."""

    id: str
    topics: tuple[str, ...]
    expires: float
    is_polling: bool
    is_killed: bool
    group_changed: Condition

    def invalidate_lost(self) -> None:
        """Stop trusting assignments whose leases are not its own any more (lock held)."""
        ...

    def fence(self) -> None:
        """Another member has joined under its name (lock held)."""
        ...


class Group:
    """A group: its positions, its members, and who holds which lease.

    A member renews all its leases together, so the expiry stands with the member. A member that
    is *inside* a wait or a callback of its own poll is alive by definition, its lease does not run
    out; so nobody needs a thread that does nothing but heartbeats.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions: dict[TopicPartition, Committed] = {}
        self.members: dict[str, GroupMember] = {}
        self.leases: dict[
            TopicPartition, tuple[str, int]
        ] = {}  # owner ("" when released) and epoch
        self.trim_margins: dict[str, int] = {}
        self.generation = 0

    def bump_generation(self) -> None:
        """Members or leases changed otherwise than by time: everyone makes a new plan."""
        self.generation += 1
        for member in self.members.values():
            member.group_changed.notify_all()

    def renew_polling(self, now: float) -> None:
        """Extend the rows of who is inside poll; forget the dead whose leases are over."""
        for member in list(self.members.values()):
            if member.is_polling:
                member.expires = DEFAULT_TERMS.expiry(now)
            elif member.is_killed and member.expires <= now:
                del self.members[member.id]

    def join(self, member: GroupMember) -> None:
        """A member comes; the one before of its name loses what it had, to this one alone."""
        predecessor = self.members.pop(member.id, None)
        self.members[member.id] = member
        if predecessor is not None:
            for partition in self.held_by(member.id):
                self.leases[partition] = member.id, self.leases[partition][1] + 1
            predecessor.fence()
        self.bump_generation()

    def live_members(self, now: float) -> Iterator[GroupMember]:
        """Members whose leases have not run out."""
        self.renew_polling(now)
        return (member for member in self.members.values() if member.expires > now)

    def plan(
        self,
        member_id: str,
        now: float,
        partitions: Mapping[str, int],
        held: Collection[TopicPartition],
    ) -> Plan:
        """What member ``member_id`` should do, which holds these leases itself."""
        self.renew_polling(now)
        rows = [Member(m.id, m.topics, m.expires) for m in self.members.values()]
        leases = {
            partition: Lease(owner, epoch, self.members[owner].expires)
            if owner in self.members
            else Lease("", epoch, -INFINITY)
            for partition, (owner, epoch) in self.leases.items()
        }
        return plan(member_id, now, rows, partitions, leases, held)

    def held_by(self, member: str) -> list[TopicPartition]:
        """What a member holds the lease of."""
        return [partition for partition, (owner, _) in self.leases.items() if owner == member]

    def release_leases(self, partitions: Iterable[TopicPartition]) -> None:
        """Set leases free, whoever holds them; their epochs stay."""
        for partition in partitions:
            if partition in self.leases:
                self.leases[partition] = "", self.leases[partition][1]
        for member in self.members.values():
            member.invalidate_lost()
        self.bump_generation()

    def needed_from(self, topic: str, partition: int) -> int:
        """Position from which on this group still needs messages, its dedup window included."""
        committed = self.positions.get((topic, partition))
        return committed.position - self.trim_margins.get(topic, TRIM_MARGIN) if committed else 0

    def needs_topic(self, topic: str) -> bool:
        """Whether messages of this topic are kept for this group."""
        return any(partition[0] == topic for partition in self.positions) or any(
            topic in member.topics for member in self.members.values()
        )


def _list_names(names: Iterable[str]) -> str:
    found = sorted(names)
    return f"there are {', '.join(found[:8])}{', …' * (len(found) > 8)}" if found else "none yet"


class Store:
    """Everything of one memory log. It lives as long as somebody has it open."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.lock = Lock()
        self.users = 0
        self.topics: dict[str, Topic] = {}
        self._groups: dict[str, Group] = {}
        self.members_joined = 0
        self._unwatch: Callable[[], None] = clock.on_jump(self._clock_advanced)

    def _clock_advanced(self) -> None:
        """A test advanced its clock: whoever waits looks at it again."""
        with self.lock:
            for group in self._groups.values():
                for member in group.members.values():
                    member.group_changed.notify_all()

    def close(self) -> None:
        """The last one closed it."""
        self._unwatch()

    # -- topics

    def create_topic(self, name: str, partitions: int, retention: Retention) -> TopicInfo:
        """Create a topic, or find it as it should be; a retention that is given replaces."""
        check_topic(name)
        if partitions < 1:
            raise ConfigError(f"topic {name!r}: partitions={partitions!r}, at least 1")
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, partitions, retention)
            for group in self._groups.values():
                group.bump_generation()
        elif len(topic.partitions) != partitions:
            raise TopicMismatch(
                f"topic {name!r} has {len(topic.partitions)} partitions, but {partitions} were"
                " declared: declare what it has, or use another name"
            )
        elif retention != KEEP_FOREVER:
            topic.retention = retention
        return topic.info

    def set_retention(self, name: str, retention: Retention) -> TopicInfo:
        """Give a topic another retention."""
        topic = self.topic(name)
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
        """Those of these topics that there are."""
        return [self.topics[name] for name in names if name in self.topics]

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has."""
        return {name: len(topic.partitions) for name, topic in self.topics.items()}

    def partition(self, name: str, partition: int) -> Partition:
        """One partition, with what is too old already gone."""
        topic = self.topic(name)
        if not 0 <= partition < len(topic.partitions):
            raise no_partition(name, partition, len(topic.partitions))
        self.trim_topic(topic)
        return topic.partitions[partition]

    def delete_topic(self, name: str) -> None:
        """Delete a topic, its positions and its leases."""
        topic = self.topic(name)
        del self.topics[name]
        for group in self._groups.values():
            group.positions = {p: c for p, c in group.positions.items() if p[0] != name}
            group.release_leases([partition for partition in group.leases if partition[0] == name])
        topic.wake()

    def trim_topic(self, topic: Topic) -> None:
        """Trim by retention, but nothing that a group may still need."""
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
        """Write records in order and wake who waits for them."""
        topic = self.topic(name)
        outcomes = topic.append(records, self.clock.time())
        self.trim_topic(topic)
        topic.wake()
        return outcomes

    # -- groups

    def group(self, name: str) -> Group:
        """A group that exists: one with positions, or with members."""
        group = self._groups.get(name)
        if group is None or not self._group_exists(group):
            raise group_not_found(name, f" (memory://{self.name}: {_list_names(self.groups())})")
        return group

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return sorted(name for name, group in self._groups.items() if self._group_exists(group))

    def ensure_group(self, name: str) -> Group:
        """A group, made if need be."""
        return self._groups.setdefault(check_group(name), Group(name))

    def delete_group(self, name: str) -> None:
        """Delete a group and its positions. Its epochs stay, so that a member which was frozen
        until now cannot commit under one that was used before."""
        group = self.group(name)
        group.positions.clear()
        group.trim_margins.clear()
        group.release_leases(group.leases)

    def _group_exists(self, group: Group) -> bool:
        return bool(group.positions) or any(
            True for _ in group.live_members(self.clock.monotonic())
        )
