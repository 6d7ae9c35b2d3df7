"""Deciding, loading and reading, while an app is entered.

How a decision becomes history:

1. The state is loaded: from the cache, else from the last snapshot and the events behind it.
2. The decision is called with it. What it returns are events; they are encoded and folded into the
   next state, so that what cannot be encoded or folded is never appended.
3. They are appended under the condition that the history still ends where the state does. If it
   does not, what came between is read, and the decision is called again.

A decision that raises or returns nothing is not validated by an append. It is called again on a
state that was read to the log's end after the call began, unless the first was one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any, Generic, Literal, NamedTuple, Self

from typing_extensions import TypeVar
from uuid_utils import uuid7

from stream_codecs import DecodeError
from streams.app import Streams
from streams.cancellation import run_in_thread
from streams.config import Retry
from streams.engine.retry import retry_delay
from streams.errors import ConfigError, InvalidValue, LogError, NotRunning, OutcomeUnknown
from streams.eventsourcing.causes import Cause, cause_of_call
from streams.eventsourcing.errors import (
    AggregateClosed,
    DecisionRefused,
    HistoryTruncated,
    Undecodable,
    WrongExpectedVersion,
)
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.histories import Histories
from streams.eventsourcing.keyed_lock import KeyedLock
from streams.eventsourcing.results import AggregateStats, Decided, Loaded
from streams.eventsourcing.snapshots import Snapshot, SnapshotWriter
from streams.eventsourcing.state_cache import Cache, KnownState, StateCache
from streams.eventsourcing.state_type import StateType
from streams.health import AggregateHealth, StoppedAggregate
from streams.log.event_headers import MAX_COUNT, make_append
from streams.log.events import (
    EMPTY,
    Appended,
    Base,
    Caused,
    EventAppend,
    EventLog,
    History,
    HistoryRequest,
    Refused,
    StoredEvent,
)
from streams.message import Position, Record
from streams.processing import Histogram, in_transaction
from streams.text import get_logger
from streams.topic import encode_key
from streams.wire import utc_from_seconds

E = TypeVar("E")
S = TypeVar("S")

logger = get_logger("streams")

Expected = int | Literal["any", "new", "exists"]
"""At which version an aggregate has to be: at that one, at any, at none yet, or at some."""

CONFLICT_RETRY = Retry(attempts=20, delay=0.002, cap=0.25)
"""How a decision is taken again upon a conflict, unless said otherwise."""

RESEND_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before an append whose outcome is unknown is sent again."""

PAGE = 1_000
"""Events that are read of a history at once."""

MAX_STOPPED = 10_000
"""Aggregates that are known to be stopped by an event that cannot be decoded, at most."""


@dataclass(frozen=True, slots=True)
class Definition(Generic[E, S]):
    """An aggregate type, as it was declared.

    :param fingerprint: of the snapshots that can be used; empty where there are none.
    """

    app: Streams
    name: str
    topic: EventTopic[E]
    codec: EventCodec[E]
    state_type: StateType[S]
    evolve: Callable[[S, E], S]
    final: type[Any] | None
    snapshot: Snapshot | None
    fingerprint: str
    cache: Cache


class Options(NamedTuple):
    """What :meth:`~streams.eventsourcing.aggregate.Aggregate.with_options` sets."""

    cause: Cause = None
    """None: the message that is being handled, if there is one."""
    expected: Expected | None = None
    refusals: tuple[type[Exception], ...] = ()
    """What a decision raises to refuse: that is remembered under its cause."""
    headers: tuple[tuple[str, bytes], ...] = ()
    retry: Retry = CONFLICT_RETRY


class Counters:
    """What :class:`AggregateStats` is made of."""

    def __init__(self) -> None:
        self.decisions = self.conflicts = self.retries = self.refused = 0
        self.appends = self.events = self.caused = 0
        self.snapshots_used = self.snapshots_useless = 0
        self.truncated = self.failures = 0
        self.load_durations = Histogram()


class AggregateRuntime:
    """An aggregate type in an app: reads, decides, appends, caches."""

    def __init__(self, definition: Definition[Any, Any]) -> None:
        self._definition = definition
        self._app = definition.app
        self._name = definition.name
        self._topic = definition.topic
        self._codec = definition.codec
        self._evolve = definition.evolve
        self._final = definition.final
        self._state_type = definition.state_type
        self._histories: Histories | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()

    def _begin(self) -> None:
        self._cache = StateCache(self._definition.cache)
        self._lock = KeyedLock()
        self._counters = Counters()
        self._stopped_here: dict[str, StoppedAggregate] = {}
        """By ID; :data:`MAX_STOPPED` at most."""
        self._snapshots: SnapshotWriter | None = None

    async def __aenter__(self) -> Self:
        log = self._app.log
        if not isinstance(log, EventLog):
            raise ConfigError(
                f"aggregate {self._name!r}: {log.capabilities.name} keeps no histories yet"
            )
        self._codec.check()
        self._begin()
        self._loop = asyncio.get_running_loop()
        await run_in_thread(self._topic.ensure, log)
        self._histories = Histories(log, self._topic.name)
        if self._definition.snapshot is not None:
            self._snapshots = SnapshotWriter(
                self._histories,
                self._state_type,
                self._definition.fingerprint,
                self._definition.snapshot.every,
            )
        return self

    async def __aexit__(self, *exc: object) -> None:
        histories, self._histories = self._histories, None
        if self._snapshots is not None:
            await self._snapshots.close()
        if histories is not None:
            await histories.close()

    @property
    def _open(self) -> Histories:
        if self._histories is None:
            self._app.log  # noqa: B018 - says why the app is not running, where it is not
            raise NotRunning(
                f"aggregate {self._name!r}: declared after its app was entered; declare it before"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigError(
                f"aggregate {self._name!r}: used on another event loop than its app's: use "
                "app.wait(...) there"
            )
        return self._histories

    def stats(self) -> AggregateStats:
        """Figures of this moment (any thread)."""
        counters, cache, snapshots = self._counters, self._cache, self._snapshots
        histories = self._histories
        return AggregateStats(
            decisions=counters.decisions,
            conflicts=counters.conflicts,
            retries=counters.retries,
            appends=counters.appends,
            events=counters.events,
            refused=counters.refused,
            caused=counters.caused,
            load_durations=counters.load_durations.read(),
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cached=len(cache),
            cached_bytes=cache.bytes,
            snapshots=0 if snapshots is None else snapshots.written,
            snapshots_used=counters.snapshots_used,
            snapshots_useless=counters.snapshots_useless,
            snapshots_failed=0 if snapshots is None else snapshots.failed,
            snapshot_age=None if snapshots is None else snapshots.age,
            undecodable=len(self._stopped_here),
            truncated=counters.truncated,
            failures=counters.failures,
            uncounted=0 if histories is None else histories.uncounted_records(),
        )

    def health(self) -> AggregateHealth:
        """How it is (any thread)."""
        stopped = tuple(self._stopped_here.copy().values())
        return AggregateHealth(self._histories is not None, stopped, self._counters.truncated)

    # -- deciding

    async def decide(
        self, id: str, decision: Callable[[Any], Any], options: Options
    ) -> Decided[Any, Any]:
        """See :meth:`Aggregate.decide`."""
        histories, lock = self._open, self._lock
        key = self._key(id)
        if in_transaction():
            raise ConfigError(
                f"aggregate {self._name!r}: deciding while message.transaction is open would wait "
                "for itself: decide before the first execute"
            )
        with cause_of_call(self._name, id, options.cause) as cause:
            if options.refusals and not cause:
                raise ConfigError(
                    f"aggregate {self._name!r}: with_options(refusals=...) remembers refusals by "
                    f"their causes, and the call upon {id!r} has none: give with_options(cause=...)"
                )
            self._counters.decisions += 1
            if cause and histories.never_blocks:
                # So that calls at the same time are seen to be that in tests, too.
                await asyncio.sleep(0)
            if not lock.try_acquire(id):
                await lock.wait(id)
            try:
                return await self._decide(histories, id, key, decision, cause, options)
            except LogError:
                self._counters.failures += 1
                raise
            finally:
                lock.release(id)

    async def _decide(
        self,
        histories: Histories,
        id: str,
        key: bytes,
        decision: Callable[[Any], Any],
        cause: str,
        options: Options,
    ) -> Decided[Any, Any]:
        known = self._cache.get(id)
        is_fresh = False
        attempt = 1
        while True:
            if known is None or cause or attempt > 1:
                known, caused = await self._catch_up(histories, id, key, known, cause)
                is_fresh = True
                if caused is not None and not caused.event_count:
                    self._counters.caused += 1
                    raise DecisionRefused(self._name, id, cause)
                if caused is not None:
                    return await self._found(histories, id, key, known, caused)
            failure: Exception | None = None
            events: Sequence[Any] = ()
            try:
                self._check_expected(id, options.expected, known)
                events = events_of(decision(known.state))
            except Exception as error:
                failure = error
            if not events and not is_fresh:
                # Nothing will validate the state from the cache, so it has to be a fresh one.
                known, _ = await self._catch_up(histories, id, key, known, "")
                is_fresh = True
                continue
            is_refusal = isinstance(failure, options.refusals)
            if failure is not None and not is_refusal:
                raise failure
            if is_refusal:
                append, next_state = self._prepare_refusal(key, known, cause), known.state
            elif events:
                append, next_state = self._prepare(id, key, known, events, cause, options)
            else:
                return self._decided(known, (), ())
            outcome = await self._append(histories, append)
            if is_refusal and isinstance(outcome, Appended):
                self._keep(id, KnownState(known.state, append.head, known.partition, known.offset))
                raise DecisionRefused(self._name, id, cause) from failure
            if isinstance(outcome, Appended):
                return self._appended(id, append, outcome, next_state, events)
            delay = self._refused(id, known, outcome, options.retry, attempt)
            if attempt > 1:  # the first time whoever was faster is done already
                await asyncio.sleep(delay)
            attempt += 1

    def _refused(
        self, id: str, known: KnownState, outcome: Refused, retry: Retry, attempt: int
    ) -> float:
        """Seconds until a decision is taken again whose append was refused.

        :raises StreamsError: it is not taken again.
        """
        self._counters.refused += 1
        if outcome.reason == "truncated":
            self._cache.drop(id)
            raise self._truncated(id, known)
        if outcome.reason == "final":
            self._cache.drop(id)
            raise AggregateClosed(f"{self._name} {id!r} has had its final event")
        self._counters.conflicts += 1
        conflict = WrongExpectedVersion(
            self._name, id, known.head.base.version, outcome.head.base.version
        )
        delay = retry_delay(retry, attempt, conflict, random.random())
        if delay is None:
            raise conflict
        self._counters.retries += 1
        return delay

    def _key(self, id: str) -> bytes:
        if not isinstance(id, str) or not id:
            raise InvalidValue(f"aggregate {self._name!r}: its IDs are non-empty str, not {id!r}")
        key = encode_key(self._topic.name, id)
        assert key is not None  # noqa: S101 - it is None for None alone
        return key

    def _check_expected(self, id: str, expected: Expected | None, known: KnownState) -> None:
        version = known.head.base.version
        if expected is None or expected == "any":
            return
        holds = (
            version == 0
            if expected == "new"
            else version > 0
            if expected == "exists"
            else version == expected
        )
        if not holds:
            raise WrongExpectedVersion(self._name, id, expected, version)

    def _prepare(
        self,
        id: str,
        key: bytes,
        known: KnownState,
        events: Sequence[Any],
        cause: str,
        options: Options,
    ) -> tuple[EventAppend, Any]:
        """The append of a decision's events, and the state after it."""
        if len(events) > MAX_COUNT:
            raise InvalidValue(
                f"aggregate {self._name!r}: a decision upon {id!r} returned {len(events)} events; "
                f"{MAX_COUNT} are possible"
            )
        if known.head.is_final:
            raise AggregateClosed(f"{self._name} {id!r} has had its final event")
        encode, evolve, state = self._codec.encode, self._evolve, known.state
        records = []
        for event in events:
            records.append(Record(encode(event), key, str(uuid7()), options.headers))
            state = evolve(state, event)
        is_final = self._final is not None and isinstance(events[-1], self._final)
        if self._final is not None and any(isinstance(each, self._final) for each in events[:-1]):
            raise InvalidValue(
                f"aggregate {self._name!r}: a decision upon {id!r} returned events behind its "
                "final one"
            )
        return make_append(key, known.head.base, records, cause=cause, is_final=is_final), state

    def _prepare_refusal(self, key: bytes, known: KnownState, cause: str) -> EventAppend:
        record = Record(b"", key, str(uuid7()))
        return make_append(key, known.head.base, [record], cause=cause, is_refusal=True)

    async def _append(self, histories: Histories, append: EventAppend) -> Appended | Refused:
        """Append, and send the same again while nobody knows what became of it."""
        unknown: OutcomeUnknown | None = None
        for pause in RESEND_PAUSES:
            if pause:
                await asyncio.sleep(pause)
            try:
                return await histories.append(append)
            except OutcomeUnknown as error:
                unknown = error
            except (LogError, NotRunning) as error:
                if unknown is None:
                    raise
                # This time nothing was written. The time before something may have been.
                unknown = OutcomeUnknown(f"{unknown}; when it was sent again: {error}")
        assert unknown is not None  # noqa: S101 - it was sent at least once
        raise unknown

    def _appended(
        self,
        id: str,
        append: EventAppend,
        outcome: Appended,
        state: Any,
        events: Sequence[Any],
    ) -> Decided[Any, Any]:
        counters = self._counters
        counters.appends += 1
        counters.events += len(events)
        known = KnownState(state, append.head, outcome.partition, outcome.offsets[-1])
        self._keep(id, known)
        if self._snapshots is not None:
            self._snapshots.offer(append.key, append.base.version, known)
        name, partition = self._topic.name, outcome.partition
        positions = tuple([Position(name, partition, offset) for offset in outcome.offsets])
        return self._decided(known, tuple(events), positions)

    def _decided(
        self, known: KnownState, events: Sequence[Any], positions: Sequence[Position]
    ) -> Decided[Any, Any]:
        last = None
        if known.offset >= 0:
            last = Position(self._topic.name, known.partition, known.offset)
        return Decided(known.state, known.head.base.version, events, positions, last)

    async def _found(
        self, histories: Histories, id: str, key: bytes, known: KnownState, caused: Caused
    ) -> Decided[Any, Any]:
        """What a cause came to before."""
        self._counters.caused += 1
        last = caused.first_version + caused.event_count - 1
        if last != known.head.base.version:
            known = await self._fold_until(histories, id, key, last)
        events: list[Any] = []
        positions: list[Position] = []
        async for stored, decoded, partition in self.read(id, caused.first_version - 1):
            if stored.version > last:
                break
            events += decoded
            positions += [Position(self._topic.name, partition, stored.offset)] * len(decoded)
        return self._decided(known, tuple(events), tuple(positions))

    def _truncated(self, id: str, known: KnownState) -> HistoryTruncated:
        error = HistoryTruncated(
            f"{self._name} {id!r}: version {known.head.base.version} was acknowledged, and the log "
            "does not have it any more: it has lost writes, or was exchanged"
        )
        self._counters.truncated += 1
        logger.error("%s", error)
        return error

    # -- loading

    def _keep(self, id: str, known: KnownState) -> None:
        size = self._cache.size_of(id)
        version = known.head.base.version
        if not size or version & (version - 1) == 0:  # at each power of two: it may have grown
            size = self._state_type.size(known.state) + len(id) + 200
        self._cache.put(id, known, size)

    async def _catch_up(
        self, histories: Histories, id: str, key: bytes, known: KnownState | None, cause: str
    ) -> tuple[KnownState, Caused | None]:
        """The state at the log's end, and what was appended for a cause."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        start = known or KnownState(self._state_type.initial, EMPTY, -1, -1)
        try:
            known, caused = await self._fold(histories, id, key, start, cause)
        except _Truncated:
            self._cache.drop(id)
            raise self._truncated(id, start) from None
        self._keep(id, known)
        if self._stopped_here:
            self._stopped_here.pop(id, None)
        self._counters.load_durations.add(loop.time() - began)
        return known, caused

    async def _fold(
        self, histories: Histories, id: str, key: bytes, known: KnownState, cause: str
    ) -> tuple[KnownState, Caused | None]:
        fingerprint = self._definition.fingerprint
        while True:
            base = known.head.base
            found = await histories.read(HistoryRequest(key, base, PAGE, cause, fingerprint))
            if found.is_truncated:
                raise _Truncated
            state, offset = known.state, known.offset
            if found.snapshot is not None:
                decoded = self._state_type.decode(found.snapshot.data)
                if decoded is None:
                    self._counters.snapshots_useless += 1
                    fingerprint = ""  # it cannot be used: read the events instead
                    continue
                self._counters.snapshots_used += 1
                state, base, offset = decoded.state, found.snapshot.base, found.snapshot.offset
            state = self._fold_events(id, state, found.events)
            if found.events:
                last = found.events[-1]
                base, offset = Base(last.version, last.record.id), last.offset
            if base.version >= found.head.base.version:
                return KnownState(state, found.head, found.partition, offset), found.caused
            known = KnownState(state, EMPTY._replace(base=base), found.partition, offset)
            fingerprint = ""

    def _fold_events(self, id: str, state: Any, events: Sequence[StoredEvent]) -> Any:
        evolve, decode = self._evolve, self._codec.decode
        decoded_at_once = self._decode_at_once(events)
        if decoded_at_once is not None:
            return reduce(evolve, decoded_at_once, state)
        for stored in events:
            try:
                decoded = decode(stored.record.value)
            except DecodeError as error:
                raise self._stopped(id, stored.version, error) from error
            for event in decoded:
                state = evolve(state, event)
        return state

    def _decode_at_once(self, events: Sequence[StoredEvent]) -> Sequence[Any] | None:
        """All of these events, if they can be decoded without looking at each; else None."""
        values = [stored.record.value for stored in events]
        if not values:
            return values
        largest = -1 if None in values else max(map(len, values))  # type: ignore[arg-type]
        decode = self._codec.fast_decoder(values, largest)
        if decode is None:
            return None
        try:
            return [decode(value) for value in values]
        except Exception:  # which one it is, and why, is found when they are looked at one by one
            return None

    def _stopped(self, id: str, version: int, error: DecodeError) -> Undecodable:
        found = Undecodable(self._name, id, version, str(error))
        is_new = id not in self._stopped_here
        if is_new and len(self._stopped_here) >= MAX_STOPPED:
            return found
        self._stopped_here[id] = StoppedAggregate(id, version, str(error))
        if is_new:
            logger.error("%s", found)
            if len(self._stopped_here) == MAX_STOPPED:
                logger.error("%s: no more than %d such are told", self._name, MAX_STOPPED)
        return found

    async def load(self, id: str, at: int | datetime | None) -> Loaded[Any]:
        """See :meth:`Aggregate.load`."""
        try:
            return await self._load(id, at)
        except LogError:
            self._counters.failures += 1
            raise

    async def _load(self, id: str, at: int | datetime | None) -> Loaded[Any]:
        histories, key = self._open, self._key(id)
        if at is None:
            known, _ = await self._catch_up(histories, id, key, self._cache.get(id), "")
            return Loaded(known.state, known.head.base.version, known.head.is_final)
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise InvalidValue(f"at={at!r} has no time zone: say datetime.now(timezone.utc)")
            moment = at
            known = await self._fold_while(
                histories, id, key, lambda each: utc_from_seconds(each.time) <= moment
            )
        else:
            known = await self._fold_until(histories, id, key, at)
        return Loaded(known.state, known.head.base.version, known.head.is_final)

    async def _fold_until(
        self, histories: Histories, id: str, key: bytes, version: int
    ) -> KnownState:
        """The state at a version.

        :raises InvalidValue: there is none.
        """
        known = await self._fold_while(histories, id, key, lambda each: each.version <= version)
        if known.head.base.version != version:
            raise InvalidValue(
                f"{self._name} {id!r} has {known.head.base.version} versions, and none is {version}"
            )
        return known

    async def _fold_while(
        self,
        histories: Histories,
        id: str,
        key: bytes,
        wanted: Callable[[StoredEvent], bool],
    ) -> KnownState:
        """The state after the first events, as long as they are wanted."""
        known = KnownState(self._state_type.initial, EMPTY, -1, -1)
        while True:
            found = await histories.read(HistoryRequest(key, known.head.base, PAGE))
            if found.is_truncated:
                raise self._truncated(id, known)
            chosen = [each for each in found.events if wanted(each)]
            if chosen:
                last = chosen[-1]
                state = self._fold_events(id, known.state, chosen)
                head = EMPTY._replace(base=Base(last.version, last.record.id))
                known = KnownState(state, head, found.partition, last.offset)
            if known.head.base.version == found.head.base.version:
                return known._replace(head=found.head)
            if len(chosen) < len(found.events) or not found.events:
                return known

    async def read(
        self, id: str, start: int
    ) -> AsyncIterator[tuple[StoredEvent, Sequence[Any], int]]:
        """The events behind a version, each decoded, and its partition."""
        histories, key = self._open, self._key(id)
        after = Base()
        while True:
            found = await histories.read(HistoryRequest(key, after, PAGE))
            if found.is_truncated:
                raise HistoryTruncated(f"{self._name} {id!r}: its events changed while being read")
            for stored in found.events:
                if stored.version > start:
                    try:
                        decoded = self._codec.decode(stored.record.value)
                    except DecodeError as error:
                        raise self._stopped(id, stored.version, error) from error
                    yield stored, decoded, found.partition
            if not _has_more(found):
                return
            after = Base(found.events[-1].version, found.events[-1].record.id)


class HistoryTruncatedSignal(Exception):
    """The history does not have what is known of it."""


class _Truncated(Exception):
    """The history does not have what is known of it."""


def _has_more(found: History) -> bool:
    return bool(found.events) and found.events[-1].version < found.head.base.version


def events_of(result: Any) -> Sequence[Any]:
    """What a decision returned, as a sequence."""
    if result is None:
        return ()
    if isinstance(result, (list, tuple)):
        return result
    return (result,)
