"""What is known of all sagas of a log: an index of each journal, made while somebody looks.

A journal may have millions of entries. Whoever looks first sees what the newest of them say, and a
thread reads on for as long as somebody asks, half of its time at most; from then on only what is
new is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from streams.errors import NotFound, StreamsError
from streams.idle_cache import IdleCache
from streams.inspection.background import AFTER_CHANGE
from streams.inspection.reading_on import FORGET_AFTER
from streams.inspection.sagas import SagaIndex
from streams.patterns.saga import Journal
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import Log

logger = get_logger("streams.web")

STEP = 0.03
"""Real seconds that the thread reads at a time; then it rests for as long."""

WANTED = 30.0
"""Real seconds after the last visitor for which the thread goes on."""

MAX_JOURNALS = 100
"""Journals with an index, at most; those that nobody looked at for longest are forgotten."""


class _Kept:
    def __init__(self, index: SagaIndex) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.asked_at = time.monotonic()
        self.is_read = False
        """To its end, when somebody last looked."""
        self.error: StreamsError | None = None
        """Why it could not be read in the background, until somebody is told."""
        self.changes = 0
        """How many changes were known of when what is new was last read."""


class SagaIndexes:
    """Keeps them (any thread).

    :param open_log: gives the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._lock = threading.Lock()
        self._kept = IdleCache(self._make, MAX_JOURNALS, FORGET_AFTER)
        self._thread: threading.Thread | None = None
        self._changes = 0
        self._closed = threading.Event()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept.all())

    def look(self, name: str, seconds: float) -> SagaIndex:
        """The index of a journal, after reading on for so many real seconds at most (blocks). What
        is left is read in the background.

        :raises NotFound: there is no such journal.
        :raises LogError: it cannot be read.
        """
        kept = self._kept.of(name)
        kept.asked_at, kept.error = time.monotonic(), None
        # A log that holds up who reads now is waited for longer after a change.
        is_changed = kept.changes != self._changes
        longest = AFTER_CHANGE if is_changed else max(0.01, seconds)
        if kept.lock.acquire(timeout=longest if len(kept.index) else -1):
            try:
                self._read(kept, name, seconds)
            finally:
                kept.lock.release()
        if not kept.is_read:
            self._start()
        return kept.index

    def progress(self, name: str) -> tuple[int, bool]:
        """How many entries of a journal were looked at, and whether those were all; without a name,
        of all journals that are kept. Reading goes on in the background, and nobody waits for it.

        :raises NotFound: nobody has looked at it lately.
        :raises LogError: it could not be read; it is tried again with the next call.
        """
        known = self._kept.all()
        names = [name] if name else list(known)
        if name and name not in known:
            raise NotFound(f"nobody has looked at the sagas of {name!r}")
        kept = [self._kept.of(each) for each in names]
        now = time.monotonic()
        for each in kept:
            each.asked_at = now
            if (error := each.error) is not None:
                each.error, each.is_read = None, False
                raise error
        if not all(each.is_read for each in kept):
            self._start()
        indexes = [each.index for each in kept]
        is_complete = all(each.is_complete for each in indexes)  # never, where one is full
        return sum(each.looked_at for each in indexes), is_complete

    def expire(self, names: Collection[str] = ()) -> None:
        """Somebody changed something: whoever looks next is shown it."""
        with self._lock:
            self._changes += 1

    def _make(self, name: str) -> _Kept:
        return _Kept(SagaIndex(Journal(self._open_log(), name)))

    def _read(self, kept: _Kept, name: str, seconds: float) -> None:
        log = self._open_log()
        if kept.index.journal.log is not log:  # it was opened anew
            kept.index.journal = Journal(log, name)
        changes = self._changes
        is_changed = kept.changes != changes
        kept.is_read = kept.index.read(seconds, new_seconds=AFTER_CHANGE if is_changed else 0.0)
        kept.changes = changes

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="streams-web-sagas", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                wanted = [
                    (name, kept)
                    for name, kept in self._kept.all().items()
                    if not kept.is_read and now - kept.asked_at < WANTED
                ]
                if not wanted or self._closed.is_set():
                    self._thread = None
                    return
            for name, kept in wanted:
                began = time.monotonic()
                try:
                    with kept.lock:
                        self._read(kept, name, STEP)
                except StreamsError as error:
                    logger.debug("the dashboard's sagas: %s: %s", name, error)
                    kept.error = error
                    kept.is_read = True  # whoever asks next has it tried again
                except Exception:
                    with self._lock:
                        self._thread = None
                    raise
                self._closed.wait(time.monotonic() - began)

    def close(self) -> None:
        """End, and forget what was read."""
        self._closed.set()
        self._kept.close()
