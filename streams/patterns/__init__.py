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

_EXPORTS = {
    "backpressure": "BackpressureController NotAcquired",
    "bus": "Event EventBus EventFilter FilteredSubscriber PatternEventBus Subscription",
    "choreography": "ChoreographySaga SagaEvent SagaState SagaTracker create_handler",
    "deadletters": "ClosedKey ClosedKeys DeadLetter DeadLetterManager NotClosed ReprocessStopped",
    "delay": "Delays Scheduled",
    "idempotency": (
        "ClaimLost DeduplicatedConsumer IdempotencyStore IdempotentProcessor InProgress "
        "KeyReused OperationFailed"
    ),
    "monitoring": "MetricsCollector MonitoringServer instrument",
    "queue": "ConsumerConfig MessageConsumer MessageQueue Queue QueueMessage",
    "saga": (
        "ContextConflict FailedCompensation SagaError SagaFailedError SagaOrchestrator "
        "SagaStatus SagaStep SagaStoppedError StepCall StepError StepTimeout UnknownSaga"
    ),
}
"""The names that each module exports."""

_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = [
    "BackpressureController", "ChoreographySaga", "ClaimLost", "ClosedKey", "ClosedKeys",
    "ConsumerConfig", "ContextConflict", "DeadLetter", "DeadLetterManager",
    "DeduplicatedConsumer", "Delays", "Event", "EventBus", "EventFilter", "FailedCompensation",
    "FilteredSubscriber", "IdempotencyStore", "IdempotentProcessor", "InProgress", "KeyReused",
    "MessageConsumer", "MessageQueue", "MetricsCollector", "MonitoringServer", "NotAcquired",
    "NotClosed", "OperationFailed", "PatternEventBus", "Queue", "QueueMessage",
    "ReprocessStopped", "SagaError", "SagaEvent", "SagaFailedError", "SagaOrchestrator",
    "SagaState", "SagaStatus", "SagaStep", "SagaStoppedError", "SagaTracker", "Scheduled",
    "StepCall", "StepError", "StepTimeout", "Subscription", "UnknownSaga", "create_handler",
    "instrument",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
