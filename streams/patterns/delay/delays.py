"""Delayed delivery: publish now, delivered when due."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from uuid_utils import uuid7

from streams.cancellation import run_in_thread
from streams.errors import ConfigError, InvalidValue
from streams.log.names import check_topic
from streams.log.protocol import Log
from streams.log.range_reader import read_batches
from streams.message import Position, Record
from streams.numbers import is_seconds
from streams.patterns.arguments import check_app, check_int, check_timeout
from streams.retries import (
    LATEST_DUE,
    PENDING_LIMIT,
    DelayStats,
    Outcome,
    cancel_record,
    declare_scheduler,
    ensure_delay_topic,
    entry_record,
    parse_outcome,
    read_mark,
)
from streams.topic import Topic
from streams.wire import utc_from_seconds

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.topic import Key

T = TypeVar("T")

Delay = float | timedelta

PartitionCount = Callable[[Log], int]
"""How many partitions a delay topic gets if it is created; blocks."""


class Scheduled(NamedTuple):
    """A message that was accepted for later delivery."""

    id: str
    """Its message ID, by which it can be cancelled."""
    due: datetime
    position: Position
    """Its position in the delay topic."""


class Delays:
    """Delivers messages to topics of an app when they are due.

    Declared on an app, it is one of its processors: every process that runs the app delivers, and
    the processes share the partitions. Messages are due in order within a partition of the delay
    topic, and are written to their topic under their own ID, key and headers.

    :param app: the app whose declared topics messages may go to, no others.
    :param name: the delay topic, and the group that keeps it.
    :param partitions: how many the delay topic has if it is created here; 1 if not given.
    :param pending: messages of a partition whose due times are held in memory at once (about 150
        bytes each); for the rest the log is read again shortly before they are due.
    :raises ConfigError: any of these cannot work.
    """

    def __init__(
        self,
        app: Streams,
        name: str = "delays",
        *,
        partitions: int | None = None,
        pending: int = PENDING_LIMIT,
    ) -> None:
        check_app(app, "Delays")
        for option, value in (("partitions", partitions), ("pending", pending)):
            if value is not None:
                check_int("Delays", option, value)
        self.name = check_topic(name)
        self._app = app
        self._partitions: PartitionCount = lambda log: partitions or 1
        self._client = DelayClient(app)
        allowed = app.topics.__contains__
        self._scheduler = declare_scheduler(app, self.name, self._partitions, allowed, pending)

    def __repr__(self) -> str:
        return f"<Delays {self.name!r}>"

    async def publish(
        self,
        topic: Topic[T],
        value: T,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
    ) -> Scheduled:
        """Publish a value to ``topic`` later; returns once that is durable.

        An entry with an ID that is pending already replaces it: new time, new value.

        :param delay: after this many seconds (or a timedelta).
        :param at: at this time, with a time zone; give one of the two.
        :raises InvalidValue: the time is not valid.
        :raises ConfigError: the topic is another app's.
        :raises EncodeError: the value does not fit the topic's type; nothing was written.
        :raises LogError: as :meth:`streams.Topic.publish`.
        """
        if not isinstance(topic, Topic):
            raise ConfigError(f"{self.name}: {topic!r} is not a topic; use app.topic(...)")
        if self._app.topics.get(topic.name) is None or topic.connection is not self._app:
            raise ConfigError(f"{self.name}: topic {topic.name!r} is not declared on this app")
        due = due_at(self._app.clock.time(), delay, at)
        record = topic.record(value, key=key, id=id, headers=headers, timestamp=timestamp)
        return await self._client.schedule(self.name, self._partitions, topic.name, record, due)

    async def cancel(self, id: str, *, within: float = 30.0) -> Outcome:
        """Request that a message is not delivered; the answer says whether that succeeded.

        ``"cancelled"``: it is not delivered. ``"delivered"``: it was too late. ``"dead"``: it
        could not be delivered and is a dead letter. ``"unknown"``: no such message is pending, nor
        was among the last 10,000 or so.

        :param within: seconds to wait for an answer.
        :raises TimeoutError: no processor answered; the request is in the log, and may be answered
            later.
        :raises LogError: the request could not be written.
        """
        return await self._client.cancel(self.name, self._partitions, id, within)

    def stats(self) -> DelayStats:
        """The counts of pending messages and of those delivered in this process."""
        return self._scheduler.delay_stats()


class DelayClient:
    """Writes delayed messages and requests to cancel them."""

    def __init__(self, app: Streams) -> None:
        self._app = app
        self._ensured_topics: WeakKeyDictionary[Log, set[str]] = WeakKeyDictionary()

    async def schedule(
        self, name: str, count: PartitionCount, topic: str, record: Record, due: int
    ) -> Scheduled:
        """Write an entry to the delay topic ``name``."""
        await self._ensure_topic(name, count)
        entry = entry_record(record, topic, due)
        position = await self._app.publisher.publish(name, entry)
        return Scheduled(record.id, utc_from_seconds(due / 1000), position)

    async def cancel(self, name: str, count: PartitionCount, id: str, within: float) -> Outcome:
        """Write a request and wait for its answer."""
        if not isinstance(id, str) or not id:
            raise InvalidValue(f"cancel({id!r}): a message ID is needed, as a str")
        check_timeout("cancel", within)
        await self._ensure_topic(name, count)
        request = str(uuid7())
        position = await self._app.publisher.publish(name, cancel_record(id, request))
        loop = asyncio.get_running_loop()
        give_up, pause, start = loop.time() + within, 0.005, position.offset
        log = self._app.log
        while True:
            answer, start = await asyncio.to_thread(_find_answer, log, position, start, request)
            if answer is not None:
                return answer
            if loop.time() >= give_up:
                raise TimeoutError(
                    f"cancelling {id!r}: no answer within {within:g} s; is a process running that "
                    f"keeps {name!r}?"
                )
            await asyncio.sleep(pause)
            pause = min(0.5, pause * 1.5)

    async def _ensure_topic(self, name: str, count: PartitionCount) -> None:
        """Make sure that the delay topic exists, with its floor below the next write."""
        log = self._app.log
        ensured = self._ensured_topics.setdefault(log, set())
        if name not in ensured:
            await run_in_thread(lambda: ensure_delay_topic(log, name, count(log)))
            ensured.add(name)


def due_at(now: float, delay: Delay | None, at: datetime | None) -> int:
    """The due time in milliseconds since the epoch.

    :raises InvalidValue: not exactly one is given, or it is no valid time.
    """
    if (delay is None) == (at is None):
        raise InvalidValue("give delay= (seconds) or at= (a datetime), one of the two")
    if at is not None:
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise InvalidValue(f"at={at!r}: a datetime with a time zone is needed")
        moment = at.timestamp()
    else:
        seconds: Any = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not is_seconds(seconds, positive=False) or seconds >= LATEST_DUE / 2000:
            raise InvalidValue(
                f"delay={delay!r}: must be a non-negative number of seconds, or a timedelta"
            )
        moment = now + seconds
    return max(0, math.ceil(moment * 1000))


def _find_answer(
    log: Log, position: Position, start: int, request: str
) -> tuple[Outcome | None, int]:
    """The answer to a request, searched from ``start``; and where to go on searching. Blocks."""
    _, end = log.watermarks(position.topic, position.partition)
    for batch in read_batches(log, position.topic, position.partition, start, end):
        for index, value in enumerate(batch.values):
            if value is None:
                mark, answered = read_mark(batch.headers(index))
                if answered == request and (found := parse_outcome(mark)) is not None:
                    return found, end
    return None, max(start, end)
