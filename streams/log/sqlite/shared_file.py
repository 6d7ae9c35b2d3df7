"""Shared by the logs of one process on one file: the write lock, wakeups, the members' locks.

SQLite lets one connection write at a time; the others sleep and try again. Inside a process an
additional lock lets the next writer go on at once. And an append wakes the pollers of its own
process directly; those of other processes read ``PRAGMA data_version``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from typing import ClassVar

from streams.errors import Unavailable
from streams.log.sqlite.files import create_file
from streams.log.sqlite.member_locks import MemberLocks
from streams.missing_files import missing_file, similar_file
from streams.text import get_logger

logger = get_logger("streams")


class WriteLock:
    """Lets one thread of this process write at a time. Another thread may release it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._holder: Holder | None = None
        """The user's transaction that holds the lock, if one does."""

    def acquire(self, timeout: float, holder: Holder | None = None) -> None:
        """Wait for the lock.

        :param holder: the user's transaction that takes the lock, and may hold it for long.
        :raises Unavailable: ``timeout`` seconds have passed; or such a transaction is open in the
            very thread or context that asks.
        """
        if not self._lock.acquire(blocking=False):
            found = self._holder
            if found is not None and (where := found.is_ours()):
                raise Unavailable(
                    f"{self._path}: {found.name} is open {where}, so this write would wait for "
                    "itself; write before its first statement or after it ends"
                )
            if not self._lock.acquire(timeout=timeout):
                name = "another thread" if found is None else found.name
                raise Unavailable(f"{self._path}: {name} has been writing for {timeout:g} s")
        self._holder = holder

    def release(self) -> None:
        """Let the next thread write."""
        self._holder = None
        self._lock.release()


class Holder:
    """A user's transaction that has the write lock.

    :param name: the transaction's name in errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread: int | None = threading.get_ident()
        """The thread that began it, if only that thread uses it."""

    def is_ours(self) -> str:
        """Where the transaction is open: in this thread, or in this context; empty: elsewhere."""
        if self.thread == threading.get_ident():
            return "in this thread"
        return "here" if _holder_of_context.get() is self else ""

    def claim_context(self) -> None:
        """Bind it to this context, and to tasks and threads that begin with a copy of it."""
        _holder_of_context.set(self)


_holder_of_context: ContextVar[Holder | None] = ContextVar("streams-file-holder", default=None)


class SharedFile:
    """The state that one process shares for one file, from :meth:`acquire` to :meth:`release`."""

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

        :param may_create: create the file, if it does not exist.
        :param purpose: what a new file is for, in the line that is logged about it.
        :raises NotFound: the file does not exist, and may not be created.
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
        """Stop using it; the last user's release closes the members' locks."""
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
        """Stop setting ``event``."""
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
