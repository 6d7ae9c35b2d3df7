"""Durable retries: attempts that are counted in the log, and messages that wait there.

:mod:`streams.retries.attempt_log` counts for ``Retry(durable=True)`` and ``Retry(in_order=False)``.
:mod:`streams.retries.scheduler` delivers the due messages of a delay topic.
:mod:`streams.retries.due_index` orders the pending messages of one of its partitions by due time,
and :mod:`streams.retries.pending` lists those of a topic without a scheduler.
:mod:`streams.retries.checkpoints` store the index in the partition, so that its next owner reads
little, and :mod:`streams.retries.checkpoint_writer` decides when.
:mod:`streams.retries.records` defines the records of a delay topic.
"""

from streams.engine.retry import retry_delay
from streams.log.floor import floor_group
from streams.retries.attempt_log import PENDING_LIMIT, DurableAttemptLog, delay_topic
from streams.retries.checkpoints import find_checkpoint
from streams.retries.due_index import DueIndex, due_time, log_position
from streams.retries.pending import PendingEntries, PendingEntry, read_pending
from streams.retries.records import (
    KEY as KEY_HEADER,
)
from streams.retries.records import (
    LATEST_DUE,
    DelayEntry,
    Outcome,
    cancel_record,
    entry_record,
    id_digest,
    parse_entry,
    parse_outcome,
    read_mark,
    scan_record,
)
from streams.retries.scheduler import DelayStats, declare_scheduler, ensure_delay_topic

__all__ = [
    "KEY_HEADER",
    "LATEST_DUE",
    "PENDING_LIMIT",
    "DelayEntry",
    "DelayStats",
    "DueIndex",
    "DurableAttemptLog",
    "Outcome",
    "PendingEntries",
    "PendingEntry",
    "cancel_record",
    "declare_scheduler",
    "delay_topic",
    "due_time",
    "ensure_delay_topic",
    "entry_record",
    "find_checkpoint",
    "floor_group",
    "id_digest",
    "log_position",
    "parse_entry",
    "parse_outcome",
    "read_mark",
    "read_pending",
    "retry_delay",
    "scan_record",
]
