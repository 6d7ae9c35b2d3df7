"""Snapshots on Kafka: a compacted topic beside the event topic, and where the newest of each stand.

``accounts.events.snapshots`` belongs to ``accounts.events`` and has as many partitions. Its first
record says that it does (:data:`MARK`, with the number of partitions): that, and not a name alone,
makes ``accounts.events`` an event topic. The others are snapshots:

========  =========================================================================
key       length of the fingerprint, ``:``, the fingerprint, the aggregate's key
value     the snapshot's data; none: it was deleted
header    ``streams_snapshot``: ``VERSION/OFFSET/LAST_ID`` of what it was made of
========  =========================================================================

They are only a cache. A record that is none of these is ignored, and reported once; whoever reads a
snapshot compares it with the history before it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streams.errors import LogError
from streams.log.events import Base, StoredSnapshot
from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.index_consumer import IndexConsumer, Patience
from streams.log.kafka.reader import ReaderPool
from streams.message import Headers
from streams.text import get_logger
from streams.wire import parse_int, text

logger = get_logger("streams.kafka")

SUFFIX = ".snapshots"

MARK = "streams_event_topic"
SNAPSHOT = "streams_snapshot"

MARK_KEY = b"streams"

MAX_FINGERPRINT = 200
"""Bytes of a fingerprint, at most."""

_MAX_HEADER = 300

SnapshotName = tuple[bytes, str]
"""An aggregate's key and a fingerprint."""


def snapshot_topic(topic: str) -> str:
    """Where the snapshots of an event topic are kept."""
    return topic + SUFFIX


def is_mark(headers: Headers) -> bool:
    """Whether this record can only stand in the snapshots of an event topic."""
    return any(name in (MARK, SNAPSHOT) for name, _ in headers)


def record_key(key: bytes, fingerprint: str) -> bytes:
    """The key of a snapshot's record."""
    name = fingerprint.encode("utf-8", "surrogateescape")
    return b"%d:%b%b" % (len(name), name, key)


def record_header(snapshot: StoredSnapshot) -> tuple[str, bytes]:
    """The header of a snapshot's record."""
    base = snapshot.base
    value = f"{base.version}/{snapshot.offset}/{base.last_id}"
    return SNAPSHOT, value.encode("utf-8", "surrogateescape")


def _parse_key(key: bytes | None) -> SnapshotName | None:
    length, colon, rest = (key or b"").partition(b":")
    count = parse_int(length, 4)
    if not colon or count is None or count > MAX_FINGERPRINT or count > len(rest):
        return None
    return rest[count:], text(rest[:count])


class FoundSnapshot(NamedTuple):
    """Where a snapshot stands.

    :param at: the offset of its record.
    """

    base: Base
    offset: int
    at: int


def parse_snapshot(headers: Headers, at: int) -> FoundSnapshot | None:
    """Parse the headers of a snapshot's record; None if they are not valid."""
    for name, value in headers:
        if name == SNAPSHOT and value is not None and len(value) <= _MAX_HEADER:
            parts = value.split(b"/")
            if len(parts) != 3:
                return None
            version_digits, offset_digits, last_id = parts
            version, offset = parse_int(version_digits), parse_int(offset_digits)
            if version is None or offset is None or not last_id:
                return None
            return FoundSnapshot(Base(version, text(last_id)), offset, at)
    return None


class SnapshotIndex:
    """Where the newest snapshots stand (any thread). Follows all partitions."""

    def __init__(self, topic: str, readers: ReaderPool, partitions: int) -> None:
        self.topic = topic
        self.error: LogError | None = None
        """Why nothing is followed any more: another index has to be made."""
        self.is_ready = False
        """Whether all that there was has been read once."""
        self.patient_after = 0.0
        """Until when nobody waits for that any more (monotonic time)."""
        self._found: list[dict[SnapshotName, FoundSnapshot]] = [{} for _ in range(partitions)]
        self._next_offsets = dict.fromkeys(range(partitions), 0)
        self._changed = threading.Condition()
        self._has_reported = False
        self._consumer = IndexConsumer(topic, readers, self)
        self._consumer.follow(self._next_offsets)

    def find(self, partition: int, name: SnapshotName) -> FoundSnapshot | None:
        """The newest snapshot of a key and a fingerprint."""
        with self._changed:
            return self._found[partition].get(name)

    def names(self, fingerprint: str | None) -> list[tuple[int, SnapshotName]]:
        """All snapshots of a fingerprint, or of all, and their partitions."""
        with self._changed:
            return [
                (number, name)
                for number, found in enumerate(self._found)
                for name in found
                if fingerprint in (None, name[1])
            ]

    def has_reached(self, ends: Mapping[int, int]) -> bool:
        """Whether the partitions were read up to these offsets."""
        return all(self._next_offsets[each] >= end for each, end in ends.items())

    def wait(self, ends: Mapping[int, int], timeout: float) -> None:
        """Wait until the partitions are read up to these offsets.

        :raises Unavailable: there was no progress for ``timeout`` seconds.
        """
        patience = Patience(self.topic, timeout)
        with self._changed:
            while not self.has_reached(ends):
                if self.error is not None:
                    raise type(self.error)(str(self.error)) from self.error
                reached = {each: self._next_offsets[each] for each in ends}
                behind = {each: at for each, at in reached.items() if at < ends[each]}
                self._changed.wait(min(patience.remaining(behind), 1.0))

    def close(self) -> None:
        """Stop following."""
        self._consumer.close()

    # -- what the consumer calls

    def fold(self, batch: KafkaBatch) -> None:
        """The next records of a partition."""
        with self._changed:
            for number, headers in enumerate(batch.all_headers()):
                self._fold_record(
                    batch.partition,
                    batch.offsets[number],
                    batch.keys[number],
                    batch.values[number] is None,
                    headers,
                )
            self._move(batch.partition, batch.offsets[-1] + 1)

    def _fold_record(
        self, partition: int, offset: int, key: bytes | None, is_deleted: bool, headers: Headers
    ) -> None:
        name = _parse_key(key)
        snapshot = parse_snapshot(headers, offset)
        found = self._found[partition]
        if name is not None and is_deleted:
            found.pop(name, None)
        elif name is not None and snapshot is not None:
            found[name] = snapshot  # as compaction has it: the last one stays
        elif not is_mark(headers) and not self._has_reported:
            self._has_reported = True
            logger.warning(
                "%s/%d: the record at offset %d is not a snapshot and is ignored, as are all such "
                "that follow: only the toolkit should write there",
                self.topic, partition, offset,
            )  # fmt: skip

    def _move(self, partition: int, offset: int) -> None:
        self._next_offsets[partition] = max(offset, self._next_offsets[partition])
        self._changed.notify_all()

    def reach(self, partition: int, offset: int) -> None:
        """There is no record below this offset that was not handed over."""
        if partition in self._next_offsets:
            with self._changed:
                self._move(partition, offset)

    def next_offsets(self) -> Mapping[int, int]:
        """Where each partition goes on."""
        with self._changed:
            return dict(self._next_offsets)

    def tick(self) -> None:
        """Nothing is to be done."""

    def fail(self, error: LogError) -> None:
        """Nothing will follow any more."""
        logger.warning("%s: %s", self.topic, error)
        with self._changed:
            self.error = error
            self._changed.notify_all()


def newest(
    snapshots: Iterable[StoredSnapshot],
) -> dict[SnapshotName, StoredSnapshot]:
    """The newest snapshot of each key and fingerprint."""
    found: dict[SnapshotName, StoredSnapshot] = {}
    for snapshot in snapshots:
        name = snapshot.key, snapshot.fingerprint
        known = found.get(name)
        if known is None or known.base.version <= snapshot.base.version:
            found[name] = snapshot
    return found
