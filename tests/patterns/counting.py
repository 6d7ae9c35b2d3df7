"""A log that counts what is read of it."""

from __future__ import annotations

from typing import Any

from streams.log.protocol import Log, Reader
from streams.message import Batch


class CountingReader:
    """A reader that tells its log how many records it gave out."""

    def __init__(self, counting: Counting, reader: Reader) -> None:
        self._counting = counting
        self._reader = reader

    def read(self, limit: int, timeout: float = 5.0) -> Batch | None:
        batch = self._reader.read(limit, timeout)
        if batch is not None:
            self._counting.records += len(batch)
        return batch

    def close(self) -> None:
        self._reader.close()


class Counting:
    """Counts the records that were read outside groups, and the calls of every kind."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.records = 0
        self.calls: dict[str, int] = {}

    def reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        self.calls["reader"] = self.calls.get("reader", 0) + 1
        return CountingReader(self, self._log.reader(topic, partition, start, end))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        if callable(found):
            self.calls[name] = self.calls.get(name, 0) + 1
        return found

    def reset(self) -> None:
        """Count from here on."""
        self.records = 0
        self.calls = {}


def counting(log: Log) -> Any:
    """A log whose reads are counted: a :class:`Counting` that is used as a :class:`Log`."""
    return Counting(log)
