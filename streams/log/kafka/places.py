"""Reading where a group is, whoever is in it.

The AdminClient's ListConsumerGroupOffsets is not used: while a coordinator moves or starts up, its
answer makes librdkafka 2.16 read the group state that only a consumer has, and the process dies
(seen: SIGSEGV in rd_kafka_handle_OffsetFetch). A consumer that never joins its group asks the same
safely. It must be told the partitions, so all those of existing topics are asked for; Kafka
answers with those that have a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.log.kafka.asking import ANSWER, Asking
from streams.log.kafka.client import Shared
from streams.log.kafka.settings import Settings
from streams.log.protocol import Committed

INTERNAL = frozenset(
    {"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"}
)
"""Kafka's own topics."""

Key = tuple[str, int]


class Places:
    """The places of any group (any thread)."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Consumer],
        asking: Asking,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._asking = asking

    def of(self, group: str, parts: Sequence[Key] | None = None) -> dict[Key, Committed]:
        """A group's places, in these partitions or in all; none if there is no such group."""
        bystander = self.bystander(group)
        try:
            return bystander.places(parts)
        finally:
            bystander.close()

    def bystander(self, group: str) -> Bystander:
        """Somebody who asks about one group again and again."""
        return Bystander(
            Shared(lambda: self._connect(self._settings.bystander(group))), group, self._asking
        )


class Bystander:
    """Asks about a group through a consumer that never joins it (one thread)."""

    def __init__(self, consumer: Shared[Consumer], group: str, asking: Asking) -> None:
        self._consumer = consumer
        self._group = group
        self._asking = asking

    def places(self, parts: Sequence[Key] | None = None) -> dict[Key, Committed]:
        """The group's places, in these partitions or in all."""
        if parts is not None and not parts:
            return {}

        def question(consumer: Consumer) -> Mapping[Key, Committed | None]:
            asked = parts if parts is not None else _all(consumer)
            wanted = [TopicPartition(*part) for part in asked]
            try:
                return places(consumer.committed(wanted, ANSWER)) if wanted else {}
            except KafkaException as error:
                raise _refused(consumer) or error from None

        doing = f"asking for the positions of group {self._group}"
        found = self._asking.ask(doing, self._consumer, question)
        return {key: place for key, place in found.items() if place is not None}

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()


def _refused(consumer: Consumer) -> KafkaException | None:
    """That this user may not ask about the group comes only as an event; the question itself
    just finds no coordinator in time."""
    for event in consumer.consume(100, 0):
        error = event.error()
        if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return KafkaException(error)
    return None


def _all(consumer: Consumer) -> list[Key]:
    topics = consumer.list_topics(timeout=ANSWER).topics
    return [
        (name, part) for name in topics if name not in INTERNAL for part in topics[name].partitions
    ]


def places(parts: Sequence[TopicPartition]) -> dict[Key, Committed | None]:
    """Committed places, as the driver tells them; None where there is none.

    :raises KafkaException: one of them could not be read.
    """
    found: dict[Key, Committed | None] = {}
    for part in parts:
        if part.error is not None:
            raise KafkaException(part.error)
        found[part.topic, part.partition] = _place(part)
    return found


def _place(part: TopicPartition) -> Committed | None:
    if part.offset < 0:
        return None
    try:
        progress = part.metadata or ""
    except UnicodeDecodeError:
        # Not ours: we write ASCII. The position counts all the same.
        progress = "?"
    return Committed(part.offset, progress)
