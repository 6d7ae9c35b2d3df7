"""Subscribing to events by more than their topic."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

import msgspec

from streams.errors import ConfigError
from streams.patterns.bus.bus import EventBus
from streams.patterns.bus.event import Event, check_event
from streams.patterns.bus.handlers import Handler
from streams.patterns.bus.subscription import DurableOptions, Subscription
from streams.patterns.bus.trie import WILDCARD, pattern_regex

_MISSING: Any = object()


@dataclass(frozen=True)
class EventFilter:
    """Selects events: those that meet all of these conditions.

    :param topic: a topic or a pattern as in :class:`~streams.patterns.PatternEventBus`, or a
        compiled regular expression that matches the event's own topic from its beginning
        (``re.match``; say ``$`` where it must end). Patterns are looked up; every regular
        expression is tried on every event. None: any topic.
    :param type: the type of the data: a class (or several, as ``isinstance`` takes them), or a str
        that is the data's ``type`` field, or the tag of its Struct.
    :param attributes: the required values of the data's fields (a mapping's keys, an object's
        attributes); a name that the data does not have is looked up in the event's headers. A value
        is compared; a compiled regular expression must match in full; a function is called.
    """

    topic: str | re.Pattern[str] | None = None
    type: str | type | tuple[type, ...] | types.UnionType | None = None
    attributes: Mapping[str, Any | Callable[[Any], object]] = field(default_factory=dict)
    _fits: Callable[[str], Any] = field(default=bool, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        topic = self.topic
        if isinstance(topic, str):
            object.__setattr__(self, "_fits", pattern_regex(topic).fullmatch)
        elif isinstance(topic, re.Pattern) and isinstance(topic.pattern, str):
            object.__setattr__(self, "_fits", topic.match)
        elif topic is not None:
            raise ConfigError(
                f"EventFilter(topic={topic!r}): a topic, a pattern, or a compiled regular "
                "expression of str"
            )
        if self.type is not None and not isinstance(self.type, str):
            try:
                isinstance(None, self.type)
            except TypeError as error:
                raise ConfigError(
                    f"EventFilter(type={self.type!r}): a class, or the str in the data's type field"
                ) from error
        if not isinstance(self.attributes, Mapping) or not all(
            isinstance(name, str) for name in self.attributes
        ):
            raise ConfigError(
                f"EventFilter(attributes={self.attributes!r}): a mapping of fields' names to values"
            )

    @property
    def pattern(self) -> str:
        """The topic or pattern to subscribe to, which matches every event that may be wanted."""
        return self.topic if isinstance(self.topic, str) else WILDCARD

    def matches(self, event: Event) -> bool:
        """Whether an event is wanted."""
        check_event(event, "EventFilter.matches")
        topic_fits = self.topic is None or bool(self._fits(event.topic))
        return topic_fits and self.accepts(event)

    def accepts(self, event: Event) -> bool:
        """Whether an event that matches :attr:`pattern` is wanted."""
        if isinstance(self.topic, re.Pattern) and self.topic.match(event.topic) is None:
            return False
        return self._matches_type(event.data) and all(
            self._matches_attribute(event, name, wanted) for name, wanted in self.attributes.items()
        )

    def _matches_type(self, data: Any) -> bool:
        if self.type is None:
            return True
        if not isinstance(self.type, str):
            return isinstance(data, self.type)
        if isinstance(data, msgspec.Struct) and data.__struct_config__.tag is not None:
            return bool(data.__struct_config__.tag == self.type)
        return bool(_field_of(data, "type") == self.type)

    def _matches_attribute(self, event: Event, name: str, expected: Any) -> bool:
        found = _field_of(event.data, name)
        if found is _MISSING:
            found = event.headers.get(name, _MISSING)
        if found is _MISSING:
            return False
        if isinstance(expected, re.Pattern):
            return isinstance(found, str) and expected.fullmatch(found) is not None
        if callable(expected):
            return bool(expected(found))
        return bool(found == expected)


def _field_of(data: Any, name: str) -> Any:
    if isinstance(data, Mapping):
        return data.get(name, _MISSING)
    return getattr(data, name, _MISSING)


class FilteredSubscriber:
    """Subscribes handlers to the events that pass an :class:`EventFilter`.

    :param bus: any bus; the filter may use patterns on each.
    :param group: makes its subscribers durable, with ``options``: see :meth:`EventBus.subscribe`.
        An event of the group that the filter holds back counts as handled.
    """

    def __init__(
        self,
        bus: EventBus,
        filter: EventFilter,
        *,
        group: str | None = None,
        **options: Unpack[DurableOptions],
    ) -> None:
        if not isinstance(bus, EventBus):
            raise ConfigError(f"FilteredSubscriber({bus!r}, ...): an EventBus is needed")
        if not isinstance(filter, EventFilter):
            raise ConfigError(f"FilteredSubscriber(..., {filter!r}): an EventFilter is needed")
        self.bus = bus
        self.filter = filter
        self._group = group
        self._options = options

    def subscribe(self, handler: Handler, *, in_thread: bool = False) -> Subscription:
        """Call ``handler(event)`` with every event that passes the filter; call the returned handle
        to unsubscribe.

        :param in_thread: as of :meth:`EventBus.subscribe`.
        :raises ConfigError: as :meth:`EventBus.subscribe`.
        """
        return self.bus.add_subscription(
            self.filter.pattern, handler, self._group, self.filter.accepts, self._options,
            in_thread=in_thread,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<FilteredSubscriber of {self.filter} on {self.bus!r}>"
