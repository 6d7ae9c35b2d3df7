"""Event-driven services over Kafka, Redis Streams and an embedded log.

Order per key with concurrency far above the partition count, at-least-once, dedup by message ID,
and an ordered way to fail: the same on every log. Start with :class:`Streams`.
"""

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
