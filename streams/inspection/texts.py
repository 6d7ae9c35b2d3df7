"""Formats numbers, ages, positions and bounds, as the command line and the doctor write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.text import count_with_noun

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.log.protocol import Log
    from streams.message import Batch


def plural(count: int | None, noun: str) -> str:
    """A count with its noun; ``noun`` is the singular."""
    return f"an unknown number of {noun}s" if count is None else count_with_noun(count, noun)


def bytes_text(data: bytes | None) -> str | None:
    r"""Bytes as text; bytes that are not UTF-8 as ``\xNN``."""
    return None if data is None else data.decode("utf-8", "backslashreplace")


def age_text(seconds: float | None) -> str | None:
    """An age, rounded."""
    if seconds is None:
        return None
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.1f}s"


def duration_text(seconds: float) -> str:
    """An exact duration, as options take it: ``7d``, ``90s``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.15g}s"


def _retention_bounds(retention: Retention) -> Iterator[tuple[str, str]]:
    """Each bound in words, and the option that sets it."""
    if retention.seconds is not None:
        duration = duration_text(retention.seconds)
        yield f"for {duration}", f"--keep-for {duration}"
    if retention.messages is not None:
        yield f"about {retention.messages:,} a partition", f"--keep {retention.messages}"
    if retention.bytes is not None:
        yield f"about {retention.bytes:,} bytes a partition", f"--keep-bytes {retention.bytes}"
    if retention.compacted:
        yield "only the last message of each key", "--compacted"


def retention_text(retention: Retention) -> str:
    """How long a topic keeps its messages."""
    return f"kept {', '.join(text for text, _ in _retention_bounds(retention)) or 'for ever'}"


def retention_options(retention: Retention) -> str:
    """The options of ``streams topics create`` and ``retain`` that set this retention."""
    return " ".join(option for _, option in _retention_bounds(retention)) or "--for-ever"


def position_text(log: Log, batch: Batch, index: int) -> str:
    """The position of a message: ``TOPIC/PARTITION/OFFSET``."""
    return f"{batch.topic}/{batch.partition}/{log.format_offset(batch.offsets[index])}"
