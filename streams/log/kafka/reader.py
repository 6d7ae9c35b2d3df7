"""Reading outside any group: watermarks, offsets for times, and ranges of one partition.

A read ends by position and never by a count: transaction markers, aborted messages and compacted
ones leave gaps. What lies below the end and is no message shows in two ways: the driver's own
position moves past it, and at the end of the partition the driver reports that position.

Consumers are expensive (threads, connections), so a few idle ones are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition
from typing_extensions import override

from streams.errors import LogError, NotFound, Unavailable
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.client import (
    REQUEST_TIMEOUT,
    RequestRetry,
    SharedClient,
    close_in_background,
)
from streams.log.kafka.errors import GROUP_REFUSED, OUT_OF_RANGE
from streams.log.kafka.settings import MEGABYTE
from streams.log.kafka.topics import Metadata
from streams.log.protocol import READ_TIMEOUT, Reader, TopicPartition
from streams.text import get_logger
from streams.wire import MAX_PARTITION

logger = get_logger("streams.kafka")

T = TypeVar("T")

READER_PREFETCH = 16 * MEGABYTE
"""Bytes that a reader's queue may hold."""

MAX_IDLE = 2
"""Idle consumers that are kept."""

PROBE_TIMEOUT = 3.0
"""Seconds that a broker gets to answer a new client."""

NEW_PARTITION_TIMEOUT = 5.0
"""Seconds within which each broker should know a partition that others know."""

STALL_TIMEOUT = 10.0
"""Seconds without a message after which a reader is compared with the log's end."""

CHECK_INTERVAL = 1.0
"""Seconds between two questions whether a topic is still there, of those who look whether anything
came, and do not wait for it."""

MAX_TIMESTAMP = (1 << 63) - 1
"""The latest time that a record of Kafka can have, in milliseconds since the epoch."""


class ReaderPool:
    """The consumers of one log that belong to no group (any thread)."""

    def __init__(
        self, connect: Callable[[dict[str, Any]], Consumer], requests: RequestRetry
    ) -> None:
        self._settings = settings = requests.settings
        self._requests = requests
        self.translate = settings.translate
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[Consumer] = []
        self._idle_uncommitted: list[Consumer] = []
        self._closed = False
        config = settings.reader_config(MEGABYTE)
        self._query_consumer = SharedClient(lambda: connect(config))
        """One that asks where what can be read ends."""
        uncommitted = {**config, "isolation.level": "read_uncommitted"}
        self._uncommitted_consumer = SharedClient(lambda: connect(uncommitted))
        """One that asks where a log ends, whatever transactions are open, and for metadata."""
        self.metadata = Metadata(self._uncommitted_consumer, requests)
        self._checked_at: dict[str, float] = {}
        """When topics were seen to be there last."""

    def acquire(self, *, uncommitted: bool = False) -> Consumer:
        """A consumer that reads nothing yet."""
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            idle = self._idle_uncommitted if uncommitted else self._idle
            if idle:
                return idle.pop()
        return self.new_consumer(uncommitted=uncommitted)

    def new_consumer(self, *, uncommitted: bool = False, follows: bool = False) -> Consumer:
        """A new consumer.

        :param uncommitted: it reads on past open transactions, and what they wrote.
        :param follows: it waits at the ends of its partitions for what will be written.
        """
        config = self._settings.reader_config(READER_PREFETCH, follows=follows)
        if uncommitted:
            config["isolation.level"] = "read_uncommitted"
        return self._connect(config)

    def release(self, consumer: Consumer, *, healthy: bool, uncommitted: bool = False) -> None:
        """Return one; an unhealthy one is not used again."""
        try:
            consumer.unassign()
        except KafkaException:
            healthy = False
        if not healthy:
            close_in_background(consumer)
            return
        with self._lock:
            idle = self._idle_uncommitted if uncommitted else self._idle
            if not self._closed and len(idle) < MAX_IDLE:
                idle.append(consumer)
                return
        consumer.close()

    def close(self) -> None:
        """Close the idle ones; the others follow when they are released."""
        with self._lock:
            self._closed = True
            idle = [*self._idle, *self._idle_uncommitted]
            self._idle, self._idle_uncommitted = [], []
        for consumer in idle:
            consumer.close()
        self._query_consumer.close()
        self._uncommitted_consumer.close()

    def probe_broker(self, partition: TopicPartition | None) -> bool:
        """Whether a new client reaches this partition's leader, or any broker."""
        consumer = self._connect(self._settings.reader_config(MEGABYTE))
        try:
            if partition is None:  # a topic's name about which there is little to tell
                consumer.list_topics("__streams", timeout=PROBE_TIMEOUT)
            else:
                consumer.get_watermark_offsets(KTopicPartition(*partition), timeout=PROBE_TIMEOUT)
            return True
        except KafkaException:
            return False
        finally:
            close_in_background(consumer)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """The first position that can be read, and the end of what can be read, which is before
        the first message of an open transaction."""
        return self._run(
            f"bounds of {topic}/{partition}",
            topic,
            [partition],
            lambda consumer: consumer.get_watermark_offsets(
                KTopicPartition(topic, partition), timeout=REQUEST_TIMEOUT
            ),
        )

    def end(self, topic: str, partition: int) -> int:
        """Where the log ends, readable or not."""
        return self.bounds(topic, partition)[1]

    def end_of_committed(self, topic: str, partition: int) -> int:
        """The end of what can be read, which is before the first message of an open transaction."""
        return self.watermarks(topic, partition)[1]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """The first position that can be read, and where the log ends, whatever transactions are
        open."""
        return self._run(
            f"end of {topic}/{partition}",
            topic,
            [partition],
            lambda consumer: consumer.get_watermark_offsets(
                KTopicPartition(topic, partition), timeout=REQUEST_TIMEOUT
            ),
            self._uncommitted_consumer,
        )

    def ends(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Where these partitions end, whatever transactions are open: one question."""

        def request(consumer: Consumer) -> dict[int, int]:
            wanted = [KTopicPartition(topic, each, OFFSET_END) for each in partitions]
            found = {}
            for answer in consumer.offsets_for_times(wanted, timeout=REQUEST_TIMEOUT):
                if answer.error is not None:
                    raise KafkaException(answer.error)
                found[answer.partition] = answer.offset
            return found

        found = self._run(
            f"ends of {topic}", topic, partitions, request, self._uncommitted_consumer
        )
        return {
            # A broker that does not take this for a time answers with -1.
            each: offset if offset >= 0 else self.end(topic, each)
            for each, offset in found.items()
        }

    def offset_for_time(self, topic: str, partition: int, moment: float) -> int:
        """The position of the first message at or after ``moment``; the end if there is none."""
        timestamp = min(max(0, round(moment * 1000)), MAX_TIMESTAMP)

        def request(consumer: Consumer) -> int:
            wanted = KTopicPartition(topic, partition, timestamp)
            (answer,) = consumer.offsets_for_times([wanted], timeout=REQUEST_TIMEOUT)
            if answer.error is not None:
                raise KafkaException(answer.error)
            return answer.offset

        offset = self._run(f"time in {topic}/{partition}", topic, [partition], request)
        return offset if offset >= 0 else self.watermarks(topic, partition)[1]

    def _run(
        self,
        operation: str,
        topic: str,
        partitions: Sequence[int],
        request: Callable[[Consumer], T],
        client: SharedClient[Consumer] | None = None,
    ) -> T:
        run, query_consumer = self._requests.run, client or self._query_consumer
        if not all(0 <= each <= MAX_PARTITION for each in partitions):
            # The driver's numbers have 32 bits, and its own -1 means something else.
            self.metadata.check_partitions(topic, partitions)
        try:
            return run(operation, query_consumer, request)
        except NotFound:
            # The partition is new, and this client does not know it yet...
            run(
                operation,
                query_consumer,
                lambda consumer: consumer.list_topics(topic, timeout=REQUEST_TIMEOUT),
            )
        give_up = time.monotonic() + NEW_PARTITION_TIMEOUT
        while True:
            try:
                return run(operation, query_consumer, request)
            except NotFound as error:
                # ...or the broker does not.
                self.metadata.check_partitions(topic, partitions)
                if time.monotonic() >= give_up:
                    raise Unavailable(
                        f"{error}; it exists, but not every broker knows it yet"
                    ) from error
            time.sleep(0.05)

    def check_there(self, topic: str, waited: float) -> None:
        """See that a topic from which nothing came is still there.

        :param waited: for so many seconds.
        :raises NotFound: it was deleted.
        """
        now, checked_at = time.monotonic(), self._checked_at.get(topic, float("-inf"))
        if waited < CHECK_INTERVAL and now < checked_at + CHECK_INTERVAL:
            return
        self.metadata.check_there(topic)
        self._checked_at[topic] = now

    def open_reader(
        self, topic: str, partition: int, start: int, end: int, *, uncommitted: bool = False
    ) -> KafkaReader:
        """Read one partition from ``start`` up to, not including, ``end``.

        :param uncommitted: read on past open transactions, and what they wrote.
        """
        consumer = self.acquire(uncommitted=uncommitted)
        self.assign(consumer, topic, partition, start)
        return KafkaReader(self, consumer, topic, partition, start, end, uncommitted=uncommitted)

    def assign(self, consumer: Consumer, topic: str, partition: int, start: int) -> None:
        """Have a consumer read one partition from ``start`` on.

        :raises LogError: it cannot, and has been closed.
        """
        try:
            consumer.assign([KTopicPartition(topic, partition, start)])
        except KafkaException as error:
            consumer.close()
            raise self.translate(error, f"reading {topic}/{partition}") from error


class KafkaReader(Reader):
    """Reads one partition with a consumer of the pool."""

    def __init__(
        self,
        readers: ReaderPool,
        consumer: Consumer,
        topic: str,
        partition: int,
        start: int,
        end: int,
        *,
        uncommitted: bool = False,
    ) -> None:
        self._readers = readers
        self._uncommitted = uncommitted
        self._consumer: Consumer | None = consumer
        self._topic = topic
        self._partition = partition
        self._next_offset = start
        self._end = end
        self._healthy = True
        """Nothing has failed so far."""
        self._progress_at = time.monotonic()
        """When something came, or it was certain that there is nothing."""

    @override
    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> KafkaBatch | None:
        consumer = self._consumer
        if consumer is None:
            raise LogError(f"Kafka, {self._topic}/{self._partition}: this reader is closed")
        try:
            batch = self._read_batch(consumer, limit, timeout)
        except BaseException as error:
            self._healthy = False
            if (
                isinstance(error, Unavailable)
                and time.monotonic() > self._progress_at + STALL_TIMEOUT
            ):
                self._replace_consumer(consumer)
            raise
        self._progress_at = time.monotonic()
        return batch

    def _replace_consumer(self, consumer: Consumer) -> None:
        """Use another consumer if this one misses messages that are there (``client.py``)."""
        self._progress_at = time.monotonic()
        topic, partition, start = self._topic, self._partition, self._next_offset
        try:
            bounds = self._readers.bounds if self._uncommitted else self._readers.watermarks
            _, end = bounds(topic, partition)
            if min(end, self._end) <= start:
                return
            fresh = self._readers.new_consumer(uncommitted=self._uncommitted)
            self._readers.assign(fresh, topic, partition, start)
        except LogError as error:
            logger.debug("%s: %s", self._operation, error)
            return
        logger.warning("%s: nothing came, though there is more: restarting", self._operation)
        self._consumer, self._healthy = fresh, True
        close_in_background(consumer)

    def _read_batch(self, consumer: Consumer, limit: int, timeout: float) -> KafkaBatch | None:
        deadline = time.monotonic() + timeout
        while self._next_offset < self._end:
            messages = self._consume(consumer, limit, 0.0)
            if not messages:
                self._next_offset = max(self._next_offset, self._position(consumer))
                remaining = deadline - time.monotonic()
                if self._next_offset >= self._end:
                    break
                if remaining < 0.001:
                    self._readers.check_there(self._topic, timeout)
                    raise Unavailable(
                        f"Kafka, {self._operation}: nothing came within {timeout:g} s from offset "
                        f"{self._next_offset} (up to {self._end})"
                    )
                messages = self._consume(consumer, limit, min(remaining, 0.1))
            for failed in remove_errors(messages):
                self._handle_error(failed)
            for topic, partition, run in split_by_partition(messages, None):
                if (topic, partition) == (self._topic, self._partition):
                    return self._clip_to_end(run)
        return None

    def _consume(self, consumer: Consumer, limit: int, timeout: float) -> list[Any]:
        """The messages available; blocks for the first one only."""
        try:
            if not timeout:
                return consumer.consume(limit, 0.0)
            messages: list[Any] = consumer.consume(1, timeout)
            if messages and limit > 1:
                messages += consumer.consume(limit - 1, 0.0)
        except KafkaException as error:
            raise self._readers.translate(error, self._operation) from error
        return messages

    @property
    def _operation(self) -> str:
        return f"reading {self._topic}/{self._partition}"

    def _clip_to_end(self, run: list[Any]) -> KafkaBatch | None:
        """The part of the run below the end; None if there is none."""
        if run[-1].offset() >= self._end:
            run = [message for message in run if message.offset() < self._end]
            self._next_offset = self._end
        else:
            self._next_offset = run[-1].offset() + 1
        return KafkaBatch(self._topic, self._partition, run) if run else None

    def _position(self, consumer: Consumer) -> int:
        (answer,) = consumer.position([KTopicPartition(self._topic, self._partition)])
        return answer.offset

    def _handle_error(self, failed: Any) -> None:
        """Handle an error that came instead of a message."""
        error: KafkaError = failed.error()
        if (failed.topic(), failed.partition()) not in (
            (self._topic, self._partition),
            (None, None),
            (None, -1),
        ):
            return
        if error.code() == KafkaError._PARTITION_EOF:
            self._next_offset = max(self._next_offset, failed.offset())
            return
        if error.code() in OUT_OF_RANGE:
            self._skip_deleted(failed.offset())
            return
        if error.code() == GROUP_REFUSED:
            return
        translated = self._readers.translate(error, self._operation)
        if isinstance(translated, Unavailable):
            logger.warning("%s", translated)  # the driver retries
            return
        raise translated

    def _skip_deleted(self, offset: int) -> None:
        """The start was deleted: read the rest of the range."""
        first, end = self._readers.watermarks(self._topic, self._partition)
        if not first > offset:
            raise NotFound(
                f"Kafka, {self._operation}: offset {offset} is beyond the log's end, {end}"
            )
        logger.warning(
            "%s/%d: offsets %d to %d were deleted before they were read",
            self._topic, self._partition, offset, first - 1,
        )  # fmt: skip
        self._next_offset = max(self._next_offset, first)
        if self._consumer is not None and self._next_offset < self._end:
            self._consumer.assign(
                [KTopicPartition(self._topic, self._partition, self._next_offset)]
            )

    @override
    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._readers.release(consumer, healthy=self._healthy, uncommitted=self._uncommitted)
