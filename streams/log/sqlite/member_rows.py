"""Reads and deletes the rows of a group's members, and makes the group plan again."""

from __future__ import annotations

import json
from math import isfinite
from typing import NamedTuple

from streams.clock import Clock
from streams.log.membership import INFINITY, MAX_LEASE
from streams.log.sqlite.database import SqliteConnection
from streams.log.sqlite.member_locks import MemberLocks, timeline_of


class MemberRow(NamedTuple):
    """A member's row in the file."""

    number: int
    id: str
    topics: tuple[str, ...]
    """Empty if the stored value makes no sense."""
    expires: float
    """Minus infinity if the stored value makes no sense."""
    timeline: str


def member_rows(db: SqliteConnection, group: str) -> list[MemberRow]:
    """All rows of a group. Other programs may have written into the file: damaged columns are
    tolerated."""
    # As bytes: the driver refuses text that is not UTF-8.
    rows = db.fetch_rows(
        "SELECT no, CAST(id AS BLOB), CAST(topics AS BLOB),"
        " iif(typeof(expires) = 'real', expires, NULL), CAST(timeline AS BLOB)"
        ' FROM streams_members WHERE "group" = ? ORDER BY no',
        (group,),
    )
    return [
        MemberRow(
            number,
            id.decode("utf-8", "backslashreplace"),
            _decode_topics(topics),
            expires if isinstance(expires, float) and isfinite(expires) else -INFINITY,
            timeline.decode("utf-8", "backslashreplace"),
        )
        for number, id, topics, expires, timeline in rows
    ]


def _decode_topics(stored: bytes) -> tuple[str, ...]:
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        return ()
    is_valid = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return tuple(found) if is_valid else ()


def has_comparable_expiry(row: MemberRow, clock: Clock) -> bool:
    """Whether the row's expiry can be compared with this clock."""
    return row.timeline == timeline_of(clock) and row.expires <= clock.monotonic() + MAX_LEASE


def is_running(row: MemberRow, clock: Clock, locks: MemberLocks) -> bool:
    """Whether a member seems to run, judging by one reading of its row."""
    process_runs = locks.is_running(row.number)
    if process_runs is False or not has_comparable_expiry(row, clock):
        return process_runs is True
    return row.expires > clock.monotonic()


SELECT_REVISION = (
    "SELECT iif(typeof(generation) = 'integer', generation, 0) FROM streams_groups WHERE name = ?"
)
"""Selects a group's revision, whatever another program has written there."""


_NEXT_REVISION = (
    "UPDATE streams_groups SET generation ="
    " iif(typeof(generation) = 'integer' AND generation < 1 << 53, generation, 0) + 1"
)


def require_new_plan(db: SqliteConnection, group: str) -> None:
    """Make a group's members plan again."""
    db.execute(f"{_NEXT_REVISION} WHERE name = ?", (group,))


def require_new_plans(db: SqliteConnection) -> list[str]:
    """Make the members of all groups plan again; returns the groups that have members."""
    return [
        name
        for (name,) in db.fetch_rows(
            f'{_NEXT_REVISION} WHERE name IN (SELECT "group" FROM streams_members) RETURNING name'  # noqa: S608
        )
    ]


def delete_member(db: SqliteConnection, group: str, member_number: int) -> None:
    """Delete a member's row, and free what it owned."""
    db.execute("DELETE FROM streams_members WHERE no = ?", (member_number,))
    db.execute(
        'UPDATE streams_places SET owner = NULL WHERE "group" = ? AND owner = ?',
        (group, member_number),
    )
    require_new_plan(db, group)
