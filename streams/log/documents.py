"""Documents: what a view keeps of each key, and how far it has come.

The third protocol of a log, beside :class:`~streams.log.protocol.Log` and
:class:`~streams.log.events.EventLog`. A *collection* has as many partitions as the topic that it is
made of. Each partition holds documents by key, and one *checkpoint*: the position up to which they
were made.

Rules every log keeps (``tests/conformance/test_document_log.py`` proves them):

* **Documents and checkpoint change together.** Whoever reads, at whatever moment, sees the
  documents of exactly that checkpoint; a writer that is killed leaves the ones before or the ones
  after its write.
* **A partition has one writer.** Claiming it refuses whoever had it before: from then on the
  former writer's calls raise :class:`~streams.errors.Fenced` and write nothing. So whoever claims
  knows the documents, and may keep them in memory.
* **Keys are bytes, in the order of their bytes.**
* **A document may be stopped.** It then has a *failure* beside its value, which says why it is
  behind the checkpoint; the log neither reads nor changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from streams.errors import Fenced, NotFound, TopicMismatch

FAILURE_HEADER = "streams_failure"
"""Holds a stopped document's failure, where a log keeps documents in a topic."""


class Checkpoint(NamedTuple):
    """Up to where a partition's documents were made.

    :param position: of the partition that they are made of; everything below is in them.
    :param data: what else their writer has to know, opaque to the log.
    """

    position: int
    data: bytes = b""


class StoredDocument(NamedTuple):
    """A document as the log has it.

    :param value: its bytes; None: there is none, only a failure to make one.
    :param failure: why it is behind the checkpoint; empty: it is not.
    """

    value: bytes | None
    failure: bytes = b""


class DocumentChange(NamedTuple):
    """What becomes of a key.

    :param document: its document from now on; None: it has none any more.
    """

    key: bytes
    document: StoredDocument | None


class KeyedDocument(NamedTuple):
    """A document and its key."""

    key: bytes
    document: StoredDocument


class FoundDocuments(NamedTuple):
    """Documents as of one moment.

    :param documents: of the keys that were asked for, in that order; None where there is none.
    :param checkpoint: of their partition; None: nothing was written to it yet.
    """

    documents: Sequence[StoredDocument | None]
    checkpoint: Checkpoint | None


class CollectionInfo(NamedTuple):
    """A collection as the log holds it."""

    name: str
    partitions: int


class CollectionTotals(NamedTuple):
    """How much a collection holds.

    :param documents: how many, stopped ones included.
    :param stopped: how many of them have a failure.
    """

    documents: int
    stopped: int


class DocumentWriter(Protocol):
    """The one writer of a partition, until somebody else claims it. One thread at a time."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Of what was written last; None: nothing was."""
        ...

    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        """The documents of these keys, with all that this writer has written.

        :raises Unavailable: the log cannot be reached now.
        """
        ...

    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        """Change documents, each key once, and the checkpoint with them.

        After any error the writer is of no use: claim the partition again, which tells what stands
        there.

        :raises Fenced: somebody else has claimed the partition, or the collection was deleted;
            nothing was written.
        :raises LogError: it was written or not.
        """
        ...

    def close(self) -> None:
        """Let go of what it takes to write. Nobody else is told."""
        ...


class DocumentStore(Protocol):
    """The collections of one log. Usable from any thread; every call blocks.

    Each call raises :class:`~streams.errors.Unavailable` while the log cannot be reached or is
    closed, :class:`~streams.errors.NotFound` for a collection or partition that there is not, and
    :class:`~streams.errors.TopicMismatch` where a checkpoint that it reads is none, as somebody has
    changed it.
    """

    def create(self, collection: str, partitions: int) -> CollectionInfo:
        """Create a collection. The same again is harmless.

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
        """Delete a collection and all that is in it. Its writers are fenced."""
        ...

    def clear(self, collection: str, partition: int) -> None:
        """Delete a partition's documents and checkpoint. Its writer is fenced."""
        ...

    def claim(self, collection: str, partition: int) -> DocumentWriter:
        """Become the writer of a partition, in place of whoever is."""
        ...

    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        """The documents of these keys, and the checkpoint that they belong to."""
        ...

    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        """Up to where a partition's documents were made; None: nothing was written to it yet."""
        ...

    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        """The first documents of keys from ``start`` on, and before ``end``, in the order of their
        keys; None: without an end."""
        ...

    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        """The first documents with a failure, of keys behind ``after``, in the order of their
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
        """Its collections."""
        ...


def end_of_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with ``prefix``; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def collection_not_found(collection: str) -> NotFound:
    """The error for a collection that there is not."""
    return NotFound(f"there is no collection of documents {collection!r}")


def partition_not_found(collection: str, partition: int, partitions: int) -> NotFound:
    """The error for a partition that a collection does not have; of none: for no collection."""
    if not partitions:
        return collection_not_found(collection)
    return NotFound(
        f"collection {collection!r} has partitions 0 to {partitions - 1}, not {partition}"
    )


def check_partitions(collection: str, found: int, declared: int) -> None:
    """See that a collection that exists is the one that was declared.

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
