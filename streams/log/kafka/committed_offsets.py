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

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.log.kafka.client import SharedClient
from streams.log.kafka.requests import REQUEST_TIMEOUT, RequestRetry
from streams.log.kafka.settings import Settings
from streams.log.protocol import Committed, TopicPartition

INTERNAL_TOPICS = frozenset(
    {"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"}
)
"""Kafka's own topics."""


class CommittedOffsets:
    """The places of any group (any thread)."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Consumer],
        requests: RequestRetry,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._requests = requests

    def read(
        self, group: str, partitions: Sequence[TopicPartition] | None = None
    ) -> dict[TopicPartition, Committed]:
        """A group's places, in these partitions or in all; none if there is no such group."""
        reader = self.offset_reader(group)
        try:
            return reader.committed(partitions)
        finally:
            reader.close()

    def offset_reader(self, group: str) -> OffsetReader:
        """Somebody who asks about one group again and again."""
        return OffsetReader(
            SharedClient(lambda: self._connect(self._settings.offset_reader_config(group))),
            group,
            self._requests,
        )


class OffsetReader:
    """Asks about a group through a consumer that never joins it (one thread)."""

    def __init__(
        self, consumer: SharedClient[Consumer], group: str, requests: RequestRetry
    ) -> None:
        self._consumer = consumer
        self._group = group
        self._requests = requests

    def committed(
        self, partitions: Sequence[TopicPartition] | None = None
    ) -> dict[TopicPartition, Committed]:
        """The group's places, in these partitions or in all."""
        if partitions is not None and not partitions:
            return {}

        def request(consumer: Consumer) -> Mapping[TopicPartition, Committed | None]:
            requested = partitions if partitions is not None else _all_partitions(consumer)
            wanted = [KTopicPartition(*partition) for partition in requested]
            try:
                return (
                    committed_by_partition(consumer.committed(wanted, REQUEST_TIMEOUT))
                    if wanted
                    else {}
                )
            except KafkaException as error:
                raise _authorization_error(consumer) or error from None

        operation = f"asking for the positions of group {self._group}"
        offsets = self._requests.run(operation, self._consumer, request)
        return {key: committed for key, committed in offsets.items() if committed is not None}

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()


def _authorization_error(consumer: Consumer) -> KafkaException | None:
    """That this user may not ask about the group comes only as an event; the question itself
    just finds no coordinator in time."""
    for event in consumer.consume(100, 0):
        error = event.error()
        if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return KafkaException(error)
    return None


def _all_partitions(consumer: Consumer) -> list[TopicPartition]:
    topics = consumer.list_topics(timeout=REQUEST_TIMEOUT).topics
    return [
        (name, number)
        for name in topics
        if name not in INTERNAL_TOPICS
        for number in topics[name].partitions
    ]


def committed_by_partition(
    partitions: Sequence[KTopicPartition],
) -> dict[TopicPartition, Committed | None]:
    """Committed places, as the driver tells them; None where there is none.

    :raises KafkaException: one of them could not be read.
    """
    offsets: dict[TopicPartition, Committed | None] = {}
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
        offsets[partition.topic, partition.partition] = _committed_of(partition)
    return offsets


def _committed_of(partition: KTopicPartition) -> Committed | None:
    if partition.offset < 0:
        return None
    try:
        progress = partition.metadata or ""
    except UnicodeDecodeError:
        # Not ours: we write ASCII. The position counts all the same.
        progress = "?"
    return Committed(partition.offset, progress)
