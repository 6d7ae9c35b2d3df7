"""Event sourcing: aggregates whose state is folded from events in the app's own log.

A decision is called with an aggregate's state, and the events that it returns are appended to the
aggregate's history, if nothing was appended since. This works the same on every log that keeps
histories (:mod:`streams.log.events`). Start with :class:`Aggregate`. Names are imported when they
are first used.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.eventsourcing.aggregate import Aggregate as Aggregate
    from streams.eventsourcing.errors import AggregateClosed as AggregateClosed
    from streams.eventsourcing.errors import DecisionRefused as DecisionRefused
    from streams.eventsourcing.errors import HistoryTruncated as HistoryTruncated
    from streams.eventsourcing.errors import Undecodable as Undecodable
    from streams.eventsourcing.errors import WrongExpectedVersion as WrongExpectedVersion
    from streams.eventsourcing.event_topic import EventTopic as EventTopic
    from streams.eventsourcing.given_when import Given as Given
    from streams.eventsourcing.given_when import When as When
    from streams.eventsourcing.given_when import given as given
    from streams.eventsourcing.managers.actions import Cancel as Cancel
    from streams.eventsourcing.managers.actions import Command as Command
    from streams.eventsourcing.managers.actions import End as End
    from streams.eventsourcing.managers.actions import Refused as Refused
    from streams.eventsourcing.managers.actions import Schedule as Schedule
    from streams.eventsourcing.managers.manager import ManagerStats as ManagerStats
    from streams.eventsourcing.managers.manager import ProcessManager as ProcessManager
    from streams.eventsourcing.results import AggregateStats as AggregateStats
    from streams.eventsourcing.results import Decided as Decided
    from streams.eventsourcing.results import Loaded as Loaded
    from streams.eventsourcing.results import RecordedEvent as RecordedEvent
    from streams.eventsourcing.snapshots import Snapshot as Snapshot
    from streams.eventsourcing.state_cache import Cache as Cache
    from streams.eventsourcing.views.errors import DocumentStopped as DocumentStopped
    from streams.eventsourcing.views.errors import ViewNotReady as ViewNotReady
    from streams.eventsourcing.views.errors import ViewTimeout as ViewTimeout
    from streams.eventsourcing.views.view import View as View
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.eventsourcing.aggregate": "Aggregate",
            "streams.eventsourcing.errors": (
                "AggregateClosed DecisionRefused HistoryTruncated Undecodable WrongExpectedVersion"
            ),
            "streams.eventsourcing.event_topic": "EventTopic",
            "streams.eventsourcing.given_when": "Given When given",
            "streams.eventsourcing.managers.actions": "Cancel Command End Refused Schedule",
            "streams.eventsourcing.managers.manager": "ManagerStats ProcessManager",
            "streams.eventsourcing.results": "AggregateStats Decided Loaded RecordedEvent",
            "streams.eventsourcing.snapshots": "Snapshot",
            "streams.eventsourcing.state_cache": "Cache",
            "streams.eventsourcing.views.errors": "DocumentStopped ViewNotReady ViewTimeout",
            "streams.eventsourcing.views.view": "View",
        },
    )
