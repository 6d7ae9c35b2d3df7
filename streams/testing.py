"""For users' tests: an app on a private in-memory log, and a clock that the test controls.

::

    async def test_totals():
        async with harness(app, clock=Clock()) as h:
            await orders.publish(Order(...))
            await h.settled()
            h.clock.advance(60)          # delayed retries are due now
            await h.settled()
            assert await h.dead(orders, group="totals") == []

Decisions of an aggregate are tested without a log, with :func:`given`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol, TypeVar

from streams.app import Streams
from streams.clock import SYSTEM
from streams.clock import Clock as ClockProtocol
from streams.config import DeadLetters
from streams.errors import ConfigError, ProcessorDied
from streams.eventsourcing import Given, When, given
from streams.log.protocol import Log, TopicPartition
from streams.message import Message
from streams.topic import Topic

__all__ = ["Clock", "Given", "Harness", "When", "given", "harness"]

T = TypeVar("T")

_LONGEST_WAIT = 3600.0


class Clock:
    """A clock that moves only when :meth:`advance` is called.

    :param start: the first result of ``time()``; 2024-01-01 UTC by default.
    """

    def __init__(self, start: datetime | None = None) -> None:
        start = start or datetime(2024, 1, 1, tzinfo=timezone.utc)
        if start.tzinfo is None:
            raise ValueError(f"start={start!r} has no time zone")
        self._epoch = start.timestamp()
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[], None]] = {}
        self._last_watcher = 0

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._elapsed

    def time(self) -> float:
        """Seconds since the epoch: the start plus the seconds advanced."""
        return self._epoch + self._elapsed

    def now(self) -> datetime:
        """The same as a datetime, UTC."""
        return datetime.fromtimestamp(self.time(), timezone.utc)

    def advance(self, by: float | timedelta) -> None:
        """Let ``by`` (seconds) pass, and wake all waiters for time."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else float(by)
        if seconds < 0:
            raise ValueError(f"advance({by!r}): time does not go back")
        with self._lock:
            self._elapsed += seconds
            watchers = list(self._watchers.values())
        for callback in watchers:
            callback()

    def real_timeout(self, seconds: float) -> float:
        """Practically forever: this clock does not move while real time passes."""
        return 0.0 if seconds <= 0 else _LONGEST_WAIT

    def on_jump(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after every advance; returns a function that ends this."""
        with self._lock:
            self._last_watcher += 1
            watcher = self._last_watcher
            self._watchers[watcher] = callback

        def stop() -> None:
            with self._lock:
                self._watchers.pop(watcher, None)

        return stop


class HasTopic(Protocol[T]):
    """An object that is based on a topic, such as a declared queue."""

    @property
    def topic(self) -> Topic[T]:
        """The topic."""
        ...


def _topic_of(given: Topic[T] | HasTopic[T], method: str) -> Topic[T]:
    """:raises ConfigError: ``given`` is not a topic and is not based on one."""
    found = given if isinstance(given, Topic) else getattr(given, "topic", None)
    if not isinstance(found, Topic):
        raise ConfigError(
            f"{method}({given!r}): a topic as app.topic(...) returns it, or a queue as "
            "queue.declare(...) does; of a queue by name, queue.topic(name)"
        )
    return found


class Harness:
    """A running app under test. Made by :func:`harness`."""

    def __init__(self, app: Streams, clock: Any) -> None:
        self.app = app
        self.clock = clock
        """The app's clock; ``advance`` it if you gave a :class:`Clock`."""

    async def settled(self, within: float = 30.0) -> None:
        """Wait until every published message is settled.

        A message that is not due yet (a retry, a delayed message) is not settled. On the real
        clock, this waits for it if it is due in time; with a :class:`Clock` this returns, as only
        the test can advance that.

        :param within: real seconds after which a TimeoutError says what is still running.
        :raises TimeoutError: messages are not settled within that time; raised at once if a
            waiting message is due later than that.
        :raises ProcessorDied: a processor ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        manual_clock = isinstance(self.clock, Clock)
        idle_rounds = 0
        while idle_rounds < 2:
            # It must be idle twice in a row: a message between two threads is seen by neither.
            busy = await asyncio.to_thread(self._unfinished)
            due = None if busy or manual_clock else self._next_due()
            idle_rounds = 0 if busy or due is not None else idle_rounds + 1
            if loop.time() > deadline and busy:
                raise TimeoutError(f"after {within:g} s: {busy}")
            if due is not None and loop.time() + due[0] > deadline:
                raise TimeoutError(self._due_too_late_message(within, *due))
            await asyncio.sleep(0.001 if due is None else min(max(due[0], 0.001), 0.02))

    def _next_due(self) -> tuple[float, str] | None:
        """The work that is due next: in how many seconds, and a description."""
        found = [
            (due[0], f"processor {processor.name}: {due[1]}")
            for processor in self.app.processors
            if processor.poller is not None
            and not processor.paused
            and (due := processor.poller.next_due()) is not None
        ]
        return min(found, default=None)

    def _due_too_late_message(self, within: float, seconds: float, what: str) -> str:
        due_at = datetime.fromtimestamp(self.clock.time() + seconds, timezone.utc)
        advice = "give settled(within=...) more"
        if self.log.capabilities.uses_app_clock:
            advice += ", or move time on yourself: harness(app, clock=Clock())"
        return (
            f"settled(within={within:g}): {what}; due in {seconds:.1f} s, at "
            f"{due_at.isoformat(timespec='seconds')}; {advice}"
        )

    def _unfinished(self) -> str:
        """The work that is still in progress, in words; empty: none is."""
        app = self.app
        if app.publisher.has_pending:
            return "messages are being published"
        for processor in app.processors:
            poller = processor.poller
            if poller is None:
                return f"processor {processor.name} is being started"
            if poller.fatal is not None or poller.ended.is_set():
                message = f"processor {processor.name} ended: {poller.fatal!r}"
                raise ProcessorDied(message) from poller.fatal
            busy = poller.describe_pending_work()
            if busy and not processor.paused:
                return f"processor {processor.name}: {busy}"
        for view in app.views.values():
            if building := view.describe_pending_work():
                return building
        return self._unassigned_partition()

    def _unassigned_partition(self) -> str:
        """A partition with messages for a group of the app that none of its processors owns yet, in
        words; empty: there is none."""
        log = self.app.log
        groups: dict[str, tuple[set[str], set[TopicPartition]]] = {}
        for processor in self.app.processors:
            poller = processor.poller
            if poller is None or processor.paused:
                continue
            if not (reads := poller.subscribed_topics(log)) and not poller.owned_partitions():
                return f"processor {processor.name}: follows no partition yet"
            topics, owned = groups.setdefault(processor.group, (set(), set()))
            topics.update(reads)
            owned |= poller.owned_partitions()
        for group, (topics, owned) in groups.items():
            for topic in topics:
                missing = {
                    partition
                    for partition in range(log.describe_topic(topic).partitions)
                    if (topic, partition) not in owned
                }
                committed = log.committed(group, topic) if missing else {}
                for partition in missing:
                    first, end = log.watermarks(topic, partition)
                    position = committed.get(partition)
                    if (first if position is None else max(first, position.position)) < end:
                        return f"group {group}: no member owns {topic}/{partition} yet"
        return ""

    async def messages(self, topic: Topic[T] | HasTopic[T]) -> list[Message[T]]:
        """All messages in a topic, in order of log time.

        :param topic: a topic, or a queue as :meth:`streams.MessageQueue.declare` returns it.
        :raises ConfigError: it is neither.
        """
        found = _topic_of(topic, "messages")
        return await asyncio.to_thread(lambda: list(found.read()))

    async def dead(
        self,
        topic: Topic[Any] | HasTopic[Any],
        group: str | None = None,
        letters: DeadLetters | str | None = None,
    ) -> list[Message[bytes]]:
        """A group's dead letters of a topic, unchanged: original bytes, error headers.

        :param topic: a topic, or a queue as :meth:`streams.MessageQueue.declare` returns it.
        :param group: the group; for a queue it is the queue's name, and may be left out.
        :param letters: the name of the dead letter topic, or the ``DeadLetters`` that names it.
            Default: the ones of this group's processors in the app, else the default topic.
        :raises ConfigError: an argument has another type.
        :raises NotFound: there is no such topic in the log.
        """
        source = _topic_of(topic, "dead")
        if group is None and source is not topic:
            group = source.name
        if not isinstance(group, str):
            raise ConfigError(
                f"dead({source.name!r}, {group!r}): the group whose dead letters it is about, a "
                "str; only a queue's may be left out"
            )
        names = self._dead_letter_topics(source.name, group, letters)
        found = [Topic[Any](self.app, name, bytes | None) for name in names]
        return await asyncio.to_thread(lambda: [each for topic in found for each in topic.read()])

    def _dead_letter_topics(self, topic: str, group: str, letters: object) -> list[str]:
        """The names of the topics that hold a group's dead letters."""
        if isinstance(letters, str):
            return [letters]
        if letters is None:
            configured = [
                processor.options.dead_letters
                for processor in self.app.processors
                if processor.group == group and topic in processor.topics
            ] or [DeadLetters()]
        elif isinstance(letters, DeadLetters):
            configured = [letters]
        else:
            raise ConfigError(
                f"dead({topic!r}, {group!r}, {letters!r}): the dead letter topic's name, or "
                "DeadLetters(...)"
            )
        return list(dict.fromkeys(each.name(topic, group) for each in configured))

    @property
    def log(self) -> Log:
        """The log under the app."""
        return self.app.log


@asynccontextmanager
async def harness(
    app: Streams,
    *,
    clock: ClockProtocol | None = None,
    url: str = "memory://",
    relay: bool = False,
) -> AsyncIterator[Harness]:
    """Run an app in a test, on a private in-memory log, whatever its URL says.

    :param clock: a :class:`Clock` that the test controls; real time by default.
    :param url: the URL of another log to run on.
    :param relay: also relay the rows of the app's outboxes to that log, and delete them: only for
        databases that belong to the test.
    """
    before = app.given_url, app.clock, app.services, app.url_warning_logged
    app.given_url = url
    app.url_warning_logged = True  # the test chose the log, whatever the environment says
    if not relay:
        relays = [getattr(outbox, "relay", None) for outbox in app.outboxes.values()]
        app.services = [each for each in app.services if each not in relays]
    app.clock = SYSTEM if clock is None else clock
    try:
        async with app:
            yield Harness(app, app.clock)
    finally:
        app.given_url, app.clock, app.services, app.url_warning_logged = before
