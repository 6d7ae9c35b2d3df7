"""Begins the toolkit's transactions that wait for locks or hold them: with bounds, on
PostgreSQL."""

from __future__ import annotations

from streams.databases.protocol import DialectName, Statement, Steps

IDLE_WITH_LOCK = 10.0
"""Seconds after which the server ends an idle transaction of the toolkit that holds a lock."""


def format_timeout(seconds: float) -> str:
    """A time for PostgreSQL's settings: at least 1, and at most their maximum."""
    return str(max(1, min(round(seconds * 1000), 2**31 - 1)))


def bound_waits(dialect: DialectName, *, lock: float, idle: float) -> Steps[None]:
    """Set the bounds of this transaction, if the server supports them.

    :param lock: the most seconds that a statement waits for a lock.
    :param idle: the most seconds between two statements; then the server ends the transaction.
    """
    if dialect == "postgresql":
        yield Statement(
            "SELECT set_config('lock_timeout', CAST($1 AS text), true), "
            "set_config('idle_in_transaction_session_timeout', CAST($2 AS text), true)",
            (format_timeout(lock), format_timeout(idle)),
        )


def begin_locking(dialect: DialectName) -> Steps[None]:
    """The first statements of a transaction that waits for a lock and then holds it.

    It sees the commits of others during its wait, whatever the isolation level of its connection:
    stricter levels have one snapshot, that of the statement which waited. And the server ends it if
    this process freezes or disappears, so that others can go on.
    """
    if dialect == "postgresql":
        yield Statement("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        idle = format_timeout(IDLE_WITH_LOCK)
        yield Statement(f"SET LOCAL idle_in_transaction_session_timeout = {idle}")
