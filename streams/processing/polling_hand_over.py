"""Which thread polls: the poller's own, or the one that handles what was polled.

Two threads that wait for each other after every batch cost a third of the throughput on Kafka. So
a handler's thread that has nothing to do takes polling over: it polls, and handles what came
without passing it to another thread. The poller's own thread checks every :data:`SILENCE` whether
the other still polls, and takes polling back where a handler is slow: then it polls ahead, commits
and keeps the membership alive while the handler runs. (The pattern is Leader/Followers: Schmidt,
Stal, Rohnert, Buschmann, *Pattern-Oriented Software Architecture*, volume 2.)

One thread at a time runs a poll cycle, and it alone uses the subscription meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

SILENCE = 0.02
"""Real seconds without a cycle of the handler's thread after which the poller's takes over."""

BLOCKED = 0.25
"""Real seconds until the poller's thread looks again while the handler's is in a cycle."""


class PollingHandOver:
    """Hands polling to a processor's handler thread, and takes it back.

    :param poll_cycle: polls once, and commits what is due; may block until there is something.
    :param is_allowed: whether the handler's thread may poll at all now.
    """

    def __init__(self, poll_cycle: Callable[[], None], is_allowed: Callable[[], bool]) -> None:
        self._poll_cycle = poll_cycle
        self._is_allowed = is_allowed
        self.cycle_lock = threading.Lock()
        """Held during a poll cycle."""
        self._cycles = 0
        """How many the handler's thread ran."""
        self._cycles_seen = 0
        """How many of them there were when the poller's thread last looked."""
        self.handed_over = False
        """The handler's thread polls."""
        self._requested = False
        """It asks to poll after the cycle that the poller's thread is in."""
        self._recalled = threading.Event()
        """The poller's own thread is needed at once."""
        self.failure: BaseException | None = None
        """The error that ended a poll cycle, and with it the processor."""

    # -- the poller's own thread

    def handler_polls(self) -> bool:
        """Whether the handler's thread polls. Waits a moment before it says so."""
        if not self.handed_over:
            return False
        self._recalled.wait(BLOCKED if self.cycle_lock.locked() else SILENCE)
        self._recalled.clear()
        seen, self._cycles_seen = self._cycles_seen, self._cycles
        if self.handed_over and (self._cycles_seen != seen or self.cycle_lock.locked()):
            return True
        self.handed_over = False
        return False

    def run_cycle(self) -> bool:
        """Run a cycle in the poller's own thread. True: the handler's thread had asked to poll, and
        is to be notified that it may from now on."""
        with self.cycle_lock:
            self.handed_over = False
            try:
                self._poll_cycle()
            except BaseException as error:
                self.failure = self.failure or error  # no further cycle is run
                raise
        if not self._requested:
            return False
        self._requested = False
        self._recalled.clear()
        self._cycles_seen = self._cycles
        self.handed_over = True
        return True

    def wake_poller(self) -> None:
        """Make the poller's own thread look (any thread)."""
        self._recalled.set()

    # -- the handler's thread

    def cycle_in_handler(self) -> bool:
        """Run a cycle in this thread, which has nothing else to do. False: it may not poll now;
        where another thread is polling, it has asked for it."""
        if not self.cycle_lock.acquire(blocking=False):
            self._requested = True
            return False
        try:
            self._requested = False
            self.handed_over = self._is_allowed()
            if not self.handed_over:
                return False
            self._cycles += 1
            self._poll_cycle()
        except BaseException as error:
            self.failure = self.failure or error
            self.handed_over = False
            self._recalled.set()
            return False
        finally:
            self.cycle_lock.release()
        return True

    def return_polling(self) -> None:
        """This thread waits for something other than messages: the poller's own polls again."""
        self._requested = False
        if self.handed_over:
            self.handed_over = False
            self._recalled.set()
