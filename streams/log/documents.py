"""Documents: the state that a view keeps by key, and the position that it has reached.

The third protocol of a log, beside :class:`~streams.log.protocol.Log` and
:class:`~streams.log.events.EventLog`. A *collection* has as many partitions as the topic that it is
    built from. Each partition holds documents by key, and one *checkpoint*: the position up to
    which they were built.

Rules every log keeps (``tests/conformance/test_document_log.py`` proves them):

* **Documents and checkpoint change together.** A reader sees, at any moment, the documents of
  exactly that checkpoint; a writer that is killed leaves the state before or after its write.
* **A partition has one writer.** Claiming it fences the previous writer: from then on that writer's
  calls raise :class:`~streams.errors.Fenced` and write nothing. So the writer that has claimed a
  partition knows its documents, and may cache them.
* **Keys are bytes, in the order of their bytes.**
* **A document may be stopped.** It then has, besides its value, a *failure* that says why it is
  behind the checkpoint; the log neither reads nor changes the failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from streams.errors import Fenced, NotFound, TopicMismatch

FAILURE_HEADER = "streams_failure"
"""The header with a stopped document's failure, on a log that keeps documents in a topic."""


class Checkpoint(NamedTuple):
    """The point up to which a partition's documents were built.

    :param position: the position in the source partition; all messages below it are in the
        documents.
    :param data: the writer's own data, opaque to the log.
    """

    position: int
    data: bytes = b""


class StoredDocument(NamedTuple):
    """A document in the log.

    :param value: its bytes; None: there is no value, only a failure to build one.
    :param failure: why the document is behind the checkpoint; empty: it is not.
    """

    value: bytes | None
    failure: bytes = b""


class DocumentChange(NamedTuple):
    """A change of a key's document.

    :param document: the key's new document; None: the key has none any more.
    """

    key: bytes
    document: StoredDocument | None


class KeyedDocument(NamedTuple):
    """A document and its key."""

    key: bytes
    document: StoredDocument


class FoundDocuments(NamedTuple):
    """Documents read at one moment.

    :param documents: the documents of the requested keys, in that order; None for a key without
        one.
    :param checkpoint: the checkpoint of their partition; None: nothing was written to it yet.
    """

    documents: Sequence[StoredDocument | None]
    checkpoint: Checkpoint | None


class CollectionInfo(NamedTuple):
    """A collection in the log."""

    name: str
    partitions: int


class CollectionTotals(NamedTuple):
    """How much a collection holds.

    :param documents: the number of documents, including stopped ones.
    :param stopped: how many of them have a failure.
    """

    documents: int
    stopped: int


class DocumentWriter(Protocol):
    """The one writer of a partition, until another writer claims it. One thread at a time."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that was written last; None: nothing was written."""
        ...

    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        """The documents of these keys, including all writes of this writer.

        :raises Unavailable: the log cannot be reached now.
        """
        ...

    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        """Change documents, each key once, and the checkpoint with them.

        After any error the writer cannot be used any more: claim the partition again, and read its
        checkpoint.

        :raises Fenced: another writer has claimed the partition, or the collection was deleted;
            nothing was written.
        :raises LogError: it is unknown whether the write was done.
        """
        ...

    def close(self) -> None:
        """Release the writer's resources. Other writers are not told."""
        ...


class DocumentStore(Protocol):
    """The collections of one log. Usable from any thread; every call blocks.

    Each call raises :class:`~streams.errors.Unavailable` while the log cannot be reached or is
    closed, :class:`~streams.errors.NotFound` for a collection or partition that does not exist, and
    :class:`~streams.errors.TopicMismatch` if a checkpoint that it reads is damaged.
    """

    def create(self, collection: str, partitions: int) -> CollectionInfo:
        """Create a collection. Repeating the call is harmless.

        :raises TopicMismatch: it exists with another number of partitions.
        """
        ...

    def find(self, collection: str) -> CollectionInfo:
        """A collection as it is now."""
        ...

    def list(self) -> Sequence[CollectionInfo]:
        """All collections, by name."""
        ...

    def delete(self, collection: str) -> None:
        """Delete a collection with its documents and checkpoints. Its writers are fenced."""
        ...

    def clear(self, collection: str, partition: int) -> None:
        """Delete a partition's documents and checkpoint. Its writer is fenced."""
        ...

    def claim(self, collection: str, partition: int) -> DocumentWriter:
        """Become the writer of a partition, in place of the current one."""
        ...

    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        """The documents of these keys, and the checkpoint that they belong to."""
        ...

    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        """The checkpoint of a partition's documents; None: nothing was written to it yet."""
        ...

    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        """The first documents with keys from ``start`` up to, not including, ``end`` (None: no
        bound), in the order of their keys."""
        ...

    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        """The first documents with a failure whose keys are behind ``after``, in the order of their
        keys."""
        ...

    def totals(self, collection: str) -> CollectionTotals:
        """How much a collection holds."""
        ...


@runtime_checkable
class DocumentLog(Protocol):
    """A log that keeps documents."""

    @property
    def documents(self) -> DocumentStore:
        """The log's collections."""
        ...


def end_of_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with ``prefix``; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def collection_not_found(collection: str) -> NotFound:
    """The error for a collection that does not exist."""
    return NotFound(f"there is no collection of documents {collection!r}")


def partition_not_found(collection: str, partition: int, partitions: int) -> NotFound:
    """The error for a partition that a collection does not have; without partitions: for a missing
    collection."""
    if not partitions:
        return collection_not_found(collection)
    return NotFound(
        f"collection {collection!r} has partitions 0 to {partitions - 1}, not {partition}"
    )


def check_partitions(collection: str, found: int, declared: int) -> None:
    """Check that an existing collection has the declared number of partitions.

    :raises TopicMismatch: it has another number of partitions.
    """
    if found != declared:
        raise TopicMismatch(
            f"the documents {collection!r} have {found} partitions, but {declared} were declared: "
            "give the view a new version"
        )


def fenced(collection: str, partition: int) -> Fenced:
    """The error for a writer whose partition was claimed by another."""
    return Fenced(
        f"documents {collection!r}, partition {partition}: another process writes them now"
    )
