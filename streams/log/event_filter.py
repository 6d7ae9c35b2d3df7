"""Event topics as their readers see them: the events that count, and nothing else.

A reader of an event topic, in a group or outside of one, gets its events and no other record:

* a *refusal* (:attr:`~streams.log.events.EventAppend.is_refusal`) is no event;
* a record that no append wrote is *foreign*: it is left out, and reported once;
* on Kafka, which cannot check a condition when it writes, so are the records of appends that do not
  count (:mod:`streams.log.kafka.event_readers`).

Records that are left out leave gaps in the offsets, which are compared and never counted. A batch
from which records were left out has the offset up to which it was filtered
(:attr:`~streams.message.Batch.skipped_to`), so that a group's position moves past those at its end.
Only :meth:`~streams.log.events.EventLog.raw_reader` returns all records.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from typing_extensions import override

from streams.log.event_headers import event_header
from streams.log.protocol import READ_TIMEOUT, Reader, Subscription
from streams.log.wrapped_subscription import WrappedSubscription
from streams.message import Batch, Headers, Position
from streams.text import get_logger

logger = get_logger("streams")

MAX_REPORTED = 10_000
"""The most foreign records that are reported: each is remembered, so that none is reported
twice."""

_REFUSAL = b"0/0/"
"""The prefix of a refusal's header."""


class SelectedBatch(Batch):
    """Some messages of a batch, which keeps their headers and times."""

    __slots__ = ("_rows", "_whole", "skipped_to")

    def __init__(self, whole: Batch, rows: Sequence[int]) -> None:
        """:param rows: the indexes of the messages that are kept, ascending."""
        offsets, keys, values, ids = whole.offsets, whole.keys, whole.values, whole.ids
        unreadable = whole.unreadable  # complete, now that the IDs were read
        super().__init__(
            whole.topic,
            whole.partition,
            [offsets[row] for row in rows],
            [keys[row] for row in rows],
            [values[row] for row in rows],
            [ids[row] for row in rows],
            assignment=whole.assignment,
            unreadable={
                index: unreadable[row] for index, row in enumerate(rows) if row in unreadable
            }
            if unreadable
            else unreadable,
        )
        self._whole = whole
        self._rows = rows
        self.skipped_to = offsets[-1] + 1

    @override
    def headers(self, index: int) -> Headers:
        return self._whole.headers(self._rows[index])

    @override
    def extra_headers(self, index: int) -> Headers:
        return self._whole.extra_headers(self._rows[index])

    @override
    def time(self, index: int) -> float:
        return self._whole.time(self._rows[index])

    @override
    def offset(self, index: int) -> int:
        return self._whole.offset(self._rows[index])

    @override
    def release(self, index: int) -> None:
        super().release(index)
        self._whole.release(self._rows[index])


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """These messages of a batch; the batch itself if these are all of its messages."""
    return batch if len(rows) == len(batch) else SelectedBatch(batch, rows)


class ForeignRecords:
    """Reports the records in event topics that no append wrote, each once (any thread); only the
    first :data:`MAX_REPORTED` of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reported: set[Position] = set()

    def report(self, batch: Batch, rows: Sequence[int]) -> None:
        """Report these foreign records of a batch."""
        with self._lock:
            if len(self._reported) >= MAX_REPORTED:
                return
            positions = [Position(batch.topic, batch.partition, batch.offsets[row]) for row in rows]
            found = zip(rows, positions, strict=True)
            new = [row for row, position in found if position not in self._reported]
            if not new:
                return
            self._reported.update(positions)
            is_last = len(self._reported) >= MAX_REPORTED
        others = f", and {len(new) - 1} more up to {batch.offset(new[-1])}" if new[1:] else ""
        logger.warning(
            "%s/%d holds events of an aggregate, and something else has written to it: the record "
            "at offset %s%s is none and is left out; only the aggregate may write there",
            batch.topic, batch.partition, batch.offset(new[0]), others,
        )  # fmt: skip
        if is_last:
            logger.warning("there are so many of these that no more are reported")


class EventFilter:
    """The filter of a log that checks each append's condition: all events except refusals count."""

    def __init__(self, foreign: ForeignRecords) -> None:
        self._foreign = foreign

    def events_of(self, batch: Batch) -> Batch:
        """The events of a batch, which may be none."""
        if not batch.may_have_header(_REFUSAL):
            return batch  # of a log that has no other writers
        rows: list[int] = []
        foreign: list[int] = []
        for row in range(len(batch)):
            header = event_header(batch.extra_headers(row))
            if header is None:
                foreign.append(row)
            elif not header.startswith(_REFUSAL):
                rows.append(row)
        if foreign:
            self._foreign.report(batch, foreign)
        return select_rows(batch, rows)


class HoldsEvents(Protocol):
    """A filter that leaves out the records of a batch that are not events."""

    def events_of(self, batch: Batch) -> Batch:
        """The events of a batch, which may be none."""
        ...


class EventReader(Reader):
    """Reads the events of a range.

    :param reader: the reader of all records of the range.
    """

    def __init__(self, reader: Reader, filter: HoldsEvents) -> None:
        self._reader = reader
        self._filter = filter

    @override
    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> Batch | None:
        while (batch := self._reader.read(limit, timeout)) is not None:
            events = self._filter.events_of(batch)
            if len(events):
                return events
        return None

    @override
    def close(self) -> None:
        self._reader.close()


class EventSubscription(WrappedSubscription):
    """A member of a group that reads event topics, and perhaps others.

    :param subscription: the subscription that reads all records.
    :param event_topics: the subscription's topics that are event topics.
    """

    def __init__(
        self, subscription: Subscription, event_topics: Iterable[str], filter: HoldsEvents
    ) -> None:
        super().__init__(subscription)
        self._event_topics = frozenset(event_topics)
        self._filter = filter

    def __getattr__(self, name: str) -> Any:
        """The attributes that a log's own subscription has besides the protocol."""
        return getattr(self._subscription, name)

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        batches = self._subscription.poll(limit, timeout)
        return [
            self._filter.events_of(batch) if batch.topic in self._event_topics else batch
            for batch in batches
        ]
