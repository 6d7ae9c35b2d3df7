"""The beginning of a transaction of ours that waits for a lock."""

from __future__ import annotations

from streams.databases.protocol import DialectName, Statement, Steps

IDLE_WITH_LOCK = 10.0
"""Seconds after which the server ends a transaction of ours that holds a lock and does nothing."""


def begin_locking(dialect: DialectName) -> Steps[None]:
    """The first statements of a transaction that waits for a lock and then has it.

    It sees what others committed while it waited, whatever the level of its connection: stricter
    ones have one snapshot, that of the statement which waited. And the server ends it if this
    process freezes, or is gone without a word, so that others get on.
    """
    if dialect == "postgresql":
        yield Statement("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        milliseconds = max(1, round(IDLE_WITH_LOCK * 1000))
        yield Statement(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
