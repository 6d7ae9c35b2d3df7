"""What the logs of one process on one file share: the write lock, events, the members' locks.

SQLite lets one connection write at a time; the others sleep and try again. Inside a process a lock
in front of it lets the next one write at once. And an append wakes the pollers of its own process
directly; those of other processes read ``PRAGMA data_version``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import ClassVar

from streams.errors import Unavailable
from streams.log.sqlite.files import create_file, missing_file, similar_file
from streams.log.sqlite.member_locks import MemberLocks
from streams.text import get_logger

logger = get_logger("streams")


class WriteLock:
    """Lets one thread of this process write. May be released by another thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handler_thread: int | None = None
        """The thread that opened the handler's transaction which holds the lock, if one does."""

    def acquire(self, timeout: float, *, for_handler: bool = False) -> None:
        """Wait for the lock.

        :param for_handler: it is for a handler's transaction, which may last.
        :raises Unavailable: ``timeout`` seconds have passed, or the very thread that asks has a
            handler's transaction open.
        """
        if not self._lock.acquire(blocking=False):
            if self._handler_thread == threading.get_ident():
                raise Unavailable(
                    f"{self._path}: a handler's transaction is open in this thread, so this write "
                    "would wait for itself; write before its first statement or after it ends"
                )
            if not self._lock.acquire(timeout=timeout):
                holder = "a handler's transaction" if self._handler_thread else "another thread"
                raise Unavailable(f"{self._path}: {holder} has been writing for {timeout:g} s")
        if for_handler:
            self._handler_thread = threading.get_ident()

    def release(self) -> None:
        """Let the next one write."""
        self._handler_thread = None
        self._lock.release()


class SharedFile:
    """One file as one process shares it, from :meth:`acquire` to :meth:`release`."""

    _instances: ClassVar[dict[str, SharedFile]] = {}
    _instances_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self.path = path
        self.write_lock = WriteLock(path)
        self.member_locks = MemberLocks(path)
        self._users = 0
        self._watchers: dict[str, set[threading.Event]] = {}

    @classmethod
    def acquire(cls, path: str, *, may_create: bool = True, purpose: str = "log") -> SharedFile:
        """This process's instance for a file.

        :param may_create: make the file, if there is none.
        :param purpose: what a new file is called in the log.
        :raises NotFound: there is none, and it is not to be made.
        """
        path = os.path.realpath(path)
        with cls._instances_lock:
            shared = cls._instances.get(path)
            if shared is None:
                if not may_create and not os.path.exists(path):
                    raise missing_file(path)
                if may_create and create_file(path):
                    other = similar_file(path)  # the name may be mistyped
                    also = "" if other is None else f"; beside it there was {other} already"
                    logger.info("%s is a new %s%s", path, purpose, also)
                shared = cls._instances[path] = cls(path)
            shared._users += 1
            return shared

    def release(self) -> None:
        """Use it no longer; its last user closes the members' locks."""
        with SharedFile._instances_lock:
            self._users -= 1
            if self._users == 0:
                self.member_locks.close()
                if SharedFile._instances.get(self.path) is self:
                    del SharedFile._instances[self.path]

    @classmethod
    def reset_after_fork(cls) -> None:
        """Forget the parent's instances, in a forked child."""
        cls._instances = {}
        cls._instances_lock = threading.Lock()

    # -- waking

    def watch(self, keys: Iterable[str], event: threading.Event) -> None:
        """Set ``event`` whenever one of ``keys`` (of topics and groups) is notified."""
        with SharedFile._instances_lock:
            for key in keys:
                self._watchers[key] = self._watchers.get(key, set()) | {event}

    def unwatch(self, event: threading.Event) -> None:
        """Never set it again."""
        with SharedFile._instances_lock:
            left = {key: events - {event} for key, events in self._watchers.items()}
            self._watchers = {key: events for key, events in left.items() if events}

    def notify(self, keys: Iterable[str]) -> None:
        """Set the events that watch ``keys``."""
        watchers = self._watchers  # the sets are replaced, never changed: no lock is needed
        for key in keys:
            for event in watchers.get(key, ()):
                event.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SharedFile.reset_after_fork)


def topic_event(topic: str) -> str:
    """The key for a topic's messages."""
    return f"topic {topic}"


def group_event(group: str) -> str:
    """The key for changes of a group's members."""
    return f"group {group}"
