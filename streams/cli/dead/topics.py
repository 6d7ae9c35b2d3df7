"""Which topics hold dead letters: those that are named so, and those whose records say so.

A dead letter topic can have any name (``DeadLetters(topic="graveyard")``, the
``dead_letter_queue`` of a queue's consumer), and a command without an app does not know it. But a
dead letter says in its headers which topic and group it is of, so the newest records of every topic
that is not known to be something else are looked at: :data:`RECORDS_SAMPLED` of a partition, of at
most :data:`MAX_PARTITIONS` partitions and for :data:`TIME_LIMIT`, as each takes several requests. A
topic that holds dead letters and much else besides may be missed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from streams.cli import output
from streams.cli.command_errors import CommandFailed
from streams.config import DeadLetters
from streams.errors import NotFound
from streams.inspection.dead_arguments import dead_ls_arguments as dead_ls_arguments
from streams.text import close_match, suggestion

if TYPE_CHECKING:
    from streams.log.protocol import Log, TopicInfo
    from streams.log.range_reader import LogRow
    from streams.message import Headers
    from streams.patterns.deadletters import DeadLetterTopic

RECORDS_SAMPLED = 20
"""Newest records of a partition that are looked at."""

MAX_PARTITIONS = 2_000
"""Partitions that are looked at, at most, where there is anything in them."""

TIME_LIMIT = 10.0
"""Real seconds after which no further topic is looked at."""


class LetterSource(NamedTuple):
    """The topic and group that a dead letter comes from."""

    topic: str
    group: str


class FoundTopic(NamedTuple):
    """A topic of dead letters."""

    name: str
    sources: tuple[LetterSource, ...]
    """Where those that were seen in it come from, the newest of a partition first."""


class SearchResult(NamedTuple):
    """The topics that were found."""

    topics: list[FoundTopic]
    complete: bool
    """Every topic that could hold dead letters was looked at."""


def find_dead_letter_topics(log: Log) -> SearchResult:
    """The topics that hold dead letters, or are named so, by name."""
    from streams.patterns.internal_topics import internal_topics

    infos = log.topics()
    groups = output.call_or_report("groups", log.groups) or ()
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
            sample = partial(_sample_sources, log, info, partitions_left)
            sampled = output.call_or_report(info.name, sample)
        sources, partitions_read = sampled or ((), 0)
        partitions_left -= partitions_read
        if sources or info in named:
            found.append(FoundTopic(info.name, sources))
    return SearchResult(sorted(found), partitions_left > 0)


def _sample_sources(
    log: Log, info: TopicInfo, max_partitions: int
) -> tuple[tuple[LetterSource, ...], int]:
    """Topic and group of the letters among a topic's newest records, and how many partitions were
    looked at for that."""
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
            found = [_source_of(batch.headers(at)) for at in range(len(batch.offsets))]
            sources |= dict.fromkeys(each for each in reversed(found) if each is not None)
    return tuple(sources), partitions_read


def _source_of(headers: Headers) -> LetterSource | None:
    """The topic and group of a dead letter; None: it is none, or does not say so."""
    from streams.log.names import is_valid_name
    from streams.patterns.deadletters import is_parking_record, source_of

    topic, group = source_of(headers)
    if topic is None or group is None or not (is_valid_name(topic) and is_valid_name(group)):
        return None
    return None if is_parking_record(headers) else LetterSource(topic, group)


def other_topics_of(topics: Iterable[FoundTopic], group: str, topic: str, name: str) -> list[str]:
    """The topics other than this one that hold letters of a group and topic."""
    return [each.name for each in topics if (topic, group) in each.sources and each.name != name]


def suggest_arguments(topics: Iterable[FoundTopic], group: str, topic: str) -> str | None:
    """How ``GROUP TOPIC`` should have been written, where there are letters of one like it."""
    known = {
        f"{group} {topic}": dead_ls_arguments(group, topic, each.name)
        for each in topics
        for topic, group in each.sources
    }
    name = close_match(f"{group} {topic}", known)
    return None if name is None else known[name]


def open_dead_letters(
    log: Log, group: str | None, topic: str | None, name: str | None
) -> DeadLetterTopic:
    """The dead letters of a group and topic, or those in the topic of this name.

    :raises CommandFailed: there is no such topic; says where their letters stand.
    """
    from streams.patterns.deadletters import DeadLetterTopic

    default_name = "" if group is None or topic is None else DeadLetters().name(topic, group)
    try:
        return DeadLetterTopic(log, name or default_name)
    except NotFound as error:
        found = find_dead_letter_topics(log).topics
        known = [each.name for each in found]
        hint = suggestion(name or default_name, known) if known else "there is none at all"
        if group is not None and topic is not None:
            if others := other_topics_of(found, group, topic, ""):
                hint = _use_name_hint(others, group, topic)
            elif name is None and (suggested := suggest_arguments(found, group, topic)) is not None:
                hint = f"did you mean {suggested}?"
        problem = f"there is no dead letter topic {name or default_name!r}"
        raise CommandFailed(f"{problem}; {hint}") from error


def print_other_topics(log: Log, group: str, topic: str, name: str) -> None:
    """Where nothing of a group and topic was found in a topic: say where their letters stand, or
    whose letters are here."""
    found = find_dead_letter_topics(log).topics
    here = next((each.sources for each in found if each.name == name), ())
    if others := other_topics_of(found, group, topic, name):
        output.print_note(_use_name_hint(others, group, topic))
    elif here and (topic, group) not in here:
        whose = ", ".join(f"{group} {topic}" for topic, group in here)
        output.print_note(f"in {name} are letters of GROUP TOPIC: {whose}")


def _use_name_hint(names: list[str], group: str, topic: str) -> str:
    where = f"letters of group {group} and topic {topic} stand in {', '.join(names)}"
    return f"{where}: add --name {names[0]}"


def is_of(row: LogRow, group: str | None, topic: str | None) -> bool:
    """A letter is of this group and topic; one topic may hold those of several."""
    from streams.patterns.deadletters import source_of

    if group is None and topic is None:
        return True
    said_topic, said_group = source_of(row.batch.headers(row.index))
    return said_topic in (None, topic) and said_group in (None, group)
