"""Feeds an index: follows some partitions of a topic from given offsets on, while the log is open.

One consumer and one thread serve all partitions that are wanted. Of event topics the consumer reads
uncommitted records: see :mod:`streams.log.kafka.arbitration` for why transactions mean nothing
there.

What readers skip (the end of a transaction, records of one that was aborted) moves the consumer's
position and is no message, so the position is looked at whenever nothing came. That the driver
says where a partition ends would tell the same, but only after a fetch that found nothing, which
waits for ``fetch.wait.max.ms``.

Brokers that go away are waited for. As a consumer of the driver can come out of that without ever
reading again (see ``client.py``), and can stop to fetch one partition while the others go on (see
``fetch_watch.py``), it is replaced where nothing comes of a partition although the log has more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import LogError, NotFound, Unavailable
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.client import close_in_background
from streams.log.kafka.errors import GROUP_REFUSED, OUT_OF_RANGE
from streams.log.kafka.partition_probe import PartitionProbe
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
"""Seconds in which nothing comes of a partition, after which the log is asked where it ends."""

CONFIRMATION = 3.0
"""Seconds that the driver gets to bring what the log is known to have."""

LOG_TRUNCATION: int = KafkaError._LOG_TRUNCATION
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
        """Some time has passed.

        :raises HistoryGone: what is followed is not what was read.
        """
        ...

    def fail(self, error: LogError) -> None:
        """Nothing will follow any more."""
        ...


class Patience:
    """How long somebody waits for partitions of which nothing comes; what comes of others does not
    count.

    :param timeout: seconds without progress in any of them.
    """

    def __init__(self, topic: str, timeout: float) -> None:
        self._topic = topic
        self._timeout = timeout
        self._seen: Mapping[int, int] | None = None
        self._ends_at = 0.0

    def remaining(self, behind: Mapping[int, int]) -> float:
        """Seconds that are left.

        :param behind: the partitions that are waited for, and how far each is.
        :raises Unavailable: there are none.
        """
        now = time.monotonic()
        if behind != self._seen:
            self._seen, self._ends_at = behind, now + self._timeout
        elif now >= self._ends_at:
            where = ", ".join(f"{each} from offset {behind[each]} on" for each in sorted(behind))
            raise Unavailable(
                f"{self._topic}: no progress within {self._timeout:g} s on partition {where}"
            )
        return self._ends_at - now


@dataclass(slots=True)
class _Progress:
    """How it stands with one partition."""

    ask_at: float
    """When the log is asked where it ends, unless something comes before (monotonic time)."""
    behind_since: float | None = None
    """When the log was found to have more than has come."""


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
        """Partitions still to be assigned to the consumer, with their start offsets."""
        self._assigned: list[KTopicPartition] = []
        self._positions: dict[int, int] = {}
        """The consumer's position in each assigned partition, at the last check."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._progress: dict[int, _Progress] = {}
        """By assigned partition, its progress since its last record arrived."""
        self._drained_at = float("-inf")
        """When the driver had nothing more in its queue."""
        self._ends = PartitionProbe(readers.end if uncommitted else readers.end_of_committed)
        self._asked_offsets: Mapping[int, int] = {}
        """Up to where the partitions were read whose ends are asked for."""

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
        self._ends.close()
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
                self._fold_next(consumer)
                if time.monotonic() >= tick_at:
                    tick_at = time.monotonic() + TICK
                    self._index.tick()
                    if stalled := self._find_stalled():
                        consumer = self._replace(consumer, stalled)
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
        for each in starts:
            self._has_moved(each)

    def _has_moved(self, partition: int) -> None:
        """Something came of a partition."""
        self._progress[partition] = _Progress(time.monotonic() + STALL_TIMEOUT)

    def _fold_next(self, consumer: Consumer) -> None:
        """Handle what came."""
        try:
            messages: list[Any] = consumer.consume(1, POLL_TIMEOUT)
            if messages:
                messages += consumer.consume(FETCH_LIMIT - 1, 0.0)
            if len(messages) < FETCH_LIMIT:
                self._drained_at = time.monotonic()
            if not messages:
                self._reach_positions(consumer)
        except KafkaException as error:
            raise self._readers.translate(error, f"reading {self._topic}") from error
        errors = remove_errors(messages)
        for _, partition, run in split_by_partition(messages, self._topic):
            self._index.fold(KafkaBatch(self._topic, partition, run))
            self._has_moved(partition)
        for failed in errors:
            self._handle_error(failed)

    def _reach_positions(self, consumer: Consumer) -> None:
        """Tell how far the consumer has got without a message."""
        for found in consumer.position(self._assigned) if self._assigned else ():
            partition, offset = found.partition, found.offset
            if offset > self._positions.get(partition, -1):  # below 0: nothing was read yet
                self._positions[partition] = offset
                self._index.reach(partition, offset)
                self._has_moved(partition)

    def _handle_error(self, failed: Any) -> None:
        error: KafkaError = failed.error()
        partition = failed.partition()
        if error.code() == KafkaError._PARTITION_EOF:
            self._index.reach(partition, failed.offset())
            self._has_moved(partition)
            return
        if error.code() == GROUP_REFUSED:
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
            return self._shorter_error(partition, wanted, end)
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

    def _shorter_error(self, partition: int, offset: int, end: int) -> HistoryGone:
        return HistoryGone(
            f"{self._topic}/{partition} was read up to offset {offset} and ends at {end} now: "
            "it was recreated, or has lost acknowledged records (unclean leader election?)"
        )

    def _find_stalled(self) -> Sequence[int]:
        """Partitions of which nothing comes although there is more. Never waits: to ask about one
        whose broker is away takes ten seconds, and the others go on.

        :raises HistoryGone: one ends before what was read of it.
        """
        now, offsets = time.monotonic(), self._index.next_offsets()
        is_busy = self._ends.is_busy  # before its answers are taken, so that all are of one asking
        for (_, partition), end in self._ends.take_outcomes().items():
            progress = self._progress.get(partition)
            if progress is None or end is None:
                continue  # its end could not be read
            if end < self._asked_offsets[partition]:
                raise self._shorter_error(partition, self._asked_offsets[partition], end)
            if end <= offsets[partition]:
                progress.behind_since = None
            elif progress.behind_since is None:
                progress.behind_since = now
        due = [number for number, each in self._progress.items() if each.ask_at <= now]
        if due and not is_busy:
            for partition in due:
                self._progress[partition].ask_at = now + STALL_TIMEOUT
            self._asked_offsets = {each: offsets[each] for each in due}
            self._ends.start([(self._topic, each) for each in due])
        return [
            number
            for number, each in self._progress.items()
            # The driver's queue was drained since, so nothing of it waits behind other partitions'.
            if each.behind_since is not None
            and self._drained_at >= each.behind_since + CONFIRMATION
        ]

    def _replace(self, consumer: Consumer, stalled: Sequence[int]) -> Consumer:
        logger.warning(
            "following %s: nothing came from partition %s, though there is more: restarting",
            self._topic, ", ".join(map(str, stalled)),
        )  # fmt: skip
        fresh = self._new_consumer()
        close_in_background(consumer)
        with self._lock:
            self._wanted.clear()
        self._assigned, self._positions, self._progress = [], {}, {}
        self._assign(fresh, self._index.next_offsets())
        return fresh
