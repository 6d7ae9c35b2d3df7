"""SIGINT and SIGTERM of a process that runs an app: the first one asks it to finish, the second one
ends it at once, and both are logged.

Promise: the second signal ends the process whatever its threads do, unless C code keeps the
interpreter's lock for good.

Theory of operation. Python runs a signal's handler in the main thread, between two of its
instructions, so a main thread that is blocked in C code (a blocking driver called by an async
handler) never comes to it. The interpreter also writes the number of each signal to a file
descriptor (:func:`signal.set_wakeup_fd`), and does that at once. After the first signal a thread
reads from it: where the main thread does not act on the second signal within :data:`PATIENCE`
seconds, this thread ends the process. The event loop uses the same descriptor to be woken, so what
is read is passed on to the loop's.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from streams.text import get_logger

logger = get_logger("streams")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 1.0
"""Seconds that the main thread has to act on the second signal."""


class Signals:
    """Handles both signals while it is entered (main thread; in any other it does nothing).

    :param first: told the first signal's name, between two instructions of the main thread.
    """

    def __init__(self, first: Callable[[str], object]) -> None:
        self._first = first
        self._before: dict[signal.Signals, Any] = {}
        self._loops = -1
        """The event loop's own descriptor for being woken."""
        self._reading = self._writing = -1
        self._armed = False
        """The first signal has come."""
        self._again = threading.Event()
        """The process is being ended."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            threading.Thread(target=self._watch, name="streams-signals", daemon=True).start()
            self._before = {each: signal.signal(each, self._stop) for each in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._before:
            return
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if self._armed:
            signal.set_wakeup_fd(self._loops)
        os.close(self._writing)  # the thread reads the end

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, self._end)
        self._loops = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._armed = True
        self._first(signal.Signals(number).name)

    def _end(self, number: int, frame: FrameType | None) -> None:
        # KeyboardInterrupt would be raised wherever the loop is: inside a runner's task it is
        # taken for the processor's death, and the way out then waits for handlers.
        self._again.set()
        _tell(number)
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os._exit(128 + number)

    def _watch(self) -> None:
        while data := os.read(self._reading, 64):
            if self._loops >= 0:
                try:
                    os.write(self._loops, data)
                except OSError:
                    pass  # the loop has been woken as often as it can be, or is closed
            numbers = [each for each in data if each in SIGNALS]
            if numbers and not self._again.wait(PATIENCE):
                _tell(numbers[0])
                os._exit(128 + numbers[0])
        os.close(self._reading)


def _tell(number: int) -> None:
    """Log that the process ends at once.

    The main thread may have been interrupted while it logged, and what it holds then must not be
    waited for: the line is put together as the handlers would, and written past them.
    """
    text = f"{signal.Signals(number).name} again: interrupted, not everything was finished"
    lines = []
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            record = logger.makeRecord("streams", logging.WARNING, "", 0, text, (), None)
            lines.append(handler.format(record))
    for line in lines or [f"streams: {text}"]:
        os.write(2, f"{line}\n".encode())
