"""Timeouts of a process manager: messages to itself, delivered when they are due.

They wait in the topic ``{name}.timeouts.delay`` and come back through ``{name}.timeouts``. A
message only says which timeout is due; whether that is still waited for, and with which event, is
in the instance's own history. So one that was cancelled or replaced, or comes twice, is passed
over.
"""

from __future__ import annotations

import math
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import msgspec
from uuid_utils import uuid7

from stream_codecs import tags_of
from streams.app import Streams
from streams.cancellation import run_in_thread
from streams.errors import InvalidValue
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.managers.actions import Schedule
from streams.eventsourcing.managers.reactions import StoredCancel, StoredTimeout
from streams.log.names import check_topic
from streams.log.protocol import Log, Retention
from streams.numbers import is_seconds
from streams.retries import (
    LATEST_DUE,
    PENDING_LIMIT,
    cancel_record,
    declare_scheduler,
    ensure_delay_topic,
    entry_record,
)
from streams.topic import InternalTopic

CAME_RETENTION = Retention(messages=10_000)
"""How timeouts that came are kept, on a log that trims what a group has settled."""


class TimeoutDue(msgspec.Struct, frozen=True, tag="timeout"):
    """A timeout is due.

    :param key: the instance's.
    :param sequence: which of that name.
    """

    key: str
    name: str
    sequence: str


class ManagerTimeouts:
    """Writes and cancels the timeouts of one manager.

    :param events: the union of their events.
    :raises ConfigError: they cannot be stored.
    """

    def __init__(self, app: Streams, name: str, events: Any, partitions: int) -> None:
        self._app = app
        self._name = name
        self._where = f"process manager {name!r}"
        self._partitions = partitions
        self._codec: EventCodec[Any] = EventCodec(f"{name}: its timeouts", events, None)
        self.topic: InternalTopic[TimeoutDue] = InternalTopic(
            app, f"{name}.timeouts", TimeoutDue, partitions=partitions
        )
        app.add_topic(self.topic)
        self.delay_topic = check_topic(f"{name}.timeouts.delay")
        allowed = {self.topic.name}.__contains__
        self.scheduler = declare_scheduler(
            app, self.delay_topic, self._partition_count, allowed, PENDING_LIMIT
        )
        self._ensured: Log | None = None

    @property
    def names(self) -> list[str]:
        """What its timeouts are called where ``Schedule`` gives no other name."""
        return [str(tag) for each in self._codec.event_classes for tag in tags_of(each)]

    def _partition_count(self, log: Log) -> int:
        return self._partitions

    def stored_timeout(self, schedule: Schedule) -> StoredTimeout:
        """A timeout as it is stored; due from now on.

        :raises InvalidValue: it cannot be.
        """
        name, after = schedule.name, schedule.after
        seconds: Any = after.total_seconds() if isinstance(after, timedelta) else after
        if not is_seconds(seconds, positive=False) or seconds >= LATEST_DUE / 2000:
            raise InvalidValue(
                f"{self._where}: Schedule({after!r}, ...): must be a non-negative number of "
                "seconds, or a timedelta"
            )
        try:
            event = self._codec.encode(schedule.event)
        except TypeError:
            raise InvalidValue(
                f"{self._where}: Schedule(event={schedule.event!r}): it is not one of its timeouts="
            ) from None
        if not isinstance(name, str):
            raise InvalidValue(f"{self._where}: Schedule(name={name!r}): a str")
        due = math.ceil((self._app.clock.time() + seconds) * 1000)
        return StoredTimeout(name or self.name_of(schedule.event), due, msgspec.Raw(event))

    @staticmethod
    def name_of(event: Any) -> str:
        """What a timeout is called that was given no name."""
        return str(next(iter(tags_of(type(event)))))

    def read(self, event: msgspec.Raw) -> Any:
        """A timeout's event.

        :raises NewerTag: it is none of today's ``timeouts=``.
        :raises DecodeError: it cannot be read.
        """
        return self._codec.decode(bytes(event))[0]

    async def schedule(self, key: str, stored: StoredTimeout, sequence: str) -> None:
        """Have a timeout delivered; again is harmless."""
        entry_id = self._entry_id(key, sequence)
        record = self.topic.record(TimeoutDue(key, stored.name, sequence), key=key, id=entry_id)
        await self._write_record(entry_record(record, self.topic.name, stored.due))

    async def cancel(self, key: str, cancel: StoredCancel) -> None:
        """Spare the delivery of a timeout that is not waited for any more."""
        await self._write_record(cancel_record(self._entry_id(key, cancel.sequence), str(uuid7())))

    def _entry_id(self, key: str, sequence: str) -> str:
        data = f"{self._name}\n{sequence}\n{key}".encode("utf-8", "surrogateescape")
        return f"timeout-{blake2b(data, digest_size=16).hexdigest()}"

    def _ensure_topics(self, log: Log) -> None:
        """Have the topic in which timeouts wait, and what came through the other one trimmed:
        what its group has settled is needed by nobody. Kafka deletes that by its own rules."""
        ensure_delay_topic(log, self.delay_topic, self._partitions)
        if "messages" in log.capabilities.retention:
            topic = log.describe_topic(self.topic.name)
            if topic.retention == Retention():  # nobody has said otherwise
                log.create_topic(topic.name, topic.partitions, CAME_RETENTION)

    async def _write_record(self, record: Any) -> None:
        log = self._app.log
        if self._ensured is not log:
            await run_in_thread(self._ensure_topics, log)
            self._ensured = log
        await self._app.publisher.publish(self.delay_topic, record)
