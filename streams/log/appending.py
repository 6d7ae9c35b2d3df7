"""Writing to a log and waiting for what becomes of it; blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from streams.errors import LogError
from streams.log.protocol import Log
from streams.message import Position, Record


def append_and_wait(
    log: Log,
    topic: str,
    records: Sequence[Record],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Position | LogError]:
    """Write records and wait for what becomes of them.

    :param meanwhile: called about once a second until that is known.
    """
    ended = threading.Event()
    answers: list[Any] = []

    def on_written(found: Sequence[Position | LogError]) -> None:
        answers.extend(found)
        ended.set()

    log.append(topic, records, on_written)
    while not ended.wait(1.0):
        meanwhile()
    return answers
