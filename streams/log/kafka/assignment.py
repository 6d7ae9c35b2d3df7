"""The partitions of one group member, from the driver's side: owned, pending, fetched, paused.

The cooperative protocols (classic with cooperative-sticky, and KIP-848) assign and revoke single
partitions; the eager ones have only one call, which names everything that is fetched. They differ
in this module only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KTopicPartition

from streams.log.protocol import Assignment, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")


def topic_partitions_of(partitions: Iterable[KTopicPartition]) -> list[TopicPartition]:
    """Topic and partition of each."""
    return [(partition.topic, partition.partition) for partition in partitions]


RETRY_PAUSE = 0.1
"""Seconds until a partition that could not be started is tried again; doubled each time."""

MAX_RETRY_PAUSE = 5.0
"""Seconds until then, at most."""


@dataclass(slots=True)
class PendingAssignment:
    """A partition that the group gave us, and when the listener is to be told."""

    retry_at: float = float("-inf")
    """Monotonic time."""
    retry_pause: float = 0.0
    """Seconds between the last try and the next; 0 before the first."""

    def schedule_retry(self, now: float) -> None:
        """It could not be started."""
        self.retry_pause = min(MAX_RETRY_PAUSE, self.retry_pause * 2 or RETRY_PAUSE)
        self.retry_at = now + self.retry_pause


class AssignedPartitions:
    """The partitions of one member. Whatever the driver raises comes out as it is."""

    def __init__(self, consumer: Consumer, eager: bool) -> None:
        self._consumer = consumer
        self._eager = eager
        self.owned: dict[TopicPartition, Assignment] = {}
        self.pending: dict[TopicPartition, PendingAssignment] = {}
        """Assigned by the group, not yet told to the listener, in order."""
        self.fetched: set[TopicPartition] = set()
        """The partitions that the driver fetches."""
        self.paused: set[TopicPartition] = set()

    @property
    def all_paused(self) -> bool:
        """All that is fetched is paused: no message can come."""
        return bool(self.fetched) and self.fetched <= self.paused

    def accept_assignment(self, partitions: Iterable[KTopicPartition]) -> None:
        """In a rebalance: accept these, but fetch nothing of them yet."""
        self.add_pending(topic_partitions_of(partitions))
        if self._eager:
            self._consumer.assign([])
        else:
            self._consumer.incremental_assign([])

    def add_pending(self, keys: Iterable[TopicPartition]) -> None:
        """Have the listener told of these."""
        self.pending.update((key, PendingAssignment()) for key in keys)

    def never_tried(self) -> list[TopicPartition]:
        """The pending ones that were not tried yet."""
        return [key for key, each in self.pending.items() if not each.retry_pause]

    def due_for_retry(self, now: float) -> list[TopicPartition]:
        """Those that could not be started, and are due to be tried again."""
        return [
            key for key, each in self.pending.items() if each.retry_pause and each.retry_at <= now
        ]

    def remove_owned(self, assignments: Iterable[Assignment]) -> None:
        """These are no longer ours."""
        for assignment in assignments:
            key = assignment.topic_partition
            assignment.valid_until = float("-inf")
            if self.owned.get(key) is assignment:
                del self.owned[key]

    def start_fetching(self, assignments: Sequence[Assignment]) -> None:
        """Fetch these, each from its position."""
        partitions = [KTopicPartition(*each.topic_partition, each.position) for each in assignments]
        if self._eager:
            self._assign_all(partitions)
        else:
            self._consumer.incremental_assign(partitions)
        self.fetched.update(each.topic_partition for each in assignments)

    def fetch_positions(self) -> dict[TopicPartition, int]:
        """The partitions to fetch now, each with the position from which its fetch began."""
        owned = self.owned
        return {key: owned[key].position for key in self.fetched - self.paused if key in owned}

    def restart_fetching(self, keys: Iterable[TopicPartition]) -> None:
        """Fetch these anew, each from behind the last message that was delivered."""
        partitions = self._positions(self.fetch_positions().keys() & set(keys))
        if not partitions:
            return
        self._consumer.resume(partitions)  # in whatever state the driver thinks they are
        if self._eager:
            self._assign_all([])
        else:
            self._consumer.incremental_unassign(partitions)
            self._consumer.incremental_assign(partitions)

    def stop_fetching(self, keys: Iterable[TopicPartition], *, rebalance: bool = False) -> None:
        """Stop fetching these, and acknowledge if it is in a rebalance."""
        stopped = [key for key in keys if key in self.fetched]
        self.fetched.difference_update(stopped)
        paused = self.paused.intersection(stopped)
        if paused:
            # The driver would remember it, and deliver nothing if the partition came back.
            self._consumer.resume([KTopicPartition(*key) for key in paused])
            self.paused -= paused
        if not self._eager:
            self._consumer.incremental_unassign([KTopicPartition(*key) for key in stopped])
        elif rebalance:
            self._consumer.unassign()
        else:
            self._assign_all([])

    def _assign_all(self, added: list[KTopicPartition]) -> None:
        """Assign what is fetched already, from its position, and ``added``."""
        self._consumer.assign(self._positions(sorted(self.fetched)) + added)
        if self.paused:
            self._consumer.pause([KTopicPartition(*key) for key in self.paused])

    def _positions(self, keys: Iterable[TopicPartition]) -> list[KTopicPartition]:
        """Each of these with the position behind the last message that was delivered."""
        partitions = [KTopicPartition(*key) for key in keys]
        if partitions:
            partitions = self._consumer.position(partitions)
        for partition in partitions:
            if partition.offset < 0:  # nothing was delivered of it
                partition.offset = self.owned[partition.topic, partition.partition].position
        return partitions

    # -- pausing

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these."""
        keys = self._still_fetched(assignments) - self.paused
        if keys:
            self._consumer.pause([KTopicPartition(*key) for key in keys])
            self.paused |= keys

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again."""
        keys = self._still_fetched(assignments) & self.paused
        if keys:
            self._consumer.resume([KTopicPartition(*key) for key in keys])
            self.paused -= keys

    def _still_fetched(self, assignments: Iterable[Assignment]) -> set[TopicPartition]:
        return {
            each.topic_partition
            for each in assignments
            if self.owned.get(each.topic_partition) is each and each.topic_partition in self.fetched
        }
