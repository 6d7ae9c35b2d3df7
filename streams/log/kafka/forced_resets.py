"""Setting the offsets of a group that runs: where the request is left, and how members find it.

Kafka does not let anybody set the offsets of a group that has members, and no client can expel
members. So the new offsets are committed to a second group, the *reset group*
(``__streams.move.{group}``). A running member that looks there finds them, gives the partition up
as lost, commits the new offset itself, marks it as applied, and starts over. The requester waits
until all are marked, and deletes the reset group. Members that do not run this toolkit never look,
and then the request is withdrawn.

**When a member looks.** Whenever the group has changed: it got partitions, or the group epoch is
another one (which Kafka calls the generation of a classic group). So the requester joins the group,
writes the request, and leaves, which changes that for every member. If it dies in between, its
session ends, which changes it as well: no request lies there unseen. It subscribes to
:data:`~streams.log.kafka.topics.OFFSETS_TOPIC`, so that members keep all their partitions; where
this user may not, to the topic itself, and then a partition may go to and fro. A request for a
topic always has an entry for partition 0, so a look is one small request however many partitions
there are. Where it finds one, the member looks every :data:`POLL_INTERVAL` seconds until the
request is gone. An eager assignor revokes everything when a member joins; so nobody joins such a
group, and its members look every :data:`POLL_INTERVAL` seconds all the time.

A marked offset has a progress that no log accepts (it is not ASCII), so the two cannot be mistaken.

Members look in a thread of its own, through a consumer that never joins: polling must not wait for
the answer, and the AdminClient, which would not wait either, aborts the whole process when the
coordinator dies during a request (librdkafka's issue 4605).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing

from confluent_kafka import Consumer, ConsumerGroupType, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import GroupNotEmpty, LogError, StreamsError, Unavailable
from streams.log.kafka.client import close_in_background
from streams.log.kafka.groups import INTERNAL_PREFIX, Groups
from streams.log.kafka.offsets import OffsetReader
from streams.log.kafka.topics import OFFSETS_TOPIC, Metadata
from streams.log.protocol import Committed, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

POLL_INTERVAL = 2.0
"""Seconds between two looks at the reset group."""

RESET_TIMEOUT = 20.0
"""Seconds until a request that is not applied is withdrawn."""

JOIN_TIMEOUT = 5.0
"""Seconds that joining the group may delay a request, or the end of one."""

LEAVE_TIMEOUT = 5.0
"""Seconds that leaving it may."""

RESET_PREFIX = INTERNAL_PREFIX + "move."

APPLIED = "\N{CHECK MARK}"


def reset_group_name(group: str) -> str:
    """The name of a group's reset group."""
    return RESET_PREFIX + group


def force_reset(
    groups: Groups, metadata: Metadata, group: str, topic: str, offsets: Mapping[int, Committed]
) -> None:
    """Have the running members of a group start over from these offsets; returns once they do.

    :raises GroupNotEmpty: they do not; nothing was reset but what is marked.
    """
    with closing(_Visit(groups, metadata, group, topic)) as visit:
        visit.join()
        _request_reset(groups, visit, group, topic, offsets)


def _request_reset(
    groups: Groups, visit: _Visit, group: str, topic: str, offsets: Mapping[int, Committed]
) -> None:
    """Leave the request, and wait until it is applied."""
    reset_group = reset_group_name(group)
    groups.alter_offsets(reset_group, topic, {0: Committed(0, APPLIED), **offsets})
    deadline = time.monotonic() + RESET_TIMEOUT
    try:
        while True:
            wanted = [(topic, partition) for partition in offsets]
            requested = groups.committed(reset_group, wanted)
            waiting = [key for key, each in requested.items() if each.progress != APPLIED]
            if not waiting:
                return
            if time.monotonic() > deadline:
                names = ", ".join(f"{topic}/{partition}" for topic, partition in waiting)
                raise GroupNotEmpty(
                    f"group {group!r}: its members did not give up {names} within "
                    f"{RESET_TIMEOUT:g} s: stop them first (those that do not run this toolkit "
                    "never give theirs up; stopped static members stay in the group until their "
                    "sessions time out: then try again)"
                )
            visit.wait(0.25)
    finally:
        try:
            groups.delete_group(reset_group)
        except StreamsError as error:
            logger.warning("group %s: its reset group was not deleted: %s", group, error)


class _Visit:
    """A short-lived member that joins a group to change its epoch, and fetches nothing."""

    def __init__(self, groups: Groups, metadata: Metadata, group: str, topic: str) -> None:
        self._consumer: Consumer | None = None
        self._joined = False
        description = groups.describe(group)
        if description is None:
            return
        config = {"group.protocol": "consumer"}
        if description.type is not ConsumerGroupType.CONSUMER:
            if "cooperative" not in description.partition_assignor:
                return
            assignor = description.partition_assignor
            config = {"partition.assignment.strategy": assignor, "session.timeout.ms": "10000"}
        try:
            metadata.read(OFFSETS_TOPIC)
            topic = OFFSETS_TOPIC
        except LogError as error:
            logger.debug("group %s: joining it for %s: %s", group, topic, error)
        try:
            self._consumer = groups.connect_outsider(group, config)
            self._consumer.subscribe([topic], on_assign=self._on_assign)
        except (KafkaException, StreamsError) as error:
            logger.warning(
                "group %s: could not be joined to announce the reset, so its members may notice it "
                "late: %s",
                group, error,
            )  # fmt: skip

    def _on_assign(self, consumer: Consumer, partitions: list[KTopicPartition]) -> None:
        self._joined = True
        consumer.incremental_assign([])

    def join(self) -> None:
        """Wait for the join, for :data:`JOIN_TIMEOUT` seconds at most; it may complete later, in
        :meth:`wait`."""
        consumer = self._consumer
        deadline = time.monotonic() + JOIN_TIMEOUT
        try:
            while consumer is not None and not self._joined and time.monotonic() < deadline:
                consumer.consume(1, 0.1)  # returns errors only, never a message
        except KafkaException as error:
            logger.debug("joining for a moment: %s", error)

    def wait(self, seconds: float) -> None:
        """Wait, and leave the group as soon as it was joined."""
        if self._consumer is None:
            time.sleep(seconds)
            return
        try:
            self._consumer.consume(1, 0.0 if self._joined else seconds)
        except KafkaException as error:
            logger.debug("joining for a moment: %s", error)
            self._joined = True
        if self._joined:
            self.close()

    def close(self) -> None:
        """Leave the group. A consumer that is closed while it joins remains a member until its
        session ends, so this waits for the join, but not long."""
        consumer = self._consumer
        if consumer is None:
            return
        self.join()
        self._consumer = None
        close_in_background(consumer).join(LEAVE_TIMEOUT)


class ResetRequests:
    """A member's view of its group's reset group. Looking never blocks the member.

    :param always: look all the time, not only when the group has changed.
    """

    def __init__(self, groups: Groups, group: str, *, always: bool) -> None:
        self._groups = groups
        self._reset_group = reset_group_name(group)
        self._always = always
        self._look_at = float("inf")
        """Monotonic time of the next look."""
        self._thread: threading.Thread | None = None
        """The look in progress, or the last one, whose result is to be taken."""
        self._found: Mapping[TopicPartition, Committed] = {}
        self._reader: OffsetReader | None = None

    def look_soon(self) -> None:
        """The group has changed."""
        self._look_at = float("-inf")

    def take_pending(
        self, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, Committed]:
        """The offsets requested for ``partitions``, as far as they are known. They are to be
        applied before this is called again."""
        if self._thread is not None:
            if self._thread.is_alive():
                return {}
            self._thread = None
            return {key: each for key, each in self._found.items() if key in partitions}
        if partitions and self._look_at <= time.monotonic():
            self._look_at = float("inf")
            self._thread = threading.Thread(
                target=self._look,
                args=(tuple(partitions),),
                name="streams-kafka-resets",
                daemon=True,
            )
            self._thread.start()
        return {}

    def mark_applied(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Mark offsets as applied.

        :raises Unavailable: they are not; they will be found again.
        """
        for topic in sorted({topic for topic, _ in offsets}):
            applied = {
                partition: Committed(committed.position, APPLIED)
                for (name, partition), committed in offsets.items()
                if name == topic
            }
            self._groups.alter_offsets(self._reset_group, topic, applied)

    def close(self) -> None:
        """Stop looking."""
        if self._reader is not None:
            self._reader.close()

    def _look(self, partitions: Sequence[TopicPartition]) -> None:
        self._found, again = {}, self._always
        reader = self._reader = self._reader or self._groups.offset_reader(self._reset_group)
        try:
            if reader.committed(
                [(topic, 0) for topic in sorted({topic for topic, _ in partitions})]
            ):
                again = True
                found = reader.committed(partitions)
                self._found = {key: each for key, each in found.items() if each.progress != APPLIED}
        except StreamsError as error:
            # A member that may not read this is not reset; one that cannot now tries again.
            again = again or isinstance(error, Unavailable)
            logger.debug("asking %s: %s", self._reset_group, error)
        if again:
            self._look_at = min(self._look_at, time.monotonic() + POLL_INTERVAL)
        else:
            self._reader = None
            reader.close()
