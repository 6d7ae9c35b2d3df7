"""Appending and waiting for the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from streams.errors import LogError
from streams.log.protocol import Log
from streams.message import Position, Record


def append_and_wait(
    log: Log, topic: str, records: Sequence[Record], meanwhile: Callable[[], None] = lambda: None
) -> list[Position | LogError]:
    """Append records and wait for the result.

    :param meanwhile: called about once a second until then.
    """
    ended = threading.Event()
    results: list[Position | LogError] = []

    def on_appended(outcomes: Sequence[Position | LogError]) -> None:
        results.extend(outcomes)
        ended.set()

    log.append(topic, records, on_appended)
    while not ended.wait(1.0):
        meanwhile()
    return results
