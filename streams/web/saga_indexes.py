"""The sagas of a log: an index of each journal, built while visitors watch.

A journal may have millions of entries. The first visitor sees the state in the newest of them, and
a thread reads on as long as visitors ask, for half of its time at most; from then on only new
entries are read.
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
"""Seconds of real time for which the thread reads; then it rests for as long."""

WANTED = 30.0
"""Seconds of real time after the last visitor for which the thread goes on."""

MAX_JOURNALS = 100
"""The most journals with an index; those that were not requested for longest are forgotten."""


class _JournalIndex:
    def __init__(self, index: SagaIndex) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.asked_at = time.monotonic()
        self.is_read = False
        """Whether it had been read to its end at the last request."""
        self.error: StreamsError | None = None
        """Why it could not be read in the background, until a caller gets the error."""
        self.changes = 0
        """How many changes were known of when new entries were last read."""


class SagaIndexes:
    """Keeps the indexes (any thread).

    :param open_log: returns the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._lock = threading.Lock()
        self._kept = IdleCache(self._make_index, MAX_JOURNALS, FORGET_AFTER)
        self._thread: threading.Thread | None = None
        self._changes = 0
        self._closed = threading.Event()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept.values_by_name())

    def look(self, name: str, seconds: float) -> SagaIndex:
        """The index of a journal, after reading on for at most this many seconds of real time
        (blocks). The rest is read in the background.

        :raises NotFound: there is no such journal.
        :raises LogError: it cannot be read.
        """
        kept = self._kept.get(name)
        kept.asked_at, kept.error = time.monotonic(), None
        # After a change, a log that delays the reading is waited for longer.
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
        """How many entries of a journal were read, and whether those are all; without a name,
        of all journals that are kept. Reading goes on in the background, and is not waited for.

        :raises NotFound: it was not requested lately.
        :raises LogError: it could not be read; the next call makes it try again.
        """
        known = self._kept.values_by_name()
        names = [name] if name else list(known)
        if name and name not in known:
            raise NotFound(f"nobody has looked at the sagas of {name!r}")
        kept = [self._kept.get(each) for each in names]
        now = time.monotonic()
        for each in kept:
            each.asked_at = now
            if (error := each.error) is not None:
                each.error, each.is_read = None, False
                raise error
        if not all(each.is_read for each in kept):
            self._start()
        indexes = [each.index for each in kept]
        is_complete = all(each.is_complete for each in indexes)  # never, if one is full
        return sum(each.looked_at for each in indexes), is_complete

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: the next request shows it."""
        with self._lock:
            self._changes += 1

    def _make_index(self, name: str) -> _JournalIndex:
        return _JournalIndex(SagaIndex(Journal(self._open_log(), name)))

    def _read(self, kept: _JournalIndex, name: str, seconds: float) -> None:
        log = self._open_log()
        if kept.index.journal.log is not log:  # the log was reopened
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
                    for name, kept in self._kept.values_by_name().items()
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
                    kept.is_read = True  # the next request makes it try again
                except Exception:
                    with self._lock:
                        self._thread = None
                    raise
                self._closed.wait(time.monotonic() - began)

    def close(self) -> None:
        """End, and forget the indexes."""
        self._closed.set()
        self._kept.close()
