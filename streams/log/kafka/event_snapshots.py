"""Snapshots of an event topic's histories: found, read and written.

Where they stand, and how, says :mod:`streams.log.kafka.snapshot_index`. They are only a cache, so
nothing that is wrong with them keeps a history from being read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

from streams.errors import LogError, NotFound
from streams.log.events import NO_HISTORY, HistoryRequest, StoredSnapshot, has_base
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.event_indexes import EventIndexes
from streams.log.kafka.event_topics import EventTopics, write_records
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.snapshot_index import (
    FoundSnapshot,
    SnapshotIndex,
    SnapshotName,
    newest,
    parse_snapshot,
    record_header,
    record_key,
    snapshot_topic,
)
from streams.log.names import partition_for
from streams.message import Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

SNAPSHOT_TIMEOUT = 5.0
"""Seconds without progress after which histories are read without snapshots."""


class WantedSnapshot(NamedTuple):
    """A snapshot of a request's kind, as its index knows it."""

    partition: int
    request: HistoryRequest
    found: FoundSnapshot


class EventSnapshots:
    """The snapshots of the event topics of one log. Usable from any thread.

    :param writer: what they are written by.
    """

    def __init__(
        self,
        kinds: EventTopics,
        indexes: EventIndexes,
        readers: ReaderPool,
        writer: Callable[[], Writer],
    ) -> None:
        self._kinds = kinds
        self._indexes = indexes
        self._readers = readers
        self._writer = writer
        self._lock = threading.Lock()
        self._by_topic: dict[str, SnapshotIndex] = {}
        self._closed = False

    def stop_following(self, topic: str) -> None:
        """Follow a topic's snapshots no more, until somebody uses them again."""
        with self._lock:
            found = self._by_topic.pop(topic, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            self._closed = True
            found, self._by_topic = list(self._by_topic.values()), {}
        for each in found:
            each.close()

    def names(self, topic: str) -> list[SnapshotName]:
        """The key and the fingerprint of each snapshot there is now."""
        try:
            return [name for _, name in self.current(topic).names(None)]
        except NotFound:
            return []

    def _index(self, topic: str) -> SnapshotIndex:
        """The index of a topic's snapshots; a new one where the last one has failed.

        :raises NotFound: there is no topic for them.
        """
        found = self._by_topic.get(topic)
        if found is not None and found.error is None:
            return found
        snapshots = snapshot_topic(topic)
        count = len(self._readers.metadata.read(snapshots, remember=True).partitions)
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            found = self._by_topic.get(topic)
            if found is None or found.error is not None:
                if found is not None:
                    found.close()
                found = self._by_topic[topic] = SnapshotIndex(snapshots, self._readers, count)
        return found

    def current(self, topic: str, timeout: float = 30.0) -> SnapshotIndex:
        """The index of a topic's snapshots, read up to their end as it is now."""
        index = self._index(topic)
        index.wait(self._indexes.ends(index.topic, index.next_offsets()), timeout)
        return index

    def ready(self, topic: str) -> SnapshotIndex | None:
        """The index of a topic's snapshots, if it was read up to their end once; None if that
        cannot be: they are only a cache."""
        try:
            index = self._index(topic)
            if not index.is_ready:
                if time.monotonic() < index.patient_after:
                    return None
                index.patient_after = time.monotonic() + SNAPSHOT_TIMEOUT
                index.wait(self._indexes.ends(index.topic, index.next_offsets()), SNAPSHOT_TIMEOUT)
                index.is_ready = True
        except LogError as error:
            logger.debug("%s: read without snapshots: %s", topic, error)
            return None
        return index

    def fetch(self, topic: str, wanted: Mapping[int, WantedSnapshot]) -> dict[int, StoredSnapshot]:
        """The snapshots that can be read, by the numbers of their requests."""
        by_partition: dict[int, list[int]] = {}
        for number, each in wanted.items():
            by_partition.setdefault(each.partition, []).append(number)
        found: dict[int, StoredSnapshot] = {}
        for partition, numbers in by_partition.items():
            offsets = [wanted[each].found.at for each in numbers]
            try:
                records = self._indexes.read_records(
                    snapshot_topic(topic), partition, offsets, may_lack=True
                )
            except LogError as error:
                logger.debug("%s: read without snapshots: %s", topic, error)
                continue
            for number in numbers:
                request, snapshot = wanted[number].request, wanted[number].found
                if snapshot.at not in records:
                    continue
                record = records[snapshot.at].record
                if (
                    record.key == record_key(request.key, request.fingerprint)
                    and parse_snapshot(record.headers, snapshot.at) == snapshot
                    and record.value is not None
                ):
                    found[number] = StoredSnapshot(
                        request.key,
                        request.fingerprint,
                        snapshot.base,
                        snapshot.offset,
                        record.value,
                    )
        return found

    def write(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`streams.log.events.EventLog.write_snapshots`."""
        if not snapshots:
            return
        count = self._kinds.writable_count(topic)
        found = newest(snapshots)
        partitions = {name: partition_for(name[0], "", count) for name in found}

        def chosen(index: TopicIndex) -> list[StoredSnapshot]:
            index.wait(self._indexes.ends(topic, set(partitions.values())))
            return [
                snapshot
                for name, snapshot in found.items()
                if self._is_of_history(index, partitions[name], snapshot)
            ]

        def is_newer(snapshot: StoredSnapshot, index: TopicIndex) -> bool:
            partition = partitions[snapshot.key, snapshot.fingerprint]
            kept = kept_index.find(partition, (snapshot.key, snapshot.fingerprint))
            return (
                kept is None
                or kept.base.version <= snapshot.base.version
                or not has_base(self._indexes.history(index, partition, snapshot.key), kept.base)
            )

        kept_index = self.current(topic)
        records = [
            Record(
                snapshot.data,
                record_key(snapshot.key, snapshot.fingerprint),
                uuid4().hex,
                [record_header(snapshot)],
                partitions[snapshot.key, snapshot.fingerprint],
            )
            for snapshot in self._indexes.using(
                topic, lambda index: [each for each in chosen(index) if is_newer(each, index)]
            )
        ]
        self._write_records(topic, records)

    def _is_of_history(self, index: TopicIndex, partition: int, snapshot: StoredSnapshot) -> bool:
        history = self._indexes.history(index, partition, snapshot.key)
        return snapshot.base != NO_HISTORY and has_base(history, snapshot.base)

    def _write_records(self, topic: str, records: Sequence[Record]) -> None:
        """Write them, and wait until they are found."""
        if not records:
            return
        positions = write_records(self._writer(), snapshot_topic(topic), records)
        ends: dict[int, int] = {}
        for each in positions:
            ends[each.partition] = max(ends.get(each.partition, 0), each.offset + 1)
        self._index(topic).wait(ends, 30.0)

    def delete(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`streams.log.events.EventLog.delete_snapshots`."""
        self._kinds.declared_count(topic)
        names = self.current(topic).names(fingerprint)
        records = [
            Record(None, record_key(*name), uuid4().hex, (), partition) for partition, name in names
        ]
        self._write_records(topic, records)
        return len(records)
