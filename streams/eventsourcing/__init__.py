"""Event sourcing: aggregates whose state is folded from events in the app's own log."""

from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.errors import (
    AggregateClosed,
    HistoryTruncated,
    Undecodable,
    WrongExpectedVersion,
)
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.results import AggregateStats, Decided, Loaded, RecordedEvent
from streams.eventsourcing.snapshots import Snapshot
from streams.eventsourcing.state_cache import Cache

__all__ = [
    "Aggregate",
    "AggregateClosed",
    "AggregateStats",
    "Cache",
    "Decided",
    "EventTopic",
    "HistoryTruncated",
    "Loaded",
    "RecordedEvent",
    "Snapshot",
    "Undecodable",
    "WrongExpectedVersion",
]
