"""Reads dead letters page by page, and selects them for bulk steps: both bounded by count and by
time, as a topic may hold millions of letters of which only a few match."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from streams.derived_records import ERROR_GROUP, ERROR_TOPIC
from streams.errors import NotFound
from streams.inspection.letter_topics import LetterSource, letter_source
from streams.log.record_fetcher import RecordFetcher
from streams.patterns.deadletters import DeadLetterTopic

if TYPE_CHECKING:
    from streams.log.range_reader import LogRow

LOOKS = 64
"""Letters between two checks of the clock."""

READ_BYTES = 16 << 20
"""Bytes of letters that are read at once, approximately."""

Matches = Callable[["LogRow"], bool]
"""Whether a letter matches."""


class LetterPage(NamedTuple):
    """Some letters, the oldest first.

    :param rows: the letters, each with whether it waits.
    :param looked_at: letters that were read for this page.
    :param next: by partition, the offset from which to go on; None: this was the last page.
    """

    rows: list[tuple[LogRow, bool]]
    looked_at: int
    next: dict[int, int] | None


def read_letters(
    topic: DeadLetterTopic,
    matches: Matches,
    start_offsets: Mapping[int, int],
    *,
    count: int,
    seconds: float,
    everything: bool = False,
    read_limit: int = 200,
) -> LetterPage:
    """The next letters that match; blocks.

    :param start_offsets: by partition, the offset to begin at; other partitions begin at their
        start.
    :param count: how many letters, at most.
    :param seconds: real seconds after which the page ends with the letters found so far.
    :param everything: include resolved letters.
    """
    deadline = time.monotonic() + seconds
    found: list[tuple[LogRow, bool]] = []
    following = dict(start_offsets)
    reading = topic.rows(
        everything=everything,
        scan_limit=None,
        start_offsets=start_offsets,
        read_limit=read_limit,
    )
    with closing(reading) as rows:
        for number, row in enumerate(rows):
            is_late = number % LOOKS == LOOKS - 1 and time.monotonic() > deadline
            if len(found) >= count or is_late:
                return LetterPage(found, rows.scanned - 1, following)
            following[row.batch.partition] = row.offset + 1
            if matches(row):
                found.append((row, rows.is_waiting(row)))
        return LetterPage(found, rows.scanned, None)


class BulkSelection(NamedTuple):
    """The waiting letters that match, the oldest first.

    :param number: how many there are.
    :param sources: their number by source; None: their headers name no valid source.
    :param end_offsets: by partition, the offset before which they are; a partition without one has
        no letter that matches.
    :param looked_at: letters that were read.
    :param is_complete: there are no others.
    """

    number: int
    sources: Counter[LetterSource | None]
    end_offsets: dict[int, int]
    looked_at: int
    is_complete: bool


def select_letters(
    topic: DeadLetterTopic, matches: Matches, *, most: int, seconds: float
) -> BulkSelection:
    """Count the waiting letters that match; blocks.

    :param most: select only this many, the oldest.
    :param seconds: real seconds after which it returns the letters found so far.
    """
    deadline = time.monotonic() + seconds
    by_headers: Counter[tuple[bytes | None, bytes | None]] = Counter()
    end_offsets: dict[int, int] = {}
    count = looked_at = 0

    def selection(*, is_complete: bool) -> BulkSelection:
        sources: Counter[LetterSource | None] = Counter()
        for (topic_name, group), number in by_headers.items():
            headers = [(ERROR_TOPIC, topic_name), (ERROR_GROUP, group)]
            sources[letter_source(headers)] += number
        return BulkSelection(count, sources, end_offsets, looked_at, is_complete)

    with closing(topic.rows(scan_limit=None)) as rows:
        for row in rows:
            if count >= most or (looked_at % LOOKS == 0 and time.monotonic() > deadline):
                return selection(is_complete=False)
            looked_at += 1
            if matches(row):
                count += 1
                by_headers[_source_headers(row)] += 1
                end_offsets[row.batch.partition] = row.offset + 1
    return selection(is_complete=True)


def select_positions(
    topic: DeadLetterTopic, positions: Collection[tuple[int, int]]
) -> BulkSelection:
    """The letters at these partitions and offsets, all of which must wait; blocks.

    :raises NotFound: one of them does not exist, or no longer waits.
    """
    log, resolved = topic.log, topic.read_resolved()
    sources: Counter[LetterSource | None] = Counter()
    end_offsets: dict[int, int] = {}
    for partition in sorted({each for each, _ in positions}):
        left = sorted({offset for each, offset in positions if each == partition})
        first, end = log.watermarks(topic.name, partition)
        for offset in (left[0], left[-1]):
            if not first <= offset < end:
                raise NotFound(_no_letter(topic, partition, offset))
        end_offsets[partition] = left[-1] + 1
        fetcher = RecordFetcher(log, topic.name, partition)
        while left:
            rows, _ = fetcher.fetch(left, READ_BYTES)
            for offset, row in rows.items():
                if row is None:
                    raise NotFound(_no_letter(topic, partition, offset))
                if offset in resolved[partition]:
                    at = f"{topic.name}/{partition}/{log.format_offset(offset)}"
                    raise NotFound(f"letter {at} was put back or set aside already")
                sources[letter_source(row.headers)] += 1
            left = [each for each in left if each not in rows]
    return BulkSelection(
        len(set(positions)), sources, end_offsets, len(positions), is_complete=True
    )


def _no_letter(topic: DeadLetterTopic, partition: int, offset: int) -> str:
    return f"there is no letter {topic.name}/{partition}/{topic.log.format_offset(offset)}"


def _source_headers(row: LogRow) -> tuple[bytes | None, bytes | None]:
    topic = group = None
    for name, value in row.headers:
        if name == ERROR_TOPIC:
            topic = value
        elif name == ERROR_GROUP:
            group = value
    return topic, group
