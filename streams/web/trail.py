"""The trail of a message: the groups that are past it, whether it was retried, is dead or was put
back, its cause and the messages that it caused.

None of this is stored in one place. Groups have positions; retries and dead letters
keep the message's ID and are in topics of their own; a message that a handler published names its
cause in a header. So those topics are searched from the message's own time on, for a moment, and
the page says if that did not cover everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import Fatal, NotFound, StreamsError, Unavailable
from streams.log.range_reader import LogRow, OffsetRange, RangeReader
from streams.message import CAUSATION, LEGACY_CAUSATION
from streams.processing import is_within, settled_ahead

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.web.page import Page
    from streams.web.redaction import Shown

SECONDS = 0.6
"""Seconds of real time for which a message's trail is searched for."""

MAX_MESSAGES = 20_000
"""The most messages that are checked for it."""

MAX_STOPS = 50
"""The most stops that are shown."""


class GroupStop(NamedTuple):
    """A group that reads the message's topic.

    :param state: ``settled`` (handled, passed over or dead), ``waits`` (it is the next one, or
        behind it), ``unknown`` (the group has no position there).
    """

    group: str
    state: str


class Stop(NamedTuple):
    """The same message elsewhere, or one that it caused.

    :param kind: ``retry``, ``dead``, ``parked``, ``delay``, ``attempts`` or ``other``: the kind of
        its topic; ``caused``: it names the message as its cause.
    """

    kind: str
    topic: str
    partition: int
    offset: str
    time: float
    id: Shown


class Trail(NamedTuple):
    """The trail of a message.

    :param complete: whether all topics were searched.
    """

    groups: list[GroupStop]
    stops: list[Stop]
    complete: bool


def trail_of(page: Page, row: LogRow) -> Trail:
    """The trail of a message (blocks, for about :data:`SECONDS`)."""
    log, topic = page.log, row.batch.topic
    groups = page.dashboard.groups.look(0.1)
    readers = [each.name for each in groups.readers(topic) if not groups.is_internal(each.name)]
    states = [GroupStop(name, _state(log, name, row)) for name in readers[:MAX_STOPS]]
    derived = [name for name in groups.topics if name.startswith(f"{topic}.")]
    declared = list(_outputs(page, topic))
    outputs = [name for name in declared if name in groups.topics]
    others = [] if declared else [name for name in groups.topics if name not in groups.internal]
    wanted = [name for name in dict.fromkeys([*derived, *outputs, *others]) if name != topic]
    stops, complete = _find_copies(page, [*wanted, topic], row)
    return Trail(states, stops, complete and groups.is_complete)


def _outputs(page: Page, topic: str) -> Iterable[str]:
    """The topics in which processors of the app publish their results for this one, and those of
    their dead letters."""
    for processor in page.app.processors:
        if topic in processor.topics:
            options = processor.options
            if options.to is not None:
                yield options.to.name
            yield options.dead_letters.name(topic, options.group)


def _state(log: Log, group: str, row: LogRow) -> str:
    try:
        held = log.committed(group, row.batch.topic).get(row.batch.partition)
    except (Unavailable, Fatal):
        raise
    except StreamsError:
        return "unknown"
    if held is None:
        return "unknown"
    settled = row.offset < held.position or is_within(row.offset, settled_ahead(held))
    return "settled" if settled else "waits"


def _find_copies(page: Page, topics: list[str], row: LogRow) -> tuple[list[Stop], bool]:
    """The same message in other topics, and the messages that name it as their cause."""
    log, id, began = page.log, row.id, time.monotonic()
    when = row.batch.time(row.index)
    found: list[Stop] = []
    looked = 0
    for topic in topics:
        if looked >= MAX_MESSAGES or len(found) >= MAX_STOPS:
            return found, False
        if time.monotonic() - began > SECONDS:
            return found, False
        try:
            ranges = _ranges_since(log, topic, when, began + SECONDS)
        except NotFound:
            continue
        if ranges is None:
            return found, False
        with closing(RangeReader(log, topic, ranges, raw=True)) as rows:
            for each in rows:
                looked += 1
                if looked % 200 == 0 and time.monotonic() - began > SECONDS:
                    return found, False
                if looked >= MAX_MESSAGES:
                    return found, False
                kind = _kind(each, id, row)
                if kind:
                    found.append(_stop(page, kind, each))
                    if len(found) >= MAX_STOPS:
                        return found, False
    return found, True


def _ranges_since(
    log: Log, topic: str, when: float, deadline: float
) -> dict[int, OffsetRange] | None:
    """The records written since a time; None: there was no time to find their offsets."""
    ranges: dict[int, OffsetRange] = {}
    for partition in range(log.describe_topic(topic).partitions):
        if time.monotonic() > deadline:
            return None
        first, end = log.watermarks(topic, partition)
        start = max(first, log.offset_for_time(topic, partition, when)) if first < end else end
        if start < end:
            ranges[partition] = OffsetRange(start, end)
    return ranges


def _kind(each: LogRow, id: str, row: LogRow) -> str:
    """How a message belongs to the trail; empty: it does not."""
    if each.batch.topic == row.batch.topic:
        if each.batch.partition == row.batch.partition and each.offset == row.offset:
            return ""
    elif each.id == id:
        suffix = each.batch.topic.rpartition(".")[2]
        return suffix if suffix in ("retry", "dead", "parked", "delay", "attempts") else "other"
    wanted = id.encode("utf-8", "surrogateescape")
    for name, value in each.headers:
        if name in (CAUSATION, LEGACY_CAUSATION) and value == wanted:
            return "caused"
    return ""


def _stop(page: Page, kind: str, row: LogRow) -> Stop:
    batch, index = row.batch, row.index
    return Stop(
        kind,
        batch.topic,
        batch.partition,
        page.log.format_offset(batch.offsets[index]),
        batch.time(index),
        page.payloads.id(batch.topic, row.id, batch.keys[index]),
    )
