"""Asks about partitions in a thread of its own.

A request about a partition whose broker is down takes ten seconds to fail. In the polling thread
that would hold up every other partition of the member, its heartbeats' reports, and its stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from streams.errors import LogError
from streams.log.protocol import TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")


class PartitionProbe(Generic[T]):
    """Asks about partitions, one after the other.

    :param probe: asks something that only a partition's leader knows; raises LogError.
    """

    def __init__(self, probe: Callable[[str, int], T]) -> None:
        self._probe = probe
        self._outcomes: SimpleQueue[tuple[TopicPartition, T | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def is_busy(self) -> bool:
        """Others are being asked about just now."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, keys: Sequence[TopicPartition]) -> None:
        """Ask about these, unless it is busy."""
        if keys and not self.is_busy:
            self._thread = threading.Thread(
                target=self._run, args=(keys,), name="streams-kafka-probe", daemon=True
            )
            self._thread.start()

    def take_outcomes(self) -> dict[TopicPartition, T | None]:
        """The answers since the last call, by partition; None: that partition got no answer."""
        outcomes: dict[TopicPartition, T | None] = {}
        while not self._outcomes.empty():
            key, answer = self._outcomes.get()
            outcomes[key] = answer
        return outcomes

    def close(self) -> None:
        """Ask no more."""
        self._closed = True

    def _run(self, keys: Sequence[TopicPartition]) -> None:
        for key in keys:
            if self._closed:
                return
            try:
                self._outcomes.put((key, self._probe(*key)))
            except LogError as error:
                logger.debug("%s/%d: %s", *key, error)
                self._outcomes.put((key, None))
