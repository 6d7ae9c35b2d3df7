"""The topic of the snapshots of an event topic's index: which are read, and when they are written.

With ``?index_snapshots=N`` in the log's URL, a process that begins to follow a partition of an
event topic reads the last snapshot of its index (:mod:`.index_records`), and folds what came since;
and one that follows a partition writes a snapshot once there are N events in it, and again whenever
it has grown by a quarter. So what is written over all time is some five times the last snapshot.

A partition has one writer at a time: who becomes it initializes the partition's
``transactional.id``, and from then on the brokers refuse the former one. A snapshot is one
transaction, so there is never half of one. Who finds a transaction open lets its writer end.

**A snapshot is believed only as far as the log agrees**, as an index file is
(:mod:`streams.log.kafka.event_index`). That does not help against somebody who forges one: who may
write to the topic can make processes judge by a history that is none. Whoever uses snapshots lets
nobody else write there.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from confluent_kafka import KafkaException, Producer

from streams.errors import Fenced, LogError, NotFound, StreamsError, TopicMismatch, Unavailable
from streams.log.kafka.index_records import (
    END_KEY,
    IndexCopying,
    IndexSnapshot,
    SnapshotEnd,
    SnapshotOf,
    SnapshotRecord,
    SnapshotUnusable,
    index_topic_name,
    parse_end,
    snapshot_name,
)
from streams.log.kafka.index_writer import GivenUp, IndexWriter
from streams.log.kafka.partition_index import PartitionIndex, PartitionState
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.settings import MAX_MESSAGE_BYTES
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools
from streams.log.protocol import Retention
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")

GROWTH = 1.25
"""The next snapshot is written once the partition has so many times the records of the last one."""

RETRY_INTERVAL = 60.0
"""Seconds between two checks whether a snapshot of a partition is due."""

LONGEST_PAUSE = 3_600.0
"""Seconds after which a process without permission to write snapshots tries again."""

TRANSACTION_TIMEOUT = 300.0
"""Seconds that the writing of a snapshot may take."""

BEHIND = 0.05
"""A process whose index lags by more than this share of the partition writes no snapshot yet."""

TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
    # A snapshot stays complete for its readers while the next one is written.
    "min.compaction.lag.ms": "600000",
}

_TAIL = 8
"""Records at the end of a partition that are looked at first for the end of a snapshot."""

_READ_LIMIT = 16
"""Records that are read at once."""

_READ_TIMEOUT = 120.0
"""Seconds in which the next of them comes: what was aborted has to be passed."""


class _FoundEnd(NamedTuple):
    """The last record of a snapshot, and where it stands."""

    offset: int
    name: bytes
    end: SnapshotEnd


class _OpenTransaction(NamedTuple):
    """A transaction that was found open: where it begins, and since when it is known."""

    offset: int
    since: float


class IndexTopic:
    """The snapshots of one event topic's index.

    :param of: the event topic.
    :param least: events of a partition from which on snapshots are written.
    """

    def __init__(self, tools: WriterTools, topics: Topics, of: SnapshotOf, least: int) -> None:
        self.of = of
        self.is_written = not tools.requests.settings.only_looks
        """Whether this process writes snapshots; it reads them."""
        self._topic = index_topic_name(of.topic)
        self._tools = tools
        self._topics = topics
        self._least = least
        self._stored: dict[int, int] = {}
        """By partition: up to which offset the last snapshot that is known was folded."""
        self._look_at: dict[int, float] = {}
        """By partition: when it is looked again whether a snapshot is wanted (monotonic time)."""
        self._wrong: dict[int, int] = {}
        """By partition: the offset of a snapshot's end that has turned out wrong; those up to there
        are not read."""
        self._used: dict[int, int] = {}
        """By partition: the offset of the end of the last snapshot that was read or written."""
        self._incarnation = ""
        """The brokers' ID of the snapshots' topic whose offsets are known."""
        self._open: dict[int, _OpenTransaction] = {}
        """By partition: somebody else's transaction."""
        self._paused_until = 0.0
        """For all partitions, after an error (monotonic time)."""
        self._failures = 0
        """Consecutive failures, since the last success."""
        self._told = ""
        """The last warning logged."""
        self._has_topic = False

    def _partition_name(self, partition: int) -> str:
        return f"the index of {self.of.topic}/{partition}"

    # -- reading

    def load(
        self,
        partition: int,
        fits: Callable[[PartitionState], bool],
        is_closed: Callable[[], bool],
    ) -> IndexSnapshot | None:
        """The last snapshot of a partition's index. None if there is none that can be used, which
        is logged where there is one.

        :param fits: whether the log has what a snapshot was made of; may raise.
        :param is_closed: the reading is given up.
        """
        name, began = self._partition_name(partition), time.monotonic()
        found = self._if_readable(partition, partial(self._find_end, partition))
        if found is None:
            return None
        offset = found.offset
        if not fits(found.end.state):
            self.distrust(partition, offset)
            return None
        records = self._records(partition, found, is_closed)
        distrust = partial(self.distrust_used, partition)
        read = partial(IndexSnapshot, name, found.end, records, distrust)
        snapshot = self._if_readable(partition, read, offset)
        if snapshot is None:
            return None
        state = snapshot.state
        self._stored[partition], self._used[partition] = state.next_offset, offset
        logger.info(
            "%s: a snapshot of %d events of %d aggregates was read in %.1f s",
            name, state.event_count, state.key_count, time.monotonic() - began,
        )  # fmt: skip
        return snapshot

    def _if_readable(
        self, partition: int, read: Callable[[], T | None], offset: int = -1
    ) -> T | None:
        """The result of ``read``; None if it fails: that is logged, and the index is built without
        the snapshot.

        :param offset: the offset of the end of the snapshot that is read.
        """
        name = self._partition_name(partition)
        try:
            return read()
        except (NotFound, GivenUp):
            pass
        except SnapshotUnusable as error:
            self.distrust(partition, max(offset, error.offset))
            logger.warning(
                "%s: its last snapshot is not used, and the index is built by reading the events: "
                "%s", name, error,
            )  # fmt: skip
        except StreamsError as error:
            logger.warning(
                "%s: no snapshot can be read, so the index is built by reading the events: %s",
                name, error,
            )  # fmt: skip
        return None

    def distrust(self, partition: int, offset: int) -> None:
        """Read the snapshots of a partition that end up to this offset no more: one is wrong."""
        self._wrong[partition] = max(offset, self._wrong.get(partition, -1))
        self._stored.pop(partition, None)

    def distrust_used(self, partition: int) -> None:
        """The index of a partition was wrong, so what it began with is, and what was made of it."""
        self.distrust(partition, self._used.get(partition, -1))

    def _forget_offsets(self) -> None:
        """The topic was deleted."""
        for offsets in (self._wrong, self._stored, self._used, self._open):
            offsets.clear()

    def _see_incarnation(self) -> None:
        """Forget which snapshots of an earlier topic of this name were wrong."""
        if self._incarnation and not self._wrong:
            return
        found = self._topics.topic_id(self._topic)
        if found and found != self._incarnation:
            if self._incarnation:
                self._forget_offsets()
            self._incarnation = found

    def _find_end(self, partition: int) -> _FoundEnd | None:
        """The last record of the last snapshot that is not known to be wrong.

        :raises SnapshotUnusable: it is of another event topic, or not whole any more.
        """
        topic, readers = self._topic, self._tools.readers
        readers.metadata.check_there(topic)
        self._see_incarnation()
        low, end = readers.watermarks(topic, partition)
        length, floor = _TAIL, max(low, self._wrong.get(partition, -1) + 1)
        while end > floor:
            start = max(floor, end - length)
            last: _FoundEnd | None = None
            for each in self._read(partition, start, end):
                if each.key != END_KEY or not each.snapshot:
                    continue
                parsed = parse_end(each.value, each.offset)
                if parsed is not None:
                    last = _FoundEnd(each.offset, each.snapshot, parsed)
            if last is not None:
                self._check(last, low)
                return last
            # Behind it are attempts that were given up; unless it is somebody else's topic.
            if start == floor or not _is_ours(readers, topic, partition):
                return None
            length *= 8
        return None

    def _check(self, found: _FoundEnd, low: int) -> None:
        """See that a snapshot is of this event topic, and still whole."""
        end = found.end
        why = ""
        if self.of.topic_id and end.topic_id and end.topic_id != self.of.topic_id:
            why = "it is of an earlier topic of that name, which is deleted"
        elif end.partitions != self.of.partitions:
            why = (
                f"it was made of a topic with {end.partitions} partitions, and there are "
                f"{self.of.partitions}"
            )
        elif end.first < low:
            why = "its first records were deleted"
        if why:
            raise SnapshotUnusable(why, found.offset)

    def _records(
        self, partition: int, end: _FoundEnd, is_closed: Callable[[], bool]
    ) -> Iterator[SnapshotRecord]:
        for each in self._read(partition, end.end.first, end.offset):
            if is_closed():
                raise GivenUp("the index is no longer used")
            if each.snapshot == end.name and each.key is not None:
                yield SnapshotRecord(each.key, each.value or b"")

    def _read(self, partition: int, start: int, end: int) -> Iterator[_ReadRecord]:
        """The records in a range."""
        return _read(self._tools.readers, self._topic, partition, start, end)

    # -- writing

    def is_paused(self) -> bool:
        """Whether nothing is tried for a while, after an error."""
        return time.monotonic() < self._paused_until

    def looked_at(self, index: PartitionIndex) -> float:
        """When it is, or was, time to look whether a snapshot is wanted (monotonic time)."""
        return self._look_at.get(index.partition, 0.0)

    def is_due(self, index: PartitionIndex) -> bool:
        """Whether it is to be looked whether a snapshot of an index is wanted."""
        return (
            index.event_count >= self._least
            and index.next_offset >= GROWTH * self._stored.get(index.partition, 0)
            and time.monotonic() >= self.looked_at(index)
            and not self.is_paused()
        )

    def write(
        self, index: PartitionIndex, lock: threading.Lock, is_closed: Callable[[], bool]
    ) -> None:
        """Write a snapshot of an index, unless somebody else has, or does; what goes wrong is
        logged.

        :param lock: guards the index.
        :param is_closed: it is given up.
        """
        name = self._partition_name(index.partition)
        try:
            self._write(index, lock, is_closed)
            self._failures = 0
        except (GivenUp, Fenced) as error:  # somebody else writes one
            logger.debug("%s: no snapshot was written: %s", name, error)
        except NotFound as error:
            logger.debug("%s: the next one recreates its topic: %s", name, error)
            self._has_topic = False
            self._forget_offsets()
        except Exception as error:
            if is_closed():
                logger.debug("%s: no snapshot was written: %s", name, error)
                return
            self._failures += 1
            pause = min(LONGEST_PAUSE, RETRY_INTERVAL * 2.0 ** min(self._failures, 10))
            self._paused_until = time.monotonic() + pause
            if not isinstance(error, StreamsError):
                logger.exception("%s: writing a snapshot failed", name)
            elif str(error) != self._told:
                self._told = str(error)
                logger.warning("%s: no snapshot was written: %s", name, error)
        finally:
            # Of several processes not all come back at once.
            pause = RETRY_INTERVAL * random.uniform(0.75, 1.25)
            self._look_at[index.partition] = time.monotonic() + pause

    def _write(
        self, index: PartitionIndex, lock: threading.Lock, is_closed: Callable[[], bool]
    ) -> None:
        partition = index.partition

        def check_open() -> None:
            if is_closed():
                raise GivenUp("the index is no longer used")

        check_open()
        end = self._tools.readers.end(self.of.topic, partition)
        if end - index.next_offset > 1_000 + BEHIND * end:
            return
        self._ensure_topic()
        if self._is_known(index, end) or self._is_being_written(partition):
            return
        copying = IndexCopying(index, lock, check_open)
        copying.load_stored()
        check_open()
        producer = self._take(partition)
        began = time.monotonic()
        end = self._tools.readers.end(self.of.topic, partition)
        if self._is_known(index, end):  # by whoever was just fenced
            return
        writer = IndexWriter(self._tools, self.of, partition, TRANSACTION_TIMEOUT, check_open)
        written = writer.write(producer, copying)
        self._stored[partition] = written.state.next_offset
        self._used[partition] = writer.last_offset
        self._told = ""
        logger.info(
            "%s: a snapshot of %d events of %d aggregates was written in %.1f s",
            self._partition_name(partition), written.state.event_count, written.state.key_count,
            time.monotonic() - began,
        )  # fmt: skip

    def _is_known(self, index: PartitionIndex, end: int) -> bool:
        """Whether there is a snapshot that makes another one unnecessary.

        :param end: of the event topic's partition: one that claims more is none.
        """
        try:
            found = self._find_end(index.partition)
        except (SnapshotUnusable, Unavailable):
            return False
        stored = 0 if found is None else found.end.state.next_offset
        if stored > end:
            return False
        self._stored[index.partition] = stored
        return index.next_offset < GROWTH * stored

    def _is_being_written(self, partition: int) -> bool:
        """Whether somebody writes a snapshot now. The brokers end a transaction that takes too
        long; one that stands for longer all the same is ended by whoever fences its writer."""
        readers, now = self._tools.readers, time.monotonic()
        _, committed = readers.watermarks(self._topic, partition)
        if readers.end(self._topic, partition) <= committed:
            self._open.pop(partition, None)
            return False
        known = self._open.get(partition)
        if known is None or known.offset != committed:
            known = self._open[partition] = _OpenTransaction(committed, now)
        return now < known.since + 2 * TRANSACTION_TIMEOUT

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
                self._forget_offsets()
            except TopicMismatch:  # somebody else was faster
                info = self._topics.describe_topic(topic)
        count = info.partitions
        is_compacted = info.retention.compacted or not info.retention_known
        if not is_compacted or not _holds_nothing_else(self._tools.readers, topic, count):
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

    def _take(self, partition: int) -> Producer:
        """Become the one writer of a partition's snapshots."""
        topic = self._topic
        config = self._tools.requests.settings.transaction_config(f"{topic}-{partition}")
        milliseconds = int(TRANSACTION_TIMEOUT * 1000)
        config["transaction.timeout.ms"] = config["message.timeout.ms"] = milliseconds
        operation = f"claiming the snapshots of the index of {self.of.topic}"
        return self._tools.make_producer(config, topic, operation)


# -- whose a topic is ------------------------------------------------------------------------------


def delete_index_topic(
    topics: Topics, readers: ReaderPool, event_topic: str, *, is_used: bool
) -> None:
    """Delete the topic of an event topic's snapshots, if there is one with a snapshot in it. What
    goes wrong is logged: the event topic is gone already.

    :param is_used: snapshots are asked for here. Most have none, and some no right to look.
    """
    topic = index_topic_name(event_topic)
    try:
        info = topics.describe_topic(topic)
        has_records = any(
            low < end
            for low, end in (readers.watermarks(topic, each) for each in range(info.partitions))
        )
        if has_records and _holds_nothing_else(readers, topic, info.partitions):
            topics.delete_topic(topic)
    except NotFound:
        pass
    except (StreamsError, KafkaException) as error:
        level = logging.WARNING if is_used else logging.DEBUG
        logger.log(level, "topic %s was not deleted: %s", topic, error)


def _holds_nothing_else(readers: ReaderPool, topic: str, partitions: int) -> bool:
    """Whether each partition of a topic has nothing, or begins with a snapshot."""
    return all(_is_ours(readers, topic, each) for each in range(partitions))


def _is_ours(readers: ReaderPool, topic: str, partition: int) -> bool:
    """Whether a partition begins with a record of a snapshot, or ends with one, if it has any."""
    low, end = readers.watermarks(topic, partition)
    for first in _read(readers, topic, partition, low, end):
        if first.snapshot is not None:
            return True
        tail = _read(readers, topic, partition, max(low, end - _TAIL), end)
        return any(each.key == END_KEY and each.snapshot is not None for each in tail)
    return True


class _ReadRecord(NamedTuple):
    """A record of the topic."""

    offset: int
    key: bytes | None
    value: bytes | None
    snapshot: bytes | None
    """The name of the snapshot that it belongs to; None: it belongs to none."""


def _read(
    readers: ReaderPool, topic: str, partition: int, start: int, end: int
) -> Iterator[_ReadRecord]:
    reader = readers.open_reader(topic, partition, start, end)
    try:
        while (batch := reader.read(_READ_LIMIT, _READ_TIMEOUT)) is not None:
            for number, headers in enumerate(batch.all_headers()):
                yield _ReadRecord(
                    batch.offsets[number],
                    batch.keys[number],
                    batch.values[number],
                    snapshot_name(headers),
                )
    finally:
        reader.close()
