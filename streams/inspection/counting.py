"""Counts messages: in topics, behind groups, among dead letters. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.patterns.deadletters import ResolvedOffsets


def count_waiting(log: Log, name: str, partition: int, resolved: ResolvedOffsets) -> int:
    """Unresolved dead letters of a partition, as far as the log can count."""
    from streams.replay.result import count_messages

    first, _ = log.watermarks(name, partition)
    waiting = log.lag(name, partition, max(first, resolved.position)) or 0
    for low, high in resolved.ranges:
        waiting -= count_messages(log, name, partition, low, high) or 0
    return waiting


def count_dead_letters(log: Log, name: str) -> int:
    """Unresolved dead letters in a topic, as far as the log can count; 0 if there is no such topic
    yet."""
    from streams.errors import NotFound
    from streams.patterns.deadletters import resolved_offsets

    try:
        resolved = resolved_offsets(log, name, log.describe_topic(name).partitions)
    except NotFound:
        return 0
    return sum(count_waiting(log, name, partition, each) for partition, each in resolved.items())


def sum_known(counts: Iterable[int | None]) -> int | None:
    """The sum of the counts; None: one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def count_all(log: Log, topic: str, partitions: int) -> int | None:
    """The number of messages in a topic; None: the log cannot count them."""
    return sum_known(
        log.lag(topic, partition, log.watermarks(topic, partition)[0])
        for partition in range(partitions)
    )
