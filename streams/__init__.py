"""Event-driven services over Kafka, Redis Streams and an embedded log.

Order per key with concurrency far above the partition count, at-least-once, dedup by message ID,
and an ordered way to fail: the same on every log. Start with :class:`Streams`.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports
from streams.version import __version__ as __version__

if TYPE_CHECKING:
    from streams.app import Streams as Streams
    from streams.asgi import HealthEndpoint as HealthEndpoint
    from streams.asgi import exit_on_failure as exit_on_failure
    from streams.config import CloudEvents as CloudEvents
    from streams.config import DeadLetters as DeadLetters
    from streams.config import Dedup as Dedup
    from streams.config import Flow as Flow
    from streams.config import Retention as Retention
    from streams.config import Retry as Retry
    from streams.databases import Asyncpg as Asyncpg
    from streams.databases import AsyncPsycopg as AsyncPsycopg
    from streams.databases import Database as Database
    from streams.databases import Django as Django
    from streams.databases import Psycopg as Psycopg
    from streams.databases import SQLAlchemy as SQLAlchemy
    from streams.databases import Sqlite as Sqlite
    from streams.decoding import Source as Source
    from streams.errors import BatchError as BatchError
    from streams.errors import CodeTooOld as CodeTooOld
    from streams.errors import ConfigError as ConfigError
    from streams.errors import EventTopicError as EventTopicError
    from streams.errors import Fatal as Fatal
    from streams.errors import Fenced as Fenced
    from streams.errors import GroupNotEmpty as GroupNotEmpty
    from streams.errors import HandlerTimeout as HandlerTimeout
    from streams.errors import InvalidValue as InvalidValue
    from streams.errors import LogError as LogError
    from streams.errors import MemberFenced as MemberFenced
    from streams.errors import NotFound as NotFound
    from streams.errors import NotRunning as NotRunning
    from streams.errors import OutcomeUnknown as OutcomeUnknown
    from streams.errors import PartitionCountMismatch as PartitionCountMismatch
    from streams.errors import ProcessorDied as ProcessorDied
    from streams.errors import Reject as Reject
    from streams.errors import RetryAfter as RetryAfter
    from streams.errors import StreamsError as StreamsError
    from streams.errors import TooLarge as TooLarge
    from streams.errors import TopicMismatch as TopicMismatch
    from streams.errors import TransactionTimeout as TransactionTimeout
    from streams.errors import Unavailable as Unavailable
    from streams.eventsourcing import Aggregate as Aggregate
    from streams.eventsourcing import AggregateClosed as AggregateClosed
    from streams.eventsourcing import AggregateStats as AggregateStats
    from streams.eventsourcing import Cache as Cache
    from streams.eventsourcing import Cancel as Cancel
    from streams.eventsourcing import Command as Command
    from streams.eventsourcing import Decided as Decided
    from streams.eventsourcing import DecisionRefused as DecisionRefused
    from streams.eventsourcing import DocumentStopped as DocumentStopped
    from streams.eventsourcing import End as End
    from streams.eventsourcing import EventTopic as EventTopic
    from streams.eventsourcing import HistoryTruncated as HistoryTruncated
    from streams.eventsourcing import Loaded as Loaded
    from streams.eventsourcing import ManagerStats as ManagerStats
    from streams.eventsourcing import ProcessManager as ProcessManager
    from streams.eventsourcing import RecordedEvent as RecordedEvent
    from streams.eventsourcing import Refused as Refused
    from streams.eventsourcing import Schedule as Schedule
    from streams.eventsourcing import Snapshot as Snapshot
    from streams.eventsourcing import Undecodable as Undecodable
    from streams.eventsourcing import View as View
    from streams.eventsourcing import ViewNotReady as ViewNotReady
    from streams.eventsourcing import ViewTimeout as ViewTimeout
    from streams.eventsourcing import WrongExpectedVersion as WrongExpectedVersion
    from streams.health import Health as Health
    from streams.health import ProcessorHealth as ProcessorHealth
    from streams.health import ProcessorStats as ProcessorStats
    from streams.health import Stats as Stats
    from streams.json_logs import JsonFormatter as JsonFormatter
    from streams.log_transaction import LogTransaction as LogTransaction
    from streams.message import Message as Message
    from streams.message import Position as Position
    from streams.message import Raw as Raw
    from streams.message import Transaction as Transaction
    from streams.outbox import Outbox as Outbox
    from streams.outbox import OutboxHealth as OutboxHealth
    from streams.outbox import OutboxStats as OutboxStats
    from streams.patterns import *  # noqa: F403 - all of its names
    from streams.processor import Processor as Processor
    from streams.topic import Topic as Topic
    from streams.topic_follower import TopicFollower as TopicFollower
    from streams.topic_reader import TopicReader as TopicReader
    from streams.web import Dashboard as Dashboard
    from streams.web import Passwords as Passwords
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.app": "Streams",
            "streams.asgi": "HealthEndpoint exit_on_failure",
            "streams.config": "CloudEvents DeadLetters Dedup Flow Retention Retry",
            "streams.databases": ("AsyncPsycopg Asyncpg Database Django Psycopg SQLAlchemy Sqlite"),
            "streams.decoding": "Source",
            "streams.errors": (
                "BatchError CodeTooOld ConfigError EventTopicError Fatal Fenced GroupNotEmpty "
                "HandlerTimeout InvalidValue LogError MemberFenced NotFound NotRunning "
                "OutcomeUnknown PartitionCountMismatch ProcessorDied Reject RetryAfter "
                "StreamsError TooLarge TopicMismatch TransactionTimeout Unavailable"
            ),
            "streams.eventsourcing": (
                "Aggregate AggregateClosed AggregateStats Cache Cancel Command Decided "
                "DecisionRefused DocumentStopped End EventTopic HistoryTruncated Loaded "
                "ManagerStats ProcessManager RecordedEvent Refused Schedule Snapshot "
                "Undecodable View ViewNotReady ViewTimeout WrongExpectedVersion"
            ),
            "streams.health": "Health ProcessorHealth ProcessorStats Stats",
            "streams.json_logs": "JsonFormatter",
            "streams.log_transaction": "LogTransaction",
            "streams.message": "Message Position Raw Transaction",
            "streams.outbox": "Outbox OutboxHealth OutboxStats",
            "streams.patterns": (
                "BackpressureController ChoreographySaga ClaimLost ClosedKey ClosedKeys "
                "ConsumerConfig ContextConflict DeadLetter DeadLetterManager DeduplicatedConsumer "
                "Delays Event EventBus EventFilter FailedCompensation FilteredSubscriber "
                "IdempotencyStore IdempotentProcessor InProgress KeyReused MessageConsumer "
                "MessageQueue MetricsCollector MonitoringServer NotAcquired NotClosed "
                "OperationFailed PatternEventBus Queue QueueMessage ReprocessStopped SagaError "
                "SagaEvent SagaFailedError SagaOrchestrator SagaState SagaStatus SagaStep "
                "SagaStoppedError SagaTracker Scheduled StepCall StepError StepTimeout "
                "Subscription UnknownSaga create_handler instrument"
            ),
            "streams.processor": "Processor",
            "streams.topic": "Topic",
            "streams.topic_follower": "TopicFollower",
            "streams.topic_reader": "TopicReader",
            "streams.web": "Dashboard Passwords",
        },
        former={
            "GroupLive": "GroupNotEmpty",
            "Mismatch": "TopicMismatch",
            "Reading": "TopicReader",
        },
    )
    __all__ = sorted([*__all__, "__version__"])
