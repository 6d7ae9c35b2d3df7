"""Statements that record a message as handled, or as given up."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from streams.databases.locking import format_timeout
from streams.databases.protocol import DialectName, Statement, Steps
from streams.inbox.identity import Entry, FirstPosition, position_text


class Verdict(IntEnum):
    """The inbox's verdict on a message."""

    NEW = 0
    """The message is recorded now, and to be handled in this very transaction."""
    HANDLED = 1
    """The message was handled."""
    PURGED = 2
    """The message is below the mark: it was settled so long ago that its row is gone."""
    DEAD = 3
    """The message was given up, and was not redriven since."""


_VERDICTS = {str(verdict.value): verdict for verdict in Verdict}


class Timeouts(NamedTuple):
    """How long a transaction of the inbox waits, in seconds."""

    lock: float
    """For a lock that another transaction holds."""
    idle: float
    """For the next statement, before the server ends the transaction."""


@lru_cache(64)
def _milliseconds(timeouts: Timeouts) -> tuple[str, str]:
    """Seconds as milliseconds for PostgreSQL's settings, which have a maximum."""
    return format_timeout(timeouts.lock), format_timeout(timeouts.idle)


_TAKE = (
    "SELECT streams_inbox_take(CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), "
    "CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), CAST($7 AS text), CAST($8 AS text))"
)
_MARK_DEAD = (
    "SELECT streams_inbox_mark_dead(CAST($1 AS bytea), CAST($2 AS bigint), CAST($3 AS text), "
    "CAST($4 AS integer), CAST($5 AS bigint), CAST($6 AS text), CAST($7 AS text), "
    "CAST($8 AS text))"
)


def take(
    dialect: DialectName, entries: Sequence[Entry], timeouts: Timeouts
) -> Steps[list[Verdict]]:
    """Record the messages that are to be handled now as handled; returns a verdict for each.

    :param entries: the entries of distinct messages.
    """
    if dialect == "postgresql":
        rows = yield Statement(_TAKE, (*_lists_of(entries), *_milliseconds(timeouts)))
        return [_VERDICTS[digit] for digit in rows[0][0]]
    verdicts = []
    yield _BEGIN_TO_WRITE
    for entry in entries:
        verdicts.append((yield from _take_in_sqlite(entry)))  # noqa: PERF401 - it cannot be
    return verdicts


def _lists_of(entries: Sequence[Entry]) -> tuple[str, str, str, str, str, str]:
    """The first six arguments of ``streams_inbox_take``: a list, as a text, for each column of the
    entries. The lists of first positions are empty if no message has come back."""
    if len(entries) == 1 and entries[0].first is None:
        entry = entries[0]
        return entry.id.hex(), str(entry.scope), str(entry.position), str(entry.redrive), "", ""
    ids, scopes, positions, redrives, firsts = zip(*entries, strict=True)
    first_scopes = first_positions = ""
    if any(firsts):
        first_scopes = ",".join("" if each is None else str(each.scope) for each in firsts)
        first_positions = ",".join("" if each is None else str(each.position) for each in firsts)
    return (
        ",".join(map(bytes.hex, ids)),
        ",".join(map(str, scopes)),
        ",".join(map(str, positions)),
        ",".join(map(str, redrives)),
        first_scopes,
        first_positions,
    )


def _first_columns(first: FirstPosition | None) -> tuple[int | None, str | None]:
    """``first_scope`` and ``first_position`` of a row."""
    return (None, None) if first is None else (first.scope, position_text(first.position))


_BEGIN_TO_WRITE = Statement("UPDATE streams_inbox_schema SET version = version")
"""A driver may begin SQLite's transaction as a reader, or only with the first statement that
writes: so the first one writes without a change, and no other writer can come between the following
ones."""


def _take_in_sqlite(entry: Entry) -> Steps[Verdict]:
    rows = yield Statement("SELECT mark FROM streams_inbox_marks WHERE scope = $1", (entry.scope,))
    position = position_text(entry.position)
    is_below_mark = bool(rows) and position < rows[0][0]
    rows = yield Statement("SELECT dead, redrive FROM streams_inbox WHERE id = $1", (entry.id,))
    if rows:
        dead, redrive = rows[0]
        if not dead:
            return Verdict.HANDLED
        if entry.redrive <= redrive:
            return Verdict.DEAD
    if is_below_mark:
        return Verdict.PURGED
    yield Statement(
        "INSERT OR REPLACE INTO streams_inbox VALUES ($1, $2, $3, $4, 0, "
        "(julianday('now') - 2440587.5) * 86400, $5, $6)",
        (
            entry.id, entry.scope, position, entry.redrive, *_first_columns(entry.first),
        ),
    )  # fmt: skip
    return Verdict.NEW


def mark_dead(dialect: DialectName, entry: Entry, timeouts: Timeouts) -> Steps[Verdict]:
    """Give a message up: it is not handled any more, unless it is redriven after that.

    :returns: DEAD; or HANDLED or PURGED, if it is not given up for that reason.
    """
    if dialect == "postgresql":
        rows = yield Statement(
            _MARK_DEAD,
            (
                entry.id, entry.scope, str(entry.position), entry.redrive,
                *_first_columns(entry.first), *_milliseconds(timeouts),
            ),
        )  # fmt: skip
        return Verdict(rows[0][0])
    yield _BEGIN_TO_WRITE
    verdict = yield from _take_in_sqlite(entry)
    if verdict is Verdict.NEW:
        yield Statement("UPDATE streams_inbox SET dead = 1 WHERE id = $1", (entry.id,))
        return Verdict.DEAD
    return verdict
