"""Checkpoints of the pending entries in one partition of a delay topic, stored in that partition.

A checkpoint is the content of a :class:`~streams.retries.due_index.DueIndex` to which every record
before a position was applied. The next owner of the partition begins with it and reads on from
that position, instead of reading everything since the oldest pending entry.

It follows from the records before its position alone, so it is valid whoever wrote it and when. It
is only a cache: an incomplete one is ignored, and the partition is read from its floor on. Its
place is committed together with the floor.

It has parts of :data:`PART_ENTRIES` entries, each a record with a key that no entry has. Each part
holds the digest of the whole, so that parts of two checkpoints are never mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple
from uuid import uuid4

from streams.log.protocol import Committed, Log
from streams.log.range_reader import read_batches
from streams.message import Headers, Record, text
from streams.retries.due_index import DueEntry, IndexState, log_position
from streams.retries.records import CHECKPOINT, CHECKPOINT_KEY
from streams.wire import parse_int

PART_ENTRIES = 4_000
"""Entries in one part, at most."""

MAX_PARTS = 10_000

_ID_BYTES, _ENTRY_BYTES = 15, 24
_ROW_BYTES = _ID_BYTES + _ENTRY_BYTES
_DIGITS = 60
"""Digits of a position (32 on Redis) or of an entry (57), at most."""


class CheckpointPlace(NamedTuple):
    """The place of a checkpoint in the log.

    :param position: every record before it is covered by the checkpoint.
    :param first: the position of the checkpoint's first part in the log.
    :param last: the position of its last part.
    """

    position: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.position}/{self.first}/{self.last}"


def parse_place(written: str) -> CheckpointPlace | None:
    """The place written as this text; None: the text is not one."""
    numbers = [parse_int(each, _DIGITS) for each in written.split("/", 3)]
    if len(numbers) != 3 or None in numbers:
        return None
    position, first, last = (number or 0 for number in numbers)
    return CheckpointPlace(position, first, last) if position <= first <= last else None


class PartHeader(NamedTuple):
    """The fields in the header of a part, separated by slashes.

    :param position: the checkpoint's position.
    :param number: the number of the part, from 0.
    :param parts: how many parts the checkpoint has.
    :param horizon: see :class:`IndexState`; likewise ``lowest_dropped``.
    :param digest: the digest of the position and the whole state.
    """

    position: int
    number: int
    parts: int
    horizon: DueEntry | None
    lowest_dropped: int | None
    digest: str


def read_part_header(key: bytes | None, headers: Headers) -> PartHeader | None:
    """The header of a record that is a part of a checkpoint; None: it is not one."""
    for name, value in headers:
        if name == CHECKPOINT and value is not None:
            part = _parse_header(value)
            return part if part is not None and key == _part_key(part.number) else None
    return None


def _parse_header(value: bytes) -> PartHeader | None:
    fields = text(value).split("/", 6)
    if len(fields) != 6:
        return None
    position, number, count = (parse_int(each, _DIGITS) for each in fields[:3])
    horizon, lowest_dropped = (parse_int(each, _DIGITS) for each in fields[3:5])
    if position is None or number is None or count is None or not number < count <= MAX_PARTS:
        return None
    return PartHeader(position, number, count, horizon, lowest_dropped, fields[5])


def _part_key(number: int) -> bytes:
    return b"%b%d" % (CHECKPOINT_KEY, number)


def _digest(
    position: int, horizon: DueEntry | None, lowest_dropped: int | None, parts: Iterable[bytes]
) -> str:
    digest = blake2b(f"{position}/{horizon}/{lowest_dropped}/".encode(), digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def checkpoint_records(state: IndexState, position: int, partition: int) -> list[Record]:
    """The parts of a checkpoint.

    :param position: every record before it was applied to the state.
    """
    entries = iter(state.entries.items())
    parts: list[bytes] = []
    while rows := list(islice(entries, PART_ENTRIES)):
        parts.append(b"".join(_encode_row(*each) for each in rows))
    parts = parts or [b""]
    dropped = "/".join("" if each is None else str(each) for each in state[1:])
    digest = _digest(position, *state[1:], parts)
    return [
        Record(
            part,
            _part_key(number),
            str(uuid4()),
            [(CHECKPOINT, f"{position}/{number}/{len(parts)}/{dropped}/{digest}".encode())],
            partition,
        )
        for number, part in enumerate(parts)
    ]


def _encode_row(id_digest: int, entry: DueEntry) -> bytes:
    return id_digest.to_bytes(_ID_BYTES) + entry.to_bytes(_ENTRY_BYTES)


def find_checkpoint(
    log: Log, topic: str, partition: int, floor: Committed | None, start: int, end: int
) -> tuple[CheckpointPlace, IndexState] | None:
    """The last checkpoint of a partition, and its place; None: there is no complete one that saves
    reading records from ``start`` on. Blocks.

    :param floor: the committed floor.
    :param end: the end of the partition.
    """
    place = None if floor is None else parse_place(floor.progress)
    if place is None or place.position <= start:
        return None
    state = read_checkpoint(log, topic, partition, place, end)
    return None if state is None else (place, state)


def read_checkpoint(
    log: Log, topic: str, partition: int, place: CheckpointPlace, end: int
) -> IndexState | None:
    """The checkpoint at a place; None: it is not complete. Blocks.

    :param end: the end of the partition.
    """
    if place.last >= end:
        return None  # of another log, or forged
    return join_parts(
        place.position,
        (
            (key, batch.headers(index), batch.values[index])
            for batch in read_batches(log, topic, partition, place.first, place.last + 1)
            for index, key in enumerate(batch.keys)
        ),
    )


def join_parts(
    position: int, found: Iterable[tuple[bytes | None, Headers, bytes | None]]
) -> IndexState | None:
    """The checkpoint of a position, from its parts; None: it is not complete.

    :param found: keys, headers and values of records; the first part of this position decides which
        checkpoint is meant.
    """
    parts: dict[int, bytes] = {}
    first: PartHeader | None = None
    for key, headers, value in found:
        part = read_part_header(key, headers)
        if part is None or part.position != position or value is None:
            continue
        first = first or part
        if part[2:] == first[2:]:
            parts[part.number] = value
    if first is None or len(parts) < first.parts:
        return None
    in_order = [parts[number] for number in range(first.parts)]
    if _digest(position, first.horizon, first.lowest_dropped, in_order) != first.digest:
        return None
    entries: dict[int, DueEntry] = {}
    previous = -1
    for part_rows in in_order:
        for id_digest, entry in _decode_rows(part_rows):
            if not previous < log_position(entry) < position:
                return None
            previous = log_position(entry)
            entries[id_digest] = entry
    return IndexState(entries, first.horizon, first.lowest_dropped)


def _decode_rows(part: bytes) -> Iterator[tuple[int, DueEntry]]:
    for start in range(0, len(part), _ROW_BYTES):
        middle = start + _ID_BYTES
        yield (
            int.from_bytes(part[start:middle]),
            int.from_bytes(part[middle : start + _ROW_BYTES]),
        )
