"""Which topics of a cluster are event topics, and what their readers are given of them.

An event topic is marked by the topic of its snapshots (:mod:`streams.log.kafka.event_topics`).
Where that is gone, or may not be seen by this user, it is known by what stands in it: it keeps its
messages for ever, and most of the first records of its partitions say which append they belong to
(:mod:`streams.log.event_headers`). One record does not make one, nor unmake it, whoever wrote it.

Whether a record of an event topic counts is known when the partition's index has passed it
(:mod:`streams.log.kafka.event_index`). Until then it is held back, and so is what stands behind it.
A reader outside a group waits for that. A member of a group goes on with its other partitions and
stays a member: what is held back is looked at again with each poll, and while there is any, next to
nothing more is polled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.config import DeadLetters
from streams.errors import LogError, Unavailable
from streams.log.event_filter import ForeignRecords, select_rows
from streams.log.event_headers import VOID, event_header, parse_event
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.event_topics import KIND_TTL, EventTopics
from streams.log.kafka.events import Events
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.topics import Topics
from streams.log.protocol import Assignment, Retention, TopicPartition
from streams.message import Batch
from streams.text import get_logger

logger = get_logger("streams.kafka")

SAMPLED_PARTITIONS = 4
"""Partitions whose first records are looked at, at most."""

SAMPLED_RECORDS = 10
"""Records of each that are looked at, at most."""

SAMPLE_TIMEOUT = 5.0
"""Seconds for which they are waited for, at most."""

HELD_WAIT = 0.05
"""Seconds for which a poll that has messages waits until it is known which of them count."""


class KnownTopics:
    """Which topics are event topics, for their readers (any thread)."""

    def __init__(self, kinds: EventTopics, topics: Topics, readers: ReaderPool) -> None:
        self._kinds = kinds
        self._topics = topics
        self._readers = readers
        self._known: set[str] = set()
        self._plain: dict[str, float] = {}
        """Topics that are none, and until when that is believed."""

    def declare(self, topic: str) -> None:
        """It is one: it was declared."""
        self._known.add(topic)

    def forget(self, topic: str) -> None:
        """It is deleted, so it may be another one next time."""
        self._known.discard(topic)
        self._plain.pop(topic, None)

    def known(self, topic: str) -> bool | None:
        """Whether it is one, as far as that is known already. Never blocks."""
        if topic in self._known:
            return True
        return False if time.monotonic() < self._plain.get(topic, 0.0) else None

    def is_event_topic(self, topic: str) -> bool:
        """Whether it is one. One that was not declared and has no messages is none yet, and is
        looked at again.

        :raises LogError: that cannot be found out now.
        """
        found = self.known(topic)
        if found is None:
            found = self._is_marked(topic) or self._look_at(topic)
            if found:
                self._known.add(topic)
            elif found is not None:
                self._plain[topic] = time.monotonic() + KIND_TTL
        return bool(found)

    def _is_marked(self, topic: str) -> bool:
        try:
            return self._kinds.is_marked(topic)
        except Unavailable:
            raise
        except LogError as error:  # this user may not see the mark, perhaps
            logger.debug("whether %s is an event topic: %s", topic, error)
            return False

    def have_only_events(self, topics: Sequence[str], group: str) -> bool:
        """Whether each of these is marked as an event topic, or is the retry topic of one for this
        group, which nobody writes in transactions."""
        marked = [topic for topic in topics if self._is_known_or_marked(topic)]
        put_back = [DeadLetters.RETRY.format(topic=each, group=group) for each in marked]
        return bool(marked) and set(topics) <= {*marked, *put_back}

    def _is_known_or_marked(self, topic: str) -> bool:
        found = self.known(topic)
        if found is None:
            found = self._is_marked(topic)
            if found:
                self._known.add(topic)
        return found

    def _look_at(self, topic: str) -> bool | None:
        """Whether its first records are those of an event topic; None: it has no records."""
        starts = self._first_offsets(topic)
        events = records = 0
        for batch in self._first_records(topic, starts) if starts else ():
            records += len(batch)
            events += sum(_is_of_append(batch, index) for index in range(len(batch)))
        if not records:
            return None
        if 2 * events <= records:
            return False
        info = self._topics.describe_topic(topic)
        return info.retention == Retention() or not info.retention_known

    def _first_offsets(self, topic: str) -> list[KTopicPartition]:
        """Where some of its partitions begin that are not empty, as far as their brokers answer."""
        starts: list[KTopicPartition] = []
        error: LogError | None = None
        deadline = time.monotonic() + SAMPLE_TIMEOUT
        for partition in self._readers.metadata.partitions_with_leader(topic):
            if len(starts) == SAMPLED_PARTITIONS or (starts and time.monotonic() > deadline):
                break
            try:
                first, end = self._readers.bounds(topic, partition)
            except LogError as failure:
                error = failure
                continue
            if first < end:
                starts.append(KTopicPartition(topic, partition, first))
        if error is not None and not starts:
            raise error
        return starts

    def _first_records(self, topic: str, starts: Sequence[KTopicPartition]) -> list[KafkaBatch]:
        """Those of each partition, which may be none."""
        readers = self._readers
        consumer = readers.acquire(uncommitted=True)
        healthy = False
        try:
            consumer.assign(list(starts))
            found: dict[int, list[Any]] = {each.partition: [] for each in starts}
            waiting = set(found)
            deadline = time.monotonic() + SAMPLE_TIMEOUT
            while waiting and time.monotonic() < deadline:
                messages = consumer.consume(1, 0.1)
                messages += consumer.consume(SAMPLED_RECORDS * len(starts), 0.0)
                errors: list[Any] = remove_errors(messages)
                for name, partition, run in split_by_partition(messages, None):
                    if name == topic and partition in waiting:
                        found[partition] += run
                        if len(found[partition]) >= SAMPLED_RECORDS:
                            waiting.discard(partition)
                for failed in errors:  # behind the messages that came before the end
                    is_end = failed.error().code() == KafkaError._PARTITION_EOF
                    if is_end and failed.topic() == topic:
                        waiting.discard(failed.partition())
            if waiting and not any(found.values()):
                raise Unavailable(
                    f"Kafka, reading {topic}: nothing came within {SAMPLE_TIMEOUT:g} s, so it is "
                    "not known whether it is an event topic"
                )
            healthy = True
            return [
                KafkaBatch(topic, partition, run[:SAMPLED_RECORDS])
                for partition, run in found.items()
                if run
            ]
        except KafkaException as error:
            raise readers.translate(error, f"reading {topic}") from error
        finally:
            readers.release(consumer, healthy=healthy, uncommitted=True)


def _is_of_append(batch: Batch, index: int) -> bool:
    """Whether a record says rightly which append it belongs to, or that one does not count."""
    headers = batch.headers(index)
    value = event_header(headers)
    if value is None:
        return any(name == VOID for name, _ in headers)
    return parse_event(value, batch.id(index)) is not None


class EventReaders:
    """Filters the records that count in the event topics of one log (any thread)."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._foreign = ForeignRecords()
        self.decided_until = events.decided_until
        self.wait_until_decided = events.wait_until_decided

    def events_of(self, batch: Batch) -> Batch:
        """The events of a batch, which may be none; waits until that is known.

        :raises Unavailable: the index has not got on for half a minute.
        """
        topic, partition, offsets = batch.topic, batch.partition, batch.offsets
        dropped = set(self._events.uncounted_offsets(topic, partition, offsets[0], offsets[-1] + 1))
        if not dropped:
            return batch
        uncounted = [row for row, offset in enumerate(offsets) if offset in dropped]
        foreign = [row for row in uncounted if not _is_of_append(batch, row)]
        if foreign:
            self._foreign.report(batch, foreign)
        return select_rows(
            batch, [row for row, offset in enumerate(offsets) if offset not in dropped]
        )


MayDeliver = Callable[[Assignment], "bool | None"]
"""Whether an assignment's messages may be given out; None: never, as it is ours no more."""


class _HeldBatches:
    """The polled batches of one assignment that are held back, in order."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.batches: list[KafkaBatch] = []

    @property
    def first_offset(self) -> int:
        """The first offset of the held messages."""
        return self.batches[0].offsets[0]


class PolledEvents:
    """Filters what a group's member polls of its topics, some of which are or may be event topics.
    Used by one thread at a time.

    :param readers: know which records count.
    """

    def __init__(
        self, topics: Sequence[str], readers: EventReaders, known_topics: KnownTopics
    ) -> None:
        self._topics = topics
        self._readers = readers
        self._known_topics = known_topics
        self._is_event_topic: dict[str, bool] = {}
        self._held: dict[TopicPartition, _HeldBatches] = {}

    def holds_back(self, may_deliver: MayDeliver) -> bool:
        """Something was polled that may be given out as soon as it is known whether it counts."""
        return any(may_deliver(held.assignment) for held in self._held.values())

    @property
    def is_needed(self) -> bool:
        """One of the topics is an event topic, or may be."""
        return bool(self._held) or any(
            self._is_event_topic.get(topic) is not False for topic in self._topics
        )

    def pass_on(
        self,
        batches: Sequence[KafkaBatch],
        timeout: float,
        may_deliver: MayDeliver,
    ) -> list[Batch]:
        """The batches to give out now, of those polled and those held back.

        :param timeout: seconds to wait if there are none.
        :raises LogError: which records count cannot be known now; no polled batch is lost.
        """
        passed: list[Batch] = []
        for batch in batches:
            assignment = batch.assignment
            held = self._held.get(assignment.topic_partition)
            if held is not None and held.assignment is assignment:
                held.batches.append(batch)
            elif self._is_event_topic.get(batch.topic) is False:
                passed.append(batch)
            else:
                held = self._held[assignment.topic_partition] = _HeldBatches(assignment)
                held.batches.append(batch)
        if self._held:
            passed += self._take_decided(may_deliver)
            if not passed and timeout > 0 and self._wait_for_first(timeout, may_deliver):
                passed += self._take_decided(may_deliver)
        return passed

    def _take_decided(self, may_deliver: MayDeliver) -> list[Batch]:
        decided: list[Batch] = []
        for key, held in list(self._held.items()):
            may = may_deliver(held.assignment)
            if may is None:
                del self._held[key]
            elif may:
                try:
                    self._move_decided(*key, held, decided)
                except LogError:
                    if decided:
                        break  # they are given out first: the next poll raises, too
                    raise
                if not held.batches:
                    del self._held[key]
        return decided

    def _move_decided(
        self, topic: str, partition: int, held: _HeldBatches, decided: list[Batch]
    ) -> None:
        """Move what is decided upon from what is held of a partition."""
        if not self._is_event(topic):
            decided += held.batches
            held.batches = []
            return
        end = self._readers.decided_until(topic, partition)
        while held.batches and held.first_offset < end:
            known, rest = held.batches[0].split_at(end)
            decided.append(self._readers.events_of(known))
            held.batches[:1] = [] if rest is None else [rest]

    def _is_event(self, topic: str) -> bool:
        found = self._is_event_topic.get(topic)
        if found is None:
            found = self._known_topics.is_event_topic(topic)
            if self._known_topics.known(topic) is not None:
                self._is_event_topic[topic] = found
        return found

    def _wait_for_first(self, timeout: float, may_deliver: MayDeliver) -> bool:
        """Wait until something that is held is decided upon; whether it is."""
        for (topic, partition), held in self._held.items():
            if may_deliver(held.assignment):
                wanted = held.first_offset + 1
                return self._readers.wait_until_decided(topic, partition, wanted, timeout)
        return False
