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
memory bounds over a log are the processors' (``streams.runners``), not this module's.
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
from streams.config import Retention
from streams.errors import ConfigError, InvalidValue, NotRunning, Unavailable, config_error
from streams.log import names
from streams.message import (
    CAUSATION,
    CORRELATION,
    ID,
    OLD_CAUSATION,
    OLD_CORRELATION,
    TIME,
    TYPE,
    Message,
    text,
)
from streams.patterns.bus.calling import (
    ErrorHook,
    Handler,
    call,
    check_handler,
    check_hook,
    name_of,
    report,
)
from streams.patterns.bus.event import (
    Event,
    EventDecoding,
    EventSource,
    Nothing,
    Unreadable,
    caused,
    check_event,
    place,
)
from streams.patterns.bus.following import Follower
from streams.patterns.bus.hosting import Hosted
from streams.patterns.bus.locally import Locally, beside_others
from streams.patterns.bus.subscription import Accepts, Durable, Receiver, Subscription
from streams.patterns.bus.trie import WILD, Trie, check_pattern, check_topic, regex
from streams.patterns.checking import NOT_GIVEN
from streams.processor import Options
from streams.reading import Reading, When
from streams.shielding import in_thread
from streams.text import nearest
from streams.topic import Key, OwnedTopic, Topic, _key_bytes

__all__ = ["EventBus", "PatternEventBus"]

F = TypeVar("F", bound=Callable[..., object])

PAUSE = 0.5
"""Seconds before a log that is out of reach is asked again."""

_NEW_NAMES = {OLD_CORRELATION: CORRELATION, OLD_CAUSATION: CAUSATION}
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

    _patterns: ClassVar[bool] = False

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
        self._hook = check_hook(on_error)
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._direct: Trie[Subscription] = Trie()
        """All subscriptions of a local bus, the ephemeral ones of one over a log."""
        self._receivers: dict[Hashable, Receiver] = {}
        self._groups: dict[str, Receiver] = {}
        self._follower: Hosted | None = None
        self._joining: set[concurrent.futures.Future[dict[int, int]]] = set()
        """Ephemeral subscriptions that do not know yet where they begin."""
        self._locally = Locally(self._lock, self._direct, self._hook)
        """Calls the handlers of a local bus."""
        self._topic: Topic[Any] | None = None
        self._declared: set[str] = set()
        """The topics its events may have; empty: any."""
        self._late = False
        """The app checked its topics before this one was declared."""
        if app is not None:
            self._topic = OwnedTopic(
                app, name, type, codec=codec, partitions=partitions, retention=retention,
                cloudevents=app.cloudevents,
            )  # fmt: skip
            app.add_topic(self._topic)
            self._late = app._log is not None
        self._follower_options()  # they can be wrong now, not at the first subscriber

    def __repr__(self) -> str:
        where = "local" if self.app is None else repr(self.app)
        return f"<{type(self).__name__} {self.name!r} {where}>"

    # -- declaring

    def declare(self, *topics: str) -> None:
        """Say which topics there are. From then on publishing to another one is an error, and so is
        subscribing to a topic or pattern that fits none of them.

        Without it any topic may be used. What others publish is delivered in any case.

        :raises ConfigError: an event cannot have one of these topics.
        """
        declared = {check_topic(topic) for topic in topics}
        with self._lock:
            self._declared |= declared
            self._locally.changed()

    def check_declared(self, pattern: str) -> str:
        """The topic or pattern, if it fits a topic that is declared, or none is.

        :raises ConfigError: otherwise.
        """
        check_pattern(pattern)
        declared = self._declared
        if not declared or pattern in declared:
            return pattern
        if WILD in pattern:
            fits = regex(pattern).fullmatch
            if any(fits(topic) for topic in declared):
                return pattern
            raise ConfigError(
                f"pattern {pattern!r} fits no topic that is declared on {self!r}: "
                f"{nearest(pattern, declared)} Declare a new one first: bus.declare('...')"
            )
        raise ConfigError(
            f"event topic {pattern!r} is not declared on {self!r}: "
            f"{nearest(pattern, declared)} Declare a new one first: bus.declare({pattern!r})"
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
        if not self._locally.knows(topic):
            try:
                self.check_declared(check_topic(topic))
            except ConfigError as error:
                raise InvalidValue(str(error)) from None
        named = self._headers(headers, cause)
        if id is None:
            id = str(uuid7())
        if self._topic is None:
            event = self._local(topic, data, key, id, named, timestamp)
            if beside_others.get():
                # Whoever is told of the event that this one follows from hears that one first.
                await asyncio.sleep(0)
            await self._locally.deliver(event)
            return id
        await self._reachable()
        named[TYPE] = topic
        await self._topic.publish(data, key=key, id=id, headers=named, timestamp=timestamp)
        return id

    async def answer(
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
        named = self._headers(headers, cause) | {TYPE: self.check_declared(check_topic(topic))}
        record = self._topic.record(data, key=key, id=id, headers=named)
        await self._reachable()
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def told(errors: Sequence[BaseException | None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell, errors[0])

        def tell(error: BaseException | None) -> None:
            if written.done():
                return
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

        self.app.publisher.derive([(self.name, record)], told)
        await written

    def _headers(self, headers: Mapping[str, str] | None, cause: Event | None) -> dict[str, str]:
        if cause is not None:
            check_event(cause, "publish(cause=...)")
        found = {} if cause is None else caused(cause)
        if headers is None:
            return found
        if not isinstance(headers, Mapping):
            raise EncodeError(f"headers of type {type(headers).__name__}: a mapping of str")
        for name, value in headers.items():
            if name in (ID, TYPE, TIME):
                raise EncodeError(f"header {name!r}: give it as id=, topic or timestamp=")
            if not isinstance(name, str) or not isinstance(value, str):
                raise EncodeError(f"header {name!r}: names and values are str")
            found[_NEW_NAMES.get(name, name)] = value
        return found

    def _local(
        self,
        topic: str,
        data: Any,
        key: Key | None,
        id: str,
        headers: dict[str, str],
        timestamp: datetime | None,
    ) -> Event:
        encoded = _key_bytes(self.name, key)
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
            key=None if encoded is None else text(encoded),
            timestamp=timestamp.astimezone(timezone.utc),
            headers=headers | {ID: id, TYPE: topic},
        )

    async def _reachable(self) -> None:
        """See to it that the topic is there, and that whoever subscribed before gets the event."""
        if self._late and self.app is not None:
            await in_thread(self.app._prepare_topics, missing_ok=True)
            self._late = False
        follower = self._follower
        if follower is not None and not follower.begun:
            with suppress(Exception):
                await follower.began()
        for joining in list(self._joining):
            await asyncio.shield(asyncio.wrap_future(joining))

    # -- subscribing

    @overload
    def subscribe(
        self,
        topic: str,
        handler: Handler,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[Durable],
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        topic: str,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[Durable],
    ) -> Callable[[F], F]: ...

    def subscribe(
        self,
        topic: str,
        handler: Handler = NOT_GIVEN,
        *,
        group: str | None = None,
        in_thread: bool = False,
        **options: Unpack[Durable],
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
        if not self._patterns and isinstance(topic, str) and WILD in topic:
            raise ConfigError(f"subscribe({topic!r}): for patterns use a PatternEventBus")
        if handler is not NOT_GIVEN:
            return self._subscribe(topic, handler, group, None, options, in_thread=in_thread)
        self.check_declared(topic)

        def decorate(function: F) -> F:
            self._subscribe(topic, function, group, None, options, in_thread=in_thread)
            return function

        return decorate

    def _subscribe(
        self,
        pattern: str,
        handler: Handler,
        group: str | None,
        accepts: Accepts | None,
        options: Durable,
        *,
        in_thread: bool = False,
    ) -> Subscription:
        self.check_declared(pattern)
        asynchronous = check_handler(handler)
        if not isinstance(in_thread, bool):
            raise ConfigError(f"subscribe({pattern!r}, in_thread={in_thread!r}): True or False")
        if in_thread and asynchronous:
            raise ConfigError(
                f"subscribe({pattern!r}, in_thread=True): {name_of(handler)} is async, and runs on "
                "the event loop; only a plain handler has a thread"
            )
        if group is not None:
            names.check_group(group)
        if unknown := options.keys() - Durable.__annotations__.keys():
            raise ConfigError(
                f"subscribe({pattern!r}, {min(unknown)}=...): there are group, "
                f"{', '.join(Durable.__annotations__)}"
            )
        if options and group is None:
            raise ConfigError(
                f"subscribe({pattern!r}, {', '.join(options)}): only a durable subscriber has "
                "these: give it group="
            )
        with self._lock:
            receiver = self._receiver(
                handler, group, options, asynchronous=asynchronous, in_thread=in_thread
            )
            subscription = Subscription(self, pattern, receiver, accepts)
            subscription._ticket = receiver.trie.add(pattern, subscription)
            receiver.wanted += 1
            receiver.choosy |= accepts is not None
            self._locally.changed()
            if self.app is not None:
                try:
                    self._host(self.app, subscription)
                except BaseException:
                    self._forget(subscription)
                    raise
        return subscription

    def _receiver(
        self,
        handler: Handler,
        group: str | None,
        options: Durable,
        *,
        asynchronous: bool,
        in_thread: bool,
    ) -> Receiver:
        """The one that is there already, or a new one (the lock is held)."""
        try:
            key: Hashable = (group, handler)
            receiver = self._receivers.get(key)
        except TypeError:  # a callable that cannot be hashed
            key = (group, id(handler))
            receiver = self._receivers.get(key)
        if receiver is not None:
            if (options and options != receiver.options) or in_thread > receiver.in_thread:
                raise ConfigError(
                    f"group {group!r}: {name_of(handler)} is subscribed with other options already"
                )
            return receiver
        if group in self._groups:
            raise ConfigError(
                f"group {group!r} has a handler already, {name_of(self._groups[group].handler)}; "
                f"give {name_of(handler)} a group of its own"
            )
        durable = group is not None
        own = durable and self.app is not None
        receiver = Receiver(
            handler,
            group,
            options,
            Trie() if own else self._direct,
            asynchronous=asynchronous,
            in_thread=in_thread,
        )
        if durable:
            self._durable_options(receiver).check(name_of(handler))
        self._receivers[key] = receiver
        receiver.key = key
        if group is not None:
            self._groups[group] = receiver
        return receiver

    def _host(self, app: Streams, subscription: Subscription) -> None:
        """See to it that a processor serves it (the lock is held)."""
        receiver = subscription._receiver
        if receiver.group is None:
            if self._follower is None:
                self._follower = Hosted(
                    app,
                    lambda: app._declare(
                        self._follow_handler(),
                        self._follower_options(),
                        partial(Follower, restarted=self._restarted),
                    ),
                )
            elif app._processing:
                self._join(app, self._follower, subscription)
        elif receiver.hosted is None:
            receiver.hosted = Hosted(
                app,
                lambda: app._declare(
                    self._durable_handler(receiver), self._durable_options(receiver)
                ),
            )

    def _unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription.active:
                self._forget(subscription)

    def _forget(self, subscription: Subscription) -> None:
        """(The lock is held.)"""
        subscription.active = False
        self._locally.changed()
        receiver = subscription._receiver
        receiver.wanted -= 1
        if receiver.wanted or receiver.trie is self._direct:
            # The last one of a durable subscriber stays: an event that is just being handed to
            # it is handled, as one that nobody wants would count as settled.
            receiver.trie.remove(subscription.topic, subscription._ticket)
        if receiver.wanted:
            return
        del self._receivers[receiver.key]
        if receiver.group is not None:
            del self._groups[receiver.group]
        if receiver.hosted is not None:
            receiver.hosted.end()
        if self._follower is not None and not len(self._direct):
            self._follower.end()
            self._follower = None

    def _join(self, app: Streams, follower: Hosted, subscription: Subscription) -> None:
        """Find out where a subscription to a running reading begins (the lock is held)."""
        joining: concurrent.futures.Future[dict[int, int]] = concurrent.futures.Future()
        ends: dict[int, int] = {}

        def ask() -> None:
            for partition in range(app.log.topic(self.name).partitions):
                ends[partition] = app.log.bounds(self.name, partition)[1]

        async def join() -> None:
            while True:
                try:
                    await in_thread(ask)
                    return
                except Unavailable:
                    await asyncio.sleep(PAUSE)

        def joined() -> None:
            self._joining.discard(joining)
            joining.set_result(ends)

        subscription._since = joining
        self._joining.add(joining)
        follower.spawn(join, joined)

    def _restarted(self) -> None:
        """The reading begins anew, later than everybody who is subscribed now."""
        with self._lock:
            for subscription in self._direct.items():
                subscription._since = None

    async def _ready(self, subscription: Subscription) -> None:
        receiver = subscription._receiver
        hosted = self._follower if receiver.group is None else receiver.hosted
        if hosted is not None:
            await hosted.began()
        if subscription._since is not None:
            await asyncio.shield(asyncio.wrap_future(subscription._since))

    # -- delivering

    async def _deliver(self, event: Event, message: Message[Any]) -> None:
        """Over a log: call every ephemeral subscriber that the event fits; return when all are
        done.

        :param message: the message of the log that it came as.
        """
        with self._lock:
            found = self._direct.match(event.topic)
        if not found:
            return
        if isinstance(event.data, Unreadable):
            await report(self._hook, event.data.error, replace(event, data=None), None)
            return
        if len(found) == 1:
            await self._call(found, event, message)
            return
        fitting: dict[Receiver, list[Subscription]] = {}
        for subscription in found:
            fitting.setdefault(subscription._receiver, []).append(subscription)
        if len(fitting) == 1:
            await self._call(found, event, message)
        else:
            calls = (self._call(each, event, message) for each in fitting.values())
            beside = (self._beside_others(each) for each in calls)
            for ended in await asyncio.gather(*beside, return_exceptions=True):
                if isinstance(ended, BaseException):
                    raise ended

    async def _beside_others(self, work: Awaitable[None]) -> None:
        beside_others.set(True)
        await work

    async def _call(
        self, subscriptions: list[Subscription], event: Event, message: Message[Any]
    ) -> None:
        """Call one handler, if one of these still wants the event."""
        receiver = subscriptions[0]._receiver
        try:
            subscriptions = [each for each in subscriptions if await each.begins_before(message)]
            # Looked at here and not before: another handler may have unsubscribed this one.
            if any(each.takes(event) for each in subscriptions):
                await call(receiver.handler, event, asynchronous=receiver.asynchronous)
        except Exception as error:
            await report(self._hook, error, event, receiver.handler)
            # Over a log it ends the processor, as in any handler. A local bus has none.
            if self.app is not None and config_error(error) is not None:
                raise

    # -- over a log

    def _source(self, wants: Callable[[str], bool], *, unreadable: bool) -> EventSource:
        if self._topic is None:  # a local bus: only its options are checked against it
            return EventSource(self.name, EventDecoding(wants, Nothing()))
        decoding = EventDecoding(wants, self._topic.decoding, unreadable=unreadable)
        return EventSource(self.name, decoding)

    def _wants(self, trie: Trie[Subscription]) -> Callable[[str], bool]:
        def wants(topic: str) -> bool:
            with self._lock:
                return bool(trie.match(topic))

        return wants

    def _follower_options(self) -> Options:
        source = self._source(self._wants(self._direct), unreadable=True)
        options = Options((source,), f"ephemeral-{str(uuid7())[-8:]}", self._concurrency)
        options.check(f"of bus {self.name}")
        return options

    def _follow_handler(self) -> Callable[..., Any]:
        async def deliver(event: Event, message: Message[Any]) -> None:
            await self._deliver(event, message)

        deliver.__name__ = self.name
        return deliver

    def _durable_options(self, receiver: Receiver) -> Options:
        def accepts(event: Event) -> bool:
            if not receiver.choosy:
                return True
            with self._lock:
                found = receiver.trie.match(event.topic)
            return any(each.accepts is None or each.accepts(event) for each in found)

        source = self._source(self._wants(receiver.trie), unreadable=False)
        return Options((source,), receiver.group or "", filter=accepts, **receiver.options)

    def _durable_handler(self, receiver: Receiver) -> Callable[..., Any]:
        """The processor's handler, async or plain as the subscriber's is."""
        app, handler = self.app, receiver.handler

        async def failed(error: Exception, event: Event) -> None:
            await report(self._hook, error, event, handler)

        async def handle(event: Event, message: Message[Any]) -> None:
            place(event, message)
            try:
                await call(handler, event, asynchronous=True)
            except Exception as error:
                await failed(error, event)
                raise

        def handle_plain(event: Event, message: Message[Any]) -> None:
            place(event, message)
            try:
                result = handler(event)
                if result is not None and hasattr(result, "__await__") and app is not None:
                    app.wait(result)
            except Exception as error:
                if app is not None:
                    app.wait(failed(error, event))
                raise

        found: Callable[..., Any] = handle if receiver.asynchronous else handle_plain
        found.__name__ = name_of(handler)
        return found

    # -- reading again

    async def read(
        self, topic: str = WILD, start: When = "earliest", end: When = "latest"
    ) -> AsyncIterator[Event]:
        """The events that the log holds of a topic or pattern, without any group; see
        :meth:`streams.Topic.read`.

        :raises NotRunning: a local bus keeps nothing, or the app is not connected.
        :raises DecodeError: an event's data cannot be decoded.
        """
        if self.app is None:
            raise NotRunning("a local bus keeps no events: EventBus(app) does")
        wanted: Trie[None] = Trie()
        wanted.add(topic, None)
        source = self._source(lambda found: bool(wanted.match(found)), unreadable=False)
        app = self.app
        async with await asyncio.to_thread(lambda: Reading(app, source, start, end)) as reading:
            async for message in reading:
                yield message.value


class PatternEventBus(EventBus):
    """An :class:`EventBus` whose subscribers may say patterns.

    ``order.*`` is every topic below ``order``, at any depth; ``order.*.paid`` has one level in
    between; ``*`` is everything. The handler sees the event's own topic.
    """

    _patterns: ClassVar[bool] = True
