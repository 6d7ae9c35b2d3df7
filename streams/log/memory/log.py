"""The log protocol in memory: one opener's handle, and sharing by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

from streams.config import Flow
from streams.errors import Fatal, Fenced, LogError, Unavailable
from streams.log.dense_offsets import DenseOffsets
from streams.log.event_filter import EventFilter, EventReader, EventSubscription, ForeignRecords
from streams.log.events import (
    AppendOutcome,
    EventAppend,
    EventLog,
    EventTotals,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    StoredRefusal,
    StoredSnapshot,
)
from streams.log.memory.documents import MemoryDocuments
from streams.log.memory.faults import Fault, FaultPoints
from streams.log.memory.membership import Group
from streams.log.memory.reader import MemoryReader
from streams.log.memory.registry import NamedRegistry
from streams.log.memory.store import KEEP_FOREVER, Store
from streams.log.memory.subscription import MemorySubscription
from streams.log.memory.topics import bounded_timeout, no_partition
from streams.log.names import group_not_empty
from streams.log.protocol import (
    TRIM_MARGIN,
    Assignment,
    Capabilities,
    Committed,
    DurabilityFact,
    GroupInfo,
    MemberInfo,
    OnAppended,
    OpenRequest,
    RebalanceListener,
    Retention,
    StaticMember,
    TopicInfo,
    check_retention,
)
from streams.message import Position, Record

CAPABILITIES = Capabilities(
    "memory",
    durable=False,
    processes=False,
    uses_app_clock=True,
    events=True,
    documents=True,
    commits_outputs=True,
    fences_appends=True,
    # Services for any log are tested on this one. Of these bounds it applies seconds and messages.
    retention=frozenset(each.name for each in fields(Retention)),
)

Write = Callable[[], Sequence["Position | LogError"]]
"""Writes records; returns the position or the error of each."""

_registry = NamedRegistry(
    Store, private_description="a log of one's own", shared_description="one that is shared"
)


def open(request: OpenRequest) -> MemoryLog:
    """Open ``memory://`` or ``memory://name``. Driver settings are ignored: they are for the log
    that the app uses outside of tests.

    :raises ConfigError: the URL has settings, or the shared log uses another clock.
    """
    return MemoryLog(_registry.acquire(request))


class MemoryLog(DenseOffsets, EventLog):
    """One opener's handle on a memory log."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = store.lock
        self._subscriptions: set[MemorySubscription] = set()
        self._faults = FaultPoints()
        self._event_filter = EventFilter(ForeignRecords())
        self._close_reason = ""
        self._appending = 0
        self._append_ended = threading.Condition(store.lock)
        self.documents = MemoryDocuments(store.collections, self._locked)

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    # -- for tests

    def fault(self, hook: Fault | None) -> None:
        """Call ``hook(point, name)`` from now on, at each of
        :data:`~streams.log.memory.faults.POINTS`; None ends it.

        :class:`~streams.errors.Unavailable` at ``append``, ``commit.before`` or ``outputs.before``
        means that nothing was written; :class:`~streams.errors.OutcomeUnknown` at ``append.done``
        or ``outputs.after``, or an error at ``commit.after``, means that it was written and the
        answer was lost.
        """
        self._faults.hook = hook

    def crash(self) -> None:
        """Simulate that the process that opened this log is killed: every call raises, and its
        leases expire by the clock. Other openers of the same name are not affected."""
        self._shut_down("crashed by a test", MemorySubscription.end_killed)

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = KEEP_FOREVER,
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic; if it exists, a given retention replaces its own."""
        check_retention(topic, retention, CAPABILITIES)
        with self._locked():
            return self.store.create_topic(topic, partitions, retention)

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        check_retention(topic, retention, CAPABILITIES)
        with self._locked():
            return self.store.set_retention(topic, retention)

    def describe_topic(self, topic: str) -> TopicInfo:
        with self._locked():
            return self.store.topic(topic).info

    def describe_topics(self) -> list[TopicInfo]:
        with self._locked():
            return [topic.info for _, topic in sorted(self.store.topics.items())]

    def incarnation(self, topic: str) -> str:
        with self._locked():
            return self.store.topic(topic).incarnation

    def list_topics(self) -> list[str]:
        with self._locked():
            return sorted(self.store.topics)

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        advice = "it ends with the process: use sqlite:///FILE, redis://HOST or kafka://HOST"
        return (DurabilityFact("storage", "this process's memory", False, advice),)

    def delete_topic(self, topic: str) -> None:
        with self._locked():
            self.store.delete_topic(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Append in one step; ``on_appended`` is called before this returns."""
        self._append_by(
            partial(self.store.append, topic, records), topic, len(records), on_appended
        )

    def _append_by(self, write: Write, topic: str, count: int, on_appended: OnAppended) -> None:
        """Append this many records with ``write``, which is called with the lock held."""
        with self._lock:
            self._appending += 1
        try:
            outcomes = self._outcomes(write, topic, count)
        finally:
            with self._lock:
                self._appending -= 1
                self._append_ended.notify_all()
        on_appended(outcomes)

    def _outcomes(self, write: Write, topic: str, count: int) -> Sequence[Position | LogError]:
        try:
            self._faults.strike("append", topic)
            with self._locked():
                outcomes = write()
            self._faults.strike("append.done", topic)
        except LogError as error:
            return [error] * count
        return outcomes

    def _append_as_owners(
        self,
        require_owned: Callable[[Assignment], None],
        topic: str,
        records: Sequence[Record],
        owners: Sequence[Assignment],
        on_appended: OnAppended,
    ) -> None:
        """See :data:`streams.log.protocol.AppendAsOwners`.

        :param require_owned: called with the lock held; raises for an assignment that is no longer
            owned.
        """

        def write() -> list[Position | LogError]:
            fenced: dict[Assignment, LogError] = {}
            for owner in dict.fromkeys(owners):
                try:
                    require_owned(owner)
                except Fenced as error:
                    fenced[owner] = error
            pairs = zip(records, owners, strict=True)
            positions = iter(
                self.store.append(topic, [each for each, owner in pairs if owner not in fenced])
            )
            return [fenced[each] if each in fenced else next(positions) for each in owners]

        self._append_by(write, topic, len(records), on_appended)

    # -- histories

    @property
    def never_blocks(self) -> bool:
        """Whether an event loop may call append and read directly: True unless a test injects
        faults."""
        return self._faults.hook is None

    @property
    def fails_by_partition(self) -> bool:
        return False

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        with self._locked():
            return self.store.create_event_topic(topic, partitions)

    def append_events(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """Append to histories; ``on_appended`` is called before this returns."""
        outcomes: Sequence[AppendOutcome]
        try:
            self._faults.strike("append", topic)
            with self._locked():
                outcomes = self.store.append_events(topic, appends)
            self._faults.strike("append.done", topic)
        except LogError as error:
            outcomes = [error] * len(appends)
        on_appended(outcomes)

    def read_histories(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        self._faults.strike("read", topic)
        with self._locked():
            index = self.store.event_index(topic)
            return [index.read(request) for request in requests]

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        with self._locked():
            self.store.event_index(topic).write_snapshots(snapshots)

    def delete_snapshots(self, topic: str, fingerprint: str | None = None) -> int:
        with self._locked():
            return self.store.event_index(topic).delete_snapshots(fingerprint)

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        with self._locked():
            return self.store.event_index(topic).list_snapshots(key)

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        with self._locked():
            return self.store.event_index(topic).list_refusals(key)

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        with self._locked():
            self.store.partition(topic, partition)
            return self.store.event_index(topic).list_keys(partition, after, limit)

    def event_totals(self, topic: str) -> EventTotals:
        with self._locked():
            return self.store.event_index(topic).totals()

    def index_progress(self, topic: str) -> tuple[int, int]:
        return 0, 0

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        with self._locked():
            found = self.store.partition(topic, partition)
            return found.first, found.end

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        with self._locked():
            return self.store.partition(topic, partition).offset_for_time(time)

    def reader(
        self, topic: str, partition: int, start: int, end: int
    ) -> MemoryReader | EventReader:
        reader = self.raw_reader(topic, partition, start, end)
        with self._locked():
            is_event_topic = self.store.topic(topic).is_event_topic
        return EventReader(reader, self._event_filter) if is_event_topic else reader

    def raw_reader(self, topic: str, partition: int, start: int, end: int) -> MemoryReader:
        with self._locked():
            self.store.partition(topic, partition)
        return MemoryReader(
            self.store, self._faults, self._require_open, topic, partition, start, end
        )

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        with self._locked():
            self._check_partitions(topic, positions)
            found = self.store.ensure_group(group)
            if any(topic_partition[0] == topic for topic_partition in found.positions):
                return False
            for partition, position in positions.items():
                found.positions[topic, partition] = Committed(position)
            return True

    def describe_group(self, group: str, topics: Collection[str] | None = None) -> GroupInfo:
        with self._locked():
            found = self.store.group(group)
            members = tuple(
                MemberInfo(member.id, tuple(sorted(found.held_by(member.id))))
                for member in found.live_members(self.store.clock.monotonic())
            )
            return GroupInfo(group, members, dict(found.positions)).within(topics)

    def list_groups(self) -> list[str]:
        with self._locked():
            return self.store.groups()

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        with self._locked():
            self._check_partitions(topic, offsets)
            found = self.store.ensure_group(group)
            if not force:
                self._require_no_members(found)
            for partition, committed in offsets.items():
                found.positions[topic, partition] = committed
            found.release_leases((topic, partition) for partition in offsets)
            self.store.trim_topic(self.store.topic(topic))

    def delete_group(self, group: str) -> None:
        with self._locked():
            self._require_no_members(self.store.group(group))
            self.store.delete_group(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        *,
        flow: Flow = Flow(),
        trim_margin: int = TRIM_MARGIN,
        member: StaticMember | None = None,
    ) -> MemorySubscription | EventSubscription:
        with self._locked():
            found = self.store.ensure_group(group)
            event_topics = [name for name in topics if self.store.topic(name).is_event_topic]
            for topic in topics:
                found.trim_margins[topic] = trim_margin
            subscription = MemorySubscription(
                self.store,
                self._faults,
                self._append_as_owners,
                self._subscriptions.discard,
                found,
                topics,
                listener,
                member,
            )
            self._subscriptions.add(subscription)
        if event_topics:
            return EventSubscription(subscription, event_topics, self._event_filter)
        return subscription

    def remove_member(self, group: str, member: StaticMember) -> None:
        """Do nothing: all members are in this process."""

    # -- the rest

    def flush(self, timeout: float) -> None:
        with self._lock:
            if not self._append_ended.wait_for(
                lambda: not self._appending, bounded_timeout(timeout)
            ):
                raise Unavailable(f"{self._appending} appends are unfinished after {timeout:g} s")

    def close(self) -> None:
        self._shut_down("closed", MemorySubscription.leave_group)

    # -- inside

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        with self._lock:
            self._require_open()
            yield

    def _require_open(self) -> None:
        """Refuse when closed (the lock is held)."""
        if self._close_reason:
            raise Fatal(f"memory://{self.store.name}: {self._close_reason}")

    def _shut_down(
        self, reason: str, end_subscription: Callable[[MemorySubscription, str], None]
    ) -> None:
        with self._lock:
            if self._close_reason:
                return
            self._close_reason = reason
            for subscription in list(self._subscriptions):
                end_subscription(subscription, reason)
            for topic in self.store.topics.values():  # wakes readers and polls
                topic.wake()
        if _registry.release(self.store):
            self.store.close()

    def _check_partitions(self, topic: str, numbers: Iterable[int]) -> None:
        count = len(self.store.topic(topic).partitions)
        for number in numbers:
            if not 0 <= number < count:
                raise no_partition(topic, number, count)

    def _require_no_members(self, group: Group) -> None:
        running = sum(1 for _ in group.live_members(self.store.clock.monotonic()))
        if running:
            raise group_not_empty(group.name, running)
