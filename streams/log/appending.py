"""Appending and waiting for the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from streams.errors import LogError
from streams.log.protocol import Assignment, Log
from streams.message import Position, Record


def append_and_wait(
    log: Log,
    topic: str,
    records: Sequence[Record],
    meanwhile: Callable[[], None] = lambda: None,
    owner: Assignment | None = None,
) -> list[Position | LogError]:
    """Append records and wait for the result.

    :param meanwhile: called about once a second until then.
    :param owner: only as the owner of this, if the log can check that
        (:attr:`~streams.log.protocol.Assignment.append_as_owners`).
    """
    ended = threading.Event()
    results: list[Position | LogError] = []

    def on_appended(outcomes: Sequence[Position | LogError]) -> None:
        results.extend(outcomes)
        ended.set()

    if owner is not None and owner.append_as_owners is not None:
        owner.append_as_owners(topic, records, [owner] * len(records), on_appended)
    else:
        log.append(topic, records, on_appended)
    while not ended.wait(1.0):
        meanwhile()
    return results
