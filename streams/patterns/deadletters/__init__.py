"""Dead letters: messages that could not be handled, to be inspected, redriven and purged.

:class:`DeadLetterManager` and :class:`ClosedKeys` are for applications. :class:`DeadLetterTopic`
and :class:`ClosedKeyReader` do the same on a log alone, and block; the command line uses them.
"""

from streams.parking import is_parking_record
from streams.patterns.deadletters.closed_keys import (
    ClosedKey,
    ClosedKeyHead,
    ClosedKeyReader,
    ClosedKeys,
    CommandTarget,
    NotClosed,
)
from streams.patterns.deadletters.dead_letter import DeadLetter, failure_time
from streams.patterns.deadletters.manager import DeadLetterManager
from streams.patterns.deadletters.redriving import (
    RESOLVED_LIMIT,
    SCAN_LIMIT,
    DeadLetterRows,
    DeadLetterTopic,
    NewestRows,
    ReprocessStopped,
    ResolvedOffsets,
    Selection,
    put_back_topic,
    resolved_offsets,
    source_of,
)

__all__ = [
    "RESOLVED_LIMIT",
    "SCAN_LIMIT",
    "ClosedKey",
    "ClosedKeyHead",
    "ClosedKeyReader",
    "ClosedKeys",
    "CommandTarget",
    "DeadLetter",
    "DeadLetterManager",
    "DeadLetterRows",
    "DeadLetterTopic",
    "NewestRows",
    "NotClosed",
    "ReprocessStopped",
    "ResolvedOffsets",
    "Selection",
    "failure_time",
    "is_parking_record",
    "put_back_topic",
    "resolved_offsets",
    "source_of",
]
