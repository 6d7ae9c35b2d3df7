"""Reads one partition of the memory log, outside any group."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from typing_extensions import override

from streams.errors import Unavailable
from streams.log.memory.faults import FaultPoints
from streams.log.memory.store import Store
from streams.log.memory.topics import wait_for_messages
from streams.log.protocol import READ_TIMEOUT, Reader
from streams.message import Batch


class MemoryReader(Reader):
    """A sequential reading of one partition."""

    def __init__(
        self,
        store: Store,
        faults: FaultPoints,
        require_open: Callable[[], None],
        topic: str,
        partition: int,
        start: int,
        end: int,
    ) -> None:
        self._store = store
        self._faults = faults
        self._require_open = require_open
        self._topic = topic
        self._partition = partition
        self._position = start
        self._end = end
        self._has_messages = threading.Condition(store.lock)

    @override
    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> Batch | None:
        store = self._store
        self._faults.strike("read", self._topic)
        until = time.monotonic() + timeout
        with store.lock:
            while self._position < self._end:
                self._require_open()
                found = store.partition(self._topic, self._partition)
                start = max(self._position, found.first)
                count = min(self._end, found.end) - start
                if count > 0:
                    count = min(count, limit)
                    self._position = start + count
                    return found.batch(self._topic, self._partition, start, count, None)
                self._position = start
                remaining = until - time.monotonic()
                if remaining <= 0:
                    raise Unavailable(
                        f"{self._topic}/{self._partition}: nothing came within {timeout:g} s"
                    )
                wait_for_messages([store.topic(self._topic)], self._has_messages, remaining)
        return None

    @override
    def close(self) -> None:
        """Nothing has to be released; a closed reader is at its end."""
        self._end = self._position
