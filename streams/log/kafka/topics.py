"""Topics: their partitions and leaders, and creating, changing, listing and deleting them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
    TopicMetadata,
)

from streams import wire
from streams.errors import ConfigError, Fatal, LogError, NotFound, Unavailable
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry, SharedClient, error_names
from streams.log.names import check_topic, topic_mismatch, topic_not_found
from streams.log.protocol import Retention, TopicInfo

OFFSETS_TOPIC = "__consumer_offsets"
"""Where Kafka keeps the groups' positions."""

INTERNAL_TOPICS = frozenset(
    {OFFSETS_TOPIC, "__transaction_state", "__share_group_state", "__cluster_metadata"}
)
"""Kafka's own topics."""

_FORBIDDEN_NAMES = frozenset({"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"})
"""Errors where this user may not create a topic."""

COUNT_TTL = 60.0
"""Seconds for which a topic's number of partitions is believed."""


class PartitionCount(NamedTuple):
    """How many partitions a topic has."""

    partitions: int
    read_at: float
    """Monotonic time."""


class Metadata:
    """Topics' partitions and their leaders, as the brokers report them (any thread).

    They are read again and again while a service runs, so not through the AdminClient (see
    ``forced_resets.py``), but through a consumer, whose metadata requests create no topics. It goes
    on asking for a topic that is not there once a second, for as long as it lives; so whether there
    is one at all, the AdminClient is asked.
    """

    def __init__(self, consumer: SharedClient[Consumer], requests: RequestRetry) -> None:
        self._consumer = consumer
        self._requests = requests
        self._counts: dict[str, PartitionCount] = {}
        self._seen: set[str] = set()
        """Topics that were there when they were asked for last."""

    def read(self, topic: str, *, remember: bool = False) -> TopicMetadata:
        """A topic's partitions and their leaders now.

        :param remember: the number of partitions.
        :raises NotFound: there is no such topic.
        """
        # Of several brokers, one may not yet know a topic that another knows.
        known = self._counts.get(topic)
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while True:
            try:
                if topic not in self._seen:
                    self.describe(topic)
                found = self._requests.run(
                    f"asking for topic {topic}", self._consumer, lambda c: self._ask(c, topic)
                )
                self._seen.add(topic)
            except NotFound as error:
                self._seen.discard(topic)
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

    def describe(self, topic: str) -> Any:
        """The ``TopicDescription`` of a topic, as the AdminClient has it, which goes on asking for
        none.

        :raises NotFound: there is no such topic.
        """
        return self._requests.run_admin(
            f"asking for topic {topic}", AdminClient.describe_topics, TopicCollection([topic])
        )

    @staticmethod
    def _ask(consumer: Consumer, topic: str) -> TopicMetadata:
        found: TopicMetadata = consumer.list_topics(topic, timeout=REQUEST_TIMEOUT).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return found

    def check_there(self, topic: str) -> None:
        """See that a topic that was there still is, as far as the broker knows that is asked.

        :raises NotFound: it was deleted.
        """
        try:
            self._requests.run(
                f"asking for topic {topic}", self._consumer, lambda c: self._ask(c, topic)
            )
        except NotFound as error:
            raise topic_not_found(topic) from error

    def has_count(self, topic: str) -> bool:
        """Whether a topic's number of partitions was read before."""
        return topic in self._counts

    def forget(self, topic: str) -> None:
        """Believe nothing that was read of this topic."""
        self._counts.pop(topic, None)
        self._seen.discard(topic)

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
                raise NotFound(
                    f"topic {topic!r} has {count} partitions, so it has no partition {partition}"
                )


class Topics:
    """The topics of one cluster (any thread)."""

    def __init__(self, metadata: Metadata, requests: RequestRetry) -> None:
        self._settings = requests.settings
        self._metadata = metadata
        self._requests = requests
        self._listed: Mapping[str, int] = {}
        """The numbers of partitions, when all topics were listed last."""
        self._listed_at = float("-inf")

    def create_topic(
        self, topic: str, partitions: int, retention: Retention, config: Mapping[str, str] | None
    ) -> TopicInfo:
        """Create a topic, or find it as it was declared."""
        check_topic(topic)
        if partitions < 1:
            raise ConfigError(f"topic {topic!r}: {partitions} partitions, at least 1 is needed")
        settings = {str(name): str(value) for name, value in (config or {}).items()}
        replicas = int(settings.pop("replication.factor", self._settings.replication))
        settings = {"retention.ms": "-1", **settings, **_config_of(retention)}
        new = NewTopic(topic, partitions, replicas, config=settings)
        create = partial(AdminClient.create_topics, operation_timeout=REQUEST_TIMEOUT)
        try:
            self._requests.run_admin(f"creating topic {topic}", create, [new])
        except LogError as error:
            names = error_names(error)
            if names & _FORBIDDEN_NAMES:
                raise self._creation_refused_error(new) from error
            if "TOPIC_ALREADY_EXISTS" not in names:
                raise
            # Somebody else may have created it just now.
            info = self._wait_created(topic)
            if info.partitions != partitions:
                raise topic_mismatch(topic, info.partitions, partitions) from None
            return info
        return self._wait_created(topic)

    def _creation_refused_error(self, new: NewTopic) -> Fatal:
        """The error for a topic that this user may not create: what an administrator would do."""
        config = new.config or {}
        facts = [f"{new.num_partitions} partitions"]
        command = [
            f"kafka-topics.sh --bootstrap-server {self._settings.hosts} --create",
            f"--topic {new.topic} --partitions {new.num_partitions}",
        ]
        if new.replication_factor > 0:
            facts.append(f"replication factor {new.replication_factor}")
            command.append(f"--replication-factor {new.replication_factor}")
        pairs = [f"{name}={value}" for name, value in config.items()]
        command += [f"--config {pair}" for pair in pairs]
        return Fatal(
            f"Kafka: this user may not create topic {new.topic!r} ({', '.join(facts + pairs)}): it "
            f"needs an ACL for Create on the topic, or an administrator runs `{' '.join(command)}`"
        )

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """Change the settings that a retention is made of, and no others."""
        info = self.describe_topic(topic)
        unlimited = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in (unlimited | _config_of(retention)).items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        operation = f"changing the retention of topic {topic}"
        self._requests.run_admin(operation, AdminClient.incremental_alter_configs, [resource])
        return info._replace(retention=retention)

    def _wait_created(self, topic: str) -> TopicInfo:
        """Wait until a new topic is known to the brokers, each partition with its leader."""
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while True:
            try:
                partitions = self._metadata.read(topic, remember=True).partitions
                if all(each.leader >= 0 for each in partitions.values()):
                    return self.describe_topic(topic)
            except (NotFound, Unavailable):
                pass
            if time.monotonic() >= deadline:
                raise Unavailable(f"Kafka: topic {topic!r} was created, but has no leaders yet")
            time.sleep(0.02)

    def describe_topic(self, topic: str) -> TopicInfo:
        """A topic's facts.

        :raises NotFound: there is none of that name.
        """
        count = len(self._metadata.read(topic, remember=True).partitions)
        return _info(topic, count, self._read_retentions([topic]))

    def topic_id(self, topic: str) -> str:
        """The cluster's ID of this topic; a topic that is recreated under its name has another one.
        Empty if the ID cannot be read.

        :raises Unavailable: no broker answers.
        """
        try:
            found = self._metadata.describe(topic)
        except Unavailable:
            raise
        except LogError:
            return ""
        return str(found.topic_id or "")

    def incarnation(self, topic: str) -> str:
        """See :meth:`streams.log.protocol.Log.incarnation`: the ID that the cluster gave it."""
        self._metadata.read(topic)
        found = self.topic_id(topic)
        if not found:
            raise LogError(
                f"Kafka: the ID of topic {topic!r} cannot be known: this user needs an ACL for "
                "Describe on it, and the brokers version 2.8 or newer"
            )
        return found

    def list_topics(self, suffix: str = "") -> list[TopicInfo]:
        """All topics but Kafka's own, by name.

        :param suffix: only those whose names end so.
        """
        counts = self.partition_counts()
        names = sorted(name for name in counts if name.endswith(suffix))
        retentions = self._read_retentions(names)
        return [_info(name, counts[name], retentions) for name in names]

    def partition_counts(self) -> dict[str, int]:
        """By name, the number of partitions of all topics but Kafka's own."""
        requests = self._requests
        cluster = requests.run(
            "listing topics",
            requests.admin,
            lambda admin: admin.list_topics(timeout=REQUEST_TIMEOUT),
        )
        found = {
            name: len(topic.partitions)
            for name, topic in cluster.topics.items()
            if name not in INTERNAL_TOPICS
        }
        self._listed, self._listed_at = found, time.monotonic()
        return found

    def partitions(self, topics: Collection[str] | None = None) -> list[tuple[str, int]]:
        """The partitions of these topics, as they were within the last minute, or of all but
        Kafka's own, as they are now. A topic that does not exist has none."""
        if topics is None:
            counts = self.partition_counts()
        else:
            is_listed = time.monotonic() < self._listed_at + COUNT_TTL
            listed = self._listed if is_listed else {}
            counts = {each: listed[each] for each in topics if each in listed}
            for topic in set(topics).difference(counts):
                with suppress(NotFound):
                    counts[topic] = self._metadata.partition_count(topic)
        return [(topic, number) for topic, count in counts.items() for number in range(count)]

    def _read_retentions(self, topics: Sequence[str]) -> dict[str, Retention]:
        """The retention settings of topics, except those that this user may not describe."""
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]

        def request(admin: AdminClient) -> dict[Any, Any]:
            return self._requests.results_of(
                admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT)
            )

        results = self._requests.run("asking for topics' settings", self._requests.admin, request)
        return {
            resource.name: _retention_of({name: entry.value for name, entry in result.items()})
            for resource, result in results.items()
            if not isinstance(result, KafkaException)
        }

    def delete_before(self, topic: str, partition: int, position: int) -> None:
        """Delete the messages of a partition below a position."""
        wanted = [TopicPartition(topic, partition, position)]
        operation = f"deleting messages of {topic}/{partition}"
        self._requests.run_admin(operation, AdminClient.delete_records, wanted)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic; returns once the brokers no longer know it.

        :raises NotFound: there is none of that name.
        """
        self._metadata.read(topic)
        self._metadata.forget(topic)
        delete = partial(AdminClient.delete_topics, operation_timeout=REQUEST_TIMEOUT)
        self._requests.run_admin(f"deleting topic {topic}", delete, [topic])
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while time.monotonic() < deadline:
            try:
                self._metadata.read(topic)
            except NotFound:
                return
            time.sleep(0.02)


def _info(topic: str, partitions: int, retentions: Mapping[str, Retention]) -> TopicInfo:
    known = topic in retentions
    return TopicInfo(topic, partitions, retentions[topic] if known else Retention(), known)


def _config_of(retention: Retention) -> dict[str, str]:
    """Kafka's settings for the bounds that a retention has."""
    config: dict[str, str] = {}
    if retention.seconds is not None:
        config["retention.ms"] = str(max(1, round(retention.seconds * 1000)))
    if retention.bytes is not None:
        config["retention.bytes"] = str(retention.bytes)
    if retention.compacted:
        config["cleanup.policy"] = "compact,delete" if config else "compact"
    return config


def _retention_of(config: Mapping[str, str | None]) -> Retention:
    """The retention that a topic's settings amount to."""
    policy = {each.strip() for each in (config.get("cleanup.policy") or "delete").split(",")}
    if "delete" not in policy:
        return Retention(compacted="compact" in policy)
    milliseconds = wire.parse_int(config.get("retention.ms") or "")
    size = wire.parse_int(config.get("retention.bytes") or "")
    return Retention(
        seconds=milliseconds / 1000 if milliseconds else None,
        bytes=size or None,
        compacted="compact" in policy,
    )
