"""The records of a delay topic: entries, marks, requests. This module does no I/O.

Everything is keyed by the message's ID, so that compaction keeps only the last record about a
message:

* an *entry*: the message's bytes, with headers that say when it is due, where it goes, and the
  key it has there. A later entry of the same ID replaces the earlier one;
* a *mark*: a null value (a tombstone to compaction) that says how the entry ended:
  ``delivered``, ``cancelled``, or ``dead`` (it could not be delivered). It ends the entries of its
  ID before the position in its header (:data:`END`): one that was written meanwhile is another
  message's;
* a *request* to cancel, answered by a mark that names it: ``cancelled``, or ``delivered`` where it
  was too late, or ``unknown``.

The topic also holds parts of checkpoints (:mod:`streams.retries.checkpoints`), with keys that no
entry has (:func:`entry_key`).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, NamedTuple, get_args
from uuid import uuid4

from streams.message import ID, Headers, Record, headers_without, text
from streams.wire import parse_int

DUE = "streams_delay_due"
"""When an entry is due: milliseconds since the epoch, in decimal."""
TOPIC = "streams_delay_to"
"""The topic that the message is delivered to."""
KEY = "streams_delay_key"
"""The message's own key; absent for a message without a key."""
NULL = "streams_delay_null"
"""The message's value is null (which in a compacted topic would end the entry)."""
MESSAGE = "streams_delay_id"
"""The message's own ID, if the entry's key holds more than that."""
MARK = "streams_delay"
"""The type of a record without :data:`DUE`: a request (:data:`CANCEL`), or a mark's outcome."""
REQUEST = "streams_delay_of"
"""The request that a mark answers."""
END = "streams_delay_end"
"""The position before which a mark ends the entries of its ID, in decimal. A mark without it, as
former versions wrote, ends all entries before itself."""

CHECKPOINT = "streams_delay_checkpoint"
"""The header of a part of a checkpoint."""
CHECKPOINT_KEY = b"\xffcheckpoint/"
"""The prefix of the key of such a part."""

RETRY_KEY = b"\xffretry/"
"""The prefix of the key of an entry that is a message's next attempt."""

CANCEL = "cancel"

Outcome = Literal["cancelled", "delivered", "unknown", "dead"]

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_OWN_HEADERS = frozenset({DUE, TOPIC, KEY, NULL, MESSAGE, MARK, REQUEST, END, CHECKPOINT, ID})

LATEST_DUE = 1 << 60
"""The latest due time, in milliseconds."""

_POSITION_DIGITS = 40
"""Digits of a position, at most; on Redis it has up to 32."""


class DelayEntry(NamedTuple):
    """A message to be delivered, as stored in the delay topic."""

    key: bytes
    """Identifies the entry."""
    topic: str
    due: int
    record: Record
    """The record that is written to ``topic``."""


def entry_record(
    record: Record, topic: str, due: int, *, entry_id: str | None = None, id: str | None = None
) -> Record:
    """The record of a message's entry.

    :param record: the message, as it will be written to ``topic``.
    :param entry_id: identifies the entry; the message's ID if not given.
    :param id: the ID of the entry itself; a fresh one if not given.
    """
    headers: list[tuple[str, bytes | None]] = [(DUE, str(due).encode()), (TOPIC, topic.encode())]
    if record.key is not None:
        headers.append((KEY, record.key))
    if record.value is None:
        headers.append((NULL, b"1"))
    key, message_id = entry_key(entry_id or record.id), _bytes(record.id)
    if key != message_id:
        headers.append((MESSAGE, message_id))
    headers += headers_without(record.headers, _OWN_HEADERS)
    return Record(record.value or b"", key, id or str(uuid4()), headers)


def entry_key(entry_id: str) -> bytes:
    """The key of the entry with this ID. A key that would be that of a part of a checkpoint is
    prefixed with another byte; applying this to a prefixed key leaves it unchanged."""
    key = _bytes(entry_id)
    return b"\xff" + key if key.startswith(CHECKPOINT_KEY) else key


def parse_entry(key: bytes | None, value: bytes | None, headers: Headers) -> DelayEntry | None:
    """The entry in a record; None: it is not an entry, or cannot be read."""
    found = {name: data for name, data in headers if name in _OWN_HEADERS}
    due, topic = read_due(headers), found.get(TOPIC)
    if key is None or value is None or due is None or topic is None:
        return None
    own_headers = headers_without(headers, _OWN_HEADERS)
    id = text(found.get(MESSAGE) or key)
    payload = None if found.get(NULL) else value
    return DelayEntry(key, text(topic), due, Record(payload, found.get(KEY), id, own_headers))


def read_due(headers: Headers) -> int | None:
    """The due time of an entry; None: this is not an entry."""
    for name, value in headers:
        if name == DUE and value is not None:
            return parse_int(value)
    return None


def mark_record(
    key: bytes, outcome: Outcome, id: str, request_id: str | None = None, *, end: int | None = None
) -> Record:
    """A mark, which ends the entries of an ID.

    :param end: the position before which it ends them; None: its own.
    """
    headers: list[tuple[str, bytes | None]] = [(MARK, outcome.encode())]
    if end is not None:
        headers.append((END, str(end).encode()))
    if request_id is not None:
        headers.append((REQUEST, _bytes(request_id)))
    return Record(None, key, id, headers)


def cancel_record(message_id: str, id: str) -> Record:
    """A request not to deliver a message."""
    return Record(b"", entry_key(message_id), id, [(MARK, CANCEL.encode())])


def read_mark(headers: Headers) -> tuple[str | None, str | None]:
    """The type of a record that is not an entry (see :data:`MARK`), and the request it answers."""
    mark_text = request_id = None
    for name, value in headers:
        if value is not None and name == MARK:
            mark_text = text(value)
        elif value is not None and name == REQUEST:
            request_id = text(value)
    return mark_text, request_id


class ScannedRecord(NamedTuple):
    """The content of one record of a delay topic, without its payload."""

    position: int
    id_digest: int
    """The digest of its ID."""
    due: int | None
    """The due time of an entry; None for a mark or a request."""
    mark: str | None
    """A mark's outcome (``unknown`` if it is not one of this toolkit's outcomes), or
    :data:`CANCEL`."""
    end: int
    """The position before which a mark ends the entries of its ID; of other records their own."""


def scan_record(
    position: int, key: bytes, value: bytes | None, headers: Headers
) -> ScannedRecord | None:
    """Scan one record; None: it is not an entry, mark or request."""
    due = None if value is None else read_due(headers)
    mark = read_mark(headers)[0] if due is None else None
    if due is None and mark is None:
        return None
    if mark is not None and mark != CANCEL:
        mark = parse_outcome(mark) or "unknown"  # outcomes are cached: no foreign text
    end = position if mark is None else min(position, _read_end(headers, position))
    return ScannedRecord(position, id_digest(key), due, mark, end)


def _read_end(headers: Headers, otherwise: int) -> int:
    for name, value in headers:
        if name == END and (end := parse_int(value, _POSITION_DIGITS)) is not None:
            return end
    return otherwise


def parse_outcome(mark_text: str | None) -> Outcome | None:
    """The outcome of that name; None: there is none."""
    return next((each for each in _OUTCOMES if each == mark_text), None)


def id_digest(key: bytes) -> int:
    """The digest of an ID, which takes as little memory as a position. 120 bits: the chance that
    any two of a billion IDs collide is below 10**-18."""
    return int.from_bytes(blake2b(key, digest_size=15).digest())


def retry_entry_id(first_position: str, redrive: int) -> str:
    """The ID of the entry of a message's next attempt; it differs from any message's ID. The
    group's generation is not part of it: after a reset, a new attempt replaces one that still
    waits.

    :param first_position: the message's first position
        (:func:`streams.derived_records.first_position`).
    """
    return text(RETRY_KEY) + f"{first_position}/{redrive}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
