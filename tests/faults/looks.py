"""Looking at where a group is, from outside, while its server is killed.

On Kafka this does not go through our own log but through a consumer of the driver that only reads
committed positions: an AdminClient whose question to a group's coordinator is under way when that
broker dies aborts its whole process (librdkafka 2.16, its issue #4605).
"""

from __future__ import annotations

from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.errors import LogError
from streams.log.protocol import Log

PATIENCE = 5.0
"""Seconds to wait for one answer."""


class Look(Protocol):
    """How one group is looked at."""

    problem: str
    """Why :meth:`positions` said last that they cannot be known."""

    def positions(self) -> dict[int, int] | None:
        """Committed positions by partition; None while they cannot be known (or, where the log
        tells such a group apart, while there is no such group)."""
        ...

    def close(self) -> None: ...


class LogLook:
    """Through a log of ours."""

    def __init__(self, log: Log, group: str, topic: str) -> None:
        self._log = log
        self._group = group
        self._topic = topic
        self.problem = ""

    def positions(self) -> dict[int, int] | None:
        try:
            places = self._log.describe_group(self._group).positions
        except LogError as error:
            self.problem = repr(error)
            return None
        return {
            part: place.position for (name, part), place in places.items() if name == self._topic
        }

    def close(self) -> None:
        pass


class KafkaLook:
    """Through the driver."""

    def __init__(self, bootstrap: str, group: str, topic: str, partitions: int) -> None:
        self._conf: dict[str, str | int | float | bool] = {
            "bootstrap.servers": bootstrap, "log_level": 0,
        }  # fmt: skip
        self._group = group
        self._parts = [TopicPartition(topic, number) for number in range(partitions)]
        self.problem = ""
        self._consumer = Consumer({**self._conf, "group.id": group, "enable.auto.commit": False})

    def positions(self) -> dict[int, int] | None:
        try:
            found = self._consumer.committed(self._parts, PATIENCE)
        except KafkaException as error:
            self.problem = repr(error)
            return None
        for each in found:
            if each.error is not None:
                self.problem = repr(each.error)
                return None
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def close(self) -> None:
        self._consumer.close()
