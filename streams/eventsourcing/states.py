"""States of aggregates, folded from their histories.

A state is loaded from the cache, else from the last snapshot and the events after it. An event that
cannot be decoded stops its aggregate in this process: no decision is taken on a state without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import reduce
from itertools import takewhile
from typing import Any, NamedTuple

from stream_codecs import DecodeError
from streams.errors import CodeTooOld, InvalidValue
from streams.eventsourcing.definition import AggregateDefinition
from streams.eventsourcing.errors import HistoryTruncated, Undecodable, UnknownEvent
from streams.eventsourcing.histories import HistoryClient
from streams.eventsourcing.history_pages import PAGE, base_behind
from streams.eventsourcing.snapshots import SnapshotWriter
from streams.eventsourcing.state_cache import KnownState, StateCache
from streams.health import StoppedAggregate
from streams.log.events import (
    EMPTY,
    NO_HISTORY,
    Base,
    Caused,
    History,
    HistoryRequest,
    StoredEvent,
    values_of,
)
from streams.numbers import is_int
from streams.processing import Histogram
from streams.text import get_logger
from streams.wire import utc_from_seconds

logger = get_logger("streams")

MAX_STOPPED = 10_000
"""How many aggregates that an undecodable event has stopped are remembered, at most."""


class ReadEvent(NamedTuple):
    """An event of a history.

    :param events: the current events that it stands for: one, several or none.
    :param partition: the partition that it was read from.
    """

    stored: StoredEvent
    events: Sequence[Any]
    partition: int


class StateLoader:
    """The states of one aggregate type, while its app is entered. On the app's loop only."""

    def __init__(self, definition: AggregateDefinition[Any, Any], histories: HistoryClient) -> None:
        self._histories = histories
        self._name = definition.name
        self._topic = definition.topic.name
        self._codec = definition.codec
        self._evolve = definition.evolve
        self._state_type = definition.state_type
        self._fingerprint = definition.fingerprint
        self._initial = KnownState(definition.state_type.initial, EMPTY, -1, -1)
        self.cache = StateCache(definition.cache)
        self.snapshots: SnapshotWriter | None = None
        """Writes snapshots; None: the aggregate type has none."""
        if definition.snapshot is not None:
            self.snapshots = SnapshotWriter(
                histories, self._state_type, self._fingerprint, definition.snapshot.every
            )
        self.stopped: dict[str, StoppedAggregate] = {}
        """Aggregates that an event has stopped, by ID; :data:`MAX_STOPPED` at most."""
        self.snapshots_used = self.snapshots_useless = self.truncated = 0
        self.load_durations = Histogram()

    def key_of(self, id: Any) -> bytes:
        """An aggregate's ID as the key of its events.

        :raises InvalidValue: it is not a valid ID.
        """
        if not isinstance(id, str) or not id:
            raise InvalidValue(f"aggregate {self._name!r}: its IDs are non-empty str, not {id!r}")
        try:
            return id.encode()
        except UnicodeEncodeError:
            raise InvalidValue(
                f"aggregate {self._name!r}: the ID {id!r} holds a lone surrogate, which is no text"
            ) from None

    def cache_state(self, id: str, known: KnownState) -> None:
        """Cache a state, if the cache keeps any."""
        if not self.cache.keeps_any:
            return
        size = self.cache.size_of(id)
        version = known.head.base.version
        if not size or version & (version - 1) == 0:  # at each power of two: it may have grown
            size = self._state_type.size(known.state) + len(id) + 200
        self.cache.put(id, known, size)

    def lost(self, id: str, known: KnownState) -> HistoryTruncated:
        """The error for a state whose events the log no longer has; the state is evicted."""
        self.cache.drop(id)
        error = HistoryTruncated(
            f"{self._name} {id!r}: version {known.head.base.version} was acknowledged, and the log "
            "no longer has it: it has lost writes, or was replaced"
        )
        self.truncated += 1
        logger.error("%s", error)
        return error

    # -- the current state

    async def load(
        self, id: str, key: bytes, known: KnownState | None, cause: str = ""
    ) -> tuple[KnownState, Caused | None]:
        """The state at the log's end, and what was appended for a cause.

        :param known: the state that is known already.
        :raises HistoryTruncated: the log no longer has the events of ``known``.
        :raises Undecodable: an event cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        known, caused = await self._fold(id, key, known or self._initial, cause)
        self.cache_state(id, known)
        if self.stopped:
            self.stopped.pop(id, None)
        self.load_durations.add(loop.time() - began)
        return known, caused

    async def _fold(
        self, id: str, key: bytes, known: KnownState, cause: str
    ) -> tuple[KnownState, Caused | None]:
        fingerprint = self._fingerprint
        folded, was_unreadable = 0, False
        while True:
            base = known.head.base
            found = await self._histories.read(HistoryRequest(key, base, PAGE, cause, fingerprint))
            if found.is_truncated:
                raise self.lost(id, known)
            state, offset = known.state, known.offset
            if found.snapshot is not None:
                decoded = self._state_type.decode(found.snapshot.data)
                if decoded is None:
                    self.snapshots_useless += 1
                    was_unreadable = True
                    fingerprint = ""  # it cannot be used: read the events instead
                    continue
                self.snapshots_used += 1
                state, base, offset = decoded.state, found.snapshot.base, found.snapshot.offset
            state = self._fold_events(id, state, found.events)
            folded += len(found.events)
            if found.events:
                last = found.events[-1]
                base, offset = Base(last.version, last.record.id), last.offset
            known = KnownState(state, EMPTY._replace(base=base), found.partition, offset)
            if base.version >= found.head.base.version:
                if self.snapshots is not None:
                    self.snapshots.offer_loaded(key, folded, known, was_unreadable=was_unreadable)
                return known._replace(head=found.head), found.caused
            fingerprint = ""

    def _fold_events(self, id: str, state: Any, events: Sequence[StoredEvent]) -> Any:
        decoded_at_once = self._decode_at_once(events)
        if decoded_at_once is not None:
            with suppress(Exception):  # folding them one by one below finds the event
                return reduce(self._evolve, decoded_at_once, state)
        for stored in events:
            for event in self._decode_stored(id, stored):
                state = self._evolve_stored(id, stored, state, event)
        return state

    def _evolve_stored(self, id: str, stored: StoredEvent, state: Any, event: Any) -> Any:
        try:
            return self._evolve(state, event)
        except Exception as error:
            error.add_note(
                f"evolve() of aggregate {self._name!r} failed at version {stored.version} of {id!r}"
            )
            raise

    def _decode_at_once(self, events: Sequence[StoredEvent]) -> Sequence[Any] | None:
        """All of these events, if they can be decoded with the bare decoder; else None."""
        values = values_of(events)
        if not values:
            return values
        largest = -1 if None in values else max(map(len, values))  # type: ignore[arg-type]
        decode = self._codec.fast_decoder(values, largest)
        if decode is None:
            return None
        try:
            return [decode(value) for value in values]
        except Exception:  # decoding them one by one finds the event and the reason
            return None

    def _decode_stored(self, id: str, stored: StoredEvent) -> Sequence[Any]:
        try:
            return self._codec.decode(stored.record.value)
        except DecodeError as error:
            raise self._undecodable_error(id, stored.version, error) from error

    def _undecodable_error(self, id: str, version: int, error: DecodeError) -> Undecodable:
        kind = UnknownEvent if isinstance(error, CodeTooOld) else Undecodable
        found = kind(self._name, id, version, str(error))
        is_new = id not in self.stopped
        if is_new and len(self.stopped) >= MAX_STOPPED:
            return found
        self.stopped[id] = StoppedAggregate(id, version, str(error))
        if is_new:
            logger.error("%s", found)
            if len(self.stopped) == MAX_STOPPED:
                logger.error(
                    "%s: only the first %d such errors are logged", self._name, MAX_STOPPED
                )
        return found

    # -- the past

    async def load_at(self, id: str, key: bytes, at: int | datetime) -> KnownState:
        """The state at a version or a time.

        :raises InvalidValue: the aggregate never had this version.
        """
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise InvalidValue(f"at={at!r} has no time zone: say datetime.now(timezone.utc)")
            moment = at
            return await self._fold_while(
                id, key, self._initial, lambda each: utc_from_seconds(each.time) <= moment
            )
        version = self.check_version("at", at)
        begin = await self._snapshot_before(key, version + 1)
        known = await self._fold_while(id, key, begin, lambda each: each.version <= version)
        count = known.head.base.version
        if count != version:
            raise InvalidValue(f"{self._name} {id!r} has {count} versions, and none is {version}")
        return known

    def check_version(self, option: str, version: Any) -> int:
        """Check a version that the user gave, and return it.

        :raises InvalidValue: it is not a valid version.
        """
        if not is_int(version, 0):
            raise InvalidValue(f"aggregate {self._name!r}: {option}={version!r}: a version from 0")
        return version

    async def _fold_while(
        self, id: str, key: bytes, known: KnownState, is_wanted: Callable[[StoredEvent], bool]
    ) -> KnownState:
        """Fold the events after a known state, up to the first that ``is_wanted`` rejects."""
        async for found in self._read_pages(id, key, known.head.base):
            chosen = list(takewhile(is_wanted, found.events))
            if chosen:
                last = chosen[-1]
                state = self._fold_events(id, known.state, chosen)
                head = EMPTY._replace(base=Base(last.version, last.record.id))
                known = KnownState(state, head, found.partition, last.offset)
            if known.head.base.version == found.head.base.version:
                return known._replace(head=found.head)
            if len(chosen) < len(found.events):
                break
        return known

    async def load_caused(
        self, id: str, key: bytes, caused: Caused
    ) -> tuple[KnownState, list[ReadEvent]]:
        """The state as it was after the events appended for a cause, and those events."""
        last = caused.first_version + caused.event_count - 1
        begin = await self._snapshot_before(key, caused.first_version)
        state, base, partition, offset = begin.state, begin.head.base, begin.partition, begin.offset
        events: list[ReadEvent] = []
        async for found in self._read_pages(id, key, base):
            partition = found.partition
            for stored in found.events:
                if stored.version > last:
                    break
                decoded = self._decode_stored(id, stored)
                for event in decoded:
                    state = self._evolve_stored(id, stored, state, event)
                base, offset = Base(stored.version, stored.record.id), stored.offset
                if stored.version >= caused.first_version:
                    events.append(ReadEvent(stored, decoded, partition))
            if base.version >= last:
                break
        return KnownState(state, EMPTY._replace(base=base), partition, offset), events

    async def _snapshot_before(self, key: bytes, version: int) -> KnownState:
        """The state of the snapshot, if it was made before this version; else the first state."""
        if not self._fingerprint or version <= 1:
            return self._initial
        # A log's answer begins at its newest snapshot. Its events are not wanted yet.
        request = HistoryRequest(key, NO_HISTORY, 1, fingerprint=self._fingerprint)
        found = await self._histories.read(request)
        snapshot = found.snapshot
        if snapshot is None or snapshot.base.version >= version:
            return self._initial
        decoded = self._state_type.decode(snapshot.data)
        if decoded is None:
            return self._initial
        head = EMPTY._replace(base=snapshot.base)
        return KnownState(decoded.state, head, found.partition, snapshot.offset)

    async def read(self, id: str, key: bytes, start: int) -> AsyncIterator[ReadEvent]:
        """The events after a version, up to the log's end as it is when reading reaches it.

        :raises InvalidValue: ``start`` is not a valid version.
        """
        start = self.check_version("start", start)
        async for found in self._read_pages(id, key, NO_HISTORY):
            for stored in found.events:
                if stored.version > start:
                    yield ReadEvent(stored, self._decode_stored(id, stored), found.partition)

    async def _read_pages(self, id: str, key: bytes, after: Base) -> AsyncIterator[History]:
        """A history's events, page by page; at least one page, which may have none.

        :raises HistoryTruncated: the history changed while it was read.
        """
        while True:
            found = await self._histories.read(HistoryRequest(key, after, PAGE))
            if found.is_truncated:
                raise HistoryTruncated(f"{self._name} {id!r}: its events changed while being read")
            yield found
            behind = base_behind(found)
            if behind is None:
                return
            after = behind
