"""Pub/sub: an event bus with patterns and filters, in one process or over any log.

================  ============================================================
``trie``          topics, patterns, and which patterns a topic fits
``event``         what is carried, and how it stands on the wire
``calling``       handlers and the error hook
``following``     a processor that reads from now on, in no group
``hosting``       a bus's processors, come and gone while the app runs
``subscription``  who is subscribed
``bus``           publishing and subscribing
``filtering``     subscribing by more than the topic
================  ============================================================
"""

from streams.patterns.bus.bus import EventBus, PatternEventBus
from streams.patterns.bus.event import Event
from streams.patterns.bus.filters import EventFilter, FilteredSubscriber
from streams.patterns.bus.subscription import DurableOptions, Subscription

__all__ = [
    "DurableOptions",
    "Event",
    "EventBus",
    "EventFilter",
    "FilteredSubscriber",
    "PatternEventBus",
    "Subscription",
]
