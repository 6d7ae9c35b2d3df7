"""Appends to histories, and what a naive model says of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast
from uuid import uuid4

from streams.log.event_headers import make_append
from streams.log.events import (
    NO_HISTORY,
    Appended,
    AppendOutcome,
    Base,
    EventAppend,
    EventLog,
    Head,
    History,
    HistoryRequest,
)
from streams.message import Headers, Record
from tests.conformance.member import PATIENCE
from tests.conformance.world import World


def event(value: bytes = b"event", headers: Headers = ()) -> Record:
    """A record with a fresh ID, as an append takes it."""
    return Record(value, None, uuid4().hex, headers)


def events_of(world: World) -> EventLog:
    """The log, as what keeps histories."""
    assert isinstance(world.log, EventLog)
    return world.log


def event_topic(world: World, partitions: int = 2) -> str:
    """A new event topic."""
    return events_of(world).create_event_topic(world.name("events"), partitions).name


def append(
    log: EventLog,
    topic: str,
    key: bytes,
    base: Base,
    *values: bytes,
    cause: str = "",
    is_final: bool = False,
    is_refusal: bool = False,
    refused_by: str = "",
) -> tuple[EventAppend, AppendOutcome]:
    """Append events, or a refusal; what was appended, and what became of it."""
    made = make_append(
        key,
        base,
        [event(value) for value in values],
        cause=cause,
        is_final=is_final,
        is_refusal=is_refusal,
        refused_by=refused_by,
    )
    (outcome,) = append_all(log, topic, [made])
    return made, outcome


def append_all(log: EventLog, topic: str, appends: Sequence[EventAppend]) -> list[AppendOutcome]:
    """Append; what became of each."""
    told: list[Sequence[AppendOutcome]] = []
    finished = threading.Event()

    def done(outcomes: Sequence[AppendOutcome]) -> None:
        told.append(outcomes)
        finished.set()

    log.append_events(topic, appends, done)
    assert finished.wait(PATIENCE), "never told"
    assert len(told) == 1, "told more than once"
    assert len(told[0]) == len(appends)
    return list(told[0])


def grow(log: EventLog, topic: str, key: bytes, *values: bytes, cause: str = "") -> Head:
    """Append one event after the other; where the history ends then."""
    head = history(log, topic, key).head
    for value in values:
        made, outcome = append(log, topic, key, head.base, value, cause=cause)
        assert isinstance(outcome, Appended), outcome
        head = made.head
    return head


def history(
    log: EventLog,
    topic: str,
    key: bytes,
    after: Base = NO_HISTORY,
    *,
    cause: str = "",
    limit: int = 100_000,
) -> History:
    """A history, as far as it is not known."""
    (found,) = log.read_histories(topic, [HistoryRequest(key, after, limit, cause)])
    return found


def values(found: History) -> list[bytes]:
    """The events' values."""
    return [cast(bytes, each.record.value) for each in found.events]


def versions(found: History) -> list[int]:
    """The events' versions."""
    return [each.version for each in found.events]
