"""Offsets, times and durations on a command line: an invalid one is a usage error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from streams.cli.command_errors import UsageError
from streams.errors import InvalidValue
from streams.inspection import offset_texts
from streams.inspection.offset_texts import OFFSET_HELP as OFFSET_HELP

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.topic_reader import OffsetSpec

T = TypeVar("T")


def _usage(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except InvalidValue as error:
        raise UsageError(str(error)) from None


def parse_duration(text: str, option: str) -> float:
    """See :func:`streams.inspection.offset_texts.parse_duration`.

    :raises UsageError: it is not a duration.
    """
    return _usage(lambda: offset_texts.parse_duration(text, option))


def parse_offset(text: str, option: str) -> OffsetSpec:
    """See :func:`streams.inspection.offset_texts.parse_offset`.

    :raises UsageError: it is not an offset.
    """
    return _usage(lambda: offset_texts.parse_offset(text, option))


def parse_time(text: str, option: str) -> datetime:
    """See :func:`streams.inspection.offset_texts.parse_time`.

    :raises UsageError: it is not a time.
    """
    return _usage(lambda: offset_texts.parse_time(text, option))


def parse_offsets(text: str, option: str, topic: str) -> OffsetSpec | Mapping[int, OffsetSpec]:
    """See :func:`streams.inspection.offset_texts.parse_offsets`.

    :raises UsageError: it is not a list of offsets.
    """
    return _usage(lambda: offset_texts.parse_offsets(text, option, topic))


def require_partition(
    offsets: OffsetSpec | Mapping[int, OffsetSpec] | None,
    option: str,
    partition: int | None,
    count: int,
) -> None:
    """Check that an offset comes with its partition.

    :raises UsageError: there is no partition, or two.
    """
    absolute = isinstance(offsets, str) and offsets not in ("earliest", "latest")
    if isinstance(offsets, Mapping):
        if partition is not None:
            raise UsageError(f"{option} already names its partitions: leave --partition out")
    elif absolute and partition is None and count > 1:
        raise UsageError(f"{option} {offsets}: the topic has {count} partitions; add --partition N")


def format_positions(log: Log, positions: Mapping[int, int]) -> str:
    """Positions in the form that :func:`parse_offsets` reads."""
    return ",".join(f"{each}/{log.format_offset(at)}" for each, at in sorted(positions.items()))
