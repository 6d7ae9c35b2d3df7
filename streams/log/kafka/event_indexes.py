"""The indexes of a log's event topics, and the records that they name.

An index is opened when a topic is first used, and replaced where it has failed
(:mod:`streams.log.kafka.event_index`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar
from uuid import uuid4

from streams.errors import LogError
from streams.log.event_headers import VOID
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.event_topics import EventTopics
from streams.log.kafka.index_consumer import HistoryGone
from streams.log.kafka.index_file import IndexFile, open_index_file
from streams.log.kafka.index_records import SnapshotOf
from streams.log.kafka.index_topic import IndexTopic
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import KafkaReader, ReaderPool
from streams.log.kafka.topic_identity import TopicIdentity
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools
from streams.log.record_fetcher import FetchedRow, RecordFetcher
from streams.message import ID, Position, Record, headers_without, identity_of
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")


class KeyHistory:
    """The history of one key, against which an append is checked."""

    def __init__(
        self, indexes: EventIndexes, index: TopicIndex, partition: int, key: bytes
    ) -> None:
        self._indexes = indexes
        self._index = index
        self._partition = partition
        self._key = key
        with index.lock:
            self.head = index.partitions[partition].head(key)

    def id_at(self, version: int) -> str | None:
        """The ID of the event of a version, read from the log."""
        with self._index.lock:
            entry = self._index.partitions[self._partition].entry(self._key)
            if entry is None or not 1 <= version <= len(entry.offsets):
                return None
            offset = entry.offsets[version - 1]
        if version == self.head.base.version and not entry.refusals:  # else it may end with one
            return self.head.base.last_id
        found = self._indexes.read_records(self._index.topic, self._partition, [offset])
        return found[offset].record.id

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal stands."""
        with self._index.lock:
            entry = self._index.partitions[self._partition].entry(self._key)
        found = None if entry is None or entry.refusals is None else entry.refusals.get(record_id)
        return None if found is None else found.version


class FoundRecord(NamedTuple):
    """A record of the log, and when the log took it."""

    record: Record
    time: float


class _Uncommitted:
    """Reads on past open transactions, and what they wrote."""

    def __init__(self, readers: ReaderPool) -> None:
        self._readers = readers

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """A reader of a range."""
        return self._readers.open_reader(topic, partition, start, end, uncommitted=True)


def _found_record(row: FetchedRow) -> FoundRecord:
    id = (identity_of(row.headers) or "").partition("\0")[0]
    record = Record(row.value, row.key, id, headers_without(row.headers, (ID,)))
    return FoundRecord(record, row.time)


class EventIndexes:
    """The indexes of the event topics that are in use. Usable from any thread.

    :param writer: what appends are written by.
    :param tools: what snapshots of indexes are written with.
    """

    def __init__(
        self,
        topics: Topics,
        kinds: EventTopics,
        readers: ReaderPool,
        writer: Callable[[], Writer],
        tools: WriterTools,
    ) -> None:
        self._topics = topics
        self._kinds = kinds
        self._readers = readers
        self._writer = writer
        self._tools = tools
        self._snapshots: dict[str, IndexTopic] = {}
        """By topic; they outlive an index that has failed."""
        self._lock = threading.Lock()
        self._indexes: dict[str, TopicIndex] = {}
        self._fetchers: dict[tuple[str, int], RecordFetcher] = {}
        """By topic and partition."""
        self._opening = threading.Lock()
        """Held while an index is opened or replaced."""
        self._closed = False

    def get(self, topic: str) -> TopicIndex:
        """The index of a topic; a new one where the last one has failed.

        :raises LogError: the log is closed.
        """
        found = self._indexes.get(topic)
        if found is not None and found.error is None:
            return found
        with self._opening:
            with self._lock:
                if self._closed:
                    raise LogError("Kafka: this log is closed")
                found = self._indexes.get(topic)
            if found is not None:
                if found.error is None:
                    return found
                self._drop(topic, found)
            index = TopicIndex(
                topic,
                self._readers,
                self._void_writer(topic),
                self._file(topic),
                self._snapshots_of(topic),
                TopicIdentity(topic, self._topics.topic_id),
            )
            with self._lock:
                if not self._closed:
                    self._indexes[topic] = index
                    return index
            index.close()
            raise LogError("Kafka: this log is closed")

    def _file(self, topic: str) -> IndexFile | None:
        folder = self._tools.requests.settings.event_index
        if not folder:
            return None
        identity = self._topics.topic_id(topic)
        count = self._kinds.declared_count(topic)
        return open_index_file(folder, topic, identity, count)

    def _snapshots_of(self, topic: str) -> IndexTopic | None:
        least = self._tools.requests.settings.index_snapshots
        if not least:
            return None
        of = SnapshotOf(topic, self._topics.topic_id(topic), self._kinds.declared_count(topic))
        found = self._snapshots.get(topic)
        if found is None or found.of != of:
            found = self._snapshots[topic] = IndexTopic(self._tools, self._topics, of, least)
        return found

    def _drop(self, topic: str, index: TopicIndex) -> None:
        """Use an index no more that has failed."""
        with self._lock:
            if self._indexes.get(topic) is index:
                del self._indexes[topic]
        if isinstance(index.error, (IndexFileDamaged, HistoryGone)):
            index.discard()
        else:
            index.close()

    def _void_writer(self, topic: str) -> Callable[[int, bytes, str], None]:
        def write_void(partition: int, key: bytes, append_id: str) -> None:
            logger.info(
                "%s/%d: append %s was cut off after its first records: it is declared void",
                topic, partition, append_id,
            )  # fmt: skip
            name = append_id.encode("utf-8", "surrogateescape")
            record = Record(None, key, uuid4().hex, [(VOID, name)], partition)
            self._writer().append(topic, [record], report)

        def report(results: Sequence[Position | LogError]) -> None:
            for each in results:
                if isinstance(each, LogError):
                    logger.warning("%s: an append cannot be declared void: %s", topic, each)

        return write_void

    def using(self, topic: str, use: Callable[[TopicIndex], T]) -> T:
        """The result of ``use``, called with the topic's index. If the index's file, or the
        snapshot that it began with, turns out to be damaged, it is called again with a new one."""
        index = self.get(topic)
        try:
            return use(index)
        except IndexFileDamaged as error:
            logger.error("%s; rebuilding the index", error)
            index.fail(error)
        return use(self.get(topic))

    def peek(self, topic: str) -> TopicIndex | None:
        """The index of a topic, if it is in use."""
        with self._lock:
            return self._indexes.get(topic)

    def forget_snapshots(self, topic: str) -> None:
        """A topic is deleted: what is known of the snapshots of its index is of no use."""
        self._snapshots.pop(topic, None)

    def take(self, topic: str) -> TopicIndex | None:
        """The index of a topic, if it is in use, and from now on it is not: the caller ends it."""
        with self._lock:
            return self._indexes.pop(topic, None)

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            self._closed = True
            indexes, self._indexes = list(self._indexes.values()), {}
        for index in indexes:
            index.close()

    def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where these partitions end now."""
        return self._readers.ends(topic, sorted(partitions))

    def history(self, index: TopicIndex, partition: int, key: bytes) -> KeyHistory:
        """The history of one key, to check appends against."""
        return KeyHistory(self, index, partition, key)

    def read_records(
        self, topic: str, partition: int, offsets: Sequence[int], *, may_lack: bool = False
    ) -> dict[int, FoundRecord]:
        """The records at some offsets.

        :param may_lack: leave those out that are not there.
        :raises LogError: one is not there.
        """
        wanted = sorted(set(offsets))
        fetcher = self._fetchers.get((topic, partition))
        if fetcher is None:
            fetcher = RecordFetcher(_Uncommitted(self._readers), topic, partition)
            self._fetchers[topic, partition] = fetcher
        rows, _ = fetcher.fetch(wanted, sys.maxsize)
        found = {offset: _found_record(row) for offset, row in rows.items() if row is not None}
        if len(found) < len(wanted) and not may_lack:
            missing = min(set(wanted) - found.keys())
            raise LogError(f"{topic}/{partition}: the event at offset {missing} is gone")
        return found
