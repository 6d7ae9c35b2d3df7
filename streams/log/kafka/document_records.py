"""Collections of documents on Kafka: their topics, and what their records say.

The collection ``accounts.balances.v2`` is the compacted topic ``accounts.balances.v2.documents``: a
name of that ending with that setting *is* a collection, so all are listed by one question for names
and one for the settings of those that end so. Each write is one transaction:

===========  ==============================  =================================================
record       key                             value and headers
===========  ==============================  =================================================
a document   the document's                  its value; none: it is deleted. ``streams_document``:
                                             ``NUMBER``, and ``/-`` behind it if there is no value
                                             but only a failure; ``streams_failure``: the failure
a checkpoint ``streams.checkpoint``          its data. ``streams_checkpoint``:
(the last)                                   ``NUMBER/CLEARED/POSITION/ORIGIN``; without a position:
                                             there is no checkpoint any more
===========  ==============================  =================================================

``NUMBER`` is the write's: one more than that of the write before, by whichever writer. ``CLEARED``
is the number of the write that cleared the partition last, or 0: documents of earlier writes are
gone. ``ORIGIN`` is made up at the first write of all, and tells whether a topic of that name was
deleted since and made anew. A document's key that begins with ``streams.checkpoint`` has that in
front of it once more, so every key is possible and none is taken for a checkpoint.

**Which records count.** Records of transactions that were not committed are never seen. A
checkpoint counts if its number is larger than that of every checkpoint before it that counted, and
its origin the same. A document counts as soon as a checkpoint that counts stands behind it, if its
number is larger than that of the checkpoint before, not larger than that of the one behind it, and
not smaller than ``CLEARED``. All else (records without these headers, with numbers or positions
that are none, with headers that the driver cannot read, copies of former records) is left out, and
reported once.

**Why an index that is made after compaction is right.** Compaction keeps the last record of each
key, so the last checkpoint is there, and behind every document; of each document the last write is
there, whose number lies between those of two checkpoints, those in between having gone. What it
removes was replaced by a write that is older than ``min.compaction.lag.ms``, so whoever was at the
end within that time sees every single write, and whoever was not shows nothing until he has
reached the end (:mod:`.document_index`). A mark of a deletion stays for ``delete.retention.ms``:
whoever was away for longer begins anew.

Nothing but the toolkit may write to these topics, and only ACLs can see to that: a stranger's
record of a document's key is left out, but compaction removes the document for its sake.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from streams.log.documents import FAILURE_HEADER, Checkpoint, StoredDocument
from streams.message import Headers
from streams.wire import parse_int

SUFFIX = ".documents"

DOCUMENT = "streams_document"
CHECKPOINT = "streams_checkpoint"

CHECKPOINT_KEY = b"streams.checkpoint"

COMPACTION_LAG = 3600.0
"""Seconds for which every write can be read, replaced or not."""

DELETE_RETENTION = 86400.0
"""Seconds for which marks of deletions can be read."""

_MAX_POSITION = 39
"""Digits of a position: it may have 128 bits."""

_MAX_ORIGIN = 32

_NO_VALUE = b"-"

DriverHeaders = list[tuple[str, str | bytes | None]]
"""As the driver takes them."""


def documents_topic(collection: str) -> str:
    """The topic of a collection."""
    return collection + SUFFIX


def record_key(key: bytes) -> bytes:
    """The key of a document's record."""
    return CHECKPOINT_KEY + key if key.startswith(CHECKPOINT_KEY) else key


def document_key(key: bytes) -> bytes:
    """The key of the document of a record, which is no checkpoint's."""
    return key[len(CHECKPOINT_KEY) :] if key.startswith(CHECKPOINT_KEY) else key


def document_record(
    number: int, document: StoredDocument | None
) -> tuple[bytes | None, DriverHeaders]:
    """Value and headers of a document's record."""
    written = b"%d" % number
    if document is None:
        return None, [(DOCUMENT, written)]
    value, failure = document
    if value is None:  # a record without a value is a deletion
        value, written = b"", written + b"/" + _NO_VALUE
    headers: DriverHeaders = [(DOCUMENT, written)]
    if failure:
        headers.append((FAILURE_HEADER, failure))
    return value, headers


def checkpoint_record(
    number: int, cleared: int, origin: bytes, checkpoint: Checkpoint | None
) -> tuple[bytes, DriverHeaders]:
    """Value and headers of a checkpoint's record."""
    if checkpoint is None:
        return b"", [(CHECKPOINT, b"%d/%d//%b" % (number, cleared, origin))]
    written = b"%d/%d/%d/%b" % (number, cleared, checkpoint.position, origin)
    return checkpoint.data, [(CHECKPOINT, written)]


class FoundCheckpoint(NamedTuple):
    """The content of a checkpoint's record."""

    number: int
    cleared: int
    position: int | None
    origin: bytes


def parse_checkpoint(value: bytes | None, headers: Headers) -> FoundCheckpoint | None:
    """Parse a record with the checkpoint's key; None if it is not a valid checkpoint."""
    if value is None or len(headers) != 1:
        return None
    ((name, content),) = headers
    parts = (content or b"").split(b"/", 4)
    if name != CHECKPOINT or len(parts) != 4:
        return None
    number_digits, cleared_digits, position_digits, origin = parts
    number, cleared = parse_int(number_digits), parse_int(cleared_digits)
    position = parse_int(position_digits, _MAX_POSITION) if position_digits else None
    if not number or cleared is None or cleared > number or (position_digits and position is None):
        return None
    if not 0 < len(origin) <= _MAX_ORIGIN:
        return None
    return FoundCheckpoint(number, cleared, position, origin)


class FoundDocument(NamedTuple):
    """The content of a document's record.

    :param content: the document, packed (:func:`unpack`); None: it is deleted.
    """

    number: int
    is_stopped: bool
    content: bytes | None


_LENGTH = struct.Struct("<I")
_HAS_NO_VALUE = 1 << 31


def parse_document(value: bytes | None, headers: Headers) -> FoundDocument | None:
    """Parse a document's record; None if it is not a valid one."""
    if not headers:
        return None
    (name, content), *others = headers
    if name != DOCUMENT:
        return None
    written, slash, rest = (content or b"").partition(b"/")
    number = parse_int(written)
    if not number or rest != (_NO_VALUE if slash else b""):
        return None
    if not others:
        if slash:  # neither a value nor a failure
            return None
        return FoundDocument(number, False, None if value is None else b"\0\0\0\0" + value)
    (name, failure), *others = others
    if others or name != FAILURE_HEADER or not failure or value is None:
        return None
    if slash:
        return FoundDocument(number, True, _LENGTH.pack(len(failure) | _HAS_NO_VALUE) + failure)
    return FoundDocument(number, True, _LENGTH.pack(len(failure)) + failure + value)


def unpack(content: bytes) -> StoredDocument:
    """A document from what :class:`FoundDocument` holds of it.

    :raises ValueError, struct.error: this holds none.
    """
    (length,) = _LENGTH.unpack_from(content)
    if length & _HAS_NO_VALUE:
        return StoredDocument(None, content[4:])
    if 4 + length > len(content):
        raise ValueError("a document is too short")
    return StoredDocument(content[4 + length :], content[4 : 4 + length])
