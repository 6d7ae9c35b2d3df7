"""A SQLite file in which an index of a topic is kept, so that a restart need not read all of it.

What every such file promises:

* **It is never older and newer at once.** What is written with the offset up to which a partition
  was folded is one transaction, so ``kill -9`` at any moment leaves the state of some moment, from
  which folding goes on.
* **It has one user at a time.** A process that finds a file in use takes another one, with the next
  number: two workers on one machine have a file each.
* **Damage is noticed.** Each row has a checksum over itself and its key (:func:`seal`). A damaged
  file is an error (:class:`IndexFileDamaged`), upon which it is removed and built anew; so is one
  of another topic or version. A file that belongs to somebody else, or is a symbolic link, is not
  opened.

It is only a cache: it may be deleted whenever nobody runs.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar
from zlib import crc32

import msgspec

from streams.errors import ConfigError, LogError
from streams.text import get_logger

logger = get_logger("streams.kafka")

F = TypeVar("F")

MAX_FILES = 64
"""Files of one topic in one folder, at most."""

FACTS = "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
"""The first table of every schema: facts about the file."""

_CRC = struct.Struct("<I")


class IndexFileDamaged(LogError):
    """The file, or the snapshot, cannot be used, and the index is to be built anew."""


def seal(content: bytes, kind: int, key: bytes = b"", number: int = 0) -> bytes:
    """A row: its content behind a checksum over it and what it stands under.

    :param kind: of the row, from 1 to 7.
    """
    return _CRC.pack(crc32(content, crc32(key, kind + (number << 3) & 0xFFFFFFFF))) + content


class IndexOf(NamedTuple):
    """The topic that a file indexes.

    :param identity: the topic's ID: a topic that was deleted and recreated has another one. Empty:
        it is not known.
    """

    topic: str
    identity: str
    partitions: int


class CacheFile:
    """The file of one topic's index, in use by this object alone.

    Reading is done under the index's lock, writing by one thread at a time.

    :param path: empty: a temporary file that nobody else can see, and that is gone once it is
        closed or its process has ended, however that ends.
    """

    format = ""
    """The kind of file, and its version."""
    schema = FACTS
    """Statements that create its tables."""
    tables: tuple[str, ...] = ()
    """Those that have a column ``partition``."""

    def __init__(self, path: str, lock: sqlite3.Connection | None, what: IndexOf) -> None:
        self.path = path
        self.name = path or f"of {what.topic} (a temporary file)"
        self._lock = lock
        self._facts = {
            "format": self.format,
            "topic": what.topic,
            "identity": what.identity,
            "partitions": str(what.partitions),
        }
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        try:
            self._open()
        except IndexFileDamaged as error:
            logger.error("%s; rebuilding the index", error)
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
                    for statement in self.schema.split(";")[:-1]:
                        writer.execute(statement)
                    writer.executemany("INSERT INTO facts VALUES (?, ?)", self._facts.items())
            else:
                self._check(found)
            self._reader = _connect(self.path) if self.path else writer

    def _check(self, found: Mapping[str, str]) -> None:
        """See that it is the file of this topic."""
        wanted = self._facts
        identity = found.get("identity")
        if identity and wanted["identity"] and identity != wanted["identity"]:
            raise IndexFileDamaged(
                f"HistoryTruncated: index file {self.name} is of an earlier topic "
                f"{wanted['topic']!r}, which has been deleted and recreated since"
            )
        for name in ("format", "topic", "partitions"):
            if found.get(name) != wanted[name]:
                raise IndexFileDamaged(
                    f"index file {self.name}: its {name} is {found.get(name)!r}, and "
                    f"{wanted[name]!r} is needed"
                )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate errors raised in this context into errors of this package."""
        try:
            yield
        except (sqlite3.Error, struct.error, ValueError, msgspec.MsgspecError) as error:
            raise IndexFileDamaged(f"index file {self.name}: {error}") from error

    def _remove(self) -> None:
        self._close_connections()
        if not self.path:
            return
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
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Remove it: what it says is wrong."""
        self._remove()
        if self._lock is not None:
            self._lock.close()

    def unseal(self, row: object, kind: int, key: bytes = b"", number: int = 0) -> bytes:
        """The content of a row.

        :raises IndexFileDamaged: it is not what was written.
        """
        if isinstance(row, bytes) and len(row) >= 4:
            content = row[4:]
            if seal(content, kind, key, number) == row:
                return content
        raise IndexFileDamaged(f"index file {self.name}: the checksum of a row is wrong")

    def read(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """The rows of a query."""
        with self.translated():
            if self._reader is None:
                raise IndexFileDamaged(f"index file {self.name}: it is closed")
            return self._reader.execute(sql, parameters).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes.

        :raises IndexFileDamaged: the file cannot be written, or is closed.
        """
        with self.translated():
            writer = self._writer
            if writer is None:
                raise IndexFileDamaged(f"index file {self.name}: it is closed")
            with writer:
                writer.execute("BEGIN IMMEDIATE")
                yield writer

    def forget_partition(self, partition: int) -> None:
        """Remove what the file says of one partition: it is not what the log says."""
        with self.writing() as writer:
            for table in self.tables:
                writer.execute(f"DELETE FROM {table} WHERE partition = ?", (partition,))  # noqa: S608


# -- opening --------------------------------------------------------------------------------------


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
    if path:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    else:  # where something fails, it is discarded
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
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
            f"event_index={folder}: must be a folder for index files: {error.strerror}"
        ) from error
    return os.path.abspath(folder)


def open_cache_file(
    folder: str,
    name: str,
    make: Callable[[str, sqlite3.Connection], F],
    otherwise: str = "in memory only",
) -> F | None:
    """The first file of a name and a number that nobody uses; None if there can be none, which is
    logged.

    :param name: of the files, before their number.
    :param make: makes it of its path and its lock.
    :param otherwise: where the index is kept if there can be no file.
    """
    try:
        for number in range(MAX_FILES):
            path = os.path.join(folder, f"{name}.{number}.index")
            lock = _try_lock(path)
            if lock is None:
                continue
            try:
                _create(path)
                return make(path, lock)
            except BaseException:
                lock.close()
                raise
    except (OSError, sqlite3.Error, LogError) as error:
        logger.error("the index of %s is kept %s: %s", name, otherwise, error)
    else:
        logger.error(
            "the index of %s is kept %s: %d files of it in %s are in use",
            name, otherwise, MAX_FILES, folder,
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
            raise OSError(f"{path} is not a regular file") from None
        if sys.platform != "win32" and found.st_uid not in (0, os.geteuid()):
            raise OSError(f"{path} belongs to user {found.st_uid}") from None
