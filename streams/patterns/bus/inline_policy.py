"""Where a plain handler of a local bus is called: in a worker thread, or in place.

To hand a call over to a thread and to wait for it takes a hundred times as long as a quick handler
does. But a handler that blocks must not block the event loop, and only its calls tell. So the first
ones run in worker threads and are timed; after :data:`TRIAL_CALLS` quick ones in a row the handler
is called in place, on the loop. A call that was slow there sends it back to the threads, for twice
as many calls as the last time: a handler that is slow now and then holds the loop up less and less.

A quick call also takes long where the process was interrupted, by the garbage collector or by
another process. So one that came after :data:`STEADY_CALLS` quick ones is let pass, if it took less
than
:data:`MAX_INTERRUPTION`: spread over these that is nothing.

Used on the bus's loop.
"""

from __future__ import annotations

QUICK_CALL = 0.000_1
"""Seconds of a call that is quick, at most."""

TRIAL_CALLS = 8
"""Quick calls in a row in a thread before the handler is called in place, at least."""

MAX_TRIAL_CALLS = 4_096
"""The same, at most."""

STEADY_CALLS = 1_000
"""Quick calls in place after which a slow one is taken for an interruption."""

MAX_INTERRUPTION = 0.01
"""Seconds of such a one, at most."""


class InlinePolicy:
    """How quick a plain handler is, as far as its calls have shown."""

    __slots__ = ("in_threads", "inline_calls", "runs_inline", "trials", "trials_left")

    def __init__(self, *, threads_only: bool = False) -> None:
        self.runs_inline = False
        """It is called in place, unless a call of it is still in a thread: order would be lost."""
        self.in_threads = 0
        """Calls in threads that have not ended."""
        self.inline_calls = 0
        """Calls in place since it was last slow."""
        self.trials = TRIAL_CALLS
        """How many quick calls in a row are asked for."""
        self.trials_left = -1 if threads_only else TRIAL_CALLS
        """How many of them are still to come; negative: it is never called in place."""

    def record_thread_call(self, seconds: float) -> None:
        """A call in a thread took so long."""
        if self.trials_left < 0 or self.runs_inline:
            return
        self.trials_left = self.trials_left - 1 if seconds <= QUICK_CALL else self.trials
        if self.trials_left == 0:
            self.runs_inline = True
            self.inline_calls = 0

    def record_slow_call(self, seconds: float) -> None:
        """A call in place took longer than :data:`QUICK_CALL`."""
        steady = self.inline_calls >= STEADY_CALLS
        self.inline_calls = 0
        if steady and seconds <= MAX_INTERRUPTION:
            return
        self.trials = TRIAL_CALLS if steady else min(MAX_TRIAL_CALLS, 2 * self.trials)
        self.trials_left = self.trials
        self.runs_inline = False
