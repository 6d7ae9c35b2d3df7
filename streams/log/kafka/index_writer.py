"""Writing one snapshot of an index (:mod:`.index_records`): one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import LogError, NotFound, Unavailable
from streams.log.kafka.document_records import DriverHeaders
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.index_records import (
    FORMAT,
    SNAPSHOT,
    IndexCopying,
    SnapshotEnd,
    SnapshotOf,
    SnapshotRecord,
    checksum,
    end_record,
    index_topic_name,
)
from streams.log.kafka.transactions import FENCED, GONE, RecordFailure, WriterTools, aborting

COMMIT_TIMEOUT = 30.0
"""Seconds in which the brokers confirm the last records, and the transaction."""

_MAX_UNCONFIRMED = 32
"""Records that the brokers have not confirmed yet, at most: some 16 MiB."""

_POLL = 0.05
"""Seconds that is waited at a time for what the brokers say."""


class GivenUp(LogError):
    """No snapshot is written, and nothing is wrong."""


class IndexWriter:
    """Writes one snapshot of a partition's index.

    :param timeout: seconds after which the brokers end its transaction.
    :param check_open: raises :class:`GivenUp` if the writing is to be given up.
    """

    def __init__(
        self,
        tools: WriterTools,
        of: SnapshotOf,
        partition: int,
        timeout: float,
        check_open: Callable[[], None],
    ) -> None:
        self._settings = tools.requests.settings
        self._of = of
        self._partition = partition
        self._timeout = timeout
        self._check_open = check_open
        self._topic = index_topic_name(of.topic)
        self._operation = f"writing a snapshot of the index of {of.topic}"
        self._headers: DriverHeaders = [(SNAPSHOT, uuid4().hex.encode())]
        self._count = 0
        self._checksum = 0
        self._first = -1
        """Offset of the first record, once it is confirmed."""
        self.last_offset = -1
        """The offset of the last confirmed record."""
        self._unconfirmed = 0
        self._failure = RecordFailure()
        self._began = 0.0
        """When its transaction did (monotonic time)."""

    def write(self, producer: Producer, copying: IndexCopying) -> SnapshotEnd:
        """Write it; what its last record says.

        :param producer: that was initialized, of the partition's ``transactional.id``.
        :raises GivenUp: somebody else writes one, or the index is used no more.
        :raises LogError: it was not written.
        """
        self._began = time.monotonic()
        with aborting(producer, self._operation, self._failure, self._translate):
            producer.begin_transaction()
            end = self._send_all(producer, copying)
            self._wait_confirmed(producer, 0)
            producer.commit_transaction(COMMIT_TIMEOUT)
        return end

    def _translate(self, raised: KafkaException | KafkaError) -> LogError:
        """The error for what was not written."""
        error = kafka_error_of(raised)
        code = None if error is None else error.code()
        if code in FENCED:
            if time.monotonic() < self._began + self._timeout:
                return GivenUp("another process writes one")
            return LogError(
                f"Kafka, {self._operation}: it was not written within {self._timeout:g} s, so the "
                "brokers have ended its transaction"
            )
        if code in GONE:
            return NotFound(f"{self._topic} was deleted")
        return LogError(str(self._settings.translate(raised, self._operation)))

    def _send_all(self, producer: Producer, copying: IndexCopying) -> SnapshotEnd:
        with closing(copying.records()) as records:
            for record in records:
                self._wait_confirmed(producer, _MAX_UNCONFIRMED)
                self._count, self._checksum = self._count + 1, checksum(record, self._checksum)
                self._produce(producer, record)
        self._wait_confirmed(producer, 0)  # where the first of them stands is known then
        end = SnapshotEnd(
            FORMAT,
            self._of.topic_id,
            self._of.partitions,
            self._first,
            self._count,
            self._checksum,
            copying.buckets,
            copying.state,
        )
        self._produce(producer, end_record(end))
        return end

    def _produce(self, producer: Producer, record: SnapshotRecord) -> None:
        key, value = record
        arguments = (value, key, self._partition, self._delivered, None, 0, self._headers)
        while True:
            try:
                producer.produce(self._topic, *arguments)
            except BufferError:
                self._wait_confirmed(producer, self._unconfirmed - 1)
            else:
                self._unconfirmed += 1
                return

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        self._unconfirmed -= 1
        if error is None:
            offset = message.offset()
            self._first = offset if self._first < 0 else min(self._first, offset)
            self.last_offset = max(offset, self.last_offset)
        else:
            self._failure.note(error)

    def _wait_confirmed(self, producer: Producer, most: int) -> None:
        """Wait until at most so many records are not confirmed."""
        deadline = time.monotonic() + COMMIT_TIMEOUT
        while self._unconfirmed > most:
            self._check_open()
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka, {self._operation}: the brokers did not take it")
            before = self._unconfirmed
            producer.poll(_POLL)
            if self._unconfirmed < before:
                deadline = time.monotonic() + COMMIT_TIMEOUT
        if self._failure.error is not None:
            raise KafkaException(self._failure.error)
