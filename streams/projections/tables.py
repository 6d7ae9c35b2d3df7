"""The table of projections, for PostgreSQL and SQLite, and every statement that is run upon it.

``streams_projections`` has a row for each version of each projection. ``serves`` is true for at
most one version of a projection: the one whose tables are to be read. Readers query it in their own
transaction::

    SELECT version FROM streams_projections WHERE name = 'balances' AND serves

``goal`` is where the topics ended when the version was seen first, as JSON: of a projection that
nobody serves yet, the version that has come so far can.

**What version 1 has handled, version 2 has, too**: that is found out in the inbox, in which both
have a row for each message, known by its position. On PostgreSQL each transaction of a handler
holds an advisory lock of its version, shared with the others; whoever promotes takes that of the
serving version alone, so that it stands still while the two are compared. On SQLite, where nobody
else gets on while a transaction is open, the row says until when it stands still (``held_until``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from streams.databases.locking import begin_locking, bound_waits, format_timeout
from streams.databases.protocol import DialectName, Statement, Steps
from streams.errors import ConfigError
from streams.inbox.companion import RunAgain
from streams.inbox.identity import digest, position_text
from streams.inbox.tables import PREPARING

_CREATE: Mapping[DialectName, str] = {
    "postgresql": """\
CREATE TABLE streams_projections (
    name text NOT NULL,
    version integer NOT NULL,
    serves boolean NOT NULL DEFAULT false,
    goal text NOT NULL,
    declared_at timestamptz NOT NULL DEFAULT now(),
    promoted_at timestamptz,
    PRIMARY KEY (name, version)
)""",
    "sqlite": """\
CREATE TABLE streams_projections (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    serves INTEGER NOT NULL DEFAULT 0,
    goal TEXT NOT NULL,
    declared_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400),
    promoted_at REAL,
    held_until REAL,
    PRIMARY KEY (name, version)
)""",
}

Ends = Mapping[str, Mapping[int, int]]
"""Positions by topic and partition."""


class StoredVersion(NamedTuple):
    """A version of a projection in the database."""

    version: int
    serves: bool
    goal: Ends


def ddl(dialect: DialectName) -> str:
    """The statements that create the table."""
    return f"{_CREATE[dialect]};\n"


def find_table(dialect: DialectName) -> Steps[bool]:
    """Whether the table exists."""
    if dialect == "postgresql":
        rows = yield Statement(
            "SELECT count(*) FROM pg_catalog.pg_class "
            "WHERE relname = 'streams_projections' AND pg_catalog.pg_table_is_visible(oid)"
        )
    else:
        rows = yield Statement(
            "SELECT count(*) FROM sqlite_master WHERE name = 'streams_projections'"
        )
    return bool(rows[0][0])


def create_missing(dialect: DialectName) -> Steps[None]:
    """Create the table, once, even if several processes try. Must be the first statements of their
    transaction."""
    yield from begin_locking(dialect)
    if dialect == "postgresql":
        yield Statement(f"SELECT pg_advisory_xact_lock({PREPARING})")
    if not (yield from find_table(dialect)):
        yield Statement(_CREATE[dialect])


def versions_of(name: str) -> Steps[list[StoredVersion]]:
    """The known versions of a projection, the oldest first."""
    rows = yield Statement(
        "SELECT version, serves, goal FROM streams_projections WHERE name = $1 ORDER BY version",
        (name,),
    )
    return [
        StoredVersion(version, bool(serves), _ends_of(name, version, goal))
        for version, serves, goal in rows
    ]


def declare(dialect: DialectName, name: str, version: int, goal: Ends) -> Steps[None]:
    """Insert a version, unless it is known. Must be the first statements of their transaction."""
    yield from begin_locking(dialect)
    text = json.dumps(
        {
            topic: {str(number): str(int(end)) for number, end in ends.items()}
            for topic, ends in goal.items()
        }
    )
    yield Statement(
        "INSERT INTO streams_projections (name, version, goal) VALUES ($1, $2, $3) "
        "ON CONFLICT DO NOTHING",
        (name, version, text),
    )


def _ends_of(name: str, version: int, goal: str) -> Ends:
    """:raises ConfigError: this package did not write it."""
    try:
        found = json.loads(goal)
        return {
            topic: {int(number): int(end) for number, end in ends.items()}
            for topic, ends in found.items()
        }
    except (AttributeError, RecursionError, TypeError, ValueError):
        raise ConfigError(
            f"streams_projections: the row of version {version} of projection {name!r} has a goal "
            "that is not as this package writes it; delete the row, and a process that declares "
            "the version makes it known again (of one that serves, set goal to '{}' instead)"
        ) from None


_SERVE: Mapping[DialectName, str] = {
    "postgresql": """\
UPDATE streams_projections SET serves = (1 = 1), promoted_at = now()
WHERE name = $1 AND version = $2""",
    "sqlite": """\
UPDATE streams_projections
SET serves = (1 = 1), promoted_at = (julianday('now') - 2440587.5) * 86400
WHERE name = $1 AND version = $2""",
}


def promote_version(dialect: DialectName, name: str, version: int) -> Steps[None]:
    """Make this version the serving one."""
    yield Statement("UPDATE streams_projections SET serves = (1 = 0) WHERE name = $1", (name,))
    if dialect == "sqlite":
        yield Statement("UPDATE streams_projections SET held_until = NULL WHERE name = $1", (name,))
    yield Statement(_SERVE[dialect], (name, version))


def delete_version(name: str, version: int) -> Steps[None]:
    """Delete a version's row."""
    yield Statement(
        "DELETE FROM streams_projections WHERE name = $1 AND version = $2", (name, version)
    )


def forget_handled(dialect: DialectName, scope: int, limit: int) -> Steps[bool]:
    """What a version handled in a partition is gone from the inbox, at most so many rows of it;
    whether there may be more. There is an inbox; the first statements of their transaction."""
    yield from begin_locking(dialect)
    rows = yield Statement(
        "DELETE FROM streams_inbox WHERE id IN "
        "(SELECT id FROM streams_inbox WHERE scope = $1 LIMIT $2) RETURNING 1",
        (scope, limit),
    )
    if len(rows) == limit:
        return True
    yield Statement("DELETE FROM streams_inbox_marks WHERE scope = $1", (scope,))
    return False


# -- standing still


def lock_number(name: str, version: int) -> int:
    """The number of a version's advisory lock on PostgreSQL; version 0: the lock for promoting."""
    return int.from_bytes(digest("projection", name, version)[:8], "big") >> 1


_LOCK_IMPATIENTLY = """\
SELECT set_config('lock_timeout', CAST($1 AS text), true),
    pg_advisory_xact_lock_shared(CAST($2 AS bigint)),
    set_config('lock_timeout', own, true)
FROM (SELECT current_setting('lock_timeout') AS own OFFSET 0) AS found"""
"""The columns are made one after the other."""


def enter_handler(
    dialect: DialectName, name: str, version: int, patience: float, longest: float
) -> Steps[None]:
    """In a handler's transaction: the version does not stand still until it ends.

    On PostgreSQL it waits its turn: one that only tried would never get it while several processes
    try to promote, one after the other.

    :param patience: seconds to wait for that; infinite: as long as for any lock.
    :param longest: seconds for which it stands still on SQLite, at most: a longer time was written
        before the clock was set back.
    :raises RunAgain: it stands still now.
    """
    if dialect == "postgresql":
        number = lock_number(name, version)
        if patience == math.inf:
            yield Statement("SELECT pg_advisory_xact_lock_shared(CAST($1 AS bigint))", (number,))
        else:
            yield Statement(_LOCK_IMPATIENTLY, (format_timeout(patience), number))
        return
    if not (yield from find_table(dialect)):
        return  # so no version can have been promoted
    rows = yield Statement(
        "SELECT held_until - (julianday('now') - 2440587.5) * 86400 "
        "FROM streams_projections WHERE name = $1 AND version = $2",
        (name, version),
    )
    if rows and 0 < (rows[0][0] or 0) <= longest:
        raise RunAgain(f"version {version} of projection {name!r} stands still")


def hold_handlers(name: str, version: int, seconds: float) -> Steps[None]:
    """On SQLite: no handler of the version gets on for so long, once this is committed."""
    yield Statement(
        "UPDATE streams_projections "
        "SET held_until = (julianday('now') - 2440587.5) * 86400 + $1 "
        "WHERE name = $2 AND version = $3",
        (seconds, name, version),
    )


def stop_handlers(dialect: DialectName, name: str, version: int) -> Steps[None]:
    """Keep the version's handlers out of transactions until this one ends."""
    if dialect == "postgresql":
        yield Statement(
            "SELECT pg_advisory_xact_lock(CAST($1 AS bigint))", (lock_number(name, version),)
        )


def lock_promotion(dialect: DialectName, name: str, *, lock: float, idle: float) -> Steps[bool]:
    """Nobody else promotes a version of this projection until this transaction ends; False: another
    does now. The first statements of their transaction.

    :param lock: seconds that a statement of the transaction waits for a lock, at most (PostgreSQL).
    :param idle: seconds between two of them, at most: the serving version stands still, and whoever
        promotes may be frozen, or gone without a word (PostgreSQL).
    """
    yield from begin_locking(dialect)
    yield from bound_waits(dialect, lock=lock, idle=idle)
    if dialect == "postgresql":
        rows = yield Statement(
            "SELECT pg_try_advisory_xact_lock(CAST($1 AS bigint))", (lock_number(name, 0),)
        )
        return bool(rows[0][0])
    # A driver may begin the transaction as a reader: so the first statement writes.
    yield Statement("UPDATE streams_projections SET goal = goal WHERE name = $1", (name,))
    return True


_MISSING = """\
SELECT count(*) FROM (
    SELECT 1 FROM streams_inbox AS s
    WHERE s.scope = {bigint1} AND s.position >= {position2} AND NOT EXISTS (
        SELECT 1 FROM streams_inbox AS c WHERE c.scope = {bigint3} AND c.position = s.position
    )
    UNION ALL
    SELECT 1 FROM streams_inbox_marks AS m WHERE m.scope = {bigint4} AND m.mark > {position5}
    LIMIT 1
) AS missing"""


def is_behind(dialect: DialectName, serving: int, candidate: int, settled: int) -> Steps[bool]:
    """Whether one version has handled something in a partition that the other has not, or may
    have: what was purged there is known by the mark alone.

    :param serving: the one, by the number of the partition in its group.
    :param candidate: the other.
    :param settled: the position below which it has settled everything.
    """
    kinds = _numbers(dialect)
    marks = {f"bigint{at}": kinds["bigint"].format(at) for at in (1, 3, 4)}
    marks |= {f"position{at}": kinds["position"].format(at) for at in (2, 5)}
    below = position_text(settled)
    rows = yield Statement(_MISSING.format(**marks), (serving, below, candidate, serving, below))
    return bool(rows[0][0])


_HAS_HANDLED = """\
SELECT count(*) FROM (
    SELECT 1 FROM streams_inbox AS i
    WHERE NOT i.dead AND i.scope = {bigint1} AND i.position = {position2}
    UNION ALL
    SELECT 1 FROM streams_inbox AS i
    WHERE NOT i.dead AND i.first_scope = {bigint3} AND i.first_position = {position4}
    UNION ALL
    SELECT 1 FROM streams_inbox_marks AS m WHERE m.scope = {bigint5} AND m.mark > {position6}
    LIMIT 1
) AS handled"""


def has_handled(dialect: DialectName, scope: int, position: int) -> Steps[bool]:
    """Whether a version has handled the message of a position, or may have: its row may be purged.

    :param scope: the number of the partition in the version's group.
    """
    kinds = _numbers(dialect)
    marks = {f"bigint{at}": kinds["bigint"].format(at) for at in (1, 3, 5)}
    marks |= {f"position{at}": kinds["position"].format(at) for at in (2, 4, 6)}
    place = position_text(position)
    rows = yield Statement(_HAS_HANDLED.format(**marks), (scope, place, scope, place, scope, place))
    return bool(rows[0][0])


def _numbers(dialect: DialectName) -> Mapping[str, str]:
    """The parameters that are numbers of partitions, and positions as text."""
    if dialect == "postgresql":
        return {"bigint": "CAST(${} AS bigint)", "position": "CAST(CAST(${} AS text) AS numeric)"}
    return {"bigint": "${}", "position": "${}"}
