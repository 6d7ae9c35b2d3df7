"""Which members still run, asked of the operating system.

Each member holds an exclusive lock on one byte, its number, of a companion file (``…-members``,
always empty). The kernel drops the lock when the process ends, however it ends, so that what a
killed member owned is free at once and nobody waits for its lease. A *stopped* process keeps its
locks: there the lease decides, as it does where the file cannot be used (see ``files``).

POSIX record locks belong to the process: a forked child does not inherit them (``flock`` would
live on in it). In return, a process sees none of its own, and closing *any* descriptor of the file
drops all of them; so a process keeps one descriptor and remembers its own members. The file is
never deleted: somebody may be about to lock it.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import cache

from streams.clock import Clock, SystemClock
from streams.log.sqlite.files import Refused, companion
from streams.text import get_logger

if sys.platform != "win32":
    import fcntl

logger = get_logger("streams")


def timeline(clock: Clock) -> str:
    """What ``clock.monotonic()`` is counted on: only on one and the same can two compare it.

    The machine's own begins anew at a restart, and differs between time namespaces.
    """
    return _machine() if isinstance(clock, SystemClock) else f"{os.getpid()}-{id(clock):x}"


@cache
def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""  # another system: what a restart leaves behind, nobody holds the lock of


class Alive:
    """The members' locks on one log's file, as one process sees them. Usable from any thread."""

    def __init__(self, path: str) -> None:
        self._log = path
        self._path = f"{path}-members"
        self._fd: int | None = None
        self._mine: set[int] = set()
        self._guard = threading.Lock()
        self._warned = False

    def hold(self, no: int) -> None:
        """Say that member ``no`` runs in this process, until :meth:`drop` or the process's end."""
        with self._guard:
            self._mine.add(no)
            self._try(no)

    def drop(self, no: int) -> None:
        """Member ``no`` has left."""
        with self._guard:
            if no in self._mine:
                self._mine.discard(no)
                self._unlock(no)

    def check(self, no: int) -> bool | None:
        """Whether the process of member ``no`` is there; None where locks cannot tell."""
        with self._guard:
            if no in self._mine:
                return True
            free = self._try(no, make=False)
            if free:
                self._unlock(no)
            return None if free is None else not free

    def close(self) -> None:
        """Give up all locks and the file."""
        with self._guard:
            self._mine.clear()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _try(self, no: int, *, make: bool = True) -> bool | None:
        """Lock the byte: True if it is ours now, False if another process has it.

        :param make: make the file, if there is none. Otherwise nobody can have locked it.
        """
        if sys.platform == "win32":
            return None
        try:
            if self._fd is None:
                self._fd = companion(self._path, self._log, make=make)
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, no)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False if self._fd is not None else None
        except Refused as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s, so it is not used: a member that was killed is noticed when its lease"
                    " ends; remove it while the log is not in use",
                    error,
                )
            return None
        except FileNotFoundError:
            return None if make else True
        except OSError:  # no locks on this file system: leases alone decide
            return None
        return True

    def _unlock(self, no: int) -> None:
        if sys.platform != "win32" and self._fd is not None:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, no)
            except OSError:
                return
