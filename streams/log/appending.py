"""Appends records and waits for the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from streams.errors import LogError
from streams.log.protocol import Assignment, Log, OnAppended
from streams.message import Position, Record


def append_records(
    log: Log,
    topic: str,
    records: Sequence[Record],
    owners: Sequence[Assignment] | None,
    on_appended: OnAppended,
) -> None:
    """Append records.

    :param owners: the assignment as whose owner each record is written, if the log can check that
        (:attr:`~streams.log.protocol.Assignment.append_as_owners`); None: ownership is not checked.
    """
    append_as_owners = owners[0].append_as_owners if owners else None
    if owners is None or append_as_owners is None:
        log.append(topic, records, on_appended)
    else:
        append_as_owners(topic, records, owners, on_appended)


def append_and_wait(
    log: Log,
    topic: str,
    records: Sequence[Record],
    meanwhile: Callable[[], None] = lambda: None,
    owner: Assignment | None = None,
) -> list[Position | LogError]:
    """Append records and wait for the result.

    :param meanwhile: called about once a second until then.
    :param owner: append only as the owner of this assignment, if the log can check that.
    """
    ended = threading.Event()
    results: list[Position | LogError] = []

    def on_appended(outcomes: Sequence[Position | LogError]) -> None:
        results.extend(outcomes)
        ended.set()

    owners = None if owner is None else [owner] * len(records)
    append_records(log, topic, records, owners, on_appended)
    while not ended.wait(1.0):
        meanwhile()
    return results
