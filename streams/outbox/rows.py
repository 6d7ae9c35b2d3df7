"""A record as a row of the outbox, and a row as a record.

Other programs may have written rows into the table: :func:`record_of` checks everything, and its
:class:`InvalidRow` says what is wrong. Messages are checked against the bounds when their rows are
written, so that a message that does not fit fails in the caller's transaction.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from streams.errors import InvalidValue, TooLarge
from streams.message import ID, Headers, Record
from streams.outbox.tables import RelayRow

MAX_COLUMN = 255
"""Characters of a key, which is Debezium's width of ``aggregateid``."""

MAX_HEADERS = 256 << 10
"""Characters of the headers of a row."""

MESSAGE_IDS = uuid5(NAMESPACE_URL, "urn:streams:outbox:message-id")
"""The namespace of the UUIDs in ``id`` for message IDs that are no UUIDs."""


class InvalidRow(ValueError):
    """A row is no message; the text says why, and quotes nothing of the row."""


def row_of(topic: str, type_name: str, record: Record, max_bytes: int) -> dict[str, Any]:
    """The columns of a record's row, as parameters of the statement that writes it.

    :raises TooLarge: the record is larger than ``max_bytes``.
    :raises InvalidValue: its key or its ID does not fit the table.
    """
    id = record.id
    if not _is_message_id(id):
        raise InvalidValue(
            f"topic {topic!r}: a message ID with NUL, or with bytes that are no UTF-8; in an "
            "outbox it is a text, as a database stores it"
        )
    headers = encode_headers(record.headers)
    size = sum(len(each) for each in (record.value, record.key, headers) if each is not None)
    if size > max_bytes:
        raise TooLarge(
            f"topic {topic!r}: a message of {size:,} bytes, and the outbox takes {max_bytes:,}: "
            "see Outbox(max_bytes=...) and what the log accepts"
        )
    keytype, key = encode_key(topic, record.key, str(_uuid_of(id)))
    return {
        "id": str(_uuid_of(id)),
        "topic": topic,
        "key": key,
        "type": type_name[:MAX_COLUMN],
        "payload": record.value,
        "messageid": id,
        "keytype": keytype,
        "headers": headers,
    }


def _uuid_of(id: str) -> UUID:
    """A message ID as a UUID: unchanged, if it is one."""
    try:
        found = UUID(id)
    except ValueError:
        return uuid5(MESSAGE_IDS, id)
    return found if str(found) == id else uuid5(MESSAGE_IDS, id)


def encode_key(topic: str, key: bytes | None, id: str) -> tuple[str, str]:
    """The columns ``keytype`` and ``aggregateid`` of a key.

    :raises InvalidValue: the key is too long.
    """
    if key is None:
        return "none", id
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = ""
    keytype, text = ("bytes", key.hex()) if "\0" in text or text.encode() != key else ("text", text)
    if len(text) > MAX_COLUMN:
        raise InvalidValue(
            f"topic {topic!r}: a key of {len(key)} bytes; in an outbox it has {MAX_COLUMN} "
            f"characters at most, and one that is no text half as many bytes"
        )
    return keytype, text


def encode_headers(headers: Headers) -> str | None:
    """Headers as a JSON document in ASCII; None if there are none."""
    if not headers:
        return None
    pairs = [
        (name, None if value is None else value.decode("utf-8", "surrogateescape"))
        for name, value in headers
    ]
    return json.dumps(pairs, separators=(",", ":"))


def record_of(row: RelayRow) -> Record:
    """The record of a row.

    :raises InvalidRow: the row is no message.
    """
    if not isinstance(row.id, str) or not row.id or not _is_message_id(row.id):
        raise InvalidRow("its message ID is empty, or not text")
    payload = row.payload
    if payload is not None and not isinstance(payload, bytes):
        payload = _as_bytes(payload)
    headers = () if not row.headers else decode_headers(row.headers)
    if row.keytype == "text":
        try:
            key = row.key.encode()
        except (AttributeError, UnicodeEncodeError):
            raise InvalidRow("its aggregateid is not text") from None
    elif row.keytype == "none":
        key = None
    elif row.keytype == "bytes":
        try:
            key = bytes.fromhex(row.key)
        except (TypeError, ValueError):
            raise InvalidRow(
                "its keytype is 'bytes', and its aggregateid is not hexadecimal"
            ) from None
    else:
        raise InvalidRow("its keytype is not 'text', 'bytes' or 'none'")
    return Record(payload, key, row.id, headers)


def _is_message_id(found: str) -> bool:
    """Whether a text is a valid message ID: headers and SQLite may hold any bytes."""
    if "\0" in found:
        return False
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_bytes(payload: object) -> bytes:
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    raise InvalidRow("its payload is neither bytes nor null")


def decode_headers(text: str) -> list[tuple[str, bytes | None]]:
    """Headers that :func:`encode_headers` wrote.

    :raises InvalidRow: it did not write this text.
    """
    if not isinstance(text, str) or len(text) > MAX_HEADERS:
        raise InvalidRow(f"its headers are not text of at most {MAX_HEADERS:,} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRow("its headers are not JSON") from None
    if not isinstance(found, list):
        raise InvalidRow("its headers are not a JSON array")
    pairs: list[tuple[str, bytes | None]] = []
    for pair in found:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InvalidRow("its headers are not pairs of a name and a text")
        name, value = pair
        if name == ID:
            raise InvalidRow(f"{ID} is among its headers; the message ID is messageid, or id")
        if value is not None and not isinstance(value, str):
            raise InvalidRow("its headers are not pairs of a name and a text")
        try:
            name.encode()
            pairs.append(
                (name, None if value is None else value.encode("utf-8", "surrogateescape"))
            )
        except UnicodeEncodeError:
            raise InvalidRow("its headers contain something that is not text") from None
    return pairs
