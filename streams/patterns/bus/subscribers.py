"""The subscriptions of a bus, found by handler, by group and by topic."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from streams.callables import callable_name
from streams.errors import ConfigError
from streams.patterns.bus.handlers import Handler
from streams.patterns.bus.inline_policy import InlinePolicy
from streams.patterns.bus.subscription import DurableOptions, Subscriber, Subscription
from streams.patterns.bus.trie import Trie


class SubscriberRegistry:
    """A bus's subscribers. A method that does not say that it takes the lock is called under it.

    :param groups_apart: each durable subscriber has its own trie, in which its own processor looks
        up topics; else all subscriptions are in one.
    """

    def __init__(self, *, groups_apart: bool) -> None:
        self.lock = threading.Lock()
        self.shared_trie: Trie[Subscription] = Trie()
        """All subscriptions of a local bus, or the ephemeral ones of a bus over a log."""
        self._groups_apart = groups_apart
        self.subscribers: dict[Hashable, Subscriber] = {}
        self.by_group: dict[str, Subscriber] = {}

    def match(self, trie: Trie[Subscription], topic: str) -> list[Subscription]:
        """The subscriptions in a trie that a topic fits (takes the lock)."""
        with self.lock:
            return trie.match(topic)

    def get_or_add(
        self,
        handler: Handler,
        group: str | None,
        options: DurableOptions,
        *,
        asynchronous: bool,
        in_thread: bool,
    ) -> Subscriber:
        """The subscriber of this handler in this group; a new one if there is none.

        :raises ConfigError: it has other options, or the group has another handler.
        """
        try:
            key: Hashable = (group, handler)
            subscriber = self.subscribers.get(key)
        except TypeError:  # a callable that cannot be hashed
            key = (group, id(handler))
            subscriber = self.subscribers.get(key)
        name = callable_name(handler)
        if subscriber is not None:
            if (options and options != subscriber.options) or in_thread > subscriber.in_thread:
                raise ConfigError(
                    f"group {group!r}: {name} is subscribed with other options already"
                )
            return subscriber
        if group in self.by_group:
            raise ConfigError(
                f"group {group!r} has a handler already, "
                f"{callable_name(self.by_group[group].handler)}; give {name} a group of its own"
            )
        own_trie = group is not None and self._groups_apart
        trie: Trie[Subscription] = Trie() if own_trie else self.shared_trie
        subscriber = self.subscribers[key] = Subscriber(
            handler, group, options, trie, asynchronous, in_thread,
            InlinePolicy(threads_only=in_thread), key,
        )  # fmt: skip
        if group is not None:
            self.by_group[group] = subscriber
        return subscriber

    def remove(self, subscription: Subscription) -> None:
        """Forget an active subscription, and its subscriber if that was the last one."""
        subscription.active = False
        subscriber = subscription.subscriber
        subscriber.active_subscriptions -= 1
        if subscriber.active_subscriptions or subscriber.trie is self.shared_trie:
            # The last subscription of a durable subscriber stays in the trie: an event without a
            # match would count as settled, and one may be on its way to the subscriber.
            subscriber.trie.remove(subscription.topic, subscription.trie_item_id)
        if not subscriber.active_subscriptions:
            del self.subscribers[subscriber.registry_key]
            if subscriber.group is not None:
                del self.by_group[subscriber.group]
