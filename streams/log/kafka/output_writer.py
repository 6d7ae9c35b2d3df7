"""An exactly-once processor's transactions: records and its group's offsets, all or nothing.

One transactional producer a member. Each call of :meth:`OutputWriter.write` is one transaction:
records, then the offsets under the member's group metadata (KIP-447), then the commit. The
coordinator refuses the offsets of a member that was expelled, or of a former group epoch; what it
does not see, that a live member names a partition that it no longer owns, is seen to by the
subscription, which writes only from the thread that is told what is owned.

Until the driver is told to commit, nothing of a transaction can count. So every error before means
that nothing was stored: it is aborted, or, where the producer is broken, aborted when the next one
of its ID begins, or by the brokers when its time is up. Where the commit itself gets no answer, or
one that says that the producer was fenced, nobody knows (:class:`OutcomeUnknown`), and a reader of
the group's offsets waits until the brokers do.

The producer's ID is the group's name and the member's own if that is static, so that a restart ends
what it has left open at once; else a random one, and the brokers do that within
``transaction.timeout.ms``, which is less than a session. A producer that was fenced is followed by
one of a random ID: under a static member's name, another process may have taken over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import Fenced, LogError, NotFound, OutcomeUnknown, TooLarge, Unavailable
from streams.log.events import events_only
from streams.log.kafka.client import RequestRetry, learns_partition
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.topics import Metadata
from streams.log.kafka.transactions import (
    FENCED,
    GONE,
    RAISED,
    Connect,
    abort,
    drop_in_background,
    initialized_producer,
)
from streams.log.names import partition_for
from streams.log.protocol import OutputsRefused
from streams.message import ID, Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

COMMIT_TIMEOUT = 30.0
"""Seconds for which an answer to a commit is waited for."""

CLOSE_LOOK = 60.0
"""Seconds for which each record is sent by itself, once a batch of them was too large."""

CLOSE_LOOK_RECORDS = 500
"""Records of a transaction meanwhile, at most: each is a request of its own, and all must be
acknowledged in time."""

_FLUSH_SLICE = 0.1
"""Seconds after which it is seen whether a record has failed."""

_RETRY_PAUSE = 0.02
"""Seconds until what was not answered is tried again."""

_FULL_PAUSE = 0.01
"""Seconds that the driver gets to make room in its queue."""

_NOT_OURS = frozenset(
    {
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)
"""The coordinator's answers where the group has gone on without this member, or is about to."""

_TOO_LARGE = frozenset(
    {
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
    }
)


class _Failures:
    """How records of one transaction have failed."""

    __slots__ = ("errors",)

    def __init__(self) -> None:
        self.errors: dict[int, KafkaError] = {}
        """By index."""


class _Report(msgspec.Struct, gc=False):
    """The driver's callback for a record that has failed."""

    failures: _Failures
    index: int

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self.failures.errors[self.index] = error


class OutputWriter:
    """Writes the transactions of one member. Used by the thread that polls.

    :param connect: makes a producer.
    :param refuses_records: whether a topic takes nothing but appends to histories.
    :param session_timeout: of the member, in seconds.
    :param member_name: its name, if it is static.
    """

    def __init__(
        self,
        connect: Connect,
        requests: RequestRetry,
        metadata: Metadata,
        refuses_records: Callable[[str], bool],
        group: str,
        session_timeout: float,
        member_name: str,
    ) -> None:
        self._connect = connect
        self._requests = requests
        self._settings = requests.settings
        self._metadata = metadata
        self._refuses_records = refuses_records
        self._session_timeout = session_timeout
        self._id = f"{group}.{member_name or uuid4().hex}"
        self._group = group
        self._operation = f"a transaction of group {group!r}"
        self._producer: Producer | None = None
        self._timeout = 0.0
        """Seconds that a transaction may be open."""
        self._close_look_until = float("-inf")
        self._looks_closely = False
        """Each record is a batch of its own."""

    def begin(self, topic: str) -> None:
        """Be ready to write: what a former process of this static member has left open ends now.

        :param topic: one that is there.
        :raises Unavailable: it cannot be reached.
        """
        self._usable_producer(topic)

    def write(
        self,
        outputs: Sequence[tuple[str, Record]],
        offsets: Sequence[KTopicPartition],
        group_metadata: Callable[[], object],
    ) -> None:
        """Store records and offsets; see :meth:`~streams.log.protocol.Subscription.commit_outputs`.

        :param group_metadata: the member's, as it is now.
        """
        topics = {topic for topic, _ in outputs}
        counts = {topic: self._metadata.partition_count(topic) for topic in topics}
        histories = {topic for topic in counts if self._refuses_records(topic)}
        if histories:
            raise OutputsRefused(
                {
                    at: events_only(topic, "published to")
                    for at, (topic, _) in enumerate(outputs)
                    if topic in histories
                }
            )
        any_topic = next(iter(counts), offsets[0].topic)
        producer = self._usable_producer(any_topic)
        deadline = time.monotonic() + self._timeout
        failures = _Failures()
        try:
            self._begin(producer)
            self._produce(producer, outputs, counts, failures, deadline)
            self._flush(producer, failures, deadline)
            self._send_offsets(producer, list(offsets), group_metadata, deadline)
        except BaseException as raised:
            error = self._not_stored(producer, raised, failures, outputs)
            if error is raised:
                raise
            raise error from raised
        self._commit(producer)

    @property
    def limit(self) -> int | None:
        """See :attr:`~streams.log.protocol.Subscription.outputs_limit`."""
        return CLOSE_LOOK_RECORDS if time.monotonic() < self._close_look_until else None

    # -- the producer

    def _usable_producer(self, topic: str) -> Producer:
        looks_closely = time.monotonic() < self._close_look_until
        if looks_closely != self._looks_closely:
            self._drop()
            self._looks_closely = looks_closely
        if self._producer is None:
            config = self._settings.output_config(self._id, self._session_timeout)
            if looks_closely:
                config["batch.num.messages"] = 1
            self._timeout = config["transaction.timeout.ms"] / 1000
            try:
                self._producer = initialized_producer(
                    self._connect, self._requests, config, topic, self._operation
                )
            except Fenced:
                self._was_fenced()
                return self._usable_producer(topic)
        return self._producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            drop_in_background(producer)

    def _was_fenced(self) -> None:
        """Another process may have the ID by now: it is left alone."""
        self._id = f"{self._group}.{uuid4().hex}"
        self._drop()

    def close(self) -> None:
        """Write nothing more."""
        self._drop()

    # -- one transaction

    def _begin(self, producer: Producer) -> None:
        producer.begin_transaction()

    def _produce(
        self,
        producer: Producer,
        outputs: Sequence[tuple[str, Record]],
        counts: Mapping[str, int],
        failures: _Failures,
        deadline: float,
    ) -> None:
        produce, looked = producer.produce, set[str]()
        for index, (topic, record) in enumerate(outputs):
            key, partition = record.key, record.partition
            if partition is None:
                partition = -1 if key is not None else partition_for(None, record.id, counts[topic])
            headers: Any = [(ID, record.id.encode("utf-8", "surrogateescape")), *record.headers]
            report = _Report(failures, index)
            while True:
                try:
                    produce(topic, record.value, key, partition, report, None, 0, headers)
                except BufferError:
                    self._check_time(deadline)
                    producer.poll(_FULL_PAUSE)
                except KafkaException as raised:
                    place = topic, partition
                    if topic not in looked and learns_partition(
                        producer, raised, place, counts[topic]
                    ):
                        looked.add(topic)
                        continue
                    error = kafka_error_of(raised)
                    if error is None or error.code() not in _TOO_LARGE:
                        raise
                    failures.errors[index] = error  # the driver's own limit
                    break
                else:
                    break

    def _flush(self, producer: Producer, failures: _Failures, deadline: float) -> None:
        # Records behind a failed one would otherwise wait until they time out.
        while not failures.errors and producer.flush(_FLUSH_SLICE):
            self._check_time(deadline)
        if failures.errors:
            # Others of their batches are reported with them.
            producer.poll(0)
            raise KafkaException(next(iter(failures.errors.values())))

    def _send_offsets(
        self,
        producer: Producer,
        offsets: list[KTopicPartition],
        group_metadata: Callable[[], object],
        deadline: float,
    ) -> None:
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                producer.send_offsets_to_transaction(offsets, group_metadata(), left)
            except RAISED as raised:
                error = kafka_error_of(raised)
                if error is None or error.txn_requires_abort() or not error.retriable():
                    raise
                self._check_time(deadline)
                time.sleep(_RETRY_PAUSE)
            else:
                return

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Unavailable(f"Kafka, {self._operation}: the brokers did not take it in time")

    def _commit(self, producer: Producer) -> None:
        deadline = time.monotonic() + COMMIT_TIMEOUT
        while True:
            try:
                producer.commit_transaction(max(0.1, deadline - time.monotonic()))
            except RAISED as raised:
                error = kafka_error_of(raised)
                if error is not None and error.txn_requires_abort():
                    raise self._not_stored(producer, raised, _Failures(), ()) from raised
                if error is not None and error.retriable() and time.monotonic() < deadline:
                    time.sleep(_RETRY_PAUSE)
                    continue
                if error is not None and (error.code() in FENCED or error.fatal()):
                    self._was_fenced()
                else:
                    self._drop()
                translated = self._settings.translate(raised, self._operation)
                raise OutcomeUnknown(
                    f"{translated}; whether it was committed is not known"
                ) from raised
            else:
                return

    # -- what went wrong

    def _not_stored(
        self,
        producer: Producer,
        raised: BaseException,
        failures: _Failures,
        outputs: Sequence[tuple[str, Record]],
    ) -> BaseException:
        """Abort the transaction, none of which was stored; the error that says why."""
        error: KafkaError | None = None
        if isinstance(raised, (KafkaException, KafkaError)):
            error = kafka_error_of(raised)
        fatal = error is not None and (error.fatal() or error.code() in FENCED)
        aborting = None if fatal else abort(producer, self._operation)
        if fatal or (aborting is not None and (aborting.fatal() or aborting.code() in FENCED)):
            self._was_fenced()
            return Unavailable(
                f"Kafka, {self._operation}: the brokers have ended it: it took too long, or "
                f"another process has this member's name: {error or aborting}"
            )
        if aborting is not None:
            self._drop()  # the next one of its ID aborts it
        if not isinstance(raised, (*RAISED, SystemError)):
            return raised
        too_large = {at: each for at, each in failures.errors.items() if each.code() in _TOO_LARGE}
        if too_large:
            return self._refused(too_large, outputs)
        if error is None:
            return Unavailable(f"Kafka, {self._operation}: {raised}")
        code = error.code()
        if code in _NOT_OURS:
            return Fenced(f"Kafka, {self._operation}: {error.str()}; nothing was stored")
        if code in GONE:
            return self._missing(outputs, error)
        translated = self._settings.translate(KafkaException(error), self._operation)
        if isinstance(translated, LogError) and not isinstance(translated, OutcomeUnknown):
            return translated
        return Unavailable(str(translated))

    def _refused(
        self, too_large: Mapping[int, KafkaError], outputs: Sequence[tuple[str, Record]]
    ) -> LogError:
        if not self._looks_closely and len(outputs) > 1:
            # A batch is refused as a whole: which of its records was it?
            self._close_look_until = time.monotonic() + CLOSE_LOOK
            return _LookAgain()
        errors: dict[int, LogError] = {}
        for at, each in too_large.items():
            topic, record = outputs[at]
            errors[at] = TooLarge(
                f"Kafka, {topic}: message {record.id!r} is larger than the "
                f"topic's max.message.bytes, or message.max.bytes: {each.str()}"
            )
        return OutputsRefused(errors)

    def _missing(self, outputs: Sequence[tuple[str, Record]], error: KafkaError) -> LogError:
        """A broker does not know a topic: it was deleted, or that broker has just begun."""
        try:
            for topic in dict.fromkeys(topic for topic, _ in outputs):
                self._metadata.read(topic)
        except NotFound as missing:
            return missing
        except LogError as unavailable:
            return unavailable
        return Unavailable(f"Kafka, {self._operation}: {error.str()}")


class _LookAgain(Fenced):
    """Nothing was stored; the same again says which records are too large."""

    def __init__(self) -> None:
        super().__init__("a batch of records is too large: they are sent one by one")
