"""The headers of a record in an event topic.

Every record of an append names its append, its index in the append, and the history upon which the
append was decided. On a log that checks the condition when it writes, that is for people and
foreign readers. On Kafka, which cannot check, every reader decides by these headers
(:mod:`streams.log.kafka.arbitration`), so they are the same on every log:

===================  ===================================================================
``streams_event``    ``INDEX/COUNT/BASE_VERSION/BASE_ID`` of the first record (its ID is the
                     append's), ``INDEX/COUNT/BASE_VERSION/BASE_ID/APPEND_ID`` of the others.
                     ``0/0/...`` is a refusal, which is no event.
``streams_cause``    the cause of the events, in the first record
``streams_final``    ``1`` in the last record of an append that ends its history for good
``streams_refusal``  in a refusal, the name of the exception by which the decision refused
``streams_void``     alone, on Kafka: the append of this ID, begun above, does not count if it is
                     not whole by now
===================  ===================================================================

If the append counts, the event's version is ``BASE_VERSION + INDEX + 1``.

A copy of an event in another topic (a dead letter, a message that is tried again later, what a
replay has copied) is a message like any other: it has ``streams_event_version`` in place of these
headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streams.log.events import Base, EventAppend, Head
from streams.message import Headers, Record, headers_without
from streams.wire import parse_int, text

EVENT = "streams_event"
CAUSE = "streams_cause"
FINAL = "streams_final"
REFUSAL = "streams_refusal"
VOID = "streams_void"
COPIED_VERSION = "streams_event_version"

MAX_COUNT = 10_000
"""Events in one append, at most: a reader has to remember those of an incomplete append."""

MAX_CAUSE = 1_000
"""Bytes of a cause, at most."""

MAX_REFUSAL = 200
"""Bytes of the name of an exception by which a decision refused, at most."""

MAX_ID = 200
"""Bytes of a record's ID, at most; ``/`` is not possible in one."""

_MAX_HEADER = 500

APPEND_HEADERS = frozenset((EVENT, CAUSE, FINAL, REFUSAL, VOID, COPIED_VERSION))
"""The names of the headers above, which describe a record's place in the histories."""


class EventHeader(NamedTuple):
    """The parsed header :data:`EVENT` of one record."""

    record_index: int
    record_count: int
    base: Base
    append_id: str

    @property
    def is_refusal(self) -> bool:
        """Whether the record is a refusal, which is no event and has no version."""
        return self.record_count == 0

    @property
    def is_last(self) -> bool:
        """Whether the record is the last one of its append."""
        return self.record_index + 1 >= self.record_count


def make_append(
    key: bytes,
    base: Base,
    records: Sequence[Record],
    *,
    cause: str = "",
    is_final: bool = False,
    is_refusal: bool = False,
    refused_by: str = "",
) -> EventAppend:
    """An append whose records get the headers above; the records are changed in place.

    :param records: values, IDs and other headers; at least one record, and exactly one for a
        refusal.
    :param refused_by: of a refusal, the name of the exception by which the decision refused.
    """
    append_id = records[0].id
    count = 0 if is_refusal else len(records)
    common = f"{count}/{base.version}/{base.last_id}"
    for index, record in enumerate(records):
        value = f"{index}/{common}/{append_id}" if index else f"0/{common}"
        headers: list[tuple[str, bytes | None]] = [
            (EVENT, value.encode("utf-8", "surrogateescape"))
        ]
        if cause and not index:
            headers.append((CAUSE, cause.encode("utf-8", "surrogateescape")))
        if is_final and index == len(records) - 1:
            headers.append((FINAL, b"1"))
        if is_refusal and refused_by:
            headers.append((REFUSAL, refused_by.encode("utf-8", "replace")[:MAX_REFUSAL]))
        record.key = key
        record.headers = [*headers, *record.headers]
    head = Head(Base(base.version + count, records[-1].id), is_final)
    return EventAppend(key, base, records, head, cause, is_refusal)


def parse_event(value: bytes | None, record_id: str) -> EventHeader | None:
    """The parsed header; None if it is not in the form that :func:`make_append` writes."""
    if value is None or len(value) > _MAX_HEADER:
        return None
    parts = value.split(b"/")
    append_id = b""
    if len(parts) == 4:
        index_digits, count_digits, version_digits, last = parts
    elif len(parts) == 5:
        index_digits, count_digits, version_digits, last, append_id = parts
    else:
        return None
    index, count = parse_int(index_digits), parse_int(count_digits)
    version = parse_int(version_digits)
    if index is None or count is None or version is None or count > MAX_COUNT:
        return None
    last_id = text(last)
    if version and not last_id:
        return None
    if not record_id or len(record_id) > MAX_ID or "/" in record_id:
        return None  # no base could name it
    if index == 0:
        return EventHeader(0, count, Base(version, last_id), record_id) if len(parts) == 4 else None
    if index >= count or not append_id:
        return None
    return EventHeader(index, count, Base(version, last_id), text(append_id))


def event_header(headers: Headers) -> bytes | None:
    """The value of the header :data:`EVENT`; None if the record has none."""
    for name, value in headers:
        if name == EVENT and value is not None:
            return value
    return None


def cause_of(headers: Headers) -> str:
    """The cause of the record's append; empty: it has none."""
    for name, value in headers:
        if name == CAUSE and value and len(value) <= MAX_CAUSE:
            return text(value)
    return ""


def refused_by(headers: Headers) -> str:
    """The name of the exception by which a decision refused; empty: the record is no refusal, or
    one without a name."""
    for name, value in headers:
        if name == REFUSAL and value and len(value) <= MAX_REFUSAL:
            return text(value)
    return ""


def is_final(headers: Headers) -> bool:
    """Whether this record is the final one of its history."""
    return any(name == FINAL and value == b"1" for name, value in headers)


def is_event(headers: Headers) -> bool:
    """Whether an append wrote this record, going by its headers."""
    return event_header(headers) is not None


def event_version(header: EventHeader) -> int | None:
    """The version of an event whose append counts; None for a refusal."""
    return None if header.is_refusal else header.base.version + header.record_index + 1


def copied_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers of a record's copy in another topic; unchanged if the record is no event.

    They have the event's version, but not the headers of an append, by which an event topic is
    recognized.
    """
    value = event_header(headers)
    if value is None:
        return list(headers)
    found = headers_without(headers, APPEND_HEADERS)
    header = parse_event(value, "copied")
    version = None if header is None else event_version(header)
    if version is not None:
        found.append((COPIED_VERSION, str(version).encode()))
    return found
