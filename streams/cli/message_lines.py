"""Messages of a topic as lines, for ``tail`` and ``replay``: events as they are stored, or as the
app's code reads them today."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from streams.cli import output
from streams.text import escape

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.eventsourcing.inspection import ReadEvent
    from streams.log.protocol import Log
    from streams.message import Batch

T = TypeVar("T")

LEFT_OUT = "(dropped by upcast)"
"""Shown in place of an event that is upcast to none."""


class _Part(NamedTuple):
    """An upcast event; or the output that replaces it if there is none.

    :param number: its number if the stored event is upcast to several; None: it is not.
    :param type: its type's name; None: it is no event.
    :param document: the event as JSON; None: the value is shown as it is stored.
    :param reason: why the stored event cannot be decoded.
    """

    number: int | None = None
    type: str | None = None
    document: bytes | None = None
    reason: str = ""


def event_reader(app: Streams | None, topic: str) -> ReadEvent | None:
    """The function that reads a topic's events today; None: no app that declares them was given."""
    if app is None:
        return None
    from streams.eventsourcing.inspection import event_reader

    return event_reader(app, topic)


class MessageLines:
    """Formats the messages of one topic as lines.

    :param holds_events: whether they are events of an aggregate, whose ID and versions are shown.
    :param read: how these are decoded today; None: they are shown as they are stored.
    """

    def __init__(
        self, log: Log, *, holds_events: bool = False, read: ReadEvent | None = None
    ) -> None:
        self._log = log
        self._holds_events = holds_events
        self._read = read if holds_events else None

    def json(self, batch: Batch, index: int) -> bytes:
        """A message as a line of JSON, or several if the event is upcast to several; nothing if
        it cannot be shown, which is reported."""
        return self._or_reported(batch, index, self._make_json) or b""

    def text(self, batch: Batch, index: int, *, colour: bool) -> bytes:
        """The same for people: time, position, key, value; for an event, the version after the key,
        which is its aggregate's ID."""
        made = self._or_reported(batch, index, partial(self._make_text, colour=colour))
        return (made or "").encode("utf-8", "backslashreplace")

    def _or_reported(self, batch: Batch, index: int, make: Callable[[Batch, int], T]) -> T | None:
        where = output.position_text(self._log, batch, index)
        return output.call_or_report(where, partial(make, batch, index))

    def _make_json(self, batch: Batch, index: int) -> bytes:
        found, value = output.message_json(self._log, batch, index), batch.values[index]
        event = _event_json(batch, index) if self._holds_events else {}
        if self._read is None:
            return output.json_bytes({**found, **output.value_json(value), **event})
        return b"".join(
            output.json_bytes({**found, **event, **_part_json(each, found["id"], value)})
            for each in _parts(self._read, value)
        )

    def _make_text(self, batch: Batch, index: int, *, colour: bool) -> str:
        value = batch.values[index]
        parts = [_Part()] if self._read is None else _parts(self._read, value)
        return "".join(self._line(batch, index, each, colour=colour) for each in parts)

    def _line(self, batch: Batch, index: int, part: _Part, *, colour: bool) -> str:
        position = output.position_text(self._log, batch, index).removeprefix(f"{batch.topic}/")
        key, data = output.bytes_text(batch.keys[index]), batch.values[index]
        batch.headers(index)  # unreadable headers are known after the attempt
        if part.document is not None:
            content = f"{part.type} {output.bytes_text(part.document)}"
        elif self._read is None or part.reason:
            content = "(tombstone)" if data is None else output.bytes_text(data) or ""
        else:
            content = LEFT_OUT
        content = escape(content)
        if part.reason:
            content += f"  (cannot be decoded: {escape(part.reason)})"
        if index in batch.unreadable:
            content += f"  (headers cannot be read: {escape(batch.unreadable[index])})"
        cells = [
            output.iso_time(batch.time(index)), position, "-" if key is None else escape(key)
        ]  # fmt: skip
        if self._holds_events:
            number = "" if part.number is None else f"#{part.number}"
            cells[2] += f" v{_event_version(batch, index)}{number}"
        if colour:
            cells = [
                f"\x1b[{code}m{cell}\x1b[0m" for code, cell in zip((2, 36, 1), cells, strict=True)
            ]
        return f"{'  '.join(cells)}  {content}\n"


def _parts(read: ReadEvent, value: bytes | None) -> Iterator[_Part]:
    """The events that a stored event is upcast to, one after the other."""
    from streams.eventsourcing.inspection import json_document

    found = read(value)
    if not found.events:
        yield _Part(reason=found.reason)
    for number, each in enumerate(found.events):
        which = number if len(found.events) > 1 else None
        yield _Part(which, type(each).__name__, json_document(each))


def _part_json(part: _Part, id: str, value: bytes | None) -> dict[str, Any]:
    """The fields of an upcast event that replace those of the stored one.

    :param id: the stored event's ID.
    :param value: the stored event.
    """
    if part.reason:
        return {**output.value_json(value), "why": part.reason}
    if part.number is not None:
        id = f"{id}#{part.number}"
    document = None if part.document is None else output.document_json(part.document)
    return {"id": id, "type": part.type, "value": document}


def _event_json(batch: Batch, index: int) -> dict[str, Any]:
    """The aggregate of an event, its version, and the cause it was appended for, if known."""
    from streams.log.event_headers import cause_of

    key, cause = batch.keys[index] or b"", cause_of(batch.headers(index))
    name, text = (
        ("aggregate", key.decode())
        if output.is_text(key)
        else ("aggregate_base64", output.base64_text(key))
    )
    found = {name: text, "version": _event_version(batch, index)}
    return {**found, "cause": output.printable_text(cause)} if cause else found


def _event_version(batch: Batch, index: int) -> int | None:
    """The version of an event in its history."""
    from streams.log.event_headers import event_header, event_version, parse_event

    header = parse_event(event_header(batch.headers(index)), batch.id(index))
    return None if header is None else event_version(header)
