"""Records, and writing them. Apart from the list of logs, so that a child process needs one log."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from uuid import uuid4

from streams.errors import LogError
from streams.log.protocol import Assignment, Log
from streams.message import Headers, Position, Record
from tests.conformance.member import PATIENCE

ABSURD_PARTITIONS = (-1, 1 << 31, (1 << 31) - 1, 1 << 63, 10**59)
"""Numbers of partitions, as a header may have them, that no topic has."""


def append(
    log: Log, topic: str, records: Sequence[Record], owner: Assignment | None = None
) -> Sequence[Position | LogError]:
    """Write records; how each one ended.

    :param owner: as whose owner, on a log that can.
    """
    told: list[Sequence[Position | LogError]] = []
    finished = threading.Event()

    def done(outcomes: Sequence[Position | LogError]) -> None:
        told.append(outcomes)
        finished.set()

    if owner is None:
        log.append(topic, records, done)
    else:
        assert owner.append_as_owners is not None
        owner.append_as_owners(topic, records, [owner] * len(records), done)
    log.flush(PATIENCE)
    assert finished.wait(PATIENCE), "flushed, but never told"
    assert len(told) == 1, "told more than once"
    assert len(told[0]) == len(records)
    return told[0]


def record(
    value: bytes | None,
    key: bytes | None = None,
    *,
    id: str | None = None,
    headers: Headers = (),
    partition: int | None = None,
) -> Record:
    """A record with an ID of its own."""
    return Record(value, key, uuid4().hex if id is None else id, headers, partition)
