"""Shared by the writers of transactions: how their producers start, and how they fail.

A transactional producer is known to the brokers by its ``transactional.id``. Initializing a
producer with that ID fences the one before, and aborts the transaction that it left open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import Fenced
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.reader import ReaderPool
from streams.text import get_logger

logger = get_logger("streams.kafka")

BEGIN_TIMEOUT = 30.0
"""Seconds that the initialization of a producer may take: a former one's transaction is aborted
first."""

ABORT_TIMEOUT = 5.0

FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        90,  # PRODUCER_FENCED, which the driver's package does not name
    }
)
"""Another producer of the same ID was initialized, or the brokers have given this one up."""

GONE = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
"""The topic is no more."""

PURGED = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
    }
)
"""A record was not written because its transaction was aborted, for another reason."""

# The driver (2.16) raises a fatal error from flush as a KafkaError, which is no Exception.
RAISED: Any = (KafkaException, KafkaError)

Connect = Callable[[dict[str, Any]], Producer]


def initialized_producer(
    connect: Connect, requests: RequestRetry, config: dict[str, Any], topic: str, operation: str
) -> Producer:
    """A producer whose transactions may begin: whoever had its ID is fenced.

    :param topic: one that it will write to.
    :raises Fenced: another one was initialized at the same time, after it.
    :raises LogError: that cannot be now.
    """
    settings, began = requests.settings, time.monotonic()
    producer = connect(config)
    while True:
        try:
            # Without a connection the driver (2.16) would wait for half a second.
            producer.list_topics(topic, REQUEST_TIMEOUT)
            producer.init_transactions(REQUEST_TIMEOUT)
        except RAISED as error:
            found = kafka_error_of(error)
            if found is not None and found.retriable():
                if time.monotonic() < began + BEGIN_TIMEOUT:
                    continue
                raise requests.no_answer_error(operation, began) from None
            if found is not None and found.code() in FENCED:
                raise Fenced(f"Kafka, {operation}: another process did so meanwhile") from None
            raise settings.translate(error, operation) from None
        return producer


class WriterTools(NamedTuple):
    """The tools that the transactional writers of one log share.

    :param connect: makes a producer.
    """

    connect: Connect
    requests: RequestRetry
    readers: ReaderPool

    def make_producer(self, config: dict[str, Any], topic: str, operation: str) -> Producer:
        """See :func:`initialized_producer`."""
        return initialized_producer(self.connect, self.requests, config, topic, operation)


def abort(producer: Producer, operation: str) -> KafkaError | None:
    """Abort the open transaction, and have what is known of its records reported; why that cannot
    be."""
    try:
        producer.abort_transaction(ABORT_TIMEOUT)
    except RAISED as error:
        logger.debug("%s: aborting: %s", operation, error)
        return kafka_error_of(error)
    # Once a record has failed the driver takes no other, and does not say why: its report does.
    with suppress(*RAISED, SystemError):
        producer.poll(0)
    return None


class RecordFailure:
    """Why a record of a transaction was not written: the first reason that is not a consequence of
    another one."""

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """A record was not written."""
        if self.error is None or self.error.code() in PURGED:
            self.error = error


@contextmanager
def aborting(
    producer: Producer,
    operation: str,
    failure: RecordFailure,
    translate: Callable[[KafkaException | KafkaError], Exception],
) -> Iterator[None]:
    """Abort the open transaction if something goes wrong in here.

    :param failure: of its records.
    :param translate: gives the error that is raised for one of the driver's.
    """
    try:
        yield
    except RAISED as error:
        unaborted = abort(producer, operation)
        found = kafka_error_of(error)
        # Once a record or the producer has failed the driver takes no other record, and does not
        # say why: the report of the record does, or the abort, which cannot be.
        unsaid = {
            KafkaError._STATE: failure.error or unaborted,
            KafkaError._FATAL: unaborted or failure.error,
        }
        why = None if found is None else unsaid.get(found.code())
        raise translate(why or error) from error
    except SystemError as error:
        # The driver's, where it raises a fatal error and goes on to report a delivery (2.16).
        fatal = abort(producer, operation)
        if fatal is None:
            raise
        raise translate(fatal) from error
    except BaseException:
        abort(producer, operation)
        raise


def drop_in_background(producer: Producer) -> None:
    """Let go of a producer that may be broken, without waiting until it has ended."""
    held = [producer]
    threading.Thread(target=held.clear, name="streams-kafka-close", daemon=True).start()
