"""Runs work in a background thread, one run at a time: later callers wait for the current run, and
each caller waits no longer than its own limit.

The findings of a run may predate a change. After a change, call :meth:`BackgroundRuns.expire`; from
then on callers wait for a run that began after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from streams.errors import StreamsError
from streams.text import get_logger

logger = get_logger("streams")

AFTER_CHANGE = 2.0
"""Real seconds after which callers no longer wait only because of a change: then they get what is
known, marked as incomplete."""


class BackgroundRuns:
    """Calls a function in a separate thread whenever a caller asks for it (any thread).

    :param function: does the work, and returns whether it finished; it should check
        :attr:`is_to_stop` now and then, and return False if that is set. It is then called again,
        unless this was closed.
    :param name: the name of the thread.
    """

    def __init__(self, function: Callable[[], bool], name: str) -> None:
        self._function = function
        self._name = name
        self._state = threading.Condition()
        self._is_running = False
        self._begun = 0
        """The number of the last run that was started."""
        self._ended = 0
        """The number of the last run that finished or failed."""
        self._wanted = 0
        """The highest number of a run that callers wait, or waited, for."""
        self._failure: StreamsError | None = None
        """The failure of the last run that ended."""
        self._is_stale = False
        """Whether something was changed since the last run began."""
        self._is_expired = False
        """Whether no run that began after the last change has ended yet."""
        self._patience_ends: float | None = None
        """When callers stop waiting longer because of a change; None: none has waited since."""
        self._closed = False

    def wait(self, seconds: float, *, longer_after_change: bool = True) -> bool:
        """Start a run if none is running, and wait for it for at most ``seconds`` real seconds;
        after a change for up to :data:`AFTER_CHANGE` (blocks).

        :param longer_after_change: False: wait no longer after a change.
        :returns: whether the run finished, and nothing was changed since it began. False also once
            this is closed.
        :raises StreamsError: the run failed.
        """
        now = time.monotonic()
        with self._state:
            if self._closed:
                return False
            if not self._is_running:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()  # it waits for the lock that is held here
                self._begin()
            wanted = self._begun + self._is_stale
            self._wanted = max(self._wanted, wanted)
            deadline = now + seconds
            if self._is_expired and longer_after_change:
                if self._patience_ends is None:
                    self._patience_ends = now + AFTER_CHANGE
                deadline = max(deadline, self._patience_ends)
            while self._ended < wanted and not self._closed:
                if not self._state.wait(deadline - time.monotonic()):
                    return False
            if self._closed:
                return False
            if self._failure is not None:
                raise self._failure
            return True

    def expire(self) -> None:
        """Note a change: the findings of the current run may predate it."""
        with self._state:
            self._is_stale = self._is_expired = True
            self._patience_ends = None

    def close(self) -> None:
        """End the runs, and release the callers that wait."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def is_to_stop(self) -> bool:
        """Whether the current run should stop, as its findings are useless."""
        return self._closed or self._is_stale

    def _begin(self) -> None:
        self._is_running = True
        self._is_stale = False
        self._begun += 1

    def _run(self) -> None:
        with self._state:
            pass  # wait() has started the run by then
        while True:
            failure: StreamsError | None = None
            is_over = True
            try:
                is_over = self._function()
            except StreamsError as error:
                failure = error
            except Exception:
                logger.exception("%s failed", self._name)
                failure = StreamsError(f"{self._name} failed: see the log")
            with self._state:
                if is_over:
                    self._ended, self._failure = self._begun, failure
                    if not self._is_stale:
                        self._is_expired, self._patience_ends = False, None
                if self._closed or self._ended >= self._wanted:
                    self._is_running = False
                    self._state.notify_all()
                    return
                self._state.notify_all()
                self._begin()
