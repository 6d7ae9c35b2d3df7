"""The aggregates of a log: their event topics, and their keys in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from streams.log.events import EMPTY, EventLog, HistoryKey, HistoryRequest
from streams.log.protocol import Log, TopicInfo

T = TypeVar("T")

SUFFIX = ".events"
"""The suffix of an event topic's name, after the aggregate's name."""


def event_topics(log: Log) -> list[TopicInfo]:
    """The event topics of a log, by name."""
    return [
        info for info in log.describe_topics() if info.name.endswith(SUFFIX) and info.is_event_topic
    ]


class KeyProblems(Protocol):
    """Receives the problems of keys that cannot be listed; the other keys are listed."""

    def call(self, where: str, make: Callable[[], T]) -> T | None:
        """The result of ``make``; None if it raised, which is noted."""
        ...

    def odd_key(self, where: str, key: object) -> None:
        """Note a row whose key is not bytes: another program wrote it."""
        ...


def ordered_keys(
    log: EventLog,
    info: TopicInfo,
    prefix: bytes,
    after: bytes | None,
    size: int,
    problems: KeyProblems,
) -> Iterator[HistoryKey]:
    """The keys of an event topic in the order of their bytes, with the heads of their histories.

    :param prefix: only keys that begin with these bytes.
    :param after: only keys greater than this one.
    :param size: how many keys of a partition are requested at once.
    """
    parts = [
        _partition_keys(log, info, partition, prefix, after, size, problems)
        for partition in range(info.partitions)
    ]
    return heapq.merge(*parts, key=lambda found: found.key)


def _partition_keys(
    log: EventLog,
    info: TopicInfo,
    partition: int,
    prefix: bytes,
    after: bytes | None,
    size: int,
    problems: KeyProblems,
) -> Iterator[HistoryKey]:
    """The keys of one partition. If listing fails, the problem is noted and the keys end."""
    where = f"{info.name}/{partition}"
    if prefix and (after is None or after < prefix):
        request = [HistoryRequest(prefix, limit=1)]
        found = problems.call(where, partial(log.read_histories, info.name, request))
        if found and found[0].partition == partition and found[0].head != EMPTY:
            yield HistoryKey(prefix, found[0].head)
        after = prefix
    while True:
        page = problems.call(where, partial(log.list_keys, info.name, partition, after, size))
        before = after
        for each in page or ():
            key: Any = each.key
            if not isinstance(key, bytes):  # a row of another program
                problems.odd_key(where, key)
                continue
            if after is not None and key <= after:
                continue
            if not key.startswith(prefix):
                return
            yield each
            after = key
        if not page or len(page) < size:
            return
        if after == before:  # only such keys, which sort before all bytes
            if after is not None:
                return
            after = b""
