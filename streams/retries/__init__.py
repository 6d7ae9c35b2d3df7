"""Durable retries: attempts that are counted in the log, and messages that wait there.

:mod:`streams.retries.attempt_log` counts for ``Retry(durable=True)`` and ``Retry(in_order=False)``.
:mod:`streams.retries.scheduler` delivers from a topic of delayed messages what is due.
:mod:`streams.retries.pending` says what waits in one.
"""

from streams.retries.attempt_log import PENDING_LIMIT, DurableAttemptLog, delay_topic
from streams.retries.pending import PendingEntries, PendingEntry, read_pending
from streams.retries.records import (
    LATEST_DUE,
    Outcome,
    cancel_record,
    entry_record,
    parse_outcome,
    read_mark,
)
from streams.retries.scheduler import DelayStats, declare_scheduler, ensure_delay_topic, floor_group

__all__ = [
    "LATEST_DUE",
    "PENDING_LIMIT",
    "DelayStats",
    "DurableAttemptLog",
    "Outcome",
    "PendingEntries",
    "PendingEntry",
    "cancel_record",
    "declare_scheduler",
    "delay_topic",
    "ensure_delay_topic",
    "entry_record",
    "floor_group",
    "parse_outcome",
    "read_mark",
    "read_pending",
]
