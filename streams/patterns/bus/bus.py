"""The event bus: publish to a topic, and whoever subscribed to it is called.

**Local**, ``EventBus()``: in one process. ``publish`` returns when every handler that the event
fits has returned or failed; nothing is kept and nothing is tried again.

**Over a log**, ``EventBus(app)``: all events of a bus stand in one topic of the app's log, and
``publish`` returns when the event is durable. A subscriber is

* *ephemeral*: it gets what is published from now on, once, while it is there. All of them in a
  process share one reading of the log, in no group;
* *durable*, with ``group=``: a processor in that consumer group, and everything that a processor
  promises: at-least-once, order per key, dedup, retries, dead letters.

Which handlers an event fits is looked up in a trie (``trie.py``); order, concurrency, retries and
memory bounds over a log are the processors' (``streams.processing``), not this module's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any, ClassVar, TypeVar, Unpack, overload

from msgspec.structs import replace
from uuid_utils import uuid7

from stream_codecs import Codec, EncodeError
from streams.app import Streams
from streams.cancellation import run_in_thread
from streams.config import Retention
from streams.errors import ConfigError, InvalidValue, NotRunning, Unavailable, find_config_error
from streams.log import names
from streams.message import (
    CAUSATION,
    CORRELATION,
    ID,
    LEGACY_CAUSATION,
    LEGACY_CORRELATION,
    TIME,
    TYPE,
    Message,
    text,
)
from streams.patterns.arguments import NOT_GIVEN
from streams.patterns.bus.bus_processor import BusProcessor
from streams.patterns.bus.ephemeral import EphemeralProcessor
from streams.patterns.bus.event import (
    Event,
    EventDecoder,
    EventSource,
    NullDecoder,
    UndecodableData,
    attach_message,
    causation_headers,
    check_event,
)
from streams.patterns.bus.handlers import (
    ErrorHook,
    Handler,
    call_handler,
    check_error_hook,
    check_handler,
    handler_name,
    report_error,
)
from streams.patterns.bus.local_router import LocalRouter, runs_beside_others
from streams.patterns.bus.subscription import (
    DurableOptions,
    EventPredicate,
    Subscriber,
    Subscription,
)
from streams.patterns.bus.trie import WILDCARD, Trie, check_pattern, check_topic, pattern_regex
from streams.processor import ProcessorOptions
from streams.text import suggestion
from streams.topic import InternalTopic, Key, Topic, encode_key
from streams.topic_reader import OffsetSpec, TopicReader

__all__ = ["EventBus", "PatternEventBus"]

F = TypeVar("F", bound=Callable[..., object])

RETRY_PAUSE = 0.5
"""Seconds before a log that is out of reach is asked again."""

_CLOUDEVENTS_NAMES = {LEGACY_CORRELATION: CORRELATION, LEGACY_CAUSATION: CAUSATION}
"""Headers that are written with CloudEvents' prefix, however they are given."""


class EventBus:
    """Publish and subscribe by topic.

    :param app: whose log carries the events; None: a local bus, in this process alone.
    :param name: the bus's topic in the log. Buses of one name, in any app, are one bus.
    :param type: what the data of its events is, as in :meth:`streams.Streams.topic`: a Struct, a
        tagged union of them, ...; without it, whatever JSON can say. A local bus hands the very
        objects over, of whatever type.
    :param codec: how the data is encoded; JSON if not given.
    :param partitions: of the bus's topic. Not given: a topic that exists is used as it is, and a
        new one gets 1, in which all events have one order.
    :param retention: how long the log keeps the events, if the topic is created here: see
        :meth:`streams.Streams.topic`.
    :param concurrency: over a log, how many events are delivered at once to the ephemeral
        subscribers in this process; those of one key one after the other, in order.
    :param on_error: told ``(error, event, handler)`` of every call that failed, of a durable
        subscriber's each attempt. Without it they are logged, without the event's data.
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
        self._error_hook = check_error_hook(on_error)
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._shared_trie: Trie[Subscription] = Trie()
        """All subscriptions of a local bus, the ephemeral ones of one over a log."""
        self._subscribers: dict[Hashable, Subscriber] = {}
        self._durable_by_group: dict[str, Subscriber] = {}
        self._ephemeral_processor: BusProcessor | None = None
        self._unresolved_starts: set[concurrent.futures.Future[dict[int, int]]] = set()
        """Ephemeral subscriptions that do not know yet where they begin."""
        self._local_router = LocalRouter(self._lock, self._shared_trie, self._error_hook)
        """Calls the handlers of a local bus."""
        self._topic: Topic[Any] | None = None
        self._declared_topics: set[str] = set()
        """The topics its events may have; empty: any."""
        self._topic_unchecked = False
        """The app checked its topics before this one was declared."""
        if app is not None:
            self._topic = InternalTopic(
                app, name, type, codec=codec, partitions=partitions, retention=retention,
                cloudevents=app.cloudevents,
            )  # fmt: skip
            app.add_topic(self._topic)
            self._topic_unchecked = app.runtime.is_open
        self._ephemeral_options()  # they can be wrong now, not at the first subscriber

    def __repr__(self) -> str:
        location = "local" if self.app is None else repr(self.app)
        return f"<{type(self).__name__} {self.name!r} {location}>"

    # -- declaring

    def declare(self, *topics: str) -> None:
        """Say which topics there are. From then on publishing to another one is an error, and so is
        subscribing to a topic or pattern that fits none of them.

        Without it any topic may be used. What others publish is delivered in any case.

        :raises ConfigError: an event cannot have one of these topics.
        """
        declared = {check_topic(topic) for topic in topics}
        with self._lock:
            self._declared_topics |= declared
            self._local_router.invalidate()

    def check_declared(self, pattern: str) -> str:
        """The topic or pattern, if it fits a topic that is declared, or none is.

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
        :param cause: the event that this one follows from: its ID becomes ``ce_causationid``,
            what it belongs to is what this one belongs to (``ce_correlationid``, else the cause's
            own ID), and a trace goes on. ``headers`` override.
        :raises InvalidValue: an event cannot have this topic, or it is not declared.
        :raises EncodeError: data, key, ID or headers cannot be written; nothing was.
        :raises LogError: as :meth:`streams.Topic.publish`.
        """
        if not self._local_router.has_delivered(topic):
            try:
                self.check_declared(check_topic(topic))
            except ConfigError as error:
                raise InvalidValue(str(error)) from None
        event_headers = self._event_headers(headers, cause)
        if id is None:
            id = str(uuid7())
        if self._topic is None:
            event = self._local_event(topic, data, key, id, event_headers, timestamp)
            if runs_beside_others.get():
                # Whoever is told of the event that this one follows from hears that one first.
                await asyncio.sleep(0)
            await self._local_router.deliver(event)
            return id
        await self._before_publish()
        event_headers[TYPE] = topic
        await self._topic.publish(data, key=key, id=id, headers=event_headers, timestamp=timestamp)
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
        """:meth:`publish` what follows from an event. While the log is out of reach it is written
        again, until it is there. Its key is the event's, or else what that belongs to.

        :param id: derived from the cause's, so that writing it again does no harm.
        :raises LogError: the log refuses it.
        """
        check_event(cause, "answer")
        key = cause.key or cause.correlation_id or cause.id
        if self._topic is None or self.app is None:
            await self.publish(topic, data, key=key, id=id, headers=headers, cause=cause)
            return
        event_headers = self._event_headers(headers, cause) | {
            TYPE: self.check_declared(check_topic(topic))
        }
        record = self._topic.record(data, key=key, id=id, headers=event_headers)
        await self._before_publish()
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def on_written(errors: Sequence[BaseException | None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(resolve, errors[0])

        def resolve(error: BaseException | None) -> None:
            if written.done():
                return
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

        self.app.publisher.publish_durably([(self.name, record)], on_written)
        await written

    def _event_headers(
        self, headers: Mapping[str, str] | None, cause: Event | None
    ) -> dict[str, str]:
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

    def _local_event(
        self,
        topic: str,
        data: Any,
        key: Key | None,
        id: str,
        headers: dict[str, str],
        timestamp: datetime | None,
    ) -> Event:
        key_bytes = encode_key(self.name, key)
        if not isinstance(id, str) or not id or "\0" in id:
            raise EncodeError(f"event ID {id!r}: a non-empty str without NUL")
        if timestamp is None:
            timestamp = datetime.now(timezone.utc)
        elif not isinstance(timestamp, datetime) or timestamp.tzinfo is None:
            raise EncodeError(f"timestamp {timestamp!r}: a datetime with a time zone")
        return Event(
            topic=topic,
            data=data,
            id=id,
            key=None if key_bytes is None else text(key_bytes),
            timestamp=timestamp.astimezone(timezone.utc),
            headers=headers | {ID: id, TYPE: topic},
        )

    async def _before_publish(self) -> None:
        """See to it that the topic is there, and that whoever subscribed before gets the event."""
        if self._topic_unchecked and self.app is not None:
            await run_in_thread(self.app.runtime.ensure_topics, missing_ok=True)
            self._topic_unchecked = False
        processor = self._ephemeral_processor
        if processor is not None and not processor.has_started:
            with suppress(Exception):
                await processor.wait_started()
        for start in list(self._unresolved_starts):
            await asyncio.shield(asyncio.wrap_future(start))

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
        """Call ``handler(event)`` with every event of a topic. Calling what is returned ends it.

        Without a handler this is a decorator for one, ``@bus.subscribe("order.paid")``, which
        leaves it as it is.

        A handler that is subscribed several times gets each event once.

        :param handler: ``async def``, or plain; a plain one runs in a worker thread, or on a local
            bus in place while its calls take less than 100 µs.
        :param group: makes the subscriber durable, in this consumer group. A group has one
            handler, in any number of processes that all subscribe it to the same topics; it may be
            subscribed again after a restart and misses nothing in between. On a local bus it is
            but a name.
        :param in_thread: always call a plain handler in a worker thread, however quick it is.
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
            raise ConfigError(f"subscribe({pattern!r}, in_thread={in_thread!r}): True or False")
        if in_thread and asynchronous:
            raise ConfigError(
                f"subscribe({pattern!r}, in_thread=True): {handler_name(handler)} is async, and "
                "runs on "
                "the event loop; only a plain handler has a thread"
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
        with self._lock:
            subscriber = self._get_subscriber(
                handler, group, options, asynchronous=asynchronous, in_thread=in_thread
            )
            subscription = Subscription(self, pattern, subscriber, accepts)
            subscription.trie_item_id = subscriber.trie.add(pattern, subscription)
            subscriber.active_subscriptions += 1
            subscriber.has_predicate |= accepts is not None
            self._local_router.invalidate()
            if self.app is not None:
                try:
                    self._ensure_processor(self.app, subscription)
                except BaseException:
                    self._remove_locked(subscription)
                    raise
        return subscription

    def _get_subscriber(
        self,
        handler: Handler,
        group: str | None,
        options: DurableOptions,
        *,
        asynchronous: bool,
        in_thread: bool,
    ) -> Subscriber:
        """The one that is there already, or a new one (the lock is held)."""
        try:
            key: Hashable = (group, handler)
            subscriber = self._subscribers.get(key)
        except TypeError:  # a callable that cannot be hashed
            key = (group, id(handler))
            subscriber = self._subscribers.get(key)
        if subscriber is not None:
            if (options and options != subscriber.options) or in_thread > subscriber.in_thread:
                raise ConfigError(
                    f"group {group!r}: {handler_name(handler)} is subscribed with other options "
                    "already"
                )
            return subscriber
        if group in self._durable_by_group:
            raise ConfigError(
                f"group {group!r} has a handler already, "
                f"{handler_name(self._durable_by_group[group].handler)}; "
                f"give {handler_name(handler)} a group of its own"
            )
        durable = group is not None
        own_trie = durable and self.app is not None
        subscriber = Subscriber(
            handler,
            group,
            options,
            Trie() if own_trie else self._shared_trie,
            asynchronous=asynchronous,
            in_thread=in_thread,
        )
        if durable:
            self._durable_options(subscriber).validate(handler_name(handler))
        self._subscribers[key] = subscriber
        subscriber.registry_key = key
        if group is not None:
            self._durable_by_group[group] = subscriber
        return subscriber

    def _ensure_processor(self, app: Streams, subscription: Subscription) -> None:
        """See to it that a processor serves it (the lock is held)."""
        subscriber = subscription.subscriber
        if subscriber.group is None:
            if self._ephemeral_processor is None:
                self._ephemeral_processor = BusProcessor(
                    app,
                    lambda: app.declare(
                        self._ephemeral_handler(),
                        self._ephemeral_options(),
                        partial(EphemeralProcessor, on_restart=self._forget_starts),
                    ),
                )
            elif app.runtime.runs_processors:
                self._resolve_start(app, subscription)
        elif subscriber.processor is None:
            subscriber.processor = BusProcessor(
                app,
                lambda: app.declare(
                    self._durable_handler(subscriber), self._durable_options(subscriber)
                ),
            )

    def remove_subscription(self, subscription: Subscription) -> None:
        """Forget a subscription; its handler is not called again. Any thread."""
        with self._lock:
            if subscription.active:
                self._remove_locked(subscription)

    def _remove_locked(self, subscription: Subscription) -> None:
        """(The lock is held.)"""
        subscription.active = False
        self._local_router.invalidate()
        subscriber = subscription.subscriber
        subscriber.active_subscriptions -= 1
        if subscriber.active_subscriptions or subscriber.trie is self._shared_trie:
            # The last one of a durable subscriber stays: an event that is just being handed to
            # it is handled, as one that nobody wants would count as settled.
            subscriber.trie.remove(subscription.topic, subscription.trie_item_id)
        if subscriber.active_subscriptions:
            return
        del self._subscribers[subscriber.registry_key]
        if subscriber.group is not None:
            del self._durable_by_group[subscriber.group]
        if subscriber.processor is not None:
            subscriber.processor.stop()
        if self._ephemeral_processor is not None and not len(self._shared_trie):
            self._ephemeral_processor.stop()
            self._ephemeral_processor = None

    def _resolve_start(self, app: Streams, subscription: Subscription) -> None:
        """Find out where a subscription to a running reading begins (the lock is held)."""
        start: concurrent.futures.Future[dict[int, int]] = concurrent.futures.Future()
        end_offsets: dict[int, int] = {}

        def read_end_offsets() -> None:
            for partition in range(app.log.topic(self.name).partitions):
                end_offsets[partition] = app.log.watermarks(self.name, partition)[1]

        async def resolve() -> None:
            while True:
                try:
                    await run_in_thread(read_end_offsets)
                    return
                except Unavailable:
                    await asyncio.sleep(RETRY_PAUSE)

        def resolved() -> None:
            self._unresolved_starts.discard(start)
            start.set_result(end_offsets)

        subscription.start_offsets = start
        self._unresolved_starts.add(start)
        app.runtime.spawn_from_any_thread(resolve, resolved)

    def _forget_starts(self) -> None:
        """The reading begins anew, later than everybody who is subscribed now."""
        with self._lock:
            for subscription in self._shared_trie.items():
                subscription.start_offsets = None

    async def wait_ready(self, subscription: Subscription) -> None:
        """Wait until what is published from now on reaches the subscription."""
        subscriber = subscription.subscriber
        processor = self._ephemeral_processor if subscriber.group is None else subscriber.processor
        if processor is not None:
            await processor.wait_started()
        if subscription.start_offsets is not None:
            await asyncio.shield(asyncio.wrap_future(subscription.start_offsets))

    # -- delivering

    async def _deliver_to_ephemeral(self, event: Event, message: Message[Any]) -> None:
        """Over a log: call every ephemeral subscriber that the event fits; return when all are
        done.

        :param message: the message of the log that it came as.
        """
        with self._lock:
            found = self._shared_trie.match(event.topic)
        if not found:
            return
        if isinstance(event.data, UndecodableData):
            await report_error(self._error_hook, event.data.error, replace(event, data=None), None)
            return
        if len(found) == 1:
            await self._call_subscriber(found, event, message)
            return
        by_subscriber: dict[Subscriber, list[Subscription]] = {}
        for subscription in found:
            by_subscriber.setdefault(subscription.subscriber, []).append(subscription)
        if len(by_subscriber) == 1:
            await self._call_subscriber(found, event, message)
        else:
            calls = (self._call_subscriber(each, event, message) for each in by_subscriber.values())
            concurrent_calls = (self._run_beside_others(each) for each in calls)
            for ended in await asyncio.gather(*concurrent_calls, return_exceptions=True):
                if isinstance(ended, BaseException):
                    raise ended

    async def _run_beside_others(self, coroutine: Awaitable[None]) -> None:
        runs_beside_others.set(True)
        await coroutine

    async def _call_subscriber(
        self, subscriptions: list[Subscription], event: Event, message: Message[Any]
    ) -> None:
        """Call one handler, if one of these still wants the event."""
        subscriber = subscriptions[0].subscriber
        try:
            subscriptions = [each for each in subscriptions if await each.joined_before(message)]
            # Looked at here and not before: another handler may have unsubscribed this one.
            if any(each.wants(event) for each in subscriptions):
                await call_handler(subscriber.handler, event, asynchronous=subscriber.asynchronous)
        except Exception as error:
            await report_error(self._error_hook, error, event, subscriber.handler)
            # Over a log it ends the processor, as in any handler. A local bus has none.
            if self.app is not None and find_config_error(error) is not None:
                raise

    # -- over a log

    def _event_source(self, wants: Callable[[str], bool], *, keep_undecodable: bool) -> EventSource:
        if self._topic is None:  # a local bus: only its options are checked against it
            return EventSource(self.name, EventDecoder(wants, NullDecoder()))
        decoding = EventDecoder(wants, self._topic.decoding, keep_undecodable=keep_undecodable)
        return EventSource(self.name, decoding)

    def _topic_predicate(self, trie: Trie[Subscription]) -> Callable[[str], bool]:
        def wants(topic: str) -> bool:
            with self._lock:
                return bool(trie.match(topic))

        return wants

    def _ephemeral_options(self) -> ProcessorOptions:
        source = self._event_source(self._topic_predicate(self._shared_trie), keep_undecodable=True)
        options = ProcessorOptions((source,), f"ephemeral-{str(uuid7())[-8:]}", self._concurrency)
        options.validate(f"of bus {self.name}")
        return options

    def _ephemeral_handler(self) -> Callable[..., Any]:
        async def deliver(event: Event, message: Message[Any]) -> None:
            await self._deliver_to_ephemeral(event, message)

        deliver.__name__ = self.name
        return deliver

    def _durable_options(self, subscriber: Subscriber) -> ProcessorOptions:
        def accepts(event: Event) -> bool:
            if not subscriber.has_predicate:
                return True
            with self._lock:
                found = subscriber.trie.match(event.topic)
            return any(each.accepts is None or each.accepts(event) for each in found)

        source = self._event_source(self._topic_predicate(subscriber.trie), keep_undecodable=False)
        return ProcessorOptions(
            (source,), subscriber.group or "", filter=accepts, **subscriber.options
        )

    def _durable_handler(self, subscriber: Subscriber) -> Callable[..., Any]:
        """The processor's handler, async or plain as the subscriber's is."""
        app, handler = self.app, subscriber.handler

        async def report_failure(error: Exception, event: Event) -> None:
            await report_error(self._error_hook, error, event, handler)

        async def handle_async(event: Event, message: Message[Any]) -> None:
            attach_message(event, message)
            try:
                await call_handler(handler, event, asynchronous=True)
            except Exception as error:
                await report_failure(error, event)
                raise

        def handle_plain(event: Event, message: Message[Any]) -> None:
            attach_message(event, message)
            try:
                result = handler(event)
                if result is not None and hasattr(result, "__await__") and app is not None:
                    app.wait(result)
            except Exception as error:
                if app is not None:
                    app.wait(report_failure(error, event))
                raise

        wrapped: Callable[..., Any] = handle_async if subscriber.asynchronous else handle_plain
        wrapped.__name__ = handler_name(handler)
        return wrapped

    # -- reading again

    async def read(
        self, topic: str = WILDCARD, start: OffsetSpec = "earliest", end: OffsetSpec = "latest"
    ) -> AsyncIterator[Event]:
        """The events that the log holds of a topic or pattern, without any group; see
        :meth:`streams.Topic.read`.

        :raises NotRunning: a local bus keeps nothing, or the app is not connected.
        :raises DecodeError: an event's data cannot be decoded.
        """
        if self.app is None:
            raise NotRunning("a local bus keeps no events: EventBus(app) does")
        topics: Trie[None] = Trie()
        topics.add(topic, None)
        source = self._event_source(lambda found: bool(topics.match(found)), keep_undecodable=False)
        app = self.app
        async with await asyncio.to_thread(lambda: TopicReader(app, source, start, end)) as reading:
            async for message in reading:
                yield message.value


class PatternEventBus(EventBus):
    """An :class:`EventBus` whose subscribers may say patterns.

    ``order.*`` is every topic below ``order``, at any depth; ``order.*.paid`` has one level in
    between; ``*`` is everything. The handler sees the event's own topic.
    """

    _allows_patterns: ClassVar[bool] = True
