"""The partitions of one group member, from the driver's side: owned, pending, fetched, paused.

* *pending*: the group gave them to this member, and the listener has not been told yet;
* *owned*: the listener was told, and they may be committed;
* *fetched*: the driver fetches them, from where the listener said;
* *paused*: fetched, and not to be delivered now.

The cooperative protocols (classic with cooperative-sticky, and KIP-848) assign and revoke single
partitions; the eager ones have only one call, which names everything that is fetched. They differ
in this module only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
class _Retry:
    """When the listener is told of a pending partition."""

    at: float = float("-inf")
    """Monotonic time."""
    pause: float = 0.0
    """Seconds between the last try and the next; 0 before the first."""


class PendingPartitions:
    """The partitions that the group gave to a member and that were not started yet, in order."""

    def __init__(self) -> None:
        self._retries: dict[TopicPartition, _Retry] = {}

    def __bool__(self) -> bool:
        return bool(self._retries)

    def add(self, keys: Iterable[TopicPartition]) -> None:
        """Add partitions, of which the listener is to be told."""
        self._retries.update((key, _Retry()) for key in keys)

    def remove(self, keys: Iterable[TopicPartition]) -> None:
        """Remove partitions that were started, or that are no longer this member's."""
        for key in keys:
            self._retries.pop(key, None)

    def clear(self) -> None:
        """Remove all partitions: none of them is started."""
        self._retries.clear()

    def never_tried(self) -> list[TopicPartition]:
        """The partitions that were not tried yet."""
        return [key for key, each in self._retries.items() if not each.pause]

    def was_tried(self, key: TopicPartition) -> bool:
        """Whether a partition is pending and could not be started before."""
        found = self._retries.get(key)
        return found is not None and found.pause > 0.0

    def due_for_retry(self, now: float) -> list[TopicPartition]:
        """The partitions that could not be started, and are due to be tried again."""
        return [key for key, each in self._retries.items() if each.pause and each.at <= now]

    def schedule_retry(self, key: TopicPartition, now: float) -> bool:
        """Try a partition again after a pause, which doubles each time; returns whether the
        partition is pending."""
        found = self._retries.get(key)
        if found is None:
            return False
        found.pause = min(MAX_RETRY_PAUSE, found.pause * 2 or RETRY_PAUSE)
        found.at = now + found.pause
        return True


class AssignedPartitions:
    """The partitions of one member. The driver's errors are raised as they are."""

    def __init__(self, consumer: Consumer, eager: bool) -> None:
        self._consumer = consumer
        self._eager = eager
        self.pending = PendingPartitions()
        self._owned: dict[TopicPartition, Assignment] = {}
        self._fetched: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._valid_until = float("-inf")
        """The ``valid_until`` of all owned assignments."""

    # -- what is owned

    @property
    def owns_any(self) -> bool:
        """Whether any partition is owned."""
        return bool(self._owned)

    def owns(self, assignment: Assignment) -> bool:
        """Whether an assignment has not ended."""
        return self._owned.get(assignment.topic_partition) is assignment

    def owned_assignments(self) -> list[Assignment]:
        """All owned assignments."""
        return list(self._owned.values())

    def owned_among(self, keys: Iterable[TopicPartition]) -> list[Assignment]:
        """The owned assignments of these partitions."""
        return [self._owned[key] for key in keys if key in self._owned]

    def add_owned(self, assignments: Collection[Assignment]) -> None:
        """Add assignments that are this member's from now on."""
        for assignment in assignments:
            assignment.valid_until = self._valid_until
            self._owned[assignment.topic_partition] = assignment

    def remove_owned(self, assignments: Iterable[Assignment]) -> None:
        """Remove assignments that are no longer this member's."""
        for assignment in assignments:
            assignment.valid_until = float("-inf")
            if self.owns(assignment):
                del self._owned[assignment.topic_partition]

    def set_valid_until(self, moment: float) -> None:
        """Set the time until which ownership of all owned assignments is certain."""
        if moment != self._valid_until:
            self._valid_until = moment
            for assignment in self._owned.values():
                assignment.valid_until = moment

    def invalidate(self, keys: Iterable[TopicPartition]) -> None:
        """End the validity of partitions that another member owns already."""
        for assignment in self.owned_among(keys):
            assignment.valid_until = float("-inf")

    # -- what is fetched

    @property
    def fetched(self) -> Collection[TopicPartition]:
        """The partitions that the driver fetches."""
        return self._fetched

    @property
    def all_paused(self) -> bool:
        """Whether all fetched partitions are paused, so that no message can come."""
        return bool(self._fetched) and self._fetched <= self._paused

    def fetched_assignment(self, topic: str, partition: int) -> Assignment | None:
        """The assignment of a message that the driver returned; None: it has ended, or its
        partition is not fetched."""
        key = (topic, partition)
        return self._owned.get(key) if key in self._fetched else None

    def may_deliver(self, assignment: Assignment) -> bool | None:
        """Whether messages of an assignment may be given out; None: it has ended."""
        key = assignment.topic_partition
        if not self.owns(assignment) or key not in self._fetched:
            return None
        return key not in self._paused

    def accept_assignment(self, partitions: Iterable[KTopicPartition]) -> None:
        """In a rebalance: accept these, but fetch nothing of them yet."""
        self.pending.add(topic_partitions_of(partitions))
        if self._eager:
            self._consumer.assign([])
        else:
            self._consumer.incremental_assign([])

    def start_fetching(self, assignments: Sequence[Assignment]) -> None:
        """Fetch these, each from its position."""
        partitions = [KTopicPartition(*each.topic_partition, each.position) for each in assignments]
        if self._eager:
            self._assign_all(partitions)
        else:
            self._consumer.incremental_assign(partitions)
        self._fetched.update(each.topic_partition for each in assignments)

    def fetch_positions(self) -> dict[TopicPartition, int]:
        """The partitions to fetch now, each with the position from which its fetch began."""
        owned = self._owned
        return {key: owned[key].position for key in self._fetched - self._paused if key in owned}

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
        stopped = [key for key in keys if key in self._fetched]
        self._fetched.difference_update(stopped)
        paused = self._paused.intersection(stopped)
        if paused:
            # The driver would remember it, and deliver nothing if the partition came back.
            self._consumer.resume([KTopicPartition(*key) for key in paused])
            self._paused -= paused
        if not self._eager:
            self._consumer.incremental_unassign([KTopicPartition(*key) for key in stopped])
        elif rebalance:
            self._consumer.unassign()
        else:
            self._assign_all([])

    def _assign_all(self, added: list[KTopicPartition]) -> None:
        """Assign what is fetched already, from its position, and ``added``."""
        self._consumer.assign(self._positions(sorted(self._fetched)) + added)
        if self._paused:
            self._consumer.pause([KTopicPartition(*key) for key in self._paused])

    def _positions(self, keys: Iterable[TopicPartition]) -> list[KTopicPartition]:
        """Each of these with the position behind the last message that was delivered."""
        partitions = [KTopicPartition(*key) for key in keys]
        if partitions:
            partitions = self._consumer.position(partitions)
        for partition in partitions:
            if partition.offset < 0:  # nothing was delivered of it
                partition.offset = self._owned[partition.topic, partition.partition].position
        return partitions

    # -- pausing

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these."""
        keys = self._still_fetched(assignments) - self._paused
        if keys:
            self._consumer.pause([KTopicPartition(*key) for key in keys])
            self._paused |= keys

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again."""
        keys = self._still_fetched(assignments) & self._paused
        if keys:
            self._consumer.resume([KTopicPartition(*key) for key in keys])
            self._paused -= keys

    def _still_fetched(self, assignments: Iterable[Assignment]) -> set[TopicPartition]:
        return {
            each.topic_partition
            for each in assignments
            if self.owns(each) and each.topic_partition in self._fetched
        }
