"""Derived records: what a handler returned, and dead letters.

Both get a message ID that follows from the source message alone, so that a crash between the
write and the commit writes the same record again and doubles nothing:

* a result: ``<source identity>/<group>/<index>``;
* a dead letter: the source's own ID in the group's dead letter topic.

Dead letters carry the headers of KIP-1034 (dead letter queue in Kafka Streams), and the source's
bytes, key and headers unchanged.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from streams import wire
from streams.clock import Clock
from streams.engine.dispatch import Work
from streams.message import (
    CAUSATION,
    CORRELATION,
    ID,
    OLD_CORRELATION,
    REDRIVE,
    Headers,
    Record,
    text,
)
from streams.runners.job import Outgoing
from streams.text import words as words

EXCEPTION = "__streams.errors.exception"
MESSAGE = "__streams.errors.message"
STACKTRACE = "__streams.errors.stacktrace"
TOPIC = "__streams.errors.topic"
PARTITION = "__streams.errors.partition"
OFFSET = "__streams.errors.offset"
ATTEMPTS = "__streams.errors.attempts"
GROUP = "__streams.errors.group"
TIME = "__streams.errors.time"

PREFIX = "__streams.errors."

ORIGIN = "streams_origin"
FIRST_FAILED = "streams_first_failed"
FIRST_ERROR = "streams_first_error"
EDITED = "streams_edited"
"""What a message that was put back says of its first failure: where it stood, when it was given up
and why; and that somebody changed its value. Nothing is decided by these: they are for people."""

ERROR_BYTES = 8 << 10
"""All error headers together, at most; the traceback shrinks first, then the message."""

_MESSAGE_BYTES = 1 << 10

_ATTEMPT_DIGITS = 9


def letter(group: str, topic: Callable[[str], str], clock: Clock) -> Callable[[Work], Outgoing]:
    """Makes the dead letter of a work with a burial.

    :param topic: the dead letter topic of a source topic.
    """

    def make(work: Work) -> Outgoing:
        segment, index, _, _, _, _, burial = work
        if burial is None:
            raise ValueError("a work without a burial has no dead letter")
        batch = segment.batch
        headers = [
            (name, value)
            for name, value in batch.headers(index)
            if name != ID and not name.startswith(PREFIX)
        ]
        place = (batch.topic, batch.partition, str(batch.offset(index)))
        when = datetime.fromtimestamp(clock.time(), timezone.utc).isoformat()
        headers += error_headers(burial.error, burial.attempts, group, place, when)
        return topic(batch.topic), Record(
            batch.values[index], batch.keys[index], batch.id(index), headers
        )

    return make


def error_headers(
    error: BaseException, attempts: int, group: str, place: tuple[str, int, str], when: str
) -> list[tuple[str, bytes | None]]:
    """The headers that say what went wrong, in at most :data:`ERROR_BYTES`."""
    kind = type(error)
    topic, partition, offset = place
    pairs = [
        (EXCEPTION, f"{kind.__module__}.{kind.__qualname__}"[:256]),
        (MESSAGE, _cut(words(error), _MESSAGE_BYTES)),
        (TOPIC, topic),
        (PARTITION, str(partition)),
        (OFFSET, offset),
        (ATTEMPTS, str(attempts)),
        (GROUP, group),
        (TIME, when),
    ]
    encoded = [(name, value.encode("utf-8", "backslashreplace")) for name, value in pairs]
    used = sum(len(name) + len(value) for name, value in encoded) + len(STACKTRACE)
    trace = "".join(traceback.format_exception(error))
    stack = _tail(trace.encode("utf-8", "backslashreplace"), ERROR_BYTES - used)
    return [*encoded[:2], (STACKTRACE, stack), *encoded[2:]]


def _cut(text: str, size: int) -> str:
    """The beginning of a text, in at most this many bytes."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= size:
        return text
    return data[: size - 3].decode("utf-8", "ignore") + "..."


def _tail(data: bytes, size: int) -> bytes:
    """The end of a traceback says most: where it was raised."""
    if len(data) <= size:
        return data
    if size < 4:
        return b""
    return b"..." + data[-(size - 3) :].decode("utf-8", "ignore").encode()


def results(
    group: str, topic: str, record: Callable[[Any, str, Headers], Record], *, several: bool
) -> Callable[[Any, Work], Sequence[Outgoing]]:
    """Encodes what a handler returned, for the topic it goes to.

    :param record: makes the record of a value, with this ID and these headers.
    :param several: a list, tuple or generator is several values; else any value is one.
    """

    def make(result: Any, work: Work) -> Sequence[Outgoing]:
        segment, index, _, identity, _, _, _ = work
        batch = segment.batch
        source = identity.replace("\0", "/") if identity is not None else batch.id(index)
        values: Iterable[Any] = (result,)
        if several and (isinstance(result, (list, tuple)) or hasattr(result, "__next__")):
            values = result
        headers: list[tuple[str, bytes | None]] = [
            (CAUSATION, batch.id(index).encode("utf-8", "surrogateescape"))
        ]
        found = batch.headers(index)
        correlation = header(found, CORRELATION) or header(found, OLD_CORRELATION)
        if correlation:
            headers.append((CORRELATION, correlation.encode("utf-8", "surrogateescape")))
        headers += [pair for pair in found if pair[0] in ("traceparent", "tracestate")]
        return [
            (topic, record(value, f"{source}/{group}/{at}", headers))
            for at, value in enumerate(values)
            if value is not None
        ]

    return make


def first_failure(headers: Headers) -> list[tuple[str, bytes | None]]:
    """What a dead letter's headers say of its first failure, as headers for the message that is put
    back: those that it has not yet, because it failed for the first time."""
    found: list[tuple[str, bytes | None]] = []

    def add(name: str, said: str) -> None:
        found.append((name, _cut(said, ERROR_BYTES // 8).encode("utf-8", "surrogateescape")))

    topic = header(headers, TOPIC)
    if topic and header(headers, ORIGIN) is None:
        place = (header(headers, name) or "?" for name in (PARTITION, OFFSET))
        add(ORIGIN, "/".join((topic, *place)))
    when = header(headers, TIME)
    if when and header(headers, FIRST_FAILED) is None:
        add(FIRST_FAILED, when)
        add(FIRST_ERROR, error_of(headers))
    return found


def error_of(headers: Headers) -> str:
    """What went wrong, of a dead letter: the exception's type and text."""
    kind = (header(headers, EXCEPTION) or "unknown").rpartition(".")[2]
    said = header(headers, MESSAGE)
    return f"{kind}: {said}" if said else kind


def header(headers: Headers, name: str) -> str | None:
    """One header as text; None where there is none. Of several, the last."""
    found = None
    for each, value in headers:
        if each == name and value is not None:
            found = text(value)
    return found


def redrives_of(headers: Headers) -> int:
    """How often a message was put back so far; 0 where the header is none of ours."""
    return wire.whole(header(headers, REDRIVE)) or 0


def attempts_of(headers: Headers) -> int:
    """How often a message had failed when it was written; 0 where the header is none of ours."""
    return wire.whole(header(headers, ATTEMPTS), _ATTEMPT_DIGITS) or 0
