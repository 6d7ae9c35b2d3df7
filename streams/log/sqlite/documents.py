"""Documents in the file.

A write is one transaction that first checks that the writer's *epoch* is still the current one, so
documents and checkpoint change together and by one writer. As everywhere in this package a request
is passed as one JSON array, with keys in hexadecimal, and its result is one.

Other programs may write into the file. A document whose key is no BLOB is never found; a value or a
failure that is no BLOB is read as the bytes of its text. A checkpoint whose position is no offset
raises an error that says so, until the partition is cleared; an epoch that is no number is counted
from the start again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from streams.errors import TopicMismatch
from streams.log.documents import (
    Checkpoint,
    CollectionInfo,
    CollectionTotals,
    DocumentChange,
    DocumentStore,
    DocumentWriter,
    FoundDocuments,
    KeyedDocument,
    StoredDocument,
    check_partitions,
    collection_not_found,
    fenced,
    partition_not_found,
)
from streams.log.names import check_topic
from streams.log.sqlite.database import Database, SqliteConnection, fetch_partition

_SELECT = """
SELECT r.key, CAST(d.value AS BLOB), CAST(d.failure AS BLOB)
FROM json_each(?) AS r CROSS JOIN streams_documents AS d
ON d.no = ? AND d.key = unhex(r.value)
"""

# In SQLite's order every BLOB comes after every text and number.
_SCAN = """
SELECT key, CAST(value AS BLOB), CAST(failure AS BLOB) FROM streams_documents
WHERE no = ? AND key >= ? ORDER BY key LIMIT ?
"""

_SCAN_BELOW = """
SELECT key, CAST(value AS BLOB), CAST(failure AS BLOB) FROM streams_documents
WHERE no = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?
"""

_SELECT_STOPPED = """
SELECT key, CAST(value AS BLOB), CAST(failure AS BLOB)
FROM streams_documents INDEXED BY streams_stopped
WHERE no = ? AND failure IS NOT NULL AND key >= ? ORDER BY key LIMIT ?
"""

_NEXT_EPOCH = "iif(typeof(epoch) = 'integer' AND epoch BETWEEN 0 AND 1 << 53, epoch, 0) + 1"

_STORED = "iif(typeof(position) IN ('integer', 'null'), position, -1), CAST(data AS BLOB)"
"""The columns of a checkpoint for :func:`_read_checkpoint`."""

_CLAIM = (
    f"UPDATE streams_checkpoints SET epoch = {_NEXT_EPOCH} WHERE no = ? "  # noqa: S608
    f"RETURNING epoch, {_STORED}"
)

_CLEAR = (
    "UPDATE streams_checkpoints "  # noqa: S608
    f"SET position = NULL, data = x'', epoch = {_NEXT_EPOCH} WHERE no = ?"
)

_SELECT_CHECKPOINT = f"SELECT {_STORED} FROM streams_checkpoints WHERE no = ?"  # noqa: S608

_UPSERT = "INSERT OR REPLACE INTO streams_documents VALUES (?, ?, ?, ?)"

_DELETE = "DELETE FROM streams_documents WHERE no = ? AND key = ?"


class SqliteWriter(DocumentWriter):
    """The writer of one partition.

    :param number: the partition's number in the file.
    :param epoch: the epoch under which the partition was claimed.
    """

    def __init__(
        self,
        database: Database,
        collection: str,
        partition: int,
        number: int,
        epoch: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._database = database
        self._collection = collection
        self._partition = partition
        self._number = number
        self._epoch = epoch
        self._checkpoint = checkpoint

    @property
    @override
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @override
    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        with self._database.read() as db:
            return _select(db, self._number, keys)

    @override
    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        number = self._number
        kept: list[Any] = []
        gone: list[Any] = []
        for key, document in changes:
            if document is None:
                gone.append((number, key))
            else:
                kept.append((number, key, document.value, document.failure or None))
        with self._database.write() as db:
            db.execute(
                "UPDATE streams_checkpoints SET position = ?, data = ? WHERE no = ? AND epoch = ?",
                (checkpoint.position, checkpoint.data, number, self._epoch),
            )
            if not db.changes():
                raise fenced(self._collection, self._partition)
            if kept:
                db.executemany(_UPSERT, kept)
            if gone:
                db.executemany(_DELETE, gone)
        self._checkpoint = checkpoint

    @override
    def close(self) -> None:
        """There is nothing to close."""


class SqliteDocuments(DocumentStore):
    """The collections of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- collections

    @override
    def create(self, collection: str, partitions: int) -> CollectionInfo:
        check_topic(collection)
        with self._database.write() as db:
            found = _count_partitions(db, collection)
            if not found:
                found = partitions
                db.executemany(
                    "INSERT INTO streams_checkpoints (collection, partition) VALUES (?, ?)",
                    [(collection, partition) for partition in range(partitions)],
                )
        check_partitions(collection, found, partitions)
        return CollectionInfo(collection, found)

    @override
    def find(self, collection: str) -> CollectionInfo:
        with self._database.read() as db:
            found = _count_partitions(db, collection)
        if not found:
            raise collection_not_found(collection)
        return CollectionInfo(collection, found)

    @override
    def list(self) -> Sequence[CollectionInfo]:
        with self._database.read() as db:
            rows = db.fetch_rows(
                "SELECT collection, count(*) FROM streams_checkpoints"
                " WHERE typeof(collection) = 'text' GROUP BY 1 ORDER BY 1"
            )
        return [CollectionInfo(*row) for row in rows]

    @override
    def delete(self, collection: str) -> None:
        with self._database.write() as db:
            if not _count_partitions(db, collection):
                raise collection_not_found(collection)
            db.execute(
                "DELETE FROM streams_documents WHERE no IN"
                " (SELECT no FROM streams_checkpoints WHERE collection = ?)",
                (collection,),
            )
            db.execute("DELETE FROM streams_checkpoints WHERE collection = ?", (collection,))

    @override
    def clear(self, collection: str, partition: int) -> None:
        with self._database.write() as db:
            number = _partition_number(db, collection, partition)
            db.execute("DELETE FROM streams_documents WHERE no = ?", (number,))
            db.execute(_CLEAR, (number,))

    @override
    def totals(self, collection: str) -> CollectionTotals:
        with self._database.read() as db:
            if not _count_partitions(db, collection):
                raise collection_not_found(collection)
            ((documents, stopped),) = db.fetch_rows(
                "SELECT count(*), count(failure) FROM streams_checkpoints"
                " CROSS JOIN streams_documents USING (no) WHERE collection = ?",
                (collection,),
            )
        return CollectionTotals(documents, stopped)

    # -- one partition

    @override
    def claim(self, collection: str, partition: int) -> DocumentWriter:
        with self._database.write() as db:
            number = _partition_number(db, collection, partition)
            ((epoch, *stored),) = db.fetch_rows(_CLAIM, (number,))
        checkpoint = _read_checkpoint(collection, partition, *stored)
        return SqliteWriter(self._database, collection, partition, number, epoch, checkpoint)

    @override
    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        with self._database.read(snapshot=True) as db:
            number = _partition_number(db, collection, partition)
            found, stored = _select(db, number, keys), _stored_checkpoint(db, number)
        return FoundDocuments(found, _read_checkpoint(collection, partition, *stored))

    @override
    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        with self._database.read() as db:
            stored = _stored_checkpoint(db, _partition_number(db, collection, partition))
        return _read_checkpoint(collection, partition, *stored)

    @override
    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        with self._database.read() as db:
            number = _partition_number(db, collection, partition)
            if end is None:
                rows = db.fetch_rows(_SCAN, (number, start, limit))
            else:
                rows = db.fetch_rows(_SCAN_BELOW, (number, start, end, limit))
        return [KeyedDocument(key, _document(value, failure)) for key, value, failure in rows]

    @override
    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        with self._database.read() as db:
            number = _partition_number(db, collection, partition)
            start = b"" if after is None else after + b"\0"
            rows = db.fetch_rows(_SELECT_STOPPED, (number, start, limit))
        return [KeyedDocument(key, _document(value, failure)) for key, value, failure in rows]


def _document(value: bytes | None, failure: bytes | None) -> StoredDocument:
    return StoredDocument(value, failure or b"")


def _count_partitions(db: SqliteConnection, collection: str) -> int:
    """How many partitions a collection has; 0: there is no collection of that name."""
    ((found,),) = db.fetch_rows(
        "SELECT count(*) FROM streams_checkpoints WHERE collection = ?", (collection,)
    )
    return int(found)


def _partition_number(db: SqliteConnection, collection: str, partition: int) -> int:
    query = "SELECT no FROM streams_checkpoints WHERE collection = ? AND partition = ?"
    row = fetch_partition(db, query, collection, partition)
    if row is not None:
        return int(row[0])
    count = _count_partitions(db, collection)
    raise partition_not_found(collection, partition, count)


def _stored_checkpoint(db: SqliteConnection, number: int) -> tuple[int | None, bytes | None]:
    rows = db.fetch_rows(_SELECT_CHECKPOINT, (number,))
    return rows[0] if rows else (None, None)


def _read_checkpoint(
    collection: str, partition: int, position: int | None, data: bytes | None
) -> Checkpoint | None:
    """Parse a stored checkpoint.

    :raises TopicMismatch: the checkpoint makes no sense.
    """
    if position is None:
        return None
    if position < 0:
        raise TopicMismatch(
            f"documents {collection!r}, partition {partition}: 'position' in streams_checkpoints "
            "is not an offset: another program has changed it: delete the collection and rebuild it"
        )
    return Checkpoint(position, data or b"")


def _select(
    db: SqliteConnection, number: int, keys: Sequence[bytes]
) -> list[StoredDocument | None]:
    found: list[StoredDocument | None] = [None] * len(keys)
    if keys:
        asked = json.dumps([key.hex() for key in keys])
        for index, value, failure in db.fetch_rows(_SELECT, (asked, number)):
            found[index] = _document(value, failure)
    return found
