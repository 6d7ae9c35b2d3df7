"""Reads the records of closed keys, from the floor on; blocks.

The floor is the position of a group without members that is named like the topic, stored with the
epoch in force there (:mod:`streams.parking.records`).
"""

from __future__ import annotations

from collections.abc import Callable

from streams.log.protocol import Log
from streams.log.range_reader import read_batches
from streams.message import Headers
from streams.parking.records import PREFIX, ParkingState, is_possible_epoch, parse_batch
from streams.text import get_logger

logger = get_logger("streams.dead")


def is_parking_record(headers: Headers) -> bool:
    """Whether a record is one that keeps a key closed."""
    return any(name.startswith(PREFIX) for name, _ in headers)


def read_state(
    log: Log, name: str, partition: int, on_ignored: Callable[[int, int], None] | None = None
) -> ParkingState:
    """The state that follows from a partition's records, from the floor to the end.

    :param on_ignored: called with partition and offset of each record that is not valid.
    """
    start, end, epoch = read_floor(log, name, partition)
    state = ParkingState(epoch)
    for batch in read_batches(log, name, partition, start, end):
        parsed = parse_batch(batch)
        for record in parsed:
            state.apply(*record)
        if on_ignored is not None and len(parsed) < len(batch):
            for offset in sorted({*batch.offsets} - {position for position, _, _ in parsed}):
                on_ignored(partition, offset)
    return state


def read_floor(log: Log, name: str, partition: int) -> tuple[int, int, str]:
    """The position where reading begins, the log's end, and the epoch in force where it begins.

    The epoch is empty if it is not known. A floor that another program wrote is ignored: then the
    whole partition is read.
    """
    first, end = log.watermarks(name, partition)
    committed = log.committed(name, name).get(partition)
    if committed is None or committed.position < first:
        return first, end, ""
    position, epoch = committed.position, committed.progress
    if position <= end and (epoch or position == first) and is_possible_epoch(epoch, position):
        return position, end, epoch
    logger.error(
        "%s/%d: where its keys are read from was overwritten by something else (%s): reading "
        "from the beginning, %s",
        name, partition, log.format_offset(position), log.format_offset(first),
    )  # fmt: skip
    return first, end, ""
