"""For users' tests: an app on a private in-memory log, and time in the test's hand.

::

    async def test_totals():
        async with harness(app, clock=Clock()) as h:
            await orders.publish(Order(...))
            await h.settled()
            h.clock.advance(60)          # retries that wait are due now
            await h.settled()
            assert await h.dead(orders, group="totals") == []
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from streams.app import Streams
from streams.clock import SYSTEM
from streams.clock import Clock as ClockProtocol
from streams.config import DeadLetters
from streams.errors import ProcessorDied
from streams.log.protocol import Log
from streams.message import Message
from streams.topic import Topic

__all__ = ["Clock", "Harness", "harness"]

T = TypeVar("T")

_FOR_EVER = 3600.0


class Clock:
    """A clock that moves only when told to.

    :param start: what ``time()`` says at first; 2024-01-01 UTC if not given.
    """

    def __init__(self, start: datetime | None = None) -> None:
        start = start or datetime(2024, 1, 1, tzinfo=timezone.utc)
        if start.tzinfo is None:
            raise ValueError(f"start={start!r} has no time zone")
        self._epoch = start.timestamp()
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[], None]] = {}
        self._ticket = 0

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._elapsed

    def time(self) -> float:
        """Seconds since the epoch: the start plus what was advanced."""
        return self._epoch + self._elapsed

    def now(self) -> datetime:
        """The same as a datetime, UTC."""
        return datetime.fromtimestamp(self.time(), timezone.utc)

    def advance(self, by: float | timedelta) -> None:
        """Let ``by`` (seconds) pass, and wake everything that waits for time."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else float(by)
        if seconds < 0:
            raise ValueError(f"advance({by!r}): time does not go back")
        with self._lock:
            self._elapsed += seconds
            watchers = list(self._watchers.values())
        for moved in watchers:
            moved()

    def timeout(self, seconds: float) -> float:
        """Nothing that waits for this clock comes about by waiting in real time."""
        return 0.0 if seconds <= 0 else _FOR_EVER

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        """Call ``moved`` after every advance; returns the way to stop."""
        with self._lock:
            self._ticket += 1
            ticket = self._ticket
            self._watchers[ticket] = moved

        def stop() -> None:
            with self._lock:
                self._watchers.pop(ticket, None)

        return stop


class Harness:
    """A running app under test. Made by :func:`harness`."""

    def __init__(self, app: Streams, clock: Any) -> None:
        self.app = app
        self.clock = clock
        """The clock the app runs on; ``advance`` it if you gave a :class:`Clock`."""

    async def settled(self, within: float = 30.0) -> None:
        """Wait until everything published is settled.

        What waits for its time (a retry, a delayed message) is not. On the real clock it is waited
        for as far as it is due in time; with a :class:`Clock` this returns, as only the test can
        move that on.

        :param within: real seconds after which the test is told what still runs.
        :raises TimeoutError: something is still running then; at once, where something that waits
            is due later than that.
        :raises ProcessorDied: a processor ended.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + within
        held = isinstance(self.clock, Clock)
        quiet = 0
        while quiet < 2:
            # Twice in a row: what one look saw at rest may have been between two threads.
            busy = await asyncio.to_thread(self._busy)
            due = None if busy or held else self._due()
            quiet = 0 if busy or due is not None else quiet + 1
            if loop.time() > give_up and busy:
                raise TimeoutError(f"after {within:g} s: {busy}")
            if due is not None and loop.time() + due[0] > give_up:
                raise TimeoutError(self._too_late(within, *due))
            await asyncio.sleep(0.001 if due is None else min(max(due[0], 0.001), 0.02))

    def _due(self) -> tuple[float, str] | None:
        """What is due first of all that waits for its time: in how many seconds, and what."""
        found = [
            (due[0], f"processor {processor.name}: {due[1]}")
            for processor in self.app.processors
            if processor._pump is not None
            and not processor.paused
            and (due := processor._pump.due()) is not None
        ]
        return min(found, default=None)

    def _too_late(self, within: float, seconds: float, what: str) -> str:
        at = datetime.fromtimestamp(self.clock.time() + seconds, timezone.utc)
        how = "give settled(within=...) more"
        if self.log.capabilities.clocked:
            how += ", or move time on yourself: harness(app, clock=Clock())"
        return (
            f"settled(within={within:g}): {what}; due in {seconds:.1f} s, at "
            f"{at.isoformat(timespec='seconds')}; {how}"
        )

    def _busy(self) -> str:
        """What is still going on, in words; empty when nothing is."""
        app = self.app
        if app.publisher.busy:
            return "messages are being published"
        for processor in app.processors:
            pump = processor._pump
            if pump is None:
                return f"processor {processor.name} is being started"
            if pump.fatal is not None or pump.ended.is_set():
                why = f"processor {processor.name} ended: {pump.fatal!r}"
                raise ProcessorDied(why) from pump.fatal
            busy = pump.busy()
            if busy and not processor.paused:
                return f"processor {processor.name}: {busy}"
        return self._unowned()

    def _unowned(self) -> str:
        """Which partition has messages for a group of the app that none of its processors has
        taken up yet; empty where there is none."""
        log = self.app.log
        groups: dict[str, tuple[set[str], set[tuple[str, int]]]] = {}
        for processor in self.app.processors:
            pump = processor._pump
            if pump is None or processor.paused:
                continue
            if not (reads := pump.reads(log)) and not pump.owned():
                return f"processor {processor.name}: follows no partition yet"
            topics, owned = groups.setdefault(processor.group, (set(), set()))
            topics.update(reads)
            owned |= pump.owned()
        for group, (topics, owned) in groups.items():
            for topic in topics:
                missing = {
                    partition
                    for partition in range(log.topic(topic).partitions)
                    if (topic, partition) not in owned
                }
                places = log.places(group, topic) if missing else {}
                for partition in missing:
                    first, end = log.bounds(topic, partition)
                    place = places.get(partition)
                    if (first if place is None else max(first, place.position)) < end:
                        return f"group {group}: nobody has taken up {topic}/{partition} yet"
        return ""

    async def messages(self, topic: Topic[T]) -> list[Message[T]]:
        """Everything in a topic, in order of log time."""
        return await asyncio.to_thread(lambda: list(topic.read()))

    async def dead(
        self, topic: Topic[Any], group: str, letters: DeadLetters | None = None
    ) -> list[Message[bytes]]:
        """A group's dead letters of a topic, as they stand: original bytes, error headers."""
        name = (letters or DeadLetters()).name(topic.name, group)
        found: Topic[bytes] = Topic(self.app, name, bytes | None)  # type: ignore[arg-type]
        return await asyncio.to_thread(lambda: list(found.read()))

    @property
    def log(self) -> Log:
        """The log under the app."""
        return self.app.log


@asynccontextmanager
async def harness(
    app: Streams, *, clock: ClockProtocol | None = None, url: str = "memory://"
) -> AsyncIterator[Harness]:
    """Run an app in a test, on a private in-memory log, whatever its URL says.

    :param clock: a :class:`Clock` to hold time in the test's hand; real time if not given.
    :param url: another log to run on.
    """
    before = app._url, app.clock
    app._url = url
    app.clock = SYSTEM if clock is None else clock
    try:
        async with app:
            yield Harness(app, app.clock)
    finally:
        app._url, app.clock = before
