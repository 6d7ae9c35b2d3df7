"""Writing a partition of documents: one transaction a write, by a producer of the partition's own.

The producer's ``transactional.id`` is made of the collection and the partition. Whoever claims the
partition initializes that: from then on the brokers refuse the former writer, whatever it was
about, and what it had left open is aborted. What it committed before is seen, as the partition is
read to its end only then.

A write is documents and, last, the checkpoint, in one transaction. Until the driver is told to
commit, nothing of it can count, so every error before means that nothing was written. Where a
commit is answered with "fenced", it may be the second try of one that was carried out: then the log
is asked whether the checkpoint's record stands there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, Producer
from typing_extensions import override

from streams.errors import Fenced, LogError, NotFound, OutcomeUnknown, TooLarge, Unavailable
from streams.log.documents import (
    Checkpoint,
    DocumentChange,
    DocumentWriter,
    StoredDocument,
    fenced,
)
from streams.log.kafka.document_index import DocumentIndex
from streams.log.kafka.document_records import (
    CHECKPOINT_KEY,
    DriverHeaders,
    checkpoint_record,
    document_record,
    documents_topic,
    record_key,
)
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.transactions import (
    BEGIN_TIMEOUT,
    FENCED,
    GONE,
    RAISED,
    RecordFailure,
    WriterTools,
    abort,
    aborting,
)

WRITE_TIMEOUT = 20.0
"""Seconds that a write may take: longer than the broker lets a transaction be open."""

_FLUSH_SLICE = 0.1
"""Seconds after which it is seen whether a record has failed."""

_RETRY_PAUSE = 0.05
"""Seconds until a commit that was not answered is tried again."""

_FULL_PAUSE = 0.01
"""Seconds that the driver gets to make room in its queue."""


def take_partition(tools: WriterTools, collection: str, partition: int) -> Producer:
    """Become the one writer of a partition: whoever was is fenced. Of those that claim it at the
    same time the brokers refuse all but the last: the others claim it again.

    :raises LogError: that cannot be now.
    """
    topic = documents_topic(collection)
    config = tools.requests.settings.transaction_config(f"{topic}-{partition}")
    operation = f"claiming the documents {collection!r}, partition {partition}"
    deadline = time.monotonic() + BEGIN_TIMEOUT
    while True:
        try:
            return tools.make_producer(config, topic, operation)
        except Fenced as error:
            if time.monotonic() > deadline:
                raise Unavailable(str(error)) from error


class KafkaDocumentWriter(DocumentWriter):
    """The writer of one partition.

    :param producer: that was initialized.
    :param on_closed: is told once.
    """

    def __init__(
        self,
        tools: WriterTools,
        index: DocumentIndex,
        partition: int,
        producer: Producer,
        on_closed: Callable[[KafkaDocumentWriter], None],
    ) -> None:
        self._tools = tools
        self._index = index
        self._partition = partition
        self._producer: Producer | None = producer
        self._on_closed = on_closed
        self._closing = threading.Lock()
        self._topic = documents_topic(index.collection)
        self._operation = f"writing the documents {index.collection!r}, partition {partition}"
        self._failure = RecordFailure()
        """If there is one, its transaction is to be aborted."""
        self._offset = -1
        """The offset of the last checkpoint that this writer has written."""
        _, end = tools.readers.bounds(self._topic, partition)
        state = index.wait_until(partition, end).state
        self._number, self._cleared = state.number, state.cleared
        self._origin = state.origin or uuid4().hex[:12].encode()
        self._checkpoint = state.checkpoint
        index.add_writer()

    @property
    @override
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @override
    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        self._usable_producer()
        return self._index.read(self._partition, keys).documents

    @override
    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        self._write(changes, self._cleared, checkpoint)

    def clear(self) -> int:
        """Delete all documents and the checkpoint; at which offset that is said."""
        self._write((), self._number + 1, None)
        return self._offset

    def _write(
        self, changes: Sequence[DocumentChange], cleared: int, checkpoint: Checkpoint | None
    ) -> None:
        producer = self._usable_producer()
        deadline = time.monotonic() + WRITE_TIMEOUT
        number = self._number + 1
        try:
            # Until it is told to commit, nothing of it counts.
            with aborting(producer, self._operation, self._failure, self._translate):
                producer.begin_transaction()
                self._produce(producer, number, changes, deadline)
                value, headers = checkpoint_record(number, cleared, self._origin, checkpoint)
                self._send(
                    producer, CHECKPOINT_KEY, value, headers, self._checkpoint_written, deadline
                )
                # Records behind a failed one would otherwise wait until they time out.
                while producer.flush(_FLUSH_SLICE) and self._failure.error is None:
                    self._check_time(deadline)
                    self._check_index()
            self._commit(producer, deadline)
        except BaseException:
            self.close()
            raise
        self._number, self._cleared, self._checkpoint = number, cleared, checkpoint
        self._index.show_until(self._partition, self._offset + 1)

    def _usable_producer(self) -> Producer:
        index, partition = self._index, self._partition
        try:
            self._check_index()
            overtaken = index.has_passed(partition, self._offset + 1, self._number)
        except LogError:
            self.close()
            raise
        producer = self._producer
        if producer is None:
            raise LogError(
                f"Kafka, {self._operation}: this writer is closed, or has failed: claim the "
                "partition again"
            )
        if overtaken:
            self.close()
            raise fenced(index.collection, partition)
        return producer

    def _check_index(self) -> None:
        """See that the collection is still there, and known here.

        :raises Fenced: it was deleted.
        """
        try:
            self._index.check()
        except NotFound as error:
            raise self._deleted_error() from error

    def _deleted_error(self) -> Fenced:
        return Fenced(
            f"documents {self._index.collection!r}, partition {self._partition}: they were deleted"
        )

    # -- one transaction

    def _produce(
        self, producer: Producer, number: int, changes: Sequence[DocumentChange], deadline: float
    ) -> None:
        for key, document in changes:
            value, headers = document_record(number, document)
            self._send(producer, record_key(key), value, headers, self._written, deadline)

    def _send(
        self,
        producer: Producer,
        key: bytes,
        value: bytes | None,
        headers: DriverHeaders,
        on_delivery: Callable[[KafkaError | None, Any], None],
        deadline: float,
    ) -> None:
        while True:
            try:
                producer.produce(
                    self._topic, value, key, self._partition, on_delivery, None, 0, headers
                )
            except BufferError:
                self._check_time(deadline)
                producer.poll(_FULL_PAUSE)
            else:
                return

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Unavailable(f"Kafka, {self._operation}: the brokers did not take it")

    def _written(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failure.note(error)

    def _checkpoint_written(self, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._offset = message.offset()
        else:
            self._failure.note(error)

    def _translate(self, raised: KafkaException | KafkaError) -> LogError:
        """The error for what was not written."""
        error = kafka_error_of(raised)
        collection, partition = self._index.collection, self._partition
        code = None if error is None else error.code()
        if code in FENCED:
            return fenced(collection, partition)
        if code in GONE:
            return self._deleted_error()
        translated = self._tools.requests.settings.translate(raised, self._operation)
        if isinstance(translated, TooLarge):
            return TooLarge(f"{translated}; the topic's max.message.bytes limits a document")
        if isinstance(translated, LogError) and not isinstance(translated, OutcomeUnknown):
            return translated
        return Unavailable(str(translated))

    def _commit(self, producer: Producer, deadline: float) -> None:
        while True:
            try:
                producer.commit_transaction(max(0.1, deadline - time.monotonic()))
            except RAISED as raised:
                error = kafka_error_of(raised)
                if error is not None and error.txn_requires_abort():
                    abort(producer, self._operation)
                    raise self._translate(raised) from raised
                if error is not None and error.retriable() and time.monotonic() < deadline:
                    time.sleep(_RETRY_PAUSE)
                    continue
                translated = self._translate(raised)
                if isinstance(translated, Fenced) and not self._was_committed():
                    raise translated from raised
                if isinstance(translated, Fenced):
                    return  # the next write is refused
                raise OutcomeUnknown(
                    f"{translated}; whether it was written is not known: claim the partition again"
                ) from raised
            else:
                return

    def _was_committed(self) -> bool:
        """Whether the write stands in the log, in spite of all.

        :raises OutcomeUnknown: this cannot be found out.
        """
        try:
            reader = self._tools.readers.open_reader(
                self._topic, self._partition, self._offset, self._offset + 1
            )
            try:
                return reader.read(1) is not None
            finally:
                reader.close()
        except LogError as error:
            raise OutcomeUnknown(
                f"Kafka, {self._operation}: another process claimed the partition meanwhile, and "
                f"whether this write was before that is not known: {error}"
            ) from error

    @override
    def close(self) -> None:
        with self._closing:
            producer, self._producer = self._producer, None
        if producer is not None:
            self._index.remove_writer()
            self._on_closed(self)
