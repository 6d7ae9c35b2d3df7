"""Statements upon the marks of partitions: what a new owner begins with, and what purging runs.

:mod:`streams.inbox.purging` says in which order, and why that is safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from streams.databases.protocol import DialectName, Statement, Steps
from streams.inbox.identity import Scope, position_text


class PendingDeletion(NamedTuple):
    """A mark that was raised, whose rows are not deleted yet."""

    is_due: bool
    """Whether every transaction has ended that could have read the old mark."""


def pending(dialect: DialectName, scope: int) -> Steps[PendingDeletion | None]:
    """Whether rows below the mark are to be deleted."""
    if dialect == "sqlite":
        return None
    # A number in the future is from another server, from which this database was restored.
    rows = yield Statement(
        "SELECT purge_after < txid_snapshot_xmin(txid_current_snapshot()) "
        "FROM streams_inbox_marks WHERE scope = CAST($1 AS bigint) "
        "AND purge_after < txid_snapshot_xmax(txid_current_snapshot())",
        (scope,),
    )
    return PendingDeletion(bool(rows[0][0])) if rows else None


_IS_BELOW_FIRST_MARK = (
    "NOT EXISTS (SELECT 1 FROM streams_inbox_marks AS f "
    "WHERE f.scope = i.first_scope AND f.mark <= i.first_position)"
)
"""Whether a message's first position, if it has one, is below the mark of that partition (a
partition without a mark was never begun). While an earlier message is open there, it is not: then
the row of a message that came back stays, although its retry topic's mark has passed it."""


class PurgeableRows(NamedTuple):
    """The rows of a partition that may be deleted."""

    mark: str
    """Everything below this position was settled, and no row below it is young."""
    rows: int
    """The number of rows below the mark that may be deleted."""
    is_last: bool
    """Whether no more rows may be deleted: a young row is at the mark, or nothing from there on is
    settled."""


def rows_to_purge(
    dialect: DialectName, scope: int, start: str, settled: str, keep: float, limit: int
) -> Steps[PurgeableRows]:
    """How far rows may be deleted, of those from position ``start`` to below ``settled``: among the
    first ``limit`` of them, up to the first one that is not older than ``keep`` seconds.

    Messages without a row there were settled all the same. Their rows may be in another partition,
    as those of messages that came back.
    """
    now = _NOW[dialect]
    select = (
        f"SELECT CAST(position AS text), handled_at < {now} - {_KEEP[dialect]}, "  # noqa: S608
        f"handled_at > {now}, {_IS_BELOW_FIRST_MARK} "
        f"FROM streams_inbox AS i WHERE scope = CAST($2 AS bigint) "
        f"AND position >= {_position(dialect, 3)} AND position < {_position(dialect, 4)} "
        "ORDER BY position LIMIT CAST($5 AS integer)"
    )
    parameters = (keep, scope, start, settled, limit)
    rows = yield Statement(select, parameters)
    if any(is_ahead for _, _, is_ahead, _ in rows):
        # Rows written while the clock was ahead would stay until it gets there again.
        yield Statement(
            f"UPDATE streams_inbox SET handled_at = {now} "  # noqa: S608
            f"WHERE scope = CAST($1 AS bigint) AND handled_at > {now}",
            (scope,),
        )
        rows = yield Statement(select, parameters)
    count = 0
    for position, is_old, _, is_below_first_mark in rows:
        if not is_old:
            return PurgeableRows(position_text(int(position)), count, is_last=True)
        count += bool(is_below_first_mark)
    if len(rows) < limit:
        return PurgeableRows(settled, count, is_last=True)
    return PurgeableRows(position_text(int(rows[-1][0]) + 1), count, is_last=False)


_NOW: Mapping[DialectName, str] = {
    "postgresql": "clock_timestamp()",
    "sqlite": "(julianday('now') - 2440587.5) * 86400",
}
_KEEP: Mapping[DialectName, str] = {
    "postgresql": "make_interval(secs => CAST($1 AS double precision))",
    "sqlite": "$1",
}
"""The expression of the seconds for which rows are kept."""


def _position(dialect: DialectName, at: int) -> str:
    """The parameter with this number, which is a position as text."""
    return f"CAST(CAST(${at} AS text) AS numeric)" if dialect == "postgresql" else f"${at}"


def raise_mark(dialect: DialectName, scope: Scope, number: int, mark: str) -> Steps[None]:
    """Raise the mark: messages below it count as settled for ever. If the partition has this mark
    or a higher one already, its row is not changed, not even locked."""
    yield Statement(
        "INSERT INTO streams_inbox_marks AS m "  # noqa: S608
        "(scope, incarnation, group_name, generation, topic, partition, mark) "
        "SELECT CAST($1 AS bigint), CAST($2 AS text), CAST($3 AS text), "
        f"{_position(dialect, 4)}, CAST($5 AS text), CAST($6 AS integer), {_position(dialect, 7)} "
        "WHERE NOT EXISTS (SELECT 1 FROM streams_inbox_marks AS known "
        f"WHERE known.scope = CAST($8 AS bigint) AND known.mark >= {_position(dialect, 9)}) "
        "ON CONFLICT (scope) DO UPDATE SET mark = excluded.mark WHERE m.mark < excluded.mark",
        (
            number, scope.incarnation, scope.group, str(scope.generation), scope.topic,
            scope.partition, mark, number, mark,
        ),
    )  # fmt: skip
    if dialect == "sqlite":
        yield Statement(
            "DELETE FROM streams_inbox AS i WHERE i.scope = $1 AND i.position < $2 "  # noqa: S608
            f"AND {_IS_BELOW_FIRST_MARK}",
            (number, mark),
        )


class RecordedPositions(NamedTuple):
    """How far the database's rows and mark of a partition go, when its owner begins."""

    mark: int
    """The partition's mark."""
    end: int
    """The position behind the last known message: by a row, or by the mark."""


def begin_partition(
    dialect: DialectName, scope: Scope, number: int, *, start: int, settled: int, end: int | None
) -> Steps[RecordedPositions]:
    """Check a partition's mark and rows against the log before a new owner handles its messages,
    and insert the row of its mark if it is missing.

    If they are ahead of the log, the log was restored from an older copy, or has lost its end, and
    other messages get the positions of those that are gone. So the mark goes back to the position
    that is certainly settled, and rows of messages without an ID, which are identified by their
    positions, are deleted. Other rows stay: a message with an ID is the same one at any position.

    :param start: the position at which the owner begins.
    :param settled: the position below which everything is settled according to the log.
    :param end: the log's end when the owner began; None: unknown.
    """
    # As the row exists, a transaction with an old snapshot is refused by a mark that was raised
    # since.
    yield from raise_mark(dialect, scope, number, position_text(0))
    rows = yield Statement(
        "SELECT CAST(m.mark AS text), (SELECT CAST(max(i.position) AS text) "
        "FROM streams_inbox AS i WHERE i.scope = CAST($1 AS bigint)) "
        "FROM streams_inbox_marks AS m WHERE m.scope = CAST($2 AS bigint)",
        (number, number),
    )
    mark, last = rows[0]
    known = RecordedPositions(int(mark), max(int(mark), -1 if last is None else int(last) + 1))
    if end is not None and known.end > end:
        mark = position_text(min(settled, end))
        yield Statement(
            f"UPDATE streams_inbox_marks SET mark = {_position(dialect, 1)} "  # noqa: S608
            f"WHERE scope = CAST($2 AS bigint) AND mark > {_position(dialect, 3)}",
            (mark, number, mark),
        )
        yield Statement(
            f"DELETE FROM streams_inbox WHERE scope = CAST($1 AS bigint) "  # noqa: S608
            f"AND position >= {_position(dialect, 2)} "
            f"AND substr(id, 9) = {_id_of_position(dialect, 'position')}",
            (number, position_text(start), f"{scope.topic}/{scope.partition}/"),
        )
        yield Statement(
            f"DELETE FROM streams_inbox WHERE first_scope = CAST($1 AS bigint) "  # noqa: S608
            f"AND first_position >= {_position(dialect, 2)} "
            f"AND substr(id, 9) = {_id_of_position(dialect, 'first_position')}",
            (number, position_text(start), f"{scope.topic}/{scope.partition}/"),
        )
    return known


def _id_of_position(dialect: DialectName, position: str) -> str:
    """The ID of a message without one, from its position in this column. (On Redis, which never
    reuses a position, it has another form.)"""
    if dialect == "postgresql":
        return f"convert_to(CAST($3 AS text) || CAST({position} AS text), 'UTF8')"
    return f"CAST($3 || CAST({position} AS integer) AS blob)"


def schedule_deletion(scope: int) -> Steps[None]:
    """On PostgreSQL, after :func:`raise_mark` was committed: transactions without a number yet will
    read the new mark."""
    yield Statement(
        "UPDATE streams_inbox_marks SET purge_after = txid_current() "
        "WHERE scope = CAST($1 AS bigint)",
        (scope,),
    )


def delete_purged(scope: int, limit: int) -> Steps[int]:
    """On PostgreSQL: delete rows below the mark; returns how many. If it is ``limit``, there may be
    more."""
    rows = yield Statement(
        "WITH gone AS (DELETE FROM streams_inbox "  # noqa: S608
        "WHERE id IN (SELECT i.id FROM streams_inbox AS i "
        "JOIN streams_inbox_marks AS m ON m.scope = i.scope AND i.position < m.mark "
        f"WHERE i.scope = CAST($1 AS bigint) AND {_IS_BELOW_FIRST_MARK} "
        "LIMIT CAST($2 AS integer)) RETURNING 1) "
        "SELECT count(*) FROM gone",
        (scope, limit),
    )
    deleted = int(rows[0][0])
    if deleted < limit:
        yield Statement(
            "UPDATE streams_inbox_marks SET purge_after = NULL WHERE scope = CAST($1 AS bigint)",
            (scope,),
        )
    return deleted
