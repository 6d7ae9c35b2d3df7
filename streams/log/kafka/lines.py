"""The driver's own log lines, into Python's logging, each as often as it helps.

librdkafka tells of every attempt to connect, for every client and every second that a broker is
away. The same line is let through again after :data:`QUIET` seconds, with the number of those
that were not.
"""

from __future__ import annotations

import logging
import re
import threading
import time

QUIET = 30.0
"""Seconds for which a line is not repeated."""

_MANY = 500
"""Different lines that are remembered."""

# What differs between two tellings of one thing: the client's and thread's names, and durations.
_DETAIL = re.compile(r"\[thrd:[^]]*\]|\(after \d+ms[^)]*\)|\d+ ?ms|\b\d+(\.\d+)?s\b")


class Lines:
    """What a client of the driver takes for its ``logger``."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}

    def log(self, level: int, text: str, facility: str, client: str, line: str) -> None:
        """One line of the driver: ``text`` is a format of the three that follow it."""
        if not self._logger.isEnabledFor(level):
            return
        again = self._again(f"{facility} {_DETAIL.sub('', line)}") if level > logging.DEBUG else 0
        if again is None:
            return
        more = f" (and {again} more like this)" if again else ""
        self._logger.log(level, text + "%s", facility, client, line, more)

    def _again(self, key: str) -> int | None:
        """How often this line was kept back; None if it is kept back now."""
        now = time.monotonic()
        with self._lock:
            since, kept = self._told.get(key, (float("-inf"), 0))
            if now - since < QUIET:
                self._told[key] = (since, kept + 1)
                return None
            if len(self._told) >= _MANY:
                self._told.clear()
            self._told[key] = (now, 0)
            return kept
