"""A dead letter as people look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from streams import wire
from streams.letters import (
    EDITED,
    FIRST_ERROR,
    FIRST_FAILED,
    OFFSET,
    ORIGIN,
    PARTITION,
    PREFIX,
    STACKTRACE,
    TIME,
    attempts_of,
    error_of,
    header,
    redrives_of,
)
from streams.message import Batch, Headers, Message, Position, deliver
from streams.patterns.deadletters.redriving import source_of
from streams.replay.copying import Row
from streams.runners.job import Decoding


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


def read(
    row: Row,
    *,
    waiting: bool,
    decodings: Mapping[str, Decoding],
    parse: Callable[[str], int],
    of: tuple[str | None, str | None] = (None, None),
) -> DeadLetter:
    """The letter that a row of a dead letter topic is.

    :param decodings: how values are decoded, by topic.
    :param parse: reads an offset as the log writes it.
    :param of: the topic and the group, where the letter does not say.
    """
    batch, index = row.batch, row.index
    headers = batch.headers(index)
    topic, group = source_of(headers)
    topic, group = topic or of[0], group or of[1]
    attempts = attempts_of(headers) or 1
    original = _original(batch, index, headers, topic, attempts, decodings, parse)
    error, failed_at = error_of(headers), failed_at_of(batch, index)
    origin = header(headers, ORIGIN)
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
        traceback=header(headers, STACKTRACE) or "",
        origin=original.position if origin is None else _position(origin, parse),
        first_failed_at=wire.iso(header(headers, FIRST_FAILED)) or failed_at,
        first_error=header(headers, FIRST_ERROR) or error,
        edited=header(headers, EDITED) is not None,
    )


def failed_at_of(batch: Batch, index: int) -> datetime:
    """When a dead letter was given up."""
    written = wire.iso(header(batch.headers(index), TIME))
    return wire.utc(batch.time(index)) if written is None else written


def _position(written: str, parse: Callable[[str], int]) -> Position | None:
    """A place as :func:`streams.letters.first_failure` writes it; None for anything else."""
    topic, _, rest = written.partition("/")
    partition, _, offset = rest.partition("/")
    number = wire.whole(partition, 9) if len(written) <= 2 * wire.TEXT else None
    try:
        return None if number is None or not topic else Position(topic, number, parse(offset))
    except Exception:  # written by another tool: the place is not known
        return None


def _original(
    batch: Batch,
    index: int,
    headers: Headers,
    topic: str | None,
    attempts: int,
    decodings: Mapping[str, Decoding],
    parse: Callable[[str], int],
) -> Message[Any]:
    """The message as it stood where it failed."""
    place, offset = header(headers, OFFSET), 0
    try:
        offset = parse(place) if place else 0
    except Exception:  # written by another tool: the place is not known
        place = None
    if not place:
        topic, offset = topic or batch.topic, batch.offsets[index]
    own = [pair for pair in headers if not pair[0].startswith(PREFIX)]
    value = batch.values[index]
    was = Batch(
        topic or batch.topic,
        wire.whole(header(headers, PARTITION), 9) or 0 if place else batch.partition,
        (offset,),
        [batch.keys[index]],
        [value],
        [batch.ids[index] or batch.id(index)],
        [own],
        [batch.time(index)],
    )
    decoding = decodings.get(topic or "")
    event: Any = value
    if decoding is not None:
        try:
            event = decoding.one(decoding.opened(was), 0)
        except Exception:
            event = value  # this is perhaps why it is here
    return deliver(event, was, 0, attempts)
