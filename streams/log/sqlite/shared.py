"""What the logs of one process on one file share: who writes, who waits for news, who is alive.

SQLite lets one connection write at a time and has the others sleep and try again. Inside a
process a lock in front of it hands the turn over at once. And an append wakes the pollers of its
own process directly; those of other processes look at ``PRAGMA data_version``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import ClassVar

from streams.errors import Unavailable
from streams.log.sqlite.alive import Alive
from streams.log.sqlite.files import beside, create, missing
from streams.text import get_logger

logger = get_logger("streams")


class WriteLock:
    """The turn to write, within this process. May be released by another thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handler: int | None = None
        """The thread that opened the handler's transaction which holds the lock, if one does."""

    def acquire(self, timeout: float, *, handler: bool = False) -> None:
        """Wait for the turn.

        :param handler: it is for a handler's transaction, which may last.
        :raises Unavailable: it did not come in ``timeout`` seconds, or could not, because the
            very thread that asks holds a handler's transaction open.
        """
        if not self._lock.acquire(blocking=False):
            if self._handler == threading.get_ident():
                raise Unavailable(
                    f"{self._path}: a handler's transaction is open in this thread, so this write "
                    "would wait for itself; write before its first statement or after it ends"
                )
            if not self._lock.acquire(timeout=timeout):
                who = "a handler's transaction" if self._handler else "another thread"
                raise Unavailable(f"{self._path}: {who} has been writing for {timeout:g} s")
        if handler:
            self._handler = threading.get_ident()

    def release(self) -> None:
        """Let the next one write."""
        self._handler = None
        self._lock.release()


def _tell_of(path: str, what: str) -> None:
    """Log that a file was made, and what for: its name may be a slip."""
    other = beside(path)
    also = "" if other is None else f"; beside it there was {other} already"
    logger.info("%s is a new %s%s", path, what, also)


class Shared:
    """One file as one process shares it. Get one with :meth:`of`, give it back when done."""

    _all: ClassVar[dict[str, Shared]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self.path = path
        self.write = WriteLock(path)
        self.alive = Alive(path)
        self._users = 0
        self._watchers: dict[str, set[threading.Event]] = {}

    @classmethod
    def of(cls, path: str, *, make: bool = True, what: str = "log") -> Shared:
        """The one of this file in this process.

        :param make: make the file, if there is none.
        :param what: what a file that is made is said to be.
        :raises NotFound: there is none, and it is not to be made.
        """
        path = os.path.realpath(path)
        with cls._guard:
            shared = cls._all.get(path)
            if shared is None:
                if not make and not os.path.exists(path):
                    raise missing(path)
                if make and create(path):
                    _tell_of(path, what)
                shared = cls._all[path] = cls(path)
            shared._users += 1
            return shared

    def give_back(self) -> None:
        """The last user lets go of the locks."""
        with Shared._guard:
            self._users -= 1
            if self._users == 0:
                self.alive.close()
                if Shared._all.get(self.path) is self:
                    del Shared._all[self.path]

    @classmethod
    def forked(cls) -> None:
        """In a forked child: what the parent shares is the parent's."""
        cls._all = {}
        cls._guard = threading.Lock()

    # -- waking

    def watch(self, keys: Iterable[str], event: threading.Event) -> None:
        """Set ``event`` whenever one of ``keys`` (names of topics and groups) has news."""
        with Shared._guard:
            for key in keys:
                self._watchers[key] = self._watchers.get(key, set()) | {event}

    def unwatch(self, event: threading.Event) -> None:
        """Never set it again."""
        with Shared._guard:
            left = {key: events - {event} for key, events in self._watchers.items()}
            self._watchers = {key: events for key, events in left.items() if events}

    def notify(self, keys: Iterable[str]) -> None:
        """There is news of ``keys``. The sets are replaced, never changed, so no lock is needed."""
        watchers = self._watchers
        for key in keys:
            for event in watchers.get(key, ()):
                event.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Shared.forked)


def topic_key(topic: str) -> str:
    """What those watch who wait for a topic's messages."""
    return f"topic {topic}"


def group_key(group: str) -> str:
    """What those watch who are members of a group."""
    return f"group {group}"
