"""Opens the user's SQLite files without creating them, for reading tools."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from streams.databases.addresses import sqlite_file
from streams.missing_files import missing_file


def check_file(address: str | None) -> None:
    """Check that a database exists, if it is a SQLite file.

    :param address: the database's address; None: unknown.
    :raises NotFound: it is a file that does not exist.
    """
    path = None if address is None else sqlite_file(address)
    # SQLite's own URIs ("file:..."), and ":memory:", are no paths.
    if path is not None and not path.startswith(("file:", ":")):
        _check_path(path)


def _check_path(path: str) -> None:
    if not os.path.exists(path):
        raise missing_file(os.path.realpath(path))


def connect_existing(path: str, *, reading: bool, **options: Any) -> sqlite3.Connection:
    """A connection to an existing file.

    :param reading: nothing in the file is changed, not even by closing the connection.
    :param options: of :func:`sqlite3.connect`.
    :raises NotFound: the file does not exist.
    """
    _check_path(path)
    mode = "ro" if reading and _has_write_ahead_log(path) else "rw"
    uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
    connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, **options)
    if reading:
        connection.execute("PRAGMA query_only = ON")
    return connection


def _has_write_ahead_log(path: str) -> bool:
    """Whether the ``-wal`` file has contents, as after a process was killed.

    The last connection to be closed moves them into the database, unless it is read-only. Without
    contents a read-only connection is no better: it leaves new ``-wal`` and ``-shm`` files behind.
    """
    with suppress(OSError):
        return os.path.getsize(f"{path}-wal") > 0
    return False
