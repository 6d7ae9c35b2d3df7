"""Reading and writing snapshots of an event topic's index (:mod:`.index_snapshot`).

With ``?index_snapshots=N`` in the log's URL, a process that begins to follow a partition of an
event topic reads the last snapshot of its index, and folds what came since; and one that follows a
partition writes a snapshot once there are N events in it, and again whenever there are a quarter
more. So what is written over all time is some five times the last snapshot.

A partition has one writer at a time: who becomes it initializes the partition's
``transactional.id``, and from then on the brokers refuse the former one. A snapshot is one
transaction, so there is never half of one. Two that write at once write the same.

**A snapshot is believed only as far as the log agrees**, as an index file is
(:mod:`streams.log.kafka.event_index`). That does not help against somebody who forges one: who may
write to the topic can make processes judge by a history that is none. Whoever uses snapshots lets
nobody else write there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from confluent_kafka import Producer

from streams.errors import LogError, NotFound, StreamsError, TopicMismatch
from streams.log.kafka.index_snapshot import (
    END_KEY,
    IndexSnapshot,
    SnapshotEnd,
    SnapshotOf,
    SnapshotRecord,
    SnapshotUnusable,
    index_topic,
    parse_end,
    snapshot_name,
)
from streams.log.kafka.index_snapshot_writer import GivenUp, SnapshotWriter
from streams.log.kafka.partition_index import PartitionIndex
from streams.log.kafka.settings import MAX_MESSAGE_BYTES
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools, drop_in_background
from streams.log.protocol import Retention
from streams.text import get_logger

logger = get_logger("streams.kafka")

GROWTH = 1.25
"""The next snapshot is written once there are so many times the events of the last one."""

RETRY_INTERVAL = 60.0
"""Seconds after which somebody who wrote no snapshot looks again whether one is wanted."""

TRANSACTION_TIMEOUT = 300.0
"""Seconds that the writing of a snapshot may take."""

TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
    # Whoever reads a snapshot while the next one is written finds all of it.
    "min.compaction.lag.ms": "600000",
}

_TAIL = 8
"""Records at the end of a partition that are looked at first for the end of a snapshot."""

_READ_LIMIT = 16
"""Records that are read at once."""


class IndexSnapshots:
    """The snapshots of one event topic's index.

    :param of: the event topic.
    :param least: events of a partition from which on snapshots are written.
    """

    def __init__(
        self,
        tools: WriterTools,
        topics: Topics,
        of: SnapshotOf,
        least: int,
    ) -> None:
        self.of = of
        self._topic = index_topic(of.topic)
        self._tools = tools
        self._topics = topics
        self._least = least
        self.is_written = not tools.requests.settings.only_looks
        """Whether this process writes snapshots; it reads them."""
        self._stored: dict[int, int] = {}
        """By partition: the events of the last snapshot that is known."""
        self._look_at: dict[int, float] = {}
        """By partition: when it is looked again whether a snapshot is wanted (monotonic time)."""
        self._distrusted: set[int] = set()
        """Partitions whose snapshot has turned out wrong: it is not read again."""
        self._has_topic = False

    # -- reading

    def load(self, partition: int) -> IndexSnapshot | None:
        """The last snapshot of a partition's index. None if there is none that can be used, which
        is logged where there is one."""
        if partition in self._distrusted:
            return None
        try:
            found = self._find_end(partition)
            if found is None:
                return None
            at, name, end = found
            began = time.monotonic()
            records = self._records(partition, end.first, at, name)
            snapshot = IndexSnapshot(self._place(partition), end, records)
        except NotFound:
            return None
        except SnapshotUnusable as error:
            self.distrust(partition)
            logger.warning(
                "%s: its last snapshot is not used, and the index is built by reading the events: "
                "%s", self._place(partition), error,
            )  # fmt: skip
            return None
        except StreamsError as error:
            logger.warning(
                "%s: no snapshot can be read, so the index is built by reading the events: %s",
                self._place(partition), error,
            )  # fmt: skip
            return None
        self._stored[partition] = end.state.event_count
        logger.info(
            "%s: a snapshot of %d events of %d aggregates was read in %.1f s",
            self._place(partition), end.state.event_count, end.state.key_count,
            time.monotonic() - began,
        )  # fmt: skip
        return snapshot

    def distrust(self, partition: int) -> None:
        """Read the present snapshot of a partition no more: it is wrong."""
        self._distrusted.add(partition)
        self._stored.pop(partition, None)

    def _place(self, partition: int) -> str:
        return f"the index of {self.of.topic}/{partition}"

    def _find_end(self, partition: int) -> tuple[int, bytes, SnapshotEnd] | None:
        """Offset, name and last record of the last snapshot of this event topic.

        :raises SnapshotUnusable: it is of another one.
        """
        topic, readers = self._topic, self._tools.readers
        readers.metadata.check_there(topic)
        low, end = readers.watermarks(topic, partition)
        length = _TAIL
        while end > low:
            start = max(low, end - length)
            last: tuple[int, bytes, SnapshotEnd] | None = None
            for offset, key, value, name in self._read(partition, start, end):
                parsed = parse_end(value, offset) if key == END_KEY and name else None
                if parsed is not None and name is not None:
                    last = offset, name, parsed
            if last is not None:
                self._check(last[2], low)
                return last
            if start == low:
                return None
            length *= 8  # there are attempts that were given up
        return None

    def _check(self, end: SnapshotEnd, low: int) -> None:
        """See that a snapshot is of this event topic, and still whole."""
        if self.of.topic_id and end.topic_id and end.topic_id != self.of.topic_id:
            raise SnapshotUnusable("it is of an earlier topic of that name, which is deleted")
        if end.partitions != self.of.partitions:
            raise SnapshotUnusable(
                f"it was made of a topic with {end.partitions} partitions, and there are "
                f"{self.of.partitions}"
            )
        if end.first < low:
            raise SnapshotUnusable("its first records were deleted")

    def _records(
        self, partition: int, first: int, end: int, name: bytes
    ) -> Iterator[SnapshotRecord]:
        for _, key, value, found in self._read(partition, first, end):
            if found == name and key is not None:
                yield SnapshotRecord(key, value or b"")

    def _read(
        self, partition: int, start: int, end: int
    ) -> Iterator[tuple[int, bytes | None, bytes | None, bytes | None]]:
        """Offset, key, value and snapshot's name of the records in a range."""
        reader = self._tools.readers.open_reader(self._topic, partition, start, end)
        try:
            while (batch := reader.read(_READ_LIMIT)) is not None:
                for number, headers in enumerate(batch.all_headers()):
                    name = snapshot_name(headers)
                    yield batch.offsets[number], batch.keys[number], batch.values[number], name
        finally:
            reader.close()

    # -- writing

    def is_due(self, index: PartitionIndex) -> bool:
        """Whether it is to be looked whether a snapshot of an index is wanted."""
        events, stored = index.event_count, self._stored.get(index.partition, 0)
        return (
            events >= self._least
            and events >= GROWTH * stored
            and index.has_reached_end
            and time.monotonic() >= self._look_at.get(index.partition, 0.0)
        )

    def write(
        self, index: PartitionIndex, lock: threading.Lock, is_closed: Callable[[], bool]
    ) -> None:
        """Write a snapshot of an index, unless somebody else has; what goes wrong is logged.

        :param lock: guards the index.
        :param is_closed: it is given up.
        """
        partition = index.partition
        self._look_at[partition] = time.monotonic() + RETRY_INTERVAL
        try:
            self._ensure_topic()
            if self._is_known(index):
                return
            producer = self._take(partition)
            try:
                if self._is_known(index):  # by whoever was just fenced
                    return
                began = time.monotonic()
                writer = SnapshotWriter(self._tools, producer, self.of, index, lock, is_closed)
                end = writer.write()
            finally:
                drop_in_background(producer)
        except (GivenUp, NotFound) as error:  # they were deleted: the next one makes the topic anew
            logger.debug("%s: no snapshot was written: %s", self._place(partition), error)
            self._has_topic = False
            return
        except StreamsError as error:
            logger.warning("%s: no snapshot was written: %s", self._place(partition), error)
            return
        except Exception:
            logger.exception("%s: writing a snapshot failed", self._place(partition))
            return
        self._distrusted.discard(partition)
        self._stored[partition] = end.state.event_count
        logger.info(
            "%s: a snapshot of %d events of %d aggregates was written in %.1f s",
            self._place(partition), end.state.event_count, end.state.key_count,
            time.monotonic() - began,
        )  # fmt: skip

    def _is_known(self, index: PartitionIndex) -> bool:
        """Whether there is a snapshot that makes another one unnecessary."""
        partition = index.partition
        if partition in self._distrusted:
            return False
        try:
            found = self._find_end(partition)
        except SnapshotUnusable:
            return False
        events = 0 if found is None else found[2].state.event_count
        self._stored[partition] = events
        return index.event_count < GROWTH * events

    def _ensure_topic(self) -> None:
        """Create the topic of the snapshots, unless there is one.

        :raises LogError: what there is belongs to somebody else.
        """
        if self._has_topic:
            return
        topic = self._topic
        try:
            info = self._topics.describe_topic(topic)
        except NotFound:
            try:
                info = self._topics.create_topic(
                    topic, self.of.partitions, Retention(compacted=True), TOPIC_CONFIG
                )
            except TopicMismatch:  # somebody else was faster
                info = self._topics.describe_topic(topic)
        count = info.partitions
        is_compacted = info.retention.compacted or not info.retention_known
        if not is_compacted or not all(map(self._has_snapshots, range(count))):
            raise LogError(
                f"topic {topic!r} exists and holds no snapshots of an index: event topic "
                f"{self.of.topic!r} cannot have any"
            )
        if count < self.of.partitions:
            raise LogError(
                f"topic {topic!r} has {count} partitions, and {self.of.topic!r} has "
                f"{self.of.partitions}"
            )
        self._has_topic = True

    def _has_snapshots(self, partition: int) -> bool:
        """Whether the first record of a partition is one of a snapshot, if there is any."""
        low, end = self._tools.readers.watermarks(self._topic, partition)
        for _, _, _, name in self._read(partition, low, end):
            return name is not None
        return True

    def _take(self, partition: int) -> Producer:
        """Become the one writer of a partition's snapshots."""
        topic = self._topic
        settings = self._tools.requests.settings
        config = settings.transaction_config(f"{topic}-{partition}")
        if "transaction.timeout.ms" not in settings.user_config:
            milliseconds = int(TRANSACTION_TIMEOUT * 1000)
            config["transaction.timeout.ms"] = config["message.timeout.ms"] = milliseconds
        operation = f"claiming the snapshots of {self._place(partition)}"
        return self._tools.make_producer(config, topic, operation)
