"""Asking after partitions that cannot be begun yet, without the polling thread waiting for it.

A question about a partition whose broker is down takes ten seconds to fail. In the polling thread
that would hold up every other partition of the member, its heartbeats' reports, and its stop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streams.errors import LogError
from streams.log.kafka.partitions import Key
from streams.text import get_logger

logger = get_logger("streams.kafka")


class Scout:
    """Finds out which partitions answer, one after the other, in a thread that ends when nothing
    is left to ask.

    :param ask: asks something that only a partition's leader knows; raises LogError.
    """

    def __init__(self, ask: Callable[[str, int], object]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._open: deque[Key] = deque()
        self._asked: set[Key] = set()
        self._outcomes: dict[Key, bool] = {}
        self._thread: threading.Thread | None = None

    def look(self, key: Key) -> None:
        """Ask after a partition, unless that is done just now."""
        with self._lock:
            if key in self._asked:
                return
            self._asked.add(key)
            self._open.append(key)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._main, name="streams-kafka-scout", daemon=True
                )
                self._thread.start()

    def outcomes(self) -> dict[Key, bool]:
        """Whether each answered that was asked since the last call."""
        if not self._outcomes:
            return {}
        with self._lock:
            found, self._outcomes = self._outcomes, {}
        return found

    def close(self) -> None:
        """Ask no more."""
        with self._lock:
            self._open.clear()

    def _main(self) -> None:
        while True:
            with self._lock:
                if not self._open:
                    self._thread = None
                    self._asked.clear()
                    return
                key = self._open.popleft()
            try:
                self._ask(*key)
                answered = True
            except LogError as error:
                logger.debug("%s/%d: %s", *key, error)
                answered = False
            with self._lock:
                self._asked.discard(key)
                self._outcomes[key] = answered
