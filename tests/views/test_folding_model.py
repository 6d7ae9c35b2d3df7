"""The pure core against a naive model: whatever the batches, failures and restarts, the documents
are the fold of the history up to the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, json

from stream_codecs import UnknownTag
from streams import Streams, View
from streams.errors import Fenced
from streams.eventsourcing.views.checkpoint_check import CheckpointBeyondLog
from streams.eventsourcing.views.checkpoints import UnreadableCheckpoint, decode_checkpoint
from streams.eventsourcing.views.errors import EventsChanged
from streams.eventsourcing.views.event_readers import KeyedReader, SourceReader
from streams.eventsourcing.views.folding import PartitionFolder
from streams.eventsourcing.views.keyed_records import (
    HEADER,
    KeyedRecord,
    copied_headers,
    keyed_header,
    parse_keyed,
    source_batch,
)
from streams.log.documents import Checkpoint, DocumentStore
from streams.log.event_filter import ForeignRecords
from streams.log.memory.documents import MemoryDocuments
from streams.message import ID, Batch
from streams.processing import SeveralValues, Skip

KEYS = [b"a", b"b", b"c"]
OFFSETS = st.integers(0, (1 << 128) - 1)
"""Those of Redis are the largest."""


class Number(Struct, frozen=True):
    """``value`` decides what becomes of it."""

    value: int


class Sum(Struct, frozen=True):
    total: int = 0
    text: str = ""
    many: tuple[int, ...] = ()


POISON, ODD_TYPE, UNWRITABLE, ILL_TYPED, LISTED, DELETES, UNKNOWN, NOTHING = range(-8, 0)
FAILING = (POISON, ODD_TYPE, UNWRITABLE, ILL_TYPED)


def fold(document: Sum | None, event: Number) -> Any:
    """Fails, deletes, or adds."""
    found = document or Sum()
    match event.value:
        case value if value == POISON:
            raise ValueError("poison")
        case value if value == ODD_TYPE:
            return "no document"
        case value if value == UNWRITABLE:
            return Sum(found.total, "\ud800")
        case value if value == ILL_TYPED:
            wrong: Any = 5  # msgspec holds no constructor against its types
            return Sum(found.total, wrong)
        case value if value == DELETES:
            return None
        case value if value == LISTED:
            listed: Any = [1]  # is read again as a tuple
            return Sum(found.total, "", listed)
    return Sum(found.total * 31 + event.value + isinstance(found.many, list), "")


def as_read(document: Sum | None) -> Sum | None:
    """A document as it is once it was stored."""
    return None if document is None else json.decode(json.encode(document), type=Sum)


def good(document: Sum | None, event: Number) -> Sum | None:
    """The same, mended."""
    if event.value in FAILING:
        return document
    found: Sum | None = fold(document, event)
    return found


class Decoding:
    """Decodes numbers; of ``UNKNOWN`` only once it is known, and of ``NOTHING`` never any."""

    gives_several = False
    id_reader = None

    def __init__(self) -> None:
        self.knows_all = False

    def unwrap(self, batch: Batch) -> Batch:
        return batch

    def fast_decoder(self, values: Any, largest: int) -> Any:
        return self._decode

    def decode_one(self, batch: Batch, index: int) -> Any:
        return self._decode(batch.values[index])

    def _decode(self, data: Any) -> Number:
        found = json.decode(data, type=Number)
        if found.value == UNKNOWN and not self.knows_all:
            raise UnknownTag("a later tag", tag="later")
        if found.value == NOTHING:
            raise Skip
        return found


class Source:
    name = "numbers"

    def __init__(self) -> None:
        self.decoding: Any = Decoding()


def store_of() -> DocumentStore:
    import threading

    lock = threading.Lock()
    store = MemoryDocuments({}, lambda: lock)
    store.create("sums.v1", 1)
    return store


def definition(source: Any, function: Any) -> Any:
    view: View[Sum] = View(Streams("memory://"), "sums", Sum, function, source)
    return view._definition


def row(offset: int, key: bytes, value: int) -> tuple[int, bytes, bytes]:
    return offset, key, json.encode(Number(value))


def batch_of(rows: list[tuple[int, bytes, bytes]], headers: Any = None) -> Batch:
    return Batch(
        "numbers",
        0,
        [offset for offset, _, _ in rows],
        [key for _, key, _ in rows],
        [value for _, _, value in rows],
        [f"id-{offset}" for offset, _, _ in rows],
        headers,
        [0.0] * len(rows),
    )


def model(history: list[tuple[int, bytes, bytes]], below: int) -> dict[bytes, Sum]:
    """The documents that do not stand still, after all messages below an offset."""
    documents: dict[bytes, Sum | None] = {}
    stopped: set[bytes] = set()
    for offset, key, data in history:
        if offset >= below or key in stopped:
            continue
        event = json.decode(data, type=Number)
        if event.value == NOTHING:
            continue
        if event.value in FAILING:
            stopped.add(key)
            continue
        documents[key] = as_read(fold(documents.get(key), event))
    return {key: found for key, found in documents.items() if found and key not in stopped}


def stored(store: DocumentStore) -> tuple[dict[bytes, Sum], int]:
    found = store.read("sums.v1", 0, KEYS)
    documents = {
        key: json.decode(each.value, type=Sum)
        for key, each in zip(KEYS, found.documents, strict=True)
        if each is not None and not each.failure and each.value is not None
    }
    return documents, 0 if found.checkpoint is None else found.checkpoint.position


histories = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(KEYS),
        st.one_of(
            st.integers(0, 9),
            st.sampled_from([*FAILING, LISTED, DELETES, UNKNOWN, NOTHING]),
        ),
    ),
    max_size=30,
).map(lambda found: list(_numbered(found)))


def _numbered(found: list[tuple[int, bytes, int]]) -> Iterator[tuple[int, bytes, bytes]]:
    offset = 0
    for step, key, value in found:
        offset += step  # gaps are normal
        yield row(offset, key, value)


@settings(max_examples=60, deadline=None)
@given(histories, st.lists(st.integers(1, 9), min_size=1, max_size=30), st.data())
def test_documents_are_the_fold_up_to_the_checkpoint(
    history: list[tuple[int, bytes, bytes]], cuts: list[int], data: st.DataObject
) -> None:
    store, source = store_of(), Source()
    shape = definition(source, fold)
    reader = SourceReader(source.decoding)
    folder = PartitionFolder(shape, reader, store.claim("sums.v1", 0))
    knows_after = data.draw(st.integers(0, 10), label="attempts until the tag is known")
    attempts = 0
    sizes = cycle(cuts)
    while True:
        left = [each for each in history if each[0] >= folder.position]
        if not left:
            break
        batch = batch_of(left[: next(sizes)])
        in_time = data.draw(st.booleans(), label="in time")
        found = folder.handle(batch, 0, float("inf") if in_time else 0.0)
        documents, position = stored(store)
        while found.error is None and found.stop < len(batch):  # the time was over
            assert documents == model(history, position)
            assert position == batch.offsets[found.stop - 1] + 1
            found = folder.handle(batch, found.stop, 0.0)
            documents, position = stored(store)
        assert position == folder.position
        assert documents == model(history, position)
        if found.error is not None:
            assert isinstance(found.error, UnknownTag)
            assert position <= batch.offsets[found.stop]
            attempts += 1
            source.decoding.knows_all = attempts > knows_after
            if not source.decoding.knows_all:
                # The rest of the same batch, as a partition that waits tries it again.
                again = folder.handle(batch, found.stop)
                assert (again.stop, type(again.error)) == (found.stop, UnknownTag)
                assert stored(store) == (documents, position)
        if data.draw(st.booleans(), label="restart"):
            old, folder = folder, PartitionFolder(shape, reader, store.claim("sums.v1", 0))
            assert folder.position == position
            if left[1:]:
                try:
                    old.handle(batch_of(left[-1:]), 0)
                except Fenced:
                    pass
                assert stored(store) == (documents, position)
    # The function is mended, and what stands still is folded on.
    mended = PartitionFolder(definition(source, good), reader, store.claim("sums.v1", 0))
    source.decoding.knows_all = True
    for key in KEYS:
        start = mended.stopped_at(key)
        if start is not None:
            rest = [each for each in history if start <= each[0] < mended.position]
            size = data.draw(st.integers(1, 5))
            batches = (batch_of(rest[at : at + size]) for at in range(0, len(rest), size))
            assert mended.retry_document(key, batches)
    expected: dict[bytes, Sum | None] = {}
    for _, key, value in history:
        event = json.decode(value, type=Number)
        if event.value != NOTHING:
            expected[key] = as_read(good(expected.get(key), event))
    assert stored(store)[0] == {key: found for key, found in expected.items() if found}


# -- keyed records --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from(KEYS), st.integers(0, 9)), max_size=20),
    st.data(),
)
def test_keyed_records_that_are_written_again_count_once(
    events: list[tuple[int, bytes, int]], data: st.DataObject
) -> None:
    """Writers of two source partitions write batches that are torn, and begin them again; a writer
    that was replaced goes on for a while."""
    sources: dict[int, list[tuple[int, bytes, int]]] = {0: [], 1: []}
    for number, (partition, key, value) in enumerate(events):
        sources[partition].append((number * 2, key, value))
    written: list[Any] = []
    for partition, messages in sources.items():
        position = 0
        attempts: list[list[Any]] = []
        while position < len(messages):
            size = data.draw(st.integers(1, 4))
            attempt, after = [], None
            for offset, key, value in messages[position : position + size]:
                record = KeyedRecord("numbers", partition, offset, 0, (0, 1), after)
                attempt.append((record, key, value))
                after = (offset, 0)
            is_whole: bool = data.draw(st.booleans())
            if is_whole:
                attempts.append(attempt)
                position += size
            else:  # any of its records may have arrived, those in front of a hole, too
                kept = [each for each in attempt if data.draw(st.booleans())]
                attempts.append(kept)
        merged = [(number, each) for number, attempt in enumerate(attempts) for each in attempt]
        # What a replaced writer writes again comes anywhere behind where it wrote it first.
        for number, attempt in enumerate(attempts):
            own = [place for place, (found, _) in enumerate(merged) if found == number]
            is_replaced: bool = data.draw(st.booleans())
            if own and is_replaced:
                start: int = data.draw(st.integers(own[0], len(merged)))
                merged[start:start] = [(-1, each) for each in attempt]
        written = _interleave(written, [each for _, each in merged], data)
    rows = [
        (position, key, json.encode(Number(value)))
        for position, (_, key, value) in enumerate(written)
    ]
    headers = [
        [keyed_header(record), ("__streams.view.key", key), ("__streams.view.id", b"i")]
        for record, key, _ in written
    ]
    source = Source()
    source.decoding.knows_all = True
    store = store_of()
    shape = definition(source, fold)
    foreign = ForeignRecords()
    taken: list[tuple[int, int]] = []

    class Noting(KeyedReader):
        def read(self, batch: Batch, index: int) -> Any:
            found = super().read(batch, index)
            record = self._records[index]
            assert record is not None
            taken.append((record.partition, record.offset))
            return found

    at = 0
    while at < len(rows):
        size = data.draw(st.integers(1, 6))
        writer = store.claim("sums.v1", 0)
        folded_to = decode_checkpoint(writer.checkpoint).sources
        reader = Noting(
            {"numbers": source.decoding}, foreign, folded_to, lambda *_: 1_000, "keyed", {}
        )
        folder = PartitionFolder(shape, reader, writer)
        part = slice(at, at + size)
        folder.handle(batch_of(rows[part], headers[part]), 0)
        at += size
    for partition, messages in sources.items():
        assert [offset for found, offset in taken if found == partition] == [
            offset for offset, _, _ in messages
        ]


def _interleave(one: list[Any], two: list[Any], data: st.DataObject) -> list[Any]:
    one, two, found = list(one), list(two), []
    while one and two:
        found.append((one if data.draw(st.booleans()) else two).pop(0))
    return [*found, *one, *two]


@given(st.binary(max_size=60))
def test_a_forged_header_is_none_or_a_record(value: bytes) -> None:
    found = parse_keyed([(HEADER, value)])
    if found is not None:
        assert parse_keyed([keyed_header(found)]) == found


@given(
    st.text(max_size=5),
    st.integers(0, 1 << 20),
    OFFSETS,
    st.integers(0, 9),
    st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(5, 9))),
    st.one_of(st.none(), st.tuples(OFFSETS, st.integers(0, 9))),
    st.sampled_from(["", "a1"]),
)
def test_a_header_is_read_as_it_was_written(
    topic: str, partition: int, offset: int, copy: int, event: Any, after: Any, incarnation: str
) -> None:
    name = "t-" + topic.encode("ascii", "ignore").decode()
    record = KeyedRecord(name, partition, offset, copy, event, after, incarnation, "b2")
    assert parse_keyed([keyed_header(record)]) == record


@pytest.mark.parametrize(
    "header",
    [
        b"%d/0/0/0.1/-/./t" % (1 << 31),
        b"0/%d/0/0.1/-/./t" % (1 << 128),
        b"0/0/%d/0.1/-/./t" % 10**18,
        b"0/0/0/%d.1/-/./t" % 10**18,
        b"0/0/0/0.%d/-/./t" % 10**18,
        b"0/0/0/1.1/-/./t",
        b"0/0/0/1/-/./t",
        b"0/0/0/0.1/%d.0/./t" % (1 << 128),
        b"0/0/0/0.1/0.%d/./t" % 10**18,
        b"0/0/0/0.1/0/./t",
        b"0/0/0/0.1/./t",
        b"0/0/0/0.1/-/t",
        b"0/0/0/0.1/-/-/t",
    ],
)
def test_a_number_that_cannot_be_is_in_no_header(header: bytes) -> None:
    assert parse_keyed([(HEADER, header)]) is None


@pytest.mark.parametrize("written", [b"nan", b"1e999", b"9" * 5_000, b"\xff", b"", None])
def test_a_copy_with_a_time_that_is_none_has_the_first_there_is(written: bytes | None) -> None:
    copied = batch_of([row(7, b"k", 1)], [[("__streams.view.time", written)]])
    assert source_batch(KeyedRecord("t", 0, 7, 0, None, None), copied, 0).time(0) == 0.0


@pytest.mark.parametrize(
    "data",
    [
        b'{"offset":"%d"}' % (1 << 128),
        b'{"sources":{"t/0":["%d",0]}}' % (1 << 128),
        b'{"sources":{"t/0":["0",%d]}}' % 10**18,
        b'{"sources":{"t/0":["0",-1]}}',
        b'{"sources":{"t/%d":["0",0]}}' % (1 << 31),
        b'{"sources":{"t":["0",0]}}',
        b'{"incarnations":{"no topic":"a1"}}',
        b'{"incarnations":{"t":1}}',
    ],
)
def test_a_checkpoint_with_a_number_that_cannot_be_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableCheckpoint):
        decode_checkpoint(Checkpoint(1, data))


def test_headers_of_a_copy_keep_what_the_log_gives_anew() -> None:
    batch = batch_of([row(7, b"k", 1)], [[(ID, b"id-7"), ("x", b"\xff"), ("x", None)]])
    headers = copied_headers(batch, 0)
    assert ("x", b"\xff") in headers
    assert ("x", None) in headers
    assert all(name != ID for name, _ in headers)


def keyed_batch(rows: list[tuple[int, bytes, bytes]], *records: KeyedRecord) -> Batch:
    return batch_of(rows, [[keyed_header(each)] for each in records])


class Three(Decoding):
    """Of each message today's code makes three events, or as many as it is told."""

    count = 3

    def decode_one(self, batch: Batch, index: int) -> Any:
        if not self.count:
            raise Skip
        return SeveralValues([Number(each) for each in range(1, self.count + 1)])


def keyed_folder(
    store: DocumentStore, incarnations: dict[str, str]
) -> tuple[Three, PartitionFolder]:
    source = Source()
    source.decoding = Three()
    ends = lambda *_: 1_000  # noqa: E731
    reader = KeyedReader(
        {"numbers": source.decoding}, ForeignRecords(), {}, ends, "keyed", incarnations
    )
    return source.decoding, PartitionFolder(
        definition(source, fold), reader, store.claim("sums.v1", 0)
    )


def test_a_message_that_was_written_by_key_as_another_number_of_events_is_waited_for() -> None:
    """What was written of it, code that knew one event wrote: not by whom the others are wanted."""
    store = store_of()
    decoding, folder = keyed_folder(store, {})
    rows = [row(0, b"a", 1), row(1, b"b", 1)]
    before = KeyedRecord("numbers", 0, 0, 0, (2, 3), None)
    batch = keyed_batch(rows, before, KeyedRecord("numbers", 0, 1, 0, (0, 1), (0, 0)))
    found = folder.handle(batch, 0)
    assert (found.stop, type(found.error)) == (1, EventsChanged)
    assert "numbers/0/1 was written by key as 1 event and is 3 events here" in str(found.error)
    assert stored(store) == ({b"a": Sum(3)}, 1)
    decoding.count = 1  # code that knows it as it was
    assert folder.handle(batch, 1).error is None
    assert stored(store) == ({b"a": Sum(3), b"b": Sum(1)}, 2)
    decoding.count = 0  # to which an event means nothing any more
    assert folder.handle(keyed_batch([row(2, b"a", 1)], before._replace(offset=2)), 0).error is None
    assert stored(store) == ({b"a": Sum(3), b"b": Sum(1)}, 3)


def test_of_a_message_whose_key_is_the_documents_all_events_are_folded() -> None:
    """However many the code makes of it that folds it."""
    store = store_of()
    _, folder = keyed_folder(store, {})
    batch = keyed_batch([row(0, b"a", 1)], KeyedRecord("numbers", 0, 0, 0, None, None))
    assert folder.handle(batch, 0).error is None
    assert stored(store) == ({b"a": Sum((1 * 31 + 2) * 31 + 3)}, 1)


def test_a_record_that_was_written_for_another_keyed_topic_does_not_count() -> None:
    """Its writer was frozen while that was made anew: what it says is confirmed is not there."""
    store = store_of()
    _, folder = keyed_folder(store, {"keyed": "now"})
    late = KeyedRecord("numbers", 0, 7, 0, None, None, "before", "s1")
    first = KeyedRecord("numbers", 0, 0, 0, None, None, "now", "s1")
    batch = keyed_batch([row(0, b"b", 1), row(1, b"a", 1)], late, first)
    assert folder.handle(batch, 0).error is None
    assert list(stored(store)[0]) == [b"a"]
    checkpoint = decode_checkpoint(store.checkpoint("sums.v1", 0))
    assert checkpoint.sources == {"numbers/0": (0, 0)}
    assert checkpoint.incarnations == {"keyed": "now", "numbers": "s1"}
    other = keyed_batch([row(2, b"a", 1)], first._replace(offset=1, incarnation="s2"))
    with pytest.raises(CheckpointBeyondLog, match="'numbers' that was recreated"):
        folder.handle(other, 0)


def test_a_keyed_batch_is_folded_on_where_the_time_was_over() -> None:
    """The checkpoint says how far the sources are in what was folded, not in the whole batch."""
    store = store_of()
    decoding, folder = keyed_folder(store, {})
    decoding.count = 1
    records = [KeyedRecord("numbers", 0, each, 0, None, None) for each in range(3)]
    batch = keyed_batch([row(each, b"a", 1) for each in range(3)], *records)
    for stop in (1, 2, 3):
        found = folder.handle(batch, stop - 1, 0.0)
        assert (found.stop, found.error, found.events) == (stop, None, 1)
        checkpoint = store.checkpoint("sums.v1", 0)
        assert checkpoint is not None
        assert decode_checkpoint(checkpoint).sources == {"numbers/0": (stop - 1, 0)}


def test_a_document_is_folded_on_from_the_event_of_a_message_at_which_it_stands_still() -> None:
    """Of a message that is several events, the first was folded and the second failed. A process
    that does not know the message's tag yet cannot fold on, and changes nothing."""
    store, source = store_of(), Source()

    class Twice(Decoding):
        def fast_decoder(self, values: Any, largest: int) -> Any:
            return None

        def decode_one(self, batch: Batch, index: int) -> Any:
            if not self.knows_all:
                raise UnknownTag("a later tag", tag="later")
            return SeveralValues([Number(1), Number(POISON), Number(2)])

    source.decoding = Twice()
    source.decoding.knows_all = True
    reader = SourceReader(source.decoding)
    rows = [row(5, b"a", 1)]
    folder = PartitionFolder(definition(source, fold), reader, store.claim("sums.v1", 0))
    folder.handle(batch_of(rows), 0)
    mended = PartitionFolder(definition(source, good), reader, store.claim("sums.v1", 0))
    source.decoding.knows_all = False
    assert not mended.retry_document(b"a", iter([batch_of(rows)]))
    source.decoding.knows_all = True
    assert mended.retry_document(b"a", iter([batch_of(rows)]))
    assert stored(store) == ({b"a": Sum(1 * 31 + 2)}, 6)
