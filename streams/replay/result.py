"""The result of a replay: figures, failures, and the positions from which to go on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.errors import StreamsError
from streams.log.protocol import Log
from streams.log.range_reader import OffsetRanges
from streams.message import Batch, Position, text
from streams.text import error_text

FAILURES_KEPT = 100
"""Failures kept with their errors; more are only counted."""


class Failure(NamedTuple):
    """A message that could not be handled, or not be written."""

    position: Position
    id: str
    key: str | None
    attempts: int
    """How often the handler was called; 1 if the message could not be decoded or written."""
    error: BaseException

    def __str__(self) -> str:
        key = f", key {self.key!r}" if self.key is not None else ""
        what = f"{type(self.error).__name__}: {error_text(self.error)}"
        return f"{self.position} (ID {self.id!r}{key}): {what}"


class FailureLog:
    """Counts failures, and stores the first ones. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.first: list[Failure] = []

    def add(self, batch: Batch, index: int, attempts: int, error: BaseException) -> Failure:
        """Note that a message failed for good."""
        key = batch.keys[index]
        position = Position(batch.topic, batch.partition, batch.offset(index))
        key_text = None if key is None else text(key)
        failure = Failure(position, batch.id(index), key_text, attempts, error)
        with self._lock:
            self.count += 1
            if self.count <= FAILURES_KEPT:
                self.first.append(failure)
        return failure


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Figures of a replay.

    :param total: messages in the range; None: the log cannot know.
    :param scanned: messages of the range that were read so far; with ``key=`` also those of other
        keys.
    :param read: scanned messages that were taken to be handled or written.
    :param handled: handled, or written to the other topic.
    :param duplicates: skipped because their ID had been handled in this replay.
    :param filtered: skipped by the processor's filter, for an unknown tag or as a tombstone.
    :param retries: failed attempts that were followed by another.
    :param failed: failed for good; with ``errors="skip"`` they were skipped.
    :param failures: the first hundred of these.
    :param positions: by partition, the position from which another replay has to go on.
    """

    total: int | None
    scanned: int = 0
    read: int = 0
    handled: int = 0
    duplicates: int = 0
    filtered: int = 0
    retries: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    positions: Mapping[int, int] = field(default_factory=dict)


class ReplayFailed(StreamsError):
    """A message could not be handled and the replay stopped there.

    ``replay(..., start=error.result.positions)`` goes on with that message; later messages, of
    other keys, that were handled already are handled again.
    """

    def __init__(self, failure: Failure, result: ReplayResult) -> None:
        super().__init__(
            f"replay stopped at {failure}; {result.handled} messages were done; go on with "
            "start=error.result.positions, or pass such messages over with errors='skip'"
        )
        self.failure = failure
        self.result = result


def count_messages(log: Log, topic: str, partition: int, low: int, high: int) -> int | None:
    """Messages from position ``low`` to before ``high``; None: the log cannot know."""
    if low >= high:
        return 0
    lag_of_low, lag_of_high = log.lag(topic, partition, low), log.lag(topic, partition, high)
    return None if lag_of_low is None or lag_of_high is None else max(0, lag_of_low - lag_of_high)


def total_messages(log: Log, topic: str, ranges: OffsetRanges) -> int | None:
    """Messages in all these ranges; None: the log cannot know."""
    counts = [count_messages(log, topic, partition, *each) for partition, each in ranges.items()]
    return None if None in counts else sum(each or 0 for each in counts)
