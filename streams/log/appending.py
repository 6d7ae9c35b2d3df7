"""Appending for those who can wait: records are written, and what became of them is returned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from streams.errors import LogError
from streams.log.protocol import Log
from streams.message import Position, Record


def append_and_wait(
    log: Log, topic: str, records: Sequence[Record], meanwhile: Callable[[], None] = lambda: None
) -> list[Position | LogError]:
    """Write records and wait for what becomes of them.

    :param meanwhile: called about once a second until that is known.
    """
    ended = threading.Event()
    answers: list[Position | LogError] = []

    def on_written(found: Sequence[Position | LogError]) -> None:
        answers.extend(found)
        ended.set()

    log.append(topic, records, on_written)
    while not ended.wait(1.0):
        meanwhile()
    return answers
