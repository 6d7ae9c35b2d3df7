"""Asking after partitions that cannot be begun yet, without the polling thread waiting for it.

A question about a partition whose broker is down takes ten seconds to fail. In the polling thread
that would hold up every other partition of the member, its heartbeats' reports, and its stop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streams.errors import LogError
from streams.log.protocol import TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")


class PartitionProbe:
    """Finds out which partitions answer, one after the other, in a thread that ends when nothing
    is left to ask.

    :param probe: asks something that only a partition's leader knows; raises LogError.
    """

    def __init__(self, probe: Callable[[str, int], object]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._queue: deque[TopicPartition] = deque()
        self._in_progress: set[TopicPartition] = set()
        self._outcomes: dict[TopicPartition, bool] = {}
        self._thread: threading.Thread | None = None

    def start(self, key: TopicPartition) -> None:
        """Ask after a partition, unless that is done just now."""
        with self._lock:
            if key in self._in_progress:
                return
            self._in_progress.add(key)
            self._queue.append(key)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="streams-kafka-scout", daemon=True
                )
                self._thread.start()

    def take_outcomes(self) -> dict[TopicPartition, bool]:
        """Whether each answered that was asked since the last call."""
        if not self._outcomes:
            return {}
        with self._lock:
            outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def close(self) -> None:
        """Ask no more."""
        with self._lock:
            self._queue.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    self._in_progress.clear()
                    return
                key = self._queue.popleft()
            try:
                self._probe(*key)
                reached = True
            except LogError as error:
                logger.debug("%s/%d: %s", *key, error)
                reached = False
            with self._lock:
                self._in_progress.discard(key)
                self._outcomes[key] = reached
