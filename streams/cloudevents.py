"""CloudEvents 1.0 over any log, as its Kafka protocol binding says
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md).

* *Binary mode* is written: the value is the data and nothing else, its media type stands in the
  header ``content-type``, every attribute in a header of its own with the prefix ``ce_``.
* *Structured mode* is read, too: a message whose ``content-type`` begins with
  ``application/cloudevents`` and whose value is the JSON format. It is *opened* when it is read:
  from there on it is the same event in binary mode, so that its ID, source, time and correlation
  count as those of any message. One that cannot be opened is a poison message.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from stream_codecs import DecodeError, EncodeError, Json
from streams import wire
from streams.config import CloudEvents
from streams.message import (
    ID,
    SOURCE,
    SPECVERSION,
    TIME,
    TYPE,
    Batch,
    Headers,
    identity_of,
)

CONTENT_TYPE = "content-type"
STRUCTURED = "application/cloudevents"
"""How the media types of structured mode begin."""
FORMAT = "application/cloudevents+json"
PREFIX = "ce_"
VERSION = "1.0"

_envelope = Json().bind(dict[str, msgspec.Raw], topic="", role="value")
_ATTRIBUTE = re.compile(r"[a-z0-9]+")
_JSON = re.compile(r"[^/;\s]+/(?:[^/;\s]+\+)?json\s*(?:;.*)?", re.I)
_text = msgspec.json.Decoder(str)
_scalar = msgspec.json.Decoder(str | bool | int | None)


class Writer:
    """Makes the headers of one topic's events."""

    def __init__(self, settings: CloudEvents, topic: str, content_type: str) -> None:
        self._topic = topic
        self._type = settings.type
        self._named: dict[type, bytes] = {}
        self._always: list[tuple[str, bytes | None]] = [
            (SPECVERSION, VERSION.encode()),
            (SOURCE, settings.source.encode()),
        ]
        self._content_type = (CONTENT_TYPE, content_type.encode())

    def headers(self, value: Any, given: Headers) -> list[tuple[str, bytes | None]]:
        """All headers of a value's message; those that are given stay as they are.

        :raises EncodeError: the value's type cannot be told.
        """
        there = {name for name, _ in given}
        found = [pair for pair in self._always if pair[0] not in there]
        if TYPE not in there:
            found.append((TYPE, self._type_of(value)))
        if TIME not in there:
            found.append((TIME, datetime.now(timezone.utc).isoformat().encode()))
        if value is not None and CONTENT_TYPE not in there:
            found.append(self._content_type)
        return [*found, *given]

    def _type_of(self, value: Any) -> bytes:
        if callable(self._type):
            named = self._type(value)
            if not isinstance(named, str) or not named:
                raise EncodeError(
                    f"CloudEvents(type=...) returned {named!r}: a non-empty str is needed",
                    topic=self._topic,
                )
            return named.encode()
        if self._type is not None:
            return self._type.encode()
        kind = type(value)
        found = self._named.get(kind)
        if found is None:
            found = self._named[kind] = (type_name(kind) or self._topic).encode()
        return found


def type_name(kind: type) -> str | None:
    """What events of a class are called: its tag, else its name. None: it is no class of its own,
    but a dict, a str and the like."""
    if kind.__module__ == "builtins":
        return None
    if issubclass(kind, msgspec.Struct):
        tag = kind.__struct_config__.tag
        if tag is not None:
            return str(tag)
    return kind.__name__


class Opened(Batch):
    """A batch with the events of structured mode in it opened."""

    __slots__ = ("_batch", "_found", "broken")

    def __init__(
        self,
        batch: Batch,
        opened: Mapping[int, tuple[bytes | None, Headers]],
        broken: Mapping[int, DecodeError],
    ) -> None:
        """:param opened: the data and the headers of those that are, by index."""
        self.topic = batch.topic
        self.partition = batch.partition
        self.offsets = batch.offsets
        self.assignment = batch.assignment
        self.keys = batch.keys
        self.values = [*batch.values]
        self.ids = [*batch.ids]
        self.unreadable = batch.unreadable
        self.broken = broken
        self._headers = self._times = None
        self._batch = batch
        self._found = dict(opened)
        for index, (data, headers) in opened.items():
            self.values[index] = data
            self.ids[index] = identity_of(headers)

    def headers(self, index: int) -> Headers:
        """The headers of one message, as in binary mode."""
        found = self._found.get(index)
        return self._batch.headers(index) if found is None else found[1]

    def time(self, index: int) -> float:
        """The log's own time of one message."""
        return self._batch.time(index)

    def offset(self, index: int) -> int:
        """The offset of one message, as the log likes to show it."""
        return self._batch.offset(index)

    def release(self, index: int) -> None:
        """Let go of one settled message's bytes, its headers among them."""
        self.keys[index] = self.values[index] = None
        if index in self._found:
            self._found[index] = (None, ())
        self._batch.release(index)


def opened(batch: Batch) -> Batch:
    """The batch, or one in which the events of structured mode are opened, if it has any."""
    found: dict[int, tuple[bytes | None, Headers]] = {}
    broken: dict[int, DecodeError] = {}
    for index, value in enumerate(batch.values):
        headers = batch.extra_headers(index)
        if headers and value is not None and _is_structured(headers):
            try:
                found[index] = open_event(value, headers)
            except DecodeError as error:
                broken[index] = error
    return Opened(batch, found, broken) if found or broken else batch


def _is_structured(headers: Headers) -> bool:
    for name, value in headers:
        if value is not None and name.lower() == CONTENT_TYPE:
            return value[: len(STRUCTURED)].lower() == STRUCTURED.encode()
    return False


def open_event(value: bytes, headers: Headers) -> tuple[bytes | None, Headers]:
    """The data and the headers of an event in structured mode, as they are in binary mode.

    :raises DecodeError: it is none.
    """
    media = next(item for name, item in headers if name.lower() == CONTENT_TYPE) or b""
    if media.partition(b";")[0].strip().lower() != FORMAT.encode():
        raise _wrong(value, f"its format is none that can be read; {FORMAT} can")
    try:
        members = _envelope.decode(value)
    except DecodeError as error:
        raise _wrong(value, "it is no JSON object") from error
    attributes: dict[str, str] = {}
    for name, raw in members.items():
        if name in ("data", "data_base64"):
            continue
        if _ATTRIBUTE.fullmatch(name) is None:
            raise _wrong(value, "an attribute's name has more than lower-case letters and digits")
        try:
            found = _scalar.decode(raw)
        except msgspec.MsgspecError as error:
            why = f"{wire.brief(name)} is no string, integer or boolean"
            raise _wrong(value, why) from error
        if isinstance(found, bool):
            attributes[name] = "true" if found else "false"
        elif isinstance(found, int) and not -(2**31) <= found < 2**31:
            raise _wrong(value, f"{wire.brief(name)} is no integer of 32 bits")
        elif found is not None:
            attributes[name] = str(found)
    for name in ("id", "source", "type"):
        if not attributes.get(name) or "\0" in attributes[name]:
            raise _wrong(value, f"{name} is missing")
    if attributes.get("specversion") != VERSION:
        raise _wrong(value, f"specversion is not {VERSION}")
    content_type = attributes.pop("datacontenttype", None)
    data = _data(value, members, content_type)
    named = [(PREFIX + name, text.encode()) for name, text in attributes.items()]
    if data is not None:
        named.append((CONTENT_TYPE, (content_type or "application/json").encode()))
    # The attributes may stand in headers, too, but those of the value count.
    rest = [
        pair
        for pair in headers
        if pair[0].lower() != CONTENT_TYPE and not pair[0].lower().startswith(PREFIX)
    ]
    named.sort(key=lambda pair: pair[0] != ID)
    return data, [*named, *rest]


def _data(
    value: bytes, members: Mapping[str, msgspec.Raw], content_type: str | None
) -> bytes | None:
    data, encoded = members.get("data"), members.get("data_base64")
    if encoded is not None:
        if data is not None:
            raise _wrong(value, "it has both data and data_base64")
        try:
            return base64.b64decode(_text.decode(encoded), validate=True)
        except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
            raise _wrong(value, "data_base64 is not Base64") from error
    if data is None:
        return None
    plain = bytes(data)
    if content_type is None or _JSON.fullmatch(content_type) or not plain.startswith(b'"'):
        return plain
    return _text.decode(data).encode("utf-8", "surrogatepass")  # text of another media type


def _wrong(value: bytes, why: str) -> DecodeError:
    return DecodeError(f"a CloudEvent in structured mode: {why}", data=value)
