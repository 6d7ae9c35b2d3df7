"""Histories on Kafka: appends without a condition, and readers who decide whether they count.

See :mod:`streams.log.kafka.arbitration` for the rule. This module reads histories, and puts
together what is needed for that:

===================  ======================================================================
``event_topics``     what makes a topic an event topic
``event_indexes``    which records count, and where each key's stand; the records themselves
``event_appends``    appending
``event_snapshots``  snapshots
===================  ======================================================================
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from streams.errors import LogError, NotFound
from streams.log.event_headers import event_header, parse_event
from streams.log.events import (
    NO_HISTORY,
    Base,
    EventAppend,
    EventTotals,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    StoredEvent,
    StoredRefusal,
    StoredSnapshot,
    has_base,
)
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.event_appends import Appends
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.event_indexes import EventIndexes, FoundRecord
from streams.log.kafka.event_snapshots import EventSnapshots, WantedSnapshot
from streams.log.kafka.event_topics import EventTopics
from streams.log.kafka.index_records import IndexSnapshot
from streams.log.kafka.index_topic import delete_index_topic
from streams.log.kafka.partition_index import PartitionIndex
from streams.log.kafka.producer import Writer
from streams.log.kafka.snapshot_index import FoundSnapshot, SnapshotIndex, snapshot_topic
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools
from streams.log.names import partition_for


class _Look(NamedTuple):
    """The index's answer to a request.

    :param start: the base behind which events are read: what is known, or a snapshot's.
    :param offsets: of the events to be read.
    :param known_is_open: whether the history had what is known is still to be found out.
    """

    history: History
    start: Base
    offsets: Sequence[int]
    known_is_open: bool
    snapshot: FoundSnapshot | None


class Events:
    """The event topics of one log. Usable from any thread."""

    def __init__(
        self,
        topics: Topics,
        make_writer: Callable[[], Writer],
        tools: WriterTools,
    ) -> None:
        readers, requests = tools.readers, tools.requests
        self._readers = readers
        self._uses_index_snapshots = requests.settings.index_snapshots > 0
        self._topics = topics
        self._make_writer = make_writer
        self._made_writer: Writer | None = None
        self._lock = threading.Lock()
        self._closed = False
        kinds = self.kinds = EventTopics(topics, self.writer, readers, requests)
        self.indexes = EventIndexes(topics, kinds, readers, self.writer, tools)
        self.appends = Appends(kinds, self.indexes, self.writer)
        self.snapshots = EventSnapshots(kinds, self.indexes, readers, self.writer)

    def writer(self) -> Writer:
        """The writer of appends; made on first use.

        :raises LogError: the log is closed.
        """
        found = self._made_writer
        if found is None:
            with self._lock:
                if self._closed:
                    raise LogError("Kafka: this log is closed")
                found = self._made_writer
                if found is None:
                    found = self._made_writer = self._make_writer()
        return found

    def stop_following(self, topic: str) -> None:
        """See :meth:`streams.log.events.ArbitratingLog.stop_following`."""
        index = self.indexes.take(topic)
        if index is not None:
            index.close()
        self.snapshots.stop_following(topic)

    def forget(self, topic: str) -> None:
        """A topic is deleted."""
        self.kinds.forget(topic)
        index = self.indexes.take(topic)
        if index is not None:
            index.discard()
        self.indexes.forget_snapshots(topic)
        self.snapshots.stop_following(topic)

    def delete_snapshot_topics(self, topic: str) -> None:
        """Delete the topics of the snapshots that belong to an event topic, if there are any."""
        with suppress(NotFound):
            self._topics.delete_topic(snapshot_topic(topic))
        delete_index_topic(self._topics, self._readers, topic, is_used=self._uses_index_snapshots)

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            self._closed = True
        self.indexes.close()
        self.snapshots.close()
        if self._made_writer is not None:
            self._made_writer.close()

    def append(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """See :meth:`streams.log.events.EventLog.append_events`."""
        self.appends.append(topic, appends, on_appended)

    # -- reading

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`streams.log.events.EventLog.read_histories`."""
        if not requests:
            return []
        count = self.kinds.declared_count(topic)
        return self.indexes.using(topic, lambda index: self._read(index, requests, count))

    def _read(
        self, index: TopicIndex, requests: Sequence[HistoryRequest], count: int
    ) -> list[History]:
        topic = index.topic
        partitions = [partition_for(request.key, "", count) for request in requests]
        snapshots = None
        if any(request.fingerprint for request in requests):
            snapshots = self.snapshots.ready(topic)
        index.wait(self.indexes.ends(topic, set(partitions)))
        with index.lock:
            looks = [
                self._look_up(index.partitions[partition], partition, request, snapshots)
                for request, partition in zip(requests, partitions, strict=True)
            ]
        offsets_by_partition: dict[int, list[int]] = {}
        for partition, look in zip(partitions, looks, strict=True):
            if look.offsets:
                offsets_by_partition.setdefault(partition, []).extend(look.offsets)
        records = {
            partition: self.indexes.read_records(topic, partition, wanted)
            for partition, wanted in offsets_by_partition.items()
        }
        chosen = {
            number: WantedSnapshot(partitions[number], requests[number], look.snapshot)
            for number, look in enumerate(looks)
            if look.snapshot is not None
        }
        data = self.snapshots.fetch(topic, chosen)
        found: list[History] = []
        for number, (request, look) in enumerate(zip(requests, looks, strict=True)):
            history = self._finish(
                index, request, look, records.get(look.history.partition, {}), data.get(number)
            )
            if history is None:  # its snapshot cannot be used
                without = request._replace(fingerprint="")
                (history,) = self._read(index, [without], count)
            found.append(history)
        return found

    def _look_up(
        self,
        index: PartitionIndex,
        partition: int,
        request: HistoryRequest,
        snapshots: SnapshotIndex | None,
    ) -> _Look:
        """Look a request up in the index, whose lock is held."""
        entry = index.entry(request.key)
        head = index.head(request.key)
        caused = index.cause(request.key, request.cause) if request.cause else None
        history = History(partition, (), head, caused)
        after = request.after
        known_is_open = after not in (head.base, NO_HISTORY)
        count = 0 if entry is None else len(entry.offsets)
        if known_is_open and (entry is None or after.version > count):
            return _Look(history._replace(is_truncated=True), after, (), False, None)
        start, snapshot = after, None
        if snapshots is not None and request.fingerprint:
            snapshot = snapshots.find(partition, (request.key, request.fingerprint))
            if snapshot is not None and after.version < snapshot.base.version <= count:
                start = snapshot.base
            else:
                snapshot = None
        stop = start.version + request.limit
        offsets = () if entry is None else tuple(entry.offsets[start.version : stop])
        return _Look(history, start, offsets, known_is_open, snapshot)

    def _finish(
        self,
        index: TopicIndex,
        request: HistoryRequest,
        look: _Look,
        records: dict[int, FoundRecord],
        snapshot: StoredSnapshot | None,
    ) -> History | None:
        """The answer to a request; None if its snapshot is not one of this history."""
        history, start = look.history, look.start
        if history.is_truncated:
            return history
        events = [
            StoredEvent(version, offset, records[offset].time, records[offset].record)
            for version, offset in enumerate(look.offsets, start.version + 1)
        ]
        if events:  # what lies between, the index has from the same records
            self._check_event(index, history.partition, request.key, events[0])
            self._check_event(index, history.partition, request.key, events[-1])
        if look.known_is_open and not self._has_base(index, history, request, events, start):
            return history._replace(is_truncated=True)
        if look.snapshot is None:
            return history._replace(events=events)
        if snapshot is None or not self._fits(index, history, snapshot, events):
            return None
        return history._replace(events=events, snapshot=snapshot)

    def _has_base(
        self,
        index: TopicIndex,
        history: History,
        request: HistoryRequest,
        events: Sequence[StoredEvent],
        start: Base,
    ) -> bool:
        """Whether the history has what the caller knows. The event behind it says so itself."""
        if start == request.after and events and _continues(events[0], start):
            return True
        key_history = self.indexes.history(index, history.partition, request.key)
        return has_base(key_history, request.after)

    def _fits(
        self,
        index: TopicIndex,
        history: History,
        snapshot: StoredSnapshot,
        events: Sequence[StoredEvent],
    ) -> bool:
        """Whether a snapshot was made of this history."""
        base = snapshot.base
        if base == history.head.base or (events and _continues(events[0], base)):
            return True
        return has_base(self.indexes.history(index, history.partition, snapshot.key), base)

    def _check_event(
        self, index: TopicIndex, partition: int, key: bytes, event: StoredEvent
    ) -> None:
        """See that the record which the index names is what it takes it for."""
        header = parse_event(event_header(event.record.headers), event.record.id)
        if (
            header is not None
            and event.record.key == key
            and header.base.version + header.record_index + 1 == event.version
        ):
            return
        index.set_aside(partition)
        error = f"{index.topic}: offset {event.offset} is not the event that its index says it is"
        raise IndexFileDamaged(error)

    # -- what counts, for readers

    def decided_until(self, topic: str, partition: int) -> int:
        """How far it is known which records of a partition count: of all below the offset that is
        returned, and of none beyond that can be relied on. Does not block; the first call begins
        to build the partition's index, from then on it is followed.

        :raises LogError: the index has failed and cannot be used.
        """
        return self.indexes.using(topic, lambda index: index.decided_until(partition))

    def wait_until_decided(self, topic: str, partition: int, offset: int, timeout: float) -> bool:
        """Wait until it is known of all records below an offset whether they count; whether it is.

        :raises LogError: the index has failed and cannot be used.
        """
        return self.indexes.using(
            topic, lambda index: index.wait_until_decided(partition, offset, timeout)
        )

    def uncounted_offsets(self, topic: str, partition: int, first: int, end: int) -> list[int]:
        """The offsets from ``first`` up to, not including, ``end`` whose records do not count:
        those of appends that lost or were never whole, refusals, and records that are no events.
        Sorted.

        A reader has its batch from the log as ever, and leaves these out::

            dropped = set(events.uncounted_offsets(topic, partition, offsets[0], offsets[-1] + 1))
            kept = [number for number, offset in enumerate(offsets) if offset not in dropped]

        Blocks until that is decided of each of them, which takes as long as building the index the
        first time (:meth:`index_progress` says how far that is). Where an append was cut off after
        its first records, its readers wait for a moment until it is known that it will not count.
        A caller that must not block asks :meth:`decided_until` before, and holds back the rest.

        :raises Unavailable: there was no progress for half a minute.
        """
        return self.indexes.using(
            topic, lambda index: index.uncounted_offsets(partition, first, end)
        )

    def index_progress(self, topic: str) -> tuple[int, int]:
        """How many records the indexes of the partitions in use have passed, and how many there
        are. Asks the brokers."""
        index = self.indexes.get(topic)
        passed = index.passed()
        ends = self.indexes.ends(topic, list(passed))
        return sum(min(passed[each], end) for each, end in ends.items()), sum(ends.values())

    def uncounted_records(self, topic: str) -> int:
        """See :meth:`streams.log.events.ArbitratingLog.uncounted_records`."""
        index = self.indexes.peek(topic)
        if index is None:
            return 0
        with index.lock:
            return sum(each.uncounted_count for each in index.partitions.values())

    # -- snapshots and lists

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`streams.log.events.EventLog.write_snapshots`."""
        self.snapshots.write(topic, snapshots)

    def delete_snapshots(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`streams.log.events.EventLog.delete_snapshots`."""
        return self.snapshots.delete(topic, fingerprint)

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`streams.log.events.EventLog.list_snapshots`."""
        self.kinds.declared_count(topic)
        names = self.snapshots.names(topic)
        kinds = sorted(fingerprint for name, fingerprint in names if name == key)
        requests = [HistoryRequest(key, limit=1, fingerprint=kind) for kind in kinds]
        found = self.read(topic, requests) if requests else []
        return [each.snapshot for each in found if each.snapshot is not None]

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        """See :meth:`streams.log.events.EventLog.list_refusals`."""
        partition = partition_for(key, "", self.kinds.declared_count(topic))

        def use(index: TopicIndex) -> list[StoredRefusal]:
            index.wait(self.indexes.ends(topic, [partition]))
            with index.lock:
                entry = index.partitions[partition].entry(key)
                refusals = {} if entry is None else entry.refusals or {}
                return sorted(refusals.values(), key=lambda each: each.offset)

        return self.indexes.using(topic, use)

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`streams.log.events.EventLog.list_keys`."""
        count = self.kinds.declared_count(topic)
        if not 0 <= partition < count:
            raise NotFound(
                f"topic {topic!r} has {count} partitions, so it has no partition {partition}"
            )

        def use(index: TopicIndex) -> list[HistoryKey]:
            index.wait(self.indexes.ends(topic, [partition]))
            histories = index.partitions[partition]
            if isinstance(stored := histories.stored, IndexSnapshot):
                stored.prepare_list(index.lock)
            with index.lock:
                names = histories.sorted_keys()
                keys, key_count = histories.keys_to_sort() if names is None else ([], 0)
            if names is None:
                names = sorted(keys)
                with index.lock:
                    histories.set_sorted(names, key_count)
            with index.lock:
                found = histories.list_keys(after, limit, names)
            return [HistoryKey(*each) for each in found]

        return self.indexes.using(topic, use)

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`streams.log.events.EventLog.event_totals`."""
        count = self.kinds.declared_count(topic)
        snapshots = Counter(fingerprint for _, fingerprint in self.snapshots.names(topic))

        def use(index: TopicIndex) -> EventTotals:
            index.wait(self.indexes.ends(topic, range(count)))
            with index.lock:
                found = list(index.partitions.values())
                return EventTotals(
                    sum(each.key_count for each in found),
                    sum(each.event_count for each in found),
                    sum(each.cause_count for each in found),
                    sum(each.cause_bytes for each in found),
                    snapshots,
                )

        return self.indexes.using(topic, use)


def _continues(event: StoredEvent, base: Base) -> bool:
    """Whether this event's append was made upon ``base``."""
    header = parse_event(event_header(event.record.headers), event.record.id)
    return header is not None and header.record_index == 0 and header.base == base
