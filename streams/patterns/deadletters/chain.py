"""Where reading the records of closed keys begins: the floor, as the log has it. Blocks.

The floor is the place of a group without members that has the name of the topic: a position, and
the epoch in force there (:mod:`streams.patterns.deadletters.parked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.patterns.deadletters.parked import Said, may_be_in_force, said
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch

logger = get_logger("streams.dead")


def floor(log: Log, name: str, partition: int) -> tuple[int, int, str]:
    """Where reading begins, where the log ends, and the epoch in force at the beginning.

    The epoch is empty where it is not known. A floor that cannot be one, because something else
    wrote it, is left out of account: everything there is gets read.
    """
    first, end = log.bounds(name, partition)
    place = log.places(name, name).get(partition)
    if place is None or place.position < first:
        return first, end, ""
    known = place.progress or place.position == first
    if place.position > end or not known or not may_be_in_force(place.progress, place.position):
        logger.error(
            "%s/%d: where its keys are read from was overwritten by something else (%s): reading "
            "from the beginning, %s",
            name, partition, log.show(place.position), log.show(first),
        )  # fmt: skip
        return first, end, ""
    return place.position, end, place.progress


def records(batch: Batch) -> list[tuple[int, bytes | None, Said]]:
    """What a batch says: where it stands, of which key, and what it is."""
    found = []
    for index, position in enumerate(batch.offsets):
        record = said(batch.headers(index))
        if record is not None:
            found.append((position, batch.keys[index], record))
    return found
