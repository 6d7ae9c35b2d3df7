"""The files of a log as the operating system sees them: who may read them, and whose they are.

A new log's file can be read and written by its owner alone (0600, less what the umask takes away),
for it holds payloads. SQLite gives ``-wal`` and ``-shm`` the mode of the database, and so does the
companion file of the members' locks. A file that is there keeps its mode.
"""

from __future__ import annotations

import os
import stat

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
_CAREFUL = _FLAGS | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Follow no symbolic link, and do not wait for whoever has the other end of a pipe."""


class Refused(OSError):
    """A companion file is not one that this log made."""


def create(path: str) -> None:
    """Make a log's file, empty, unless there is one. What stands in the way SQLite says better.

    Nobody in this process may have it open: closing any descriptor of a file drops the locks that
    the process holds on it.
    """
    try:
        os.close(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return


def companion(path: str, log: str) -> int:
    """A descriptor of the log's companion file, which is made if there is none.

    Where the log's folder is writable by others (``/tmp``), somebody else could put something there
    first: a symbolic link is not followed, and another user's file is not used, unless others may
    write to the log itself.

    :raises Refused: what is there was not made for this log.
    :raises OSError: it cannot be opened.
    """
    made = True
    try:
        found = os.open(path, _CAREFUL | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if os.path.islink(path):
            raise Refused(f"{path} is a symbolic link") from None
        made = False
        found = os.open(path, _CAREFUL)
    try:
        database = os.stat(log)
        if made:
            _share(found, database)
        else:
            _check(path, os.fstat(found), database)
    except BaseException:
        os.close(found)
        raise
    return found


def _share(made: int, database: os.stat_result) -> None:
    """Whoever may use the log may use its companion, as SQLite does it for its own files."""
    os.fchmod(made, stat.S_IMODE(database.st_mode) & 0o666)
    if os.geteuid() == 0:
        os.fchown(made, database.st_uid, database.st_gid)


def _check(path: str, found: os.stat_result, database: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path} is no regular file")
    if found.st_nlink != 1:
        raise Refused(f"{path} has another name, too")
    shared = database.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not shared and found.st_uid not in (0, os.geteuid(), database.st_uid):
        raise Refused(f"{path} belongs to user {found.st_uid}")
