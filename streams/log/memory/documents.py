"""Documents of the memory log: plain data under the store's lock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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

Locked = Callable[[], AbstractContextManager[Any]]


class DocumentPartition:
    """One partition's documents."""

    def __init__(self) -> None:
        self.documents: dict[bytes, StoredDocument] = {}
        self.checkpoint: Checkpoint | None = None
        self.writer: MemoryWriter | None = None
        self._sorted_keys: list[bytes] = []
        self._is_sorted = True

    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        """Change documents and checkpoint."""
        documents = self.documents
        before = len(documents)
        for key, document in changes:
            if document is None:
                if documents.pop(key, None) is not None:
                    self._is_sorted = False
            else:
                documents[key] = document
        if len(documents) != before:
            self._is_sorted = False
        self.checkpoint = checkpoint

    def sorted_keys(self) -> list[bytes]:
        """All keys, in order."""
        if not self._is_sorted:
            self._sorted_keys = sorted(self.documents)
            self._is_sorted = True
        return self._sorted_keys


class Collection:
    """A collection's partitions."""

    def __init__(self, name: str, partitions: int) -> None:
        self.info = CollectionInfo(name, partitions)
        self.partitions = [DocumentPartition() for _ in range(partitions)]


class MemoryWriter(DocumentWriter):
    """The writer of one partition."""

    def __init__(
        self, collection: str, number: int, partition: DocumentPartition, locked: Locked
    ) -> None:
        self._collection = collection
        self._number = number
        self._partition = partition
        self._locked = locked
        self._checkpoint = partition.checkpoint

    @property
    @override
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @override
    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        with self._locked():
            self._check()
            return [self._partition.documents.get(key) for key in keys]

    @override
    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        with self._locked():
            self._check()
            self._partition.write(changes, checkpoint)
        self._checkpoint = checkpoint

    def _check(self) -> None:
        if self._partition.writer is not self:
            raise fenced(self._collection, self._number)

    @override
    def close(self) -> None:
        """There is nothing to close."""


class MemoryDocuments(DocumentStore):
    """The collections of a store, as one opener of its log uses them.

    :param locked: a context that holds the store's lock; it raises once the log is closed.
    """

    def __init__(self, collections: dict[str, Collection], locked: Locked) -> None:
        self._collections = collections
        self._locked = locked

    def _partition(self, collection: str, partition: int) -> DocumentPartition:
        found = self._collection(collection).partitions
        if not 0 <= partition < len(found):
            raise partition_not_found(collection, partition, len(found))
        return found[partition]

    def _collection(self, collection: str) -> Collection:
        found = self._collections.get(collection)
        if found is None:
            raise collection_not_found(collection)
        return found

    @override
    def create(self, collection: str, partitions: int) -> CollectionInfo:
        check_topic(collection)
        with self._locked():
            found = self._collections.get(collection)
            if found is None:
                found = self._collections[collection] = Collection(collection, partitions)
            check_partitions(collection, found.info.partitions, partitions)
            return found.info

    @override
    def find(self, collection: str) -> CollectionInfo:
        with self._locked():
            return self._collection(collection).info

    @override
    def list(self) -> Sequence[CollectionInfo]:
        with self._locked():
            return [self._collections[name].info for name in sorted(self._collections)]

    @override
    def delete(self, collection: str) -> None:
        with self._locked():
            for partition in self._collection(collection).partitions:
                partition.writer = None
            del self._collections[collection]

    @override
    def clear(self, collection: str, partition: int) -> None:
        with self._locked():
            self._partition(collection, partition).writer = None
            self._collections[collection].partitions[partition] = DocumentPartition()

    @override
    def claim(self, collection: str, partition: int) -> DocumentWriter:
        with self._locked():
            found = self._partition(collection, partition)
            found.writer = MemoryWriter(collection, partition, found, self._locked)
            return found.writer

    @override
    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        with self._locked():
            found = self._partition(collection, partition)
            return FoundDocuments([found.documents.get(key) for key in keys], found.checkpoint)

    @override
    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        with self._locked():
            return self._partition(collection, partition).checkpoint

    @override
    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        with self._locked():
            found = self._partition(collection, partition)
            keys = found.sorted_keys()
            first = bisect_left(keys, start)
            last = len(keys) if end is None else bisect_left(keys, end)
            return [
                KeyedDocument(key, found.documents[key])
                for key in keys[first : min(last, first + limit)]
            ]

    @override
    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        with self._locked():
            found = self._partition(collection, partition)
            keys = found.sorted_keys()
            rest = keys[0 if after is None else bisect_right(keys, after) :]
            failed = [key for key in rest if found.documents[key].failure]
            return [KeyedDocument(key, found.documents[key]) for key in failed[:limit]]

    @override
    def totals(self, collection: str) -> CollectionTotals:
        with self._locked():
            found = [
                document
                for partition in self._collection(collection).partitions
                for document in partition.documents.values()
            ]
            return CollectionTotals(len(found), sum(bool(each.failure) for each in found))
