"""A bus over a log: its topic, and the processors that read it for its subscribers.

All ephemeral subscribers in a process share one processor, which reads from the end, in no group
(:mod:`streams.patterns.bus.ephemeral`); each durable one has a processor in its group. Order,
concurrency, retries and memory bounds are the processors', not this module's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Literal

from msgspec.structs import replace

from streams.app import Streams
from streams.callables import callable_name
from streams.cancellation import run_in_thread, wait_for_callback
from streams.connection import Connection
from streams.errors import find_config_error
from streams.message import TYPE, Message
from streams.own_subscription import OwnSubscriptionProcessor
from streams.patterns.bus.bus_processor import BusProcessor
from streams.patterns.bus.ephemeral import EphemeralSubscription
from streams.patterns.bus.event import (
    BusEventDecoder,
    Event,
    EventSource,
    UndecodableData,
    attach_message,
)
from streams.patterns.bus.handlers import ErrorHook, call_handler, report_error
from streams.patterns.bus.local_router import gather_side_by_side
from streams.patterns.bus.subscribers import SubscriberRegistry
from streams.patterns.bus.subscription import Subscriber, Subscription, by_subscriber
from streams.patterns.bus.trie import Trie
from streams.processor import Processor, ProcessorOptions
from streams.runtime import wait_until_available
from streams.topic import Key, Topic
from streams.topic_reader import OffsetSpec, TopicReader


class LogRouter:
    """Publishes events to the bus's topic, and delivers them to its subscribers.

    :param concurrency: how many events are delivered at once to the ephemeral subscribers.
    """

    def __init__(
        self,
        app: Streams,
        topic: Topic[Any],
        registry: SubscriberRegistry,
        error_hook: ErrorHook,
        concurrency: int,
    ) -> None:
        self._app = app
        self._topic = topic
        self._registry = registry
        self._error_hook = error_hook
        self._concurrency = concurrency
        self._ephemeral: BusProcessor | None = None
        """Serves all ephemeral subscribers."""
        self._unresolved_starts: set[concurrent.futures.Future[dict[int, int]]] = set()
        """Futures of ephemeral subscriptions whose start offsets are not known yet."""
        self._topic_unchecked = app.runtime.is_open
        """True if the app checked its topics before this one was declared."""

    # -- publishing

    async def publish(
        self,
        topic: str,
        data: Any,
        key: Key | None,
        id: str,
        headers: dict[str, str],
        timestamp: datetime | None,
    ) -> None:
        """Publish an event; returns once it is durable."""
        await self._before_publish()
        headers[TYPE] = topic
        await self._topic.publish(data, key=key, id=id, headers=headers, timestamp=timestamp)

    async def publish_derived(
        self, topic: str, data: Any, key: Key, id: str, headers: Mapping[str, str]
    ) -> None:
        """Publish an event whose ID is derived; retry until the log answers."""
        record = self._topic.record(data, key=key, id=id, headers={**headers, TYPE: topic})
        await self._before_publish()
        outgoing = [(self._topic.name, record)]
        (answer,) = await wait_for_callback(partial(self._app.publisher.publish_durably, outgoing))
        if isinstance(answer, BaseException):
            raise answer

    async def _before_publish(self) -> None:
        """Make sure that the topic exists, and that earlier subscribers will get the event."""
        if self._topic_unchecked:
            await run_in_thread(self._app.runtime.ensure_topics, missing_ok=True)
            self._topic_unchecked = False
        processor = self._ephemeral
        if processor is not None and not processor.has_started:
            with suppress(Exception):
                await processor.wait_started()
        for start in list(self._unresolved_starts):
            await asyncio.shield(asyncio.wrap_future(start))

    # -- subscribing

    def on_subscribed(self, subscription: Subscription) -> None:
        """Make sure that a processor serves the subscription (the registry's lock is held)."""
        subscriber, declare = subscription.subscriber, self._app.declare
        if subscriber.group is not None:
            if subscriber.processor is None:
                subscriber.processor = BusProcessor(
                    self._app,
                    lambda: declare(
                        self._durable_handler(subscriber), self._durable_options(subscriber)
                    ),
                )
        elif self._ephemeral is None:
            self._ephemeral = BusProcessor(self._app, self._declare_ephemeral)
        elif self._app.runtime.runs_processors:
            self._resolve_start(subscription)

    def on_unsubscribed(self, subscription: Subscription) -> None:
        """Stop a processor that served only this subscription (the registry's lock is held)."""
        subscriber = subscription.subscriber
        if subscriber.active_subscriptions:
            return
        if subscriber.processor is not None:
            subscriber.processor.stop()
        if self._ephemeral is not None and not len(self._registry.shared_trie):
            self._ephemeral.stop()
            self._ephemeral = None

    async def wait_ready(self, subscription: Subscription) -> None:
        """Wait until every event published from now on reaches the subscription."""
        subscriber = subscription.subscriber
        processor = self._ephemeral if subscriber.group is None else subscriber.processor
        if processor is not None:
            await processor.wait_started()
        if subscription.start_offsets is not None:
            await asyncio.shield(asyncio.wrap_future(subscription.start_offsets))

    def _resolve_start(self, subscription: Subscription) -> None:
        """Find the start offsets of a subscription that joins a running reader (the lock is
        held)."""
        start: concurrent.futures.Future[dict[int, int]] = concurrent.futures.Future()
        end_offsets: dict[int, int] = {}
        log, topic = self._app.log, self._topic.name

        def read_end_offsets() -> None:
            for partition in range(log.describe_topic(topic).partitions):
                end_offsets[partition] = log.watermarks(topic, partition)[1]

        def resolved() -> None:
            self._unresolved_starts.discard(start)
            start.set_result(end_offsets)

        subscription.start_offsets = start
        self._unresolved_starts.add(start)
        wait = partial(wait_until_available, read_end_offsets, label=f"bus {topic}: ")
        self._app.runtime.spawn_from_any_thread(wait, resolved)

    def _forget_starts(self) -> None:
        """The reader restarts at a later position than that of any current subscription."""
        with self._registry.lock:
            for subscription in self._registry.shared_trie.items():
                subscription.start_offsets = None

    # -- the processors

    def _event_source(self, wants: Callable[[str], bool], *, keep_undecodable: bool) -> EventSource:
        decoder = BusEventDecoder(wants, self._topic.decoding, keep_undecodable=keep_undecodable)
        return EventSource(self._topic.name, decoder)

    def _wanted_in(self, trie: Trie[Subscription]) -> Callable[[str], bool]:
        return lambda topic: bool(self._registry.match(trie, topic))

    def _declare_ephemeral(self) -> Processor[..., Any]:
        async def deliver(event: Event, message: Message[Any]) -> None:
            await self._deliver(event, message)

        deliver.__name__ = self._topic.name
        source = self._event_source(
            self._wanted_in(self._registry.shared_trie), keep_undecodable=True
        )
        # It reads in no group; the name is a label of metrics, and the same after each restart.
        taken = {each.group for each in self._app.processors if self._topic.name in each.topics}
        names = (f"ephemeral-{number}" for number in count(1))
        group = next(name for name in names if name not in taken)
        return self._app.declare(
            deliver,
            ProcessorOptions((source,), group, self._concurrency),
            partial(OwnSubscriptionProcessor, subscribe=self._subscribe_ephemeral),
        )

    def _subscribe_ephemeral(self, connection: Connection) -> EphemeralSubscription:
        self._forget_starts()
        return EphemeralSubscription(connection.log, self._topic.name, self._forget_starts)

    async def _deliver(self, event: Event, message: Message[Any]) -> None:
        """Call every ephemeral subscriber that the event matches; return when all are done.

        :param message: the message of the log that carried it.
        """
        found = self._registry.match(self._registry.shared_trie, event.topic)
        if not found:
            return
        if isinstance(event.data, UndecodableData):
            await report_error(self._error_hook, event.data.error, replace(event, data=None), None)
            return
        receivers = list(by_subscriber(found).values())
        if len(receivers) == 1:
            await self._call_subscriber(found, event, message)
            return
        calls = [self._call_subscriber(each, event, message) for each in receivers]
        for ended in await gather_side_by_side(calls, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def _call_subscriber(
        self, subscriptions: list[Subscription], event: Event, message: Message[Any]
    ) -> None:
        """Call one handler, if one of these subscriptions still wants the event."""
        subscriber = subscriptions[0].subscriber
        try:
            subscriptions = [each for each in subscriptions if await each.joined_before(message)]
            # Checked here and not before: another handler may have unsubscribed this one.
            if any(each.wants(event) for each in subscriptions):
                await call_handler(subscriber.handler, event, asynchronous=subscriber.asynchronous)
        except Exception as error:
            await report_error(self._error_hook, error, event, subscriber.handler)
            if find_config_error(error) is not None:
                raise  # it ends the processor, as in any handler

    def _durable_options(self, subscriber: Subscriber) -> ProcessorOptions:
        def accepts(event: Event) -> bool:
            if not subscriber.has_predicate:
                return True
            found = self._registry.match(subscriber.trie, event.topic)
            return any(each.accepts is None or each.accepts(event) for each in found)

        source = self._event_source(self._wanted_in(subscriber.trie), keep_undecodable=False)
        return ProcessorOptions(
            (source,), subscriber.group or "", filter=accepts, **subscriber.options
        )

    def _durable_handler(self, subscriber: Subscriber) -> Callable[..., Any]:
        """The processor's handler, async or plain like the subscriber's."""
        app, handler = self._app, subscriber.handler

        async def handle_async(event: Event, message: Message[Any]) -> None:
            attach_message(event, message)
            try:
                await call_handler(handler, event, asynchronous=True)
            except Exception as error:
                await report_error(self._error_hook, error, event, handler)
                raise

        def handle_plain(event: Event, message: Message[Any]) -> None:
            attach_message(event, message)
            try:
                result = handler(event)
                if result is not None and hasattr(result, "__await__"):
                    app.wait(result)
            except Exception as error:
                app.wait(report_error(self._error_hook, error, event, handler))
                raise

        wrapped: Callable[..., Any] = handle_async if subscriber.asynchronous else handle_plain
        wrapped.__name__ = callable_name(handler)
        return wrapped

    # -- reading again

    async def read(
        self, topic: str, start: OffsetSpec, end: OffsetSpec, errors: Literal["raise", "skip"]
    ) -> AsyncGenerator[Event, None]:
        """The events that the log holds of a topic or pattern; see
        :meth:`streams.patterns.EventBus.read`."""
        topics: Trie[None] = Trie()
        topics.add(topic, None)
        source = self._event_source(lambda found: bool(topics.match(found)), keep_undecodable=False)
        app = self._app
        reader = partial(TopicReader, app, source, start, end, errors=errors)
        async with await asyncio.to_thread(reader) as reading:
            async for message in reading:
                yield message.value
