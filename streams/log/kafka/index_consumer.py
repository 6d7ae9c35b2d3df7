"""What feeds an index: it follows some partitions of a topic from given offsets on, for as long as
the log is open.

One consumer and one thread serve all partitions that are wanted. Of event topics the consumer reads
uncommitted records: see :mod:`streams.log.kafka.arbitration` for why transactions mean nothing
there.

What readers skip (the end of a transaction, records of one that was aborted) moves the consumer's
position and is no message, so the position is looked at whenever nothing came. That the driver
says where a partition ends would tell the same, but only after a fetch that found nothing, which
waits for ``fetch.wait.max.ms``.

Brokers that go away are waited for. As a consumer of the driver can come out of that without ever
reading again (see ``client.py``), it is replaced where nothing comes although the log has more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import LogError, NotFound, Unavailable
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.client import close_in_background
from streams.log.kafka.errors import OUT_OF_RANGE
from streams.log.kafka.reader import ReaderPool
from streams.text import get_logger

logger = get_logger("streams.kafka")

FETCH_LIMIT = 500
"""Messages that are handled at once. Of 5,000 each took two thirds longer: they and their headers
fall out of the processor's cache, and the garbage collector looks at them."""

POLL_TIMEOUT = 0.01
"""Seconds that the thread waits for a message, until it looks at the positions: nobody who waits
for the end of a transaction waits for longer."""

STALL_TIMEOUT = 10.0
"""Seconds without a message after which the consumer is compared with the log's end."""

LOG_TRUNCATION: int = KafkaError._LOG_TRUNCATION  # noqa: SLF001
"""The driver found that the log lost records that it has read."""

TICK = 0.5
"""Seconds between two calls of :meth:`FollowingIndex.tick`."""


class HistoryGone(LogError):
    """The log does not have what was read of it: it was exchanged, or has lost records."""


class FollowingIndex(Protocol):
    """An index that follows a topic: what is done with the records. All is called in the one
    thread."""

    def fold(self, batch: KafkaBatch) -> None:
        """The next records of a partition."""
        ...

    def reach(self, partition: int, offset: int) -> None:
        """There is no record below this offset that was not handed over."""
        ...

    def next_offsets(self) -> Mapping[int, int]:
        """Where each partition goes on."""
        ...

    def tick(self) -> None:
        """Some time has passed."""
        ...

    def fail(self, error: LogError) -> None:
        """Nothing will follow any more."""
        ...


class IndexConsumer:
    """Follows partitions of one topic for an index.

    :param uncommitted: it reads on past open transactions, and what they wrote.
    """

    def __init__(
        self, topic: str, readers: ReaderPool, index: FollowingIndex, *, uncommitted: bool = True
    ) -> None:
        self._topic = topic
        self._uncommitted = uncommitted
        self._readers = readers
        self._index = index
        self._lock = threading.Lock()
        self._wanted: dict[int, int] = {}
        """Partitions that the consumer is still to be given, and where they begin."""
        self._assigned: list[KTopicPartition] = []
        self._positions: dict[int, int] = {}
        """The consumer's position in each of them, as it was looked at last."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._progress_at = time.monotonic()
        """When something came, or it was certain that there is nothing."""

    def follow(self, starts: Mapping[int, int]) -> None:
        """Begin to follow partitions from these offsets on."""
        with self._lock:
            self._wanted.update(starts)
            if self._thread is None and not self._closed:
                name = f"streams-{self._topic}-index"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop following."""
        with self._lock:
            self._closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    # -- the thread

    def _run(self) -> None:
        consumer: Consumer | None = None
        tick_at = 0.0
        try:
            consumer = self._new_consumer()
            while not self._closed:
                self._assign_wanted(consumer)
                if not self._fold_next(consumer) and self._is_stalled():
                    consumer = self._replace(consumer)
                if time.monotonic() >= tick_at:
                    tick_at = time.monotonic() + TICK
                    self._index.tick()
        except LogError as error:
            self._index.fail(error)
        except Exception as error:
            logger.exception("following %s failed", self._topic)
            self._index.fail(LogError(f"{self._topic}: following it failed: {error!r}"))
        finally:
            if consumer is not None:
                close_in_background(consumer)

    def _new_consumer(self) -> Consumer:
        return self._readers.new_consumer(uncommitted=self._uncommitted, follows=True)

    def _assign_wanted(self, consumer: Consumer) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        if wanted:
            self._assign(consumer, wanted)

    def _assign(self, consumer: Consumer, starts: Mapping[int, int]) -> None:
        assigned = [KTopicPartition(self._topic, each, start) for each, start in starts.items()]
        try:
            consumer.incremental_assign(assigned)
        except KafkaException as error:
            raise self._readers.translate(error, f"reading {self._topic}") from error
        self._assigned += [KTopicPartition(self._topic, each) for each in starts]

    def _fold_next(self, consumer: Consumer) -> bool:
        """Handle what came; whether anything did."""
        try:
            messages: list[Any] = consumer.consume(1, POLL_TIMEOUT)
            if messages:
                messages += consumer.consume(FETCH_LIMIT - 1, 0.0)
            else:
                return self._reach_positions(consumer)
        except KafkaException as error:
            raise self._readers.translate(error, f"reading {self._topic}") from error
        errors = remove_errors(messages)
        for _, partition, run in split_by_partition(messages, self._topic):
            self._index.fold(KafkaBatch(self._topic, partition, run))
            self._progress_at = time.monotonic()
        for failed in errors:
            self._handle_error(failed)
        return True

    def _reach_positions(self, consumer: Consumer) -> bool:
        """Tell how far the consumer has got without a message; whether it has."""
        moved = False
        for found in consumer.position(self._assigned) if self._assigned else ():
            partition, offset = found.partition, found.offset
            if offset > self._positions.get(partition, -1):  # below 0: nothing was read yet
                self._positions[partition] = offset
                self._index.reach(partition, offset)
                self._progress_at = time.monotonic()
                moved = True
        return moved

    def _handle_error(self, failed: Any) -> None:
        error: KafkaError = failed.error()
        partition = failed.partition()
        if error.code() == KafkaError._PARTITION_EOF:
            self._index.reach(partition, failed.offset())
            self._progress_at = time.monotonic()
            return
        translated = self._readers.translate(error, f"reading {self._topic}")
        if error.code() in {*OUT_OF_RANGE, LOG_TRUNCATION}:
            raise self._gone_error(partition)
        if isinstance(translated, NotFound):
            self._readers.metadata.read(self._topic)  # raises, if there is none
            logger.debug("%s", translated)
        elif isinstance(translated, Unavailable):
            logger.debug("%s", translated)  # the driver tries again
        else:
            raise translated

    def _gone_error(self, partition: int) -> LogError:
        wanted = self._index.next_offsets().get(partition, 0)
        first, end = self._readers.bounds(self._topic, partition)
        if end < wanted:
            return HistoryGone(
                f"{self._topic}/{partition} was read up to offset {wanted} and ends at {end} now: "
                "it was made anew, or has lost what was acknowledged (unclean leader election?)"
            )
        if not self._uncommitted:
            return HistoryGone(
                f"{self._topic}/{partition} begins at offset {first}, and {wanted} was to be read: "
                "what was there was deleted"
            )
        return HistoryGone(
            f"{self._topic}/{partition} begins at offset {first}, and {wanted} was to be read: its "
            "first records were deleted, so no history is whole (an event topic keeps its messages "
            "for ever: retention.ms=-1, retention.bytes=-1, cleanup.policy=delete)"
        )

    def _is_stalled(self) -> bool:
        """Whether nothing comes although there is more."""
        now = time.monotonic()
        if now < self._progress_at + STALL_TIMEOUT:
            return False
        self._progress_at = now
        bounds = self._readers.bounds if self._uncommitted else self._readers.watermarks
        try:
            for partition, offset in self._index.next_offsets().items():
                if bounds(self._topic, partition)[1] > offset:
                    return True
                self._index.reach(partition, offset)
        except LogError as error:
            logger.debug("%s", error)
        return False

    def _replace(self, consumer: Consumer) -> Consumer:
        logger.warning(
            "following %s: nothing came, though there is more: beginning anew", self._topic
        )
        fresh = self._new_consumer()
        close_in_background(consumer)
        with self._lock:
            self._wanted.clear()
        self._assigned, self._positions = [], {}
        self._assign(fresh, self._index.next_offsets())
        return fresh
