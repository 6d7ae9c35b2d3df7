"""The log of a dashboard: the app's own while the app is entered, else one that is opened on the
first visit, and again after a failure.

Logs block, so screens run in threads of the dashboard's own: at most :data:`THREADS`, so that a log
that does not answer blocks neither the service that the dashboard is mounted in nor fills its
memory.

A log that failed is replaced for the next request, and closed once it is not used any more: other
threads may be in the middle of a search or an action with it. The users of a log are known by
*leases*: a request and a background job have one each until they end, and any other thread has the
log that it requested last.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from streams.errors import Fatal, NotRunning, StreamsError, Unavailable
from streams.log.url import open_log
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log, OpenMode

T = TypeVar("T")

logger = get_logger("streams")

THREADS = 8
"""How many screens and actions run at once; further ones wait."""

PATIENCE = 15.0
"""Seconds that a screen may take; then the visitor gets an error that the log does not answer."""

KEPT_OPEN = 5.0
"""The least seconds for which a log that was opened here is kept, whatever fails."""


class NoAnswer(StreamsError):
    """A resource other than the log, such as an outbox's database, did not answer in time."""


class LogLease:
    """The logs that one user has in use."""

    __slots__ = ("__weakref__", "began", "logs", "waits_for")

    def __init__(self) -> None:
        self.logs: tuple[Log, ...] = ()
        self.waits_for = ""
        """The resource other than the log that is being asked now; empty: none."""
        self.began = False
        """Whether a function was called with it."""


class LogSource:
    """The source of a dashboard's log.

    :param app: the app whose log it is.
    :param mode: the mode in which it is opened if the app is not entered.
    """

    def __init__(self, app: Streams, mode: OpenMode) -> None:
        self.app = app
        self._mode: OpenMode = mode
        self._opening = threading.Lock()
        """Held while the log is opened, which may take long."""
        self._state = threading.Lock()
        """Held for a moment only."""
        self._opened: Log | None = None
        self._opened_at = 0.0
        self._replaced: list[Log] = []
        """Replaced logs that are not closed yet, as they are in use."""
        self._leases: weakref.WeakSet[LogLease] = weakref.WeakSet()
        self._thread = threading.local()
        self._threads = ThreadPoolExecutor(THREADS, "streams-web")
        self._closed = False

    @property
    def description(self) -> str:
        """The log's name, without secrets."""
        return str(self.app.url_source).partition(" (")[0]

    def log(self) -> Log:
        """The log, open; blocks. It stays open while the caller uses it.

        :raises LogError: it cannot be opened.
        :raises ConfigError: there is no such log.
        :raises NotRunning: the dashboard was closed.
        """
        own = self.app.runtime.log
        if own is not None:
            return own
        found = self._current_log()
        if found is not None:
            return found
        with self._opening:
            found = self._current_log()
            if found is not None:
                return found
            app = self.app
            opened = open_log(app.url, app.driver_config, app.clock, mode=self._mode)
            with self._state:
                if not self._closed:
                    self._opened, self._opened_at = opened, time.monotonic()
                    return self._mark_used(opened)
        _let_go([opened])
        raise NotRunning("the dashboard is closed")

    def _current_log(self) -> Log | None:
        with self._state:
            if self._closed:
                raise NotRunning("the dashboard is closed")
            return None if self._opened is None else self._mark_used(self._opened)

    def _mark_used(self, log: Log) -> Log:
        """Record that this thread uses a log (the state is held)."""
        lease = self._lease()
        if lease is not None:
            if log not in lease.logs:
                lease.logs = (*lease.logs, log)
            return log
        last: LogLease | None = getattr(self._thread, "last", None)
        if last is None:  # dropped with the thread
            last = self._thread.last = LogLease()
            self._leases.add(last)
        if last.logs != (log,):
            last.logs = (log,)
            self._close_unused()
        return log

    def _lease(self) -> LogLease | None:
        found: LogLease | None = getattr(self._thread, "lease", None)
        return found

    def can_open(self) -> bool:
        """Whether there is such a log, and it can be opened now (blocks)."""
        try:
            with self.using():
                self.log()
        except StreamsError:
            return False
        return True

    # -- who uses it

    def keep(self) -> LogLease:
        """A lease on this thread's logs, for work that continues elsewhere after it:
        :meth:`using` ends it, and so does dropping it."""
        lease, own = LogLease(), self._lease()
        with self._state:
            lease.logs = () if own is None else own.logs
            self._leases.add(lease)
        return lease

    @contextmanager
    def using(self, lease: LogLease | None = None, *, ends: bool = True) -> Iterator[LogLease]:
        """Keep the logs that this thread requests in the block in use until its end.

        :param lease: continues this one.
        :param ends: whether the lease ends with the block, too.
        """
        lease, before = self.keep() if lease is None else lease, self._lease()
        self._thread.lease, lease.began = lease, True
        try:
            yield lease
        finally:
            self._thread.lease = before
            if ends:
                self.release(lease)

    def release(self, lease: LogLease) -> None:
        """End a lease."""
        with self._state:
            self._leases.discard(lease)
            self._close_unused()

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """This thread asks a resource other than the log in the block: if that does not answer, the
        log is not to blame.

        :param what: the resource's name for people.
        """
        lease = self._lease()
        if lease is None:
            yield
            return
        before, lease.waits_for = lease.waits_for, what
        try:
            yield
        finally:
            lease.waits_for = before

    def _close_unused(self) -> None:
        """Close the replaced logs that are not in use (the state is held)."""
        if not self._replaced:
            return
        used = {id(log) for lease in self._leases for log in lease.logs}
        unused = [log for log in self._replaced if id(log) not in used]
        self._replaced = [log for log in self._replaced if id(log) in used]
        _let_go(unused)

    # -- failures

    def note_failure(self, lease: LogLease | None = None) -> None:
        """The log did not answer: the next request gets a new one, unless it was replaced
        already, or was opened a moment ago.

        :param lease: the lease whose logs it may have been; without one, this thread's.
        """
        if lease is None:
            lease = self._lease() or getattr(self._thread, "last", None)
        with self._state:
            if self._opened is None or time.monotonic() - self._opened_at < KEPT_OPEN:
                return
            if lease is None or not lease.logs or self._opened in lease.logs:
                self._replace()

    def reopen(self) -> None:
        """Have the log reopened for the next request; the current one is closed once it is not in
        use."""
        with self._state:
            self._replace()

    def _replace(self) -> None:
        if self._opened is not None:
            self._replaced.append(self._opened)
            self._opened = None
        self._close_unused()

    def close(self) -> None:
        """Release the logs that were opened here, even if they are in use."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._state:
            self._closed = True
            opened = [] if self._opened is None else [self._opened]
            _let_go([*self._replaced, *opened])
            self._opened, self._replaced = None, []

    async def run(self, function: Callable[[], T], lease: LogLease | None = None) -> T:
        """Call a function in one of the threads.

        :param lease: the lease of the work that the function is a part of, which continues after
            it.
        :raises Unavailable: it took longer than :data:`PATIENCE`, or all threads are taken for as
            long; what began goes on to its end.
        :raises NoAnswer: the same, while a resource other than the log was asked.
        """
        loop, ends = asyncio.get_running_loop(), lease is None
        held = LogLease() if lease is None else lease

        def call() -> T:
            with self._state:
                self._leases.add(held)
            with self.using(held, ends=ends):
                return function()

        try:
            async with asyncio.timeout(PATIENCE):
                return await loop.run_in_executor(self._threads, call)
        except TimeoutError:
            if held.waits_for:
                raise NoAnswer(f"{held.waits_for}: no answer within {PATIENCE:.0f} s") from None
            if held.began:
                self.note_failure(held)
            raise Unavailable(f"no answer within {PATIENCE:.0f} s") from None
        except (Unavailable, Fatal):
            self.note_failure(held)
            raise
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise NotRunning("the dashboard is closed") from error
            raise


def _let_go(logs: list[Log]) -> None:
    """Close logs without waiting for it: a frozen server blocks the closing, too."""
    for log in logs:
        threading.Thread(target=_close, args=(log,), name="streams-web-close", daemon=True).start()


def _close(log: Log) -> None:
    try:
        log.close()
    except StreamsError as error:
        logger.debug("closing the dashboard's log: %s", error)
