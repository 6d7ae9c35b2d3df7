"""Groups, through the driver's AdminClient: who is in them, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.errors import GroupLive, LogError, NotFound, Unavailable
from streams.log.kafka.asking import ANSWER, Asking, codes
from streams.log.kafka.client import Shared
from streams.log.kafka.errors import translate
from streams.log.kafka.places import Bystander, Places
from streams.log.kafka.settings import Settings
from streams.log.names import no_group
from streams.log.protocol import Committed, GroupInfo, MemberInfo

OURS = "__streams."
"""What the names of groups begin with that are none, but notes of this toolkit."""

KIP848_SESSION = 45.0
"""Kafka's default of group.consumer.session.timeout.ms, in seconds."""

Key = tuple[str, int]


class Groups:
    """The groups of one cluster (any thread)."""

    def __init__(
        self, settings: Settings, client: Shared[AdminClient], places: Places, asking: Asking
    ) -> None:
        self._settings = settings
        self._client = client
        self._places = places
        self._ask = asking.ask
        self._answer = asking.answer

    def session(self, group: str) -> float:
        """Seconds after which a broker gives up a silent member of a KIP-848 group.

        Kafka's default where this user may not ask.
        """
        resource = ConfigResource(ResourceType.GROUP, group)

        def question(admin: AdminClient) -> Any:
            futures = admin.describe_configs([resource], request_timeout=ANSWER)
            return self._answer(futures[resource])

        try:
            found = self._ask(f"asking for the session of group {group}", self._client, question)
            return int(found["consumer.session.timeout.ms"].value) / 1000
        except Unavailable:
            raise
        except (LogError, KeyError, ValueError, TypeError):
            return KIP848_SESSION

    def names(self) -> list[str]:
        """The names of all groups, sorted."""
        doing = "listing groups"
        found = self._ask(
            doing,
            self._client,
            lambda admin: self._answer(admin.list_consumer_groups(request_timeout=ANSWER)),
        )
        if found.errors and not found.valid:
            raise translate(found.errors[0], doing, self._settings.scrub)
        names = {each.group_id for each in found.valid}
        return sorted(name for name in names if not name.startswith(OURS))

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        members, known = self._members(group)
        positions = self.positions(group)
        if not known and not positions:
            raise no_group(group)
        return GroupInfo(group, members, positions)

    def _members(self, group: str) -> tuple[tuple[MemberInfo, ...], bool]:
        """Who is in the group, and whether it exists at all."""

        def question(admin: AdminClient) -> Any:
            futures = admin.describe_consumer_groups([group], request_timeout=ANSWER)
            return self._answer(futures[group])

        try:
            found = self._ask(f"asking for group {group}", self._client, question)
        except NotFound:
            return (), False
        members = []
        for member in found.members:
            parts = member.assignment.topic_partitions if member.assignment is not None else ()
            owned = tuple(sorted((part.topic, part.partition) for part in parts))
            members.append(MemberInfo(member.member_id, owned))
        return tuple(members), found.state is not ConsumerGroupState.DEAD

    # -- positions

    def positions(self, group: str, parts: Sequence[Key] | None = None) -> dict[Key, Committed]:
        """A group's places, in these partitions or in all; none if there is no such group."""
        return self._places.of(group, parts)

    def bystander(self, group: str) -> Bystander:
        """Somebody who asks for one group's places again and again."""
        return self._places.bystander(group)

    def alter(self, group: str, topic: str, moved: Mapping[int, Committed]) -> None:
        """Set a group's places in a topic.

        :raises GroupLive: it has running members.
        """
        if not moved:
            return
        parts = [
            TopicPartition(topic, partition, place.position, metadata=place.progress)
            for partition, place in sorted(moved.items())
        ]

        def question(admin: AdminClient) -> None:
            futures = admin.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, parts)], request_timeout=ANSWER
            )
            self._answer(futures[group])

        try:
            self._ask(f"moving group {group} in {topic}", self._client, question)
        except LogError as error:
            raise self._live(group, error) from error

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a new group its positions in a topic: True where it had none.

        :raises GroupLive: its members run, and none of them has a position in this topic yet.
        """
        parts = [(topic, partition) for partition in positions]
        if self.positions(group, parts):
            return False
        try:
            begun = {partition: Committed(position) for partition, position in positions.items()}
            self.alter(group, topic, begun)
        except GroupLive:
            if self.positions(group, parts):
                return False  # somebody else was faster
            raise
        return True

    def _live(self, group: str, error: LogError) -> LogError:
        """Kafka refuses to change a group with members under several names."""
        if not {"UNKNOWN_MEMBER_ID", "NON_EMPTY_GROUP", "STALE_MEMBER_EPOCH"} & codes(error):
            return error
        members, _ = self._members(group)
        if not members:
            return error
        return GroupLive(
            f"group {group!r} has {len(members)} running members and cannot be changed: "
            "stop them first (a static member, as those of run --workers are, counts until its "
            "session has ended, 10 s unless set otherwise, after it was stopped: then try again)"
        )

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        :raises NotFound: there is none of that name.
        """

        def question(admin: AdminClient) -> None:
            futures = admin.delete_consumer_groups([group], request_timeout=ANSWER)
            self._answer(futures[group])

        try:
            self._ask(f"deleting group {group}", self._client, question)
        except NotFound as error:
            raise no_group(group) from error
        except LogError as error:
            raise self._live(group, error) from error
