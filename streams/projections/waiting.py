"""Messages of a version that are to be handled later than those behind them.

A message that failed and need not keep its order (``Retry(in_order=False)``, or no key and
``Retry(durable=True)``) is settled where it stands, waits in the group's delay topic, and comes
back through its retry topic, as does a dead letter that was put back. So positions do not show that
the version has not handled it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streams import wire
from streams.config import DeadLetters
from streams.derived_records import ORIGIN, header_text
from streams.errors import NotFound
from streams.log.protocol import Log
from streams.log.range_reader import read_batches
from streams.message import Headers, Position, Record
from streams.processing import is_within, settled_ahead
from streams.retries import delay_topic, read_pending

MAX_WAITING = 1_000
"""Waiting messages that are looked up in the database, at most."""

MAX_READ = 100_000
"""Records of a partition of a delay topic that are read, at most."""


def find_waiting(log: Log, group: str, topics: Iterable[str]) -> set[Position] | None:
    """The first positions of the messages that wait (blocks); None: there are too many.

    A message that moves from one topic to the other meanwhile is in at least one of them when that
    is read: the delay topics are read before and after the retry topics.
    """
    found: set[Position] = set()
    names = list(topics)
    for read in (_delayed, _put_back, _delayed):
        for topic in names:
            for position in read(log, topic, group):
                if position is None:
                    return None
                if position.topic == topic:
                    found.add(position)
                if len(found) > MAX_WAITING:
                    return None
    return found


def _delayed(log: Log, topic: str, group: str) -> Iterator[Position | None]:
    """Those in the delay topic; None: not all were read."""

    def origin(_: str, record: Record) -> Position | None:
        return _origin(record.headers)

    try:
        found = read_pending(log, delay_topic(topic, group), origin, MAX_READ)
    except NotFound:
        return
    yield from (each.value for each in found.entries)
    if not found.is_complete:
        yield None


def _put_back(log: Log, topic: str, group: str) -> Iterator[Position]:
    """Those in the retry topic that the group has not settled."""
    retry = DeadLetters.RETRY.format(topic=topic, group=group)
    try:
        partitions, committed = log.describe_topic(retry).partitions, log.committed(group, retry)
    except NotFound:
        return
    for partition in range(partitions):
        first, end = log.watermarks(retry, partition)
        there = committed.get(partition)
        settled = settled_ahead(there)
        start = first if there is None else max(first, there.position)
        for batch in read_batches(log, retry, partition, start, end):
            for index, offset in enumerate(batch.offsets):
                position = _origin(batch.headers(index))
                if position is not None and not is_within(offset, settled):
                    yield position


def _origin(headers: Headers) -> Position | None:
    """The first position of a message that waits; None: its headers do not say."""
    found = wire.parse_position(header_text(headers, ORIGIN))
    return None if found is None else Position(*found)
