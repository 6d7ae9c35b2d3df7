"""Documents: they change together with their checkpoint, by one writer, and are read as one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import product

import pytest

from streams.errors import ConfigError, Fenced, LogError, NotFound, TopicMismatch
from streams.log.documents import (
    Checkpoint,
    CollectionInfo,
    CollectionTotals,
    DocumentChange,
    DocumentLog,
    DocumentStore,
    KeyedDocument,
    StoredDocument,
    end_of_prefix,
)
from streams.log.protocol import Log
from tests.conformance.member import PATIENCE
from tests.conformance.records import ABSURD_PARTITIONS
from tests.conformance.world import World
from tests.servers.lifetime import until

pytestmark = pytest.mark.needs("documents")


def documents_of(log: Log) -> DocumentStore:
    assert isinstance(log, DocumentLog)
    return log.documents


def collection(world: World, partitions: int = 2) -> tuple[DocumentStore, str]:
    store, name = documents_of(world.log), world.name("documents")
    store.create(name, partitions)
    return store, name


def change(key: bytes, value: bytes | None, failure: bytes = b"") -> DocumentChange:
    found = None if value is None and not failure else StoredDocument(value, failure)
    return DocumentChange(key, found)


def seen_elsewhere(world: World, store: DocumentStore, name: str, written: Checkpoint) -> None:
    """See that what another handle has written is seen by this one: a moment later on Kafka, where
    a reader follows what is written; at once elsewhere."""
    if world.case.name in ("kafka", "kip848"):
        until(lambda: store.checkpoint(name, 0) == written, PATIENCE, f"seeing {written}")
    assert store.checkpoint(name, 0) == written


def test_what_is_written_is_read_with_its_checkpoint(world: World) -> None:
    store, name = collection(world)
    writer = store.claim(name, 0)
    assert writer.checkpoint is None
    assert store.read(name, 0, [b"a"]) == ([None], None)
    assert store.checkpoint(name, 0) is None
    hostile = [b"", b"\x00", b"\xff\xfe", b"a b\r\n", "ключ".encode(), b"{}", b"x" * 1_000]
    changes = [change(key, b"\x00\xff" + key) for key in hostile]
    changes.append(change(b"empty", b""))
    writer.write(changes, Checkpoint(17, b"\xff\x00data"))
    assert writer.checkpoint == Checkpoint(17, b"\xff\x00data")
    keys = [each.key for each in changes]
    found = store.read(name, 0, [*keys, b"missing"])
    assert found.checkpoint == Checkpoint(17, b"\xff\x00data")
    assert list(found.documents) == [each.document for each in changes] + [None]
    assert list(writer.read([*keys, b"missing"])) == list(found.documents)
    assert store.read(name, 0, []) == ([], Checkpoint(17, b"\xff\x00data"))
    assert store.read(name, 1, keys[:1]) == ([None], None)
    assert list(store.read(name, 0, [b"empty", b"empty"]).documents) == [StoredDocument(b"")] * 2


def test_large_documents_and_many_in_one_write(world: World) -> None:
    store, name = collection(world)
    writer = store.claim(name, 0)
    large = StoredDocument(b"\x00\xff" * 300_000, b"why" * 20_000)
    changes = [change(b"%04d" % number, b"x") for number in range(2_000)]
    checkpoint = Checkpoint(1, b"d" * 100_000)
    writer.write([*changes, DocumentChange(b"large", large)], checkpoint)
    assert list(writer.read([b"large"])) == [large]
    assert store.read(name, 0, [b"0000", b"1999", b"large"]) == (
        [StoredDocument(b"x"), StoredDocument(b"x"), large],
        checkpoint,
    )
    assert list(store.stopped(name, 0, None, 9)) == [KeyedDocument(b"large", large)]
    assert store.totals(name) == CollectionTotals(2_001, 1)
    assert store.claim(name, 0).checkpoint == checkpoint


def test_whoever_writes_reads_what_it_wrote_each_time(world: World) -> None:
    """From the same handle, and by many readers of it at once."""
    store, name = collection(world, 1)
    writer = store.claim(name, 0)
    written = 0
    stop = threading.Event()
    problems: list[object] = []

    def look() -> None:
        while not stop.is_set():
            expected = written
            (document,), checkpoint = store.read(name, 0, [b"k"])
            found = 0 if checkpoint is None else checkpoint.position
            if found < expected or (document and document.value != b"%d" % found):
                problems.append((expected, document, checkpoint))
                return

    readers = [threading.Thread(target=look) for _ in range(3)]
    for each in readers:
        each.start()
    try:
        for number in range(1, 31):
            writer.write([change(b"k", b"%d" % number)], Checkpoint(number))
            written = number
            assert list(writer.read([b"k"])) == [StoredDocument(b"%d" % number)]
            assert store.checkpoint(name, 0) == Checkpoint(number)
    finally:
        stop.set()
        for each in readers:
            each.join()
    assert not problems


def test_the_largest_position_there_is(world: World) -> None:
    store, name = collection(world)
    largest = (1 << 40) - 1
    if world.case.name in ("redis", "valkey", "cluster"):
        largest = (1 << 128) - 1
    store.claim(name, 1).write([], Checkpoint(largest))
    assert store.checkpoint(name, 1) == Checkpoint(largest)


def test_a_write_replaces_and_deletes(world: World) -> None:
    store, name = collection(world)
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1"), change(b"b", b"2"), change(b"c", b"3")], Checkpoint(1))
    writer.write([change(b"a", b"10"), change(b"b", None), change(b"never", None)], Checkpoint(2))
    found = store.read(name, 0, [b"a", b"b", b"c", b"never"])
    assert found.checkpoint == Checkpoint(2)
    assert list(found.documents) == [StoredDocument(b"10"), None, StoredDocument(b"3"), None]
    writer.write([], Checkpoint(9))
    assert store.read(name, 0, [b"a"]) == ([StoredDocument(b"10")], Checkpoint(9))
    assert store.totals(name) == CollectionTotals(2, 0)


def test_whoever_claims_goes_on_where_the_former_writer_was(world: World) -> None:
    store, name = collection(world)
    first = store.claim(name, 0)
    first.write([change(b"a", b"1")], Checkpoint(5, b"five"))
    other = documents_of(world.open())
    second = other.claim(name, 0)
    assert second.checkpoint == Checkpoint(5, b"five")
    assert list(second.read([b"a"])) == [StoredDocument(b"1")]
    with pytest.raises(Fenced, match="another process"):
        first.write([change(b"a", b"stale")], Checkpoint(6))
    with pytest.raises(LogError):
        first.write([change(b"a", b"stale")], Checkpoint(6))
    second.write([change(b"a", b"2")], Checkpoint(6))
    assert other.read(name, 0, [b"a"]) == ([StoredDocument(b"2")], Checkpoint(6))
    seen_elsewhere(world, store, name, Checkpoint(6))
    assert store.read(name, 0, [b"a"]) == ([StoredDocument(b"2")], Checkpoint(6))
    first.close()
    second.close()
    third = store.claim(name, 0)
    assert third.checkpoint == Checkpoint(6)


def test_partitions_have_writers_of_their_own(world: World) -> None:
    store, name = collection(world)
    writers = [store.claim(name, number) for number in range(2)]
    for number, writer in enumerate(writers):
        writer.write([change(b"k", b"%d" % number)], Checkpoint(number))
    for number, writer in enumerate(writers):
        assert store.read(name, number, [b"k"]).documents[0] == StoredDocument(b"%d" % number)
        writer.write([], Checkpoint(10 + number))
        assert store.checkpoint(name, number) == Checkpoint(10 + number)


def test_keys_are_scanned_in_order(world: World) -> None:
    store, name = collection(world)
    rng = random.Random(7)
    keys = sorted({rng.randbytes(rng.randint(0, 3)) for _ in range(300)})
    writer = store.claim(name, 0)
    shuffled = rng.sample(keys, len(keys))
    writer.write([change(key, key) for key in shuffled[:200]], Checkpoint(1))
    writer.write([change(key, key) for key in shuffled[200:]], Checkpoint(2))
    gone = set(rng.sample(keys, 50))
    writer.write([change(key, None) for key in gone], Checkpoint(3))
    left = [KeyedDocument(key, StoredDocument(key)) for key in keys if key not in gone]
    assert list(store.scan(name, 0, b"", None, 1_000)) == left
    assert list(store.scan(name, 0, b"", None, 7)) == left[:7]
    assert list(store.scan(name, 0, left[7].key, None, 7)) == left[7:14]
    assert list(store.scan(name, 0, left[3].key, left[9].key, 100)) == left[3:9]
    assert list(store.scan(name, 0, b"\xff\xff\xff\xff", None, 100)) == []
    assert list(store.scan(name, 1, b"", None, 100)) == []
    for prefix in (b"", b"\x00", b"\x80", b"\xff", b"\xff\xff"):
        found = store.scan(name, 0, prefix, end_of_prefix(prefix), 1_000)
        assert list(found) == [each for each in left if each.key.startswith(prefix)]


def test_stopped_documents_are_told_apart(world: World) -> None:
    store, name = collection(world)
    writer = store.claim(name, 0)
    writer.write(
        [
            change(b"a", b"1"),
            change(b"b", b"2", b"why"),
            change(b"c", None, b"\x00at once"),
            change(b"d", b"4", b"too"),
        ],
        Checkpoint(4),
    )
    assert list(store.read(name, 0, [b"a", b"b", b"c"]).documents) == [
        StoredDocument(b"1"),
        StoredDocument(b"2", b"why"),
        StoredDocument(None, b"\x00at once"),
    ]
    assert [each.key for each in store.stopped(name, 0, None, 10)] == [b"b", b"c", b"d"]
    assert [each.key for each in store.stopped(name, 0, b"b", 1)] == [b"c"]
    (found,) = store.stopped(name, 0, b"b", 1)
    assert found.document == StoredDocument(None, b"\x00at once")
    assert [each.key for each in store.scan(name, 0, b"", None, 9)] == [b"a", b"b", b"c", b"d"]
    assert store.totals(name) == CollectionTotals(4, 3)
    writer.write(
        [change(b"b", b"5"), change(b"c", None), change(b"d", b"6", b"still")], Checkpoint(5)
    )
    assert [each.key for each in store.stopped(name, 0, None, 10)] == [b"d"]
    assert store.totals(name) == CollectionTotals(3, 1)


def test_a_document_is_stopped_and_goes_on(world: World) -> None:
    """Its value and its failure come and go, each in every way; no trace of the former is left."""
    store, name = collection(world, 1)
    writer = store.claim(name, 0)
    steps = [(b"1", b""), (b"1", b"why"), (None, b"at once"), (b"2", b""), (None, b"again")]
    position = 0
    for first in steps:
        for then in steps:
            for value, failure in (first, then, (None, b"")):
                position += 1
                changed = change(b"a", value, failure)
                expected = changed.document
                writer.write([change(b"b", b"beside"), changed], Checkpoint(position))
                assert list(store.read(name, 0, [b"a"]).documents) == [expected], (first, then)
                found = [] if expected is None else [KeyedDocument(b"a", expected)]
                beside = KeyedDocument(b"b", StoredDocument(b"beside"))
                assert list(store.scan(name, 0, b"", None, 9)) == [*found, beside]
                assert list(store.stopped(name, 0, None, 9)) == (found if failure else [])
                assert store.totals(name) == CollectionTotals(len(found) + 1, int(failure != b""))


def test_thousands_of_documents_are_written_and_read_at_once(world: World) -> None:
    store, name = collection(world, 1)
    writer = store.claim(name, 0)
    keys = [b"%06d" % number for number in range(9_000)]
    value = bytes(range(256)) * 2
    expected = [StoredDocument(key + value, b"why" if key[-1:] == b"7" else b"") for key in keys]
    writer.write(
        [DocumentChange(*each) for each in zip(keys, expected, strict=True)], Checkpoint(1)
    )
    found = store.read(name, 0, [*keys, b"missing", *keys[:100]])
    assert found.checkpoint == Checkpoint(1)
    assert list(found.documents) == [*expected, None, *expected[:100]]
    assert list(writer.read(keys)) == expected
    documents = list(map(KeyedDocument, keys, expected))
    assert list(store.scan(name, 0, b"", None, 20_000)) == documents
    assert list(store.scan(name, 0, keys[10], keys[8_010], 20_000)) == documents[10:8_010]
    assert list(store.stopped(name, 0, None, 20_000)) == documents[7::10]
    writer.write([change(key, None) for key in keys[:8_999]], Checkpoint(2))
    assert list(store.scan(name, 0, b"", None, 20_000)) == documents[8_999:]
    assert store.totals(name) == CollectionTotals(1, 0)


def test_collections_are_created_once_listed_and_deleted(world: World) -> None:
    store, name = collection(world, 3)
    assert store.create(name, 3) == CollectionInfo(name, 3) == store.find(name)
    with pytest.raises(TopicMismatch, match="3 partitions, but 4 were declared"):
        store.create(name, 4)
    assert CollectionInfo(name, 3) in list(store.list())
    with pytest.raises(NotFound, match="partitions 0 to 2, not 3"):
        store.read(name, 3, [b"a"])
    with pytest.raises(NotFound, match="partitions 0 to 2, not 3"):
        store.claim(name, 3)
    for wrong in (
        lambda: store.checkpoint(name, -1),
        lambda: store.scan(name, 3, b"", None, 1),
        lambda: store.stopped(name, 3, None, 1),
        lambda: store.clear(name, 3),
    ):
        with pytest.raises(NotFound, match="partitions 0 to 2"):
            wrong()
    calls: tuple[Callable[[int], object], ...] = (
        lambda absurd: store.read(name, absurd, [b"a"]),
        lambda absurd: store.claim(name, absurd),
        lambda absurd: store.checkpoint(name, absurd),
        lambda absurd: store.scan(name, absurd, b"", None, 1),
        lambda absurd: store.stopped(name, absurd, None, 1),
        lambda absurd: store.clear(name, absurd),
    )
    for ask, absurd in product(calls, ABSURD_PARTITIONS):
        with pytest.raises(NotFound, match="partitions 0 to 2"):
            ask(absurd)
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1")], Checkpoint(1))
    store.delete(name)
    assert name not in [each.name for each in store.list()]
    with pytest.raises(LogError):
        writer.write([change(b"a", b"2")], Checkpoint(2))
    missing = world.name("missing")
    for call in (
        lambda: store.find(missing),
        lambda: store.stopped(missing, 0, None, 1),
        lambda: store.clear(missing, 0),
        lambda: store.read(missing, 0, [b"a"]),
        lambda: store.checkpoint(missing, 0),
        lambda: store.scan(missing, 0, b"", None, 1),
        lambda: store.claim(missing, 0),
        lambda: store.delete(missing),
        lambda: store.totals(missing),
    ):
        with pytest.raises(NotFound, match=missing):
            call()


def test_a_collection_that_is_created_anew_is_empty(world: World) -> None:
    store, name = collection(world)
    store.claim(name, 0).write([change(b"a", b"1", b"why")], Checkpoint(1))
    store.delete(name)
    store.create(name, 1)
    assert store.read(name, 0, [b"a"]) == ([None], None)
    assert list(store.scan(name, 0, b"", None, 10)) == []
    assert list(store.stopped(name, 0, None, 10)) == []
    writer = store.claim(name, 0)
    assert writer.checkpoint is None
    writer.write([change(b"b", b"2")], Checkpoint(2))
    assert [each.key for each in store.scan(name, 0, b"", None, 10)] == [b"b"]


def test_what_is_cleared_begins_anew(world: World) -> None:
    store, name = collection(world)
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1", b"why"), change(b"b", b"2")], Checkpoint(8))
    store.claim(name, 1).write([change(b"c", b"3")], Checkpoint(9))
    store.clear(name, 0)
    with pytest.raises(LogError):
        writer.write([change(b"a", b"2")], Checkpoint(9))
    assert store.read(name, 0, [b"a", b"b"]) == ([None, None], None)
    assert list(store.scan(name, 0, b"", None, 10)) == []
    assert list(store.stopped(name, 0, None, 10)) == []
    assert store.checkpoint(name, 1) == Checkpoint(9)
    again = store.claim(name, 0)
    assert again.checkpoint is None
    again.write([change(b"d", b"4")], Checkpoint(1))
    assert [each.key for each in store.scan(name, 0, b"", None, 10)] == [b"d"]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 300])
def test_a_name_that_cannot_be_is_refused(world: World, name: str) -> None:
    with pytest.raises(ConfigError):
        documents_of(world.log).create(name, 1)


def test_readers_never_see_a_half_of_a_write(world: World) -> None:
    """Each write gives all documents the checkpoint's number; whoever reads sees one number."""
    store, name = collection(world, 1)
    keys = [b"k%d" % number for number in range(20)]
    other = documents_of(world.open())
    seen: list[int] = []
    problems: list[object] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            documents, checkpoint = other.read(name, 0, keys)
            expected = None if checkpoint is None else StoredDocument(b"%d" % checkpoint.position)
            if set(documents) != {expected}:
                problems.append((documents, checkpoint))
                return
            seen.append(0 if checkpoint is None else checkpoint.position)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        writer = store.claim(name, 0)
        for number in range(1, 61):
            if number % 20 == 0:
                writer = store.claim(name, 0)
            writer.write([change(key, b"%d" % number) for key in keys], Checkpoint(number))
    finally:
        stop.set()
        reader.join()
    assert not problems
    assert seen == sorted(seen)
    seen_elsewhere(world, other, name, Checkpoint(60))
    assert set(other.read(name, 0, keys).documents) == {StoredDocument(b"60")}


def test_of_writers_that_claim_at_once_one_remains(world: World) -> None:
    """However the claims fall, a write counts for nobody or for the writer that was last."""
    store, name = collection(world, 1)
    logs = [documents_of(world.open()) for _ in range(4)]
    start = threading.Barrier(4)
    written: list[tuple[int, int]] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        start.wait()
        for _ in range(5):
            writer = logs[number].claim(name, 0)
            begun = 0 if writer.checkpoint is None else writer.checkpoint.position
            try:
                writer.write([change(b"n", b"%d" % (begun + 1))], Checkpoint(begun + 1))
            except LogError:
                continue
            finally:
                writer.close()
            with lock:
                written.append((begun + 1, number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    positions = sorted(position for position, _ in written)
    assert positions == list(range(1, len(positions) + 1)), "two built upon the same documents"
    last = store.claim(name, 0)
    assert last.checkpoint == Checkpoint(len(positions))
    assert list(last.read([b"n"])) == [StoredDocument(b"%d" % len(positions))]


def test_a_closed_log_refuses(world: World) -> None:
    log = world.open()
    store, name = documents_of(log), world.name("documents")
    store.create(name, 1)
    writer = store.claim(name, 0)
    log.close()
    for call in (
        lambda: store.read(name, 0, [b"a"]),
        lambda: store.claim(name, 0),
        lambda: store.create(name, 1),
        lambda: store.list(),
        lambda: writer.write([], Checkpoint(1)),
    ):
        with pytest.raises(LogError):
            call()
