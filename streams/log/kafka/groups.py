"""Groups: who is in them, through the driver's AdminClient, and where they are, which is asked by
consumers (``offsets.py``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConsumerGroupDescription,
    ResourceType,
)

from streams.errors import GroupNotEmpty, LogError, NotFound, Unavailable
from streams.log.kafka.client import RequestRetry, error_names
from streams.log.kafka.offsets import OffsetReader, OffsetReaders, to_driver
from streams.log.kafka.topics import Topics
from streams.log.names import group_not_empty, group_not_found
from streams.log.protocol import Committed, GroupInfo, MemberInfo, TopicPartition

INTERNAL_PREFIX = "__streams."
"""The prefix of groups that have no members and hold notes of this toolkit."""

KIP848_SESSION_TIMEOUT = 45.0
"""Kafka's default of group.consumer.session.timeout.ms, in seconds."""


class Groups:
    """The groups of one cluster (any thread)."""

    def __init__(
        self,
        connect: Callable[[dict[str, Any]], Consumer],
        requests: RequestRetry,
        topics: Topics,
    ) -> None:
        self._connect = connect
        self._requests = requests
        self._topics = topics
        self._offsets = OffsetReaders(connect, requests)
        self._run_admin = requests.run_group_admin

    def session_timeout(self, group: str) -> float:
        """Seconds after which a broker expels a silent member of a KIP-848 group: Kafka's default
        where this user may not ask."""
        operation = f"asking for the session of group {group}"
        try:
            config = self._requests.read_config(operation, ResourceType.GROUP, group)
            return int(config["consumer.session.timeout.ms"] or "") / 1000
        except Unavailable:
            raise
        except (LogError, KeyError, ValueError):
            return KIP848_SESSION_TIMEOUT

    def list_groups(self) -> list[str]:
        """The names of all groups, sorted."""
        operation = "listing groups"
        listing = self._requests.run_admin(operation, AdminClient.list_consumer_groups)
        if listing.errors and not listing.valid:
            raise self._requests.settings.translate(listing.errors[0], operation)
        names = {each.group_id for each in listing.valid}
        return sorted(name for name in names if not name.startswith(INTERNAL_PREFIX))

    def describe_group(self, group: str, topics: Collection[str] | None) -> GroupInfo:
        """A group's members and positions; those of a topic that is gone are left out.

        :param topics: where its positions are asked for; None: in all topics.
        :raises NotFound: there is none of that name.
        """
        description = self.describe(group)
        offsets = self.committed(group, self._topics.partitions(topics))
        if description is None and not offsets:
            raise group_not_found(group)
        return GroupInfo(group, _members(description), offsets)

    def describe(self, group: str) -> ConsumerGroupDescription | None:
        """The coordinator's description of a group; None if it does not exist."""
        operation = f"asking for group {group}"
        try:
            found: ConsumerGroupDescription = self._run_admin(
                operation, AdminClient.describe_consumer_groups, [group]
            )
        except NotFound:
            return None
        return None if found.state is ConsumerGroupState.DEAD else found

    # -- positions

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Committed]:
        """A group's offsets in these partitions; none if there is no such group."""
        return self._offsets.committed(group, partitions)

    def offset_reader(self, group: str) -> OffsetReader:
        """A reader of one group's offsets, for repeated use."""
        return OffsetReader(self._connect, group, self._requests)

    def connect_outsider(self, group: str, config: Mapping[str, str]) -> Consumer:
        """A consumer with none of the user's settings of members, and these.

        :raises ConfigError: the driver does not take them.
        """
        return self._connect({**self._requests.settings.offset_reader_config(group), **config})

    def alter_offsets(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        """Set a group's offsets in a topic.

        :raises GroupNotEmpty: it has running members.
        """
        if not offsets:
            return
        partitions = to_driver({(topic, number): offsets[number] for number in sorted(offsets)})
        wanted = [ConsumerGroupTopicPartitions(group, partitions)]
        operation = f"moving group {group} in {topic}"
        try:
            self._run_admin(operation, AdminClient.alter_consumer_group_offsets, wanted)
        except LogError as error:
            raise self._not_empty_error(group, error) from error

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a new group its positions in a topic: True where it had none.

        :raises GroupNotEmpty: its members run, and none of them has a position in this topic yet.
        """
        partitions = [(topic, partition) for partition in positions]
        if self.committed(group, partitions):
            return False
        try:
            offsets = {partition: Committed(position) for partition, position in positions.items()}
            self.alter_offsets(group, topic, offsets)
        except GroupNotEmpty:
            if self.committed(group, partitions):
                return False  # somebody else was faster
            raise
        return True

    def _not_empty_error(self, group: str, error: LogError) -> LogError:
        """The error for a change that Kafka refused, which for a group with members it does with
        several codes."""
        if not {"UNKNOWN_MEMBER_ID", "NON_EMPTY_GROUP", "STALE_MEMBER_EPOCH"} & error_names(error):
            return error
        description = self.describe(group)
        if description is None or not description.members:
            return error
        return group_not_empty(
            group,
            len(description.members),
            " (a stopped static member, such as one of run --workers, stays in the group until its "
            "session times out, after 10 s unless set otherwise: then try again)",
        )

    def delete_group(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupNotEmpty: it has running members.
        :raises NotFound: there is none of that name.
        """
        try:
            self._run_admin(f"deleting group {group}", AdminClient.delete_consumer_groups, [group])
        except NotFound as error:
            raise group_not_found(group) from error
        except LogError as error:
            raise self._not_empty_error(group, error) from error

    def close(self) -> None:
        """Ask no more."""
        self._offsets.close()


def _members(description: ConsumerGroupDescription | None) -> tuple[MemberInfo, ...]:
    if description is None:
        return ()
    members = []
    for member in description.members:
        assignment: Any = member.assignment  # the driver may have none
        assigned = assignment.topic_partitions if assignment is not None else ()
        owned = tuple(sorted((partition.topic, partition.partition) for partition in assigned))
        members.append(MemberInfo(member.member_id, owned))
    return tuple(members)
