"""The documents of a collection, as far as they were read, in a SQLite file of this process.

A temporary file, or one that stays (:mod:`.cache_file` says what such a file promises). Documents
and checkpoint of a partition change in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from streams.log.documents import Checkpoint, KeyedDocument, StoredDocument
from streams.log.kafka.cache_file import (
    FACTS,
    CacheFile,
    IndexFileDamaged,
    IndexOf,
    open_cache_file,
    seal,
)
from streams.log.kafka.document_records import unpack

_OF_PARTITION, _OF_DOCUMENT = 1, 2
"""Kinds of rows."""

_SCHEMA = (
    FACTS
    + """
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE documents (partition INTEGER, key BLOB, number INTEGER NOT NULL, row BLOB NOT NULL,
stopped INTEGER, PRIMARY KEY (partition, key)) WITHOUT ROWID;
CREATE INDEX stopped ON documents (partition, key) WHERE stopped IS NOT NULL;
CREATE TABLE waiting (partition INTEGER, key BLOB, number INTEGER, row BLOB, stopped INTEGER,
PRIMARY KEY (partition, key, number)) WITHOUT ROWID;
"""
)

_UPSERT = "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM documents WHERE partition = ? AND key = ?"
_WAIT = "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?)"

# In the order of keys and numbers, so that the last one of each key remains.
_TAKE_WAITING = """
INSERT OR REPLACE INTO documents SELECT partition, key, number, row, stopped FROM waiting
WHERE partition = ? AND number > ? AND number <= ? AND number >= ? AND row IS NOT NULL
ORDER BY key, number
"""
_WAITING_DELETIONS = """
SELECT partition, key, number FROM waiting
WHERE partition = ? AND number > ? AND number <= ? AND row IS NULL
"""
_DELETE_UP_TO = "DELETE FROM documents WHERE partition = ? AND key = ? AND number <= ?"

_STATE = "INSERT OR REPLACE INTO partitions VALUES (?, ?)"

_encode_state = msgspec.msgpack.Encoder().encode


class DocumentState(msgspec.Struct, frozen=True, gc=False):
    """The state of a partition, beside its documents.

    :param next_offset: everything before it was read.
    :param number: of the last write that counted; 0: there was none.
    :param cleared: of the write that cleared the partition last; 0: there was none.
    :param origin: of the writes; empty: there was none.
    :param at: the offset of the last checkpoint that counted.
    :param position: of the checkpoint; None: there is none.
    :param caught_up_at: when all that was in the partition had been read (seconds since the epoch).
    :param has_waiting: whether documents were read whose checkpoint was not.
    """

    next_offset: int = 0
    number: int = 0
    cleared: int = 0
    origin: bytes = b""
    at: int = -1
    position: str | None = None
    data: bytes = b""
    caught_up_at: float = 0.0
    has_waiting: bool = False

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None: there is none."""
        return None if self.position is None else Checkpoint(int(self.position), self.data)


_decode_state = msgspec.msgpack.Decoder(DocumentState).decode


class ReadDocument(NamedTuple):
    """A document's record that may count.

    :param row: to be written to the file; None: the document is deleted.
    :param stopped: 1, or None if it is not.
    """

    key: bytes
    number: int
    row: bytes | None
    stopped: int | None


def document_row(partition: int, key: bytes, content: bytes) -> bytes:
    """The row of a document.

    :param content: as a :class:`~.document_records.FoundDocument` has it.
    """
    return seal(content, _OF_DOCUMENT, key, partition)


class DocumentFile(CacheFile):
    """The file of one collection. Used under the index's lock."""

    format = "streams document index 1"
    schema = _SCHEMA
    tables = ("partitions", "documents", "waiting")

    def state(self, partition: int) -> DocumentState:
        """The stored state of a partition."""
        for (row,) in self.read("SELECT row FROM partitions WHERE partition = ?", partition):
            with self.translated():
                return _decode_state(self.unseal(row, _OF_PARTITION, b"", partition))
        return DocumentState()

    def write(self, partition: int, state: DocumentState, documents: Iterable[ReadDocument]) -> int:
        """Apply what counts up to a checkpoint, and that checkpoint; how many documents that were
        waiting were left out."""
        before = self.state(partition)
        last: dict[bytes, ReadDocument] = {each.key: each for each in documents}
        kept = [(partition, *each) for each in sorted(last.values()) if each.row is not None]
        gone = [(partition, each.key) for each in last.values() if each.row is None]
        left_out = 0
        with self.writing() as db:
            if state.cleared > before.cleared:
                db.execute(
                    "DELETE FROM documents WHERE partition = ? AND number < ?",
                    (partition, state.cleared),
                )
            if before.has_waiting:
                left_out = _take_waiting(db, partition, before, state)
            if kept:
                db.executemany(_UPSERT, kept)
            if gone:
                db.executemany(_DELETE, gone)
            self._write_state(db, partition, state)
        return left_out

    def keep_waiting(
        self, partition: int, next_offset: int, documents: Iterable[ReadDocument]
    ) -> DocumentState:
        """Set documents aside whose checkpoint has not come."""
        state = msgspec.structs.replace(
            self.state(partition), next_offset=next_offset, has_waiting=True
        )
        rows = [(partition, *each) for each in documents]
        with self.writing() as db:
            db.executemany(_WAIT, rows)
            self._write_state(db, partition, state)
        return state

    def write_state(self, partition: int, state: DocumentState) -> None:
        """Note how far a partition was read."""
        with self.writing() as db:
            self._write_state(db, partition, state)

    @staticmethod
    def _write_state(db: sqlite3.Connection, partition: int, state: DocumentState) -> None:
        row = seal(_encode_state(state), _OF_PARTITION, b"", partition)
        db.execute(_STATE, (partition, row))

    # -- reading

    def _document(self, partition: int, key: bytes, row: object) -> StoredDocument:
        with self.translated():
            return unpack(self.unseal(row, _OF_DOCUMENT, key, partition))

    def documents(self, partition: int, keys: Sequence[bytes]) -> list[StoredDocument | None]:
        """The documents of some keys."""
        found: list[StoredDocument | None] = []
        for key in keys:
            rows = self.read(
                "SELECT row FROM documents WHERE partition = ? AND key = ?", partition, key
            )
            found.append(self._document(partition, key, rows[0][0]) if rows else None)
        return found

    def scan(
        self, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> list[KeyedDocument]:
        """Documents in the order of their keys."""
        condition = "" if end is None else "AND key < ?"
        return self._keyed(
            partition,
            f"SELECT key, row FROM documents WHERE partition = ? AND key >= ? {condition}"  # noqa: S608
            " ORDER BY key LIMIT ?",
            *(start, limit) if end is None else (start, end, limit),
        )

    def stopped(self, partition: int, after: bytes | None, limit: int) -> list[KeyedDocument]:
        """Documents with a failure, in the order of their keys."""
        return self._keyed(
            partition,
            "SELECT key, row FROM documents INDEXED BY stopped"
            " WHERE partition = ? AND stopped IS NOT NULL AND key > ? ORDER BY key LIMIT ?",
            # In SQLite's order every number stands before every BLOB.
            -1 if after is None else after,
            limit,
        )

    def _keyed(self, partition: int, sql: str, *parameters: object) -> list[KeyedDocument]:
        found = []
        for key, row in self.read(sql, partition, *parameters):
            if not isinstance(key, bytes):
                raise IndexFileDamaged(f"index file {self.name}: a key is not bytes")
            found.append(KeyedDocument(key, self._document(partition, key, row)))
        return found

    def count(self, partition: int) -> tuple[int, int]:
        """How many documents there are, and how many of them are stopped."""
        documents = self._count("SELECT count(*) FROM documents WHERE partition = ?", partition)
        stopped = self._count(
            "SELECT count(*) FROM documents INDEXED BY stopped"
            " WHERE partition = ? AND stopped IS NOT NULL",
            partition,
        )
        return documents, stopped

    def _count(self, sql: str, partition: int) -> int:
        ((found,),) = self.read(sql, partition)
        return found if isinstance(found, int) else 0


def _take_waiting(
    db: sqlite3.Connection, partition: int, before: DocumentState, state: DocumentState
) -> int:
    """Apply the documents that were set aside, as the checkpoint has come; how many of them do not
    count."""
    number = before.number, state.number
    db.execute(_TAKE_WAITING, (partition, *number, state.cleared))
    db.executemany(_DELETE_UP_TO, db.execute(_WAITING_DELETIONS, (partition, *number)))
    ((left_out,),) = db.execute(
        "SELECT count(*) FROM waiting WHERE partition = ? AND number > ?", (partition, state.number)
    )
    db.execute("DELETE FROM waiting WHERE partition = ?", (partition,))
    return int(left_out)


def open_document_file(folder: str, what: IndexOf) -> DocumentFile:
    """A file that stays in a folder, or else a temporary one."""
    found = None
    if folder:
        make = partial(DocumentFile, what=what)
        found = open_cache_file(folder, what.topic, make, "in a temporary file")
    return DocumentFile("", None, what) if found is None else found
