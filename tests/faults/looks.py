"""Looking at a group from outside while its server is killed: where it is, and who is in it.

On Kafka this does not go through our own log but through the driver, and with care: an AdminClient
that has ever asked a group's coordinator something aborts its whole process when that broker dies
at the wrong moment (librdkafka 2.16, its issue #4605). A consumer that only reads committed
positions, and an AdminClient that is thrown away after one question, do not.
"""

from __future__ import annotations

from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.errors import LogError
from streams.log.protocol import Log

PATIENCE = 5.0
"""Seconds to wait for one answer."""


class Look(Protocol):
    """How one group is looked at."""

    def positions(self) -> dict[int, int] | None:
        """Committed positions by partition; None while they cannot be known (or, where the log
        tells such a group apart, while there is no such group)."""
        ...

    def owners(self) -> int:
        """How many members own partitions; 0 while that cannot be known."""
        ...

    def close(self) -> None: ...


class LogLook:
    """Through a log of ours."""

    def __init__(self, log: Log, group: str, topic: str) -> None:
        self._log = log
        self._group = group
        self._topic = topic

    def positions(self) -> dict[int, int] | None:
        try:
            places = self._log.group(self._group).positions
        except LogError:
            return None
        return {
            part: place.position for (name, part), place in places.items() if name == self._topic
        }

    def owners(self) -> int:
        try:
            return sum(bool(each.partitions) for each in self._log.group(self._group).members)
        except LogError:
            return 0

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
        self._consumer = Consumer({**self._conf, "group.id": group, "enable.auto.commit": False})

    def positions(self) -> dict[int, int] | None:
        try:
            found = self._consumer.committed(self._parts, PATIENCE)
        except KafkaException:
            return None
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def owners(self) -> int:
        admin = AdminClient(self._conf)
        try:
            futures = admin.describe_consumer_groups([self._group], request_timeout=PATIENCE)
            members = futures[self._group].result(2 * PATIENCE).members
        except (KafkaException, TimeoutError):
            return 0
        return sum(
            member.assignment is not None and bool(member.assignment.topic_partitions)
            for member in members
        )

    def close(self) -> None:
        self._consumer.close()
