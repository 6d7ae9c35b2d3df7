"""What tests know of the snapshots of an event topic's index."""

from __future__ import annotations

from typing import Any

import pytest

from streams.errors import NotFound
from streams.log.kafka import index_topic
from streams.log.kafka.log import KafkaLog
from tests.conformance.member import PATIENCE
from tests.servers.lifetime import until


@pytest.fixture
def asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote no snapshot, or has written one, sees at once whether one is wanted: as soon
    as there is one more record."""
    monkeypatch.setattr(index_topic, "RETRY_INTERVAL", 0.0)
    monkeypatch.setattr(index_topic, "GROWTH", 1.0 + 1e-9)


def stored_events(log: KafkaLog, topic: str) -> int:
    """The events of the last snapshot."""
    snapshots: Any = log._events.indexes._snapshots_of(topic)
    try:
        found = snapshots._find_end(0)
    except NotFound:
        return 0
    return 0 if found is None else int(found.end.state.event_count)


def wait_stored(log: KafkaLog, topic: str, events: int) -> None:
    """Wait until there is a snapshot of so many events."""
    until(lambda: stored_events(log, topic) >= events, PATIENCE, "the snapshot")
