"""A consumer outside any group that knows where a topic is before it is assigned a partition of it.

The driver looks for the leaders of a topic that it does not know yet once a second, whenever that
was assigned. So the first reading of each topic would begin up to a second late, where asking for
the topic's metadata takes a millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition
from typing_extensions import override

from streams.text import get_logger

logger = get_logger("streams.kafka")

LOOK_UP_TIMEOUT = 1.0
"""Seconds for which an answer is waited for: after that, the driver asks by itself."""

LOOK_UP_TTL = 60.0
"""Seconds for which the driver is trusted to remember a topic. (It does so for three times
``topic.metadata.refresh.interval.ms``.)"""


class ReaderConsumer(Consumer):
    """Used by one thread at a time."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._known_until: dict[str, float] = {}

    @override
    def assign(self, partitions: Sequence[KTopicPartition]) -> None:
        self._look_up(partitions)
        super().assign(list(partitions))

    @override
    def incremental_assign(self, partitions: Sequence[KTopicPartition]) -> None:
        self._look_up(partitions)
        super().incremental_assign(list(partitions))

    def _look_up(self, partitions: Sequence[KTopicPartition]) -> None:
        """Have the driver ask for topics that it may not know. What it is not told now, it asks
        for once a second."""
        for topic in {each.topic for each in partitions}:
            now = time.monotonic()
            if now < self._known_until.get(topic, 0.0):
                continue
            try:
                self.list_topics(topic, timeout=LOOK_UP_TIMEOUT)
            except KafkaException as error:
                logger.debug("asking where %s is: %s", topic, error)
                return
            self._known_until[topic] = now + LOOK_UP_TTL
