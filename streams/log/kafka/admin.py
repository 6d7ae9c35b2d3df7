"""Topics and groups, through the driver's AdminClient.

Kafka's answers are per topic and group, each a future of its own; :meth:`Admin.result` waits for
one and translates. Nothing here creates a topic by asking for it (a metadata request of a
producer does that where the broker allows it): only DescribeTopics is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaException,
    TopicCollection,
    TopicPartition,
)

# Documented there, though the package's __all__ does not list them.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from streams.errors import ConfigError, GroupLive, LogError, Mismatch, NotFound, Unavailable
from streams.log.kafka.errors import error_of, translate
from streams.log.kafka.settings import Settings
from streams.log.kafka.subscription import place_of
from streams.log.names import check_group, check_topic
from streams.log.protocol import Committed, GroupInfo, MemberInfo, Retention, TopicInfo

ANSWER = 10.0
"""Seconds to wait for an answer."""

FRESH = 60.0
"""Seconds for which a topic's number of partitions is believed."""

KIP848_SESSION = 45.0
"""Kafka's default of group.consumer.session.timeout.ms, in seconds."""

INTERNAL = frozenset(
    {"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"}
)


class Admin:
    """Topics and groups of one cluster (any thread)."""

    def __init__(self, settings: Settings, client: AdminClient) -> None:
        self._settings = settings
        self._client = client
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}
        """Partitions of a topic, and when that was asked."""

    def result(self, future: Any, doing: str) -> Any:
        """What a future brings.

        :raises LogError: translated.
        """
        try:
            return future.result(ANSWER + 5)
        except KafkaException as error:
            raise translate(error, doing, self._settings.scrub) from error
        except TimeoutError as error:
            raise Unavailable(f"Kafka, {doing}: no answer within {ANSWER:g} s") from error

    def call(self, doing: str, ask: Callable[[], Any]) -> Any:
        """What the driver returns, its errors translated."""
        try:
            return ask()
        except KafkaException as error:
            raise translate(error, doing, self._settings.scrub) from error
        except (TypeError, ValueError) as error:
            raise LogError(f"Kafka, {doing}: {error}") from error

    # -- topics

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
        if retention.messages is not None:
            raise ConfigError(
                f"topic {topic!r}: Retention(messages=...) is nothing Kafka can do; use "
                "Retention(seconds=...), or config={'retention.bytes': ...}"
            )
        settings = {str(name): str(value) for name, value in (config or {}).items()}
        replicas = int(settings.pop("replication.factor", self._settings.replication))
        if retention.seconds is None:
            settings.setdefault("retention.ms", "-1")
        else:
            settings["retention.ms"] = str(max(1, round(retention.seconds * 1000)))
        doing = f"creating topic {topic}"
        futures = self.call(
            doing,
            lambda: self._client.create_topics(
                [NewTopic(topic, partitions, replicas, config=settings)],
                operation_timeout=ANSWER,
                request_timeout=ANSWER,
            ),
        )
        try:
            self.result(futures[topic], doing)
        except LogError as error:
            if "TOPIC_ALREADY_EXISTS" not in _codes(error):
                raise
            found = self.topic(topic)
            if found.partitions != partitions:
                raise Mismatch(
                    f"topic {topic!r} has {found.partitions} partitions, but {partitions} were "
                    "declared: declare what it has, or use another name"
                ) from None
            return found
        return self._appeared(topic, partitions)

    def _appeared(self, topic: str, partitions: int) -> TopicInfo:
        """Wait until a new topic is known to the brokers, each partition with its leader."""
        deadline = time.monotonic() + ANSWER
        while True:
            try:
                found = self._describe([topic])[topic]
                if len(found.partitions) == partitions and all(
                    each.leader is not None for each in found.partitions
                ):
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
        found = self._describe([topic])[topic]
        return TopicInfo(topic, len(found.partitions), self._retentions([topic])[topic])

    def topics(self) -> list[TopicInfo]:
        """All topics but Kafka's own, by name."""
        cluster = self.call("listing topics", lambda: self._client.list_topics(timeout=ANSWER))
        names = sorted(set(cluster.topics) - INTERNAL)
        retentions = self._retentions(names)
        return [
            TopicInfo(name, len(cluster.topics[name].partitions), retentions[name])
            for name in names
        ]

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; asked again after a minute.

        :raises NotFound: there is none of that name.
        """
        known = self._counts.get(topic)
        now = time.monotonic()
        if known is not None and now < known[1] + FRESH:
            return known[0]
        try:
            count = len(self._describe([topic])[topic].partitions)
        except Unavailable:
            if known is None:
                raise
            return known[0]
        self._counts[topic] = (count, now)
        return count

    def _describe(self, topics: Sequence[str]) -> dict[str, Any]:
        doing = f"asking for {', '.join(topics)}"
        futures = self.call(
            doing,
            lambda: self._client.describe_topics(
                TopicCollection(list(topics)), request_timeout=ANSWER
            ),
        )
        found = {}
        for topic in topics:
            try:
                found[topic] = self.result(futures[topic], doing)
            except NotFound as error:
                raise NotFound(
                    f"Kafka has no topic {topic!r}: create it (streams topics create {topic}), "
                    "or declare it with partitions="
                ) from error
        return found

    def _retentions(self, topics: Sequence[str]) -> dict[str, Retention]:
        """What retention.ms says; nothing where this user may not ask."""
        found = dict.fromkeys(topics, Retention())
        if not topics:
            return found
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        doing = "asking for topics' settings"
        futures = self.call(
            doing, lambda: self._client.describe_configs(resources, request_timeout=ANSWER)
        )
        for resource, future in futures.items():
            try:
                entry = self.result(future, doing).get("retention.ms")
                kept = int(entry.value) if entry is not None and entry.value else -1
            except (LogError, ValueError):
                continue
            if kept > 0:
                found[resource.name] = Retention(seconds=kept / 1000)
        return found

    def delete(self, topic: str) -> None:
        """Delete a topic; Kafka forgets the groups' positions in it.

        :raises NotFound: there is none of that name.
        """
        doing = f"deleting topic {topic}"
        futures = self.call(
            doing,
            lambda: self._client.delete_topics(
                [topic], operation_timeout=ANSWER, request_timeout=ANSWER
            ),
        )
        self.result(futures[topic], doing)
        self._counts.pop(topic, None)
        deadline = time.monotonic() + ANSWER
        while time.monotonic() < deadline:
            try:
                self._describe([topic])
            except NotFound:
                return
            time.sleep(0.02)

    # -- groups

    def session(self, group: str) -> float:
        """Seconds after which a broker gives up a silent member of a KIP-848 group.

        Kafka's default where this user may not ask.
        """
        doing = f"asking for the session of group {group}"
        resource = ConfigResource(ResourceType.GROUP, group)
        try:
            futures = self.call(
                doing, lambda: self._client.describe_configs([resource], request_timeout=ANSWER)
            )
            entry = self.result(futures[resource], doing).get("consumer.session.timeout.ms")
            return int(entry.value) / 1000 if entry is not None else KIP848_SESSION
        except Unavailable:
            raise
        except (LogError, ValueError, TypeError):
            return KIP848_SESSION

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        doing = "listing groups"
        future = self.call(doing, lambda: self._client.list_consumer_groups(request_timeout=ANSWER))
        listing = self.result(future, doing)
        if listing.errors and not listing.valid:
            raise translate(listing.errors[0], doing, self._settings.scrub)
        return sorted({each.group_id for each in listing.valid})

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        check_group(group)
        members, known = self._members(group)
        positions = self._positions(group)
        if not known and not positions:
            raise NotFound(f"Kafka has no group {group!r}")
        return GroupInfo(group, members, positions)

    def _members(self, group: str) -> tuple[tuple[MemberInfo, ...], bool]:
        """Who is in the group, and whether it exists at all."""
        doing = f"asking for group {group}"
        futures = self.call(
            doing,
            lambda: self._client.describe_consumer_groups([group], request_timeout=ANSWER),
        )
        try:
            found = self.result(futures[group], doing)
        except NotFound:
            return (), False
        members = []
        for member in found.members:
            assignment = member.assignment
            parts = assignment.topic_partitions if assignment is not None else []
            owned = tuple(sorted((part.topic, part.partition) for part in parts))
            members.append(MemberInfo(member.member_id, owned))
        return tuple(members), found.state is not ConsumerGroupState.DEAD

    def _positions(
        self, group: str, parts: Sequence[tuple[str, int]] | None = None
    ) -> dict[tuple[str, int], Committed]:
        doing = f"asking for the positions of group {group}"
        wanted = [TopicPartition(*part) for part in parts] if parts is not None else None
        futures = self.call(
            doing,
            lambda: self._client.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=ANSWER
            ),
        )
        try:
            found = self.result(futures[group], doing)
        except NotFound:
            return {}
        places = {}
        for part in found.topic_partitions:
            if part.error is not None:
                raise translate(part.error, doing, self._settings.scrub)
            place = place_of(part)
            if place is not None:
                places[part.topic, part.partition] = place
        return places

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a new group its positions in a topic: True where it had none.

        :raises GroupLive: its members run, and none of them has a position in this topic yet.
        """
        check_group(group)
        held = self._positions(group, [(topic, partition) for partition in positions])
        if held:
            return False
        places = {partition: Committed(position) for partition, position in positions.items()}
        try:
            self._alter(group, topic, places)
        except GroupLive:
            if self._positions(group, [(topic, partition) for partition in positions]):
                return False  # somebody else was faster
            raise
        return True

    def move(self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool) -> None:
        """Set a group's places in a topic.

        :raises GroupLive: it has running members.
        """
        check_group(group)
        self._describe([topic])
        self._alter(group, topic, places)

    def _alter(self, group: str, topic: str, places: Mapping[int, Committed]) -> None:
        doing = f"moving group {group} in {topic}"
        parts = [
            TopicPartition(topic, partition, place.position, metadata=place.progress)
            for partition, place in sorted(places.items())
        ]
        if not parts:
            return
        futures = self.call(
            doing,
            lambda: self._client.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, parts)], request_timeout=ANSWER
            ),
        )
        try:
            found = self.result(futures[group], doing)
        except LogError as error:
            raise self._live(group, error) from error
        for part in found.topic_partitions:
            if part.error is not None:
                cause = KafkaException(part.error)
                refused = translate(cause, doing, self._settings.scrub)
                refused.__cause__ = cause
                raise self._live(group, refused) from cause

    def _live(self, group: str, error: Exception) -> Exception:
        """Kafka refuses to move a group with members under several names."""
        if not {"UNKNOWN_MEMBER_ID", "NON_EMPTY_GROUP", "STALE_MEMBER_EPOCH"} & _codes(error):
            return error
        members, _ = self._members(group)
        if not members:
            return error
        return GroupLive(
            f"group {group!r} has {len(members)} running members and cannot be moved: "
            "stop them first"
        )

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        :raises NotFound: there is none of that name.
        """
        check_group(group)
        doing = f"deleting group {group}"
        futures = self.call(
            doing,
            lambda: self._client.delete_consumer_groups([group], request_timeout=ANSWER),
        )
        try:
            self.result(futures[group], doing)
        except NotFound as error:
            raise NotFound(f"Kafka has no group {group!r}") from error
        except LogError as error:
            raise self._live(group, error) from error


def _codes(error: BaseException | None) -> set[str]:
    """The driver's names of what is behind an error."""
    names = set()
    while error is not None:
        if isinstance(error, KafkaException):
            found = error_of(error)
            if found is not None:
                names.add(found.name())
        error = error.__cause__
    return names
