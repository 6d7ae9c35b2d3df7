"""Moving a group that runs: where the order is left, and how its members find it.

Kafka lets nobody set the positions of a group that has members, and no client can send members
away. So the new places are written as the positions of a second group, *the desk*
(``__streams.move.{group}``). Each running member asks every :data:`EVERY` seconds whether there is
such a group, without waiting for the answer, and only then reads what it says. The owner of a
partition found there gives the partition up as lost, commits the new place itself, marks it as
taken, and starts over. Whoever ordered the move waits until all its places are marked, and clears
the desk.

A place that is marked has a progress that no log accepts (it is not ASCII), so the two cannot be
mistaken. Members that are not ours never look, and the order is withdrawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from confluent_kafka import KafkaException

from streams.errors import GroupLive, LogError
from streams.log.kafka.asking import brought
from streams.log.kafka.groups import OURS, Groups, alive
from streams.log.protocol import Committed

logger = logging.getLogger("streams.kafka")

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
    groups.alter(name, topic, moved)
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
                    f"{PATIENCE:g} s (only members that run this toolkit do): stop them first"
                )
            time.sleep(0.25)
    finally:
        try:
            groups.forget(name)
        except LogError as error:
            logger.warning("group %s: its desk was not cleared: %s", group, error)


class Desk:
    """A member's view of its group's desk. Looking whether there is one does not wait."""

    def __init__(self, groups: Groups, group: str) -> None:
        self._groups = groups
        self._name = desk(group)
        self._next = time.monotonic() + EVERY
        self._asked: Any = None

    def look(self, now: float, parts: Collection[Key]) -> Mapping[Key, Committed]:
        """The places that wait for the owner of ``parts``; asks for a desk when it is time."""
        if self._asked is None:
            if parts and now >= self._next:
                self._next = now + EVERY
                self._asked = self._ask()
            return {}
        if not self._asked.done():
            return {}
        asked, self._asked = self._asked, None
        try:
            if not alive(brought(asked)):
                return {}
            found = self._groups.positions(self._name, list(parts))
        except (KafkaException, LogError):
            return {}  # whoever may not ask, or cannot just now, is not moved
        return {key: place for key, place in found.items() if place.progress != TAKEN}

    def _ask(self) -> Any:
        try:
            return self._groups.exists(self._name)
        except KafkaException:
            return None

    def taken(self, moved: Mapping[Key, Committed]) -> None:
        """Mark places as taken.

        :raises Unavailable: they are not; they will be found again.
        """
        topics: dict[str, dict[int, Committed]] = {}
        for (topic, partition), place in moved.items():
            topics.setdefault(topic, {})[partition] = Committed(place.position, TAKEN)
        for topic, marked in topics.items():
            self._groups.alter(self._name, topic, marked)
