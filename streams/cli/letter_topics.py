"""Which topics hold dead letters: those that are named so, and those whose records say so.

A dead letter topic can have any name (``DeadLetters(topic="graveyard")``, the
``dead_letter_queue`` of a queue's consumer), and a command without an app does not know it. But a
dead letter says in its headers which topic and group it is of, so the newest records of every topic
that is not known to be something else are looked at: :data:`LOOKED_AT` of a partition, of at most
:data:`PARTITIONS` partitions and for :data:`SECONDS`, as each takes some questions to a server. A
topic that holds letters and much else besides may be missed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from streams.cli import show
from streams.cli.bookkeeping import own_topics
from streams.config import DeadLetters
from streams.text import close_match

if TYPE_CHECKING:
    from streams.log.protocol import Log, TopicInfo
    from streams.message import Headers

LOOKED_AT = 20
"""Newest records of a partition that are looked at."""

PARTITIONS = 2_000
"""Partitions that are looked at, at most, where there is anything in them."""


SECONDS = 10.0
"""Real seconds after which no further topic is looked at."""


class LetterTopic(NamedTuple):
    """A topic of dead letters.

    :param sources: topic and group of the letters that were seen in it, the newest of a partition
        first; none where none was seen.
    """

    name: str
    sources: tuple[tuple[str, str], ...]


class Looked(NamedTuple):
    """What was found.

    :param whole: every topic that could hold letters was looked at.
    """

    topics: list[LetterTopic]
    whole: bool


def find(log: Log) -> Looked:
    """The topics that hold dead letters, or are named so, by name."""
    infos = log.topics()
    own = own_topics((info.name for info in infos), show.tried("groups", log.groups) or ())
    named = [info for info in infos if info.name.endswith(".dead")]
    others = [info for info in infos if not info.name.endswith(".dead") and info.name not in own]
    found: list[LetterTopic] = []
    left, give_up = PARTITIONS, time.monotonic() + SECONDS
    for info in (*named, *others):
        if time.monotonic() > give_up:
            left = 0
        look = show.tried(info.name, partial(_look, log, info, left)) if left else None
        sources, looked = ((), 0) if look is None else look
        left -= looked
        if sources or info in named:
            found.append(LetterTopic(info.name, sources))
    return Looked(sorted(found), left > 0)


def _look(log: Log, info: TopicInfo, most: int) -> tuple[tuple[tuple[str, str], ...], int]:
    """Topic and group of the letters among a topic's newest records, and how many partitions were
    looked at for that."""
    sources: dict[tuple[str, str], None] = {}
    looked = 0
    for partition in range(info.partitions):
        first, end = log.bounds(info.name, partition)
        if first >= end:
            continue
        if looked == most:
            break
        looked += 1
        start = max(first, log.back(info.name, partition, end, LOOKED_AT))
        with closing(log.reader(info.name, partition, start, end)) as reader:
            while (batch := reader.read(LOOKED_AT)) is not None:
                found = [_source(batch.headers(at)) for at in range(len(batch.offsets))]
                sources |= dict.fromkeys(each for each in reversed(found) if each is not None)
    return tuple(sources), looked


def _source(headers: Headers) -> tuple[str, str] | None:
    """The topic and group of a dead letter; None: it is none, or does not say so."""
    from streams.log.names import is_name
    from streams.patterns.deadletters.parked import PREFIX
    from streams.patterns.deadletters.redriving import source_of

    topic, group = source_of(headers)
    if topic is None or group is None or not (is_name(topic) and is_name(group)):
        return None
    if any(name.startswith(PREFIX) for name, _ in headers):  # the record of a closed key
        return None
    return topic, group


def elsewhere(found: Iterable[LetterTopic], group: str, topic: str, name: str) -> list[str]:
    """The topics other than this one that hold letters of a group and topic."""
    return [each.name for each in found if (topic, group) in each.sources and each.name != name]


def likely(found: Iterable[LetterTopic], group: str, topic: str) -> str | None:
    """How ``GROUP TOPIC`` should have been written, where there are letters of one like it."""
    known = {
        f"{group} {topic}": arguments(group, topic, each.name)
        for each in found
        for topic, group in each.sources
    }
    name = close_match(f"{group} {topic}", known)
    return None if name is None else known[name]


def arguments(group: str, topic: str, name: str) -> str:
    """What ``streams dead ls`` and the like are called with for these letters."""
    usual = DeadLetters().name(topic, group)
    return f"{group} {topic}" + ("" if name == usual else f" --name {name}")
