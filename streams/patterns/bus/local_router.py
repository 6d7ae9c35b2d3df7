"""Calling the handlers of a local bus: each event goes to all that want it, without a log.

The subscribers of a topic are looked up once and cached until one subscribes or unsubscribes.
Quick plain handlers are called first and in place, one after the other
(:mod:`streams.patterns.bus.inline_policy`); then async handlers and slow plain ones, side by side.
Each call has a copy of the publisher's context variables, wherever it runs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar, copy_context
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, NamedTuple

from stream_codecs import EncodeError
from streams.message import ID, TYPE, text
from streams.patterns.bus.event import Event
from streams.patterns.bus.handlers import (
    ErrorHook,
    Handler,
    call_handler,
    call_plain,
    inner_cancellation_error,
    report_error,
    without_stop_iteration,
)
from streams.patterns.bus.inline_policy import QUICK_CALL, InlinePolicy
from streams.patterns.bus.subscribers import SubscriberRegistry
from streams.patterns.bus.subscription import Subscriber, Subscription, by_subscriber
from streams.topic import Key, encode_key
from streams.wire import in_utc

runs_beside_others: ContextVar[bool] = ContextVar("streams_bus_beside_others", default=False)
"""Whether this context runs a handler of an event that other handlers were given too."""

MAX_CACHED_TOPICS = 1_024
"""Topics whose subscribers are cached."""

YIELD_AFTER = 0.001
"""Seconds of calls in place after which other tasks get to run."""


class SubscriberMatch(NamedTuple):
    """A handler that wants a topic, with its subscriptions that match."""

    subscriber: Subscriber
    subscription: Subscription
    """The first of its matching subscriptions."""
    subscriptions: Sequence[Subscription]
    is_unfiltered: bool
    """Whether one of them wants all events of the topic."""

    def wants(self, event: Event) -> bool:
        """Whether it still wants this event. Asked just before the call: another handler may have
        unsubscribed it.

        :raises Exception: what a filter raised.
        """
        return any(each.wants(event) for each in self.subscriptions)


class LocalRouter:
    """Delivers the events of a local bus, on the publisher's loop.

    :param error_hook: called for every call that failed.
    """

    def __init__(self, name: str, registry: SubscriberRegistry, error_hook: ErrorHook) -> None:
        self._name = name
        self._registry = registry
        self._error_hook = error_hook
        self._matches: dict[str, Sequence[SubscriberMatch]] = {}
        self._yielded_at = 0.0
        """When other tasks last ran on the loop."""
        self.timer: Callable[[], float] = perf_counter

    def has_delivered(self, topic: str) -> bool:
        """Whether an event of this topic was delivered, so that the topic is known to be valid."""
        return type(topic) is str and topic in self._matches

    def invalidate(self) -> None:
        """Drop the cache: a handler was subscribed or unsubscribed (the lock is held)."""
        self._matches = {}

    def on_subscribed(self, subscription: Subscription) -> None:
        """A handler was subscribed (the lock is held)."""
        self.invalidate()

    on_unsubscribed = on_subscribed

    async def publish(
        self,
        topic: str,
        data: Any,
        key: Key | None,
        id: str,
        headers: dict[str, str],
        timestamp: datetime | None,
    ) -> None:
        """Publish an event; returns when every handler it matches has returned or failed.

        :raises EncodeError: an event cannot have this key, ID or time.
        """
        key_bytes = encode_key(self._name, key)
        if not isinstance(id, str) or not id or "\0" in id:
            raise EncodeError(f"event ID {id!r}: a non-empty str without NUL")
        if timestamp is None:
            timestamp = datetime.now(timezone.utc)
        elif not isinstance(timestamp, datetime) or timestamp.tzinfo is None:
            raise EncodeError(f"timestamp {timestamp!r}: a datetime with a time zone")
        event = Event(
            topic=topic,
            data=data,
            id=id,
            key=None if key_bytes is None else text(key_bytes),
            timestamp=in_utc(timestamp),
            headers=headers | {ID: id, TYPE: topic},
        )
        if runs_beside_others.get():
            # Other handlers of the event that this one follows from must get that event first.
            await asyncio.sleep(0)
        await self.deliver(event)

    def _find_matches(self, topic: str) -> Sequence[SubscriberMatch]:
        """The handlers that want a topic, in the order in which they subscribed."""
        with self._registry.lock:
            subscriptions = by_subscriber(self._registry.shared_trie.match(topic))
            found = tuple(
                SubscriberMatch(receiver, each[0], each, len(each) == 1 and each[0].accepts is None)
                for receiver, each in subscriptions.items()
            )
            if len(self._matches) >= MAX_CACHED_TOPICS:
                self._matches = {}
            self._matches[topic] = found
        return found

    async def deliver(self, event: Event) -> None:
        """Call all handlers that want the event; return when all have returned or failed."""
        matches = self._matches.get(event.topic)
        if matches is None:
            matches = self._find_matches(event.topic)
        if not matches:
            return
        other_calls: list[Coroutine[Any, Any, None]] = []
        thread_calls: list[ThreadCall] = []
        is_shared = len(matches) > 1
        context = copy_context()
        if is_shared:
            context.run(runs_beside_others.set, True)
        timer = self.timer
        before = timer()
        for each in matches:
            subscriber, subscription, _, is_unfiltered = each
            inline_policy, handler = subscriber.inline_policy, subscriber.handler
            if subscriber.asynchronous:
                other_calls.append(self._call_handler(each, event, None))
                continue
            if not inline_policy.runs_inline or inline_policy.in_threads:
                thread = ThreadCall(inline_policy, timer)
                thread_calls.append(thread)
                other_calls.append(self._call_handler(each, event, thread))
                continue
            try:
                if not (subscription.active if is_unfiltered else each.wants(event)):
                    continue
                result = context.copy().run(handler, event)
            except Exception as error:
                other_calls.append(
                    report_error(
                        self._error_hook, without_stop_iteration(handler, error), event, handler
                    )
                )
            except asyncio.CancelledError as error:
                failure = inner_cancellation_error(handler)
                failure.__cause__ = error
                other_calls.append(report_error(self._error_hook, failure, event, handler))
            else:
                if result is not None and inspect.isawaitable(result):
                    other_calls.append(self._await_result(result, event, handler))
            inline_policy.inline_calls += 1
            now = timer()
            if now - before > QUICK_CALL:
                inline_policy.record_slow_call(now - before)
            before = now
        if other_calls:
            try:
                await (gather_side_by_side(other_calls) if is_shared else other_calls[0])
            finally:
                for thread in thread_calls:
                    thread.abandon()
            self._yielded_at = timer()
        elif before - self._yielded_at > YIELD_AFTER:
            # Nothing was awaited, and the publisher may go on without awaiting anything either.
            await asyncio.sleep(0)
            self._yielded_at = timer()

    async def _call_handler(
        self, match: SubscriberMatch, event: Event, thread: ThreadCall | None
    ) -> None:
        """Call one handler on the loop or in a thread, if it still wants the event."""
        handler = match.subscriber.handler
        try:
            if match.wants(event):
                if thread is None:
                    await call_handler(handler, event, asynchronous=True)
                else:
                    await call_handler(handler, event, asynchronous=False, in_thread=thread.run)
        except Exception as error:
            await report_error(self._error_hook, error, event, handler)

    async def _await_result(self, result: Awaitable[Any], event: Event, handler: Handler) -> None:
        """Await what a plain handler returned: it is a lambda around a coroutine function."""

        async def await_result(_: Event) -> None:
            await result

        try:
            await call_handler(await_result, event, asynchronous=True)
        except Exception as error:
            await report_error(self._error_hook, error, event, handler)


async def gather_side_by_side(
    calls: Sequence[Awaitable[None]], *, return_exceptions: bool = False
) -> Sequence[BaseException | None]:
    """Run calls for one event side by side; see ``asyncio.gather``."""
    return await asyncio.gather(*map(_beside_others, calls), return_exceptions=return_exceptions)


async def _beside_others(coroutine: Awaitable[None]) -> None:
    runs_beside_others.set(True)
    await coroutine


class ThreadCall:
    """One call of a plain handler in a worker thread. It is pending from the decision to make it
    until it has ended in its thread, whether or not a task still waits for it."""

    def __init__(self, inline_policy: InlinePolicy, timer: Callable[[], float]) -> None:
        self._inline_policy = inline_policy
        self._timer = timer
        self._started = False
        self._cancelled = False
        self._duration: float | None = None
        inline_policy.in_threads += 1

    async def run(self, handler: Handler, event: Event) -> Any:
        """Call the handler, and record how long it took."""
        self._started = True
        loop = asyncio.get_running_loop()
        context = copy_context()
        future: asyncio.Future[Any] = loop.run_in_executor(
            None, lambda: context.run(self._call_timed, handler, event)
        )
        future.add_done_callback(self._on_thread_done)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._cancelled = True
            raise

    def abandon(self) -> None:
        """Its caller does not wait for it any more; if it has not begun, it never will."""
        if not self._started:
            self._started = True
            self._inline_policy.in_threads -= 1

    def _call_timed(self, handler: Handler, event: Event) -> Any:
        if self._cancelled:
            return None  # abandoned before a thread was free
        started_at = self._timer()
        try:
            return call_plain(handler, event)
        finally:
            self._duration = self._timer() - started_at

    def _on_thread_done(self, future: asyncio.Future[Any]) -> None:
        self._inline_policy.in_threads -= 1
        if self._duration is not None:
            self._inline_policy.record_thread_call(self._duration)
        if not future.cancelled():
            future.exception()  # its caller may be gone
