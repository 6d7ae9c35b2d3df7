"""An index of an event topic in a SQLite file, so that a restart need not read the whole topic.

What the file promises:

* **It is never older and newer at once.** A partition's rows are written in one transaction with
  the offset up to which they were folded, so ``kill -9`` at any moment leaves the state of some
  moment, from which folding goes on.
* **It is believed only as far as the log agrees.** A partition says which record counted last;
  whoever opens the file looks for that record in the log (:mod:`streams.log.kafka.event_index`).
* **It has one user at a time.** A process that finds a file in use takes another one, with the next
  number: two workers on one machine have a file each.
* **Damage is noticed.** Each row has a checksum over itself and its key. A damaged file is an
  error (:class:`IndexFileDamaged`), upon which it is removed and built anew; so is one of another
  topic or version. A file that belongs to somebody else, or is a symbolic link, is not opened.

It is only a cache: it may be deleted whenever nobody runs.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from zlib import crc32

import msgspec

from streams.errors import ConfigError, LogError
from streams.log.events import Base, Caused, Head
from streams.log.kafka.partition_index import CHUNK, Changes, KeyEntry, PartitionState
from streams.text import get_logger
from streams.wire import text

logger = get_logger("streams.kafka")


FORMAT = "streams event index 1"

MAX_FILES = 64
"""Files of one topic in one folder, at most."""

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
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

_TABLES = ("partitions", "keys", "chunks", "causes", "refusals", "losers")

_OF_PARTITION, _OF_KEY, _OF_CHUNK, _OF_CAUSE, _OF_REFUSAL, _OF_LOSERS = range(1, 7)
"""Kinds of rows."""

_CRC = struct.Struct("<I")
_KEY = struct.Struct("<QBH")
"""Of a key's row: version, flags, bytes of the last ID; then the ID and the offsets of the last
events, those that fill no chunk yet."""
_PAIR = struct.Struct("<qq")
_FINAL, _HAS_REFUSALS = 1, 2

_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(PartitionState).decode


class IndexFileDamaged(LogError):
    """The file cannot be used, and is to be built anew."""


def _seal(content: bytes, kind: int, key: bytes = b"", number: int = 0) -> bytes:
    """A row: its content behind a checksum over it and what it stands under."""
    return _CRC.pack(crc32(content, crc32(key, kind + (number << 3) & 0xFFFFFFFF))) + content


class IndexFile:
    """The file of one topic's index, in use by this object alone.

    Reading is done under the index's lock, writing by one thread at a time.
    """

    def __init__(
        self, path: str, lock: sqlite3.Connection, topic: str, identity: str, partitions: int
    ) -> None:
        self.path = path
        self._lock = lock
        self._facts = {
            "format": FORMAT,
            "topic": topic,
            "identity": identity,
            "partitions": str(partitions),
        }
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        try:
            self._open()
        except IndexFileDamaged as error:
            logger.error("%s; it is built anew", error)
            self._remove()
            self._open()

    def _open(self) -> None:
        with self.translated():
            self._writer = writer = _connect(self.path)
            try:
                found = dict(writer.execute("SELECT name, value FROM facts"))
            except sqlite3.OperationalError:
                if writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise
                found = {}
                with writer:
                    writer.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA.split(";")[:-1]:
                        writer.execute(statement)
                    writer.executemany("INSERT INTO facts VALUES (?, ?)", self._facts.items())
            else:
                self._check(found)
            self._reader = _connect(self.path)

    def _check(self, found: Mapping[str, str]) -> None:
        """See that it is the file of this topic."""
        wanted = self._facts
        identity = found.get("identity")
        if identity and wanted["identity"] and identity != wanted["identity"]:
            raise IndexFileDamaged(
                f"HistoryTruncated: index file {self.path} is of an earlier topic "
                f"{wanted['topic']!r}, which was deleted since and made anew"
            )
        for name in ("format", "topic", "partitions"):
            if found.get(name) != wanted[name]:
                raise IndexFileDamaged(
                    f"index file {self.path}: its {name} is {found.get(name)!r}, and "
                    f"{wanted[name]!r} is needed"
                )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What goes wrong in here, as an error of ours."""
        try:
            yield
        except (sqlite3.Error, struct.error, ValueError, msgspec.MsgspecError) as error:
            raise IndexFileDamaged(f"index file {self.path}: {error}") from error

    def _remove(self) -> None:
        self._close_connections()
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self.path + suffix)

    def _close_connections(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        self._reader = self._writer = None

    def close(self) -> None:
        """Let others use it."""
        self._close_connections()
        self._lock.close()

    def discard(self) -> None:
        """Remove it: what it says is wrong."""
        self._remove()
        self._lock.close()

    def partition(self, partition: int) -> PartitionRows:
        """What the file says of one partition.

        :raises IndexFileDamaged: it cannot be read.
        """
        return PartitionRows(self, partition)

    def unseal(self, row: object, kind: int, key: bytes = b"", number: int = 0) -> bytes:
        """The content of a row.

        :raises IndexFileDamaged: it is not what was written.
        """
        if isinstance(row, bytes) and len(row) >= 4:
            content = row[4:]
            if _seal(content, kind, key, number) == row:
                return content
        raise IndexFileDamaged(f"index file {self.path}: the checksum of a row is wrong")

    def read(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """The rows of a query."""
        with self.translated():
            if self._reader is None:
                raise IndexFileDamaged(f"index file {self.path}: it is closed")
            return self._reader.execute(sql, parameters).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes.

        :raises IndexFileDamaged: the file cannot be written, or is closed.
        """
        with self.translated():
            writer = self._writer
            if writer is None:
                raise IndexFileDamaged(f"index file {self.path}: it is closed")
            with writer:
                writer.execute("BEGIN IMMEDIATE")
                yield writer

    def forget_partition(self, partition: int) -> None:
        """Remove what the file says of one partition: it is not what the log says."""
        with self._writing() as writer:
            for table in _TABLES:
                writer.execute(f"DELETE FROM {table} WHERE partition = ?", (partition,))  # noqa: S608

    def write(self, partition: int, changes: Changes) -> None:
        """Write what has changed in one partition, all at once.

        :raises IndexFileDamaged: it is not written.
        """
        keys, chunks = _key_rows(partition, changes)
        with self._writing() as writer:
            writer.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", chunks)
            writer.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", keys)
            writer.executemany(
                "INSERT OR IGNORE INTO causes VALUES (?, ?, ?, ?)",
                [
                    (
                        partition,
                        key,
                        cause,
                        _seal(_PAIR.pack(*caused), _OF_CAUSE, key + cause, len(key)),
                    )
                    for key, name, caused in changes.causes
                    for cause in [name.encode("utf-8", "surrogateescape")]
                ],
            )
            writer.executemany(
                "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)",
                [
                    (
                        partition,
                        key,
                        id,
                        _seal(_PAIR.pack(version, at), _OF_REFUSAL, key + id, len(key)),
                    )
                    for key, name, version, at in changes.refusals
                    for id in [name.encode("utf-8", "surrogateescape")]
                ],
            )
            if changes.losers:
                first, last = changes.losers[0], changes.losers[-1]
                row = _seal(array("q", changes.losers).tobytes(), _OF_LOSERS, b"%d" % first, last)
                writer.execute(
                    "INSERT OR REPLACE INTO losers VALUES (?, ?, ?, ?)",
                    (partition, last, first, row),
                )
            state = _seal(_encode_state(changes.state), _OF_PARTITION, b"", partition)
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
            chunks.append((partition, key, chunk, _seal(content, _OF_CHUNK, key, chunk)))
        flags = entry.is_final * _FINAL | bool(entry.refusals) * _HAS_REFUSALS
        content = (
            _KEY.pack(first + count, flags, len(entry.last_id))
            + entry.last_id
            + (offsets if count < CHUNK else offsets[count - count % CHUNK :]).tobytes()
        )
        keys.append((partition, key, _seal(content, _OF_KEY, key)))
    return keys, chunks


class PartitionRows:
    """What the file says of one partition: see :class:`~.partition_index.PartitionFile`."""

    def __init__(self, file: IndexFile, partition: int) -> None:
        self._file = file
        self._partition = partition
        self.state = PartitionState()
        for (row,) in file.read("SELECT row FROM partitions WHERE partition = ?", partition):
            with file.translated():
                self.state = _decode_state(file.unseal(row, _OF_PARTITION, b"", partition))

    def _head(self, key: bytes, row: object) -> tuple[int, int, bytes, bytes]:
        """Version, flags, last ID and the last offsets."""
        with self._file.translated():
            content = self._file.unseal(row, _OF_KEY, key)
            version, flags, length = _KEY.unpack_from(content)
        start = _KEY.size + length
        return version, flags, content[_KEY.size : start], content[start:]

    def find_key(self, key: bytes) -> KeyEntry | None:
        """A key's entry.

        :raises IndexFileDamaged: what is found is not what was written.
        """
        read, partition = self._file.read, self._partition
        rows = read("SELECT row FROM keys WHERE partition = ? AND key = ?", partition, key)
        if not rows:
            return None
        version, flags, last_id, tail = self._head(key, rows[0][0])
        offsets = array("q")
        chunks: list[tuple[object, ...]] = []
        if version >= CHUNK:
            chunks = read(
                "SELECT chunk, row FROM chunks WHERE partition = ? AND key = ? ORDER BY chunk",
                partition, key,
            )  # fmt: skip
        with self._file.translated():
            for number, row in chunks:
                offsets.frombytes(self._file.unseal(row, _OF_CHUNK, key, _number(number)))
            offsets.frombytes(tail)
        if len(offsets) != version:
            raise IndexFileDamaged(f"index file {self._file.path}: offsets of a key are missing")
        refusals = None
        if flags & _HAS_REFUSALS:
            found = read(
                "SELECT id, row FROM refusals WHERE partition = ? AND key = ?", partition, key
            )
            with self._file.translated():
                refusals = {
                    text(id): _PAIR.unpack(self._file.unseal(row, _OF_REFUSAL, key + id, len(key)))
                    for id, row in found
                    if isinstance(id, bytes)
                }
        return KeyEntry(offsets, last_id, bool(flags & _FINAL), refusals)

    def find_cause(self, key: bytes, cause: str) -> Caused | None:
        """What was appended for a cause."""
        name = cause.encode("utf-8", "surrogateescape")
        rows = self._file.read(
            "SELECT row FROM causes WHERE partition = ? AND key = ? AND cause = ?",
            self._partition, key, name,
        )  # fmt: skip
        if not rows:
            return None
        with self._file.translated():
            return Caused(
                *_PAIR.unpack(self._file.unseal(rows[0][0], _OF_CAUSE, key + name, len(key)))
            )

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
                raise IndexFileDamaged(f"index file {self._file.path}: a key is no bytes")
            version, flags, last_id, _ = self._head(key, row)
            found.append((key, Head(Base(version, text(last_id)), bool(flags & _FINAL))))
        return found


def _number(value: object) -> int:
    """A number of a row.

    :raises ValueError: it is none.
    """
    if not isinstance(value, int):
        raise ValueError("a number of a row is none")
    return value


# -- opening --------------------------------------------------------------------------------------


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -16000")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def check_folder(folder: str) -> str:
    """The folder of index files; created where it is missing.

    :raises ConfigError: there can be none.
    """
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"event_index={folder}: this user cannot write to that folder")
    except OSError as error:
        raise ConfigError(
            f"event_index={folder}: it is to be a folder, for index files: {error.strerror}"
        ) from error
    return os.path.abspath(folder)


def open_index_file(folder: str, topic: str, identity: str, partitions: int) -> IndexFile | None:
    """The first index file of a topic that nobody uses; None if there can be none, which is logged.

    :param identity: of the topic: one that was deleted and created anew has another. Empty: it is
        not known.
    """
    try:
        for number in range(MAX_FILES):
            path = os.path.join(folder, f"{topic}.{number}.index")
            lock = _try_lock(path)
            if lock is None:
                continue
            try:
                _create(path)
                return IndexFile(path, lock, topic, identity, partitions)
            except BaseException:
                lock.close()
                raise
    except (OSError, sqlite3.Error, LogError) as error:
        logger.error("the index of %s is kept in memory only: %s", topic, error)
    else:
        logger.error(
            "the index of %s is kept in memory only: %d files of it in %s are in use",
            topic, MAX_FILES, folder,
        )  # fmt: skip
    return None


def _try_lock(path: str) -> sqlite3.Connection | None:
    """Take an index file: a lock on a file beside it, which ends with the process, however that
    ends. None if it is taken."""
    lock_path = f"{path}-lock"
    _create(lock_path)
    lock = sqlite3.connect(lock_path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" in str(error) or "busy" in str(error):
            return None
        raise
    return lock


def _create(path: str) -> None:
    """Create a file of ours alone, unless it is there and is ours.

    :raises OSError: it is not.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    # Closing any descriptor of a file drops the locks that SQLite holds on it in this process, so
    # one that is there is only looked at.
    try:
        os.close(os.open(path, flags | os.O_EXCL, 0o600))
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no regular file") from None
        if sys.platform != "win32" and found.st_uid not in (0, os.geteuid()):
            raise OSError(f"{path} belongs to user {found.st_uid}") from None
