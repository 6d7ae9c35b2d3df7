"""SQLite files of the user's that are opened without making them: by whoever only looks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from streams.databases.addresses import sqlite_file
from streams.missing_files import missing_file


def check_file(address: str | None) -> None:
    """See that a database is there, where it is a SQLite file.

    :param address: of a database; None: it is not known.
    :raises NotFound: it is a file, and there is none.
    """
    path = None if address is None else sqlite_file(address)
    # SQLite's own URIs ("file:..."), and ":memory:", are no paths.
    if path is not None and not path.startswith(("file:", ":")):
        _check_path(path)


def _check_path(path: str) -> None:
    if not os.path.exists(path):
        raise missing_file(os.path.realpath(path))


def connect_existing(path: str, *, reading: bool, **options: Any) -> sqlite3.Connection:
    """A connection to a file that is there.

    :param reading: nothing in it is changed; not by closing it either.
    :param options: of :func:`sqlite3.connect`.
    :raises NotFound: it is not there.
    """
    _check_path(path)
    mode = "ro" if reading and _has_write_ahead_log(path) else "rw"
    uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
    connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, **options)
    if reading:
        connection.execute("PRAGMA query_only = ON")
    return connection


def _has_write_ahead_log(path: str) -> bool:
    """Whether there is something in the ``-wal`` file, as after a process was killed.

    The last connection to be closed moves that into the database, unless it is read-only. Where
    there is nothing to be moved, that is no better: a read-only one leaves new ``-wal`` and
    ``-shm`` files behind.
    """
    with suppress(OSError):
        return os.path.getsize(f"{path}-wal") > 0
    return False
