"""Appending: one idempotent producer a log, every write confirmed, nothing lost to a full queue.

``append`` hands records to the driver and returns; a thread of the log serves delivery reports,
and the last report of an append calls its ``done``. Writes to one partition stay in the order of
the calls: the driver's own retries keep it (``enable.idempotence``), and calls are let in one at
a time. A record can end in these ways:

* a full queue makes ``append`` wait (backpressure), and never drops a record;
* a record that the broker or the driver finds too large fails alone
  (:class:`~streams.errors.TooLarge`);
* a record that timed out may have been written (:class:`OutcomeUnknown`), and is not retried;
* a fatal state of the driver ends this producer and fails what it held; the next append makes a
  new one. The same happens to a producer that is cut off while another client reaches the brokers
  (see ``reconnect.py``); in an outage it waits as long as the driver does.

A keyless record's partition comes from its ID, so that publishing it again lands beside its twin;
a key's partition is chosen by the driver (``partitioner``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import LogError, OutcomeUnknown, StreamsError, Unavailable
from streams.log.kafka.client import RequestRetry, learns_partition
from streams.log.kafka.errors import kafka_error_of
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.reconnect import ConnectivityMonitor, IsolationCheck
from streams.log.kafka.settings import Settings
from streams.log.kafka.statistics import decode_snapshot
from streams.log.names import partition_for
from streams.log.protocol import OnAppended, TopicPartition
from streams.message import ID, Position, Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

POLL_TIMEOUT = 0.1
"""Seconds that the serving thread blocks at once."""

FIRST_ANSWER_TIMEOUT = 0.5
"""Seconds for which it waits for the first append, and for a broker's first answer, before it
serves the producer: after that, the driver asks by itself."""

LINGER = "queue.buffering.max.ms"

QUEUE_FULL_PAUSE = 0.005
"""Seconds between two looks for room in a full queue."""

_position: Callable[[type[Position], tuple[str, int, int]], Position] = tuple.__new__


class PendingAppend:
    """One call's records, until all of them are settled."""

    __slots__ = ("_done", "_on_finished", "count", "count_settled", "results", "settings", "topic")

    def __init__(
        self,
        topic: str,
        count: int,
        done: OnAppended,
        on_finished: Callable[[PendingAppend], None],
        settings: Settings,
    ) -> None:
        self.topic = topic
        self.results: list[Any] = [None] * count
        self.settings = settings
        self._done = done
        self._on_finished = on_finished
        self.count = count
        # Reports come from two threads at once while one of them flushes, and unlike `+= 1`, next()
        # of this iterator is one step.
        self.count_settled = itertools.count(1).__next__

    def settle(self, index: int, result: Position | StreamsError) -> None:
        """Note how one record ended."""
        self.results[index] = result
        if self.count_settled() == self.count:
            self.finish()

    def finish(self) -> None:
        """Report that all are settled."""
        try:
            self._done(self.results)
        except Exception:
            logger.exception("%s: what an append's end called failed", self.topic)
        finally:
            self._on_finished(self)


class DeliveryReport(msgspec.Struct, gc=False):
    """The driver's delivery callback of one record.

    There is one for each record in flight, so the garbage collector must not look at it (a
    functools.partial costs six times as much with 100,000 of them alive).
    """

    append: PendingAppend
    index: int

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        """The driver's delivery report."""
        append = self.append
        if error is None:  # as in settle, without the call: there is one for each record
            fields = (append.topic, message.partition(), message.offset())
            append.results[self.index] = _position(Position, fields)
            if append.count_settled() == append.count:
                append.finish()
        else:
            operation = f"appending to {append.topic}"
            append.settle(self.index, append.settings.translate(error, operation, write=True))


class _ProducerHandle:
    """A producer of the driver, until it is retired and holds nothing more."""

    __slots__ = ("busy", "connectivity", "first_topic", "has_begun", "isolation", "producer")

    def __init__(self, probe_broker: Callable[[TopicPartition | None], bool]) -> None:
        self.producer: Producer
        self.connectivity = ConnectivityMonitor()
        self.isolation = IsolationCheck(self.connectivity, probe_broker)
        self.busy = False
        """An append is handing records over to it."""
        self.first_topic: str | None = None
        """The one that was first appended to."""
        self.has_begun = threading.Event()
        """Something is appended, or it is retired."""

    def begin(self, topic: str) -> None:
        """Something is appended to a topic."""
        if self.first_topic is None:
            self.first_topic = topic
            self.has_begun.set()

    def observe_statistics(self, text: str) -> None:
        """The driver's stats_cb."""
        self.connectivity.observe_producer(decode_snapshot(text), time.monotonic())


class Writer:
    """The producing side of one log (any thread).

    :param connect: makes the driver's producer.
    :param linger: milliseconds for which the driver waits for more records, unless the user has
        said.
    """

    def __init__(
        self,
        connect: Callable[[dict[str, Any]], Producer],
        requests: RequestRetry,
        readers: ReaderPool,
        linger: int | None = None,
    ) -> None:
        self._settings = requests.settings
        self._linger = linger
        self._connect = connect
        self._requests = requests
        self._readers = readers
        self._order_lock = threading.Lock()
        """Held while records are handed over: calls keep their order."""
        self._condition = threading.Condition()
        self._pending: set[PendingAppend] = set()
        self._current: _ProducerHandle | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        # An idempotent producer needs an ID before it may send: not at the first publish.
        with self._order_lock:
            self._acquire_producer().busy = False

    def append(self, topic: str, records: Sequence[Record], done: OnAppended) -> None:
        """Hand over records in order; ``done`` is called once, when all are settled."""
        if not records:
            done([])
            return
        append = PendingAppend(topic, len(records), done, self._append_finished, self._settings)
        with self._condition:
            self._pending.add(append)
        try:
            partition_count = self._readers.metadata.partition_count(topic)
            with self._order_lock:
                self._produce(append, records, partition_count)
        except StreamsError as error:
            append.results = [error] * len(records)
            append.finish()

    def _produce(
        self, append: PendingAppend, records: Sequence[Record], partition_count: int
    ) -> None:
        topic = append.topic
        handle = self._acquire_producer()
        handle.begin(topic)
        try:
            produce, has_looked = handle.producer.produce, False
            for index, record in enumerate(records):
                try:
                    key, partition = record.key, record.partition
                    if partition is None:
                        partition = (
                            -1
                            if key is not None
                            else partition_for(None, record.id, partition_count)
                        )
                    try:
                        headers: Any = [(ID, record.id.encode())]
                    except UnicodeEncodeError:
                        headers = [(ID, record.id.encode("utf-8", "surrogateescape"))]
                    if record.headers:
                        headers += record.headers
                    report = DeliveryReport(append, index)
                    while True:
                        if self._current is not handle:  # it was retired meanwhile
                            handle.busy = False
                            handle = self._acquire_producer()
                            handle.begin(topic)
                            produce = handle.producer.produce
                        try:
                            produce(topic, record.value, key, partition, report, None, 0, headers)
                            break
                        except BufferError:
                            time.sleep(QUEUE_FULL_PAUSE)  # the serving thread makes room
                        except KafkaException as error:
                            place = topic, partition
                            if has_looked or not learns_partition(
                                handle.producer, error, place, partition_count
                            ):
                                raise
                            has_looked = True
                except Exception as error:
                    append.settle(index, self._produce_error(handle, topic, error))
        finally:
            handle.busy = False

    def _produce_error(self, handle: _ProducerHandle, topic: str, error: Exception) -> StreamsError:
        """Why the driver did not take a record."""
        if isinstance(error, StreamsError):
            return error
        operation = f"appending to {topic}"
        if not isinstance(error, KafkaException):
            return LogError(f"Kafka, {operation}: {type(error).__name__}: {error}")
        kafka_error = kafka_error_of(error)
        translated = self._settings.translate(error, operation)
        if kafka_error is not None and kafka_error.fatal():
            self._retire(handle)
            return Unavailable(str(translated))
        return translated

    def _append_finished(self, append: PendingAppend) -> None:
        with self._condition:
            self._pending.discard(append)
            self._condition.notify_all()

    # -- the driver's producer and the thread that serves it

    def _acquire_producer(self) -> _ProducerHandle:
        """The producer, busy from here on; made at first use and where the one before was retired
        (the order lock is held).

        :raises Unavailable: the log is closed.
        """
        with self._condition:
            if self._closed:
                raise Unavailable("Kafka: this log is closed")
            handle = self._current
            if handle is not None:
                handle.busy = True
                return handle
        handle = _ProducerHandle(self._readers.probe_broker)
        config = self._settings.producer_config()
        if self._linger is not None and LINGER not in self._settings.user_config:
            config[LINGER] = self._linger
        config["error_cb"] = self._on_client_error
        config["stats_cb"] = handle.observe_statistics
        handle.producer = self._connect(config)
        handle.busy = True
        thread = threading.Thread(
            target=lambda: self._serve(handle),
            name="streams-kafka-producer",
            daemon=True,
        )
        with self._condition:
            self._current, self._thread = handle, thread
        thread.start()
        return handle

    def _serve(self, handle: _ProducerHandle) -> None:
        """In a thread of the producer's own."""
        # The driver asks for the ID of an idempotent producer half a second after it was made, or
        # as soon as it is told of metadata. It is asked for those of a topic that is there: for any
        # other it would ask again each second, for as long as it lives.
        handle.has_begun.wait(FIRST_ANSWER_TIMEOUT)
        if handle.first_topic is not None:
            with suppress(KafkaException):
                handle.producer.list_topics(handle.first_topic, timeout=FIRST_ANSWER_TIMEOUT)
        self._poll_until_retired(handle)

    def _poll_until_retired(self, handle: _ProducerHandle) -> None:
        """Serve delivery reports until the producer is retired and holds nothing more."""
        producer = handle.producer
        while True:
            try:
                producer.poll(POLL_TIMEOUT)
            except KafkaException as error:
                translated = self._settings.translate(error, "producer")
                logger.warning("%s; the next append makes a new producer", translated)
                self._retire(handle)
            except Exception:
                logger.exception("serving the producer")
            if self._current is not handle:
                # An append may have added records after the purge.
                idle = not handle.busy  # read before the length
                if idle and not len(producer):
                    return
                self._purge(producer)
            elif handle.isolation.should_replace(time.monotonic()):
                logger.warning(
                    "the producer does not reach a broker that another client reaches: "
                    "the next append makes a new one"
                )
                self._retire(handle)

    def _retire(self, handle: _ProducerHandle) -> None:
        """Hand no more records to this producer, and fail what it holds."""
        with self._condition:
            if self._current is not handle:
                return
            self._current = None
        handle.has_begun.set()
        self._purge(handle.producer)

    def _purge(self, producer: Producer) -> None:
        try:
            producer.purge(in_queue=True, in_flight=True, blocking=False)
        except KafkaException as error:
            logger.warning("purging the producer: %s", self._settings.scrub(str(error)))

    def _on_client_error(self, error: KafkaError) -> None:
        self._settings.call_user("error_cb", error)
        self._requests.record_client_error(error)
        logger.debug("producer: %s", self._settings.scrub(str(error.str())))

    def flush(self, timeout: float) -> None:
        """Wait until the result of every append so far has been reported.

        :raises Unavailable: some have not, after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            waiting = set(self._pending)
            handle = self._current
        if waiting and handle is not None:
            # Does not wait for linger.ms, as the serving thread would.
            handle.producer.flush(max(0.0, timeout))
        with self._condition:
            while waiting & self._pending:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise Unavailable(
                        f"Kafka: {len(waiting & self._pending)} appends were not confirmed "
                        f"within {timeout:g} s"
                    )
                self._condition.wait(remaining)

    def close(self) -> None:
        """End every append that is not confirmed with an error, and close.

        What was not sent was not written (:class:`Unavailable`); of what was sent, the result is
        unknown (:class:`OutcomeUnknown`).
        """
        with self._condition:
            self._closed = True
            handle, thread = self._current, self._thread
        if handle is not None:
            self._retire(handle)
            handle.producer.flush(1.0)
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        with self._condition:
            unconfirmed = list(self._pending)
        for append in unconfirmed:  # there are none, unless the driver is broken
            error = OutcomeUnknown(f"Kafka, appending to {append.topic}: the log was closed")
            append.results = [error if each is None else each for each in append.results]
            append.finish()
