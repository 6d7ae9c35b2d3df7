"""Writing one snapshot of an index (:mod:`.index_snapshot`): one transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import LogError, Unavailable
from streams.log.kafka.document_records import DriverHeaders
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.index_snapshot import (
    FORMAT,
    SNAPSHOT,
    IndexCopying,
    SnapshotEnd,
    SnapshotOf,
    SnapshotRecord,
    checksum,
    end_record,
    index_topic,
)
from streams.log.kafka.partition_index import PartitionIndex
from streams.log.kafka.transactions import FENCED, GONE, PURGED, RAISED, WriterTools, abort

COMMIT_TIMEOUT = 30.0
"""Seconds in which the brokers confirm the last records, and the transaction."""

_MAX_UNCONFIRMED = 32
"""Records that the brokers have not confirmed yet, at most: some 16 MiB."""

_POLL = 0.05
"""Seconds that is waited at a time for what the brokers say."""


class GivenUp(LogError):
    """No snapshot is written, and nothing is wrong."""


class SnapshotWriter:
    """Writes one snapshot.

    :param producer: that was initialized, of the partition's ``transactional.id``.
    :param lock: guards the index.
    :param is_closed: the writing is given up.
    """

    def __init__(
        self,
        tools: WriterTools,
        producer: Producer,
        of: SnapshotOf,
        index: PartitionIndex,
        lock: threading.Lock,
        is_closed: Callable[[], bool],
    ) -> None:
        self._tools = tools
        self._producer = producer
        self._of = of
        self._index = index
        self._lock = lock
        self._is_closed = is_closed
        self._topic = index_topic(of.topic)
        self._operation = f"writing a snapshot of the index of {of.topic}/{index.partition}"
        self._headers: DriverHeaders = [(SNAPSHOT, uuid4().hex.encode())]
        self._count = 0
        self._checksum = 0
        self._first = -1
        """Offset of the first record, once it is confirmed."""
        self._unconfirmed = 0
        self._failure: KafkaError | None = None
        """Why a record was not written."""

    def write(self) -> SnapshotEnd:
        """Write it; what its last record says.

        :raises GivenUp: somebody else writes one, or the index is used no more.
        :raises LogError: it was not written.
        """
        try:
            self._producer.begin_transaction()
            end = self._send_all()
            self._wait_confirmed(0)
            self._producer.commit_transaction(COMMIT_TIMEOUT)
        except RAISED as error:
            abort(self._producer, self._operation)
            raise self._translate(error) from error
        except SystemError as error:
            # The driver's, where it raises a fatal error and goes on to report a delivery (2.16).
            fatal = abort(self._producer, self._operation)
            if fatal is None:
                raise
            raise self._translate(fatal) from error
        except BaseException:
            abort(self._producer, self._operation)
            raise
        return end

    def _translate(self, raised: KafkaException | KafkaError) -> LogError:
        error = kafka_error_of(raised)
        # Once a record has failed the driver takes no other, and does not say why: its report does.
        if self._failure is not None and error is not None and error.code() == KafkaError._STATE:
            error = self._failure
        if error is not None and error.code() in FENCED:
            return GivenUp("another process writes one")
        if error is not None and error.code() in GONE:
            return GivenUp("the topic was deleted")
        settings = self._tools.requests.settings
        return LogError(str(settings.translate(error or raised, self._operation)))

    # -- what is written

    def _send_all(self) -> SnapshotEnd:
        copying = IndexCopying(self._index, self._lock)
        with closing(copying.records()) as records:
            for record in records:
                self._check_open()
                self._wait_confirmed(_MAX_UNCONFIRMED)
                self._count, self._checksum = self._count + 1, checksum(record, self._checksum)
                self._produce(record)
        self._wait_confirmed(0)  # where the first of them stands is known then
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
        self._produce(end_record(end))
        return end

    # -- the producer

    def _produce(self, record: SnapshotRecord) -> None:
        self._producer.produce(
            self._topic,
            record.value,
            record.key,
            self._index.partition,
            self._delivered,
            None,
            0,
            self._headers,
        )
        self._unconfirmed += 1

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        self._unconfirmed -= 1
        if error is None:
            offset = message.offset()
            self._first = offset if self._first < 0 else min(self._first, offset)
        elif self._failure is None or self._failure.code() in PURGED:
            self._failure = error

    def _wait_confirmed(self, most: int) -> None:
        """Wait until at most so many records are not confirmed."""
        deadline = time.monotonic() + COMMIT_TIMEOUT
        while self._unconfirmed > most:
            self._check_open()
            if time.monotonic() > deadline:
                raise Unavailable(f"Kafka, {self._operation}: the brokers did not take it")
            before = self._unconfirmed
            self._producer.poll(_POLL)
            if self._unconfirmed < before:
                deadline = time.monotonic() + COMMIT_TIMEOUT
        if self._failure is not None:
            raise KafkaException(self._failure)

    def _check_open(self) -> None:
        if self._is_closed():
            raise GivenUp("the index is used no more")
