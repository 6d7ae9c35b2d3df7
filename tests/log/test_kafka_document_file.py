"""The documents of a collection in a file: what a restart relies on, and when it does not."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from streams.log.documents import Checkpoint, CollectionTotals, DocumentChange, StoredDocument
from streams.log.kafka import document_partition
from streams.log.kafka.document_records import DELETE_RETENTION
from streams.log.kafka.documents import KafkaDocuments
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from tests.servers.find import KafkaAddress

Open = Callable[[], KafkaDocuments]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def reopen(kafka: KafkaAddress, folder: Path) -> Iterator[Open]:
    """Closes the log, and opens it with the file as the next process does."""
    opened: list[KafkaLog] = []

    def open_one() -> KafkaDocuments:
        for each in opened:
            each.close()
        log = open_log(f"{kafka.url}?event_index={folder}")
        assert isinstance(log, KafkaLog)
        opened.append(log)
        return log.documents

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def other(kafka: KafkaAddress) -> Iterator[KafkaDocuments]:
    """Another process, without a file."""
    log = open_log(kafka.url)
    assert isinstance(log, KafkaLog)
    yield log.documents
    log.close()


@pytest.fixture
def name(other: KafkaDocuments) -> str:
    """A collection of one partition, with 30 documents of two writes."""
    found = other.create(f"documents-{uuid4().hex[:12]}", 1).name
    writer = other.claim(found, 0)
    writer.write([change(b"%02d" % each, b"old") for each in range(30)], Checkpoint(1))
    writer.write([change(b"00", b"new", b"why"), change(b"29", None)], Checkpoint(2, b"two"))
    writer.close()
    return found


def change(key: bytes, value: bytes | None, failure: bytes = b"") -> DocumentChange:
    return DocumentChange(key, None if value is None else StoredDocument(value, failure))


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.documents.0.index"


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets that are read and were not read before, by whomever in this process."""
    found: list[int] = []
    fold = document_partition.DocumentPartition.fold

    def note(self: document_partition.DocumentPartition, batch: object, now: float) -> None:
        offsets = batch.offsets  # type: ignore[attr-defined]
        found.extend(each for each in offsets if each >= self.next_offset)
        fold(self, batch, now)  # type: ignore[arg-type]

    monkeypatch.setattr(document_partition.DocumentPartition, "fold", note)
    return found


def check(store: KafkaDocuments, name: str) -> None:
    """See that all is there as it was written."""
    found = store.read(name, 0, [b"00", b"01", b"29"])
    assert found.checkpoint == Checkpoint(2, b"two")
    assert found.documents == [StoredDocument(b"new", b"why"), StoredDocument(b"old"), None]
    assert [each.key for each in store.stopped(name, 0, None, 9)] == [b"00"]
    assert store.totals(name) == CollectionTotals(29, 1)


def test_a_restart_goes_on_where_the_file_ends(
    reopen: Open, name: str, other: KafkaDocuments, folded: list[int]
) -> None:
    other.checkpoint(name, 0)  # it has read what it wrote
    check(reopen(), name)
    read = len(folded)
    assert read >= 32
    check(reopen(), name)
    assert len(folded) == read, "all is in the file"
    other.claim(name, 0).write([change(b"01", b"3")], Checkpoint(3))
    other.checkpoint(name, 0)
    del folded[:]
    store = reopen()
    assert store.read(name, 0, [b"01", b"02"]) == (
        [StoredDocument(b"3"), StoredDocument(b"old")],
        Checkpoint(3),
    )
    store.claim(name, 0).write([change(b"02", None)], Checkpoint(4))
    assert reopen().read(name, 0, [b"01", b"02"]) == ([StoredDocument(b"3"), None], Checkpoint(4))


def test_after_kill_the_file_is_of_some_moment(
    kafka: KafkaAddress, folder: Path, reopen: Open, name: str
) -> None:
    """A writer that uses the file is killed; what the next one finds is one write's."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITE, f"{kafka.url}?event_index={folder}", name],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    store = reopen()
    writer = store.claim(name, 0)
    assert writer.checkpoint is not None
    assert writer.checkpoint.position >= 5
    expected = StoredDocument(b"%d" % writer.checkpoint.position)
    keys = [b"%02d" % each for each in range(30)]
    assert set(store.read(name, 0, keys).documents) == {expected}


_WRITE = """
import sys
from streams.log.documents import Checkpoint, DocumentChange, StoredDocument
from streams.log.url import open_log
store, name = open_log(sys.argv[1]).documents, sys.argv[2]
writer, number = store.claim(name, 0), 3
while True:
    document = StoredDocument(b"%d" % number)
    keys = [b"%02d" % each for each in range(30)]
    writer.write([DocumentChange(key, document) for key in keys], Checkpoint(number))
    store.checkpoint(name, 0)
    print(number, flush=True)
    number += 1
"""


def test_two_processes_have_a_file_each(
    reopen: Open, name: str, kafka: KafkaAddress, folder: Path
) -> None:
    check(reopen(), name)
    log = open_log(f"{kafka.url}?event_index={folder}")
    assert isinstance(log, KafkaLog)
    check(log.documents, name)
    log.close()
    assert (folder / f"{name}.documents.1.index").exists()


def damage_a_row(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE documents SET row = row || x'00' WHERE key = ?", (b"01",))
    db.close()


def damage_the_state(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE partitions SET row = x'0102'")
    db.close()


def write_something_else(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1_000)


def make_another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE facts (name, value)")
    db.close()


def claim_an_earlier_topic(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE facts SET value = 'earlier' WHERE name = 'identity'")
    db.close()


@pytest.mark.parametrize(
    "damage",
    [
        damage_a_row,
        damage_the_state,
        write_something_else,
        make_another_database,
        claim_an_earlier_topic,
    ],
)
def test_a_file_that_is_wrong_is_made_anew_loudly(
    reopen: Open, name: str, folder: Path, damage: Callable[[Path], None],
    folded: list[int], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    check(reopen(), name)
    reopen()  # closes it
    del folded[:]
    damage(path_of(folder, name))
    check(reopen(), name)
    assert len(folded) >= 32
    errors = [each.message for each in caplog.records if each.levelname == "ERROR"]
    assert any("index file" in each and "rebuilding the index" in each for each in errors)
    check(reopen(), name)


def test_a_file_of_a_collection_that_was_made_anew_is_thrown_away(
    reopen: Open, name: str, other: KafkaDocuments
) -> None:
    check(reopen(), name)
    reopen()
    other.delete(name)
    other.create(name, 1)
    store = reopen()
    assert store.read(name, 0, [b"00"]) == ([None], None)
    other.claim(name, 0).write([change(b"00", b"anew")], Checkpoint(1))
    assert reopen().read(name, 0, [b"00", b"01"]) == (
        [StoredDocument(b"anew"), None],
        Checkpoint(1),
    )


def test_a_file_that_was_not_used_for_long_is_thrown_away(
    reopen: Open, name: str, folded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks of deletions may be gone meanwhile."""
    check(reopen(), name)
    del folded[:]
    now = time.time
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now() + DELETE_RETENTION)
        check(reopen(), name)
        reopen()
    assert len(folded) >= 32
    del folded[:]
    check(reopen(), name)  # a file of the future
    assert len(folded) >= 32


def test_without_a_folder_nothing_is_left_behind(
    other: KafkaDocuments, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    monkeypatch.setattr(document_partition, "FLUSH_COUNT", 5)
    check(other, name)
    assert list(tmp_path.iterdir()) == []
