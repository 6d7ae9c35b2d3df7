"""Messages of a topic: browsing, searching, and one message by itself. New ones arrive with
the figures (:mod:`streams.web.arrivals`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound, StreamsError
from streams.inspection.offset_texts import parse_offset, parse_offsets
from streams.log.range_reader import read_batches, read_first
from streams.message import CAUSATION, CORRELATION, LEGACY_CAUSATION, LEGACY_CORRELATION
from streams.text import printable_text
from streams.web.addresses import topic_of
from streams.web.arrivals import tail_of
from streams.web.browsing import MAX_PARTITIONS, MessagePage, from_place, newest
from streams.web.decoded import NO_DOCUMENT, document_of, events_today
from streams.web.documents import indented_document, indented_json
from streams.web.page import Page, Screen
from streams.web.rendering import path_part
from streams.web.search import MessageQuery, Search, parse_positions
from streams.web.streaming import stream_page
from streams.web.trail import trail_of

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch
    from streams.topic_reader import OffsetSpec
    from streams.web.redaction import Payloads, Shown

COUNTS = (25, 50, 100, 200)
"""The possible numbers of messages on a page."""

MAX_SHOWN = 256 << 10
"""The bytes of a value that its page shows; the rest is in the file that can be saved."""

MAX_INDENTED = 128 << 10
"""The largest JSON document that is shown with line breaks, in bytes."""

HEX_ROWS = 256
"""The rows of 16 bytes that are shown of a value that is not text."""

LOOKS_BACK = (1, 20, 400)
"""The distances, one after the other, within which the previous message is searched for."""

SEARCH_FIELDS = MessageQuery._fields


def list_messages(page: Page) -> Response:
    """The messages of a topic: the newest, those from a position on, or those of a search."""
    topic, log, fields = topic_of(page), page.log, page.fields
    info = log.describe_topic(topic)
    partition = fields.optional_number("partition")
    query = MessageQuery(**{name: fields.raw(name) for name in SEARCH_FIELDS})
    count = fields.number("count", 50, low=1, high=COUNTS[-1])
    start = fields.text("from")
    context: dict[str, Any] = {
        "title": page._("Messages of %(topic)s", topic=topic),
        "topic": topic,
        "info": info,
        "partition": partition,
        "query": query,
        "count": count,
        "counts": COUNTS,
        "start": start,
        "until": fields.text("until"),
        "forwards": fields.text("order") == "oldest",
        "tail": tail_of(page, topic, partition),
    }
    if query.is_empty:
        leaf = _browse(page, log, topic, partition, count, start)
        return page.render("messages.html", leaf=leaf, search=None, **context)
    search = _search(page, log, topic, partition, query, start, forwards=context["forwards"])
    return stream_page(page, "messages.html", leaf=None, search=search, **context)


def _browse(
    page: Page, log: Log, topic: str, partition: int | None, count: int, start: str
) -> MessagePage:
    if start:
        place = parse_offsets(start, page._("From"), topic)
        return from_place(
            log, topic, page.payloads, count,
            partition=None if isinstance(place, Mapping) else partition, start=place, now=page.now,
        )  # fmt: skip
    if partition is None and log.describe_topic(topic).partitions > MAX_PARTITIONS:
        partition = 0
    until = parse_positions(log, page.fields.text("until"))
    return newest(log, topic, page.payloads, count, partition=partition, until=until, now=page.now)


def _search(
    page: Page,
    log: Log,
    topic: str,
    partition: int | None,
    query: MessageQuery,
    start: str,
    *,
    forwards: bool,
) -> Search:
    place: OffsetSpec | Mapping[int, OffsetSpec] = "earliest"
    if start:
        place = parse_offsets(start, page._("From"), topic)
    end: OffsetSpec = "latest"
    if page.fields.text("to"):
        end = parse_offset(page.fields.text("to"), page._("To"))
    return Search(
        page.app, log, topic, query, page.payloads,
        start=place, end=end, partition=None if isinstance(place, Mapping) else partition,
        backwards=not forwards, positions=parse_positions(log, page.fields.text("positions")),
        now=page.now,
    )  # fmt: skip


# -- one message


def show_message(page: Page) -> Response:
    """One message: its value, its headers, and its trail."""
    row, offset = _row(page)
    batch, topic, payloads = row.batch, row.batch.topic, page.payloads
    headers = payloads.headers(topic, batch.headers(row.index), batch.keys[row.index])
    value = payloads.value(topic, batch.values[row.index])
    log = page.log
    first, end = log.watermarks(topic, batch.partition)
    before = _before(log, topic, batch.partition, first, offset)
    after = read_first(log, topic, batch.partition, offset + 1, end)
    address = f"/topics/{path_part(topic)}/messages/{batch.partition}/"
    return page.render(
        "message.html",
        title=f"{topic}/{batch.partition}/{log.format_offset(offset)}",
        topic=topic,
        is_event_topic=log.describe_topic(topic).is_event_topic,
        partition=batch.partition,
        offset=log.format_offset(offset),
        time=batch.time(row.index),
        id=payloads.id(topic, batch.id(row.index), batch.keys[row.index]),
        key=payloads.key(topic, batch.keys[row.index]),
        value=value,
        size=len(value.data) if value.data is not None else None,
        headers=[(printable_text(name), shown) for name, shown in headers],
        problem=printable_text(batch.unreadable.get(row.index, "")),
        **_value_context(page, batch, row.index, value),
        caused_by=_header(payloads, batch, row.index, CAUSATION, LEGACY_CAUSATION),
        correlation=_header(payloads, batch, row.index, CORRELATION, LEGACY_CORRELATION),
        trail=page.url(address + path_part(log.format_offset(offset)) + "/trail"),
        before="" if before is None else page.url(address + path_part(log.format_offset(before))),
        after=""
        if after is None
        else page.url(address + path_part(log.format_offset(after.offsets[0]))),
        decoded=_decoding_problem(page, row),
        today=_events_today(page, batch, row.index, value),
        may_save=page.url(address + path_part(log.format_offset(offset)) + "/value"),
    )


def _before(log: Log, topic: str, partition: int, first: int, offset: int) -> int | None:
    """The offset of the message before an offset; None: there is none from ``first`` on, or none
    nearby. The record just before it may not be a message: the end of a transaction, an event that
    was written too late."""
    for count in LOOKS_BACK:
        begin = max(first, log.offset_before(topic, partition, offset, count))
        found: int | None = None
        for batch in read_batches(log, topic, partition, begin, offset):
            found = batch.offsets[-1]
        if found is not None or begin <= first:
            return found
    return None


def show_trail(page: Page) -> Response:
    """The trail of a message; a part of its page that comes after the rest, as it takes long."""
    row, offset = _row(page)
    place = f"{row.batch.partition}/{path_part(page.log.format_offset(offset))}"
    return page.render(
        "message_trail.html",
        title=f"{row.batch.topic}/{row.batch.partition}/{page.log.format_offset(offset)}",
        message=page.url(f"/topics/{path_part(row.batch.topic)}/messages/{place}"),
        trail=trail_of(page, row),
    )


def save_value(page: Page) -> Response:
    """The value of a message as a file, byte for byte (except for ``redact=``)."""
    row, _ = _row(page)
    shown = page.payloads.value(row.batch.topic, row.value)
    if shown.data is None:
        raise NotFound(page._("It has no value that is shown."))
    name = f"{row.batch.topic}-{row.batch.partition}-{row.batch.offsets[row.index]}"
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "content-security-policy": "default-src 'none'; sandbox",
        "cache-control": "no-store",
    }
    return Response(shown.data, media_type="application/octet-stream", headers=headers)


def _row(page: Page) -> tuple[Any, int]:
    """The message that an address names, and its offset."""
    from streams.log.range_reader import LogRow

    topic, log = topic_of(page), page.log
    given = page.request.path_params
    partition, written = str(given["partition"]), str(given["offset"])
    count = log.describe_topic(topic).partitions
    if not partition.isdecimal() or len(partition) > 9 or int(partition) >= count:
        raise NotFound(page._("There is no such partition."))
    try:
        offset = log.parse_offset(written)
    except StreamsError as error:
        raise InvalidValue(str(error)) from None
    _, end = log.watermarks(topic, int(partition))
    batch = read_first(log, topic, int(partition), offset, min(end, offset + 1))
    if batch is None or batch.offsets[0] != offset:
        raise NotFound(
            page._("There is no message at %(place)s: it was deleted, or never was.",
                   place=f"{topic}/{partition}/{written[:100]}")
        )  # fmt: skip
    return LogRow(batch, 0), offset


def _header(payloads: Payloads, batch: Batch, index: int, *names: str) -> str:
    """The first of these headers that exists, as the visitor may see it; empty: none does."""
    headers = batch.headers(index)
    for name in names:
        for each, value in headers:
            if each == name and value:
                return payloads.header(batch.topic, name, value, batch.keys[index]).text or ""
    return ""


def _value_context(page: Page, batch: Batch, index: int, value: Shown) -> dict[str, Any]:
    """The variables that show a value: as JSON with line breaks, text, or bytes in rows."""
    data = value.data
    if data is None:
        return {"kind": "none", "text": "", "rows": (), "is_cut": False}
    if len(data) <= MAX_INDENTED and (indented := indented_json(data)) is not None:
        return {"kind": "json", "text": indented, "rows": (), "is_cut": False}
    document = document_of(page.app, page.payloads, batch, index, data)
    if document is not NO_DOCUMENT and (found := indented_document(document)) is not None:
        return {"kind": "decoded", "text": found[:MAX_SHOWN], "rows": (), "is_cut": False}
    is_cut = len(data) > MAX_SHOWN
    try:
        text = data[:MAX_SHOWN].decode("utf-8", "ignore" if is_cut else "strict")
        if is_cut and text and "\0" in text:
            raise UnicodeError
    except UnicodeError:
        rows = list(_hex_rows(data))
        return {"kind": "bytes", "text": "", "rows": rows, "is_cut": len(data) > 16 * HEX_ROWS}
    return {"kind": "text", "text": text, "rows": (), "is_cut": is_cut}


def _events_today(
    page: Page, batch: Batch, index: int, value: Shown
) -> Sequence[tuple[str, str]] | None:
    """The events that a stored one is upcast to, as JSON with line breaks; None: it is not upcast,
    or the app declares no aggregate for it."""
    found = events_today(page.app, page.payloads, batch, index, value.data)
    if found is None:
        return None
    return [
        (name, (indented_json(data) or data.decode("utf-8", "backslashreplace"))[:MAX_SHOWN])
        for name, data in found
    ]


def _hex_rows(data: bytes) -> Iterator[tuple[str, str, str]]:
    for at in range(0, min(len(data), 16 * HEX_ROWS), 16):
        part = data[at : at + 16]
        shown = "".join(chr(each) if 32 <= each < 127 else "." for each in part)
        yield f"{at:08x}", part.hex(" "), shown


def _decoding_problem(page: Page, row: Any) -> str:
    """Why the value cannot be decoded as the type that the app declares; empty: it can, or no type
    is declared."""
    from streams.processing import Skip

    declared = page.app.topics.get(row.batch.topic)
    if declared is None or not page.payloads.allowed:
        return ""
    try:
        declared.decoding.decode_one(row.batch, row.index)
    except Skip:
        return ""
    except Exception as error:
        shown = page.payloads.error(row.batch.topic, str(error))
        return shown.text or page._("it is not of the topic's type")
    return ""


SCREENS = (
    Screen("/topics/{topic}/messages", list_messages, payloads=True),
    Screen("/topics/{topic}/messages/{partition}/{offset}", show_message, payloads=True),
    Screen("/topics/{topic}/messages/{partition}/{offset}/trail", show_trail, payloads=True),
    Screen("/topics/{topic}/messages/{partition}/{offset}/value", save_value, payloads=True),
)
