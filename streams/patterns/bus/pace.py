"""Where a plain handler of a local bus is called: in a worker thread, or in place.

To hand a call over to a thread and to wait for it takes a hundred times as long as a quick handler
does. But a handler that blocks must not block the event loop, and only its calls tell. So the first
ones run in worker threads and are timed; after :data:`TRIAL` quick ones in a row the handler is
called in place, on the loop. A call that was slow there sends it back to the threads, for twice as
many calls as the last time: a handler that is slow now and then holds the loop up less and less.

A quick call also takes long where the process was interrupted, by the garbage collector or by
another process. So one that came after :data:`STEADY` quick ones is let pass, if it took less than
:data:`PASSED`: spread over these that is nothing.

Used on the bus's loop.
"""

from __future__ import annotations

__all__ = ["QUICK", "TRIAL", "Pace"]

QUICK = 0.000_1
"""Seconds of a call that is quick, at most."""

TRIAL = 8
"""Quick calls in a row in a thread before the handler is called in place, at least."""

LONGEST_TRIAL = 4_096
"""The same, at most."""

STEADY = 1_000
"""Quick calls in place after which a slow one is taken for an interruption."""

PASSED = 0.01
"""Seconds of such a one, at most."""


class Pace:
    """How quick a plain handler is, as far as its calls have shown."""

    __slots__ = ("calls", "in_place", "left", "pending", "trial")

    def __init__(self, *, threads_only: bool = False) -> None:
        self.in_place = False
        """It is called in place, unless a call of it is still in a thread: order would be lost."""
        self.pending = 0
        """Calls in threads that have not ended."""
        self.calls = 0
        """Calls in place since it was last slow."""
        self.trial = TRIAL
        """How many quick calls in a row are asked for."""
        self.left = -1 if threads_only else TRIAL
        """How many of them are still to come; negative: it is never called in place."""

    def threaded(self, seconds: float) -> None:
        """A call in a thread took so long."""
        if self.left < 0 or self.in_place:
            return
        self.left = self.left - 1 if seconds <= QUICK else self.trial
        if self.left == 0:
            self.in_place = True
            self.calls = 0

    def slow(self, seconds: float) -> None:
        """A call in place took longer than :data:`QUICK`."""
        steady = self.calls >= STEADY
        self.calls = 0
        if steady and seconds <= PASSED:
            return
        self.trial = TRIAL if steady else min(LONGEST_TRIAL, 2 * self.trial)
        self.left = self.trial
        self.in_place = False
