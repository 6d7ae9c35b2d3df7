"""Who is subscribed: the handle a subscriber holds, and the handler behind it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Hashable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.message import Message
from streams.patterns.arguments import callable_name
from streams.patterns.bus.bus_processor import BusProcessor
from streams.patterns.bus.event import Event
from streams.patterns.bus.handlers import Handler
from streams.patterns.bus.inline_policy import InlinePolicy
from streams.patterns.bus.trie import Trie

if TYPE_CHECKING:
    from streams.patterns.bus.bus import EventBus

EventPredicate = Callable[[Event], bool]


class DurableOptions(TypedDict, total=False):
    """What a durable subscriber may say, as :meth:`streams.Streams.processor` has it."""

    start: Start | datetime
    concurrency: int
    timeout: float | None
    retry: Retry
    dedup: Dedup
    dead_letters: DeadLetters
    flow: Flow


class Subscription:
    """What :meth:`EventBus.subscribe` returns: call it to unsubscribe.

    Unsubscribing is safe at any time, also from a handler, also twice. No call begins after it;
    one that runs goes on to its end.
    """

    def __init__(
        self, bus: EventBus, topic: str, subscriber: Subscriber, accepts: EventPredicate | None
    ) -> None:
        self.topic = topic
        """The topic or pattern that was subscribed to."""
        self.active = True
        """It was not unsubscribed."""
        self._bus = bus
        self.subscriber = subscriber
        self.accepts = accepts
        """What it wants of what fits its topic; None: everything."""
        self.trie_item_id = 0
        self.start_offsets: concurrent.futures.Future[dict[int, int]] | None = None
        """Where each partition ended when it joined a reading that was under way already."""

    @property
    def handler(self) -> Handler:
        """What is called."""
        return self.subscriber.handler

    @property
    def group(self) -> str | None:
        """The consumer group of a durable subscriber."""
        return self.subscriber.group

    def __call__(self) -> None:
        """Unsubscribe."""
        self._bus.remove_subscription(self)

    async def ready(self) -> None:
        """Wait until everything published from now on, by anybody, will be delivered.

        Only a subscriber that joined a running app has to be waited for.

        :raises LogError: the log refuses its group or topics: it gets nothing.
        """
        await self._bus.wait_ready(self)

    async def closed(self) -> None:
        """After unsubscribing, wait until a durable subscriber has finished what it was handling,
        committed it and left its group. Not to be awaited by its own handler."""
        processor = self.subscriber.processor
        if processor is not None and not self.subscriber.active_subscriptions:
            await processor.wait_ended()

    def wants(self, event: Event) -> bool:
        """Whether this subscription still wants this event, which fits its topic."""
        return self.active and (self.accepts is None or self.accepts(event))

    async def joined_before(self, message: Message[Any]) -> bool:
        """Whether an ephemeral subscriber was there when this was published."""
        if self.start_offsets is None:
            return True
        end_offsets = await asyncio.shield(asyncio.wrap_future(self.start_offsets))
        return message.offset >= end_offsets.get(message.partition, 0)

    def __repr__(self) -> str:
        group = "" if self.group is None else f" group={self.group!r}"
        return f"<Subscription {callable_name(self.handler)} to {self.topic!r}{group}>"


class Subscriber:
    """One handler of a bus, in one group or in none, with everything it is subscribed to.

    It gets one call an event, however many of its subscriptions fit.
    """

    def __init__(
        self,
        handler: Handler,
        group: str | None,
        options: DurableOptions,
        trie: Trie[Subscription],
        *,
        asynchronous: bool,
        in_thread: bool = False,
    ) -> None:
        self.handler = handler
        self.group = group
        self.options = options
        self.trie = trie
        """Where its subscriptions are: a durable one's own, the others' together."""
        self.asynchronous = asynchronous
        self.in_thread = in_thread
        """A plain handler that is never called in place."""
        self.inline_policy = InlinePolicy(threads_only=in_thread)
        """How quick a plain handler of a local bus is."""
        self.registry_key: Hashable = None
        """Under which the bus finds it."""
        self.active_subscriptions = 0
        """Its active subscriptions."""
        self.has_predicate = False
        """One of its subscriptions, at some time, wanted not all of what fits its topic."""
        self.processor: BusProcessor | None = None
