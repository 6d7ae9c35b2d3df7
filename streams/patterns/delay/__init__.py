"""Delayed delivery: a message that is published now and delivered when it is due.

Promises: an acknowledged message is delivered when it is due, at least once and always under the
same ID (so that deduplication makes it once), in due order within a partition of the delay topic. A
message with a late due time delays no other. Memory holds due times and positions of the messages
that are due next, never payloads. A message can be cancelled by its ID; the answer says whether it
was.

:class:`~streams.patterns.delay.delays.Delays` is for applications.
:mod:`streams.retries.attempt_log` keeps failing messages for ``Retry(in_order=False)``.
"""

from streams.patterns.delay.delays import Delay, DelayClient, Delays, Scheduled, due_at
from streams.retries import DelayStats, floor_group

__all__ = ["Delay", "DelayClient", "DelayStats", "Delays", "Scheduled", "due_at", "floor_group"]
