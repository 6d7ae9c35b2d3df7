"""A subscription, which is the caller's handle, and the subscriber (the handler) behind it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypedDict

from streams.callables import callable_name
from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.message import Message
from streams.patterns.bus.bus_processor import BusProcessor
from streams.patterns.bus.event import Event
from streams.patterns.bus.handlers import Handler
from streams.patterns.bus.inline_policy import InlinePolicy
from streams.patterns.bus.trie import Trie

EventPredicate = Callable[[Event], bool]


class DurableOptions(TypedDict, total=False):
    """A durable subscriber's options, as :meth:`streams.Streams.processor` has them."""

    start: Start | datetime
    concurrency: int
    timeout: float | None
    retry: Retry
    dedup: Dedup
    dead_letters: DeadLetters
    flow: Flow


class SubscriptionOwner(Protocol):
    """The bus that a subscription belongs to."""

    def remove_subscription(self, subscription: Subscription) -> None:
        """Forget a subscription; its handler is not called again. Any thread."""
        ...

    async def wait_ready(self, subscription: Subscription) -> None:
        """Wait until what is published from now on reaches the subscription."""
        ...


class Subscription:
    """The handle that :meth:`streams.patterns.EventBus.subscribe` returns: call it to unsubscribe.

    Unsubscribing is safe at any time, also from a handler, also twice. No call begins after it;
    one that runs goes on to its end.
    """

    def __init__(
        self,
        bus: SubscriptionOwner,
        topic: str,
        subscriber: Subscriber,
        accepts: EventPredicate | None,
    ) -> None:
        self.topic = topic
        """The topic or pattern that was subscribed to."""
        self.active = True
        """Whether it is still subscribed."""
        self._bus = bus
        self.subscriber = subscriber
        self.accepts = accepts
        """A predicate of the events of its topic that it wants; None: all of them."""
        self.trie_item_id = subscriber.trie.add(topic, self)
        self.start_offsets: concurrent.futures.Future[dict[int, int]] | None = None
        """The end offset of each partition when it joined a reader that was running already."""

    @property
    def handler(self) -> Handler:
        """The handler that is called."""
        return self.subscriber.handler

    @property
    def group(self) -> str | None:
        """The consumer group of a durable subscriber."""
        return self.subscriber.group

    def __call__(self) -> None:
        """Unsubscribe."""
        self._bus.remove_subscription(self)

    async def ready(self) -> None:
        """Wait until every event published from now on, by any process, will be delivered.

        Only a subscriber that joined a running app has to be waited for.

        :raises LogError: the log refuses its group or topics: it gets nothing.
        """
        await self._bus.wait_ready(self)

    async def closed(self) -> None:
        """After unsubscribing, wait until a durable subscriber has finished what it was handling,
        committed it and left its group. Its own handler must not await this."""
        processor = self.subscriber.processor
        if processor is not None and not self.subscriber.active_subscriptions:
            await processor.wait_ended()

    def wants(self, event: Event) -> bool:
        """Whether this subscription still wants this event, which fits its topic."""
        return self.active and (self.accepts is None or self.accepts(event))

    async def joined_before(self, message: Message[Any]) -> bool:
        """Whether an ephemeral subscriber was subscribed before this message was published."""
        if self.start_offsets is None:
            return True
        end_offsets = await asyncio.shield(asyncio.wrap_future(self.start_offsets))
        return message.offset >= end_offsets.get(message.partition, 0)

    def __repr__(self) -> str:
        group = "" if self.group is None else f" group={self.group!r}"
        return f"<Subscription {callable_name(self.handler)} to {self.topic!r}{group}>"


@dataclass(eq=False, slots=True)
class Subscriber:
    """One handler of a bus, in one group or in none, with all its subscriptions.

    It gets one call an event, however many of its subscriptions fit.
    """

    handler: Handler
    group: str | None
    options: DurableOptions
    trie: Trie[Subscription]
    """The trie of its subscriptions: a durable subscriber's own, or the one of all others."""
    asynchronous: bool
    in_thread: bool
    """Whether a plain handler is never called in place."""
    inline_policy: InlinePolicy
    """How fast a plain handler of a local bus is."""
    registry_key: Hashable
    """The key of the subscriber in the registry."""
    active_subscriptions: int = 0
    has_predicate: bool = False
    """Whether one of its subscriptions has ever wanted only some events of its topic."""
    processor: BusProcessor | None = None


def by_subscriber(subscriptions: Iterable[Subscription]) -> dict[Subscriber, list[Subscription]]:
    """Subscriptions grouped by their subscriber, in their order."""
    found: dict[Subscriber, list[Subscription]] = {}
    for each in subscriptions:
        found.setdefault(each.subscriber, []).append(each)
    return found
