"""Where reading the records of closed keys begins: the floor, as the log has it. Blocks.

The floor is the place of a group without members that has the name of the topic: a position, and
the epoch in force there (:mod:`streams.patterns.deadletters.parked`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from streams.patterns.deadletters.parked import State, is_epoch, said

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch

logger = logging.getLogger("streams.dead")


def floor(log: Log, name: str, partition: int) -> tuple[int, int, str]:
    """Where reading begins, where the log ends, and the epoch in force at the beginning.

    The epoch is empty where it is not known. A floor that cannot be one, because something else
    wrote it, is left out of account: everything there is gets read.
    """
    first, end = log.bounds(name, partition)
    place = log.places(name, name).get(partition)
    if place is None or place.position < first:
        return first, end, ""
    if place.position > end or not is_epoch(place.progress):
        logger.error(
            "%s/%d: where its keys are read from was overwritten by something else (%s): reading "
            "from the beginning, %s",
            name, partition, log.show(place.position), log.show(first),
        )  # fmt: skip
        return first, end, ""
    return place.position, end, place.progress


def take_in(state: State, batch: Batch) -> None:
    """Have a state read what a batch says."""
    for index, position in enumerate(batch.offsets):
        record = said(batch.headers(index))
        if record is not None:
            state.read(position, batch.keys[index], record)
