"""The driver's own log lines, into Python's logging, each as often as it helps.

librdkafka tells of every attempt to connect, for every client and several times a second while a
broker is away. Such lines are cut down to the broker and the reason and come at level INFO: whoever
needs the broker gets an error or a warning of ours. The same line, whichever client it is of, is
let through again after :data:`REPEAT_AFTER` seconds, then after twice that and so on, with the
number of those that were not.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

from streams.log.kafka.errors import parse_connection_failure

REPEAT_AFTER = 30.0, 900.0
"""Seconds for which a line is not repeated: at first, and at most."""

_MAX_REMEMBERED = 500
"""Different lines that are remembered."""

_TRANSIENT_FACILITIES = frozenset({"ERROR", "FAIL", "GETPID", "REQTMOUT"})
"""What the driver tells of connections, and of what it tries again by itself."""

# What differs between two tellings of one thing: the client's and thread's names, and durations.
_THREAD_PREFIX = re.compile(r"^\[thrd:[^]]*\]: ")
_VARYING_DETAIL = re.compile(r"\(after \d+ms[^)]*\)|\d+ ?ms|\b\d+(\.\d+)?s\b")


class DriverLogger:
    """What a client of the driver takes for its ``logger``."""

    def __init__(
        self,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._logger = logger
        self._scrub = scrub
        self._clock = clock
        self._lock = threading.Lock()
        self._last_logged: dict[str, tuple[float, float, int]] = {}
        """When a line was let through, for how long it is kept back since, and how often it was."""

    def log(self, level: int, text: str, facility: str, client: str, line: str) -> None:
        """One line of the driver: ``text`` is a format of the three that follow it."""
        line = self._scrub(_THREAD_PREFIX.sub("", line))
        if facility in _TRANSIENT_FACILITIES and level >= logging.INFO:
            # What is info to the driver is a connection that was idle for long.
            level = logging.INFO if level > logging.INFO else logging.DEBUG
            failure = parse_connection_failure(line)
            if failure is not None:
                text, facility, client, line = "%s%s%s", "", "", str(failure)
        if not self._logger.isEnabledFor(level):
            return
        suppressed = (
            self._take_suppressed(f"{facility} {_VARYING_DETAIL.sub('', line)}")
            if level > logging.DEBUG
            else 0
        )
        if suppressed is None:
            return
        suffix = f" (and {suppressed} more like this)" if suppressed else ""
        self._logger.log(level, text + "%s", facility, client, line, suffix)

    def _take_suppressed(self, key: str) -> int | None:
        """How often this line was kept back; None if it is kept back now."""
        now = self._clock()
        with self._lock:
            since, quiet, suppressed = self._last_logged.get(key, (float("-inf"), 0.0, 0))
            if now - since < quiet:
                self._last_logged[key] = (since, quiet, suppressed + 1)
                return None
            # What was not told for long is news again.
            recurring = now - since < 3 * quiet
            quiet = min(REPEAT_AFTER[1], 2 * quiet) if recurring else REPEAT_AFTER[0]
            if len(self._last_logged) >= _MAX_REMEMBERED:
                self._last_logged.clear()
            self._last_logged[key] = (now, quiet, 0)
            return suppressed
