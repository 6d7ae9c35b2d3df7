"""SQLite's exceptions, translated in one place into one line that says what to do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import apsw

from streams.errors import Fatal, LogError, OutcomeUnknown, Unavailable

_ERROR_RULES: list[tuple[type[apsw.Error], type[LogError], str]] = [
    (
        apsw.BusyError,
        Unavailable,
        "another process is writing and did not finish in time (?timeout= says how long to wait)",
    ),
    (apsw.LockedError, Unavailable, "another connection holds it"),
    (apsw.FullError, Unavailable, "the disk is full: nothing was written; make room"),
    (apsw.IOError, Unavailable, "the disk cannot be read or written"),
    (apsw.CantOpenError, Unavailable, "it cannot be opened; see the permissions of its directory"),
    (apsw.ReadOnlyError, Fatal, "it may only be read; make file and directory writable"),
    (apsw.PermissionsError, Fatal, "no permission; make file and directory writable"),
    (apsw.NotADBError, Fatal, "this is not a SQLite database; name another file"),
    (apsw.CorruptError, Fatal, "the file is damaged; restore it from a backup"),
    (apsw.ThreadingViolationError, LogError, "a connection was used by two threads at once"),
    (apsw.ConnectionClosedError, Unavailable, "the log is closed"),
]


def translate(error: apsw.Error, path: str) -> LogError:
    """Our error for a driver's exception."""
    for kind, log_error, meaning in _ERROR_RULES:
        if isinstance(error, kind):
            return log_error(f"{path}: {meaning} (SQLite: {error})")
    return LogError(f"{path}: SQLite: {error}")


def translate_commit(error: apsw.Error, path: str) -> LogError:
    """Our error for an exception of COMMIT, whose outcome is unknown if the disk fails."""
    if isinstance(error, apsw.IOError):
        return OutcomeUnknown(
            f"{path}: the disk failed while committing; what was written may or may not be there "
            f"(SQLite: {error})"
        )
    return translate(error, path)


@contextmanager
def translate_errors(path: str) -> Generator[None]:
    """Translate every exception of the driver in the block."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error
