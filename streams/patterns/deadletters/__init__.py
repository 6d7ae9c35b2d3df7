"""Dead letters: what could not be handled, looked at, put back and set aside."""

from streams.patterns.deadletters.closed import ClosedKey, ClosedKeys, NotClosed
from streams.patterns.deadletters.letter import DeadLetter
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
