"""An index of an event topic in a SQLite file (:mod:`.cache_file` says what such a file promises).

**It is believed only as far as the log agrees.** A partition says which record counted last;
whoever opens the file looks for that record in the log (:mod:`streams.log.kafka.event_index`).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import msgspec

from streams.log.events import Base, Caused, Head, StoredRefusal
from streams.log.kafka.cache_file import (
    FACTS,
    CacheFile,
    IndexFileDamaged,
    IndexOf,
    open_cache_file,
    seal,
)
from streams.log.kafka.partition_index import CHUNK, Changes, KeyEntry, PartitionState
from streams.wire import text

FORMAT = "streams event index 1"

_SCHEMA = (
    FACTS
    + """
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE keys (partition INTEGER, key BLOB, row BLOB NOT NULL, PRIMARY KEY (partition, key))
WITHOUT ROWID;
CREATE TABLE chunks (partition INTEGER, key BLOB, chunk INTEGER, row BLOB NOT NULL,
PRIMARY KEY (partition, key, chunk)) WITHOUT ROWID;
CREATE TABLE causes (partition INTEGER, key BLOB, cause BLOB, row BLOB NOT NULL,
PRIMARY KEY (partition, key, cause)) WITHOUT ROWID;
CREATE TABLE refusals (partition INTEGER, key BLOB, id BLOB, row BLOB NOT NULL,
PRIMARY KEY (partition, key, id)) WITHOUT ROWID;
CREATE TABLE losers (partition INTEGER, last INTEGER, first INTEGER, row BLOB NOT NULL,
PRIMARY KEY (partition, last)) WITHOUT ROWID;
"""
)

_TABLES = ("partitions", "keys", "chunks", "causes", "refusals", "losers")

_OF_PARTITION, _OF_KEY, _OF_CHUNK, _OF_CAUSE, _OF_REFUSAL, _OF_LOSERS = range(1, 7)
"""Kinds of rows."""

_KEY = struct.Struct("<QBH")
"""The header of a key's row: version, flags, bytes of the last ID. Behind it stand that ID and the
offsets of the last events, which do not fill a chunk yet."""
_PAIR = struct.Struct("<qq")
_FINAL, _HAS_REFUSALS = 1, 2

_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(PartitionState).decode


class IndexFile(CacheFile):
    """The file of one event topic's index, in use by this object alone."""

    format = FORMAT
    schema = _SCHEMA
    tables = _TABLES

    def partition(self, partition: int) -> PartitionRows:
        """The file's rows of one partition.

        :raises IndexFileDamaged: it cannot be read.
        """
        return PartitionRows(self, partition)

    def write(self, partition: int, changes: Changes) -> None:
        """Write what has changed in one partition, all at once.

        :raises IndexFileDamaged: it is not written.
        """
        keys, chunks = _key_rows(partition, changes)
        with self.writing() as writer:
            writer.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", chunks)
            writer.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", keys)
            writer.executemany(
                "INSERT OR IGNORE INTO causes VALUES (?, ?, ?, ?)",
                [
                    (
                        partition,
                        each.key,
                        cause,
                        seal(_PAIR.pack(*each.caused), _OF_CAUSE, each.key + cause, len(each.key)),
                    )
                    for each in changes.causes
                    for cause in [each.cause.encode("utf-8", "surrogateescape")]
                ],
            )
            writer.executemany(
                "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)",
                [
                    (
                        partition,
                        each.key,
                        id,
                        seal(_PAIR.pack(*each.refusal), _OF_REFUSAL, each.key + id, len(each.key)),
                    )
                    for each in changes.refusals
                    for id in [each.append_id.encode("utf-8", "surrogateescape")]
                ],
            )
            if changes.losers:
                losers = sorted(changes.losers)
                first, last = losers[0], losers[-1]
                row = seal(array("q", losers).tobytes(), _OF_LOSERS, b"%d" % first, last)
                writer.execute(
                    "INSERT OR REPLACE INTO losers VALUES (?, ?, ?, ?)",
                    (partition, last, first, row),
                )
            state = seal(_encode_state(changes.state), _OF_PARTITION, b"", partition)
            writer.execute("INSERT OR REPLACE INTO partitions VALUES (?, ?)", (partition, state))


def _key_rows(
    partition: int, changes: Changes
) -> tuple[list[tuple[int, bytes, bytes]], list[tuple[int, bytes, int, bytes]]]:
    """Rows of keys and of chunks; in order, as SQLite writes sorted rows much faster."""
    keys, chunks = [], []
    for key, entry, first in sorted(changes.keys):
        offsets = entry.offsets
        count = len(offsets)
        for start in range(0, count - count % CHUNK, CHUNK):
            chunk = (first + start) // CHUNK
            content = offsets[start : start + CHUNK].tobytes()
            chunks.append((partition, key, chunk, seal(content, _OF_CHUNK, key, chunk)))
        flags = entry.is_final * _FINAL | bool(entry.refusals) * _HAS_REFUSALS
        content = (
            _KEY.pack(first + count, flags, len(entry.last_id))
            + entry.last_id
            + (offsets if count < CHUNK else offsets[count - count % CHUNK :]).tobytes()
        )
        keys.append((partition, key, seal(content, _OF_KEY, key)))
    return keys, chunks


class _KeyRow(NamedTuple):
    """The row of a key, decoded."""

    version: int
    flags: int
    last_id: bytes
    last_offsets: bytes
    """The offsets that are in no chunk: eight bytes each."""


class PartitionRows:
    """The file's rows of one partition: see :class:`~.partition_index.StoredPartition`."""

    is_written = True

    def __init__(self, file: IndexFile, partition: int) -> None:
        self._file = file
        self._partition = partition
        self.state = PartitionState()
        for (row,) in file.read("SELECT row FROM partitions WHERE partition = ?", partition):
            with file.translated():
                self.state = _decode_state(file.unseal(row, _OF_PARTITION, b"", partition))

    def _read_key(self, key: bytes, row: object) -> _KeyRow:
        with self._file.translated():
            content = self._file.unseal(row, _OF_KEY, key)
            version, flags, length = _KEY.unpack_from(content)
        start = _KEY.size + length
        return _KeyRow(version, flags, content[_KEY.size : start], content[start:])

    def find_key(self, key: bytes) -> KeyEntry | None:
        """A key's entry.

        :raises IndexFileDamaged: what is found is not what was written.
        """
        read, partition = self._file.read, self._partition
        rows = read("SELECT row FROM keys WHERE partition = ? AND key = ?", partition, key)
        if not rows:
            return None
        ((row,),) = rows
        found = self._read_key(key, row)
        offsets = array("q")
        chunks: list[tuple[object, ...]] = []
        if found.version >= CHUNK:
            chunks = read(
                "SELECT chunk, row FROM chunks WHERE partition = ? AND key = ? ORDER BY chunk",
                partition, key,
            )  # fmt: skip
        with self._file.translated():
            for number, chunk in chunks:
                offsets.frombytes(self._file.unseal(chunk, _OF_CHUNK, key, _number(number)))
            offsets.frombytes(found.last_offsets)
        if len(offsets) != found.version:
            raise IndexFileDamaged(f"index file {self._file.name}: offsets of a key are missing")
        refusals = None
        if found.flags & _HAS_REFUSALS:
            refused = read(
                "SELECT id, row FROM refusals WHERE partition = ? AND key = ?", partition, key
            )
            with self._file.translated():
                refusals = {
                    text(id): StoredRefusal(
                        *_PAIR.unpack(self._file.unseal(sealed, _OF_REFUSAL, key + id, len(key)))
                    )
                    for id, sealed in refused
                    if isinstance(id, bytes)
                }
        return KeyEntry(offsets, found.last_id, bool(found.flags & _FINAL), refusals)

    def find_cause(self, key: bytes, cause: str) -> Caused | None:
        """The append that was made for a cause, if any."""
        name = cause.encode("utf-8", "surrogateescape")
        rows = self._file.read(
            "SELECT row FROM causes WHERE partition = ? AND key = ? AND cause = ?",
            self._partition, key, name,
        )  # fmt: skip
        if not rows:
            return None
        with self._file.translated():
            ((row,),) = rows
            return Caused(*_PAIR.unpack(self._file.unseal(row, _OF_CAUSE, key + name, len(key))))

    def find_losers(self, first: int, end: int) -> Iterable[int]:
        """Offsets between two that do not count."""
        rows = self._file.read(
            "SELECT first, last, row FROM losers WHERE partition = ? AND last >= ? AND first < ?",
            self._partition, first, end,
        )  # fmt: skip
        found: list[int] = []
        for low, high, row in rows:
            offsets = array("q")
            with self._file.translated():
                name = str(low).encode()
                offsets.frombytes(self._file.unseal(row, _OF_LOSERS, name, _number(high)))
            found += (offset for offset in offsets if first <= offset < end)
        return found

    def list_keys(self, after: bytes | None, limit: int) -> list[tuple[bytes, Head]]:
        """Keys in order, behind ``after``."""
        condition = "" if after is None else "AND key > ?"
        rows = self._file.read(
            f"SELECT key, row FROM keys WHERE partition = ? {condition} ORDER BY key LIMIT ?",  # noqa: S608
            self._partition, *([] if after is None else [after]), limit,
        )  # fmt: skip
        found = []
        for key, row in rows:
            if not isinstance(key, bytes):
                raise IndexFileDamaged(f"index file {self._file.name}: a key is not bytes")
            read = self._read_key(key, row)
            base = Base(read.version, text(read.last_id))
            found.append((key, Head(base, bool(read.flags & _FINAL))))
        return found


def _number(value: object) -> int:
    """A number of a row.

    :raises ValueError: it is none.
    """
    if not isinstance(value, int):
        raise ValueError("a number of a row is none")
    return value


def open_index_file(folder: str, topic: str, identity: str, partitions: int) -> IndexFile | None:
    """The first index file of a topic that nobody uses; None if there can be none, which is logged.

    :param identity: see :class:`~.cache_file.IndexOf`.
    """
    what = IndexOf(topic, identity, partitions)
    return open_cache_file(folder, topic, partial(IndexFile, what=what))
