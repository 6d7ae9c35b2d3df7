"""The part of :class:`~streams.log.events.EventLog` that logs with a server or a file share.

Each has one object for its histories (``events.py`` of its package), to which the log delegates
the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from typing_extensions import override

from streams.errors import InvalidValue
from streams.log.events import (
    EventAppend,
    EventLog,
    EventTotals,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    StoredRefusal,
    StoredSnapshot,
)


class Histories(Protocol):
    """The histories of one log's event topics; each method as in
    :class:`~streams.log.events.EventLog`."""

    def append(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """See :meth:`~streams.log.events.EventLog.append_events`."""
        ...

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`~streams.log.events.EventLog.read_histories`; each limit is at least 1."""
        ...

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`~streams.log.events.EventLog.write_snapshots`."""
        ...

    def delete_snapshots(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`~streams.log.events.EventLog.delete_snapshots`."""
        ...

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`~streams.log.events.EventLog.list_snapshots`."""
        ...

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        """See :meth:`~streams.log.events.EventLog.list_refusals`."""
        ...

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`~streams.log.events.EventLog.list_keys`."""
        ...

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`~streams.log.events.EventLog.event_totals`."""
        ...


H = TypeVar("H", bound=Histories)


class HistoryLog(EventLog, Generic[H]):
    """A log that has its histories in one object, and waits for its server or its disk."""

    _events: H

    @property
    @override
    def never_blocks(self) -> bool:
        return False

    @property
    @override
    def fails_by_partition(self) -> bool:
        return False

    @override
    def append_events(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        self._events.append(topic, appends, on_appended)

    @override
    def read_histories(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        for request in requests:
            if request.limit < 1:
                raise InvalidValue(f"limit={request.limit}: at least 1")
        return self._events.read(topic, requests)

    @override
    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        self._events.write_snapshots(topic, snapshots)

    @override
    def delete_snapshots(self, topic: str, fingerprint: str | None = None) -> int:
        return self._events.delete_snapshots(topic, fingerprint)

    @override
    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        return self._events.list_snapshots(topic, key)

    @override
    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        return self._events.list_refusals(topic, key)

    @override
    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        return self._events.list_keys(topic, partition, after, limit)

    @override
    def event_totals(self, topic: str) -> EventTotals:
        return self._events.totals(topic)

    @override
    def index_progress(self, topic: str) -> tuple[int, int]:
        return 0, 0
