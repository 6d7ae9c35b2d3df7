"""What one member of a group has, from the driver's side: owned, arriving, fetched, paused.

The cooperative protocols (classic with cooperative-sticky, and KIP-848) take and give single
partitions; the eager ones know only one call, which names everything that is fetched. Here is
where they differ, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import Consumer, TopicPartition

from streams.log.protocol import Assignment

Key = tuple[str, int]


def key_of(assignment: Assignment) -> Key:
    """Topic and partition."""
    return assignment.topic, assignment.partition


def keys_of(parts: Iterable[TopicPartition]) -> list[Key]:
    """Topic and partition of each."""
    return [(part.topic, part.partition) for part in parts]


AGAIN = 0.1
"""Seconds until a partition that could not be begun is tried again; twice as many each time."""

MOST = 5.0
"""Seconds until then, at most."""


class Arrival:
    """A partition that the group gave us, and when the listener is to be told."""

    __slots__ = ("due", "pause")

    def __init__(self) -> None:
        self.due = float("-inf")
        """Monotonic time."""
        self.pause = 0.0
        """Seconds between the last try and the next; 0 before the first."""

    def later(self, now: float) -> None:
        """It could not be begun."""
        self.pause = min(MOST, self.pause * 2 or AGAIN)
        self.due = now + self.pause


class Partitions:
    """The partitions of one member. Whatever the driver raises comes out as it is."""

    def __init__(self, consumer: Consumer, eager: bool) -> None:
        self._consumer = consumer
        self._eager = eager
        self.owned: dict[Key, Assignment] = {}
        self.arriving: dict[Key, Arrival] = {}
        """Assigned by the group, not yet told to the listener, in order."""
        self.fetched: set[Key] = set()
        """What the driver was told to fetch."""
        self.paused: set[Key] = set()

    @property
    def silent(self) -> bool:
        """All that is fetched is paused: no message can come."""
        return bool(self.fetched) and self.fetched <= self.paused

    def arrive(self, parts: Iterable[TopicPartition]) -> None:
        """In a rebalance: accept these, but fetch nothing of them yet."""
        self.expect(keys_of(parts))
        if self._eager:
            self._consumer.assign([])
        else:
            self._consumer.incremental_assign([])

    def expect(self, keys: Iterable[Key]) -> None:
        """The listener is to be told of these."""
        self.arriving.update((key, Arrival()) for key in keys)

    def new(self) -> list[Key]:
        """What the listener was never told of."""
        return [key for key, each in self.arriving.items() if not each.pause]

    def due(self, now: float) -> list[Key]:
        """What could not be begun, and may be by now."""
        return [key for key, each in self.arriving.items() if each.pause and each.due <= now]

    def disown(self, assignments: Iterable[Assignment]) -> None:
        """These are ours no more."""
        for assignment in assignments:
            key = key_of(assignment)
            assignment.valid_until = float("-inf")
            if self.owned.get(key) is assignment:
                del self.owned[key]

    def fetch(self, assignments: Sequence[Assignment]) -> None:
        """Fetch these, each from its position."""
        parts = [TopicPartition(*key_of(each), each.position) for each in assignments]
        if self._eager:
            self._assign_all(parts)
        else:
            self._consumer.incremental_assign(parts)
        self.fetched.update(map(key_of, assignments))

    def stop(self, keys: Iterable[Key], *, rebalance: bool = False) -> None:
        """Fetch these no more, and acknowledge if it is in a rebalance."""
        gone = [key for key in keys if key in self.fetched]
        self.fetched.difference_update(gone)
        paused = self.paused.intersection(gone)
        if paused:
            # The driver would remember it, and deliver nothing should the partition come back.
            self._consumer.resume([TopicPartition(*key) for key in paused])
            self.paused -= paused
        if not self._eager:
            self._consumer.incremental_unassign([TopicPartition(*key) for key in gone])
        elif rebalance:
            self._consumer.unassign()
        else:
            self._assign_all([])

    def _assign_all(self, more: list[TopicPartition]) -> None:
        """What is fetched already, from where it stands, and ``more``."""
        parts = [TopicPartition(*key) for key in sorted(self.fetched)]
        if parts:
            parts = self._consumer.position(parts)
        for part in parts:
            if part.offset < 0:  # nothing was delivered of it
                part.offset = self.owned[part.topic, part.partition].position
        self._consumer.assign(parts + more)
        if self.paused:
            self._consumer.pause([TopicPartition(*key) for key in self.paused])

    # -- pausing

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these."""
        keys = self._current(assignments) - self.paused
        if keys:
            self._consumer.pause([TopicPartition(*key) for key in keys])
            self.paused |= keys

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again."""
        keys = self._current(assignments) & self.paused
        if keys:
            self._consumer.resume([TopicPartition(*key) for key in keys])
            self.paused -= keys

    def _current(self, assignments: Iterable[Assignment]) -> set[Key]:
        return {
            key_of(each)
            for each in assignments
            if self.owned.get(key_of(each)) is each and key_of(each) in self.fetched
        }
