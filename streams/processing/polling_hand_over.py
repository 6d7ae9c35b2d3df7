"""Who polls: the poller's own thread, or the thread that handles what was polled.

Two threads that wait for each other after every batch cost a third of the throughput on Kafka. So
a handler's thread that has nothing to do takes the *lead*: it polls, and handles what came without
handing it over. The poller's own thread looks every :data:`SILENCE` whether the other still comes
round, and where a handler is slow it takes the lead back: then it polls ahead, commits and keeps
the membership alive while the handler runs. (The pattern is Leader/Followers: Schmidt, Stal,
Rohnert, Buschmann, *Pattern-Oriented Software Architecture*, volume 2.)

One thread at a time takes a *turn*, and it alone uses the subscription meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

SILENCE = 0.02
"""Real seconds without a turn of the handler's thread after which the poller's takes the lead."""

BLOCKED = 0.25
"""Real seconds until the poller's thread looks again while the handler's waits in a turn."""


class PollingHandOver:
    """The lead of one processor.

    :param poll_cycle: polls once, and commits what is due; may block until there is something.
    :param is_allowed: whether the handler's thread may take turns at all now.
    """

    def __init__(self, poll_cycle: Callable[[], None], is_allowed: Callable[[], bool]) -> None:
        self._poll_cycle = poll_cycle
        self._allowed = is_allowed
        self.cycle_lock = threading.Lock()
        """Held by the thread whose turn it is."""
        self._cycles = 0
        """How many the handler's thread took."""
        self._cycles_seen = 0
        """How many of them the poller's thread saw at its last look."""
        self.handed_over = False
        """The handler's thread has the lead."""
        self._requested = False
        """It would like to have it, and has nothing to do until then."""
        self._recalled = threading.Event()
        """The poller's own thread is needed at once."""
        self.failure: BaseException | None = None
        """What ended a turn, and with it the processor."""

    # -- the poller's own thread

    def handler_polls(self) -> bool:
        """Whether the handler's thread leads. If so, some time has passed."""
        if not self.handed_over:
            return False
        self._recalled.wait(BLOCKED if self.cycle_lock.locked() else SILENCE)
        self._recalled.clear()
        seen, self._cycles_seen = self._cycles_seen, self._cycles
        if self.handed_over and (self._cycles_seen != seen or self.cycle_lock.locked()):
            return True
        self.handed_over = False
        return False

    def cycle(self) -> bool:
        """A turn of the poller's own. True: the handler's thread waits for the lead, and has it
        from now on: tell it."""
        with self.cycle_lock:
            self.handed_over = False
            try:
                self._poll_cycle()
            except BaseException as error:
                self.failure = self.failure or error  # nobody takes another turn
                raise
        if not self._requested:
            return False
        self._requested = False
        self._recalled.clear()
        self._cycles_seen = self._cycles
        self.handed_over = True
        return True

    def recall(self) -> None:
        """The poller's own thread shall look (any thread)."""
        self._recalled.set()

    # -- the handler's thread

    def cycle_in_handler(self) -> bool:
        """A turn in this thread, which has nothing else to do. False: it was none, the lead comes
        later or not at all."""
        if not self.cycle_lock.acquire(blocking=False):
            self._requested = True
            return False
        try:
            self._requested = False
            self.handed_over = self._allowed()
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

    def give_back(self) -> None:
        """This thread waits for something else than messages: the poller's own shall lead."""
        self._requested = False
        if self.handed_over:
            self.handed_over = False
            self._recalled.set()
