"""What is known of an event topic's histories: an index in memory, folded from the log.

Kafka has no way to ask for one key's messages, so whoever decides upon histories reads their whole
partitions once, from the start, and follows them from then on. The index keeps no events, only
where they stand: for each key the offsets of the events that count, and where its history ends.

One consumer and one thread serve all partitions of a topic that are in use. A writer's own records
need not be waited for: where they stand right behind what was folded, they are folded as soon as
the broker has confirmed them.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.event_headers import CAUSE, EVENT, FINAL, MAX_CAUSE, parse_event
from streams.log.events import EMPTY, Caused, Head
from streams.log.kafka.arbitration import Arbiter, Counted
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.client import close_in_background
from streams.log.kafka.errors import OUT_OF_RANGE
from streams.log.kafka.reader import ReaderPool
from streams.message import Headers
from streams.text import get_logger
from streams.wire import text

logger = get_logger("streams.kafka")

FETCH_LIMIT = 5_000
"""Messages that are folded at once."""

POLL_TIMEOUT = 0.1
"""Seconds that the thread waits for a message."""

WAIT_TIMEOUT = 30.0
"""Seconds without any progress after which whoever waits for the index is told so."""

REPORT_INTERVAL = 5.0
"""Seconds between two lines about an index that is being built."""

OnDecided = Callable[["Counted | Head | LogError"], None]
"""Called once with what became of an append: it counts; or where its history ended when it did not;
or why nobody can say."""

_Decided = tuple[OnDecided, "Counted | Head | LogError"]


class KeyIndex:
    """One key's history: where its events stand."""

    __slots__ = ("offsets", "refusals")

    def __init__(self) -> None:
        self.offsets = array("q")
        """Of the events, by version - 1."""
        self.refusals: dict[str, tuple[int, int]] | None = None
        """Version and offset of each refusal, by its record's ID."""


class PartitionIndex:
    """The histories of one partition. Not thread-safe: the topic's lock is held."""

    def __init__(self) -> None:
        self.next_offset = 0
        """Everything below was folded."""
        self.arbiter = Arbiter()
        self.keys: dict[bytes, KeyIndex] = {}
        self.causes: dict[tuple[bytes, str], Caused] = {}
        self.event_count = 0
        self.uncounted: set[int] = set()
        """Offsets of records that do not count, or not yet."""
        self.sorted_keys: list[bytes] = []
        """The keys in order, as far as somebody listed them."""
        self._watched: dict[str, OnDecided] = {}
        """By append: who waits for what becomes of it."""
        self._ends: dict[str, tuple[int, bytes]] = {}
        """By append: the offset of its last record, once that is known, and its key."""
        self._decided: list[_Decided] = []

    def watch(self, append_id: str, on_decided: OnDecided) -> None:
        """Tell somebody what becomes of an append that is about to be written."""
        self._watched[append_id] = on_decided

    def unwatch(self, append_id: str) -> None:
        """Nobody waits for an append any more."""
        self._watched.pop(append_id, None)
        self._ends.pop(append_id, None)

    def written(self, append_id: str, key: bytes, last_offset: int) -> None:
        """An append that is watched stands in the log up to this offset."""
        if append_id in self._watched:
            self._ends[append_id] = last_offset, key
            self._settle_passed()

    def feed(self, offset: int, key: bytes | None, record_id: str, headers: Headers) -> None:
        """Fold the next record."""
        value, cause, is_final = None, "", False
        for name, data in headers:
            if name == EVENT:
                value = data
            elif name == CAUSE and data and len(data) <= MAX_CAUSE:
                cause = text(data)
            elif name == FINAL:
                is_final = data == b"1"
        header = None if value is None else parse_event(value, record_id)
        counted = self.arbiter.feed(offset, key, record_id, header, cause, is_final)
        self.next_offset = offset + 1
        if counted is None:
            self.uncounted.add(offset)
        else:
            self._add(counted)

    def _add(self, counted: Counted) -> None:
        index = self.keys.get(counted.key)
        if index is None:
            index = self.keys[counted.key] = KeyIndex()
        version = counted.base.version
        if counted.is_refusal:
            if index.refusals is None:
                index.refusals = {}
            index.refusals[counted.append_id] = version, counted.offsets[0]
            self.uncounted.add(counted.offsets[0])
        else:
            index.offsets.extend(counted.offsets)
            self.event_count += len(counted.offsets)
            if len(counted.offsets) > 1:
                self.uncounted.difference_update(counted.offsets)
        if counted.cause:
            count = 0 if counted.is_refusal else len(counted.offsets)
            self.causes.setdefault((counted.key, counted.cause), Caused(version + 1, count))
        on_decided = self._watched.pop(counted.append_id, None)
        if on_decided is not None:
            self._ends.pop(counted.append_id, None)
            self._decided.append((on_decided, counted))

    def decided_until(self) -> int:
        """Of all records below this offset it is known whether they count."""
        first = self.arbiter.first_pending_offset()
        return self.next_offset if first is None else first

    def skip_to(self, offset: int) -> None:
        """There is no record below this offset that was not folded."""
        if offset > self.next_offset:
            self.next_offset = offset

    def settle(self) -> None:
        """Tell those whose appends were passed and did not count."""
        if self._ends:
            self._settle_passed()

    def _settle_passed(self) -> None:
        passed = [id for id, (offset, _) in self._ends.items() if offset < self.next_offset]
        for append_id in passed:
            _, key = self._ends.pop(append_id)
            self._decided.append((self._watched.pop(append_id), self.arbiter.head(key)))

    def fail(self, error: LogError) -> None:
        """Nothing will be folded any more: nobody can say what becomes of what is watched."""
        self._decided += [(on_decided, error) for on_decided in self._watched.values()]
        self._watched.clear()
        self._ends.clear()

    def take_decided(self) -> Sequence[_Decided]:
        """Who is to be told what, now that the lock can be released."""
        decided, self._decided = self._decided, []
        return decided


class TopicIndex:
    """The index of one event topic, as far as its partitions are in use (any thread).

    The thread is the only user of the consumer. ``lock`` guards the partitions and is held for a
    batch of records at most; whoever is to be told something is told after it was released.
    """

    def __init__(self, topic: str, readers: ReaderPool) -> None:
        self.topic = topic
        self.lock = threading.Lock()
        self.partitions: dict[int, PartitionIndex] = {}
        self._readers = readers
        self._changed = threading.Condition(self.lock)
        self._wanted: list[int] = []
        """Partitions that the consumer is still to be given."""
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._error: LogError | None = None
        self._folded_at = time.monotonic()
        """When something was folded last, or it was certain that there is nothing."""

    def wait(self, ends: Mapping[int, int], *, until_decided: bool = False) -> None:
        """Wait until these partitions are folded up to these offsets.

        :param until_decided: also until it is known of each record below whether it counts.
        :raises Unavailable: there was no progress for :data:`WAIT_TIMEOUT` seconds.
        """
        with self._changed:
            self._use(ends)
            self._folded_at = max(self._folded_at, time.monotonic() - WAIT_TIMEOUT / 2)
            while any(
                self._reached(self.partitions[each], until_decided) < end
                for each, end in ends.items()
            ):
                if self._error is not None:
                    raise type(self._error)(str(self._error)) from self._error
                if self._closed:
                    raise Unavailable(f"{self.topic}: this log is closed")
                remaining = self._folded_at + WAIT_TIMEOUT - time.monotonic()
                if remaining <= 0:
                    raise Unavailable(
                        f"{self.topic}: nothing of its end could be read for {WAIT_TIMEOUT:g} s"
                    )
                self._changed.wait(min(remaining, 1.0))

    @staticmethod
    def _reached(index: PartitionIndex, until_decided: bool) -> int:
        return index.decided_until() if until_decided else index.next_offset

    def _use(self, partitions: Iterable[int]) -> None:
        """Begin to follow partitions (the lock is held)."""
        new = [each for each in partitions if each not in self.partitions]
        for partition in new:
            self.partitions[partition] = PartitionIndex()
        self._wanted += new
        if self._thread is None:
            name = f"streams-{self.topic}-index"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def written(self, partition: int, records: Sequence[tuple[int, bytes, str, Headers]]) -> None:
        """Take note of an append that was written, and fold it at once if nothing stands between it
        and what was folded.

        :param records: offset, key, ID and headers of each, in order.
        """
        with self._changed:
            index = self.partitions[partition]
            last_offset, key, _, _ = records[-1]
            index.written(records[0][2], key, last_offset)
            for record in records:
                if record[0] == index.next_offset:
                    index.feed(*record)
            index.settle()
            decided = index.take_decided()
            self._changed.notify_all()
        _tell(decided)

    def watch(self, partition: int, append_id: str, on_decided: OnDecided) -> None:
        """Tell somebody what becomes of an append that is about to be written.

        :raises LogError: nothing is folded any more.
        """
        with self.lock:
            if self._error is not None:
                raise type(self._error)(str(self._error)) from self._error
            self.partitions[partition].watch(append_id, on_decided)

    def unwatch(self, partition: int, append_id: str) -> None:
        """Nobody waits for an append any more."""
        with self.lock:
            self.partitions[partition].unwatch(append_id)

    def decided_until(self, partition: int) -> int:
        """How far it is known which records count. Does not block.

        :raises LogError: nothing is folded any more.
        """
        with self.lock:
            if self._error is not None:
                raise type(self._error)(str(self._error)) from self._error
            self._use([partition])
            return self.partitions[partition].decided_until()

    def uncounted_offsets(self, partition: int, first: int, end: int) -> list[int]:
        """Which records from ``first`` up to, not including, ``end`` do not count; waits until that
        is decided."""
        self.wait({partition: end}, until_decided=True)
        with self.lock:
            uncounted = self.partitions[partition].uncounted
            return [offset for offset in range(first, end) if offset in uncounted]

    def close(self) -> None:
        """Stop following."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    # -- the thread

    def _run(self) -> None:
        try:
            consumer = self._consumer = self._readers.new_consumer()
        except LogError as error:
            self._fail(error)
            return
        report_at = time.monotonic() + REPORT_INTERVAL
        try:
            while not self._closed:
                self._assign_wanted(consumer)
                self._fold_next(consumer)
                if time.monotonic() >= report_at:
                    report_at = time.monotonic() + REPORT_INTERVAL
                    self._report()
        except LogError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the index of %s failed", self.topic)
            self._fail(LogError(f"{self.topic}: its index failed: {error!r}"))
        finally:
            close_in_background(consumer)

    def _fail(self, error: LogError) -> None:
        unknown = OutcomeUnknown(f"written, but not read back: {error}")
        with self._changed:
            self._error = error
            decided = []
            for index in self.partitions.values():
                index.fail(unknown)
                decided += index.take_decided()
            self._changed.notify_all()
        _tell(decided)

    def _assign_wanted(self, consumer: Consumer) -> None:
        with self.lock:
            wanted, self._wanted = self._wanted, []
            starts = [
                KTopicPartition(self.topic, each, self.partitions[each].next_offset)
                for each in wanted
            ]
        if starts:
            try:
                consumer.incremental_assign(starts)
            except KafkaException as error:
                raise self._readers.translate(error, f"reading {self.topic}") from error

    def _fold_next(self, consumer: Consumer) -> None:
        try:
            messages: list[Any] = consumer.consume(1, POLL_TIMEOUT)
            if messages:
                messages += consumer.consume(FETCH_LIMIT - 1, 0.0)
        except KafkaException as error:
            raise self._readers.translate(error, f"reading {self.topic}") from error
        errors = remove_errors(messages)
        batches = [
            KafkaBatch(self.topic, partition, run)
            for _, partition, run in split_by_partition(messages, self.topic)
        ]
        for batch in batches:
            # Read before the lock is taken, as the driver takes its time over headers.
            rows = [
                (offset, key, batch.id(number), batch.headers(number))
                for number, (offset, key) in enumerate(zip(batch.offsets, batch.keys, strict=True))
            ]
            with self._changed:
                index = self.partitions[batch.partition]
                for row in rows:
                    if row[0] >= index.next_offset:
                        index.feed(*row)
                decided = self._progressed(index)
            _tell(decided)
        for failed in errors:
            self._handle_error(failed)

    def _progressed(self, index: PartitionIndex) -> Sequence[_Decided]:
        index.settle()
        self._folded_at = time.monotonic()
        self._changed.notify_all()
        return index.take_decided()

    def _handle_error(self, failed: Any) -> None:
        error: KafkaError = failed.error()
        partition = failed.partition()
        if error.code() == KafkaError._PARTITION_EOF and partition in self.partitions:
            with self._changed:
                index = self.partitions[partition]
                index.skip_to(failed.offset())
                decided = self._progressed(index)
            _tell(decided)
            return
        translated = self._readers.translate(error, f"reading {self.topic}")
        if error.code() in OUT_OF_RANGE:
            translated = LogError(
                f"{self.topic}/{partition}: its first events were deleted, so no history is whole: "
                "an event topic keeps its messages for ever (retention.ms=-1, retention.bytes=-1)"
            )
        elif isinstance(translated, Unavailable):
            logger.debug("%s", translated)  # the driver tries again
            return
        raise translated

    def _report(self) -> None:
        """Say how far an index is that takes its time."""
        with self.lock:
            if not self._consumer or time.monotonic() - self._folded_at > REPORT_INTERVAL:
                return
            folded = sum(each.next_offset for each in self.partitions.values())
        logger.debug("the index of %s: %d records", self.topic, folded)

    # -- what is known (the lock is held)

    def head(self, partition: int, key: bytes) -> Head:
        """Where a key's history ends."""
        return self.partitions[partition].arbiter.heads.get(key, EMPTY)

    def offset_at(self, partition: int, key: bytes, version: int) -> int | None:
        """Where the event of a version stands."""
        found = self.partitions[partition].keys.get(key)
        if found is None or not 1 <= version <= len(found.offsets):
            return None
        return found.offsets[version - 1]

    def refusal(self, partition: int, key: bytes, record_id: str) -> tuple[int, int] | None:
        """Version and offset of a refusal."""
        found = self.partitions[partition].keys.get(key)
        if found is None or found.refusals is None:
            return None
        return found.refusals.get(record_id)


def _tell(decided: Sequence[_Decided]) -> None:
    for on_decided, found in decided:
        on_decided(found)
