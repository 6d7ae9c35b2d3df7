"""A snapshot of one partition's index, as records of a compacted topic.

``accounts.events.index`` belongs to ``accounts.events`` and has as many partitions. A snapshot is
written in one transaction, whole, and its records stand in this order:

================  ===============================================================================
key               value
================  ===============================================================================
``1/keys/B/P``    part P of bucket B: entries of the keys whose CRC-32 is B, modulo the buckets
``1/causes/P``    part P of what was appended for which cause
``1/losers/P``    part P of the offsets of records that do not count
``1/changed/P``   part P of entries that have changed while others were copied: they replace them
``1/end``         what the snapshot is of, where it begins, and a checksum over the records before
================  ===============================================================================

The 1 is the format. All parts of one thing, one behind the other, are one MessagePack document. The
next snapshot replaces records of the same keys, and compaction removes them. Each has the
snapshot's name in a header.

Buckets are decoded when a key of theirs is first asked for: a process that decides upon a few
aggregates of a million has read a million entries, and made objects of a few thousand.

A snapshot is a cache. A record that is none of these is passed over, and a snapshot that does not
agree with its checksum, its topic or the log is not used.
"""

from __future__ import annotations

import sys
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from streams.log.events import Caused, Head, StoredRefusal
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.partition_index import KeyEntry, PartitionIndex, PartitionState
from streams.message import Headers
from streams.wire import text

SUFFIX = ".index"

FORMAT = 1

SNAPSHOT = "streams_index"
"""The header with a snapshot's name."""

_PREFIX = b"%d/" % FORMAT
"""The prefix of all record keys, with the format's version."""

END_KEY = _PREFIX + b"end"

PART_BYTES = 512 * 1024
"""Largest value of one record: half of what a topic accepts by default."""

MAX_BUCKETS = 1 << 16
KEYS_IN_BUCKET = 1_000
"""About as many."""

_SLICE = 500
"""Entries that are copied at once, while the index waits."""

_MAX_COUNT = 1 << 62


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """One key's entry, as it is written."""

    key: bytes
    offsets: bytes
    """Eight bytes each, the lowest first."""
    last_id: bytes
    is_final: bool
    refusals: list[_EntryRefusal]


class _EntryRefusal(NamedTuple):
    """A refusal of a key, as it is written."""

    append_id: bytes
    version: int
    offset: int


class _EntryCause(NamedTuple):
    """A cause, as it is written, with the version and the number of its events."""

    key: bytes
    cause: bytes
    version: int
    event_count: int


class SnapshotEnd(msgspec.Struct, array_like=True):
    """The last record of a snapshot.

    :param topic_id: see :class:`SnapshotOf`.
    :param first: offset of the first record.
    :param records: how many there are before this one.
    :param checksum: of their keys and values.
    """

    format: int
    topic_id: str
    partitions: int
    first: int
    records: int
    checksum: int
    buckets: int
    state: PartitionState


_encode = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[_Entry]).decode
_decode_causes = msgspec.msgpack.Decoder(list[_EntryCause]).decode
_decode_end = msgspec.msgpack.Decoder(SnapshotEnd).decode


class SnapshotOf(NamedTuple):
    """The event topic whose index a snapshot is of.

    :param topic_id: the brokers' ID of it; empty: it is not known.
    :param partitions: that it was declared with.
    """

    topic: str
    topic_id: str
    partitions: int


class SnapshotRecord(NamedTuple):
    """A record of a snapshot."""

    key: bytes
    value: bytes


class SnapshotUnusable(Exception):
    """A snapshot is not what was written, or not of this topic; why.

    :param offset: of its end, where that is known.
    """

    def __init__(self, why: str, offset: int = -1) -> None:
        super().__init__(why)
        self.offset = offset


def index_topic_name(topic: str) -> str:
    """The topic of the snapshots of an event topic's index."""
    return topic + SUFFIX


def snapshot_name(headers: Headers) -> bytes | None:
    """The name of the snapshot that a record belongs to, by its headers; None: of none."""
    for name, value in headers:
        if name == SNAPSHOT:
            return value
    return None


def bucket_count(keys: int) -> int:
    """How many buckets so many keys are spread over: a power of two."""
    wanted = max(1, keys // KEYS_IN_BUCKET)
    return int(min(MAX_BUCKETS, 1 << (wanted - 1).bit_length()))


def bucket_of(key: bytes, buckets: int) -> int:
    """The bucket of a key."""
    return crc32(key) % buckets


# -- writing ---------------------------------------------------------------------------------------


def entry_records(name: str, entries: Iterable[tuple[bytes, KeyEntry]]) -> Iterator[SnapshotRecord]:
    """The records of some entries.

    :param name: what their keys begin with.
    """
    document = [_written(key, entry) for key, entry in entries]
    return _parts(name, _encode(document)) if document else iter(())


def cause_records(causes: Iterable[tuple[tuple[bytes, str], Caused]]) -> Iterator[SnapshotRecord]:
    """The records of causes."""
    document = [
        (key, cause.encode("utf-8", "surrogateescape"), *caused) for (key, cause), caused in causes
    ]
    return _parts("causes", _encode(document)) if document else iter(())


def loser_records(losers: Sequence[int]) -> Iterator[SnapshotRecord]:
    """The records of offsets that do not count, which are in order."""
    return _parts("losers", _offset_bytes(array("q", losers))) if losers else iter(())


def end_record(end: SnapshotEnd) -> SnapshotRecord:
    """The last record of a snapshot."""
    return SnapshotRecord(END_KEY, _encode(end))


def checksum(record: SnapshotRecord, before: int) -> int:
    """The checksum of records up to this one."""
    return crc32(record.value, crc32(record.key, before))


def _parts(name: str, content: bytes) -> Iterator[SnapshotRecord]:
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        yield SnapshotRecord(
            b"%b%b/%d" % (_PREFIX, name.encode(), number), content[start : start + PART_BYTES]
        )


def _written(key: bytes, entry: KeyEntry) -> _Entry:
    refusals = [
        _EntryRefusal(id.encode("utf-8", "surrogateescape"), refusal.version, refusal.offset)
        for id, refusal in (entry.refusals or {}).items()
    ]
    return _Entry(key, _offset_bytes(entry.offsets), entry.last_id, entry.is_final, refusals)


def _offset_bytes(offsets: Any) -> bytes:
    if sys.byteorder == "big":
        offsets = array("q", offsets)
        offsets.byteswap()
    return bytes(offsets.tobytes())


# -- reading ---------------------------------------------------------------------------------------


def parse_end(value: bytes | None, at: int) -> SnapshotEnd | None:
    """Parse a snapshot's last record; None if it is not one.

    :param at: the record's offset.
    """
    try:
        found = _decode_end(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    state = found.state
    numbers = (
        found.records,
        found.checksum,
        state.next_offset,
        state.key_count,
        state.event_count,
        state.cause_count,
        state.cause_bytes,
    )
    is_possible = (
        found.format == FORMAT
        and all(0 <= number < _MAX_COUNT for number in numbers)
        and 0 <= found.first <= at
        and 1 <= found.records <= at - found.first
        and 1 <= found.buckets <= MAX_BUCKETS
        and 0 <= state.last_offset < state.next_offset
        and 1 <= state.key_count <= state.next_offset
        and max(state.event_count, state.cause_count) <= state.next_offset
        and -1 <= state.folded_offset < state.next_offset
        and all(
            len(each.offsets) < each.record_count
            and all(0 <= offset < state.next_offset for offset in each.offsets)
            for each in state.pending
        )
    )
    return found if is_possible else None


class IndexSnapshot:
    """A snapshot of a partition: see :class:`~.partition_index.StoredPartition`.

    :param place: topic and partition, for errors.
    :param records: all of it but the last, in order.
    :param on_wrong: is called if something of it cannot be decoded, later.
    :raises SnapshotUnusable: they are not what was written.
    """

    is_written = False

    def __init__(
        self,
        place: str,
        end: SnapshotEnd,
        records: Iterable[SnapshotRecord],
        on_wrong: Callable[[], None] | None = None,
    ) -> None:
        self.state = end.state
        self._place = place
        self._on_wrong = on_wrong
        self._count = end.buckets
        self._buckets: dict[int, list[bytes]] = {}
        """Those that were not needed yet: their parts."""
        self._entries: dict[int, dict[bytes, KeyEntry]] = {}
        """The others."""
        self._sorted: list[tuple[bytes, Head]] | None = None
        parts: dict[str, list[bytes]] = {"causes": [], "losers": [], "changed": []}
        found_sum, count = 0, 0
        for record in records:
            found_sum, count = checksum(record, found_sum), count + 1
            key = record.key.removeprefix(_PREFIX)
            match key.decode("ascii", "replace").split("/"):
                case ["keys", bucket, _] if bucket.isdigit() and len(bucket) < 9:
                    self._buckets.setdefault(int(bucket), []).append(record.value)
                case [kind, *_] if kind in parts:
                    parts[kind].append(record.value)
                case _:
                    raise SnapshotUnusable("it has a record of an unknown kind")
        if (count, found_sum) != (end.records, end.checksum):
            raise SnapshotUnusable(f"{end.records} records were written, and they are not there")
        with _refused():
            self._losers = _offsets(b"".join(parts["losers"]))
            self._causes = {
                (each.key, text(each.cause)): Caused(each.version, each.event_count)
                for each in _decode_all(_decode_causes, parts["causes"])
            }
            self._changed = dict(map(_read, _decode_all(_decode_entries, parts["changed"])))

    def find_key(self, key: bytes) -> KeyEntry | None:
        """A key's entry.

        :raises IndexFileDamaged: what is found is not what was written.
        """
        found = self._changed.get(key)
        return self._bucket(bucket_of(key, self._count)).get(key) if found is None else found

    def find_cause(self, key: bytes, cause: str) -> Caused | None:
        """The append that was made for a cause, if any."""
        return self._causes.get((key, cause))

    def find_losers(self, first: int, end: int) -> Iterable[int]:
        """Offsets between two that do not count."""
        losers = self._losers
        return losers[bisect_left(losers, first) : bisect_left(losers, end)]

    def list_keys(self, after: bytes | None, limit: int) -> list[tuple[bytes, Head]]:
        """Keys in order, behind ``after``."""
        if self._sorted is None:
            self._sorted = self._sorted_heads(nullcontext())
        start = 0
        if after is not None:
            start = bisect_left(self._sorted, after + b"\0", key=lambda pair: pair[0])
        return self._sorted[start : start + limit]

    def prepare_list(self, lock: threading.Lock) -> None:
        """See to it that keys can be listed without holding up the index.

        :param lock: guards the index; it is taken for a bucket at a time.
        """
        if self._sorted is None:
            self._sorted = self._sorted_heads(lock)

    def _sorted_heads(self, lock: AbstractContextManager[object]) -> list[tuple[bytes, Head]]:
        with lock:
            heads = [(key, entry.head) for key, entry in self._changed.items()]
            buckets = self.buckets()
        for bucket in buckets:
            with lock:
                heads += [(key, entry.head) for key, entry in self.entries(bucket)]
        return sorted(heads, key=lambda pair: pair[0])

    def buckets(self) -> Sequence[int]:
        """Those in which there is something."""
        return sorted({*self._buckets, *self._entries})

    def entries(self, bucket: int) -> Iterable[tuple[bytes, KeyEntry]]:
        """The keys of a bucket that have not changed while they were copied.

        :raises IndexFileDamaged: it is not what was written.
        """
        changed = self._changed
        return [pair for pair in self._bucket(bucket).items() if pair[0] not in changed]

    def changed(self) -> Iterable[tuple[bytes, KeyEntry]]:
        """The other keys."""
        return self._changed.items()

    def causes(self) -> Iterable[tuple[tuple[bytes, str], Caused]]:
        """All of them."""
        return self._causes.items()

    def losers(self) -> Iterable[int]:
        """Offsets of records that do not count."""
        return self._losers

    def _bucket(self, number: int) -> dict[bytes, KeyEntry]:
        found = self._entries.get(number)
        if found is None:
            parts = self._buckets.get(number, [])
            try:
                with _refused():
                    found = dict(map(_read, _decode_all(_decode_entries, parts)))
            except SnapshotUnusable as error:
                if self._on_wrong is not None:
                    self._on_wrong()
                raise IndexFileDamaged(
                    f"{self._place}: the snapshot of its index is not used: {error}"
                ) from error
            self._entries[number] = found
            self._buckets.pop(number, None)
        return found


@contextmanager
def _refused() -> Iterator[None]:
    """Translate decoding errors in this context into an error of this package."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError) as error:
        raise SnapshotUnusable(f"a record cannot be decoded: {error}") from error


def _decode_all(decode: Any, parts: Sequence[bytes]) -> Any:
    return decode(b"".join(parts)) if parts else []


def _read(entry: _Entry) -> tuple[bytes, KeyEntry]:
    refusals = {
        text(each.append_id): StoredRefusal(each.version, each.offset) for each in entry.refusals
    }
    read = KeyEntry(_offsets(entry.offsets), entry.last_id, entry.is_final, refusals or None)
    return entry.key, read


def _offsets(content: bytes) -> array[int]:
    offsets = array("q")
    offsets.frombytes(content)
    if sys.byteorder == "big":
        offsets.byteswap()
    return offsets


# -- copying an index ------------------------------------------------------------------------------


class IndexCopying:
    """Copies an index into the records of a snapshot, while the index goes on.

    Some entries are copied at a time, with the index locked. Those that have changed since the
    beginning are copied again at the end, at one moment with all the rest: so a snapshot is what
    the index was at that moment.

    :param lock: guards the index.
    :param check_open: raises if the copying is to be given up.
    """

    def __init__(
        self,
        index: PartitionIndex,
        lock: threading.Lock,
        check_open: Callable[[], None] = lambda: None,
    ) -> None:
        self.buckets = 1
        self.state = PartitionState()
        """The state of the index at the end; known once all records were taken."""
        self._index = index
        self._lock = lock
        self._check_open = check_open

    def records(self) -> Generator[SnapshotRecord]:
        """All but the last; whoever does not take them all gives the copy up."""
        self.load_stored()
        index, lock = self._index, self._lock
        with lock:
            keys = index.begin_copy()
        try:
            buckets = self.buckets = bucket_count(len(keys))
            grouped: list[list[bytes]] = [[] for _ in range(buckets)]
            for key in keys:
                grouped[bucket_of(key, buckets)].append(key)
            for number, group in enumerate(grouped):
                self._check_open()
                yield from entry_records(f"keys/{number}", self._copy(group))
        except BaseException:
            with lock:
                index.give_up_copy()
            raise
        with lock:
            copy = index.end_copy()
        self.state = copy.state
        yield from cause_records(copy.causes)
        yield from loser_records(sorted(copy.losers))
        yield from entry_records("changed", copy.changed.items())

    def load_stored(self) -> None:
        """Have all of the index in memory, if it began with a snapshot."""
        index, lock = self._index, self._lock
        stored = index.stored
        if isinstance(stored, IndexSnapshot):
            for bucket in stored.buckets():
                self._check_open()
                with lock:
                    index.add_stored(stored.entries(bucket))
            with lock:
                index.add_stored(stored.changed())
                index.all_stored_added(stored.causes(), stored.losers())

    def _copy(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, KeyEntry]]:
        for start in range(0, len(keys), _SLICE):
            with self._lock:
                entries = self._index.copy_entries(keys[start : start + _SLICE])
            yield from entries
