"""Inspects aggregates through a log alone: the app does not run, and nothing is created or written
(except, on Kafka, a record that voids an append that was cut off, which every reader that follows
a partition writes).

The command line shows its results. It reads as the app would (the snapshot, the events after it,
upcasts, ``evolve``), and if the app would stop, it says at which event, and why. Whatever the log
holds, the only errors raised are :class:`~streams.errors.LogError`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from stream_codecs import CodecError, DecodeError, default_codec
from streams.app import Streams
from streams.errors import LogError
from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.history_pages import history_pages as history_pages
from streams.log.event_headers import cause_of, refused_by
from streams.log.events import (
    EMPTY,
    Base,
    EventLog,
    Head,
    History,
    HistoryRequest,
    StoredEvent,
    StoredSnapshot,
    read_each,
)
from streams.log.protocol import Reader
from streams.log.record_fetcher import RecordFetcher
from streams.message import identity_of
from streams.text import error_text
from streams.wire import utc_from_seconds

CHECK_PAGE = 100
"""Events that are read at once from each of many histories."""


class StoppedAt(NamedTuple):
    """The event at which code cannot go on with a history.

    :param version: the version of the event that cannot be decoded or folded.
    :param reason: why it cannot.
    """

    version: int
    reason: str


class InspectedEvent(NamedTuple):
    """An event as it is stored, and as the current code reads it.

    :param events: the current events that it stands for: one, several, or none.
    :param reason: why it cannot be decoded; empty: it can.
    """

    stored: StoredEvent
    events: Sequence[Any]
    reason: str = ""


class CurrentEvent(NamedTuple):
    """A stored event as the current code decodes it.

    :param events: one event, several, or none.
    :param reason: why it cannot be decoded; empty: it can.
    """

    events: Sequence[Any]
    reason: str = ""


ReadEvent = Callable[[bytes | None], CurrentEvent]
"""Decodes the bytes of a stored event with the current code."""


class InspectedAggregate(NamedTuple):
    """An aggregate as the current code reads it.

    :param head: the end of its whole history.
    :param partition: the partition of its events.
    :param state: the state after the events up to ``version``.
    :param last: the last event that was read; None: none was (after the snapshot, if there is one).
    :param snapshot: the snapshot that loading began with; None: it began at the first event.
    :param stopped: why later versions cannot be reached; None: they can.
    """

    head: Head
    partition: int
    state: Any
    version: int
    last: StoredEvent | None
    snapshot: StoredSnapshot | None
    stopped: StoppedAt | None


class ReplayedEvent(NamedTuple):
    """An event of a history, and the state after it.

    :param state: the state after it; None if ``has_state`` is False.
    :param has_state: the events up to it could be folded.
    """

    event: InspectedEvent
    state: Any = None
    has_state: bool = False


class HistoryReplay(NamedTuple):
    """The last events of a history up to one of its versions.

    :param events: in their order.
    :param version: the version that was reached: that of the last event.
    :param stopped: why later versions cannot be folded; None: they can.
    :param is_whole: the time sufficed to read up to the requested version.
    """

    head: Head
    partition: int
    events: Sequence[ReplayedEvent]
    version: int
    stopped: StoppedAt | None
    is_whole: bool


class InspectedRefusal(NamedTuple):
    """A stored refusal.

    :param version: of the aggregate when the decision refused.
    :param error: the name of the exception by which it refused; empty: none is stored, such as for
        a process manager's command that came to no event.
    """

    version: int
    offset: int
    time: float
    id: str
    cause: str
    error: str


class AggregateInspector:
    """Inspects the aggregates of one type. Blocks; one thread at a time.

    :param aggregate: as the app declares it.
    :param log: the app's log; open for reading at least.
    """

    def __init__(self, aggregate: Aggregate[Any, Any], log: EventLog) -> None:
        self._definition = aggregate.definition
        self._log = log
        self.topic = aggregate.events.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the snapshots that this code uses; empty: it uses none."""
        return self._definition.fingerprint

    def inspect(self, key: bytes, at: int | datetime | None = None) -> InspectedAggregate:
        """An aggregate as it is now, or was at a version or a time.

        :raises LogError: it cannot be read.
        """
        wanted = events_until(at)
        state, version, snapshot = self._definition.state_type.initial, 0, None
        head, partition = EMPTY, -1
        last: StoredEvent | None = None
        stopped: StoppedAt | None = None
        fingerprint = self.fingerprint if at is None else ""
        for found in self._pages(key, fingerprint):
            head, partition = found.head, found.partition
            if found.snapshot is not None:
                decoded = self._definition.state_type.decode(found.snapshot.data)
                if decoded is not None:
                    state, snapshot = decoded.state, found.snapshot
                    version = snapshot.base.version
            chosen = [each for each in found.events if wanted(each)]
            last = chosen[-1] if chosen else last
            if stopped is None:
                state, version, stopped = self._fold(state, version, chosen)
            if len(chosen) < len(found.events):
                break
        return InspectedAggregate(head, partition, state, version, last, snapshot, stopped)

    def replay(self, key: bytes, number: int, at: int | None, seconds: float) -> HistoryReplay:
        """The last ``number`` events up to a version, each with the state after it.

        :param at: the version; None: the last one.
        :param seconds: real seconds that reading may take.
        :raises LogError: it cannot be read.
        """
        deadline = time.monotonic() + seconds
        pages = self._pages(key, "" if at is not None else self.fingerprint)
        page = next(pages)
        if page.snapshot is not None and (
            page.head.base.version - page.snapshot.base.version < number
        ):
            pages = history_pages(self._log, self.topic, key)
            page = next(pages)
        head, partition = page.head, page.partition
        last = head.base.version if at is None else min(at, head.base.version)
        state, version = self._definition.state_type.initial, 0
        if page.snapshot is not None:
            decoded = self._definition.state_type.decode(page.snapshot.data)
            if decoded is not None:
                state, version = decoded.state, page.snapshot.base.version
        stopped: StoppedAt | None = None
        found: list[ReplayedEvent] = []
        reached = version
        while True:
            before = [each for each in page.events if each.version <= last - number]
            if stopped is None:
                state, version, stopped = self._fold(state, version, before)
            reached = max(reached, *(each.version for each in before), 0)
            wanted = page._replace(
                events=[each for each in page.events if last - number < each.version <= last]
            )
            for each in self.decode_events(wanted):
                if stopped is None:
                    state, version, stopped = self._fold(state, version, [each.stored])
                has_state = stopped is None
                found.append(ReplayedEvent(each, state if has_state else None, has_state))
                reached = each.stored.version
            if reached >= last or time.monotonic() > deadline:
                break
            following = next(pages, None)
            if following is None:
                break
            page = following
        return HistoryReplay(head, partition, found, reached, stopped, reached >= last)

    def _pages(self, key: bytes, fingerprint: str) -> Iterator[History]:
        """A history's pages, starting at its snapshot if that can be read."""
        pages = history_pages(self._log, self.topic, key, fingerprint)
        first = next(pages)
        if first.snapshot is not None and self.why_useless(first.snapshot):
            yield from history_pages(self._log, self.topic, key)
            return
        yield first
        yield from pages

    def decode_events(self, found: History) -> Iterator[InspectedEvent]:
        """The events of a page of a history, as the current code reads them."""
        for stored in found.events:
            yield InspectedEvent(stored, *_read_event(self._definition.codec, stored.record.value))

    def why_useless(self, snapshot: StoredSnapshot) -> str:
        """Why this code cannot use a snapshot; empty: it can, if the history still has the events
        that the snapshot was made of."""
        if not self.fingerprint:
            return "the aggregate is declared without snapshots"
        if snapshot.fingerprint != self.fingerprint:
            return "made by other code: another state, or another version of the snapshot"
        if self._definition.state_type.decode(snapshot.data) is None:
            return "its state cannot be decoded"
        return ""

    def find_stops(self, keys: Sequence[bytes]) -> list[StoppedAt | LogError | None]:
        """The event that stops each of these aggregates, from its first event on; None: no event
        does. If a history cannot be read, the error that says so.

        :raises Unavailable: the log cannot be reached now.
        """
        requests = [HistoryRequest(key, limit=CHECK_PAGE) for key in keys]
        firsts = read_each(self._log, self.topic, requests)
        return [self._check_one(key, first) for key, first in zip(keys, firsts, strict=True)]

    def _check_one(self, key: bytes, first: History | LogError) -> StoppedAt | LogError | None:
        if isinstance(first, LogError):
            return first
        state, version, stopped = self._fold(
            self._definition.state_type.initial, 0, list(first.events)
        )
        if stopped is not None or not first.events or version >= first.head.base.version:
            return stopped
        last = first.events[-1]
        try:
            for found in history_pages(
                self._log, self.topic, key, after=Base(last.version, last.record.id)
            ):
                state, version, stopped = self._fold(state, version, list(found.events))
                if stopped is not None:
                    return stopped
        except LogError as error:
            return error
        return None

    def _fold(
        self, state: Any, version: int, events: Sequence[StoredEvent]
    ) -> tuple[Any, int, StoppedAt | None]:
        """The state after events, its version, and the event at which folding stopped, if any."""
        definition = self._definition
        for stored in events:
            try:
                decoded = definition.codec.decode(stored.record.value)
            except DecodeError as error:
                reason = f"event {stored.version} cannot be decoded: {error_text(error)}"
                return state, version, StoppedAt(stored.version, reason)
            try:
                after = state
                for event in decoded:
                    after = definition.evolve(after, event)
            except Exception as error:
                reason = (
                    f"evolve failed at event {stored.version}: "
                    f"{type(error).__name__}: {error_text(error)}"
                )
                return state, version, StoppedAt(stored.version, reason)
            state, version = after, stored.version
        return state, version, None


def event_reader(app: Streams, topic: str) -> ReadEvent | None:
    """The function with which an app's code reads the events of a topic; None: the topic belongs to
    no aggregate of the app.

    :raises ConfigError: the aggregate's upcasts end at a type that is not an event.
    """
    for aggregate in app.aggregates.values():
        if isinstance(aggregate, Aggregate) and aggregate.events.name == topic:
            codec = aggregate.definition.codec
            codec.check_upcasts()
            return partial(_read_event, codec)
    return None


def _read_event(codec: EventCodec[Any], value: bytes | None) -> CurrentEvent:
    try:
        return CurrentEvent(codec.decode(value))
    except DecodeError as error:
        return CurrentEvent((), error_text(error))


def replay_stored(
    log: EventLog, topic: str, key: bytes, number: int, at: int | None, seconds: float
) -> HistoryReplay:
    """Like :meth:`AggregateInspector.replay`, without code that knows the event types.

    :raises LogError: it cannot be read.
    """
    deadline = time.monotonic() + seconds
    head, partition, reached, last = EMPTY, -1, 0, 0
    found: list[ReplayedEvent] = []
    for page in history_pages(log, topic, key):
        head, partition = page.head, page.partition
        last = head.base.version if at is None else min(at, head.base.version)
        for stored in page.events:
            if last - number < stored.version <= last:
                found.append(ReplayedEvent(InspectedEvent(stored, ())))
            reached = max(reached, min(stored.version, last))
        if reached >= last or time.monotonic() > deadline:
            break
    return HistoryReplay(head, partition, found, reached, None, reached >= last)


class _RawReaders:
    """Opens readers that return all records of an event topic, refusals included."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        """A reader of a range."""
        return self._log.raw_reader(topic, partition, start, end)


def read_refusals(
    log: EventLog,
    topic: str,
    key: bytes,
    partition: int,
    versions: range | None = None,
    number: int | None = None,
) -> list[InspectedRefusal]:
    """The refusals of one aggregate, in the order in which they were stored.

    :param partition: of the aggregate's events.
    :param versions: only those decided at one of these versions; None: all.
    :param number: only this many of the last of them; None: all.
    :raises LogError: they cannot be read.
    """
    stored = [
        each
        for each in log.list_refusals(topic, key)
        if versions is None or each.version in versions
    ]
    if number is not None:
        stored = stored[max(0, len(stored) - number) :]
    offsets = [each.offset for each in stored]
    rows, _ = RecordFetcher(_RawReaders(log), topic, partition).fetch(offsets, sys.maxsize)
    found: list[InspectedRefusal] = []
    for each in stored:
        row = rows.get(each.offset)
        if row is None:
            where = f"{topic}/{partition} at version {each.version}"
            raise LogError(f"{where}: the record of a refusal is gone: restore a backup")
        id = (identity_of(row.headers) or "").partition("\0")[0]
        cause, error = cause_of(row.headers), refused_by(row.headers)
        found.append(InspectedRefusal(*each, row.time, id, cause, error))
    return found


def events_until(at: int | datetime | None) -> Callable[[StoredEvent], bool]:
    """A filter for the events up to a version or a time; None: all events."""
    if at is None:
        return lambda stored: True
    if isinstance(at, datetime):
        moment = at
        return lambda stored: utc_from_seconds(stored.time) <= moment
    version = at
    return lambda stored: stored.version <= version


def json_document(value: Any) -> bytes:
    """An event or a state as JSON, whatever codec it is stored with; its ``repr`` if it cannot be
    written as JSON."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        pass
    try:
        return default_codec(type(value)).bind(type(value), topic="", role="value").encode(value)
    except (CodecError, TypeError, ValueError, RecursionError):
        return msgspec.json.encode(repr(value))
