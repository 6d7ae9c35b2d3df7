"""Delayed delivery: a message that is published now and delivered when it is due.

Promises: what was acknowledged is delivered, once due, at least once and under one ID (so that
deduplication makes it once); in due order within a partition of the delay topic; one far-off
message holds up nothing; memory holds due times and positions of the nearest messages, never
payloads. A message can be cancelled by its ID, and the answer says what happened.

:class:`~streams.patterns.delay.delays.Delays` is for applications.
:mod:`streams.retries.attempt_log` keeps failing messages for ``Retry(in_order=False)``.
"""

from streams.patterns.delay.delays import Delay, DelayClient, Delays, Scheduled, due_at
from streams.retries import DelayStats, floor_group

__all__ = ["Delay", "DelayClient", "DelayStats", "Delays", "Scheduled", "due_at", "floor_group"]
