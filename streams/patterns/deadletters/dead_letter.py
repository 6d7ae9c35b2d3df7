"""A dead letter as people look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

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
    redrives_of,
)
from streams.log.range_reader import LogRow
from streams.message import Batch, Headers, Message, Position, headers_without, make_message
from streams.patterns.deadletters.redriving import source_of
from streams.processing import Decoding


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be handled, and why."""

    original_message: Message[Any] = field(repr=False)
    """The message with its key, ID and headers, and the place where it failed. Its value is what
    the app declares for that topic; its bytes, where they cannot be decoded or the app does not
    declare it. ``original_message.raw`` has the bytes in any case."""
    error: str
    """What went wrong: the exception's type and text."""
    failed_at: datetime
    """When it was given up, UTC."""
    retry_count: int
    """How often it was tried again after its first failure, before it was given up."""
    queue: str
    """The topic or queue that it is of."""
    group: str | None
    """The consumer group that could not handle it; None where nobody said."""
    redrives: int
    """How often it was put back before: the loop counter."""
    position: Position
    """Where the letter itself stands."""
    waiting: bool
    """Nobody put it back or set it aside yet."""
    traceback: str = field(default="", repr=False)
    origin: Position | None = None
    """Where the message stood when it failed first, however often it was put back since; None
    where nobody said, or it cannot be read."""
    first_failed_at: datetime | None = None
    """When it was given up for the first time, UTC."""
    first_error: str = ""
    """What went wrong then."""
    edited: bool = False
    """Its value was changed when it was put back."""

    @property
    def id(self) -> str:
        """The message ID."""
        return self.original_message.id

    @property
    def key(self) -> str | None:
        """The key of the message."""
        return self.original_message.key


def read_dead_letter(
    row: LogRow,
    *,
    waiting: bool,
    decodings: Mapping[str, Decoding],
    parse: Callable[[str], int],
    default_source: tuple[str | None, str | None] = (None, None),
) -> DeadLetter:
    """The letter that a row of a dead letter topic is.

    :param decodings: how values are decoded, by topic.
    :param parse: reads an offset as the log writes it.
    :param default_source: the topic and the group, where the letter does not say.
    """
    batch, index = row.batch, row.index
    headers = batch.headers(index)
    topic, group = source_of(headers)
    topic, group = topic or default_source[0], group or default_source[1]
    attempts = attempts_of(headers) or 1
    original = _original_message(batch, index, headers, topic, attempts, decodings, parse)
    error, failed_at = error_of(headers), failure_time(batch, index)
    origin = header_text(headers, ORIGIN)
    origin_parts = wire.parse_position(origin)
    return DeadLetter(
        original_message=original,
        error=error,
        failed_at=failed_at,
        retry_count=attempts - 1,
        queue=topic or batch.topic,
        group=group,
        redrives=redrives_of(headers),
        position=row.position,
        waiting=waiting,
        traceback=header_text(headers, ERROR_STACKTRACE) or "",
        origin=original.position if origin is None else origin_parts and Position(*origin_parts),
        first_failed_at=wire.parse_iso_time(header_text(headers, FIRST_FAILED)) or failed_at,
        first_error=header_text(headers, FIRST_ERROR) or error,
        edited=header_text(headers, EDITED) is not None,
    )


def failure_time(batch: Batch, index: int) -> datetime:
    """When a dead letter was given up."""
    written = wire.parse_iso_time(header_text(batch.headers(index), ERROR_TIME))
    return wire.utc_from_seconds(batch.time(index)) if written is None else written


def _original_message(
    batch: Batch,
    index: int,
    headers: Headers,
    topic: str | None,
    attempts: int,
    decodings: Mapping[str, Decoding],
    parse: Callable[[str], int],
) -> Message[Any]:
    """The message as it stood where it failed."""
    offset_text, offset = header_text(headers, ERROR_OFFSET), 0
    try:
        offset = parse(offset_text) if offset_text else 0
    except Exception:  # written by another tool: the place is not known
        offset_text = None
    if not offset_text:
        topic, offset = topic or batch.topic, batch.offsets[index]
    own_headers = headers_without(headers, prefix=ERROR_PREFIX)
    value = batch.values[index]
    original = Batch(
        topic or batch.topic,
        wire.parse_int(header_text(headers, ERROR_PARTITION), 9) or 0
        if offset_text
        else batch.partition,
        (offset,),
        [batch.keys[index]],
        [value],
        [batch.ids[index] or batch.id(index)],
        [own_headers],
        [batch.time(index)],
    )
    decoding = decodings.get(topic or "")
    event: Any = value
    if decoding is not None:
        try:
            event = decoding.decode_one(decoding.unwrap(original), 0)
        except Exception:
            event = value  # this is perhaps why it is here
    return make_message(event, original, 0, attempts)
