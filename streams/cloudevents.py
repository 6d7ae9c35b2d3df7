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
from streams.message import ID, SOURCE, SPECVERSION, TIME, TYPE, Batch, Headers, identity_of

CONTENT_TYPE = "content-type"
STRUCTURED_MEDIA_TYPE = "application/cloudevents"
"""How the media types of structured mode begin."""
JSON_FORMAT = "application/cloudevents+json"
ATTRIBUTE_PREFIX = "ce_"
SPEC_VERSION = "1.0"

_envelope_codec = Json().bind(dict[str, msgspec.Raw], topic="", role="value")
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]+")
_JSON_MEDIA_TYPE = re.compile(r"[^/;\s]+/(?:[^/;\s]+\+)?json\s*(?:;.*)?", re.I)
_text_decoder = msgspec.json.Decoder(str)
_scalar_decoder = msgspec.json.Decoder(str | bool | int | None)


class EventHeaderWriter:
    """Makes the headers of one topic's events."""

    def __init__(self, settings: CloudEvents, topic: str, content_type: str) -> None:
        self._topic = topic
        self._type = settings.type
        self._type_names: dict[type, bytes] = {}
        self._fixed_headers: list[tuple[str, bytes | None]] = [
            (SPECVERSION, SPEC_VERSION.encode()),
            (SOURCE, settings.source.encode()),
        ]
        self._content_type = (CONTENT_TYPE, content_type.encode())

    def headers(self, value: Any, given: Headers) -> list[tuple[str, bytes | None]]:
        """All headers of a value's message; those that are given stay as they are.

        :raises EncodeError: the value's type cannot be told.
        """
        present = {name for name, _ in given}
        found = [pair for pair in self._fixed_headers if pair[0] not in present]
        if TYPE not in present:
            found.append((TYPE, self._event_type(value)))
        if TIME not in present:
            found.append((TIME, datetime.now(timezone.utc).isoformat().encode()))
        if value is not None and CONTENT_TYPE not in present:
            found.append(self._content_type)
        return [*found, *given]

    def _event_type(self, value: Any) -> bytes:
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
        cls = type(value)
        if cls not in self._type_names:
            self._type_names[cls] = (event_type_of(cls) or self._topic).encode()
        return self._type_names[cls]


def event_type_of(kind: type) -> str | None:
    """What events of a class are called: its tag, else its name. None: it is no class of its own,
    but a dict, a str and the like."""
    if kind.__module__ == "builtins":
        return None
    if issubclass(kind, msgspec.Struct):
        tag = kind.__struct_config__.tag
        if tag is not None:
            return str(tag)
    return kind.__name__


class UnwrappedBatch(Batch):
    """A batch with the events of structured mode in it opened."""

    __slots__ = ("_batch", "_unwrapped", "decode_errors")

    def __init__(
        self,
        batch: Batch,
        unwrapped: Mapping[int, tuple[bytes | None, Headers]],
        decode_errors: Mapping[int, DecodeError],
    ) -> None:
        """:param unwrapped: the data and the headers of those that are, by index."""
        self.topic = batch.topic
        self.partition = batch.partition
        self.offsets = batch.offsets
        self.assignment = batch.assignment
        self.keys = batch.keys
        self.values = [*batch.values]
        self.ids = [*batch.ids]
        self.unreadable = batch.unreadable
        self.decode_errors = decode_errors
        self._headers = self._times = None
        self._batch = batch
        self._unwrapped = dict(unwrapped)
        for index, (data, headers) in unwrapped.items():
            self.values[index] = data
            self.ids[index] = identity_of(headers)

    def headers(self, index: int) -> Headers:
        """The headers of one message, as in binary mode."""
        found = self._unwrapped.get(index)
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
        if index in self._unwrapped:
            self._unwrapped[index] = (None, ())
        self._batch.release(index)


def unwrap_structured(batch: Batch) -> Batch:
    """The batch, or one in which the events of structured mode are opened, if it has any."""
    unwrapped: dict[int, tuple[bytes | None, Headers]] = {}
    decode_errors: dict[int, DecodeError] = {}
    for index, value in enumerate(batch.values):
        headers = batch.extra_headers(index)
        if headers and value is not None and _is_structured(headers):
            try:
                unwrapped[index] = unwrap_event(value, headers)
            except DecodeError as error:
                decode_errors[index] = error
    return UnwrappedBatch(batch, unwrapped, decode_errors) if unwrapped or decode_errors else batch


def _is_structured(headers: Headers) -> bool:
    for name, value in headers:
        if value is not None and name.lower() == CONTENT_TYPE:
            return value[: len(STRUCTURED_MEDIA_TYPE)].lower() == STRUCTURED_MEDIA_TYPE.encode()
    return False


def unwrap_event(value: bytes, headers: Headers) -> tuple[bytes | None, Headers]:
    """The data and the headers of an event in structured mode, as they are in binary mode.

    :raises DecodeError: it is none.
    """
    media_type = next(item for name, item in headers if name.lower() == CONTENT_TYPE) or b""
    if media_type.partition(b";")[0].strip().lower() != JSON_FORMAT.encode():
        raise _invalid_event(value, f"its format is none that can be read; {JSON_FORMAT} can")
    try:
        members = _envelope_codec.decode(value)
    except DecodeError as error:
        raise _invalid_event(value, "it is no JSON object") from error
    attributes: dict[str, str] = {}
    for name, raw in members.items():
        if name in ("data", "data_base64"):
            continue
        if _ATTRIBUTE_NAME.fullmatch(name) is None:
            problem = "an attribute's name has more than lower-case letters and digits"
            raise _invalid_event(value, problem)
        try:
            found = _scalar_decoder.decode(raw)
        except msgspec.MsgspecError as error:
            reason = f"{wire.shorten(name)} is no string, integer or boolean"
            raise _invalid_event(value, reason) from error
        if isinstance(found, bool):
            attributes[name] = "true" if found else "false"
        elif isinstance(found, int) and not -(2**31) <= found < 2**31:
            raise _invalid_event(value, f"{wire.shorten(name)} is no integer of 32 bits")
        elif found is not None:
            attributes[name] = str(found)
    for name in ("id", "source", "type"):
        if not attributes.get(name) or "\0" in attributes[name]:
            raise _invalid_event(value, f"{name} is missing")
    if attributes.get("specversion") != SPEC_VERSION:
        raise _invalid_event(value, f"specversion is not {SPEC_VERSION}")
    content_type = attributes.pop("datacontenttype", None)
    data = _event_data(value, members, content_type)
    event_headers = [(ATTRIBUTE_PREFIX + name, text.encode()) for name, text in attributes.items()]
    if data is not None:
        event_headers.append((CONTENT_TYPE, (content_type or "application/json").encode()))
    # The attributes may stand in headers, too, but those of the value count.
    other_headers = [
        pair
        for pair in headers
        if pair[0].lower() != CONTENT_TYPE and not pair[0].lower().startswith(ATTRIBUTE_PREFIX)
    ]
    event_headers.sort(key=lambda pair: pair[0] != ID)
    return data, [*event_headers, *other_headers]


def _event_data(
    value: bytes, members: Mapping[str, msgspec.Raw], content_type: str | None
) -> bytes | None:
    data, encoded = members.get("data"), members.get("data_base64")
    if encoded is not None:
        if data is not None:
            raise _invalid_event(value, "it has both data and data_base64")
        try:
            return base64.b64decode(_text_decoder.decode(encoded), validate=True)
        except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
            raise _invalid_event(value, "data_base64 is not Base64") from error
    if data is None:
        return None
    plain = bytes(data)
    is_json = content_type is None or _JSON_MEDIA_TYPE.fullmatch(content_type)
    if is_json or not plain.startswith(b'"'):
        return plain
    return _text_decoder.decode(data).encode("utf-8", "surrogatepass")  # text of another media type


def _invalid_event(value: bytes, reason: str) -> DecodeError:
    return DecodeError(f"a CloudEvent in structured mode: {reason}", data=value)
