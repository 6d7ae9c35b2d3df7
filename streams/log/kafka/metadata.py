"""Topics' partitions and their leaders, as the brokers tell them.

They are asked for again and again while a service runs, so not through the AdminClient (see
``forced_resets.py``), and through a consumer, as a producer's metadata requests may create topics.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException

# Documented there, though the package's __all__ does not list it.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    TopicMetadata,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.errors import NotFound, Unavailable
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry, SharedClient
from streams.log.names import topic_not_found

COUNT_TTL = 60.0
"""Seconds for which a topic's number of partitions is believed."""


class PartitionCount(NamedTuple):
    """How many partitions a topic has."""

    partitions: int
    read_at: float
    """Monotonic time."""


class Metadata:
    """The topics' metadata in one cluster (any thread)."""

    def __init__(self, consumer: SharedClient[Consumer], requests: RequestRetry) -> None:
        self._consumer = consumer
        self._requests = requests
        self._counts: dict[str, PartitionCount] = {}

    def read(self, topic: str, *, remember: bool = False) -> TopicMetadata:
        """A topic's partitions and their leaders now.

        :param remember: the number of partitions.
        :raises NotFound: there is no such topic.
        """
        # Of several brokers, one may not yet know a topic of which another has told us.
        known = self._counts.get(topic)
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while True:
            try:
                found = self._requests.run(
                    f"asking for topic {topic}", self._consumer, lambda c: self._ask(c, topic)
                )
            except NotFound as error:
                now = time.monotonic()
                if known is not None and now < min(deadline, known.read_at + COUNT_TTL):
                    time.sleep(0.05)
                    continue
                servers = self._requests.settings.hosts
                raise topic_not_found(
                    topic,
                    f", or `kafka-topics.sh --bootstrap-server {servers} --create "
                    f"--topic {topic} --partitions 8`",
                ) from error
            if remember:
                self._counts[topic] = PartitionCount(len(found.partitions), time.monotonic())
            return found

    @staticmethod
    def _ask(consumer: Consumer, topic: str) -> TopicMetadata:
        found: TopicMetadata = consumer.list_topics(topic, timeout=REQUEST_TIMEOUT).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return found

    def forget(self, topic: str) -> None:
        """Believe nothing that was read of this topic."""
        self._counts.pop(topic, None)

    def partition_count(self, topic: str) -> int:
        """How many partitions a topic has; asked again after a minute.

        :raises NotFound: there is no such topic.
        """
        known = self._counts.get(topic)
        if known is not None and time.monotonic() < known.read_at + COUNT_TTL:
            return known.partitions
        try:
            return len(self.read(topic, remember=True).partitions)
        except Unavailable:
            if known is None:
                raise
            return known.partitions

    def partitions_with_leader(self, topic: str) -> list[int]:
        """The partitions of a topic that have a leader now."""
        partitions = self.read(topic).partitions
        return [number for number, partition in partitions.items() if partition.leader >= 0]

    def check_partitions(self, topic: str, partitions: Iterable[int]) -> None:
        """See that a topic has these partitions.

        :raises NotFound: it lacks one, or there is no such topic.
        """
        for partition in partitions:
            count = self.partition_count(topic)
            if partition >= count:
                self.forget(topic)  # it may have grown
                count = self.partition_count(topic)
            if not 0 <= partition < count:
                raise NotFound(f"topic {topic!r} has {count} partitions, none numbered {partition}")
