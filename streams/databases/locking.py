"""How transactions of ours begin that wait for locks, or hold them: with bounds, on PostgreSQL."""

from __future__ import annotations

from streams.databases.protocol import DialectName, Statement, Steps

IDLE_WITH_LOCK = 10.0
"""Seconds after which the server ends a transaction of ours that holds a lock and does nothing."""


def milliseconds(seconds: float) -> str:
    """A time as PostgreSQL's settings have it: not none, and none that is longer than they take."""
    return str(max(1, min(round(seconds * 1000), 2**31 - 1)))


def bound_waits(dialect: DialectName, *, lock: float, idle: float) -> Steps[None]:
    """Bounds of this transaction, where the server has such.

    :param lock: seconds that a statement waits for a lock, at most.
    :param idle: seconds between two statements, at most; then the server ends the transaction.
    """
    if dialect == "postgresql":
        yield Statement(
            "SELECT set_config('lock_timeout', CAST($1 AS text), true), "
            "set_config('idle_in_transaction_session_timeout', CAST($2 AS text), true)",
            (milliseconds(lock), milliseconds(idle)),
        )


def begin_locking(dialect: DialectName) -> Steps[None]:
    """The first statements of a transaction that waits for a lock and then has it.

    It sees what others committed while it waited, whatever the level of its connection: stricter
    ones have one snapshot, that of the statement which waited. And the server ends it if this
    process freezes, or is gone without a word, so that others get on.
    """
    if dialect == "postgresql":
        yield Statement("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        idle = milliseconds(IDLE_WITH_LOCK)
        yield Statement(f"SET LOCAL idle_in_transaction_session_timeout = {idle}")
