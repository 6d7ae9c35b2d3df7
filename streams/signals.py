"""SIGINT and SIGTERM of a process that runs an app: the first one asks it to finish, the second one
ends it at once, and both are logged.

Promise: the second signal ends the process whatever its threads do, unless C code keeps the
interpreter's lock for good.

Theory of operation. Python runs a signal's handler in the main thread, between two of its
instructions, so a main thread that is blocked in C code (a blocking driver called by an async
handler) never comes to it. The interpreter also writes the number of each signal to a file
descriptor (:func:`signal.set_wakeup_fd`), and does that at once. After the first signal a thread
reads from it: where the main thread does not act on the second signal within
:data:`MAIN_THREAD_TIMEOUT` seconds, this thread ends the process. The event loop uses the same
descriptor to be woken, so what is read is passed on to the loop's.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self

from streams.text import get_logger

logger = get_logger("streams")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

MAIN_THREAD_TIMEOUT = 1.0
"""Seconds that the main thread has to act on the second signal."""


class StopSignals:
    """Handles both signals while it is entered (main thread; in any other it does nothing).

    :param on_first: told the first signal's name, between two instructions of the main thread.
    """

    def __init__(self, on_first: Callable[[str], object]) -> None:
        self._on_first = on_first
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._loop_fd = -1
        """The event loop's own descriptor for being woken."""
        self._read_fd = self._write_fd = -1
        self._first_received = threading.Lock()
        """Taken by the first signal, for good: a second one may interrupt its handler anywhere."""
        self._second_received = threading.Event()
        """The process is being ended."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._write_fd, False)
            watch = self._watch_wakeup_fd
            threading.Thread(target=watch, name="streams-signals", daemon=True).start()
            first = self._handle_first
            self._previous_handlers = {each: signal.signal(each, first) for each in STOP_SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._previous_handlers:
            return
        for each, handler in self._previous_handlers.items():
            signal.signal(each, handler)
        if self._first_received.locked():
            signal.set_wakeup_fd(self._loop_fd)
        os.close(self._write_fd)  # the thread reads the end

    def _handle_first(self, number: int, frame: FrameType | None) -> None:
        if not self._first_received.acquire(blocking=False):
            self._handle_second(number, frame)
        self._loop_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for each in STOP_SIGNALS:
            signal.signal(each, self._handle_second)
        self._on_first(signal.Signals(number).name)

    def _handle_second(self, number: int, frame: FrameType | None) -> NoReturn:
        # KeyboardInterrupt would be raised wherever the loop is: inside an executor's task it is
        # taken for the processor's death, and the way out then waits for handlers.
        self._second_received.set()
        _log_interrupted(number)
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os._exit(128 + number)

    def _watch_wakeup_fd(self) -> None:
        while data := os.read(self._read_fd, 64):
            if self._loop_fd >= 0:
                try:
                    os.write(self._loop_fd, data)
                except OSError:
                    pass  # the loop has been woken as often as it can be, or is closed
            numbers = [each for each in data if each in STOP_SIGNALS]
            if numbers and not self._second_received.wait(MAIN_THREAD_TIMEOUT):
                _log_interrupted(numbers[0])
                os._exit(128 + numbers[0])
        os.close(self._read_fd)


def _log_interrupted(number: int) -> None:
    """Log that the process ends at once.

    The main thread may have been interrupted while it held a logging handler's lock, so no handler
    is called: the line is formatted as they would and written to standard error directly.
    """
    text = f"{signal.Signals(number).name} again: interrupted, not everything was finished"
    lines = []
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            record = logger.makeRecord("streams", logging.WARNING, "", 0, text, (), None)
            lines.append(handler.format(record))
    for line in lines or [f"streams: {text}"]:
        os.write(2, f"{line}\n".encode())
