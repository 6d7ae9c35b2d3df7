"""Where a plain handler of a local bus is called: in a worker thread, or in place.

Handing a call over to a thread and waiting for it takes a hundred times as long as a fast handler
does. But a handler that blocks must not block the event loop, and only its calls show which it is.
So the first calls run in worker threads and are timed; after :data:`TRIAL_CALLS` fast ones in a row
the handler is called in place, on the loop. A slow call in place sends it back to the threads, for
twice as many calls as the last time: a handler that is slow now and then blocks the loop less and
less often.

A fast handler's call also takes long if the process was interrupted, by the garbage collector or by
another process. So one slow call after :data:`STEADY_CALLS` fast ones is ignored, if it took less
than :data:`MAX_INTERRUPTION`: averaged over these calls that is negligible.

Used on the bus's loop.
"""

from __future__ import annotations

QUICK_CALL = 0.000_1
"""The longest time of a fast call, in seconds."""

TRIAL_CALLS = 8
"""The minimum of consecutive fast calls in a thread before the handler is called in place."""

MAX_TRIAL_CALLS = 4_096
"""The maximum of the same."""

STEADY_CALLS = 1_000
"""Fast calls in place after which a slow one is taken for an interruption."""

MAX_INTERRUPTION = 0.01
"""The longest call that is taken for an interruption, in seconds."""


class InlinePolicy:
    """How fast a plain handler is, judging by its calls so far."""

    __slots__ = ("in_threads", "inline_calls", "runs_inline", "trials", "trials_left")

    def __init__(self, *, threads_only: bool = False) -> None:
        self.runs_inline = False
        """Call it in place, unless one of its calls is still in a thread: order would be lost."""
        self.in_threads = 0
        """Calls in threads that have not ended."""
        self.inline_calls = 0
        """Calls in place since the last slow one."""
        self.trials = TRIAL_CALLS
        """How many consecutive fast calls are required."""
        self.trials_left = -1 if threads_only else TRIAL_CALLS
        """How many of them are still missing; negative: it is never called in place."""

    def record_thread_call(self, seconds: float) -> None:
        """Record the duration of a call in a thread."""
        if self.trials_left < 0 or self.runs_inline:
            return
        self.trials_left = self.trials_left - 1 if seconds <= QUICK_CALL else self.trials
        if self.trials_left == 0:
            self.runs_inline = True
            self.inline_calls = 0

    def record_slow_call(self, seconds: float) -> None:
        """Record that a call in place took longer than :data:`QUICK_CALL`."""
        steady = self.inline_calls >= STEADY_CALLS
        self.inline_calls = 0
        if steady and seconds <= MAX_INTERRUPTION:
            return
        self.trials = TRIAL_CALLS if steady else min(MAX_TRIAL_CALLS, 2 * self.trials)
        self.trials_left = self.trials
        self.runs_inline = False
