"""Flights as events: the types on the wire, and their conversion from rows of the file.

The file is the on-time data of the US Bureau of Transportation Statistics in the form of
``nycflights13``. Its clock times are local and cross midnight, so events are placed by UTC:
``time_hour`` and ``minute`` are the scheduled departure, the delay gives the actual one.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from streams.errors import ConfigError


class Departed(msgspec.Struct, tag="departed", frozen=True):
    """A flight left, ``delay_minutes`` after it should have (negative: before)."""

    sequence: int
    flight: str
    tail_number: str | None
    carrier: str
    at: datetime
    delay_minutes: int


class Arrived(msgspec.Struct, tag="arrived", frozen=True):
    """A flight reached its destination."""

    sequence: int
    flight: str
    tail_number: str | None
    carrier: str
    at: datetime
    destination: str


class Cancelled(msgspec.Struct, tag="cancelled", frozen=True):
    """A flight did not leave."""

    sequence: int
    flight: str
    tail_number: str | None
    carrier: str
    at: datetime


Event = Departed | Arrived | Cancelled
"""``sequence`` numbers the events of a file in time order."""

COLUMNS = (
    "year", "month", "day", "dep_time", "dep_delay", "arr_time", "carrier", "flight", "tailnum",
    "origin", "dest", "air_time", "hour", "minute", "time_hour",
)  # fmt: skip


class Row(NamedTuple):
    """One line of the file."""

    line: int
    flight: str
    carrier: str
    tail_number: str | None
    scheduled: datetime
    departed: bool
    delay: int
    arrived: bool
    minutes_in_air: int
    destination: str


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, gzipped or not.

    :raises ConfigError: it is not such a file; names the line and the error.
    """
    try:
        with _open(path) as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: no column {missing[0]!r}; is it a flights file?")
            for row in table:
                try:
                    yield _row(row, table.line_num)
                except (ValueError, TypeError, KeyError) as error:
                    raise ConfigError(f"{path}: line {table.line_num}: {error}") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _row(row: dict[str, str], line: int) -> Row:
    hour = datetime.fromisoformat(row["time_hour"])
    hour = hour.astimezone(timezone.utc) if hour.tzinfo else hour.replace(tzinfo=timezone.utc)
    scheduled = hour.replace(minute=0) + timedelta(minutes=_number(row["minute"]) or 0)
    departed = _number(row["dep_time"]) is not None
    day = f"{row['year']}-{_number(row['month']):02d}-{_number(row['day']):02d}"
    return Row(
        line=line,
        flight=f"{day} {row['carrier']}{row['flight']} {row['origin']}-{row['dest']}",
        carrier=row["carrier"],
        tail_number=_text(row["tailnum"]),
        scheduled=scheduled,
        departed=departed,
        delay=_number(row["dep_delay"]) or 0,
        arrived=_number(row["arr_time"]) is not None,
        minutes_in_air=_number(row["air_time"]) or 30,
        destination=row["dest"],
    )


def _text(cell: str) -> str | None:
    return None if cell in ("", "NA", "NaN", "nan") else cell


def _number(cell: str) -> int | None:
    return None if _text(cell) is None else int(float(cell))


def events(table: list[Row]) -> list[tuple[str, Event]]:
    """Every event of a file with its message ID, in time order."""
    found: list[tuple[datetime, int, str, Row]] = []
    for row in table:
        if not row.departed:
            found.append((row.scheduled, row.line, "cancelled", row))
        else:
            left = row.scheduled + timedelta(minutes=row.delay)
            found.append((left, row.line, "departed", row))
        if row.arrived:
            # It lands in another time zone, so use the minutes in the air, not the local time.
            start = row.scheduled + timedelta(minutes=row.delay)
            landed = start + timedelta(minutes=row.minutes_in_air)
            found.append((landed, row.line, "landed", row))
    found.sort(key=lambda each: each[:3])
    return [
        (f"{row.line}-{kind}", _event(number, at, kind, row))
        for number, (at, _, kind, row) in enumerate(found)
    ]


def _event(number: int, at: datetime, kind: str, row: Row) -> Event:
    if kind == "departed":
        return Departed(number, row.flight, row.tail_number, row.carrier, at, row.delay)
    if kind == "cancelled":
        return Cancelled(number, row.flight, row.tail_number, row.carrier, at)
    return Arrived(number, row.flight, row.tail_number, row.carrier, at, row.destination)
