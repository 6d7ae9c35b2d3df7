"""The driver's own log lines, into Python's logging, each as often as it helps.

librdkafka tells of every attempt to connect, for every client and several times a second while a
broker is away. Such lines are cut down to the broker and the reason and come at level INFO: whoever
needs the broker gets an error or a warning of ours. The same line, whichever client it is of, is
let through again after :data:`QUIET` seconds, then after twice that and so on, with the number of
those that were not.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

from streams.log.kafka.errors import connection

QUIET = 30.0, 900.0
"""Seconds for which a line is not repeated: at first, and at most."""

_MANY = 500
"""Different lines that are remembered."""

_PASSING = frozenset({"ERROR", "FAIL", "GETPID", "REQTMOUT"})
"""What the driver tells of connections, and of what it tries again by itself."""

# What differs between two tellings of one thing: the client's and thread's names, and durations.
_THREAD = re.compile(r"^\[thrd:[^]]*\]: ")
_DETAIL = re.compile(r"\(after \d+ms[^)]*\)|\d+ ?ms|\b\d+(\.\d+)?s\b")


class Lines:
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
        self._told: dict[str, tuple[float, float, int]] = {}
        """When a line was let through, for how long it is kept back since, and how often it was."""

    def log(self, level: int, text: str, facility: str, client: str, line: str) -> None:
        """One line of the driver: ``text`` is a format of the three that follow it."""
        line = self._scrub(_THREAD.sub("", line))
        if facility in _PASSING and level >= logging.INFO:
            # What is info to the driver is a connection that was idle for long.
            level = logging.INFO if level > logging.INFO else logging.DEBUG
            said = connection(line)
            if said is not None:
                text, facility, client, line = "%s%s%s", "", "", str(said)
        if not self._logger.isEnabledFor(level):
            return
        again = self._again(f"{facility} {_DETAIL.sub('', line)}") if level > logging.DEBUG else 0
        if again is None:
            return
        more = f" (and {again} more like this)" if again else ""
        self._logger.log(level, text + "%s", facility, client, line, more)

    def _again(self, key: str) -> int | None:
        """How often this line was kept back; None if it is kept back now."""
        now = self._clock()
        with self._lock:
            since, quiet, kept = self._told.get(key, (float("-inf"), 0.0, 0))
            if now - since < quiet:
                self._told[key] = (since, quiet, kept + 1)
                return None
            # What was not told for long is news again.
            lasts = now - since < 3 * quiet
            quiet = min(QUIET[1], 2 * quiet) if lasts else QUIET[0]
            if len(self._told) >= _MANY:
                self._told.clear()
            self._told[key] = (now, quiet, 0)
            return kept
