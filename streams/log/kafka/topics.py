"""Topics: making, changing and listing them through the driver's AdminClient, and asking for one
through a consumer, whose metadata requests (unlike a producer's) create nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaException

# Documented there, though the package's __all__ does not list all of them.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
    TopicMetadata,  # pyright: ignore[reportPrivateImportUsage]
)

from streams import wire
from streams.errors import ConfigError, Fatal, LogError, Mismatch, NotFound, Unavailable
from streams.log.kafka.asking import ANSWER, Asking, codes
from streams.log.kafka.client import Shared
from streams.log.kafka.places import INTERNAL
from streams.log.kafka.settings import Settings
from streams.log.names import check_topic, no_topic
from streams.log.protocol import Retention, TopicInfo

_FORBIDDEN = frozenset({"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"})
"""What the driver says where this user may not create a topic."""

FRESH = 60.0
"""Seconds for which a topic's number of partitions is believed."""


class Topics:
    """The topics of one cluster (any thread).

    :param metadata: a topic's partitions, as a broker tells them. That is asked again and again
        while a service runs, so not through the AdminClient (see ``moves.py``).
    """

    def __init__(
        self,
        settings: Settings,
        client: Shared[AdminClient],
        metadata: Callable[[str], TopicMetadata],
        asking: Asking,
    ) -> None:
        self._settings = settings
        self._client = client
        self._metadata = metadata
        self._ask = asking.ask
        self._answer = asking.answer
        self._answers = asking.answers
        self._counts: dict[str, tuple[int, float]] = {}
        """Partitions of a topic, and when that was asked."""

    def create(
        self,
        topic: str,
        partitions: int,
        retention: Retention,
        config: Mapping[str, str] | None,
    ) -> TopicInfo:
        """Create a topic, or find it as it was declared."""
        check_topic(topic)
        if partitions < 1:
            raise ConfigError(f"topic {topic!r}: {partitions} partitions, at least 1 is needed")
        settings = {str(name): str(value) for name, value in (config or {}).items()}
        replicas = int(settings.pop("replication.factor", self._settings.replication))
        settings = {"retention.ms": "-1", **settings, **_settings_of(retention)}
        new = NewTopic(topic, partitions, replicas, config=settings)
        try:
            self._ask(f"creating topic {topic}", self._client, partial(self._create, new))
        except LogError as error:
            said = codes(error)
            if said & _FORBIDDEN:
                raise self._forbidden(new) from error
            if "TOPIC_ALREADY_EXISTS" not in said:
                raise
            # Somebody else may have created it just now.
            found = self._appeared(topic)
            if found.partitions != partitions:
                raise Mismatch(
                    f"topic {topic!r} has {found.partitions} partitions, but {partitions} were "
                    "declared: declare what it has, or use another name"
                ) from None
            return found
        return self._appeared(topic)

    def _forbidden(self, new: NewTopic) -> Fatal:
        """The error for a topic that this user may not create: what an administrator would do."""
        config = new.config or {}
        facts = [f"{new.num_partitions} partitions"]
        words = [
            f"kafka-topics.sh --bootstrap-server {self._settings.hosts} --create",
            f"--topic {new.topic} --partitions {new.num_partitions}",
        ]
        if new.replication_factor > 0:
            facts.append(f"replication factor {new.replication_factor}")
            words.append(f"--replication-factor {new.replication_factor}")
        pairs = [f"{name}={value}" for name, value in config.items()]
        words += [f"--config {pair}" for pair in pairs]
        return Fatal(
            f"Kafka: this user may not create topic {new.topic!r} ({', '.join(facts + pairs)}): it "
            f"needs an ACL for Create on the topic, or an administrator runs `{' '.join(words)}`"
        )

    def retain(self, topic: str, retention: Retention) -> TopicInfo:
        """Change the settings that a retention is made of, and no others."""
        info = self.topic(topic)
        unbound = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in (unbound | _settings_of(retention)).items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)

        def question(admin: AdminClient) -> None:
            futures = admin.incremental_alter_configs([resource], request_timeout=ANSWER)
            self._answer(futures[resource])

        self._ask(f"changing the retention of topic {topic}", self._client, question)
        return info._replace(retention=retention)

    def _create(self, new: NewTopic, admin: AdminClient) -> None:
        futures = admin.create_topics([new], operation_timeout=ANSWER, request_timeout=ANSWER)
        self._answer(futures[new.topic])

    def _appeared(self, topic: str) -> TopicInfo:
        """Wait until a new topic is known to the brokers, each partition with its leader."""
        deadline = time.monotonic() + ANSWER
        while True:
            try:
                found = self._describe(topic)
                if all(each.leader >= 0 for each in found.partitions.values()):
                    self._counts[topic] = (len(found.partitions), time.monotonic())
                    return self.topic(topic)
            except (NotFound, Unavailable):
                pass
            if time.monotonic() >= deadline:
                raise Unavailable(f"Kafka: topic {topic!r} was created, but has no leaders yet")
            time.sleep(0.02)

    def topic(self, topic: str) -> TopicInfo:
        """A topic's facts.

        :raises NotFound: there is none of that name.
        """
        count = len(self._describe(topic).partitions)
        self._counts[topic] = (count, time.monotonic())
        return self._info(topic, count, self._retentions([topic]))

    def topics(self) -> list[TopicInfo]:
        """All topics but Kafka's own, by name."""
        cluster = self._ask(
            "listing topics", self._client, lambda admin: admin.list_topics(timeout=ANSWER)
        )
        names = sorted(set(cluster.topics) - INTERNAL)
        retentions = self._retentions(names)
        return [
            self._info(name, len(cluster.topics[name].partitions), retentions) for name in names
        ]

    @staticmethod
    def _info(topic: str, partitions: int, retentions: Mapping[str, Retention]) -> TopicInfo:
        known = topic in retentions
        return TopicInfo(topic, partitions, retentions[topic] if known else Retention(), known)

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; asked again after a minute.

        :raises NotFound: there is none of that name.
        """
        known = self._counts.get(topic)
        now = time.monotonic()
        if known is not None and now < known[1] + FRESH:
            return known[0]
        try:
            count = len(self._describe(topic).partitions)
        except Unavailable:
            if known is None:
                raise
            return known[0]
        self._counts[topic] = (count, now)
        return count

    def led(self, topic: str) -> list[int]:
        """The partitions of a topic that have a leader now."""
        parts = self._describe(topic).partitions
        return [number for number, part in parts.items() if part.leader >= 0]

    def check(self, topic: str, partitions: Iterable[int]) -> None:
        """See that a topic has these partitions.

        :raises NotFound: it lacks one, or there is no such topic.
        """
        for partition in partitions:
            count = self.partitions(topic)
            if partition >= count:
                self._counts.pop(topic, None)  # it may have grown
                count = self.partitions(topic)
            if not 0 <= partition < count:
                raise NotFound(f"topic {topic!r} has {count} partitions, none numbered {partition}")

    def _describe(self, topic: str) -> TopicMetadata:
        # Of several brokers, one may not have heard yet of a topic that another has told us of.
        known = self._counts.get(topic)
        deadline = time.monotonic() + ANSWER
        while True:
            try:
                return self._metadata(topic)
            except NotFound as error:
                now = time.monotonic()
                if known is not None and now < min(deadline, known[1] + FRESH):
                    time.sleep(0.05)
                    continue
                raise no_topic(
                    topic,
                    f", or `kafka-topics.sh --bootstrap-server {self._settings.hosts} --create "
                    f"--topic {topic} --partitions 8`",
                ) from error

    def _retentions(self, topics: Sequence[str]) -> dict[str, Retention]:
        """What the settings of topics say; a topic that this user may not ask for is left out."""
        found: dict[str, Retention] = {}
        if not topics:
            return found
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]

        def question(admin: AdminClient) -> dict[Any, Any]:
            return self._answers(admin.describe_configs(resources, request_timeout=ANSWER))

        answers = self._ask("asking for topics' settings", self._client, question)
        for resource, answer in answers.items():
            if isinstance(answer, KafkaException):
                continue
            values = {name: entry.value for name, entry in answer.items()}
            found[resource.name] = _retention_of(values)
        return found

    def delete(self, topic: str) -> None:
        """Delete a topic; returns once the brokers no longer know it.

        :raises NotFound: there is none of that name.
        """

        def question(admin: AdminClient) -> None:
            futures = admin.delete_topics([topic], operation_timeout=ANSWER, request_timeout=ANSWER)
            self._answer(futures[topic])

        self._describe(topic)
        self._counts.pop(topic, None)
        self._ask(f"deleting topic {topic}", self._client, question)
        deadline = time.monotonic() + ANSWER
        while time.monotonic() < deadline:
            try:
                self._describe(topic)
            except NotFound:
                return
            time.sleep(0.02)


def _settings_of(retention: Retention) -> dict[str, str]:
    """Kafka's settings for the bounds that a retention has."""
    found: dict[str, str] = {}
    if retention.seconds is not None:
        found["retention.ms"] = str(max(1, round(retention.seconds * 1000)))
    if retention.bytes is not None:
        found["retention.bytes"] = str(retention.bytes)
    if retention.compacted:
        found["cleanup.policy"] = "compact,delete" if found else "compact"
    return found


def _retention_of(settings: Mapping[str, str | None]) -> Retention:
    """The retention that a topic's settings amount to."""
    policy = {each.strip() for each in (settings.get("cleanup.policy") or "delete").split(",")}
    if "delete" not in policy:
        return Retention(compacted="compact" in policy)
    kept = wire.whole(settings.get("retention.ms") or "")
    size = wire.whole(settings.get("retention.bytes") or "")
    return Retention(
        seconds=kept / 1000 if kept else None,
        bytes=size or None,
        compacted="compact" in policy,
    )
