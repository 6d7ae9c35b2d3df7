"""Documents in the file.

A write is one transaction that first looks whether the writer's *epoch* still stands, so documents
and checkpoint change together and by one writer. As everywhere in this package what is asked goes
in as one JSON array, with keys in hexadecimal, and comes out as one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

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
SELECT r.key, d.value, d.failure FROM json_each(?) AS r CROSS JOIN streams_documents AS d
ON d.no = ? AND d.key = unhex(r.value)
"""

_SCAN = """
SELECT key, value, failure FROM streams_documents WHERE no = ? AND key >= ?
ORDER BY key LIMIT ?
"""

_SCAN_BELOW = """
SELECT key, value, failure FROM streams_documents WHERE no = ? AND key >= ? AND key < ?
ORDER BY key LIMIT ?
"""

_SELECT_STOPPED = """
SELECT key, value, failure FROM streams_documents INDEXED BY streams_stopped
WHERE no = ? AND failure IS NOT NULL AND key > ? ORDER BY key LIMIT ?
"""

_UPSERT = "INSERT OR REPLACE INTO streams_documents VALUES (?, ?, ?, ?)"

_DELETE = "DELETE FROM streams_documents WHERE no = ? AND key = ?"


class SqliteWriter(DocumentWriter):
    """The writer of one partition.

    :param number: of the partition, in the file.
    :param epoch: under which it was claimed.
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
        """There is nothing to let go of."""


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
                "SELECT collection, count(*) FROM streams_checkpoints GROUP BY 1 ORDER BY 1"
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
            db.execute(
                "UPDATE streams_checkpoints SET position = NULL, data = x'', epoch = epoch + 1"
                " WHERE no = ?",
                (number,),
            )

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
            ((epoch, position, data),) = db.fetch_rows(
                "UPDATE streams_checkpoints SET epoch = epoch + 1 WHERE no = ?"
                " RETURNING epoch, position, data",
                (number,),
            )
        checkpoint = None if position is None else Checkpoint(position, data)
        return SqliteWriter(self._database, collection, partition, number, epoch, checkpoint)

    @override
    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        with self._database.read(snapshot=True) as db:
            number = _partition_number(db, collection, partition)
            return FoundDocuments(_select(db, number, keys), _checkpoint(db, number))

    @override
    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        with self._database.read() as db:
            return _checkpoint(db, _partition_number(db, collection, partition))

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
            # In SQLite's order every number stands before every BLOB.
            rows = db.fetch_rows(_SELECT_STOPPED, (number, -1 if after is None else after, limit))
        return [KeyedDocument(key, _document(value, failure)) for key, value, failure in rows]


def _document(value: bytes | None, failure: bytes | None) -> StoredDocument:
    return StoredDocument(value, failure or b"")


def _count_partitions(db: SqliteConnection, collection: str) -> int:
    """How many partitions a collection has; 0: there is none of that name."""
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


def _checkpoint(db: SqliteConnection, number: int) -> Checkpoint | None:
    rows = db.fetch_rows("SELECT position, data FROM streams_checkpoints WHERE no = ?", (number,))
    return Checkpoint(*rows[0]) if rows and rows[0][0] is not None else None


def _select(
    db: SqliteConnection, number: int, keys: Sequence[bytes]
) -> list[StoredDocument | None]:
    found: list[StoredDocument | None] = [None] * len(keys)
    if keys:
        asked = json.dumps([key.hex() for key in keys])
        for index, value, failure in db.fetch_rows(_SELECT, (asked, number)):
            found[index] = _document(value, failure)
    return found
