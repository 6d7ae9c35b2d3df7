"""Durable retries: attempts that are counted in the log, and messages that wait there.

:mod:`streams.retries.attempt_log` counts for ``Retry(durable=True)`` and ``Retry(in_order=False)``.
:mod:`streams.retries.scheduler` delivers from a topic of delayed messages what is due.
"""
