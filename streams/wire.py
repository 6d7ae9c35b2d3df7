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

PROGRESS_LIMIT = 4_095
"""Characters of an encoded progress, at most: Kafka's ``offset.metadata.max.bytes`` is 4,096, and
its client sends a NUL behind it."""

MAX_DIGITS = 18
"""Digits of a whole number, at most: the largest is below 2**63, so that it fits every log."""

MAX_PARTITION = (1 << 31) - 1
"""The largest number that a partition can have: Kafka's have 32 bits."""

MAX_TEXT = 256
"""Characters of a name that is shown or of a time that is parsed, at most."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EARLIEST_TIME = datetime.min.replace(tzinfo=timezone.utc)
LATEST_TIME = datetime.max.replace(tzinfo=timezone.utc)

FIRST_SECOND = -62_135_596_800
"""Seconds since the epoch of :data:`EARLIEST_TIME`."""
LAST_SECOND = 253_402_300_799
"""Seconds since the epoch of :data:`LATEST_TIME`, rounded down."""


def parse_int(written: bytes | str | None, digits: int = MAX_DIGITS) -> int | None:
    """A whole number from 0 on, in at most this many ASCII digits; None for anything else."""
    if not written or len(written) > digits or not written.isascii() or not written.isdigit():
        return None
    return int(written)


def parse_partition(written: bytes | str | None) -> int | None:
    """The number of a partition, as some log may have it; None for anything else."""
    found = parse_int(written, 10)
    return found if found is not None and found <= MAX_PARTITION else None


def parse_float(written: bytes | str | None) -> float | None:
    """A number that is neither infinite nor NaN, as :func:`repr` writes a float; else None."""
    if not written or len(written) > 32 or not written.isascii():
        return None
    try:
        found = float(written)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def utc_from_seconds(seconds: float) -> datetime:
    """The time that many seconds since the epoch.

    A time outside the years 1 to 9999 is shown as the first or the last there is, NaN as the
    epoch: a record's time is only ever information, and must not stop whoever looks at it.
    """
    if seconds != seconds:
        return EPOCH
    if seconds <= FIRST_SECOND:
        return EARLIEST_TIME
    if seconds > LAST_SECOND:
        return LATEST_TIME
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        # Some platforms' C libraries know fewer years than datetime does.
        return EPOCH + timedelta(seconds=seconds)


def iso_time(seconds: float) -> str:
    """A time as text, in UTC, with milliseconds."""
    found = utc_from_seconds(seconds).isoformat(timespec="milliseconds")
    return found.replace("+00:00", "Z")


def parse_iso_time(written: bytes | str | None) -> datetime | None:
    """A time in ISO 8601, in UTC; without an offset it is taken as UTC. None for anything else."""
    if not written or len(written) > MAX_TEXT:
        return None
    try:
        found = datetime.fromisoformat(text(written) if isinstance(written, bytes) else written)
    except ValueError:
        return None
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else in_utc(found)


def in_utc(moment: datetime) -> datetime:
    """A time with a time zone, in UTC; at the edge of the calendar the nearest one there is."""
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:  # its offset carries it over the edge
        return EARLIEST_TIME if moment.year == 1 else LATEST_TIME


DURATION_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Seconds of each unit, the largest first."""

_DURATION = re.compile(
    "".join(rf"(?:(\d{{1,15}}(?:\.\d{{1,9}})?){unit}\s?)?" for unit in DURATION_UNITS), re.ASCII
)


def parse_duration(written: str | None) -> float | None:
    """A duration with its units, in seconds: ``90s``, ``15m``, ``2h30m``, ``1.5d``, ``1d 12h``.

    Each unit stands once, the larger before the smaller, and only the last may have a fraction.
    None for anything else.
    """
    written = "" if written is None else written.strip()
    if not written or len(written) > MAX_TEXT:
        return None
    found = _DURATION.fullmatch(written)
    if found is None:
        return None
    pairs = zip(found.groups(), DURATION_UNITS.values(), strict=True)
    given = [(number, size) for number, size in pairs if number is not None]
    if any("." in number for number, _ in given[:-1]):
        return None
    return sum(float(number) * size for number, size in given)


def parse_seconds(written: str | None) -> float | None:
    """A duration, with its units or as a number of seconds; None for anything else."""
    found = parse_duration(written)
    return parse_float(written) if found is None else found


def text(data: bytes) -> str:
    """Bytes as text; what is not UTF-8 is kept by surrogates, never an error."""
    return data.decode("utf-8", "surrogateescape")


def shorten(written: bytes | str, limit: int = MAX_TEXT) -> str:
    """Text for a log line, an error or a repr, in at most this many characters."""
    if isinstance(written, bytes):
        # A character has at most four bytes: more of a long text need not be decoded.
        written = text(written[: 4 * limit + 4])
    return written if len(written) <= limit else written[: max(0, limit - 3)] + "..."


# -- offsets and positions -------------------------------------------------------------------------

_TWO_TO_64 = 1 << 64


class RedisEntryId(int):
    """An offset that shows itself as Redis writes it: ``ms-seq``.

    Only where it is shown: serializers refuse subclasses of int, so positions have plain ones.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self >> 64}-{self & (_TWO_TO_64 - 1)}"


def format_offset(offset: int) -> str:
    """An offset as its log writes it: a number, or on Redis the entry ID.

    Entry IDs of our time are above 2**64 as numbers, and the other logs' offsets are below it.
    """
    return str(own_offset(offset))


def own_offset(offset: int) -> int:
    """The same offset, which shows itself as its log writes it."""
    return offset if offset < _TWO_TO_64 else RedisEntryId(offset)


def parse_offset(written: str | None) -> int | None:
    """An offset as :func:`format_offset` writes it, or as one plain number; else None."""
    if not written:
        return None
    high_digits, dash, low_digits = written.partition("-")
    if not dash:
        found = parse_int(written, 39)
        return found if found is not None and found < _TWO_TO_64 * _TWO_TO_64 else None
    first, second = parse_int(high_digits, 20), parse_int(low_digits, 20)
    if first is None or second is None or first >= _TWO_TO_64 or second >= _TWO_TO_64:
        return None
    return first << 64 | second if first else RedisEntryId(second)


def parse_position(written: bytes | str | None) -> tuple[str, int, int] | None:
    """``topic/partition/offset`` in parts; None for anything else."""
    if not written or len(written) > 2 * MAX_TEXT:
        return None
    parts = (text(written) if isinstance(written, bytes) else written).rsplit("/", 2)
    if len(parts) != 3 or not parts[0]:
        return None
    partition, offset = parse_partition(parts[1]), parse_offset(parts[2])
    return None if partition is None or offset is None else (parts[0], partition, offset)
