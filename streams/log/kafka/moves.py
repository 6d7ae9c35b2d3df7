"""Moving a group that runs: where the order is left, and how its members find it.

Kafka lets nobody set the positions of a group that has members, and no client can send members
away. So the new places are written as the positions of a second group, *the desk*
(``__streams.move.{group}``). Each running member asks every :data:`EVERY` seconds whether anything
lies there for its topics: a move of a topic always has an entry for partition 0, so that is one
small question however many partitions there are. The owner of a partition found there gives the
partition up as lost, commits the new place itself, marks it as taken, and starts over. Whoever
ordered the move waits until all its places are marked, and clears the desk.

A place that is marked has a progress that no log accepts (it is not ASCII), so the two cannot be
mistaken. Members that are not ours never look, and the order is withdrawn.

Asked is through a consumer that never joins, in a thread of its own: polling must not wait for the
answer, and the AdminClient, which would not wait either, aborts the whole process when the
coordinator dies while it is asked (librdkafka's issue 4605).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from queue import SimpleQueue

from streams.errors import GroupLive, StreamsError
from streams.log.kafka.groups import OURS, Groups
from streams.log.kafka.places import Bystander
from streams.log.protocol import Committed
from streams.text import get_logger

logger = get_logger("streams.kafka")

EVERY = 2.0
"""Seconds between two looks at the desk."""

PATIENCE = 20.0
"""Seconds until an order that nobody takes is withdrawn."""

PREFIX = OURS + "move."

TAKEN = "\N{CHECK MARK}"

Key = tuple[str, int]


def desk(group: str) -> str:
    """The name of a group's desk."""
    return PREFIX + group


def order(groups: Groups, group: str, topic: str, moved: Mapping[int, Committed]) -> None:
    """Have the running members of a group start over from these places; returns once they do.

    :raises GroupLive: they do not look for it; nothing was moved that is not marked.
    """
    name = desk(group)
    groups.alter(name, topic, {0: Committed(0, TAKEN), **moved})
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            found = groups.positions(name, [(topic, partition) for partition in moved])
            waiting = [key for key, place in found.items() if place.progress != TAKEN]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise GroupLive(
                    f"group {group!r}: its members did not give up "
                    f"{', '.join(f'{topic}/{partition}' for topic, partition in waiting)} within "
                    f"{PATIENCE:g} s: stop them first (those that do not run this toolkit never "
                    "give theirs up; static members that were stopped count until their sessions "
                    "have ended: then try again)"
                )
            time.sleep(0.25)
    finally:
        try:
            groups.forget(name)
        except StreamsError as error:
            logger.warning("group %s: its desk was not cleared: %s", group, error)


class Desk:
    """A member's view of its group's desk. Looking never waits."""

    def __init__(self, groups: Groups, group: str) -> None:
        self._groups = groups
        self._name = desk(group)
        self._found: Mapping[Key, Committed] = {}
        self._asks = False
        """The thread wants to know which partitions to ask for."""
        self._parts: SimpleQueue[tuple[Key, ...] | None] = SimpleQueue()
        """What it is told; None: the member leaves."""
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name=f"streams-kafka-desk-{group}", daemon=True
        )
        self._thread.start()

    def look(self, parts: Collection[Key]) -> Mapping[Key, Committed]:
        """The places that wait for the owner of ``parts``, as far as is known."""
        if self._asks:
            self._asks = False
            self._parts.put(tuple(parts))
        found = self._found
        if not found:
            return found
        self._found = {}
        return {key: place for key, place in found.items() if key in parts}

    def taken(self, moved: Mapping[Key, Committed]) -> None:
        """Mark places as taken.

        :raises Unavailable: they are not; they will be found again.
        """
        topics: dict[str, dict[int, Committed]] = {}
        for (topic, partition), place in moved.items():
            topics.setdefault(topic, {})[partition] = Committed(place.position, TAKEN)
        for topic, marked in topics.items():
            self._groups.alter(self._name, topic, marked)

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._parts.put(None)

    def _watch(self) -> None:
        bystander: Bystander | None = None
        while not self._closed.wait(EVERY):
            self._asks = True
            parts = self._parts.get()
            if not parts:
                continue
            try:
                if bystander is None:
                    bystander = self._groups.bystander(self._name)
                self._found = _waiting(bystander, parts)
            except StreamsError as error:
                # Whoever may not ask, or cannot just now, is not moved.
                logger.debug("group %s: its desk: %s", self._name, error)
        if bystander is not None:
            bystander.close()


def _waiting(bystander: Bystander, parts: Collection[Key]) -> Mapping[Key, Committed]:
    if not bystander.places([(topic, 0) for topic in sorted({topic for topic, _ in parts})]):
        return {}
    found = bystander.places(list(parts))
    return {key: place for key, place in found.items() if place.progress != TAKEN}
