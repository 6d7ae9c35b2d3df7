"""Documents in a SQLite file that anybody may have changed: nothing but an error of ours comes of
them, and what is cleared is whole again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from streams.errors import Fenced, TopicMismatch
from streams.log.documents import Checkpoint, DocumentChange, DocumentStore, StoredDocument
from streams.log.sqlite.log import SqliteLog
from streams.log.url import open_log

A, B = b"a", b"b"


class Made(NamedTuple):
    """A collection of one partition with two documents, one of them stopped."""

    store: DocumentStore
    file: apsw.Connection


def change(key: bytes, value: bytes = b"1", failure: bytes = b"") -> DocumentChange:
    return DocumentChange(key, StoredDocument(value, failure))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    log = open_log(f"sqlite:///{tmp_path}/log.db")
    assert isinstance(log, SqliteLog)
    store = log.documents
    store.create("c", 1)
    store.claim("c", 0).write([change(A), change(B, b"1", b"why")], Checkpoint(1))
    file = apsw.Connection(f"{tmp_path}/log.db")
    file.set_busy_timeout(60_000)
    yield Made(store, file)
    file.close()
    log.close()


@pytest.mark.parametrize("position", ["", "x", "nan", b"\xff", b"1", -1, -(2**63), 1.5, 1e300])
def test_a_position_that_is_none_is_said(made: Made, position: Any) -> None:
    store, file = made
    file.execute("UPDATE streams_checkpoints SET position = ?", (position,))
    for ask in (
        lambda: store.read("c", 0, [A]),
        lambda: store.checkpoint("c", 0),
        lambda: store.claim("c", 0),
    ):
        with pytest.raises(TopicMismatch, match="'position' in streams_checkpoints"):
            ask()
    assert [each.key for each in store.scan("c", 0, b"", None, 9)] == [A, B]
    store.clear("c", 0)
    assert store.claim("c", 0).checkpoint is None


@pytest.mark.parametrize("epoch", ["", "x", b"\xff", -7, 2**63 - 1, 1.5, 1e300])
def test_an_epoch_that_is_none_is_counted_anew(made: Made, epoch: Any) -> None:
    """Also then a partition has one writer."""
    store, file = made
    file.execute("UPDATE streams_checkpoints SET epoch = ?", (epoch,))
    first, second = store.claim("c", 0), store.claim("c", 0)
    with pytest.raises(Fenced):
        first.write([], Checkpoint(2))
    second.write([], Checkpoint(3))
    file.execute("UPDATE streams_checkpoints SET epoch = ?", (epoch,))
    store.clear("c", 0)
    with pytest.raises(Fenced):
        second.write([], Checkpoint(4))


@pytest.mark.parametrize(("value", "read"), [("text", b"text"), (5, b"5"), (1.5, b"1.5")])
def test_what_is_no_blob_is_its_text(made: Made, value: Any, read: bytes) -> None:
    store, file = made
    file.execute("UPDATE streams_documents SET value = ?, failure = ?", (value, value))
    file.execute("UPDATE streams_checkpoints SET data = ?", (value,))
    found = store.read("c", 0, [A])
    assert found == ([StoredDocument(read, read)], Checkpoint(1, read))
    assert store.claim("c", 0).checkpoint == Checkpoint(1, read)
    for listed in (store.scan("c", 0, b"", None, 9), store.stopped("c", 0, None, 9)):
        assert [each.document for each in listed] == [StoredDocument(read, read)] * 2


def test_text_that_is_not_utf8_is_its_bytes(made: Made) -> None:
    store, file = made
    file.execute("UPDATE streams_documents SET value = CAST(x'ff' AS TEXT)")
    file.execute("UPDATE streams_checkpoints SET data = CAST(x'ff' AS TEXT)")
    assert store.read("c", 0, [A]) == ([StoredDocument(b"\xff")], Checkpoint(1, b"\xff"))


@pytest.mark.parametrize("key", ["a", "", 7, -7, 1.5])
def test_a_key_that_is_no_blob_is_not_found(made: Made, key: Any) -> None:
    store, file = made
    file.execute("INSERT INTO streams_documents VALUES (1, ?, x'31', x'32')", (key,))
    assert [each.key for each in store.scan("c", 0, b"", None, 9)] == [A, B]
    assert [each.key for each in store.scan("c", 0, b"", b"b", 9)] == [A]
    assert [each.key for each in store.stopped("c", 0, None, 9)] == [B]
    assert store.stopped("c", 0, B, 9) == []
