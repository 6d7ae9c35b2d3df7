"""What this log keeps in Redis, read as what anybody may have written.

A number, an entry ID, a name or a member's row that makes no sense is None here; whoever reads it
says what that means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from streams.log.names import is_name

DIGITS = 15
"""Digits of a stored number, at most: as many as a script can count with."""

_ID = re.compile(rb"(0|[1-9]\d{0,19})-(0|[1-9]\d{0,19})\Z")
_ROW = re.compile(rb"(\d{1,15}) (\d{1,15}) (\d{1,15}) (.*)\Z", re.DOTALL)
_LOW64 = (1 << 64) - 1


class Row(NamedTuple):
    """A member as the server has it."""

    lease: float
    """How many seconds it counts on its row after a heartbeat."""
    until: int
    """By the server's clock (ms): for people."""
    topics: tuple[str, ...]


def row_of(text: bytes) -> Row | None:
    """What a member's row says."""
    found = _ROW.match(text)
    if found is None:
        return None
    return Row(int(found[2]) / 1000, int(found[3]), tuple(topics_of(found[4].split(b","))))


def position_of(text: bytes) -> int | None:
    """An entry ID as an offset."""
    found = _ID.match(text)
    if found is None:
        return None
    high, low = int(found[1]), int(found[2])
    return high << 64 | low if high <= _LOW64 and low <= _LOW64 else None


def topics_of(words: Iterable[bytes]) -> list[str]:
    """Those of these that can be names of topics."""
    return [name for name in names_of(words) if name not in (".", "..")]


def names_of(words: Iterable[bytes]) -> list[str]:
    """Those of these that can be names of groups."""
    return [name for word in words if is_name(name := bytes(word).decode("ascii", "replace"))]


def shown(text: bytes) -> str:
    """A key, a member's name or a value for people, shortened."""
    return bytes(text[:300]).decode("utf-8", "backslashreplace")


def unusable(key: bytes, field: str, value: bytes, instead: str) -> str:
    """What to say of a field that cannot be used.

    :param instead: what should be there, or what to do.
    """
    return f"field {field!r} of {shown(key)} in Redis is {shown(value[:50])!r}: {instead}"
