"""Where reading the records of closed keys begins: the floor, as the log has it. Blocks.

The floor is the place of a group without members that has the name of the topic: a position, and
the epoch in force there (:mod:`streams.parking.records`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.parking.records import is_possible_epoch
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import Log

logger = get_logger("streams.dead")


def read_floor(log: Log, name: str, partition: int) -> tuple[int, int, str]:
    """Where reading begins, where the log ends, and the epoch in force at the beginning.

    The epoch is empty where it is not known. A floor that cannot be one, because something else
    wrote it, is left out of account: everything there is gets read.
    """
    first, end = log.watermarks(name, partition)
    committed = log.committed(name, name).get(partition)
    if committed is None or committed.position < first:
        return first, end, ""
    is_ours = committed.progress or committed.position == first
    if (
        committed.position > end
        or not is_ours
        or not is_possible_epoch(committed.progress, committed.position)
    ):
        logger.error(
            "%s/%d: where its keys are read from was overwritten by something else (%s): reading "
            "from the beginning, %s",
            name, partition, log.format_offset(committed.position), log.format_offset(first),
        )  # fmt: skip
        return first, end, ""
    return committed.position, end, committed.progress
