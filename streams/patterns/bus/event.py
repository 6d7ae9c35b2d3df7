"""The event of a bus, and its form on the wire.

An event is an ordinary message of the bus's log topic: its data is the value, its topic the header
``ce_type`` (CloudEvents ``type``), its ID ``ce_id``, its correlation ID ``ce_correlationid``, the
ID of its cause ``ce_causationid``. So any client can publish to a bus and read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from streams import wire
from streams.errors import ConfigError
from streams.message import (
    CAUSATION,
    CORRELATION,
    LEGACY_CAUSATION,
    LEGACY_CORRELATION,
    TIME,
    TYPE,
    Batch,
    Message,
    header_or_legacy,
    text,
)
from streams.processing import Decoding, Skip

TRACE_HEADERS = ("traceparent", "tracestate")
"""Headers of W3C Trace Context, which are passed on from an event to those it causes."""


class Event(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One event as its handlers see it. Handlers in one process share it: change nothing in it.

    :param topic: the topic it was published to, whatever pattern the handler was subscribed under.
    :param data: the published data; from a log, decoded as the bus's ``type``.
    :param id: the event's ID, the same for every handler, in every attempt, after every crash.
    :param key: events of one key are handled in order, one at a time; None: they have no order.
    :param timestamp: when it happened; UTC.
    :param headers: all its headers; where a name repeats, the last one.
    :param attempt: which call for this handler this is, from 1.
    :param message: the log's message that carried it, with its position and, on SQLite, its
        ``transaction``; for durable subscribers only.
    """

    topic: str
    data: Any
    id: str
    key: str | None
    timestamp: datetime
    headers: Mapping[str, str]
    attempt: int = 1
    message: Message[Any] | None = None

    @property
    def correlation_id(self) -> str | None:
        """The ID of the saga or request that this event belongs to (``ce_correlationid``)."""
        return header_or_legacy(self.headers, CORRELATION, LEGACY_CORRELATION)

    @property
    def causation_id(self) -> str | None:
        """The ID of the event that caused this one (``ce_causationid``)."""
        return header_or_legacy(self.headers, CAUSATION, LEGACY_CAUSATION)

    def __repr__(self) -> str:
        # The data stays out: it may hold secrets that must not reach a log line.
        topic, id = wire.shorten(self.topic), wire.shorten(self.id)
        key = None if self.key is None else wire.shorten(self.key)
        return f"<Event {topic} {id!r} key={key!r} attempt {self.attempt}>"


class UndecodableData:
    """The data of an event whose data cannot be decoded."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def causation_headers(cause: Event) -> dict[str, str]:
    """The headers of an event that ``cause`` caused."""
    headers = {name: cause.headers[name] for name in TRACE_HEADERS if name in cause.headers}
    headers[CORRELATION] = cause.correlation_id or cause.id
    headers[CAUSATION] = cause.id
    return headers


def attach_message(event: Event, message: Message[Any]) -> None:
    """Set the message of an event that was just decoded and not passed on yet."""
    force_setattr(event, "attempt", message.attempt)
    force_setattr(event, "message", message)


def event_topic(batch: Batch, index: int) -> str:
    """The topic of an event in the log; empty for a message that names none."""
    found = ""
    for name, value in batch.headers(index):
        if name == TYPE and value:
            found = text(value)
    return found


def _event_time(batch: Batch, index: int, headers: Mapping[str, str]) -> datetime:
    return wire.parse_iso_time(headers.get(TIME)) or wire.utc_from_seconds(batch.time(index))


class BusEventDecoder:
    """Decodes a bus's messages as events, and skips those without a subscriber here before
    anything of them is decoded (:class:`streams.processing.job.Decoding`).

    :param wants: whether a subscriber here wants events of a topic.
    :param data_decoder: decodes the data.
    :param keep_undecodable: data that cannot be decoded becomes :class:`UndecodableData` instead of
        an error.
    """

    gives_several = False
    id_reader = None
    """An event's ID is a header."""

    def __init__(
        self,
        wants: Callable[[str], bool],
        data_decoder: Decoding,
        *,
        keep_undecodable: bool = False,
    ) -> None:
        self._wants = wants
        self._data_decoder = data_decoder
        self._keep_undecodable = keep_undecodable

    def unwrap(self, batch: Batch) -> Batch:
        """The batch without envelopes."""
        return self._data_decoder.unwrap(batch)

    def fast_decoder(self, values: Sequence[bytes | None], largest: int) -> None:
        """None: the topic is in the headers, so there is no fast decoder."""
        return

    def decode_one(self, batch: Batch, index: int) -> Event:
        """The event of one message.

        :raises Skip: no subscriber here wants it.
        :raises Exception: its data cannot be decoded.
        """
        topic = event_topic(batch, index)
        if not self._wants(topic):
            raise Skip
        try:
            data = self._data_decoder.decode_one(batch, index)
        except Skip:
            raise
        except Exception as error:
            if not self._keep_undecodable:
                raise
            data = UndecodableData(error)
        key = batch.keys[index]
        headers = {name: text(value or b"") for name, value in batch.headers(index)}
        return Event(
            topic=topic,
            data=data,
            id=batch.id(index),
            key=None if key is None else text(key),
            timestamp=_event_time(batch, index, headers),
            headers=headers,
        )


@dataclass(frozen=True)
class EventSource:
    """A bus's log topic as a processor reads it (:class:`streams.decoding.Source`)."""

    name: str
    decoding: Any


def check_event(event: object, where: str) -> None:
    """:raises ConfigError: the argument of the call ``where`` is no event."""
    if not isinstance(event, Event):
        raise ConfigError(f"{where}({event!r}): an event is needed, as a handler gets it")
