"""Key parking: messages kept behind a dead one of their key, for ``DeadLetters(sequenced=True)``.

:mod:`streams.parking.records` is the format of what is written and the state that follows from it;
:mod:`streams.parking.key_parking` reads and writes it for a processor;
:mod:`streams.parking.reading` reads it for everything else.
"""

from streams.parking.key_parking import DurableKeyParking
from streams.parking.reading import is_parking_record, read_floor, read_state
from streams.parking.records import (
    Command,
    ParkedQueue,
    ParkingState,
    command_record,
    parked_topic,
    parse_batch,
    read_original,
)

__all__ = [
    "Command",
    "DurableKeyParking",
    "ParkedQueue",
    "ParkingState",
    "command_record",
    "is_parking_record",
    "parked_topic",
    "parse_batch",
    "read_floor",
    "read_original",
    "read_state",
]
