"""Calling the handlers of a local bus: each event at everybody who wants it, without a log between.

Who wants a topic is looked up once and kept until somebody subscribes or unsubscribes. Of those,
quick plain handlers are called first and in place, one after the other
(:mod:`streams.patterns.bus.pace`); then async handlers and slow plain ones, side by side. Each call
has a copy of the publisher's context variables, wherever it runs.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar, copy_context
from time import perf_counter
from typing import Any, NamedTuple

from streams.patterns.bus.calling import (
    ErrorHook,
    Handler,
    call,
    call_plain,
    cancelled_from_within,
    report,
    tellable,
)
from streams.patterns.bus.event import Event
from streams.patterns.bus.pace import QUICK, Pace
from streams.patterns.bus.subscription import Receiver, Subscription
from streams.patterns.bus.trie import Trie

__all__ = ["Locally", "beside_others"]

beside_others: ContextVar[bool] = ContextVar("streams_bus_beside_others", default=False)
"""A handler runs here, and others were given the same event."""

TOPICS = 1_024
"""Topics of which it is kept who wants them."""

BREATH = 0.001
"""Seconds of calls in place after which whoever else is on the loop has a turn."""


class Wanting(NamedTuple):
    """A handler that wants a topic, and by which of its subscriptions."""

    receiver: Receiver
    subscription: Subscription
    """The first of them."""
    subscriptions: Sequence[Subscription]
    simple: bool
    """There is one, and it wants all of the topic."""

    def takes(self, event: Event) -> bool:
        """Whether it still wants this event. Asked just before the call: another handler may have
        unsubscribed it.

        :raises Exception: what a filter raised.
        """
        return any(each.takes(event) for each in self.subscriptions)


class Locally:
    """Delivers the events of a local bus, on the loop of whoever publishes.

    :param lock: the bus's, held while ``trie`` changes.
    :param hook: told of every call that failed.
    """

    def __init__(self, lock: threading.Lock, trie: Trie[Subscription], hook: ErrorHook) -> None:
        self._lock = lock
        self._trie = trie
        self._hook = hook
        self._wanting: dict[str, Sequence[Wanting]] = {}
        self._rested = 0.0
        """When others had their turn on the loop."""
        self.timer: Callable[[], float] = perf_counter

    def knows(self, topic: str) -> bool:
        """An event of this topic was delivered, so it can be one's topic."""
        return type(topic) is str and topic in self._wanting

    def changed(self) -> None:
        """Somebody subscribed or unsubscribed (the lock is held)."""
        self._wanting = {}

    def _who(self, topic: str) -> Sequence[Wanting]:
        """Who wants a topic, in the order in which they subscribed."""
        with self._lock:
            fitting: dict[Receiver, list[Subscription]] = {}
            for subscription in self._trie.match(topic):
                fitting.setdefault(subscription._receiver, []).append(subscription)
            found = tuple(
                Wanting(receiver, each[0], each, len(each) == 1 and each[0].accepts is None)
                for receiver, each in fitting.items()
            )
            if len(self._wanting) >= TOPICS:
                self._wanting = {}
            self._wanting[topic] = found
        return found

    async def deliver(self, event: Event) -> None:
        """Call everybody who wants the event; return when all have returned or failed."""
        wanting = self._wanting.get(event.topic)
        if wanting is None:
            wanting = self._who(event.topic)
        if not wanting:
            return
        rest: list[Coroutine[Any, Any, None]] = []
        threaded: list[ThreadCall] = []
        several = len(wanting) > 1
        context = copy_context()
        if several:
            context.run(beside_others.set, True)
        timer = self.timer
        before = timer()
        for each in wanting:
            receiver, subscription, _, simple = each
            pace, handler = receiver.pace, receiver.handler
            if receiver.asynchronous:
                rest.append(self._call(each, event, None))
                continue
            if not pace.in_place or pace.pending:
                thread = ThreadCall(pace, timer)
                threaded.append(thread)
                rest.append(self._call(each, event, thread))
                continue
            try:
                if not (subscription.active if simple else each.takes(event)):
                    continue
                result = context.copy().run(handler, event)
            except Exception as error:
                rest.append(report(self._hook, tellable(handler, error), event, handler))
            except asyncio.CancelledError as error:
                failure = cancelled_from_within(handler)
                failure.__cause__ = error
                rest.append(report(self._hook, failure, event, handler))
            else:
                if result is not None and inspect.isawaitable(result):
                    rest.append(self._awaited(result, event, handler))
            pace.calls += 1
            now = timer()
            if now - before > QUICK:
                pace.slow(now - before)
            before = now
        if rest:
            try:
                await (gather_beside(rest) if several else rest[0])
            finally:
                for thread in threaded:
                    thread.over()
            self._rested = timer()
        elif before - self._rested > BREATH:
            # Nothing was waited for, and whoever publishes may go on without waiting either.
            await asyncio.sleep(0)
            self._rested = timer()

    async def _call(self, wanting: Wanting, event: Event, thread: ThreadCall | None) -> None:
        """Call one handler on the loop or in a thread, if it still wants the event."""
        handler = wanting.receiver.handler
        try:
            if wanting.takes(event):
                if thread is None:
                    await call(handler, event, asynchronous=True)
                else:
                    await call(handler, event, asynchronous=False, plainly=thread.run)
        except Exception as error:
            await report(self._hook, error, event, handler)

    async def _awaited(self, result: Awaitable[Any], event: Event, handler: Handler) -> None:
        """Await what a plain handler returned: it is a lambda around a coroutine function."""

        async def given(_: Event) -> None:
            await result

        try:
            await call(given, event, asynchronous=True)
        except Exception as error:
            await report(self._hook, error, event, handler)


async def gather_beside(works: Sequence[Awaitable[None]]) -> None:
    """Do all of it side by side."""
    await asyncio.gather(*map(_beside, works))


async def _beside(work: Awaitable[None]) -> None:
    beside_others.set(True)
    await work


class ThreadCall:
    """One call of a plain handler in a worker thread. It is pending from the moment that it was
    decided on until it has ended in its thread, whether or not anybody still waits for it."""

    def __init__(self, pace: Pace, timer: Callable[[], float]) -> None:
        self._pace = pace
        self._timer = timer
        self._begun = False
        self._cancelled = False
        self._took: float | None = None
        pace.pending += 1

    async def run(self, handler: Handler, event: Event) -> Any:
        """Call the handler, and note how long it took."""
        self._begun = True
        loop = asyncio.get_running_loop()
        context = copy_context()
        future: asyncio.Future[Any] = loop.run_in_executor(
            None, lambda: context.run(self._timed, handler, event)
        )
        future.add_done_callback(self._ended)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._cancelled = True
            raise

    def over(self) -> None:
        """Nobody waits for it any more; if it was never begun, it never will be."""
        if not self._begun:
            self._begun = True
            self._pace.pending -= 1

    def _timed(self, handler: Handler, event: Event) -> Any:
        if self._cancelled:
            return None  # before a thread was free
        began = self._timer()
        try:
            return call_plain(handler, event)
        finally:
            self._took = self._timer() - began

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._pace.pending -= 1
        if self._took is not None:
            self._pace.threaded(self._took)
        if not future.cancelled():
            future.exception()  # whoever waited may be gone
