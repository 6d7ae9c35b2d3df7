"""Who polls: the pump's own thread, or the thread that handles what was polled.

Two threads that wait for each other after every batch cost a third of the throughput on Kafka. So
a handler's thread that has nothing to do takes the *lead*: it polls, and handles what came without
handing it over. The pump's own thread looks every :data:`AWAY` whether the other still comes round,
and where a handler is slow it takes the lead back: then it polls ahead, commits and keeps the
membership alive while the handler runs.
(The pattern is Leader/Followers: Schmidt, Stal, Rohnert, Buschmann, *Pattern-Oriented Software
Architecture*, volume 2.)

One thread at a time takes a *turn*, and it alone uses the subscription meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

AWAY = 0.02
"""Real seconds without a turn of the handler's thread after which the pump's takes the lead."""

WAITING = 0.25
"""Real seconds until the pump's thread looks again while the handler's waits in a turn."""


class Lead:
    """The lead of one processor.

    :param turn: polls once, and commits what is due; may block until there is something.
    :param may: whether the handler's thread may take turns at all now.
    """

    def __init__(self, turn: Callable[[], None], may: Callable[[], bool]) -> None:
        self._turn = turn
        self._may = may
        self.turning = threading.Lock()
        """Held by the thread whose turn it is."""
        self._turns = 0
        """How many the handler's thread took."""
        self._seen = 0
        """How many of them the pump's thread saw at its last look."""
        self.given = False
        """The handler's thread has the lead."""
        self._wanted = False
        """It would like to have it, and has nothing to do until then."""
        self._called = threading.Event()
        """The pump's own thread is needed at once."""
        self.broken: BaseException | None = None
        """What ended a turn, and with it the processor."""

    # -- the pump's own thread

    def away(self) -> bool:
        """Whether the handler's thread leads. If so, some time has passed."""
        if not self.given:
            return False
        self._called.wait(WAITING if self.turning.locked() else AWAY)
        self._called.clear()
        seen, self._seen = self._seen, self._turns
        if self.given and (self._seen != seen or self.turning.locked()):
            return True
        self.given = False
        return False

    def turn(self) -> bool:
        """A turn of the pump's own. True: the handler's thread waits for the lead, and has it
        from now on: tell it."""
        with self.turning:
            self.given = False
            try:
                self._turn()
            except BaseException as error:
                self.broken = self.broken or error  # nobody takes another turn
                raise
        if not self._wanted:
            return False
        self._wanted = False
        self._called.clear()
        self._seen = self._turns
        self.given = True
        return True

    def call(self) -> None:
        """The pump's own thread shall look (any thread)."""
        self._called.set()

    # -- the handler's thread

    def take(self) -> bool:
        """A turn in this thread, which has nothing else to do. False: it was none, the lead comes
        later or not at all."""
        if not self.turning.acquire(blocking=False):
            self._wanted = True
            return False
        try:
            self._wanted = False
            self.given = self._may()
            if not self.given:
                return False
            self._turns += 1
            self._turn()
        except BaseException as error:
            self.broken = self.broken or error
            self.given = False
            self._called.set()
            return False
        finally:
            self.turning.release()
        return True

    def leave(self) -> None:
        """This thread waits for something else than messages: the pump's own shall lead."""
        self._wanted = False
        if self.given:
            self.given = False
            self._called.set()
