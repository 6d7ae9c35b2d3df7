"""Event-driven services over Kafka, Redis Streams and an embedded log.

Order per key with concurrency far above the partition count, at-least-once, dedup by message ID,
and an ordered way to fail: the same on every log. Start with :class:`Streams`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.config import DeadLetters, Dedup, Flow, Retry
    from streams.errors import (
        BatchError,
        ConfigError,
        Fatal,
        Fenced,
        GroupLive,
        HandlerTimeout,
        LogError,
        Mismatch,
        NotFound,
        NotRunning,
        OutcomeUnknown,
        ProcessorDied,
        Reject,
        RetryAfter,
        StreamsError,
        TooLarge,
        Unavailable,
    )
    from streams.health import Health, ProcessorHealth, ProcessorStats, Stats
    from streams.message import Message, Position, Raw
    from streams.processor import Processor
    from streams.reading import Reading
    from streams.topic import Source, Topic

__version__ = "0.1.0"

__all__ = [
    "BatchError",
    "ConfigError",
    "DeadLetters",
    "Dedup",
    "Fatal",
    "Fenced",
    "Flow",
    "GroupLive",
    "HandlerTimeout",
    "Health",
    "LogError",
    "Message",
    "Mismatch",
    "NotFound",
    "NotRunning",
    "OutcomeUnknown",
    "Position",
    "Processor",
    "ProcessorDied",
    "ProcessorHealth",
    "ProcessorStats",
    "Raw",
    "Reading",
    "Reject",
    "Retry",
    "RetryAfter",
    "Source",
    "Stats",
    "Streams",
    "StreamsError",
    "TooLarge",
    "Topic",
    "Unavailable",
    "__version__",
]

_HOME = {
    "BatchError": "streams.errors",
    "ConfigError": "streams.errors",
    "DeadLetters": "streams.config",
    "Dedup": "streams.config",
    "Fatal": "streams.errors",
    "Fenced": "streams.errors",
    "Flow": "streams.config",
    "GroupLive": "streams.errors",
    "HandlerTimeout": "streams.errors",
    "Health": "streams.health",
    "LogError": "streams.errors",
    "Message": "streams.message",
    "Mismatch": "streams.errors",
    "NotFound": "streams.errors",
    "NotRunning": "streams.errors",
    "OutcomeUnknown": "streams.errors",
    "Position": "streams.message",
    "Processor": "streams.processor",
    "ProcessorDied": "streams.errors",
    "ProcessorHealth": "streams.health",
    "ProcessorStats": "streams.health",
    "Raw": "streams.message",
    "Reading": "streams.reading",
    "Reject": "streams.errors",
    "Retry": "streams.config",
    "RetryAfter": "streams.errors",
    "Source": "streams.topic",
    "Stats": "streams.health",
    "Streams": "streams.app",
    "StreamsError": "streams.errors",
    "TooLarge": "streams.errors",
    "Topic": "streams.topic",
    "Unavailable": "streams.errors",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: ``streams --help`` needs none of them."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return __all__
