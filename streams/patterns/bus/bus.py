"""The event bus: publish to a topic, and the handlers subscribed to it are called.

**Local**, ``EventBus()``: in one process. ``publish`` returns when every handler that the event
matches has returned or failed; nothing is stored and nothing is retried.

**Over a log**, ``EventBus(app)``: all events of a bus are in one topic of the app's log, and
``publish`` returns when the event is durable. A subscriber is

* *ephemeral*: it gets each event published from now on once, while it is subscribed. All ephemeral
  subscribers in a process share one reader of the log, in no group;
* *durable*, with ``group=``: a processor in that consumer group, with a processor's guarantees:
  at-least-once, order per key, dedup, retries, dead letters.

The handlers that an event matches are looked up in a trie (``trie.py``); order, concurrency,
retries and memory bounds over a log are the processors' (``streams.processing``), not this
module's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, ClassVar, Literal, TypeVar, Unpack, overload

from uuid_utils import uuid7

from stream_codecs import Codec, EncodeError
from streams.app import Streams
from streams.callables import callable_name
from streams.config import Retention
from streams.errors import ConfigError, InvalidValue, NotRunning
from streams.log import names
from streams.message import (
    CAUSATION,
    CORRELATION,
    ID,
    LEGACY_CAUSATION,
    LEGACY_CORRELATION,
    TIME,
    TYPE,
)
from streams.numbers import is_int
from streams.patterns.arguments import NOT_GIVEN
from streams.patterns.bus.event import Event, EventSource, causation_headers, check_event
from streams.patterns.bus.handlers import ErrorHook, Handler, check_error_hook, check_handler
from streams.patterns.bus.local_router import LocalRouter
from streams.patterns.bus.log_router import LogRouter
from streams.patterns.bus.subscribers import SubscriberRegistry
from streams.patterns.bus.subscription import DurableOptions, EventPredicate, Subscription
from streams.patterns.bus.trie import WILDCARD, check_pattern, check_topic, pattern_regex
from streams.processor import ProcessorOptions
from streams.text import suggestion
from streams.topic import InternalTopic, Key
from streams.topic_reader import OffsetSpec

F = TypeVar("F", bound=Callable[..., object])

_CLOUDEVENTS_NAMES = {LEGACY_CORRELATION: CORRELATION, LEGACY_CAUSATION: CAUSATION}
"""Headers that are written with CloudEvents' prefix, also if they are passed without it."""


class EventBus:
    """Publish and subscribe by topic.

    :param app: the app whose log carries the events; None: a local bus, in this process alone.
    :param name: the bus's topic in the log. Buses of one name, in any app, are one bus.
    :param type: the type of its events' data, as in :meth:`streams.Streams.topic`: a Struct, a
        tagged union of them, ...; without it, any JSON value. A local bus passes the
        objects themselves, of any type.
    :param codec: how the data is encoded; JSON if not given.
    :param partitions: of the bus's topic. Not given: a topic that exists is used as it is, and a
        new one gets 1, in which all events have one order.
    :param retention: how long the log keeps the events, if the topic is created here: see
        :meth:`streams.Streams.topic`.
    :param concurrency: over a log, how many events are delivered at once to the ephemeral
        subscribers in this process; those of one key are delivered one at a time, in order.
    :param on_error: called as ``(error, event, handler)`` for every call that failed, for each
        attempt of a durable subscriber. Without it they are logged, without the event's data.
    :raises ConfigError: any of these cannot work.
    """

    _allows_patterns: ClassVar[bool] = False

    def __init__(
        self,
        app: Streams | None = None,
        name: str = "events",
        *,
        type: Any = Any,
        codec: Codec | None = None,
        partitions: int | None = None,
        retention: Retention | None = None,
        concurrency: int = 64,
        on_error: ErrorHook | None = None,
    ) -> None:
        if app is not None and not isinstance(app, Streams):
            raise ConfigError(f"EventBus({app!r}): an app, Streams(...), or nothing: a local bus")
        self.name = names.check_topic(name)
        self.app = app
        """The app whose log carries the events; None for a local bus."""
        if not is_int(concurrency, 1):
            raise ConfigError(
                f"processor of bus {name}: concurrency={concurrency!r}: must be a positive integer"
            )
        error_hook = check_error_hook(on_error)
        self._declared_topics: set[str] = set()
        """The topics that its events may have; empty: any topic."""
        self._registry = SubscriberRegistry(groups_apart=app is not None)
        self._local_router: LocalRouter | None = None
        self._log_router: LogRouter | None = None
        if app is None:
            self._local_router = LocalRouter(name, self._registry, error_hook)
            self._router: LocalRouter | LogRouter = self._local_router
            return
        topic = InternalTopic(
            app, name, type, codec=codec, partitions=partitions, retention=retention,
            cloudevents=app.cloudevents,
        )  # fmt: skip
        app.add_topic(topic)
        self._log_router = LogRouter(app, topic, self._registry, error_hook, concurrency)
        self._router = self._log_router

    def __repr__(self) -> str:
        location = "local" if self.app is None else repr(self.app)
        return f"<{type(self).__name__} {self.name!r} {location}>"

    # -- declaring

    def declare(self, *topics: str) -> None:
        """Declare the topics that exist. From then on publishing to another one is an error, and so
        is subscribing to a topic or pattern that matches none of them.

        Without it any topic may be used. Events that other processes publish are delivered anyway.

        :raises ConfigError: an event cannot have one of these topics.
        """
        declared = {check_topic(topic) for topic in topics}
        with self._registry.lock:
            self._declared_topics |= declared
            if self._local_router is not None:
                self._local_router.invalidate()

    def check_declared(self, pattern: str) -> str:
        """The topic or pattern, if it matches a declared topic, or none is declared.

        :raises ConfigError: otherwise.
        """
        check_pattern(pattern)
        declared = self._declared_topics
        if not declared or pattern in declared:
            return pattern
        if WILDCARD in pattern:
            matches = pattern_regex(pattern).fullmatch
            if any(matches(topic) for topic in declared):
                return pattern
            raise ConfigError(
                f"pattern {pattern!r} fits no topic that is declared on {self!r}: "
                f"{suggestion(pattern, declared)} Declare a new one first: bus.declare('...')"
            )
        raise ConfigError(
            f"event topic {pattern!r} is not declared on {self!r}: "
            f"{suggestion(pattern, declared)} Declare a new one first: bus.declare({pattern!r})"
        )

    def _check_event_topic(self, topic: str) -> None:
        """:raises ConfigError: an event cannot have this topic, or it is not declared."""
        check_topic(topic)
        if self._declared_topics:
            self.check_declared(topic)

    # -- publishing

    async def publish(
        self,
        topic: str,
        data: Any,
        *,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
        cause: Event | None = None,
    ) -> str:
        """Publish an event; its ID, once it is durable (over a log) or handled (local).

        :param topic: such as ``"order.paid"``.
        :param key: over a log, events of one key are handled in order and one at a time at every
            subscriber. A local bus calls its handlers in the order of the publishes.
        :param id: the event's ID; a UUIDv7 if not given. Over a log the same ID twice is handled
            once by each group that remembers it (:class:`~streams.config.Dedup`).
        :param timestamp: when it happened, with a time zone.
        :param cause: the event that this one follows from: its ID becomes ``ce_causationid``, its
            correlation ID (``ce_correlationid``, else its own ID) becomes this event's, and its
            trace is continued. ``headers`` override.
        :raises InvalidValue: an event cannot have this topic, or it is not declared.
        :raises EncodeError: data, key, ID or headers cannot be written; nothing was.
        :raises LogError: as :meth:`streams.Topic.publish`.
        """
        if self._local_router is None or not self._local_router.has_delivered(topic):
            try:
                self._check_event_topic(topic)
            except ConfigError as error:
                raise InvalidValue(str(error)) from None
        event_headers = self._headers(headers, cause)
        if id is None:
            id = str(uuid7())
        await self._router.publish(topic, data, key, id, event_headers, timestamp)
        return id

    async def publish_derived(
        self,
        cause: Event,
        topic: str,
        data: Any,
        *,
        id: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """:meth:`publish` an event that follows from another. While the log is out of reach it is
        retried until it is written. Its key is the cause's, or else the cause's correlation ID.

        :param id: derived from the cause's, so that writing it again does no harm.
        :raises LogError: the log refuses it.
        """
        check_event(cause, "answer")
        key = cause.key or cause.correlation_id or cause.id
        if self._log_router is None:
            await self.publish(topic, data, key=key, id=id, headers=headers, cause=cause)
        else:
            event_headers = self._headers(headers, cause)
            self._check_event_topic(topic)
            await self._log_router.publish_derived(topic, data, key, id, event_headers)

    def _headers(self, headers: Mapping[str, str] | None, cause: Event | None) -> dict[str, str]:
        if cause is not None:
            check_event(cause, "publish(cause=...)")
        found = {} if cause is None else causation_headers(cause)
        if headers is None:
            return found
        if not isinstance(headers, Mapping):
            raise EncodeError(f"headers of type {type(headers).__name__}: a mapping of str")
        for name, value in headers.items():
            if name in (ID, TYPE, TIME):
                raise EncodeError(f"header {name!r}: give it as id=, topic or timestamp=")
            if not isinstance(name, str) or not isinstance(value, str):
                raise EncodeError(f"header {name!r}: names and values are str")
            found[_CLOUDEVENTS_NAMES.get(name, name)] = value
        return found

    # -- subscribing

    @overload
    def subscribe(
        self,
        topic: str,
        handler: Handler,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[DurableOptions],
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        topic: str,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[DurableOptions],
    ) -> Callable[[F], F]: ...

    def subscribe(
        self,
        topic: str,
        handler: Handler = NOT_GIVEN,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[DurableOptions],
    ) -> Any:
        """Call ``handler(event)`` with every event of a topic. Call the returned handle to
        unsubscribe.

        Without a handler it returns a decorator, ``@bus.subscribe("order.paid")``, which returns
        the handler unchanged.

        A handler that is subscribed several times gets each event once.

        :param handler: ``async def``, or plain; a plain one runs in a worker thread, or on a local
            bus in place while its calls take less than 100 µs.
        :param group: makes the subscriber durable, in this consumer group. A group has one
            handler, in any number of processes that all subscribe it to the same topics; it may be
            subscribed again after a restart and misses nothing in between. On a local bus it is
            only a label.
        :param in_thread: always call a plain handler in a worker thread, however fast it is.
        :param options: a durable subscriber's ``start``, ``concurrency``, ``timeout``, ``retry``,
            ``dedup``, ``dead_letters`` and ``flow``, as in :meth:`streams.Streams.processor`.
        :raises ConfigError: any of these cannot work.
        """
        if not self._allows_patterns and isinstance(topic, str) and WILDCARD in topic:
            raise ConfigError(f"subscribe({topic!r}): for patterns use a PatternEventBus")
        if handler is not NOT_GIVEN:
            return self.add_subscription(topic, handler, group, None, options, in_thread=in_thread)
        self.check_declared(topic)

        def decorate(function: F) -> F:
            self.add_subscription(topic, function, group, None, options, in_thread=in_thread)
            return function

        return decorate

    def add_subscription(
        self,
        pattern: str,
        handler: Handler,
        group: str | None,
        accepts: EventPredicate | None,
        options: DurableOptions,
        *,
        in_thread: bool = False,
    ) -> Subscription:
        """Check, remember and, if the app runs, start a subscription."""
        self.check_declared(pattern)
        asynchronous = check_handler(handler)
        if not isinstance(in_thread, bool):
            raise ConfigError(
                f"subscribe({pattern!r}, in_thread={in_thread!r}): must be True or False"
            )
        if in_thread and asynchronous:
            raise ConfigError(
                f"subscribe({pattern!r}, in_thread=True): {callable_name(handler)} is async, and "
                "runs on the event loop; only a plain handler has a thread"
            )
        if group is not None:
            names.check_group(group)
        if unknown := options.keys() - DurableOptions.__annotations__.keys():
            raise ConfigError(
                f"subscribe({pattern!r}, {min(unknown)}=...): there are group, "
                f"{', '.join(DurableOptions.__annotations__)}"
            )
        if options and group is None:
            raise ConfigError(
                f"subscribe({pattern!r}, {', '.join(options)}): only a durable subscriber has "
                "these: give it group="
            )
        if group is not None:
            source = EventSource(self.name, None)
            ProcessorOptions((source,), group, **options).validate(callable_name(handler))
        with self._registry.lock:
            subscriber = self._registry.get_or_add(
                handler, group, options, asynchronous=asynchronous, in_thread=in_thread
            )
            subscription = Subscription(self, pattern, subscriber, accepts)
            subscriber.active_subscriptions += 1
            subscriber.has_predicate |= accepts is not None
            try:
                self._router.on_subscribed(subscription)
            except BaseException:
                self._remove_locked(subscription)
                raise
        return subscription

    def remove_subscription(self, subscription: Subscription) -> None:
        """Forget a subscription; its handler is not called again. Any thread."""
        with self._registry.lock:
            if subscription.active:
                self._remove_locked(subscription)

    def _remove_locked(self, subscription: Subscription) -> None:
        self._registry.remove(subscription)
        self._router.on_unsubscribed(subscription)

    async def wait_ready(self, subscription: Subscription) -> None:
        """Wait until what is published from now on reaches the subscription."""
        if self._log_router is not None:
            await self._log_router.wait_ready(subscription)

    # -- reading again

    async def read(
        self,
        topic: str = WILDCARD,
        start: OffsetSpec = "earliest",
        end: OffsetSpec = "latest",
        *,
        errors: Literal["raise", "skip"] = "raise",
    ) -> AsyncIterator[Event]:
        """The events that the log holds of a topic or pattern, without any group; see
        :meth:`streams.Topic.read`.

        :param errors: ``"skip"``: pass over events whose data cannot be decoded, and log their
            positions.
        :raises NotRunning: a local bus keeps nothing, or the app is not connected.
        :raises DecodeError: an event's data cannot be decoded.
        """
        if self._log_router is None:
            raise NotRunning("a local bus keeps no events: EventBus(app) does")
        async with aclosing(self._log_router.read(topic, start, end, errors)) as events:
            async for event in events:
                yield event


class PatternEventBus(EventBus):
    """An :class:`EventBus` whose subscribers may use patterns.

    ``order.*`` is every topic below ``order``, at any depth; ``order.*.paid`` has one level in
    between; ``*`` is everything. The handler sees the event's own topic.
    """

    _allows_patterns: ClassVar[bool] = True
