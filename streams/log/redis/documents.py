"""Documents on Redis.

All keys of a partition (:class:`~streams.log.redis.keys.DocumentKeys`) are in one hash slot, and
each read and each write of it is one script: a reader sees the documents of exactly that
checkpoint, and a write reaches replicas and the append-only file wholly or not at all.

**One writer.** A writer claims a partition by putting a random name into its checkpoint, where
every write is counted. A write is refused unless the checkpoint has the writer's name and the count
of its own writes. So a writer is fenced by the next claim, by ``FLUSHALL``, and by a failover that
lost its claim or one of its writes: it never builds upon documents that are not its own. A write
that is sent again is done once.

**Large writes** go whole to one script, whatever their size up to :data:`MAX_BYTES`: this is what
keeps them atomic. The server does nothing else meanwhile: for about 2 ms with 1,000 documents of
100 bytes, 15 ms with 10,000 and 300 ms with 100,000 (Redis 7.0, measured on one machine). The
caller chooses their size.

A document costs the server its key twice, its value, and about 180 bytes more: 315 bytes with a key
of 16 and a value of 100. A server that evicts keys (``maxmemory-policy`` of ``allkeys-…``) can lose
documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from typing_extensions import override

from streams.errors import (
    ConfigError,
    Fenced,
    LogError,
    NotFound,
    TooLarge,
    TopicMismatch,
)
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
from streams.log.redis.client import Client, Command, key_command, script_command
from streams.log.redis.keys import COLLECTIONS_KEY, MAX_OFFSET, DocumentKeys
from streams.log.redis.stored_values import damaged_field, printable, valid_topics
from streams.text import get_logger
from streams.wire import parse_int

logger = get_logger("streams")

MAX_BYTES = 512_000_000
"""Bytes of one write (``proto-max-bulk-len`` is 512 MB unless set otherwise)."""

PAGE = 1_000
"""Documents that one script call scans, at most."""

_MAX_PARTITIONS = 100_000
"""The most partitions that a stored number may claim; this log never wrote a larger one."""

_MAX_DIGITS = len(str(MAX_OFFSET))

_CLAIMED, _WRITTEN, _MISSING = 0, 1, 2
"""Replies of the write script: claimed, written, or the writer's own last write is missing."""


class RedisWriter(DocumentWriter):
    """The writer of one partition.

    :param name: the unique name under which the partition was claimed.
    """

    def __init__(
        self, client: Client, keys: DocumentKeys, name: str, checkpoint: Checkpoint | None
    ) -> None:
        self._client = client
        self._keys = keys
        self._name = name
        self._checkpoint = checkpoint
        self._writes = 0
        self._error: LogError | None = None

    @property
    @override
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @override
    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        reply = self._client.execute(_read_command(self._keys, keys))
        if not reply:
            raise _deleted(self._keys)
        return _documents(len(keys), *reply[2:])

    @override
    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        if self._error is not None:
            raise Fenced(f"{self._keys}: claim it again: {self._error}") from self._error
        try:
            self._write(changes, checkpoint)
        except LogError as error:
            # The outcome is unknown, so the next write could be mistaken for this one.
            self._error = error
            raise
        self._writes += 1
        self._checkpoint = checkpoint

    def _write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        keys = self._keys
        args = _arguments(changes)
        size = sum(len(each) for each in args if isinstance(each, bytes)) + len(checkpoint.data)
        if size > MAX_BYTES:
            raise TooLarge(
                f"{keys}: a write of {size} bytes; at most {MAX_BYTES} are possible: change fewer "
                "documents at once"
            )
        waits = bool(self._client.settings.wait_replicas)
        command = script_command(
            str(keys), "write_documents", keys.all, self._name, self._writes,
            checkpoint.position, checkpoint.data, *args, is_append=True, before_wait=waits,
        )  # fmt: skip
        commands = [command]
        if waits:
            commands.append(self._client.wait_command(str(keys), keys.checkpoint, [command]))
        answer, *waited = self._client.execute_all(commands)
        if isinstance(answer, LogError):
            raise answer
        if answer == _CLAIMED:
            raise fenced(keys.collection, keys.partition)
        if answer == _MISSING:
            raise _deleted(keys)
        if answer != _WRITTEN:
            raise Fenced(
                f"{keys}: Redis does not have what was written to it last, perhaps after a "
                "failover: claim it again"
            )
        failure = self._client.replication_failure(str(keys), *waited) if waited else None
        if failure is not None:
            raise failure

    @override
    def close(self) -> None:
        """There is nothing to close."""


class RedisDocuments(DocumentStore):
    """The collections of one log. Usable from any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # -- collections

    @override
    def create(self, collection: str, partitions: int) -> CollectionInfo:
        check_topic(collection)
        if not 1 <= partitions <= _MAX_PARTITIONS:
            raise ConfigError(
                f"documents {collection!r}: {partitions} partitions: 1 to {_MAX_PARTITIONS}"
            )
        context = f"documents {collection!r}"
        # The number of partitions first: if two create it with different numbers, one is refused.
        self._client.execute(
            key_command(context, "HSETNX", COLLECTIONS_KEY, collection, partitions)
        )
        info = self.find(collection)
        check_partitions(collection, info.partitions, partitions)
        checkpoints = [keys.checkpoint for keys in _all_keys(info)]
        replies = self._client.execute_all(
            [key_command(context, "HSETNX", key, "writer", "") for key in checkpoints]
        )
        for reply in replies:
            # A checkpoint key of another type is reported when the partition is claimed.
            if isinstance(reply, LogError) and not isinstance(reply, TopicMismatch):
                raise reply
        return info

    @override
    def find(self, collection: str) -> CollectionInfo:
        field = collection.encode("utf-8", "surrogatepass")
        context = f"documents {collection!r}"
        stored = self._client.execute(key_command(context, "HGET", COLLECTIONS_KEY, field))
        if stored is None:
            raise collection_not_found(collection)
        return _collection(collection, stored)

    @override
    def list(self) -> Sequence[CollectionInfo]:
        reply = self._client.execute(key_command("documents", "HGETALL", COLLECTIONS_KEY))
        found: list[CollectionInfo] = []
        for field, stored in zip(reply[::2], reply[1::2], strict=True):
            for name in valid_topics([field]):
                try:
                    found.append(_collection(name, stored))
                except TopicMismatch as error:
                    logger.warning("left out: %s", error)
        return sorted(found)

    @override
    def delete(self, collection: str) -> None:
        commands = [
            Command(str(keys), keys.checkpoint, "UNLINK", *keys.all)
            for keys in _all_keys(self.find(collection))
        ]
        self._client.execute_or_raise(commands)
        context = f"documents {collection!r}"
        self._client.execute(key_command(context, "HDEL", COLLECTIONS_KEY, collection))

    @override
    def clear(self, collection: str, partition: int) -> None:
        keys = DocumentKeys(collection, partition)
        if not self._client.execute(script_command(str(keys), "clear_documents", keys.all)):
            raise self._not_found(keys)

    @override
    def totals(self, collection: str) -> CollectionTotals:
        documents = stopped = 0
        commands: list[Command] = []
        for keys in _all_keys(self.find(collection)):
            commands.append(key_command(str(keys), "ZCARD", keys.keys))
            commands.append(key_command(str(keys), "ZCARD", keys.stopped))
        counts = self._client.execute_or_raise(commands)
        documents, stopped = sum(counts[::2]), sum(counts[1::2])
        return CollectionTotals(documents, stopped)

    # -- one partition

    @override
    def claim(self, collection: str, partition: int) -> DocumentWriter:
        keys, name = DocumentKeys(collection, partition), uuid4().hex
        reply = self._client.execute(
            script_command(str(keys), "claim_documents", (keys.checkpoint,), name)
        )
        if not reply:
            raise self._not_found(keys)
        return RedisWriter(self._client, keys, name, _checkpoint(keys, *reply))

    @override
    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        names = DocumentKeys(collection, partition)
        reply = self._client.execute(_read_command(names, keys))
        if not reply:
            raise self._not_found(names)
        position, data, values, failures = reply
        return FoundDocuments(
            _documents(len(keys), values, failures), _checkpoint(names, position, data)
        )

    @override
    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        return self.read(collection, partition, ()).checkpoint

    @override
    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        keys = DocumentKeys(collection, partition)
        return self._scan(keys, keys.keys, b"[" + start, b"+" if end is None else b"(" + end, limit)

    @override
    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        keys = DocumentKeys(collection, partition)
        return self._scan(keys, keys.stopped, b"-" if after is None else b"(" + after, b"+", limit)

    def _scan(
        self, keys: DocumentKeys, index: bytes, least: bytes, greatest: bytes, limit: int
    ) -> Sequence[KeyedDocument]:
        shared = (keys.checkpoint, keys.values, keys.failures, index)
        found: list[KeyedDocument] = []
        while True:
            asked = max(0, min(PAGE, limit - len(found)))
            reply = self._client.execute(
                script_command(str(keys), "scan_documents", shared, least, greatest, asked)
            )
            if not reply:
                raise self._not_found(keys)
            names, *rest = reply
            for name, document in zip(names, _documents(len(names), *rest), strict=True):
                if document is not None:  # else it was deleted meanwhile
                    found.append(KeyedDocument(name, document))
            if not names or len(names) < asked:
                return found
            least = b"(" + names[-1]

    def _not_found(self, keys: DocumentKeys) -> NotFound:
        """The error for a partition that has no checkpoint."""
        partitions = self.find(keys.collection).partitions
        if not 0 <= keys.partition < partitions:
            return partition_not_found(keys.collection, keys.partition, partitions)
        return NotFound(
            f"{keys}: the key {printable(keys.checkpoint)} is not in Redis, or without a writer: "
            "create the collection again and rebuild the documents"
        )


def _all_keys(info: CollectionInfo) -> list[DocumentKeys]:
    return [DocumentKeys(info.name, partition) for partition in range(info.partitions)]


def _collection(name: str, stored: bytes) -> CollectionInfo:
    """A collection as it is stored.

    :raises TopicMismatch: that makes no sense.
    """
    found = parse_int(stored)
    if found is None or not 1 <= found <= _MAX_PARTITIONS:
        remedy = "set it to the number of partitions that there are"
        damage = damaged_field(COLLECTIONS_KEY, name, stored, remedy)
        raise TopicMismatch(f"documents {name!r}: {damage}")
    return CollectionInfo(name, found)


def _checkpoint(
    keys: DocumentKeys, position: bytes | None, data: bytes | None
) -> Checkpoint | None:
    """A checkpoint as it is stored.

    :raises TopicMismatch: that makes no sense.
    """
    if position is None:
        return None
    if position.isdigit() and len(position) <= _MAX_DIGITS:
        found = int(position)
        if found <= MAX_OFFSET:
            return Checkpoint(found, data or b"")
    remedy = "another client has changed it: delete the collection and rebuild it"
    damage = damaged_field(keys.checkpoint, "position", position, remedy)
    raise TopicMismatch(f"{keys}: {damage}")


def _read_command(names: DocumentKeys, keys: Sequence[bytes]) -> Command:
    shared = (names.checkpoint, names.values, names.failures)
    return script_command(str(names), "read_documents", shared, *keys)


def _documents(
    count: int, values: Sequence[bytes | None], failures: Sequence[bytes | None]
) -> list[StoredDocument | None]:
    """Documents from the scripts' replies; without any failures, none is stopped."""
    return [
        None if value is None and failure is None else StoredDocument(value, failure or b"")
        for value, failure in zip(values, failures or [None] * count, strict=True)
    ]


def _arguments(changes: Sequence[DocumentChange]) -> list[Any]:
    """The changes as arguments of the write script."""
    valued: list[bytes] = []
    failed: list[bytes] = []
    valueless: list[bytes] = []
    gone: list[bytes] = []
    for key, document in changes:
        if document is None:
            gone.append(key)
            continue
        value, failure = document
        if value is not None:
            valued += (key, value)
        elif failure:
            valueless.append(key)
        else:
            gone.append(key)
        if failure:
            failed += (key, failure)
    counts = len(valued) // 2, len(failed) // 2, len(valueless), len(gone)
    return [*counts, *valued, *failed, *valueless, *gone]


def _deleted(keys: DocumentKeys) -> Fenced:
    return Fenced(
        f"{keys}: it is not in Redis any more (deleted, flushed, or lost in a failover): create "
        "the collection again and rebuild the documents"
    )
