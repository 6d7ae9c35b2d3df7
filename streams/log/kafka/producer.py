"""Appending: one idempotent producer a log, every write confirmed, nothing lost to a full queue.

``append`` hands records to the driver and returns; a thread of the log serves delivery reports,
and the last report of an append calls its ``done``. Writes of one partition stay in the order of
the calls: the driver's own retries keep it (``enable.idempotence``), and calls are let in one at
a time.

What became of a record:

* a full queue makes ``append`` wait for room (backpressure), never drop;
* a record the broker or the driver finds too large fails alone (:class:`TooLarge`);
* a record that timed out was perhaps written (:class:`OutcomeUnknown`), and is not tried again;
* a fatal state of the driver ends this producer: what it held is told so, the next append makes
  a new one. So does a producer that is cut off while another client reaches the brokers (see
  ``reach.py``); in an outage it waits, as long as the driver does.

A keyless record's partition comes from its ID, so that publishing it again lands beside its twin;
a key's partition is the driver's business (``partitioner``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from streams.errors import LogError, OutcomeUnknown, StreamsError, Unavailable
from streams.log.kafka.errors import error_of, translate
from streams.log.kafka.reach import Alone, Reach
from streams.log.kafka.settings import Settings
from streams.log.kafka.statistics import decode
from streams.log.names import place
from streams.log.protocol import Done
from streams.message import ID, Position, Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

SERVE = 0.1
"""Seconds that the serving thread blocks at once."""

ROOM = 0.005
"""Seconds between two looks for room in a full queue."""

_position: Callable[[type[Position], tuple[str, int, int]], Position] = tuple.__new__


class Append:
    """One call's records, until all of them are settled."""

    __slots__ = ("_done", "_over", "count", "next", "results", "scrub", "topic")

    def __init__(
        self,
        topic: str,
        count: int,
        done: Done,
        over: Callable[[Append], None],
        scrub: Callable[[str], str],
    ) -> None:
        self.topic = topic
        self.results: list[Any] = [None] * count
        self.scrub = scrub
        self._done = done
        self._over = over
        self.count = count
        # Reports come from two threads at once while one of them flushes; next() of this iterator
        # is one step, where `self.left -= 1` would be several.
        self.next = itertools.count(1).__next__
        """How many are settled, with this one."""

    def settle(self, index: int, result: Position | StreamsError) -> None:
        """How one record ended."""
        self.results[index] = result
        if self.next() == self.count:
            self.finish()

    def finish(self) -> None:
        """All are settled: say so."""
        try:
            self._done(self.results)
        except Exception:
            logger.exception("%s: what an append's end called failed", self.topic)
        finally:
            self._over(self)


class Report(msgspec.Struct, gc=False):
    """What the driver calls when it knows how a record ended.

    There is one for each record under way, so it must weigh nothing: to the garbage collector it
    does not exist (a functools.partial costs six times as much with 100,000 of them alive).
    """

    append: Append
    index: int

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        """The driver's delivery report."""
        append = self.append
        if error is None:  # as in settle, without the call: there is one for each record
            place = (append.topic, message.partition(), message.offset())
            append.results[self.index] = _position(Position, place)
            if append.next() == append.count:
                append.finish()
        else:
            doing = f"appending to {append.topic}"
            append.settle(self.index, translate(error, doing, append.scrub, write=True))


class _Running:
    """A producer of the driver, until it is retired and holds nothing more."""

    __slots__ = ("alone", "busy", "producer", "reach")

    def __init__(self, answered: Callable[[tuple[str, int] | None], bool]) -> None:
        self.producer: Producer
        self.reach = Reach()
        self.alone = Alone(self.reach, answered)
        self.busy = False
        """An append is handing records over to it."""

    def report(self, text: str) -> None:
        """The driver's stats_cb."""
        self.reach.producer(decode(text), time.monotonic())


class Appender:
    """The producing side of one log (any thread).

    :param connect: makes the driver's producer.
    :param partitions: how many partitions a topic has.
    :param told: told of connections, logins and certificates that fail.
    :param answered: see :class:`~streams.log.kafka.reach.Alone`.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Producer],
        partitions: Callable[[str], int],
        told: Callable[[KafkaError], None],
        answered: Callable[[tuple[str, int] | None], bool],
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._partitions = partitions
        self._told = told
        self._answered = answered
        self._order = threading.Lock()
        """Held while records are handed over: calls keep their order."""
        self._state = threading.Condition()
        self._pending: set[Append] = set()
        self._running: _Running | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._user_error: Callable[[KafkaError], None] | None = settings.given.get("error_cb")
        # An idempotent producer needs half a second until it may send: not at the first publish.
        with self._order:
            self._take_up().busy = False

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """Hand over records in order; ``done`` is called once, when all are settled."""
        if not records:
            done([])
            return
        append = Append(topic, len(records), done, self._over, self._settings.scrub)
        with self._state:
            self._pending.add(append)
        try:
            partitions = self._partitions(topic)
            with self._order:
                self._hand_over(append, records, partitions)
        except StreamsError as error:
            # Nothing was handed over.
            append.results = [error] * len(records)
            append.finish()

    def _hand_over(self, append: Append, records: Sequence[Record], partitions: int) -> None:
        topic = append.topic
        running = self._take_up()
        try:
            produce = running.producer.produce
            for index, record in enumerate(records):
                try:
                    key, part = record.key, record.partition
                    if part is None:
                        part = -1 if key is not None else place(None, record.id, partitions)
                    try:
                        headers: Any = [(ID, record.id.encode())]
                    except UnicodeEncodeError:
                        headers = [(ID, record.id.encode("utf-8", "surrogateescape"))]
                    if record.headers:
                        headers += record.headers
                    report = Report(append, index)
                    while True:
                        if self._running is not running:  # it was retired meanwhile
                            running.busy = False
                            running = self._take_up()
                            produce = running.producer.produce
                        try:
                            produce(topic, record.value, key, part, report, None, 0, headers)
                            break
                        except BufferError:
                            time.sleep(ROOM)  # the serving thread makes room
                except Exception as error:
                    append.settle(index, self._not_taken(running, topic, error))
        finally:
            running.busy = False

    def _not_taken(self, running: _Running, topic: str, error: Exception) -> StreamsError:
        """Why the driver did not take a record."""
        if isinstance(error, StreamsError):
            return error
        doing = f"appending to {topic}"
        if not isinstance(error, KafkaException):
            return LogError(f"Kafka, {doing}: {type(error).__name__}: {error}")
        found = error_of(error)
        trouble = translate(error, doing, self._settings.scrub)
        if found is not None and found.fatal():
            self._retire(running)
            return Unavailable(str(trouble))
        return trouble

    def _over(self, append: Append) -> None:
        with self._state:
            self._pending.discard(append)
            self._state.notify_all()

    # -- the driver's producer and the thread that serves it

    def _take_up(self) -> _Running:
        """The producer, busy from here on; made at first use and where the one before was retired
        (the order lock is held).

        :raises Unavailable: the log is closed.
        """
        with self._state:
            if self._closed:
                raise Unavailable("Kafka: this log is closed")
            running = self._running
            if running is not None:
                running.busy = True
                return running
        running = _Running(self._answered)
        conf = self._settings.producer()
        conf["error_cb"] = self._client_error
        conf["stats_cb"] = running.report
        running.producer = self._connect(conf)
        running.busy = True
        thread = threading.Thread(
            target=self._serve, args=(running,), name="streams-kafka-producer", daemon=True
        )
        with self._state:
            self._running, self._thread = running, thread
        thread.start()
        return running

    def _serve(self, running: _Running) -> None:
        """Serve delivery reports until the producer is retired and holds nothing more."""
        producer = running.producer
        while True:
            try:
                producer.poll(SERVE)
            except KafkaException as error:
                trouble = translate(error, "producer", self._settings.scrub)
                logger.warning("%s; the next append makes a new producer", trouble)
                self._retire(running)
            except Exception:
                logger.exception("serving the producer")
            if self._running is not running:
                # Whoever was handing over to it may have added to it after it was purged.
                idle = not running.busy
                if idle and not len(producer):
                    return
                self._purge(producer)
            elif running.alone.turn(time.monotonic()):
                logger.warning(
                    "the producer does not reach a broker that another client reaches: "
                    "the next append makes a new one"
                )
                self._retire(running)

    def _retire(self, running: _Running) -> None:
        """Take no more records into this producer; what it holds is told to have failed."""
        with self._state:
            if self._running is not running:
                return
            self._running = None
        self._purge(running.producer)

    def _purge(self, producer: Producer) -> None:
        try:
            producer.purge(in_queue=True, in_flight=True, blocking=False)
        except KafkaException as error:
            logger.warning("purging the producer: %s", self._settings.scrub(str(error)))

    def _client_error(self, error: KafkaError) -> None:
        try:
            if self._user_error is not None:
                self._user_error(error)
        except Exception:
            logger.exception("error_cb raised")
        self._told(error)
        logger.debug("producer: %s", self._settings.scrub(str(error.str())))

    def flush(self, timeout: float) -> None:
        """Wait until every append so far has been told its outcome.

        :raises Unavailable: some have not, after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._state:
            waiting = set(self._pending)
            running = self._running
        if waiting and running is not None:
            # Does not wait for linger.ms, as the serving thread would.
            running.producer.flush(max(0.0, timeout))
        with self._state:
            while waiting & self._pending:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Unavailable(
                        f"Kafka: {len(waiting & self._pending)} appends were not confirmed "
                        f"within {timeout:g} s"
                    )
                self._state.wait(left)

    def close(self) -> None:
        """Tell every append that is not confirmed how it stands, and end.

        What was not sent was not written (:class:`Unavailable`), of what was sent nobody knows
        (:class:`OutcomeUnknown`).
        """
        with self._state:
            self._closed = True
            running, thread = self._running, self._thread
        if running is not None:
            self._retire(running)
            running.producer.flush(1.0)
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        with self._state:
            left = list(self._pending)
        for append in left:
            self._abandon(append)

    def _abandon(self, append: Append) -> None:
        """The driver owes reports that will not come: never the case unless it is broken."""
        for index, result in enumerate(append.results):
            if result is None:
                append.results[index] = OutcomeUnknown(
                    f"Kafka, appending to {append.topic}: the log was closed"
                )
        append.finish()
