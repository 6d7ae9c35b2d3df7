"""Dead letters as applications see them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from streams import wire
from streams.derived_records import (
    EDITED,
    ERROR_OFFSET,
    ERROR_PARTITION,
    ERROR_PREFIX,
    ERROR_STACKTRACE,
    ERROR_TIME,
    FIRST_ERROR,
    FIRST_FAILED,
    ORIGIN,
    attempts_of,
    error_of,
    header_text,
    times_put_back,
)
from streams.errors import ConfigError
from streams.log.range_reader import LogRow
from streams.message import (
    FIRST_POSITION,
    INCARNATION,
    Batch,
    Message,
    Position,
    headers_without,
    make_message,
)
from streams.patterns.deadletters.redriving import source_of
from streams.processing import SeveralValues

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.topic import Topic


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be handled, and why."""

    original_message: Message[Any] = field(repr=False)
    """The message with its key, ID and headers, and the position where it failed. Its value is of
    the type that the app declares for that topic; bytes if it cannot be decoded or the app does not
    declare the topic; a list, for an old event that is upcast to several events.
    ``original_message.raw`` always has the bytes."""
    error: str
    """The exception's type and text."""
    failed_at: datetime
    """When it became a dead letter, UTC."""
    retry_count: int
    """The number of retries after its first failure."""
    queue: str
    """The topic or queue that it was read from."""
    group: str | None
    """The consumer group that could not handle it; None where it is not known."""
    redrives: int
    """How often it was put back before; this makes a loop visible."""
    position: Position
    """Its own position."""
    waiting: bool
    """Whether it was neither put back nor set aside yet."""
    traceback: str = field(default="", repr=False)
    origin: Position | None = None
    """The position at which the message failed first, however often it was put back since; None if
    unknown."""
    first_failed_at: datetime | None = None
    """When it became a dead letter for the first time, UTC."""
    first_error: str = ""
    """The exception's type and text at the first failure."""
    edited: bool = False
    """Whether its value was changed when it was put back."""

    @property
    def id(self) -> str:
        """The message ID."""
        return self.original_message.id

    @property
    def key(self) -> str | None:
        """The key of the message."""
        return self.original_message.key


def read_dead_letter(
    app: Streams,
    row: LogRow,
    *,
    waiting: bool,
    default_source: tuple[str | None, str | None] = (None, None),
) -> DeadLetter:
    """The dead letter in a row of a dead letter topic.

    :param default_source: the topic and the group to use if the dead letter does not name them.
    """
    headers = row.headers
    topic, group = source_of(headers)
    topic, group = topic or default_source[0], group or default_source[1]
    attempts = attempts_of(headers) or 1
    original = _original_message(app, row, topic, attempts)
    error, failed_at = error_of(headers), failure_time(row.batch, row.index)
    origin = header_text(headers, ORIGIN)
    origin_parts = wire.parse_position(origin)
    return DeadLetter(
        original_message=original,
        error=error,
        failed_at=failed_at,
        retry_count=attempts - 1,
        queue=topic or row.batch.topic,
        group=group,
        redrives=times_put_back(headers),
        position=row.position,
        waiting=waiting,
        traceback=header_text(headers, ERROR_STACKTRACE) or "",
        origin=original.position if origin is None else origin_parts and Position(*origin_parts),
        first_failed_at=wire.parse_iso_time(header_text(headers, FIRST_FAILED)) or failed_at,
        first_error=header_text(headers, FIRST_ERROR) or error,
        edited=header_text(headers, EDITED) is not None,
    )


def declared_topic(app: Streams, name: str | None, what: str, otherwise: str = "") -> Topic[Any]:
    """The declared topic, which knows how its values are encoded.

    :param what: the call that needs it.
    :param otherwise: an alternative to name in the error.
    :raises ConfigError: the app does not declare it.
    """
    declared = app.topics.get(name or "")
    if declared is None:
        raise ConfigError(
            f"{what}: how a value of topic {name!r} is written is not known; declare it with "
            f"app.topic(...){otherwise}"
        )
    return declared


def failure_time(batch: Batch, index: int) -> datetime:
    """When a message became a dead letter."""
    written = wire.parse_iso_time(header_text(batch.headers(index), ERROR_TIME))
    return wire.utc_from_seconds(batch.time(index)) if written is None else written


def _original_message(app: Streams, row: LogRow, topic: str | None, attempts: int) -> Message[Any]:
    """The message at the position where it failed; if that is unknown, at its position here."""
    batch, index, headers = row.batch, row.index, row.headers
    partition = wire.parse_partition(header_text(headers, ERROR_PARTITION)) or 0
    offset: int | None = None
    with suppress(Exception):  # written by another tool
        offset = app.log.parse_offset(header_text(headers, ERROR_OFFSET) or "")
    if offset is None:
        topic, partition, offset = topic or batch.topic, batch.partition, row.offset
    own_headers = headers_without(headers, (FIRST_POSITION, INCARNATION), ERROR_PREFIX)
    original = Batch(
        topic or batch.topic, partition, (offset,), [batch.keys[index]], [row.value],
        [batch.ids[index] or row.id], [own_headers],
        [batch.time(index)],
    )  # fmt: skip
    value: Any = row.value
    if (declared := app.topics.get(topic or "")) is not None:
        with suppress(Exception):  # a decode error may be the reason for the dead letter
            value = declared.decoding.decode_one(declared.decoding.unwrap(original), 0)
            if isinstance(value, SeveralValues):
                value = list(value.values)
    return make_message(value, original, 0, attempts)
