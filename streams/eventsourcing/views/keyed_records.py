"""The records of a keyed topic: a view's events, written again under the keys of their documents.

Where a document's events stand in several partitions, they are first brought into one. A record of
the keyed topic has the key of a document, the bytes and headers of the event's message, and a
header that says where that stands:

``__streams.view``: ``PARTITION/OFFSET/COPY/EVENT/AFTER/KEYED.SOURCE/TOPIC``

* COPY counts the records that are made of one message, from 0: of each of its events, one for each
  document that it changes.
* EVENT is ``NUMBER.COUNT``: which of the message's events it is, from 0, and of how many, as the
  code had it that wrote this; ``-``: all of them, as the message's own key is the document's.
* AFTER is ``OFFSET.COPY`` of the record before it of the same source partition in the same
  partition of the keyed topic; ``-``: all before it were confirmed when it was written.
* KEYED is the incarnation of the keyed topic that this was written for, and SOURCE that of the
  topic that it was made of (:mod:`streams.eventsourcing.views.incarnations`).

A writer confirms all records of a batch before it begins the next, and begins again with the
batch's first message when that fails. So a reader that takes only records which are behind the last
one it took, and whose AFTER is not behind that, takes each record once, in the order of the source,
and none is missing. That holds within one keyed topic: a writer that was frozen while the topic was
made anew has confirmed nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple

from streams.message import ID, Batch, Headers, headers_without, identity_of, text
from streams.wire import parse_float, parse_int, parse_offset, parse_partition

HEADER = "__streams.view"

MAX_HEADER = 400
"""Bytes of the header, at most: a topic's name has up to 249."""


class KeyedRecord(NamedTuple):
    """What the header says.

    :param event: which of the message's events it is, and of how many; None: all of them.
    """

    topic: str
    partition: int
    offset: int
    copy: int
    event: tuple[int, int] | None
    after: tuple[int, int] | None
    keyed_incarnation: str = ""
    incarnation: str = ""

    @property
    def source(self) -> str:
        """The source partition, as text."""
        return f"{self.topic}/{self.partition}"


def keyed_header(record: KeyedRecord) -> tuple[str, bytes]:
    """The header of a record."""
    topic, partition, offset, copy, event, after, *incarnations = record
    which, behind, both = _pair_text(event), _pair_text(after), ".".join(incarnations)
    return HEADER, f"{partition}/{offset}/{copy}/{which}/{behind}/{both}/{topic}".encode()


def _pair_text(pair: tuple[int, int] | None) -> str:
    return "-" if pair is None else f"{pair[0]}.{pair[1]}"


def parse_keyed(headers: Headers) -> KeyedRecord | None:
    """What a record's header says; None: it has none that was written here."""
    value = next((value for name, value in headers if name == HEADER), None)
    if value is None or len(value) > MAX_HEADER or not value.isascii():
        return None
    parts = text(value).split("/", 6)
    if len(parts) != 7 or parts[5].count(".") != 1:
        return None
    partition, place = parse_partition(parts[0]), _parse_place(parts[1], parts[2])
    event = after = None
    if parts[3] != "-":
        number, count = map(parse_int, _split_pair(parts[3]))
        if number is None or count is None or number >= count:
            return None
        event = number, count
    if parts[4] != "-":
        after = _parse_place(*_split_pair(parts[4]))
        if after is None:
            return None
    if partition is None or place is None:
        return None
    return KeyedRecord(parts[6], partition, *place, event, after, *_split_pair(parts[5]))


def _split_pair(written: str) -> tuple[str, str]:
    first, _, second = written.partition(".")
    return first, second


def _parse_place(offset: str, copy: str) -> tuple[int, int] | None:
    found = parse_offset(offset), parse_int(copy)
    return None if found[0] is None or found[1] is None else (found[0], found[1])


_ID = "__streams.view.id"
KEY_HEADER = "__streams.view.key"
_TIME = "__streams.view.time"
_PUT_ASIDE = frozenset((ID, HEADER, _ID, KEY_HEADER, _TIME))


def copied_headers(batch: Batch, index: int) -> list[tuple[str, bytes | None]]:
    """The headers of a message, as its copies have them: what a log gives each message anew (ID,
    key and time) is put aside."""
    headers = headers_without(batch.headers(index), _PUT_ASIDE)
    headers.append((_TIME, repr(batch.time(index)).encode()))
    for name, value in batch.headers(index):
        if name == ID:
            headers.append((_ID, value))
    if batch.keys[index] is not None:
        headers.append((KEY_HEADER, batch.keys[index]))
    return headers


def source_batch(record: KeyedRecord, batch: Batch, index: int) -> Batch:
    """The message that a record was made of, in a batch of its own."""
    found = dict(batch.headers(index))
    headers = headers_without(batch.headers(index), _PUT_ASIDE)
    if (id := found.get(_ID)) is not None:
        headers.insert(0, (ID, id))
    return Batch(
        record.topic,
        record.partition,
        (record.offset,),
        [found.get(KEY_HEADER)],
        [batch.values[index]],
        [identity_of(headers)],
        [headers],
        [parse_float(found.get(_TIME)) or 0.0],
    )
