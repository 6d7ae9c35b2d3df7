"""Finds the topics that hold dead letters: by their names, and by their records.

A dead letter topic can have any name (``DeadLetters(topic="graveyard")``, the
``dead_letter_queue`` of a queue's consumer), which is unknown without the app. But the headers of a
dead letter name its topic and group, so the newest records of every topic that is not known to be
something else are sampled: :data:`RECORDS_SAMPLED` of a partition, of at most
:data:`MAX_PARTITIONS` partitions and for :data:`TIME_LIMIT` seconds, as each takes several
requests. A topic in which dead letters are rare among other records may be missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from streams.inspection.counting import count_waiting

if TYPE_CHECKING:
    from streams.log.protocol import Log, TopicInfo
    from streams.log.range_reader import LogRow
    from streams.message import Headers

T = TypeVar("T")

RECORDS_SAMPLED = 20
"""Newest records of a partition that are sampled."""

MAX_PARTITIONS = 2_000
"""Non-empty partitions that are sampled, at most."""

TIME_LIMIT = 10.0
"""Real seconds after which no further topic is sampled."""


class LetterSource(NamedTuple):
    """The topic and group that a dead letter comes from."""

    topic: str
    group: str


class FoundTopic(NamedTuple):
    """A topic of dead letters."""

    name: str
    sources: tuple[LetterSource, ...]
    """The sources of the letters seen in it, the newest of a partition first."""


class SearchResult(NamedTuple):
    """The topics that were found."""

    topics: list[FoundTopic]
    complete: bool
    """Whether every topic that could hold dead letters was sampled."""


class Attempt(Protocol):
    """Runs an operation on one topic, so that its failure does not hide other topics."""

    def __call__(self, name: str, make: Callable[[], T], /) -> T | None:
        """The result of ``make``; None: it failed, which was reported."""
        ...


def find_dead_letter_topics(log: Log, attempt: Attempt) -> SearchResult:
    """The topics that hold dead letters, or are named like it, by name; blocks.

    :param attempt: runs an operation that may fail for one topic.
    """
    from streams.patterns.internal_topics import internal_topics

    infos = log.describe_topics()
    groups = attempt("groups", log.list_groups) or ()
    internal = internal_topics((info.name for info in infos), groups)
    named = [info for info in infos if info.name.endswith(".dead")]
    others = [info for info in infos if info not in named and info.name not in internal]
    found: list[FoundTopic] = []
    partitions_left, deadline = MAX_PARTITIONS, time.monotonic() + TIME_LIMIT
    for info in (*named, *others):
        if time.monotonic() > deadline:
            partitions_left = 0
        sampled = None
        if partitions_left:
            sample = partial(sample_sources, log, info, partitions_left)
            sampled = attempt(info.name, sample)
        sources, partitions_read = sampled or ((), 0)
        partitions_left -= partitions_read
        if sources or info in named:
            found.append(FoundTopic(info.name, sources))
    return SearchResult(sorted(found), partitions_left > 0)


def sample_sources(
    log: Log, info: TopicInfo, max_partitions: int
) -> tuple[tuple[LetterSource, ...], int]:
    """The topics and groups of the letters among a topic's newest records, and how many partitions
    were sampled; blocks."""
    from streams.log.range_reader import read_batches

    sources: dict[LetterSource, None] = {}
    partitions_read = 0
    for partition in range(info.partitions):
        first, end = log.watermarks(info.name, partition)
        if first >= end:
            continue
        if partitions_read == max_partitions:
            break
        partitions_read += 1
        start = max(first, log.offset_before(info.name, partition, end, RECORDS_SAMPLED))
        for batch in read_batches(log, info.name, partition, start, end, RECORDS_SAMPLED):
            found = [letter_source(batch.headers(at)) for at in range(len(batch.offsets))]
            sources |= dict.fromkeys(each for each in reversed(found) if each is not None)
    return tuple(sources), partitions_read


def letter_source(headers: Headers) -> LetterSource | None:
    """The topic and group of a dead letter; None: it is not one, or does not name them."""
    from streams.log.names import is_valid_name
    from streams.patterns.deadletters import is_parking_record, source_of

    topic, group = source_of(headers)
    if topic is None or group is None or not (is_valid_name(topic) and is_valid_name(group)):
        return None
    return None if is_parking_record(headers) else LetterSource(topic, group)


def is_of(row: LogRow, group: str | None, topic: str | None) -> bool:
    """Whether a letter comes from this group and topic; one topic may hold those of several."""
    from streams.patterns.deadletters import source_of

    if group is None and topic is None:
        return True
    said_topic, said_group = source_of(row.batch.headers(row.index))
    return said_topic in (None, topic) and said_group in (None, group)


class LetterCounts(NamedTuple):
    """The numbers of dead letters in a topic, as far as the log can count.

    :param waiting: unresolved letters.
    :param total: all letters.
    :param oldest: when the log appended the oldest waiting one, in seconds since the epoch; None:
        none waits.
    """

    waiting: int
    total: int
    oldest: float | None


def letter_counts(log: Log, name: str) -> LetterCounts:
    """How many dead letters a topic holds; blocks.

    :raises NotFound: there is no such topic.
    """
    from streams.log.range_reader import read_first
    from streams.patterns.deadletters import resolved_offsets

    waiting, total, oldest = 0, 0, None
    for partition, resolved in resolved_offsets(
        log, name, log.describe_topic(name).partitions
    ).items():
        first, end = log.watermarks(name, partition)
        waiting += count_waiting(log, name, partition, resolved)
        total += log.lag(name, partition, first) or 0
        batch = read_first(log, name, partition, max(first, resolved.position), end)
        if batch is not None:
            oldest = batch.time(0) if oldest is None else min(oldest, batch.time(0))
    return LetterCounts(waiting, total, oldest)
