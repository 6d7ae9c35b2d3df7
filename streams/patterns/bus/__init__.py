"""Pub/sub: an event bus with patterns and filters, in one process or over any log.

=================  ===================================================================
``bus``            publishing and subscribing
``subscribers``    the registry of subscribers
``filters``        subscribing by more than the topic
``subscription``   the handle that ``subscribe`` returns, and the subscriber behind it
``handlers``       calling a handler, and the error hook
``inline_policy``  where a plain handler of a local bus is called: in a thread or in place
``local_router``   a local bus: each event to the handlers that want it
``log_router``     a bus over a log: its topic, and the processors that read it
``bus_processor``  a bus's processor in its app, added and removed while the app runs
``ephemeral``      a subscription that reads from the current end, in no group
``event``          the event, and its form on the wire
``trie``           topics, patterns, and which patterns match a topic
=================  ===================================================================
"""

from streams.patterns.bus.bus import EventBus, PatternEventBus
from streams.patterns.bus.event import Event, check_event
from streams.patterns.bus.filters import EventFilter, FilteredSubscriber
from streams.patterns.bus.handlers import check_handler
from streams.patterns.bus.subscription import DurableOptions, Subscription
from streams.patterns.bus.trie import WILDCARD, Trie, check_pattern, check_topic

__all__ = [
    "WILDCARD", "DurableOptions", "Event", "EventBus", "EventFilter", "FilteredSubscriber",
    "PatternEventBus", "Subscription", "Trie", "check_event", "check_handler", "check_pattern",
    "check_topic",
]  # fmt: skip
