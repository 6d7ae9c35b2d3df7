"""The integration patterns, each on any log and each usable alone.

They are façades over topics and processors: their guarantees about order, redelivery, duplicates,
retries and memory are a processor's. Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.patterns.backpressure import BackpressureController as BackpressureController
    from streams.patterns.backpressure import NotAcquired as NotAcquired
    from streams.patterns.bus import Event as Event
    from streams.patterns.bus import EventBus as EventBus
    from streams.patterns.bus import EventFilter as EventFilter
    from streams.patterns.bus import FilteredSubscriber as FilteredSubscriber
    from streams.patterns.bus import PatternEventBus as PatternEventBus
    from streams.patterns.bus import Subscription as Subscription
    from streams.patterns.choreography import ChoreographySaga as ChoreographySaga
    from streams.patterns.choreography import SagaEvent as SagaEvent
    from streams.patterns.choreography import SagaState as SagaState
    from streams.patterns.choreography import SagaTracker as SagaTracker
    from streams.patterns.choreography import create_handler as create_handler
    from streams.patterns.deadletters import ClosedKey as ClosedKey
    from streams.patterns.deadletters import ClosedKeys as ClosedKeys
    from streams.patterns.deadletters import DeadLetter as DeadLetter
    from streams.patterns.deadletters import DeadLetterManager as DeadLetterManager
    from streams.patterns.deadletters import NotClosed as NotClosed
    from streams.patterns.deadletters import ReprocessStopped as ReprocessStopped
    from streams.patterns.delay import Delays as Delays
    from streams.patterns.delay import Scheduled as Scheduled
    from streams.patterns.idempotency import ClaimLost as ClaimLost
    from streams.patterns.idempotency import DeduplicatedConsumer as DeduplicatedConsumer
    from streams.patterns.idempotency import IdempotencyStore as IdempotencyStore
    from streams.patterns.idempotency import IdempotentProcessor as IdempotentProcessor
    from streams.patterns.idempotency import InProgress as InProgress
    from streams.patterns.idempotency import KeyReused as KeyReused
    from streams.patterns.idempotency import OperationFailed as OperationFailed
    from streams.patterns.monitoring import MetricsCollector as MetricsCollector
    from streams.patterns.monitoring import MonitoringServer as MonitoringServer
    from streams.patterns.monitoring import instrument as instrument
    from streams.patterns.queue import ConsumerConfig as ConsumerConfig
    from streams.patterns.queue import MessageConsumer as MessageConsumer
    from streams.patterns.queue import MessageQueue as MessageQueue
    from streams.patterns.queue import Queue as Queue
    from streams.patterns.queue import QueueMessage as QueueMessage
    from streams.patterns.saga import ContextConflict as ContextConflict
    from streams.patterns.saga import FailedCompensation as FailedCompensation
    from streams.patterns.saga import SagaError as SagaError
    from streams.patterns.saga import SagaFailedError as SagaFailedError
    from streams.patterns.saga import SagaOrchestrator as SagaOrchestrator
    from streams.patterns.saga import SagaStatus as SagaStatus
    from streams.patterns.saga import SagaStep as SagaStep
    from streams.patterns.saga import SagaStoppedError as SagaStoppedError
    from streams.patterns.saga import StepCall as StepCall
    from streams.patterns.saga import StepError as StepError
    from streams.patterns.saga import StepTimeout as StepTimeout
    from streams.patterns.saga import UnknownSaga as UnknownSaga
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.patterns.backpressure": "BackpressureController NotAcquired",
            "streams.patterns.bus": (
                "Event EventBus EventFilter FilteredSubscriber PatternEventBus Subscription"
            ),
            "streams.patterns.choreography": (
                "ChoreographySaga SagaEvent SagaState SagaTracker create_handler"
            ),
            "streams.patterns.deadletters": (
                "ClosedKey ClosedKeys DeadLetter DeadLetterManager NotClosed ReprocessStopped"
            ),
            "streams.patterns.delay": "Delays Scheduled",
            "streams.patterns.idempotency": (
                "ClaimLost DeduplicatedConsumer IdempotencyStore IdempotentProcessor InProgress "
                "KeyReused OperationFailed"
            ),
            "streams.patterns.monitoring": "MetricsCollector MonitoringServer instrument",
            "streams.patterns.queue": (
                "ConsumerConfig MessageConsumer MessageQueue Queue QueueMessage"
            ),
            "streams.patterns.saga": (
                "ContextConflict FailedCompensation SagaError SagaFailedError SagaOrchestrator "
                "SagaStatus SagaStep SagaStoppedError StepCall StepError StepTimeout UnknownSaga"
            ),
        },
    )
