"""Documents on Kafka: compacted topics, one transactional writer a partition, and a local index.

====================  ========================================================================
``document_records``  topics and records, and which records count
``document_writer``   writing
``document_index``    what a collection holds, read from its topic and followed
``document_file``     the SQLite file in which that is kept
====================  ========================================================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from confluent_kafka import TopicPartition as KTopicPartition

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import AdminClient
from typing_extensions import override

from streams.errors import LogError, NotFound, TopicMismatch
from streams.log.documents import (
    Checkpoint,
    CollectionInfo,
    CollectionTotals,
    DocumentStore,
    FoundDocuments,
    KeyedDocument,
    check_partitions,
    collection_not_found,
    partition_not_found,
)
from streams.log.kafka.cache_file import IndexFileDamaged, IndexOf
from streams.log.kafka.document_file import open_document_file
from streams.log.kafka.document_index import DocumentIndex, IndexClosed
from streams.log.kafka.document_records import (
    COMPACTION_LAG,
    DELETE_RETENTION,
    SUFFIX,
    documents_topic,
)
from streams.log.kafka.document_writer import KafkaDocumentWriter, take_partition
from streams.log.kafka.durability import topic_config
from streams.log.kafka.index_consumer import HistoryGone
from streams.log.kafka.settings import MAX_MESSAGE_BYTES
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools
from streams.log.names import check_topic
from streams.log.protocol import Retention
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")

TOPIC_CONFIG = {
    # With "delete", and no retention, a partition that is cleared can be emptied at once.
    "cleanup.policy": "compact,delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "min.compaction.lag.ms": str(int(COMPACTION_LAG * 1000)),
    "delete.retention.ms": str(int(DELETE_RETENTION * 1000)),
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
}


class KafkaDocuments(DocumentStore):
    """The collections of one log. Usable from any thread."""

    def __init__(self, topics: Topics, tools: WriterTools) -> None:
        self._topics = topics
        self._readers = tools.readers
        self._requests = tools.requests
        self._tools = tools
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        """Held while an index is opened or replaced."""
        self._indexes: dict[str, DocumentIndex] = {}
        self._writers: set[KafkaDocumentWriter] = set()
        self._closed = False

    # -- collections

    @override
    def create(self, collection: str, partitions: int) -> CollectionInfo:
        topic = documents_topic(check_topic(collection))
        check_topic(topic)
        self._check_open()
        try:
            found = self.find(collection).partitions
        except NotFound:
            self._forget(collection)
            try:
                info = self._topics.create_topic(topic, partitions, Retention(), TOPIC_CONFIG)
            except TopicMismatch:  # somebody else was faster
                info = self._topics.describe_topic(topic)
            found = info.partitions
            if not info.retention.compacted and info.retention_known:
                raise TopicMismatch(
                    f"topic {topic!r} exists and is no collection of documents: it is not "
                    "compacted. Give the view another name, or set cleanup.policy=compact,delete "
                    "if nothing is in it"
                ) from None
        check_partitions(collection, found, partitions)
        return CollectionInfo(collection, found)

    @override
    def find(self, collection: str) -> CollectionInfo:
        self._check_open()
        topic = documents_topic(collection)
        try:
            count = len(self._readers.metadata.read(topic).partitions)
        except NotFound:
            raise collection_not_found(collection) from None
        # Where this user may not ask, the name has to do.
        if "compact" not in topic_config(self._requests, topic).get("cleanup.policy", "compact"):
            raise collection_not_found(collection)
        return CollectionInfo(collection, count)

    @override
    def list(self) -> Sequence[CollectionInfo]:
        self._check_open()
        return sorted(
            CollectionInfo(info.name.removesuffix(SUFFIX), info.partitions)
            for info in self._topics.list_topics(SUFFIX)
            if info.name != SUFFIX and (info.retention.compacted or not info.retention_known)
        )

    @override
    def delete(self, collection: str) -> None:
        count = self.find(collection).partitions
        self._forget(collection)
        self._topics.delete_topic(documents_topic(collection))
        # A topic of that name that is created later is another one, to which no writer of this one
        # may write.
        for partition in range(count):
            take_partition(self._tools, collection, partition)

    @override
    def clear(self, collection: str, partition: int) -> None:
        writer = self._claim(collection, partition)
        try:
            offset = writer.clear()
            self._using(collection, partition, lambda index: index.checkpoint(partition))
        finally:
            writer.close()
        # It is cleared. What does not count any more need not be kept either.
        topic = documents_topic(collection)
        wanted = [KTopicPartition(topic, partition, offset)]
        operation = f"deleting obsolete records of {topic}/{partition}"
        try:
            self._requests.run_admin(operation, AdminClient.delete_records, wanted)
        except LogError as error:
            logger.info("%s", error)

    @override
    def totals(self, collection: str) -> CollectionTotals:
        def count(index: DocumentIndex) -> tuple[int, int]:
            return index.on_file(partition, lambda file: file.count(partition))

        documents = stopped = 0
        for partition in range(self._index(collection).count):
            documents_here, stopped_here = self._using(collection, partition, count)
            documents, stopped = documents + documents_here, stopped + stopped_here
        return CollectionTotals(documents, stopped)

    # -- one partition

    @override
    def claim(self, collection: str, partition: int) -> KafkaDocumentWriter:
        return self._claim(collection, partition)

    def _claim(self, collection: str, partition: int) -> KafkaDocumentWriter:
        self._check_partition(self._index(collection), partition)
        producer = take_partition(self._tools, collection, partition)
        writer = self._using(
            collection,
            partition,
            lambda index: KafkaDocumentWriter(
                self._tools, index, partition, producer, self._forget_writer
            ),
        )
        with self._lock:
            if not self._closed:
                self._writers.add(writer)
                return writer
        writer.close()
        raise LogError("Kafka: this log is closed")

    def _forget_writer(self, writer: KafkaDocumentWriter) -> None:
        with self._lock:
            self._writers.discard(writer)

    @override
    def read(self, collection: str, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        return self._using(collection, partition, lambda index: index.read(partition, keys))

    @override
    def checkpoint(self, collection: str, partition: int) -> Checkpoint | None:
        return self._using(collection, partition, lambda index: index.checkpoint(partition))

    @override
    def scan(
        self, collection: str, partition: int, start: bytes, end: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        return self._using(
            collection,
            partition,
            lambda index: index.on_file(
                partition, lambda file: file.scan(partition, start, end, limit)
            ),
        )

    @override
    def stopped(
        self, collection: str, partition: int, after: bytes | None, limit: int
    ) -> Sequence[KeyedDocument]:
        return self._using(
            collection,
            partition,
            lambda index: index.on_file(
                partition, lambda file: file.stopped(partition, after, limit)
            ),
        )

    # -- indexes

    def _check_open(self) -> None:
        if self._closed:
            raise LogError("Kafka: this log is closed")

    @staticmethod
    def _check_partition(index: DocumentIndex, partition: int) -> None:
        if not 0 <= partition < index.count:
            raise partition_not_found(index.collection, partition, index.count)

    def _using(self, collection: str, partition: int, use: Callable[[DocumentIndex], T]) -> T:
        """The result of ``use``, called with the index; with a new one if it is unusable."""
        index = self._index(collection)
        self._check_partition(index, partition)
        try:
            return use(index)
        except (IndexFileDamaged, HistoryGone) as error:
            if index.error is None:
                logger.error("%s; rebuilding the index", error)
            index.fail(error)
        except (IndexClosed, NotFound):  # nobody had used it, or its topic is gone
            index.fail(IndexClosed(f"Kafka: the documents {collection!r} are no longer followed"))
        index = self._index(collection)
        self._check_partition(index, partition)
        return use(index)

    def _index(self, collection: str) -> DocumentIndex:
        """The index of a collection; a new one where the last one has failed.

        :raises NotFound: there is no such collection.
        """
        found = self._indexes.get(collection)
        if found is not None and found.error is None:
            return found
        with self._opening:
            found = self._indexes.get(collection)
            if found is not None and found.error is None:
                return found
            if found is not None:
                if isinstance(found.error, NotFound):
                    self._readers.metadata.forget(found.topic)  # what was known of it is wrong
                self._drop(found)
            index = self._open(collection)
            with self._lock:
                if not self._closed:
                    self._indexes[collection] = index
                    return index
            index.close()
            raise LogError("Kafka: this log is closed")

    def _open(self, collection: str) -> DocumentIndex:
        count = self.find(collection).partitions
        topic = documents_topic(collection)
        folder = self._requests.settings.event_index
        identity = self._topics.topic_id(topic)
        file = open_document_file(folder, IndexOf(topic, identity, count))

        def was_replaced() -> bool | None:
            return self._topics.topic_id(topic) != identity if identity else None

        return DocumentIndex(
            collection, topic, count, self._readers, file, was_replaced, self._drop
        )

    def _drop(self, index: DocumentIndex) -> None:
        """Use an index no more."""
        with self._lock:
            if self._indexes.get(index.collection) is index:
                del self._indexes[index.collection]
        index.close()

    def _forget(self, collection: str) -> None:
        """A collection is deleted, or was."""
        with self._lock:
            index = self._indexes.pop(collection, None)
        if index is not None:
            index.discard()

    def close(self) -> None:
        """Write and follow nothing any more."""
        with self._lock:
            self._closed = True
            writers, indexes = list(self._writers), list(self._indexes.values())
            self._indexes = {}
        for writer in writers:
            writer.close()
        for index in indexes:
            index.close()
