"""The index of a partition: however its records come in, it says what the rule says."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.log.event_headers import VOID, cause_of, event_header, is_final, parse_event
from streams.log.events import NO_HISTORY, Base, Caused, Head
from streams.log.kafka.arbitration import Arbiter, Counted
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.index_records import (
    FORMAT,
    PART_BYTES,
    IndexCopying,
    IndexSnapshot,
    SnapshotEnd,
    SnapshotRecord,
    SnapshotUnusable,
    checksum,
    end_record,
    parse_end,
)
from streams.log.kafka.partition_index import (
    CHUNK,
    ChangedKey,
    Changes,
    KeyEntry,
    PartitionIndex,
    PartitionState,
)
from streams.message import ID, Headers, Record
from tests.log.test_kafka_arbitration import append

KEYS = [b"a", b"b", b""]


class File:
    """What a file would keep, in memory."""

    is_written = True

    def __init__(self) -> None:
        self.state = PartitionState()
        self.keys: dict[bytes, KeyEntry] = {}
        self.causes: dict[tuple[bytes, str], Caused] = {}
        self.losers: set[int] = set()

    def write(self, changes: Changes) -> None:
        self.state = changes.state
        for key, entry, first in changes.keys:
            assert first % CHUNK == 0
            known = self.keys.get(key)
            before = [] if known is None else known.offsets[:first]
            offsets = entry.offsets[:0]
            offsets.extend(before)
            offsets.extend(entry.offsets)
            self.keys[key] = KeyEntry(offsets, entry.last_id, entry.is_final, entry.refusals)
        for key, cause, caused in changes.causes:
            self.causes.setdefault((key, cause), caused)
        assert not self.losers & set(changes.losers)
        self.losers |= set(changes.losers)

    def find_key(self, key: bytes) -> KeyEntry | None:
        found = self.keys.get(key)
        if found is None:
            return None
        return KeyEntry(found.offsets[:], found.last_id, found.is_final, dict(found.refusals or {}))

    def find_cause(self, key: bytes, cause: str) -> Caused | None:
        return self.causes.get((key, cause))

    def find_losers(self, first: int, end: int) -> set[int]:
        return {offset for offset in self.losers if first <= offset < end}

    def list_keys(self, after: bytes | None, limit: int) -> list[tuple[bytes, Head]]:
        found = sorted(
            (key, each.head) for key, each in self.keys.items() if after is None or key > after
        )
        return found[:limit]


@st.composite
def partitions(draw: st.DrawFn) -> list[tuple[int, bytes | None, Headers]]:
    """Records of honest and other writers, with gaps between their offsets."""
    bases: dict[bytes, list[Base]] = {key: [NO_HISTORY, Base(3, "never")] for key in KEYS}
    queues: list[list[Record]] = []
    records: list[tuple[int, bytes | None, Headers]] = []
    arbiter, offset = Arbiter(), 0
    for _ in range(draw(st.integers(1, 40))):
        what = draw(st.integers(0, 9))
        key = draw(st.sampled_from(KEYS))
        if what == 0:
            name = draw(st.sampled_from([each[0].id for each in queues if each] or ["x"]))
            record = Record(None, key, "void", [(VOID, name.encode())])
        elif what == 1:
            header = draw(
                st.sampled_from([b"", b"0/1/0/", b"0/1/1/x", b"1/2/0//x", b"0/2/0/", b"\xff"])
            )
            id = draw(st.sampled_from(["", "a/b", "\0", "x y", "\udcff", "plain", "i" * 300]))
            record = Record(
                b"x", draw(st.sampled_from([key, None])), id, [("streams_event", header)]
            )
        else:
            if what < 6 or not queues:
                made = append(
                    key,
                    draw(st.sampled_from(bases[key][-1:] * 3 + bases[key])),
                    draw(st.sampled_from([1, 1, 1, 2, 3])),
                    is_final=draw(st.integers(0, 30)) == 0,
                    cause=draw(st.sampled_from(["", "", "c", "d"])),
                )
                if draw(st.integers(0, 9)) == 0:
                    made = append(key, made.base, 1, cause=made.cause, is_refusal=True)
                queues.append(list(made.records) * draw(st.sampled_from([1, 1, 1, 2])))
            queue = draw(st.sampled_from(queues))
            if not queue:
                continue
            record = queue.pop(0)
        offset += draw(st.sampled_from([1, 1, 1, 2, 5]))
        headers = [(ID, record.id.encode("utf-8", "surrogateescape")), *record.headers]
        if draw(st.integers(0, 5)) == 0:
            headers.append(("traceparent", b"00-1"))
        records.append((offset, record.key, headers))
        counted = judged(arbiter, offset, record.key, headers)
        if counted is not None:
            bases[counted.key].append(counted.head.base)
    return records


def judged(arbiter: Arbiter, offset: int, key: bytes | None, headers: Headers) -> Counted | None:
    """What the rule says of the next record."""
    for name, value in headers:
        if name == VOID and value is not None:
            arbiter.void(key, value.decode("utf-8", "surrogateescape"))
    (id,) = [value for name, value in headers if name == ID and value is not None]
    record_id = id.decode("utf-8", "surrogateescape").partition("\0")[0]
    header = parse_event(event_header(headers), record_id)
    return arbiter.feed(offset, key, record_id, header, cause_of(headers), is_final(headers))


def test_nothing_follows_a_final_event() -> None:
    last = append(b"k", NO_HISTORY, is_final=True)
    late = append(b"k", last.head.base)
    index = PartitionIndex(0)
    for offset, record in enumerate([*last.records, *late.records]):
        index.fold([offset], [b"k"], [[(ID, record.id.encode()), *record.headers]])
    assert index.head(b"k") == last.head
    assert index.uncounted(0, 2) == [1]


class Copying:
    """A snapshot of an index that is made record by record."""

    def __init__(self, index: PartitionIndex) -> None:
        self._index = index
        self._begin()

    def _begin(self) -> None:
        self._copying = IndexCopying(self._index, threading.Lock())
        self._records = self._copying.records()
        self._taken: list[SnapshotRecord] = []

    def go_on(self, steps: int) -> IndexSnapshot | None:
        """Take so many records; the snapshot, if there were fewer."""
        taken = list(islice(self._records, steps))
        self._taken += taken
        if len(taken) == steps:
            return None
        if self._copying.state.last_offset < 0:  # of what has nothing that counts none is made
            self._begin()
            return None
        return snapshot_of(self._copying, self._taken)


def snapshot_of(copying: IndexCopying, records: list[SnapshotRecord]) -> IndexSnapshot:
    """The snapshot that is read of these records, and of the last one."""
    found = 0
    for record in records:
        found = checksum(record, found)
    made = SnapshotEnd(FORMAT, "", 1, 0, len(records), found, copying.buckets, copying.state)
    end = parse_end(end_record(made).value, len(records))
    assert end == made
    return IndexSnapshot("the index", end, records)


@settings(max_examples=200, deadline=None)
@given(partitions(), st.data())
def test_an_index_says_what_the_rule_says(
    records: list[tuple[int, bytes | None, Headers]], data: st.DataObject
) -> None:
    """Fed in batches of any size, with what came before again, and begun anew from its file, or
    from a snapshot that was made while it went on."""
    arbiter = Arbiter()
    counted = [found for each in records if (found := judged(arbiter, *each))]
    events = {o for each in counted if not each.is_refusal for o in each.offsets}
    kept = data.draw(st.sampled_from(["nowhere", "file", "snapshot"]), "kept in")
    file = File() if kept == "file" else None
    index = PartitionIndex(0, file)
    copying = Copying(index) if kept == "snapshot" else None
    copied: dict[bytes, ChangedKey] = {}
    at = 0
    while at < len(records):
        size = data.draw(st.integers(1, 8), "batch")
        again = data.draw(st.integers(0, min(at, 3)), "seen before")
        offsets, keys, headers = zip(*records[at - again : at + size], strict=True)
        index.fold(offsets, keys, headers)
        at += size
        what = data.draw(st.integers(0, 4), "then") if file is not None else 0
        if what == 4:  # some of what has changed is copied, and goes on changing
            some = data.draw(st.integers(0, 3), "keys that are copied")
            copied |= index.copy_changed(index.changed_keys()[:some])
            continue
        if file is not None and what:
            changes = index.take_changes(copied)
            copied = {}
            if what == 1:  # it could not be written
                index.changes_lost(changes)
            else:
                file.write(changes)
                index.changes_written(changes)
                index.forget_causes(changes.causes)
                if what == 3:
                    index = PartitionIndex(0, file)
        if copying is not None:
            snapshot = copying.go_on(data.draw(st.sampled_from([0, 1, 1, 1, 2, 5]), "copied"))
            is_last = at >= len(records)
            if is_last and snapshot is None:
                snapshot = copying.go_on(10)
            if snapshot is not None:
                if is_last or data.draw(st.booleans(), "begun anew"):
                    index = PartitionIndex(0, snapshot)
                    at = bisect_left(records, index.next_offset, key=lambda each: each[0])
                copying = Copying(index)
    end = records[-1][0] + 1
    assert index.next_offset == end
    for key in KEYS:
        assert index.head(key) == arbiter.head(key)
        entry = index.entry(key)
        expected = [o for each in counted if each.key == key for o in each.offsets]
        assert list(entry.offsets if entry else ()) == [o for o in expected if o in events]
        for cause in ("c", "d"):
            first = next((each for each in counted if (each.key, each.cause) == (key, cause)), None)
            caused = None
            if first is not None:
                count = 0 if first.is_refusal else len(first.offsets)
                caused = Caused(first.base.version + 1, count)
            assert index.cause(key, cause) == caused
    assert index.uncounted(0, end) == sorted({o for o, _, _ in records} - events)
    assert index.event_count == len(events)
    assert index.key_count == len({each.key for each in counted})
    assert index.list_keys(None, 10) == sorted(
        {each.key: arbiter.head(each.key) for each in counted}.items()
    )
    pending = arbiter.first_pending_offset()
    assert index.decided_until() == (end if pending is None else pending)


def test_a_snapshot_of_many_keys_has_them_in_buckets_that_are_read_when_they_are_needed() -> None:
    index = PartitionIndex(0)
    keys = [b"key %d" % number for number in range(5_000)]
    for offset, key in enumerate([*keys, *keys[:100]]):
        version = len(index.keys[key].offsets) if key in index.keys else 0
        base = b"0/1/%d/%b" % (version, index.keys[key].last_id if version else b"")
        index.fold([offset], [key], [[(ID, b"id-%d" % offset), ("streams_event", base)]])
    assert index.event_count == 5_100
    copying = IndexCopying(index, threading.Lock())
    snapshot = snapshot_of(copying, list(copying.records()))
    assert copying.buckets == 8
    read = PartitionIndex(0, snapshot)
    assert len(snapshot.buckets()) == 8
    assert read.head(keys[7]) == index.head(keys[7])
    assert list(read.keys) == [keys[7]]
    assert read.head(b"another") == index.head(b"another")
    assert read.list_keys(keys[7], 3) == index.list_keys(keys[7], 3)
    assert read.list_keys(None, 6_000) == index.list_keys(None, 6_000)
    assert {key: read.entry(key) for key in keys} == index.keys


def test_a_long_history_is_spread_over_records() -> None:
    index = PartitionIndex(0)
    (record,) = append(b"k", NO_HISTORY).records
    index.fold([199_999], [b"k"], [[(ID, record.id.encode()), *record.headers]])
    index.keys[b"k"].offsets[:] = array("q", range(200_000))
    copying = IndexCopying(index, threading.Lock())
    records = list(copying.records())
    assert [each.key for each in records] == [b"1/keys/0/%d" % part for part in range(4)]
    assert max(len(each.value) for each in records) == PART_BYTES
    assert PartitionIndex(0, snapshot_of(copying, records)).entry(b"k") == index.keys[b"k"]


@pytest.mark.parametrize("lost", range(3))
def test_a_snapshot_that_lacks_a_record_or_has_another_is_not_used(lost: int) -> None:
    index = PartitionIndex(0)
    index.fold([0], [b"k"], [[(ID, b"a"), ("streams_event", b"0/1/0/")]])
    index.fold([1], [b"k"], [[(ID, b"b"), ("streams_event", b"0/1/0/")]])
    copying = IndexCopying(index, threading.Lock())
    records = list(copying.records())
    whole = snapshot_of(copying, records)
    assert (whole.state.event_count, list(whole.losers())) == (1, [1])
    found = 0
    for record in records:
        found = checksum(record, found)
    end = SnapshotEnd(FORMAT, "", 1, 0, len(records), found, copying.buckets, copying.state)
    damaged = [
        records[1:],
        [*records[:-1], SnapshotRecord(records[-1].key, b"")],
        [*records, SnapshotRecord(b"strange", b"")],
    ][lost]
    with pytest.raises(SnapshotUnusable):
        IndexSnapshot("the index", end, damaged)


NUMBERS = st.integers(-2, 200) | st.sampled_from([1 << 62, (1 << 63) - 1, -(1 << 63)])
STATES = st.builds(
    PartitionState,
    *[NUMBERS] * 2,
    st.binary(max_size=3),
    *[NUMBERS] * 4,
    st.lists(
        st.tuples(st.binary(), st.binary(), NUMBERS, st.lists(NUMBERS, max_size=2), st.binary()),
        max_size=2,
    ),
)
ENDS = st.builds(SnapshotEnd, st.just(FORMAT), st.text(), *[NUMBERS] * 5, STATES)


@given(st.binary(max_size=60) | ENDS.map(lambda end: end_record(end).value))
def test_whatever_is_said_to_be_an_end_is_read_or_refused(value: bytes) -> None:
    end = parse_end(value, 100)
    if end is not None:
        assert 0 <= end.first <= end.first + end.records <= 100
        assert 0 <= end.state.last_offset < end.state.next_offset


PARTS = st.tuples(
    st.sampled_from(
        [
            b"1/keys/0/0",
            b"1/causes/0",
            b"1/losers/0",
            b"1/changed/0",
            b"1/keys/x/0",
            b"1/keys/9999999999/0",
        ]
    ),
    st.binary(max_size=30),
)


@given(st.lists(PARTS, max_size=4))
def test_whatever_a_snapshot_holds_it_is_read_or_refused(found: list[tuple[bytes, bytes]]) -> None:
    """Somebody has written it who knows the checksum."""
    records = [SnapshotRecord(*each) for each in found]
    written = 0
    for record in records:
        written = checksum(record, written)
    state = PartitionState(next_offset=9, key_count=1)
    end = SnapshotEnd(FORMAT, "", 1, 0, len(records), written, 1, state)
    with suppress(SnapshotUnusable, IndexFileDamaged):
        index = PartitionIndex(0, IndexSnapshot("the index", end, records))
        index.head(b"k")
        index.list_keys(None, 10)


def test_what_changes_while_the_index_is_copied_is_in_the_snapshot() -> None:
    index = PartitionIndex(0)
    appends = [append(b"a", NO_HISTORY), append(b"b", NO_HISTORY)]
    appends += [append(b"a", appends[0].head.base), append(b"new", NO_HISTORY)]
    records = [each.records[0] for each in appends]
    headers = [[(ID, each.id.encode()), *each.headers] for each in records]
    index.fold([0, 1], [b"a", b"b"], headers[:2])
    copying = Copying(index)
    assert copying.go_on(1) is None
    index.fold([2, 3], [b"a", b"new"], headers[2:])
    snapshot = copying.go_on(10)
    assert snapshot is not None
    read = PartitionIndex(0, snapshot)
    assert {key: read.entry(key) for key in (b"a", b"b", b"new")} == index.keys
    assert read.next_offset == 4
