"""How a Kafka topic is recognized as an event topic, and which settings it must have.

Kafka has no place for such a fact in a topic's settings. An event topic is known by the topic of
its snapshots (:mod:`.snapshot_index`), whose records say whose it is, or by its own first record.
The snapshots' number of partitions is also the number that was declared: where an administrator
has given the event topic more, keys would get a second history, so nothing is written any more.

It keeps its messages for ever, and acknowledged records must not be lost, as every reader decides
by them. So deletion, compaction and an unclean leader election are refused, and a minimum of
in-sync replicas below 2 is said where there are several.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from streams.errors import EventTopicError, LogError, NotFound, TopicMismatch
from streams.log.event_headers import EVENT
from streams.log.events import not_an_event_topic, partition_count_mismatch
from streams.log.kafka.client import RequestRetry
from streams.log.kafka.durability import replica_counts, topic_config
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.settings import MAX_MESSAGE_BYTES
from streams.log.kafka.snapshot_index import MARK, MARK_KEY, SUFFIX, is_mark, snapshot_topic
from streams.log.kafka.topics import Topics
from streams.log.names import check_topic, is_valid_name
from streams.log.protocol import Retention, TopicInfo
from streams.message import Headers, Position, Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

_Wanted = Callable[[Headers], bool]

KIND_TTL = 60.0
"""Seconds for which a topic is believed to be none."""

WRITE_TIMEOUT = 130.0
"""Seconds that a write of our own is waited for: longer than the driver tries."""

EVENT_TOPIC_CONFIG = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
}

SNAPSHOT_TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),  # a state may be larger than its events
}


def write_records(writer: Writer, topic: str, records: Sequence[Record]) -> list[Position]:
    """Write records, and wait until all are confirmed.

    :raises LogError: one is not.
    """
    results: list[Position | LogError] = []
    finished = threading.Event()

    def on_written(found: Sequence[Position | LogError]) -> None:
        results.extend(found)
        finished.set()

    writer.append(topic, records, on_written)
    if not finished.wait(WRITE_TIMEOUT):
        raise LogError(f"{topic}: the driver never said what became of a write")
    for each in results:
        if isinstance(each, LogError):
            raise each
    return [each for each in results if isinstance(each, Position)]


class EventTopics:
    """The event topics of one cluster (any thread)."""

    def __init__(
        self,
        topics: Topics,
        writer: Callable[[], Writer],
        readers: ReaderPool,
        requests: RequestRetry,
    ) -> None:
        self._topics = topics
        self._writer = writer
        self._readers = readers
        self._metadata = readers.metadata
        self._requests = requests
        self._declared: dict[str, int] = {}
        """Event topics, and the number of partitions that each was declared with."""
        self._plain: dict[str, float] = {}
        """Topics that are none, and until when that is believed."""

    # -- which are

    def refuses_records(self, topic: str, *, ask: bool = True) -> bool:
        """Whether a topic takes nothing but appends. One question to the brokers a topic, asked
        again after a minute about one that takes records; what was known before is believed where
        they do not answer."""
        if topic in self._declared:
            return True
        if not ask or time.monotonic() < self._plain.get(topic, 0.0):
            return False
        try:
            found = self._has_snapshots(topic)
        except LogError:
            return False
        if not found:
            self._plain[topic] = time.monotonic() + KIND_TTL
        return found

    def is_marked(self, topic: str) -> bool:
        """Whether a topic was declared as an event topic, by whomever.

        :raises LogError: it cannot be known now.
        """
        return topic in self._declared or self._has_snapshots(topic)

    def is_event_topic(self, topic: str) -> bool:
        """Whether a topic holds histories, as its snapshots say, or its own first record.

        :raises LogError: it cannot be known now.
        """
        if topic in self._declared or self._has_snapshots(topic):
            return True
        found = self._events_in(topic)
        if found is not None:
            self._declared[topic] = found
        return found is not None

    def _has_snapshots(self, topic: str) -> bool:
        snapshots = snapshot_topic(topic)
        if not is_valid_name(snapshots) or topic.endswith(SUFFIX):
            return False
        try:
            count = len(self._metadata.read(snapshots).partitions)
            if not self._holds(snapshots, 1, is_mark):
                return False
        except NotFound:  # it may be deleted meanwhile
            return False
        self._declared[topic] = count
        return True

    def _events_in(self, topic: str) -> int | None:
        """How many partitions a topic has, if it holds events; else None."""
        try:
            count = len(self._metadata.read(topic).partitions)
            return count if self._holds(topic, count, _is_event) else None
        except NotFound:
            return None

    def _holds(self, topic: str, partitions: int, wanted: _Wanted) -> bool:
        """Whether the first record there is in a topic is of some kind."""
        for partition in range(partitions):
            first, end = self._readers.bounds(topic, partition)
            if first < end:
                reader = self._readers.open_reader(topic, partition, first, end, uncommitted=True)
                try:
                    batch = reader.read(1)
                finally:
                    reader.close()
                if batch is not None:
                    return wanted(batch.headers(0))
        return False

    def declared_count(self, topic: str) -> int:
        """How many partitions an event topic was declared with: over these keys are placed.

        :raises EventTopicError: it is none.
        :raises NotFound: there is no such topic.
        """
        found = self._declared.get(topic)
        if found is None:
            self._metadata.partition_count(topic)
            if not self.is_event_topic(topic):
                raise not_an_event_topic(topic)
            found = self._declared[topic]
        return found

    def writable_count(self, topic: str) -> int:
        """The same, if the topic still has so many.

        :raises PartitionCountMismatch: it has not. That is noticed within a minute.
        """
        declared = self.declared_count(topic)
        found = self._metadata.partition_count(topic)
        if found != declared:
            raise partition_count_mismatch(topic, found, declared)
        return declared

    def forget(self, topic: str) -> None:
        """Believe nothing about a topic."""
        self._declared.pop(topic, None)
        self._plain.pop(topic, None)
        self._metadata.forget(topic)

    # -- creating

    def create(self, topic: str, partitions: int) -> TopicInfo:
        """See :meth:`streams.log.events.EventLog.create_event_topic`."""
        snapshots = snapshot_topic(check_topic(topic))
        check_topic(snapshots)
        self.forget(topic)
        try:
            info = self._topics.describe_topic(topic)
        except NotFound:
            info = self._create(topic, partitions)
        else:
            if not self.is_event_topic(topic) and not self._may_become_one(topic):
                raise not_an_event_topic(topic)
        if info.partitions != partitions:
            raise partition_count_mismatch(topic, info.partitions, partitions)
        # Should its snapshots have been deleted, or its creator been killed before the mark.
        declared = self._ensure_snapshots(topic, partitions)
        if declared != partitions:
            raise partition_count_mismatch(topic, partitions, declared)
        self._check_settings(topic)
        self._declared[topic] = partitions
        self._plain.pop(topic, None)
        return info._replace(retention=Retention(), is_event_topic=True)

    def _create(self, topic: str, partitions: int) -> TopicInfo:
        # The snapshots first: whoever finds the event topic finds them, too.
        declared = self._ensure_snapshots(topic, partitions)
        if declared != partitions:
            raise partition_count_mismatch(topic, partitions, declared)
        config = dict(EVENT_TOPIC_CONFIG)
        replicas, _ = replica_counts(self._requests, snapshot_topic(topic))
        if replicas > 1:
            config["unclean.leader.election.enable"] = "false"
        if replicas > 2:
            config["min.insync.replicas"] = "2"
        try:
            return self._topics.create_topic(topic, partitions, Retention(), config)
        except TopicMismatch:  # somebody else was faster
            return self._topics.describe_topic(topic)

    def _may_become_one(self, topic: str) -> bool:
        """Whether an administrator has created a topic and its snapshots, and nobody used them."""
        try:
            count = len(self._metadata.read(snapshot_topic(topic)).partitions)
        except NotFound:
            return False
        return not self._has_records(snapshot_topic(topic), count) and not self._has_records(
            topic, self._metadata.partition_count(topic)
        )

    def _has_records(self, topic: str, partitions: int) -> bool:
        return any(
            first < end
            for first, end in (self._readers.bounds(topic, each) for each in range(partitions))
        )

    def _ensure_snapshots(self, topic: str, partitions: int) -> int:
        """Create the topic of the snapshots, unless there is one; how many partitions it has."""
        snapshots = snapshot_topic(topic)
        try:
            count = len(self._metadata.read(snapshots).partitions)
        except NotFound:
            try:
                info = self._topics.create_topic(
                    snapshots, partitions, Retention(compacted=True), SNAPSHOT_TOPIC_CONFIG
                )
            except TopicMismatch:  # somebody else was faster
                info = self._topics.describe_topic(snapshots)
            count = info.partitions
        if not self._has_records(snapshots, 1):
            mark = Record(b"", MARK_KEY, "declared", [(MARK, b"%d" % partitions)], 0)
            write_records(self._writer(), snapshots, [mark])
        elif not self._holds(snapshots, 1, is_mark):
            raise EventTopicError(
                f"topic {snapshots!r} exists and holds no snapshots: give the aggregate another "
                "name"
            )
        return count

    def _check_settings(self, topic: str) -> None:
        """See that an event topic keeps what was acknowledged.

        :raises EventTopicError: it does not.
        """
        config = topic_config(self._requests, topic)
        if not config:
            logger.debug("%s: this login may not ask for its settings", topic)
            return
        wanted = dict(EVENT_TOPIC_CONFIG)
        replicas, _ = replica_counts(self._requests, topic)
        if replicas > 1:
            wanted["unclean.leader.election.enable"] = "false"
        wrong = {name: value for name, value in wanted.items() if config.get(name, value) != value}
        if wrong:
            found = ", ".join(f"{name}={config[name]}" for name in wrong)
            pairs = ",".join(f"{name}={value}" for name, value in wrong.items())
            hosts = self._requests.settings.hosts
            raise EventTopicError(
                f"event topic {topic!r} has {found}: it would lose events, and histories would "
                f"change. `kafka-configs.sh --bootstrap-server {hosts} --alter --entity-type "
                f"topics --entity-name {topic} --add-config {pairs}` sets it right"
            )
        flushes_each = config.get("flush.messages") == "1"
        if replicas > 1 and int(config.get("min.insync.replicas") or "1") < 2 and not flushes_each:
            logger.warning(
                "event topic %r has %d replicas and min.insync.replicas=1: one broker's memory is "
                "enough for an acknowledgement, and events can be lost with it; set it to 2",
                topic, replicas,
            )  # fmt: skip


def _is_event(headers: Headers) -> bool:
    return any(name == EVENT for name, _ in headers)
