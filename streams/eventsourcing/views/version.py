"""One version of a view in an app: its processors, and its documents as they are read."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from stream_codecs import type_name
from streams.connection import Connection
from streams.errors import ConfigError, InvalidValue, NotFound
from streams.eventsourcing.views.checkpoints import decode_checkpoint, parse_source
from streams.eventsourcing.views.definition import ViewDefinition
from streams.eventsourcing.views.errors import DocumentStopped
from streams.eventsourcing.views.event_readers import KeyedReader, SourceReader
from streams.eventsourcing.views.failures import decode_failure
from streams.eventsourcing.views.folding import PartitionFolder
from streams.eventsourcing.views.folding_subscription import FoldingSubscription
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.inline_subscription import InlineSubscription, PartitionCounts
from streams.eventsourcing.views.keyed_topic import ensure_keyed_topic
from streams.eventsourcing.views.keying_subscription import KeyingSubscription
from streams.eventsourcing.views.names import collection_name
from streams.eventsourcing.views.processors import declare_inline
from streams.eventsourcing.views.registry import (
    KnownView,
    KnownViewVersion,
    check_declaration,
    goal_positions,
)
from streams.eventsourcing.views.retry_requests import RetryRequests
from streams.eventsourcing.views.tracker import VersionTracker
from streams.log.documents import (
    Checkpoint,
    DocumentLog,
    DocumentStore,
    DocumentWriter,
    KeyedDocument,
    StoredDocument,
)
from streams.log.event_filter import ForeignRecords
from streams.log.names import partition_for
from streams.log.protocol import Log, TopicPartition
from streams.message import text
from streams.topic import InternalTopic

PAGE = 1_000
"""Documents of a partition that are read at once, where many are."""


class VersionDocument(NamedTuple):
    """A document of a version, as it was read.

    :param document: None: there is none.
    :param partition: in which it was looked for.
    :param checkpoint: of that partition then.
    """

    document: Any
    partition: int
    checkpoint: Checkpoint | None


class VersionDocuments(NamedTuple):
    """Documents of a version, as they were read.

    :param documents: with their keys.
    :param positions: of the sources, where they are wanted; all before these is in the documents.
    :param checkpoints: of the partitions that were read, where they are wanted.
    """

    documents: Sequence[tuple[bytes, Any]]
    positions: Mapping[TopicPartition, int]
    checkpoints: Mapping[int, Checkpoint | None]


def document_store(log: Log, where: str) -> DocumentStore:
    """A log's documents.

    :raises ConfigError: it keeps none.
    """
    if not isinstance(log, DocumentLog) or not log.capabilities.documents:
        raise ConfigError(f"{where}: {log.capabilities.name} keeps no documents")
    return log.documents


def key_bytes(where: str, key: Any) -> bytes:
    """A document's key as bytes.

    :raises InvalidValue: it is none.
    """
    if not isinstance(key, str):
        raise InvalidValue(f"{where}: key={key!r}: a str")
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidValue(
            f"{where}: key={key!r} holds a lone surrogate, which is no text"
        ) from None


def tracker_of(log: Log, view: str, known: KnownViewVersion) -> VersionTracker:
    """How far a version has come that is known from the registry."""
    collection = collection_name(view, known.version)
    store = document_store(log, f"view {view!r}")
    return VersionTracker(log, store, collection, known.topics, is_keyed=known.is_keyed)


def goal_of(
    log: Log, view: str, known_view: KnownView, known: KnownViewVersion
) -> dict[TopicPartition, int]:
    """How far a version has to come before it can serve: as far as its sources were when it was
    declared, or was to be made anew, and as the version is now that serves until then (blocks)."""
    goal = goal_positions(known.goal)
    before = known_view.before(known.version)
    if before is not None:
        for each, position in tracker_of(log, view, before).source_positions().items():
            if each[0] in known.topics:
                goal[each] = max(position, goal.get(each, 0))
    return goal


class ViewVersion:
    """One version of a view.

    :param retries: documents to be folded on.
    :param on_folded: called in the folding thread after something was written.
    :param declare: has it declared to all processes before anything is folded; blocks, and raises
        ConfigError where somebody has declared it otherwise.
    """

    def __init__(
        self,
        definition: ViewDefinition[Any],
        retries: RetryRequests,
        on_folded: Callable[[], None],
        declare: Callable[[ViewVersion], None],
    ) -> None:
        self.definition = definition
        self.retries = retries
        self._on_folded = on_folded
        self._declare = declare
        self._foreign = ForeignRecords()
        self._incarnations: Incarnations | None = None
        self.counts: dict[TopicPartition, PartitionCounts] = {}
        """Of the partitions that are folded here."""
        self.keyed_counts: dict[TopicPartition, PartitionCounts] = {}
        """Of the source partitions that are written by key here."""
        source: Any = definition.sources[0]
        if definition.is_keyed:
            declare_inline(
                definition,
                definition.keyed_topic,
                definition.sources,
                self._subscribe_keying,
                self.keyed_counts,
            )
            source = InternalTopic(definition.app, definition.keyed_topic, bytes)
        self._source = source
        self.processor = declare_inline(
            definition, definition.collection, (source,), self._subscribe_folding, self.counts
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Of its processors; the topic of a keyed version has the name of the second."""
        return self.definition.groups

    def check_declared(self, known: KnownViewVersion) -> None:
        """See that it is declared as it was first declared.

        :raises ConfigError: it is not.
        """
        definition = self.definition
        shape = definition.document_type.fingerprint
        check_declaration(definition.name, known, shape, definition.topics, definition.is_keyed)

    # -- folding

    def _partition_count(self, log: Log) -> int:
        """How many partitions its documents have, or are to have.

        :raises NotFound: a source is missing.
        """
        store = document_store(log, self.definition.where)
        try:
            return store.find(self.definition.collection).partitions
        except NotFound:
            return max(log.describe_topic(each).partitions for each in self.definition.topics)

    def _subscribe_keying(self, connection: Connection) -> InlineSubscription[Any]:
        log, definition = connection.log, self.definition
        count = ensure_keyed_topic(
            log, definition.keyed_topic, self._partition_count(log)
        ).partitions
        store = document_store(log, definition.where)
        return KeyingSubscription(
            log, store, self._incarnations_on(log), definition, self.keyed_counts, count
        )

    def _subscribe_folding(self, connection: Connection) -> InlineSubscription[Any]:
        log, definition = connection.log, self.definition
        store = document_store(log, definition.where)
        count = self._partition_count(log)
        if definition.is_keyed:
            count = ensure_keyed_topic(log, definition.keyed_topic, count).partitions
        store.create(definition.collection, count)
        self._declare(self)
        return FoldingSubscription(
            log,
            store,
            self._incarnations_on(log),
            definition.collection,
            self.counts,
            partial(self.new_folder, log),
            self.retries,
            self._on_folded,
            definition.keyed_topic if definition.is_keyed else "",
        )

    def new_folder(
        self,
        log: Log,
        partition: int,
        writer: DocumentWriter,
        incarnations: Incarnations,
        keep_alive: Callable[[], None] | None = None,
    ) -> PartitionFolder:
        """What folds a partition.

        :param incarnations: of the topics as they are now.
        :param keep_alive: called again and again while it reads the log; None: what it folds is
            for trial, repeats included.
        """
        definition = self.definition
        if not definition.is_keyed:
            repeats = None
            if keep_alive is not None:
                source = definition.topics[0], partition
                position = 0 if writer.checkpoint is None else writer.checkpoint.position
                repeats = definition.repeats(log, source, position, keep_alive)
            found = incarnations.known_incarnations(definition.topics)
            reader: Any = SourceReader(self._source.decoding, repeats, found)
        else:
            topic = definition.keyed_topic
            _, sources, before = decode_checkpoint(writer.checkpoint)
            before |= incarnations.known_incarnations((topic,))
            reader = KeyedReader(
                definition.decodings, self._foreign, sources, log.log_end_offset, topic, before
            )
        return PartitionFolder(definition, reader, writer)

    # -- reading

    def tracker(self, log: Log) -> VersionTracker:
        """How far it has come."""
        definition = self.definition
        return VersionTracker(
            log,
            document_store(log, definition.where),
            definition.collection,
            definition.topics,
            is_keyed=definition.is_keyed,
            incarnations=self._incarnations_on(log),
        )

    def _incarnations_on(self, log: Log) -> Incarnations:
        """Those of a log's topics as they are now, or were a moment ago: whoever folds here asks
        anew as soon as a partition is assigned."""
        if self._incarnations is None or self._incarnations.log is not log:
            self._incarnations = Incarnations(log)
        return self._incarnations

    def _if_current(self, log: Log, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """A checkpoint with which documents were read; None, too, where a keyed view's are made of
        a topic that is there no more: what this process knows of others is not known of them."""
        if checkpoint is None or not self.definition.is_keyed:
            return checkpoint
        before = decode_checkpoint(checkpoint).incarnations
        return None if self._incarnations_on(log).find_replaced(before) else checkpoint

    def partition_of(self, key: bytes, partitions: int) -> int | None:
        """The partition of a document; None: it may be in any."""
        return partition_for(key, "", partitions) if self.definition.places_keys else None

    def _document_collection(
        self, log: Log, partitions: int | None = None
    ) -> tuple[DocumentStore, str, int]:
        """Where its documents are: the store, their collection, and how many partitions it has.

        :param partitions: if they are known.
        :raises NotFound: there are none yet.
        """
        store, collection = document_store(log, self.definition.where), self.definition.collection
        count = store.find(collection).partitions if partitions is None else partitions
        return store, collection, count

    def read(self, log: Log, key: bytes, partitions: int | None = None) -> VersionDocument:
        """A document as it is now (blocks).

        :param partitions: of the documents; None: the log is asked.
        :raises DocumentStopped: it stands still.
        :raises NotFound: there are no documents of this version yet.
        """
        found = self.read_stored(log, key, partitions)
        return found._replace(document=self.decode_document(key, found.document))

    def read_stored(self, log: Log, key: bytes, partitions: int | None = None) -> VersionDocument:
        """A document as it is stored (blocks).

        :param partitions: of the documents; None: the log is asked.
        :raises NotFound: there are no documents of this version yet.
        """
        store, collection, count = self._document_collection(log, partitions)
        placed = self.partition_of(key, count)
        guess = partition_for(key, "", count) if placed is None else placed
        found = store.read(collection, guess, [key])
        partition = guess
        if placed is None and found.documents[0] is None:
            for other in range(count):
                if other != guess:
                    elsewhere = store.read(collection, other, [key])
                    if elsewhere.documents[0] is not None:
                        found, partition = elsewhere, other
                        break
        checkpoint = self._if_current(log, found.checkpoint)
        return VersionDocument(found.documents[0], partition, checkpoint)

    def read_many(
        self, log: Log, keys: Sequence[bytes], partitions: int | None = None
    ) -> VersionDocuments:
        """The documents of these keys; those that there are (blocks).

        :param partitions: of the documents; None: the log is asked.
        :raises DocumentStopped: one stands still.
        """
        store, collection, count = self._document_collection(log, partitions)
        by_partition: dict[int, list[bytes]] = {}
        for key in dict.fromkeys(keys):
            placed = self.partition_of(key, count)
            for partition in range(count) if placed is None else (placed,):
                by_partition.setdefault(partition, []).append(key)
        documents: dict[bytes, Any] = {}
        positions: dict[TopicPartition, int] = {}
        checkpoints: dict[int, Checkpoint | None] = {}
        for partition, wanted in by_partition.items():
            found = store.read(collection, partition, wanted)
            checkpoint = self._if_current(log, found.checkpoint)
            checkpoints[partition] = checkpoint
            _add_positions(positions, self.source_positions(partition, checkpoint))
            for key, stored in zip(wanted, found.documents, strict=True):
                document = self.decode_document(key, stored)
                if document is not None:
                    documents[key] = document
        return VersionDocuments(list(documents.items()), positions, checkpoints)

    def scan(
        self, log: Log, start: bytes, end: bytes | None, limit: int, *, with_positions: bool
    ) -> VersionDocuments:
        """The first documents in the order of their keys, without those that stand still
        (blocks).

        :param with_positions: say what of the sources they are made of, too.
        """
        store, collection, count = self._document_collection(log)
        pages = [
            _read_pages(partial(store.scan, collection, partition), start, end, min(limit, PAGE))
            for partition in range(count)
        ]
        documents: list[tuple[bytes, Any]] = []
        for key, stored in heapq.merge(*pages, key=lambda each: each.key):
            if stored.failure:
                continue
            document = self.decode_document(key, stored)
            if document is not None:
                documents.append((key, document))
                if len(documents) == limit:
                    break
        positions: dict[TopicPartition, int] = {}
        for partition in range(count) if with_positions else ():
            checkpoint = store.checkpoint(collection, partition)
            _add_positions(positions, self.source_positions(partition, checkpoint))
        return VersionDocuments(documents, positions, {})

    def decode_document(self, key: bytes, stored: StoredDocument | None) -> Any:
        """A document.

        :raises DocumentStopped: it stands still.
        """
        if stored is None:
            return None
        definition = self.definition
        if stored.failure:
            failure = decode_failure(stored.failure)
            raise DocumentStopped(definition.name, text(key), failure.position, failure.reason)
        if stored.value is None:
            return None
        try:
            return definition.document_type.decode(stored.value)
        except Exception as error:
            raise DocumentStopped(
                definition.name,
                text(key),
                "an unknown position",
                f"what is stored is no {type_name(definition.document_type.type)}: {error}",
                "fix the type of the documents, or rebuild them: streams views rebuild "
                f"{definition.name} --version {definition.version}",
            ) from error

    def source_positions(
        self, partition: int, checkpoint: Checkpoint | None
    ) -> dict[TopicPartition, int]:
        """Which events of the sources a partition's documents are made of: all before these."""
        if checkpoint is None:
            return {}
        definition = self.definition
        if not definition.is_keyed:
            return {(definition.sources[0].name, partition): checkpoint.position}
        sources = decode_checkpoint(checkpoint).sources
        return {parse_source(name): offset + 1 for name, (offset, _) in sources.items()}

    def all_counts(self) -> dict[TopicPartition, PartitionCounts]:
        """Figures of all partitions that are handled here."""
        return {**self.keyed_counts.copy(), **self.counts.copy()}


def _read_pages(
    scan: Callable[[bytes, bytes | None, int], Sequence[KeyedDocument]],
    start: bytes,
    end: bytes | None,
    limit: int,
) -> Iterable[KeyedDocument]:
    """The documents of a partition, page by page."""
    while page := scan(start, end, limit):
        yield from page
        start = page[-1].key + b"\x00"


def _add_positions(
    positions: dict[TopicPartition, int], others: Mapping[TopicPartition, int]
) -> None:
    """Keep the furthest of each."""
    for each, position in others.items():
        positions[each] = max(position, positions.get(each, 0))
