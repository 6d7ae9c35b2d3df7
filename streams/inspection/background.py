"""Work that is done in a thread while people wait for it, once at a time: whoever comes later waits
for the run that goes on, and nobody longer than he likes.

What a run found may be from before something was changed. Whoever changes something calls
:meth:`BackgroundRuns.expire`; from then on people wait for a run that began after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from streams.errors import StreamsError
from streams.text import get_logger

logger = get_logger("streams")

AFTER_CHANGE = 2.0
"""Real seconds after which nobody waits any more only because something was changed: then people
are shown what is known, as something that is not complete."""


class BackgroundRuns:
    """Calls a function in a thread of its own whenever somebody asks for it (any thread).

    :param function: does the work, and returns whether it came to its end; it should look at
        :attr:`is_to_stop` now and then, and return False where that is so. It is then called again,
        unless this was closed.
    :param name: of the thread.
    """

    def __init__(self, function: Callable[[], bool], name: str) -> None:
        self._function = function
        self._name = name
        self._state = threading.Condition()
        self._is_running = False
        self._begun = 0
        """The number of the run that began last."""
        self._ended = 0
        """The number of the last run that came to its end, or failed."""
        self._wanted = 0
        """Somebody waits, or waited, for the run of this number or a later one."""
        self._failure: StreamsError | None = None
        """Of the run that ended last."""
        self._is_stale = False
        """Something was changed since the last run began."""
        self._is_expired = False
        """No run that began after the last change has ended."""
        self._patience_ends: float | None = None
        """When nobody waits any more because of a change; None: nobody has asked since."""
        self._closed = False

    def wait(self, seconds: float, *, longer_after_change: bool = True) -> bool:
        """Have it run, and wait for so many real seconds at most; after a change for up to
        :data:`AFTER_CHANGE`, unless it is said that no longer is (blocks).

        :returns: whether it ran to its end, and nothing was changed since that run began. False
            also once it is closed.
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
        """Something was changed: what a run that goes on finds may be from before."""
        with self._state:
            self._is_stale = self._is_expired = True
            self._patience_ends = None

    def close(self) -> None:
        """End it, and let go of those who wait."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    @property
    def is_closed(self) -> bool:
        """It runs no more."""
        return self._closed

    @property
    def is_to_stop(self) -> bool:
        """The run that goes on is of no use any more."""
        return self._closed or self._is_stale

    def _begin(self) -> None:
        self._is_running = True
        self._is_stale = False
        self._begun += 1

    def _run(self) -> None:
        with self._state:
            pass  # until it has begun
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
