"""Finds out from the operating system which members still run.

Each member holds an exclusive lock on one byte, its number, of a companion file (``…-members``,
always empty). The kernel drops the lock when the process ends, however it ends, so that the
partitions of a killed member are free at once, before its lease runs out. A *stopped* process keeps
its locks: there the lease decides, as it does where the file cannot be used (see ``files``).

POSIX record locks belong to the process: a forked child does not inherit them (as it would with
``flock``). But a process does not see its own locks, and closing *any* descriptor of the file drops
all of them; so a process keeps one descriptor and remembers its own members. The file is never
deleted: another process may be about to lock it.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import cache

from streams.clock import Clock, SystemClock
from streams.log.sqlite.files import CompanionRefused, open_companion
from streams.text import get_logger

if sys.platform != "win32":
    import fcntl

logger = get_logger("streams")


def timeline_of(clock: Clock) -> str:
    """The origin of ``clock.monotonic()``: two processes can compare only times of one timeline.

    The machine's own timeline starts again at a restart, and differs between time namespaces.
    """
    return _machine_timeline() if isinstance(clock, SystemClock) else f"{os.getpid()}-{id(clock):x}"


@cache
def _machine_timeline() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""  # not Linux; after a restart, nobody holds the locks of the rows that are left


class MemberLocks:
    """The members' locks on one log's file, as one process sees them. Usable from any thread."""

    def __init__(self, path: str) -> None:
        self._database_path = path
        self._path = f"{path}-members"
        self._fd: int | None = None
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._warned = False

    def acquire(self, number: int) -> bool:
        """Hold the lock of member ``number`` until :meth:`release` or the end of this process.

        :returns: False if another member holds it, in this process or another: the number cannot be
            used. True where locks do not work.
        """
        with self._lock:
            if number in self._held or self._try_lock(number) is False:
                return False
            self._held.add(number)
            return True

    def release(self, number: int) -> None:
        """Release the lock of member ``number``, which has left."""
        with self._lock:
            if number in self._held:
                self._held.discard(number)
                self._unlock(number)

    def is_running(self, number: int) -> bool | None:
        """Whether the process of member ``number`` runs; None if locks cannot show it."""
        with self._lock:
            if number in self._held:
                return True
            is_free = self._try_lock(number, may_create=False)
            if is_free:
                self._unlock(number)
            return None if is_free is None else not is_free

    def close(self) -> None:
        """Release all locks and close the file."""
        with self._lock:
            self._held.clear()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _try_lock(self, number: int, *, may_create: bool = True) -> bool | None:
        """Lock the byte: True if this process has it now, False if another one does.

        :param may_create: create the file, if there is none. Without a file, no process can hold
            the lock.
        """
        if sys.platform == "win32":
            return None
        try:
            if self._fd is None:
                self._fd = open_companion(self._path, self._database_path, may_create=may_create)
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
            return False if self._fd is not None else None
        except CompanionRefused as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s, so it is not used: a member that was killed is noticed when its lease"
                    " ends; remove it while the log is not in use",
                    error,
                )
            return None
        except FileNotFoundError:
            return None if may_create else True
        except OSError:  # no locks on this file system: leases alone decide
            return None
        return True

    def _unlock(self, number: int) -> None:
        if sys.platform != "win32" and self._fd is not None:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)
            except OSError:
                return
