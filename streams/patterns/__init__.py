"""The integration patterns, each on any log and each usable alone.

Façades over topics and processors: what is promised about order, redelivery, duplicates, retries
and memory is what a processor promises. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.patterns.backpressure import BackpressureController, NotAcquired
    from streams.patterns.bus import (
        Event,
        EventBus,
        EventFilter,
        FilteredSubscriber,
        PatternEventBus,
        Subscription,
    )
    from streams.patterns.choreography import (
        ChoreographySaga,
        SagaEvent,
        SagaState,
        SagaTracker,
        create_handler,
    )
    from streams.patterns.deadletters import (
        ClosedKey,
        ClosedKeys,
        DeadLetter,
        DeadLetterManager,
        NotClosed,
        ReprocessStopped,
    )
    from streams.patterns.delay import Delays, Scheduled
    from streams.patterns.idempotency import (
        ClaimLost,
        DeduplicatedConsumer,
        IdempotencyStore,
        IdempotentProcessor,
        InProgress,
        KeyReused,
        OperationFailed,
    )
    from streams.patterns.monitoring import MetricsCollector, MonitoringServer, instrument
    from streams.patterns.queue import (
        ConsumerConfig,
        MessageConsumer,
        MessageQueue,
        Queue,
        QueueMessage,
    )
    from streams.patterns.saga import (
        ContextConflict,
        FailedCompensation,
        SagaError,
        SagaFailedError,
        SagaOrchestrator,
        SagaStatus,
        SagaStep,
        SagaStoppedError,
        StepCall,
        StepError,
        StepTimeout,
        UnknownSaga,
    )

_MODULE_OF: dict[str, str] = {
    "BackpressureController": "streams.patterns.backpressure",
    "ChoreographySaga": "streams.patterns.choreography",
    "ClaimLost": "streams.patterns.idempotency",
    "ClosedKey": "streams.patterns.deadletters",
    "ClosedKeys": "streams.patterns.deadletters",
    "ConsumerConfig": "streams.patterns.queue",
    "ContextConflict": "streams.patterns.saga",
    "DeadLetter": "streams.patterns.deadletters",
    "DeadLetterManager": "streams.patterns.deadletters",
    "DeduplicatedConsumer": "streams.patterns.idempotency",
    "Delays": "streams.patterns.delay",
    "Event": "streams.patterns.bus",
    "EventBus": "streams.patterns.bus",
    "EventFilter": "streams.patterns.bus",
    "FailedCompensation": "streams.patterns.saga",
    "FilteredSubscriber": "streams.patterns.bus",
    "IdempotencyStore": "streams.patterns.idempotency",
    "IdempotentProcessor": "streams.patterns.idempotency",
    "InProgress": "streams.patterns.idempotency",
    "KeyReused": "streams.patterns.idempotency",
    "MessageConsumer": "streams.patterns.queue",
    "MessageQueue": "streams.patterns.queue",
    "MetricsCollector": "streams.patterns.monitoring",
    "MonitoringServer": "streams.patterns.monitoring",
    "NotAcquired": "streams.patterns.backpressure",
    "NotClosed": "streams.patterns.deadletters",
    "OperationFailed": "streams.patterns.idempotency",
    "PatternEventBus": "streams.patterns.bus",
    "Queue": "streams.patterns.queue",
    "QueueMessage": "streams.patterns.queue",
    "ReprocessStopped": "streams.patterns.deadletters",
    "SagaError": "streams.patterns.saga",
    "SagaEvent": "streams.patterns.choreography",
    "SagaFailedError": "streams.patterns.saga",
    "SagaOrchestrator": "streams.patterns.saga",
    "SagaState": "streams.patterns.choreography",
    "SagaStatus": "streams.patterns.saga",
    "SagaStep": "streams.patterns.saga",
    "SagaStoppedError": "streams.patterns.saga",
    "SagaTracker": "streams.patterns.choreography",
    "Scheduled": "streams.patterns.delay",
    "StepCall": "streams.patterns.saga",
    "StepError": "streams.patterns.saga",
    "StepTimeout": "streams.patterns.saga",
    "Subscription": "streams.patterns.bus",
    "UnknownSaga": "streams.patterns.saga",
    "create_handler": "streams.patterns.choreography",
    "instrument": "streams.patterns.monitoring",
}
"""Where each name is."""

__all__ = [
    "BackpressureController",
    "ChoreographySaga",
    "ClaimLost",
    "ClosedKey",
    "ClosedKeys",
    "ConsumerConfig",
    "ContextConflict",
    "DeadLetter",
    "DeadLetterManager",
    "DeduplicatedConsumer",
    "Delays",
    "Event",
    "EventBus",
    "EventFilter",
    "FailedCompensation",
    "FilteredSubscriber",
    "IdempotencyStore",
    "IdempotentProcessor",
    "InProgress",
    "KeyReused",
    "MessageConsumer",
    "MessageQueue",
    "MetricsCollector",
    "MonitoringServer",
    "NotAcquired",
    "NotClosed",
    "OperationFailed",
    "PatternEventBus",
    "Queue",
    "QueueMessage",
    "ReprocessStopped",
    "SagaError",
    "SagaEvent",
    "SagaFailedError",
    "SagaOrchestrator",
    "SagaState",
    "SagaStatus",
    "SagaStep",
    "SagaStoppedError",
    "SagaTracker",
    "Scheduled",
    "StepCall",
    "StepError",
    "StepTimeout",
    "Subscription",
    "UnknownSaga",
    "create_handler",
    "instrument",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
