"""Browsing a topic: its newest messages and those before them, or those from a position on."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import InvalidValue
from streams.log.range_reader import OffsetRange, read_batches
from streams.replay.result import count_messages
from streams.topic_reader import resolve_ranges
from streams.web.rows import ListedMessage, row_of

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.topic_reader import OffsetSpec
    from streams.web.redaction import Payloads

MAX_PARTITIONS = 64
"""The most partitions that are browsed together; of a topic with more, one is chosen."""

AT_ONCE = 50
"""How many messages are read at once, whatever their size."""


class MessagePage(NamedTuple):
    """The messages of a topic on one page.

    :param rows: the newest first, or from a position on the oldest first.
    :param before: the end positions of the older messages; empty: there are none.
    :param after: the start positions of the later messages; empty: there are none.
    """

    rows: list[ListedMessage]
    before: str
    after: str


def newest(
    log: Log,
    topic: str,
    payloads: Payloads,
    count: int,
    *,
    partition: int | None,
    until: Mapping[int, int] | None,
    now: float,
) -> MessagePage:
    """The newest messages before some positions (blocks)."""
    ranges = _ranges(log, topic, "earliest", partition, now)
    rows: list[ListedMessage] = []
    ends: dict[int, int] = {}
    for number, (low, high) in ranges.items():
        end = ends[number] = high if until is None else min(high, until.get(number, high))
        start = max(low, log.offset_before(topic, number, end, count))
        rows += _read(log, topic, payloads, number, OffsetRange(start, end), count, last=True)
    shown = nlargest(count, rows, key=lambda row: (row.time, row.partition, row.number))
    for row in shown:
        ends[row.partition] = min(ends[row.partition], row.number)
    more = any(
        count_messages(log, topic, number, low, ends[number]) != 0
        for number, (low, _) in ranges.items()
    )
    return MessagePage(shown, _format_positions(log, ends) if more and shown else "", "")


def from_place(
    log: Log,
    topic: str,
    payloads: Payloads,
    count: int,
    *,
    partition: int | None,
    start: OffsetSpec | Mapping[int, OffsetSpec],
    now: float,
) -> MessagePage:
    """The first messages from a position on (blocks)."""
    ranges = _ranges(log, topic, start, partition, now)
    rows: list[ListedMessage] = []
    for number, each in ranges.items():
        rows += _read(log, topic, payloads, number, each, count, last=False)
    shown = nsmallest(count, rows, key=lambda row: (row.time, row.partition, row.number))
    starts = {number: low for number, (low, _) in ranges.items()}
    for row in shown:
        starts[row.partition] = max(starts[row.partition], row.number + 1)
    more = any(
        count_messages(log, topic, number, starts[number], high) != 0
        for number, (_, high) in ranges.items()
    )
    before = {number: low for number, (low, _) in ranges.items()}
    return MessagePage(
        shown, _format_positions(log, before), _format_positions(log, starts) if more else ""
    )


def _ranges(
    log: Log,
    topic: str,
    start: OffsetSpec | Mapping[int, OffsetSpec],
    partition: int | None,
    now: float,
) -> dict[int, OffsetRange]:
    count = log.describe_topic(topic).partitions
    several = len(start) if isinstance(start, Mapping) else count if partition is None else 1
    if several > MAX_PARTITIONS:
        raise InvalidValue(
            f"{topic} has {count} partitions, and at most {MAX_PARTITIONS} are browsed together: "
            "choose one"
        )
    ranges = resolve_ranges(log, topic, start, "latest", partition=partition, now=now)
    return {
        number: OffsetRange(min(low, high), high) for number, (low, high) in sorted(ranges.items())
    }


def _read(
    log: Log,
    topic: str,
    payloads: Payloads,
    partition: int,
    range: OffsetRange,
    count: int,
    *,
    last: bool,
) -> list[ListedMessage]:
    """The last or the first messages of a range, up to a number."""
    found: list[ListedMessage] = []
    for batch in read_batches(log, topic, partition, range.start, range.end, AT_ONCE):
        found += [row_of(log, payloads, batch, index) for index, _ in enumerate(batch.offsets)]
        if last:
            del found[:-count]
        elif len(found) >= count:
            break
    return found[:count]


def _format_positions(log: Log, positions: Mapping[int, int]) -> str:
    return ",".join(f"{number}/{log.format_offset(at)}" for number, at in sorted(positions.items()))
