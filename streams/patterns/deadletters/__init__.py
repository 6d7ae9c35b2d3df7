"""Dead letters: what could not be handled, looked at, put back and set aside."""

from streams.patterns.deadletters.closed_keys import ClosedKey, ClosedKeys, NotClosed
from streams.patterns.deadletters.dead_letter import DeadLetter
from streams.patterns.deadletters.manager import DeadLetterManager
from streams.patterns.deadletters.redriving import ReprocessStopped

__all__ = [
    "ClosedKey",
    "ClosedKeys",
    "DeadLetter",
    "DeadLetterManager",
    "NotClosed",
    "ReprocessStopped",
]
