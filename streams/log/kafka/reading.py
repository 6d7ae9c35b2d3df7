"""Reading outside any group: bounds, times, and one partition from a position to another.

A reading ends by position and never by a count: transaction markers, aborted messages and
compacted ones leave gaps. What lies below the end and is no message shows in two ways, and both
are watched: the driver's own position moves past it, and at the end of the partition it tells
where that is.

Consumers are dear (threads, connections), so a few that are idle are kept for the next reading.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    TopicMetadata,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.errors import LogError, NotFound, Unavailable
from streams.log.kafka.asking import ANSWER, Asking
from streams.log.kafka.batch import KafkaBatch, runs, take_errors
from streams.log.kafka.client import Shared, bury
from streams.log.kafka.errors import translate
from streams.log.kafka.settings import MEGABYTE, Settings
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")

PREFETCH = 16 * MEGABYTE
"""Bytes that a reading's own queue may hold."""

IDLE = 2
"""Idle consumers that are kept."""

SOON = 3.0
"""Seconds for an answer to a client that is new, from a broker that is there."""

QUIET = 10.0
"""Seconds without a message after which a reading is compared with what stands in the log."""

LATEST = (1 << 63) - 1
"""The latest time that a record of Kafka can have, in milliseconds since the epoch."""

_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class Readers:
    """The consumers of one log that belong to no group (any thread).

    :param check: raises NotFound where a topic lacks a partition, as its controller knows it.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Consumer],
        asking: Asking,
        check: Callable[[str, Sequence[int]], None],
    ) -> None:
        self._settings = settings
        self._asking = asking
        self._check = check
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[Consumer] = []
        self._closed = False
        self._questioner = Shared(lambda: connect(settings.reader(MEGABYTE)))
        """The one consumer that only asks questions."""
        uncommitted = {"isolation.level": "read_uncommitted"}
        self._surveyor = Shared(lambda: connect({**settings.reader(MEGABYTE), **uncommitted}))
        """One that asks where a log ends, whatever transactions are open."""

    def take(self) -> Consumer:
        """A consumer that reads nothing yet."""
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            if self._idle:
                return self._idle.pop()
        return self.make()

    def make(self) -> Consumer:
        """A new one."""
        return self._connect(self._settings.reader(PREFETCH))

    def give(self, consumer: Consumer, *, good: bool) -> None:
        """Give one back; one that did not do its work is not used again."""
        try:
            consumer.unassign()
        except KafkaException:
            good = False
        if not good:
            bury(consumer)
            return
        with self._lock:
            if not self._closed and len(self._idle) < IDLE:
                self._idle.append(consumer)
                return
        consumer.close()

    def close(self) -> None:
        """Close those that are idle; the others follow when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for consumer in idle:
            consumer.close()
        self._questioner.close()
        self._surveyor.close()

    def metadata(self, topic: str) -> TopicMetadata:
        """A topic's partitions and their leaders, as a broker tells them.

        :raises NotFound: there is no such topic.
        """

        def question(asker: Consumer) -> TopicMetadata:
            found: TopicMetadata = asker.list_topics(topic, timeout=ANSWER).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            return found

        return self._asking.ask(f"asking for topic {topic}", self._questioner, question)

    def reaches(self, part: tuple[str, int] | None) -> bool:
        """Whether a client that is new reaches this partition's leader, or any broker."""
        consumer = self._connect(self._settings.reader(MEGABYTE))
        try:
            if part is None:
                consumer.list_topics("__streams", timeout=SOON)  # a name with little to tell
            else:
                consumer.get_watermark_offsets(TopicPartition(*part), timeout=SOON)
            return True
        except KafkaException:
            return False
        finally:
            bury(consumer)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First position that can be read, and the end of what is readable: an open transaction
        ends it, what stands behind its first message is not there yet."""
        part = TopicPartition(topic, partition)
        return self._ask(
            f"bounds of {topic}/{partition}",
            topic,
            partition,
            lambda asker: asker.get_watermark_offsets(part, timeout=ANSWER),
        )

    def end(self, topic: str, partition: int) -> int:
        """Where the log ends, be its end readable or not."""
        part = TopicPartition(topic, partition)

        def question(asker: Consumer) -> int:
            found: tuple[int, int] = asker.get_watermark_offsets(part, timeout=ANSWER)
            return found[1]

        return self._asking.ask(f"end of {topic}/{partition}", self._surveyor, question)

    def at(self, topic: str, partition: int, moment: float) -> int:
        """Position of the first message at or after ``moment``; the end if there is none."""
        wanted = TopicPartition(topic, partition, min(max(0, round(moment * 1000)), LATEST))

        def question(asker: Consumer) -> int:
            (part,) = asker.offsets_for_times([wanted], timeout=ANSWER)
            if part.error is not None:
                raise KafkaException(part.error)
            return part.offset

        found = self._ask(f"time in {topic}/{partition}", topic, partition, question)
        return found if found >= 0 else self.bounds(topic, partition)[1]

    def _ask(self, doing: str, topic: str, partition: int, question: Callable[[Consumer], T]) -> T:
        ask, asker = self._asking.ask, self._questioner
        try:
            return ask(doing, asker, question)
        except NotFound:
            # A partition that is new, to a client that has not heard of it yet...
            ask(doing, asker, lambda consumer: consumer.list_topics(topic, timeout=ANSWER))
        try:
            return ask(doing, asker, question)
        except NotFound as error:
            # ...or to a broker that has not.
            self._check(topic, [partition])
            raise Unavailable(f"{error}; it exists, but not every broker knows it yet") from error

    def read(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """Read one partition from ``start`` up to, not including, ``end``."""
        return KafkaReader(
            self, self.place(self.take(), topic, partition, start), topic, partition, start, end
        )

    def place(self, consumer: Consumer, topic: str, partition: int, start: int) -> Consumer:
        """The consumer, about to read one partition from ``start`` on.

        :raises LogError: it cannot; it is closed.
        """
        try:
            consumer.assign([TopicPartition(topic, partition, start)])
        except KafkaException as error:
            consumer.close()
            raise self._translated(error, f"reading {topic}/{partition}") from error
        return consumer

    def _translated(self, error: KafkaException | KafkaError, doing: str) -> Exception:
        return translate(error, doing, self._settings.scrub)


class KafkaReader:
    """See :class:`streams.log.protocol.Reader`."""

    def __init__(
        self,
        readers: Readers,
        consumer: Consumer,
        topic: str,
        partition: int,
        start: int,
        end: int,
    ) -> None:
        self._readers = readers
        self._consumer: Consumer | None = consumer
        self._topic = topic
        self._partition = partition
        self._next = start
        self._end = end
        self._good = True
        """Nothing went wrong so far."""
        self._came = time.monotonic()
        """When something came, or it was known that there is nothing."""

    def read(self, limit: int, timeout: float = 5.0) -> KafkaBatch | None:
        """The next messages, at least one and at most ``limit``; None at the reader's end.

        :raises Unavailable: nothing came within ``timeout`` seconds.
        """
        consumer = self._consumer
        if consumer is None:
            raise LogError(f"Kafka, {self._topic}/{self._partition}: this reader is closed")
        try:
            found = self._read(consumer, limit, timeout)
        except BaseException as error:
            self._good = False
            if isinstance(error, Unavailable) and time.monotonic() > self._came + QUIET:
                self._begin_anew(consumer)
            raise
        self._came = time.monotonic()
        return found

    def _begin_anew(self, consumer: Consumer) -> None:
        """Go on with another consumer if this one does not see what is there (``client.py``)."""
        self._came = time.monotonic()
        try:
            _, end = self._readers.bounds(self._topic, self._partition)
            if min(end, self._end) <= self._next:
                return
            fresh = self._readers.make()
            fresh = self._readers.place(fresh, self._topic, self._partition, self._next)
        except LogError as error:
            logger.debug("%s: %s", self._doing, error)
            return
        logger.warning("%s: nothing came, though there is more: beginning anew", self._doing)
        self._consumer, self._good = fresh, True
        bury(consumer)

    def _read(self, consumer: Consumer, limit: int, timeout: float) -> KafkaBatch | None:
        deadline = time.monotonic() + timeout
        while self._next < self._end:
            messages = self._consume(consumer, limit, 0.0)
            if not messages:
                self._next = max(self._next, self._position(consumer))
                left = deadline - time.monotonic()
                if self._next >= self._end:
                    break
                if left < 0.001:
                    raise Unavailable(
                        f"Kafka, {self._doing}: nothing came within {timeout:g} s from offset "
                        f"{self._next} (up to {self._end})"
                    )
                messages = self._consume(consumer, limit, min(left, 0.1))
            for bad in take_errors(messages):
                self._error(bad)
            for topic, partition, run in runs(messages, None):
                if (topic, partition) == (self._topic, self._partition):
                    return self._batch(run)
        return None

    def _consume(self, consumer: Consumer, limit: int, timeout: float) -> list[Any]:
        """What is there; blocks for the first message only."""
        try:
            if not timeout:
                return consumer.consume(limit, 0.0)
            messages: list[Any] = consumer.consume(1, timeout)
            if messages and limit > 1:
                messages += consumer.consume(limit - 1, 0.0)
        except KafkaException as error:
            raise self._readers._translated(error, self._doing) from error
        return messages

    @property
    def _doing(self) -> str:
        return f"reading {self._topic}/{self._partition}"

    def _batch(self, run: list[Any]) -> KafkaBatch | None:
        """The run as far as it lies below the end; None if none of it does."""
        if run[-1].offset() >= self._end:
            run = [message for message in run if message.offset() < self._end]
            self._next = self._end
        else:
            self._next = run[-1].offset() + 1
        return KafkaBatch(self._topic, self._partition, run) if run else None

    def _position(self, consumer: Consumer) -> int:
        (part,) = consumer.position([TopicPartition(self._topic, self._partition)])
        return part.offset

    def _error(self, bad: Any) -> None:
        """An error that came in a message's place."""
        error: KafkaError = bad.error()
        if (bad.topic(), bad.partition()) not in (
            (self._topic, self._partition),
            (None, None),
            (None, -1),
        ):
            return
        if error.code() == KafkaError._PARTITION_EOF:
            self._next = max(self._next, bad.offset())
            return
        if error.code() in _OUT_OF_RANGE:
            self._jump(bad.offset())
            return
        trouble = self._readers._translated(error, self._doing)
        if isinstance(trouble, Unavailable):
            logger.warning("%s", trouble)  # the driver goes on by itself
            return
        raise trouble

    def _jump(self, offset: int) -> None:
        """The start was deleted: what is left of the range is read."""
        first, end = self._readers.bounds(self._topic, self._partition)
        if not first > offset:
            raise NotFound(f"Kafka, {self._doing}: offset {offset} is beyond the log's end, {end}")
        logger.warning(
            "%s/%d: offsets %d to %d were deleted before they were read",
            self._topic, self._partition, offset, first - 1,
        )  # fmt: skip
        self._next = max(self._next, first)
        if self._consumer is not None and self._next < self._end:
            self._consumer.assign([TopicPartition(self._topic, self._partition, self._next)])

    def close(self) -> None:
        """Give the consumer back."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._readers.give(consumer, good=self._good)
