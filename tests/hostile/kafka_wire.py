"""Kafka's own protocol, as far as it takes to write what no client library would.

A record here is bytes throughout: header names that are not UTF-8, times that no calendar has,
commits whose metadata is not text. (Kafka protocol guide, "Record Batch"; requests Produce v3 and
OffsetCommit v2, the oldest that a broker of Kafka 4 answers.)
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PATIENCE = 60.0
"""Real seconds after which a broker that is only beginning is given up."""

_PRODUCE, _OFFSET_COMMIT = 0, 8

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


def _table() -> list[int]:
    found = []
    for start in range(256):
        crc = start
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        found.append(crc)
    return found


_CRC = _table()


class Written(NamedTuple):
    """A record as it is to stand in the log."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    time: int = 1_700_000_000_000
    """Milliseconds since the epoch."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name!r}: {_brief(value)}" for name, value in self.headers)
        return f"<{_brief(self.key)} {_brief(self.value)} {{{shown}}} at {self.time}>"


def _brief(data: bytes | None) -> str:
    return repr(data) if data is None or len(data) <= 300 else f"{data[:30]!r}... ({len(data):,})"


def produce(bootstrap: str, topic: str, records: Sequence[Written], partition: int = 0) -> int:
    """Write these records in one batch; the offset of the first."""
    batch = _batch(records)
    body = struct.pack(">hhi", -1, -1, 30_000)
    body += struct.pack(">i", 1) + _string(topic.encode())
    body += struct.pack(">iii", 1, partition, len(batch)) + batch
    give_up = time.monotonic() + PATIENCE
    while True:
        answer = _ask(bootstrap, _PRODUCE, 3, body)
        # [topics] name [partitions] index error base_offset log_append_time; throttle_time
        (length,) = struct.unpack_from(">h", answer, 4)
        error, offset = struct.unpack_from(">hq", answer, 4 + 2 + length + 4 + 4)
        if not error:
            return int(offset)
        # The topic is new: its leader does not know it yet, and has written nothing.
        if error not in (3, 5, 6) or time.monotonic() > give_up:
            raise RuntimeError(f"produce to {topic}/{partition}: error {error}")
        time.sleep(0.02)


def commit(
    bootstrap: str, group: bytes, topic: str, places: Mapping[int, tuple[int, bytes | None]]
) -> None:
    """Store these positions and metadata, by partition, for a group without running members."""
    body = _string(group) + struct.pack(">i", -1) + _string(b"") + struct.pack(">q", -1)
    body += struct.pack(">i", 1) + _string(topic.encode()) + struct.pack(">i", len(places))
    for partition, (offset, metadata) in places.items():
        body += struct.pack(">iq", partition, offset) + _string(metadata)
    give_up = time.monotonic() + PATIENCE
    while True:
        answer = _ask(bootstrap, _OFFSET_COMMIT, 2, body)
        (length,) = struct.unpack_from(">h", answer, 4)
        at = 4 + 2 + length + 4
        found = [
            struct.unpack_from(">ih", answer, at + 6 * number) for number in range(len(places))
        ]
        errors = {error for _, error in found if error}
        if not errors:
            return
        # 14, 15, 16: the group's coordinator is only beginning.
        if errors - {14, 15, 16} or time.monotonic() > give_up:
            raise RuntimeError(f"commit of {group!r} in {topic}: {found}")
        time.sleep(0.05)


def _ask(bootstrap: str, api: int, version: int, body: bytes) -> bytes:
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    request = struct.pack(">hhi", api, version, 1) + _string(b"hostile") + body
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(connection, 4))
        return _read(connection, size)[4:]


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise RuntimeError("the broker closed the connection: the request is malformed")
        found += part
    return found


def _string(data: bytes | None) -> bytes:
    return struct.pack(">h", -1) if data is None else struct.pack(">h", len(data)) + data


def _varint(number: int) -> bytes:
    number = number << 1 if number >= 0 else (-number << 1) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _sized(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _batch(records: Sequence[Written]) -> bytes:
    base = records[0].time
    rows = bytearray()
    for at, record in enumerate(records):
        row = b"\0" + _varint(record.time - base) + _varint(at)
        row += _sized(record.key) + _sized(record.value) + _varint(len(record.headers))
        row += b"".join(_sized(name) + _sized(value) for name, value in record.headers)
        rows += _varint(len(row)) + row
    latest = max(record.time for record in records)
    checked = struct.pack(
        ">hiqqqhii", 0, len(records) - 1, base, latest, -1, -1, -1, len(records)
    ) + bytes(rows)  # fmt: skip
    crc = 0xFFFFFFFF
    for byte in checked:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    after = struct.pack(">ibI", -1, 2, crc ^ 0xFFFFFFFF) + checked
    return struct.pack(">qi", 0, len(after)) + after
