"""Derived records: results of a handler, and dead letters.

Both get a message ID that follows from the source message alone, so that after a crash between the
write and the commit the same record is written again, and counts once:

* a result: ``<source identity>/<group>/<index>``;
* a dead letter: the source's own ID in the group's dead letter topic.

Dead letters carry the headers of KIP-1034 (dead letter queue in Kafka Streams), and the source's
bytes, key and headers unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any, NamedTuple, get_origin

from streams import wire
from streams.clock import Clock
from streams.engine.dispatcher import Delivery
from streams.log.event_headers import copied_headers
from streams.log.protocol import Assignment
from streams.message import (
    CAUSATION,
    CORRELATION,
    FIRST_POSITION,
    GENERATION,
    ID,
    INCARNATION,
    LEGACY_CORRELATION,
    REDRIVE,
    Batch,
    Headers,
    Message,
    Record,
    headers_without,
    row_of,
    text,
)
from streams.processing.job import Outgoing, ResultEncoder, reset_generation
from streams.text import error_text, traceback_text

ERROR_EXCEPTION = "__streams.errors.exception"
ERROR_MESSAGE = "__streams.errors.message"
ERROR_STACKTRACE = "__streams.errors.stacktrace"
ERROR_TOPIC = "__streams.errors.topic"
ERROR_PARTITION = "__streams.errors.partition"
ERROR_OFFSET = "__streams.errors.offset"
ERROR_ATTEMPTS = "__streams.errors.attempts"
ERROR_GROUP = "__streams.errors.group"
ERROR_TIME = "__streams.errors.time"

ERROR_PREFIX = "__streams.errors."

ORIGIN = "streams_origin"
FIRST_FAILED = "streams_first_failed"
FIRST_ERROR = "streams_first_error"
EDITED = "streams_edited"
PUT_BACK = "streams_put_back"
"""The headers of a message that was put back, on its first failure: its position, when it was given
up and why; whether its value was changed, and how often it was put back by an operator. They are
for people only: no code decides by them."""

TRACE_HEADERS = ("traceparent", "tracestate")

_TRAVELLING = frozenset((CORRELATION, LEGACY_CORRELATION, *TRACE_HEADERS))
"""Headers of a message that are copied to its results."""

ERROR_BYTES = 8 << 10
"""Bytes of all error headers together, at most; the traceback is cut first, then the message."""

_MESSAGE_BYTES = 1 << 10

_ATTEMPT_DIGITS = 9

_NO_SOURCE = "\0\0" + "0"
"""The part of an identity (see :func:`~streams.message.make_identity`) for source and redrive
count, if it has neither and they are written all the same."""

_FIRST_POSITION_LIMIT = 64
"""Characters of a valid first position, at most."""


def message_generation(header: bytes | None, assignment: Assignment | None) -> int:
    """The generation of its group (the last reset) in which a message is handled.

    :param header: its :data:`GENERATION`, if it has come back to the group.
    :param assignment: the ownership under which it was polled.
    """
    return max(wire.parse_int(header) or 0, reset_generation(assignment))


def headers_to_return(
    delivery: Delivery, names: Iterable[str], *, has_come_back: bool
) -> list[tuple[str, bytes | None]]:
    """The headers of a message that is to come back to its group, or may do so: with its first
    position, and the generation of its group.

    :param names: headers to leave out.
    :param has_come_back: it came back before, so its headers were written by this toolkit.
    """
    batch, index = delivery.fetched.batch, delivery.index
    headers = batch.headers(index)
    header = next((value for name, value in headers if name == GENERATION), None)
    assignment = delivery.fetched.state.assignment
    incarnation = header_text(headers, INCARNATION) if has_come_back else assignment.incarnation
    generation = message_generation(header if has_come_back else None, assignment)
    first = first_position(batch, index, has_come_back=has_come_back)
    names = {*names, GENERATION, FIRST_POSITION, INCARNATION}
    found = copied_headers(headers_without(headers, names, ERROR_PREFIX))
    if generation:
        found.append((GENERATION, str(generation).encode()))
        first = f"{first}.{generation}"
    found.append((FIRST_POSITION, first.encode()))
    if incarnation:
        found.append((INCARNATION, incarnation.encode()))
    return found


def first_position(batch: Batch, index: int, *, has_come_back: bool) -> str:
    """A digest of a message's first position, and of its log time there: positions recur if a topic
    is created again.

    :param has_come_back: it came back before, so its headers hold the digest.
    """
    header = header_text(batch.headers(index), FIRST_POSITION) if has_come_back else None
    if header and len(header) <= _FIRST_POSITION_LIMIT:
        return header.partition(".")[0]
    stood = f"{batch.topic}/{batch.partition}/{batch.offsets[index]}/{batch.time(index)}"
    return blake2b(stood.encode(), digest_size=8).hexdigest()


class FirstPlace(NamedTuple):
    """The first position of a message.

    :param text: ``topic/partition/offset``; also the ID of a message without one.
    """

    text: str
    topic: str
    partition: int
    offset: int


def first_place(message: Message[Any], *, has_come_back: bool) -> FirstPlace:
    """The first position of a message.

    :param has_come_back: it came back before, so its headers name the position.
    """
    origin = header_text(message.raw.headers, ORIGIN) if has_come_back else None
    found = wire.parse_position(origin)
    if origin is not None and found is not None:
        return FirstPlace(origin, *found)
    batch, index = row_of(message)
    topic, partition, offset = batch.topic, batch.partition, batch.offset(index)
    text = f"{topic}/{partition}/{wire.format_offset(offset)}"
    return FirstPlace(text, topic, partition, offset)


def dead_letter_maker(
    group: str,
    topic: Callable[[str], str],
    clock: Clock,
    has_come_back: Callable[[str], bool] = lambda topic: False,
) -> Callable[[Delivery], Outgoing]:
    """A function that makes the dead letter of a delivery that has a reason.

    :param topic: the dead letter topic of a source topic.
    :param has_come_back: whether messages read from a topic have come back to the group.
    """

    def make_dead_letter(delivery: Delivery) -> Outgoing:
        batch, index, reason = delivery.fetched.batch, delivery.index, delivery.reason
        if reason is None:
            raise ValueError("a delivery without a reason has no dead letter")
        headers = headers_to_return(delivery, (ID,), has_come_back=has_come_back(batch.topic))
        record = Record(batch.values[index], batch.keys[index], batch.id(index), headers)
        failed_at = (batch.topic, batch.partition, str(batch.offset(index)))
        return topic(batch.topic), dead_letter_record(
            record, reason.error, reason.attempts, group, failed_at, clock.time()
        )

    return make_dead_letter


def dead_letter_record(
    record: Record,
    error: BaseException,
    attempts: int,
    group: str,
    failed_at: tuple[str, int, str],
    now: float,
) -> Record:
    """The dead letter of a record: the record with error headers."""
    timestamp = datetime.fromtimestamp(now, timezone.utc).isoformat()
    record.headers = [
        *record.headers, *error_headers(error, attempts, group, failed_at, timestamp)
    ]  # fmt: skip
    return record


def error_headers(
    error: BaseException, attempts: int, group: str, failed_at: tuple[str, int, str], timestamp: str
) -> list[tuple[str, bytes | None]]:
    """The error headers, in at most :data:`ERROR_BYTES`."""
    kind = type(error)
    topic, partition, offset = failed_at
    pairs = [
        (ERROR_EXCEPTION, f"{kind.__module__}.{kind.__qualname__}"[:256]),
        (ERROR_MESSAGE, _truncate_end(error_text(error), _MESSAGE_BYTES)),
        (ERROR_TOPIC, topic),
        (ERROR_PARTITION, str(partition)),
        (ERROR_OFFSET, offset),
        (ERROR_ATTEMPTS, str(attempts)),
        (ERROR_GROUP, group),
        (ERROR_TIME, timestamp),
    ]
    encoded = [(name, value.encode("utf-8", "backslashreplace")) for name, value in pairs]
    used = sum(len(name) + len(value) for name, value in encoded) + len(ERROR_STACKTRACE)
    trace = traceback_text(error)
    stack = _truncate_start(trace.encode("utf-8", "backslashreplace"), ERROR_BYTES - used)
    return [*encoded[:2], (ERROR_STACKTRACE, stack), *encoded[2:]]


def _truncate_end(text: str, size: int) -> str:
    """The beginning of a text, in at most this many bytes."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= size:
        return text
    return data[: size - 3].decode("utf-8", "ignore") + "..."


def _truncate_start(data: bytes, size: int) -> bytes:
    """The end of a traceback, in at most this many bytes: it says where the error was raised."""
    if len(data) <= size:
        return data
    if size < 4:
        return b""
    return b"..." + data[-(size - 3) :].decode("utf-8", "ignore").encode()


class DerivedResult(NamedTuple):
    """A value that a handler returned for a message, as it is to be published."""

    value: Any
    id: str
    headers: Headers
    """Headers that are added to the record's own."""


class ResultRule(NamedTuple):
    """How the results of a group's handler become messages.

    :param several: a list, tuple or generator holds several values; False: any result is one value.
    """

    group: str
    several: bool

    def results_of(
        self, result: Any, batch: Batch, index: int, identity: str | None
    ) -> list[DerivedResult]:
        """The values to publish for a handler's result for one message.

        :param batch: the message's batch, with the message at ``index``.
        :param identity: the message's identity; None: its position.
        """
        values: Iterable[Any] = result if self.is_several(result) else (result,)
        prefix = self.id_prefix(batch, index, identity)
        headers = result_headers(batch, index)
        return [
            DerivedResult(value, f"{prefix}{number}", headers)
            for number, value in enumerate(values)
            if value is not None
        ]

    def is_several(self, result: Any) -> bool:
        """Whether a result holds several values."""
        return self.several and (isinstance(result, (list, tuple)) or hasattr(result, "__next__"))

    def id_prefix(self, batch: Batch, index: int, identity: str | None) -> str:
        """The common prefix of the IDs of a message's results. The same after a reset."""
        source = batch.id(index) if identity is None else identity
        if "\0" in source:
            first = header_text(batch.headers(index), FIRST_POSITION)
            if first:
                source = source.removesuffix(f"\0{first}").removesuffix(_NO_SOURCE)
            source = source.replace("\0", "/")
        return f"{source}/{self.group}/"


def result_headers(batch: Batch, index: int) -> list[tuple[str, bytes | None]]:
    """The headers of a message's results."""
    headers: list[tuple[str, bytes | None]] = [
        (CAUSATION, batch.id(index).encode("utf-8", "surrogateescape"))
    ]
    found = batch.headers(index)
    for name, _ in found:
        if name in _TRAVELLING:
            break
    else:  # most messages have none
        return headers
    correlation = header_text(found, CORRELATION) or header_text(found, LEGACY_CORRELATION)
    if correlation:
        headers.append((CORRELATION, correlation.encode("utf-8", "surrogateescape")))
    headers += [pair for pair in found if pair[0] in TRACE_HEADERS]
    return headers


def result_rule(group: str, result_type: Any) -> ResultRule:
    """The rule for a topic with values of this type."""
    return ResultRule(group, (get_origin(result_type) or result_type) not in (list, tuple))


def result_encoder(
    rule: ResultRule, topic: str, record: Callable[[Any, str, Headers], Record]
) -> ResultEncoder:
    """A function that encodes the results of a handler for their topic.

    :param record: makes the record of a value, with this ID and these headers.
    """

    def encode_results(
        result: Any, batch: Batch, index: int, identity: str | None
    ) -> Sequence[Outgoing]:
        if rule.is_several(result):
            found = rule.results_of(result, batch, index, identity)
            return [(topic, record(*each)) for each in found]
        if result is None:
            return ()
        id = f"{rule.id_prefix(batch, index, identity)}0"
        return ((topic, record(result, id, result_headers(batch, index))),)

    return encode_results


def redriven_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers of a dead letter's message that is put back: with its redrive count raised, and
    without its error, except for the facts about its first failure."""
    return [
        *headers_without(headers, (ID, REDRIVE, PUT_BACK), ERROR_PREFIX),
        (REDRIVE, str(redrives_of(headers) + 1).encode()),
        (PUT_BACK, str(times_put_back(headers) + 1).encode()),
        *first_failure(headers),
    ]


def first_failure(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers on a dead letter's first failure, for the message that is put back; only those
    that it does not have yet, because it failed for the first time."""
    found: list[tuple[str, bytes | None]] = []

    def add(name: str, content: str) -> None:
        content = _truncate_end(content, ERROR_BYTES // 8)
        found.append((name, content.encode("utf-8", "surrogateescape")))

    topic = header_text(headers, ERROR_TOPIC)
    if topic and header_text(headers, ORIGIN) is None:
        position = (header_text(headers, name) or "?" for name in (ERROR_PARTITION, ERROR_OFFSET))
        add(ORIGIN, "/".join((topic, *position)))
    timestamp = header_text(headers, ERROR_TIME)
    if timestamp and header_text(headers, FIRST_FAILED) is None:
        add(FIRST_FAILED, timestamp)
        add(FIRST_ERROR, error_of(headers))
    return found


def error_of(headers: Headers, unknown: str = "unknown") -> str:
    """The error of a dead letter: the exception's type and text.

    :param unknown: replaces a type that is not named.
    """
    kind = (header_text(headers, ERROR_EXCEPTION) or unknown).rpartition(".")[2]
    message = header_text(headers, ERROR_MESSAGE)
    return f"{kind}: {message}" if message else kind


def header_text(headers: Headers, name: str) -> str | None:
    """One header as text; None: there is none. If a name repeats, its last value."""
    found = None
    for each, value in headers:
        if each == name and value is not None:
            found = text(value)
    return found


def redrives_of(headers: Headers) -> int:
    """How often a message has come back so far, put back by an operator or by
    ``Retry(in_order=False)``; 0 if the header is missing or foreign."""
    return wire.parse_int(header_text(headers, REDRIVE)) or 0


def times_put_back(headers: Headers) -> int:
    """How often a dead letter's message was put back by an operator; 0 if the header is missing or
    foreign."""
    return wire.parse_int(header_text(headers, PUT_BACK)) or 0


def attempts_of(headers: Headers) -> int:
    """How often a message had failed when it was written; 0 if the header is missing or foreign."""
    return wire.parse_int(header_text(headers, ERROR_ATTEMPTS), _ATTEMPT_DIGITS) or 0
