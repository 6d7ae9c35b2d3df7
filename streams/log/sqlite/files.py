"""Creates the files of a log, and sets their modes and owners.

A new log's file can be read and written by its owner alone (0600, less the umask), as it holds
payloads. SQLite gives ``-wal`` and ``-shm`` the mode of the database, and the companion file of the
members' locks gets it too. An existing file keeps its mode.
"""

from __future__ import annotations

import os
import stat

_OPEN_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW_FLAGS = _OPEN_FLAGS | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags of opening: follow no symbolic link, and do not wait for the other end of a pipe."""


class CompanionRefused(OSError):
    """A companion file is not one that this log made."""


def create_file(path: str) -> bool:
    """Create a log's file, empty, unless it exists; returns whether it was created. If that fails,
    the error that SQLite raises afterwards says why.

    Nothing in this process may have it open: closing any descriptor of a file drops the locks that
    the process holds on it.
    """
    try:
        os.close(os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return False
    return True


def open_companion(path: str, database_path: str, *, may_create: bool = True) -> int:
    """A descriptor of the log's companion file.

    Where the log's folder is writable by others (``/tmp``), another user could have created the
    file first: a symbolic link is not followed, and another user's file is not used, unless others
    may write to the log itself.

    :param may_create: create the file, if it does not exist.
    :raises CompanionRefused: it was not made for this log.
    :raises OSError: the file cannot be opened.
    """
    descriptor = None
    if may_create:
        try:
            descriptor = os.open(path, _NO_FOLLOW_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
    was_created = descriptor is not None
    if descriptor is None:
        if os.path.islink(path):
            raise CompanionRefused(f"{path} is a symbolic link")
        descriptor = os.open(path, _NO_FOLLOW_FLAGS)
    try:
        database = os.stat(database_path)
        if was_created:
            _copy_permissions(descriptor, database)
        else:
            _check_companion(path, os.fstat(descriptor), database)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _copy_permissions(descriptor: int, database: os.stat_result) -> None:
    """Give the companion the log's mode and owner, as SQLite does with its own files."""
    os.fchmod(descriptor, stat.S_IMODE(database.st_mode) & 0o666)
    if os.geteuid() == 0:
        os.fchown(descriptor, database.st_uid, database.st_gid)


def _check_companion(path: str, found: os.stat_result, database: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CompanionRefused(f"{path} is not a regular file")
    if found.st_nlink != 1:
        raise CompanionRefused(f"{path} has another name, too")
    shared = database.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not shared and found.st_uid not in (0, os.geteuid(), database.st_uid):
        raise CompanionRefused(f"{path} belongs to user {found.st_uid}")
