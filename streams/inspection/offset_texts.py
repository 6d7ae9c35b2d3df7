"""Parses offsets, times and durations, as people write them on a command line or in a form.

Each function takes the name of the option or field, for error messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from streams import wire
from streams.errors import InvalidValue
from streams.wire import shorten

if TYPE_CHECKING:
    from streams.topic_reader import OffsetSpec

OFFSET_HELP = (
    "earliest, latest, an offset, a position (orders/0/17), a time (2013-01-05T10:00Z), that long "
    "ago (90s, 2h30m, 7d), or -N for N messages before the end"
)

MAX_DURATION = 100 * 366 * 86_400.0
"""Seconds of a duration, at most: a longer one is a typing error, and no log can represent it."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]|\Z)", re.ASCII)
_MESSAGES_BEFORE_END = re.compile(r"-\d{1,18}\Z", re.ASCII)
_OFFSET = re.compile(r"\d+(-\d+)?\Z", re.ASCII)
_PARTITION_AND_OFFSET = re.compile(r"(\d{1,9})/([^/]+)\Z", re.ASCII)
_SYNONYMS = {"beginning": "earliest", "end": "latest"}


def parse_duration(text: str, option: str) -> float:
    """Parse a duration such as ``90s``, ``15m``, ``2h30m`` or ``7d``; returns seconds.

    :raises InvalidValue: the text is not a duration.
    """
    seconds = wire.parse_duration(text)
    if seconds is None:
        raise InvalidValue(
            f"{option} {shorten(text, 60)!r}: a number with a unit, such as 90s, 15m, 2h30m, 7d "
            "or 4w"
        )
    if seconds > MAX_DURATION:
        raise InvalidValue(f"{option} {text!r}: at most 100 years")
    return seconds


def parse_offset(text: str, option: str) -> OffsetSpec:
    """Parse one offset, as :data:`OFFSET_HELP` lists them. A log's own stays text: only the log
    knows its format.

    :raises InvalidValue: the text is none of these.
    """
    text = text.strip()
    name = _SYNONYMS.get(text.lower(), text.lower())
    if name in ("earliest", "latest"):
        return name
    if _MESSAGES_BEFORE_END.match(text):
        if int(text) == 0:
            raise InvalidValue(f"{option} {text!r}: -N takes an N from 1; the end is 'latest'")
        return int(text)
    if wire.parse_duration(text) is not None:
        return timedelta(seconds=parse_duration(text, option))
    if _DATE.match(text):
        return parse_time(text, option)
    if _OFFSET.match(text) is None:
        raise InvalidValue(f"{option} {shorten(text, 60)!r}: {OFFSET_HELP}")
    return text


def parse_time(text: str, option: str) -> datetime:
    """Parse an ISO 8601 time with a time zone.

    :raises InvalidValue: the text is not such a time.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidValue(
            f"{option} {shorten(text, 60)!r}: no such time; write it as 2013-01-05T10:00Z or "
            "2013-01-05T10:00:00.250-05:00"
        ) from None
    if found.tzinfo is None:
        example = text.replace(" ", "T") if len(text) > 10 else f"{text}T00:00"
        raise InvalidValue(f"{option} {text!r}: in which time zone? For UTC write {example}Z")
    return found


def parse_offsets(text: str, option: str, topic: str) -> OffsetSpec | Mapping[int, OffsetSpec]:
    """Parse one offset for all partitions, or several positions, each in another partition: as they
    are shown, ``TOPIC/PARTITION/OFFSET``, or shorter, ``PARTITION/OFFSET``, separated by commas.

    :raises InvalidValue: the text is neither.
    """
    if "/" not in text:
        return parse_offset(text, option)
    found: dict[int, OffsetSpec] = {}
    for part in text.split(","):
        match = _PARTITION_AND_OFFSET.match(_without_topic(part.strip(), option, topic))
        if match is None:
            raise InvalidValue(
                f"{option} {shorten(text, 60)!r}: several positions are written as 0/1041,1/998 or "
                f"as {topic}/0/1041,{topic}/1/998"
            )
        if int(match[1]) in found:
            raise InvalidValue(f"{option} {text!r}: partition {match[1]} is named twice")
        found[int(match[1])] = parse_offset(match[2], option)
    return found


def _without_topic(text: str, option: str, topic: str) -> str:
    """A position without its topic, ``PARTITION/OFFSET``."""
    rest = text.removeprefix(f"{topic}/")
    if rest == text and text.count("/") > 1:
        other = text.rsplit("/", 2)[0]
        raise InvalidValue(
            f"{option} {shorten(text, 60)!r}: a position in {other}, and not in {topic}"
        )
    return rest
