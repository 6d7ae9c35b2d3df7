"""Waiting for a log, as several commands do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.log.protocol import Log


INDEX_LOOK = 0.05
"""Seconds between checks of an index's progress."""

INDEX_PATIENCE = 30.0
"""Seconds without progress after which the progress bar ends; reading then reports the reason."""


def await_index(log: Log, topic: str) -> None:
    """Wait until a log knows which records of an event topic count, and show its progress."""
    from streams.cli import output
    from streams.log.events import EventLog

    if not isinstance(log, EventLog):
        return
    passed, total = log.index_progress(topic)
    if passed >= total:
        return
    with output.progress_bar(f"finding out which events of {topic} count") as show_progress:
        since = time.monotonic()
        while passed < total and time.monotonic() < since + INDEX_PATIENCE:
            show_progress(passed, total)
            time.sleep(INDEX_LOOK)
            before = passed
            passed, total = log.index_progress(topic)
            if passed != before:
                since = time.monotonic()
