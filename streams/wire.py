"""Numbers, times and texts that came off the wire, read in one bounded way.

Anyone who can write a record can write anything into it. What reads our own headers, entries and
names therefore never calls ``int``, ``float`` or ``datetime`` on them directly: Python's ``int``
raises ``ValueError`` for 5,000 digits and accepts 4,000 (which overflow later, somewhere else),
``float`` accepts ``nan`` and ``inf``, and ``datetime.fromtimestamp`` raises three kinds of errors
for a year that it cannot hold. The functions here accept what we write, answer None to everything
else, and never raise; each caller says what None means to it.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, timezone
from typing import Annotated

import msgspec

DIGITS = 18
"""Digits of a whole number, at most: the largest is below 2**63, so that it fits every log."""

TEXT = 256
"""Characters of a name that is shown or of a time that is parsed, at most."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
LATEST = datetime.max.replace(tzinfo=timezone.utc)

FIRST_SECOND = -62_135_596_800
"""Seconds since the epoch of :data:`EARLIEST`."""
LAST_SECOND = 253_402_300_799
"""Seconds since the epoch of :data:`LATEST`, rounded down."""

Moment = Annotated[float, msgspec.Meta(ge=FIRST_SECOND, le=LAST_SECOND)]
"""Seconds since the epoch, within the years 1 to 9999, in a document that msgspec decodes."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 63)]
"""A whole number that fits every log, in a document that msgspec decodes."""


def whole(written: bytes | str | None, digits: int = DIGITS) -> int | None:
    """A whole number from 0 on, in at most this many ASCII digits; None for anything else."""
    if not written or len(written) > digits or not written.isascii() or not written.isdigit():
        return None
    return int(written)


def finite(written: bytes | str | None) -> float | None:
    """A number that is neither infinite nor NaN, as :func:`repr` writes a float; else None."""
    if not written or len(written) > 32 or not written.isascii():
        return None
    try:
        found = float(written)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def utc(seconds: float) -> datetime:
    """The time that many seconds since the epoch.

    A time outside the years 1 to 9999 is shown as the first or the last there is, NaN as the
    epoch: a record's time is only ever information, and must not stop whoever looks at it.
    """
    if seconds != seconds:
        return EPOCH
    if seconds <= FIRST_SECOND:
        return EARLIEST
    if seconds > LAST_SECOND:
        return LATEST
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        # Some platforms' C libraries know fewer years than datetime does.
        return EPOCH + timedelta(seconds=seconds)


def iso(written: bytes | str | None) -> datetime | None:
    """A time in ISO 8601, in UTC; without an offset it is taken as UTC. None for anything else."""
    if not written or len(written) > TEXT:
        return None
    try:
        found = datetime.fromisoformat(text(written) if isinstance(written, bytes) else written)
    except ValueError:
        return None
    if found.tzinfo is None:
        return found.replace(tzinfo=timezone.utc)
    try:
        return found.astimezone(timezone.utc)
    except OverflowError:  # its offset carries it over the edge of the calendar
        return EARLIEST if found.year == 1 else LATEST


UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Seconds of each unit, the largest first."""

_DURATION = re.compile(
    "".join(rf"(?:(\d{{1,15}}(?:\.\d{{1,9}})?){unit}\s?)?" for unit in UNITS), re.ASCII
)


def duration(written: str | None) -> float | None:
    """A duration with its units, in seconds: ``90s``, ``15m``, ``2h30m``, ``1.5d``, ``1d 12h``.

    Each unit stands once, the larger before the smaller, and only the last may have a fraction.
    None for anything else.
    """
    written = "" if written is None else written.strip()
    if not written or len(written) > TEXT:
        return None
    found = _DURATION.fullmatch(written)
    if found is None:
        return None
    pairs = zip(found.groups(), UNITS.values(), strict=True)
    given = [(number, size) for number, size in pairs if number is not None]
    if any("." in number for number, _ in given[:-1]):
        return None
    return sum(float(number) * size for number, size in given)


def seconds(written: str | None) -> float | None:
    """A duration, with its units or as a number of seconds; None for anything else."""
    found = duration(written)
    return finite(written) if found is None else found


def text(data: bytes) -> str:
    """Bytes as text; what is not UTF-8 is kept by surrogates, never an error."""
    return data.decode("utf-8", "surrogateescape")


def brief(written: bytes | str, limit: int = TEXT) -> str:
    """Text for a log line, an error or a repr, in at most this many characters."""
    if isinstance(written, bytes):
        # A character has at most four bytes: more of a long text need not be decoded.
        written = text(written[: 4 * limit + 4])
    return written if len(written) <= limit else written[: max(0, limit - 3)] + "..."


# -- offsets and positions -------------------------------------------------------------------------

_HALF = 1 << 64


class EntryId(int):
    """An offset that shows itself as Redis writes it: ``ms-seq``.

    Only where it is shown: serializers refuse subclasses of int, so positions have plain ones.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self >> 64}-{self & (_HALF - 1)}"


def offset_text(offset: int) -> str:
    """An offset as its log writes it: a number, or on Redis the entry ID.

    Entry IDs of our time are above 2**64 as numbers, and the other logs' offsets are below it.
    """
    return str(offset) if offset < _HALF else str(EntryId(offset))


def offset(written: str | None) -> int | None:
    """An offset as :func:`offset_text` writes it, or as one plain number; else None."""
    if not written:
        return None
    high, dash, low = written.partition("-")
    if not dash:
        found = whole(written, 39)
        return found if found is not None and found < _HALF * _HALF else None
    first, second = whole(high, 20), whole(low, 20)
    if first is None or second is None or first >= _HALF or second >= _HALF:
        return None
    return first << 64 | second if first else EntryId(second)


def place(written: bytes | str | None) -> tuple[str, int, int] | None:
    """``topic/partition/offset`` in parts; None for anything else."""
    if not written or len(written) > 2 * TEXT:
        return None
    parts = (text(written) if isinstance(written, bytes) else written).rsplit("/", 2)
    if len(parts) != 3 or not parts[0]:
        return None
    partition, at = whole(parts[1]), offset(parts[2])
    return None if partition is None or at is None else (parts[0], partition, at)
