"""Parses the values that this log keeps in Redis, which other programs may have written.

A number, an entry ID, a name or a member's row that makes no sense is None here; the caller
decides what that means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from streams.log.names import is_valid_name

MAX_DIGITS = 15
"""Digits of a stored number, at most: more would not be exact in a script."""

_ENTRY_ID = re.compile(rb"(?P<ms>0|[1-9]\d{0,19})-(?P<seq>0|[1-9]\d{0,19})\Z")
_MEMBER_ROW = re.compile(
    rb"\d{1,15} (?P<lease_ms>\d{1,15}) (?P<until>\d{1,15}) (?P<topics>.*)\Z", re.DOTALL
)
_LOW64 = (1 << 64) - 1


def evicts_streams(policy: str, limit: str) -> bool:
    """Whether a full server evicts keys without a time to live, as this log's are.

    :param policy: ``maxmemory-policy``.
    :param limit: ``maxmemory``; ``0``: there is no limit.
    """
    return policy.startswith("allkeys") and limit != "0"


class MemberRow(NamedTuple):
    """A member's row on the server."""

    lease: float
    """The length of its lease, in seconds from each heartbeat."""
    until: int
    """When the row should expire, by the server's clock (ms): only for people to read."""
    topics: tuple[str, ...]


def parse_member_row(text: bytes) -> MemberRow | None:
    """A member's row, parsed."""
    found = _MEMBER_ROW.match(text)
    if found is None:
        return None
    topics = tuple(valid_topics(found["topics"].split(b",")))
    return MemberRow(int(found["lease_ms"]) / 1000, int(found["until"]), topics)


def parse_entry_id(text: bytes) -> int | None:
    """An entry ID as an offset."""
    found = _ENTRY_ID.match(text)
    if found is None:
        return None
    high, low = int(found["ms"]), int(found["seq"])
    return high << 64 | low if high <= _LOW64 and low <= _LOW64 else None


def valid_topics(words: Iterable[bytes]) -> list[str]:
    """The names among these that are valid topic names."""
    return [name for name in valid_names(words) if name not in (".", "..")]


def valid_names(words: Iterable[bytes]) -> list[str]:
    """The names among these that are valid group names."""
    return [name for word in words if is_valid_name(name := bytes(word).decode("ascii", "replace"))]


def parse_info(reply: object) -> dict[str, str]:
    """The fields of a reply to INFO; empty if the reply is not one."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def count_text(count: int | None) -> str:
    """A number of entries as the scripts take it; empty if it is unknown."""
    return "" if count is None else str(count)


def printable(text: bytes) -> str:
    """A key, a member's name or a value for people, shortened."""
    return bytes(text[:300]).decode("utf-8", "backslashreplace")


def damaged_field(key: bytes, field: str, value: bytes, remedy: str) -> str:
    """The message about a field that cannot be used.

    :param remedy: what should be there, or what to do.
    """
    return f"field {field!r} of {printable(key)} in Redis is {printable(value[:50])!r}: {remedy}"
