"""Takes decisions while an app is entered.

How a decision is appended to the history:

1. The state is loaded (:mod:`streams.eventsourcing.states`).
2. The decision is called with it. The events that it returns are encoded and folded into the next
   state, so that no event is appended that cannot be encoded or folded.
3. They are appended under the condition that the history still ends where the state does. If it
   does not, the events in between are read, and the decision is called again.

A decision that raises or returns nothing is not validated by an append. Unless its state was read
to the log's end after the call began, it is called again with one that was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, Self

from uuid_utils import uuid7

from streams.cancellation import run_in_thread
from streams.config import Retry
from streams.errors import ConfigError, LogError, NotRunning, OutcomeUnknown
from streams.eventsourcing.causes import cause_of_call, is_handling
from streams.eventsourcing.definition import (
    AggregateDefinition,
    DecisionOptions,
    Expected,
    events_of,
)
from streams.eventsourcing.errors import (
    AggregateClosed,
    DecisionRefused,
    NamedRefusal,
    WrongExpectedVersion,
)
from streams.eventsourcing.histories import HistoryClient
from streams.eventsourcing.keyed_lock import KeyedLock
from streams.eventsourcing.results import AggregateStats, Decided, Loaded
from streams.eventsourcing.state_cache import KnownState
from streams.eventsourcing.states import ReadEvent, StateLoader
from streams.health import AggregateHealth
from streams.log.event_headers import make_append
from streams.log.events import Appended, Caused, EventAppend, EventLog, Refused
from streams.message import Message, Position, Record
from streams.processing import in_block, in_transaction
from streams.retries import retry_delay

RESEND_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before an append whose outcome is unknown is sent again."""


class DecisionCounters:
    """The counters of decisions in :class:`AggregateStats`."""

    def __init__(self) -> None:
        self.decisions = self.conflicts = self.retries = self.refused = 0
        self.appends = self.events = self.caused = self.failures = 0


class AggregateRuntime:
    """An aggregate type in an app: takes decisions, and reads states and histories."""

    def __init__(self, definition: AggregateDefinition[Any, Any]) -> None:
        self._definition = definition
        self._app = definition.app
        self._name = definition.name
        self._topic = definition.topic.name
        self._histories: HistoryClient | None = None
        self._states: StateLoader | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = KeyedLock()
        self._counters = DecisionCounters()

    async def __aenter__(self) -> Self:
        definition, log = self._definition, self._app.log
        if not isinstance(log, EventLog):
            raise ConfigError(
                f"aggregate {self._name!r}: {log.capabilities.name} keeps no histories yet"
            )
        definition.codec.check_upcasts()
        self._loop = asyncio.get_running_loop()
        if self._app.open_mode != "ro":
            await run_in_thread(definition.topic.ensure, log)
        self._lock, self._counters = KeyedLock(), DecisionCounters()
        self._histories = HistoryClient(log, self._topic, definition.topic.partitions or 1)
        self._states = StateLoader(definition, self._histories)
        return self

    async def __aexit__(self, *exc: object) -> None:
        histories, self._histories = self._histories, None
        if self._states is not None and self._states.snapshots is not None:
            await self._states.snapshots.close()
        if histories is not None:
            await histories.close()

    def _require_open(self) -> tuple[HistoryClient, StateLoader]:
        """:raises NotRunning: the app is not entered.
        :raises ConfigError: this is not the app's loop.
        """
        histories, states = self._histories, self._states
        if histories is None or states is None:
            self._app.log  # noqa: B018 - says why the app is not running, where it is not
            raise NotRunning(
                f"aggregate {self._name!r}: declared after its app was entered; declare it before"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigError(
                f"aggregate {self._name!r}: used on another event loop than its app's: use "
                "app.wait(...) there"
            )
        return histories, states

    def stats(self) -> AggregateStats:
        """Current statistics (any thread)."""
        counters, states, histories = self._counters, self._states, self._histories
        if states is None:
            return AggregateStats()
        cache, snapshots = states.cache, states.snapshots
        return AggregateStats(
            decisions=counters.decisions,
            conflicts=counters.conflicts,
            retries=counters.retries,
            appends=counters.appends,
            events=counters.events,
            refused=counters.refused,
            caused=counters.caused,
            load_durations=states.load_durations.read(),
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cached=len(cache),
            cached_bytes=cache.bytes,
            snapshots=0 if snapshots is None else snapshots.written,
            snapshots_used=states.snapshots_used,
            snapshots_useless=states.snapshots_useless,
            snapshots_failed=0 if snapshots is None else snapshots.failed,
            snapshot_age=None if snapshots is None else snapshots.age,
            undecodable=len(states.stopped),
            truncated=states.truncated,
            failures=counters.failures,
            uncounted=0 if histories is None else histories.uncounted_records(),
        )

    def health(self) -> AggregateHealth:
        """The health of the aggregate type (any thread)."""
        states = self._states
        if states is None:
            return AggregateHealth(False, (), 0)
        stopped = tuple(states.stopped.copy().values())
        return AggregateHealth(self._histories is not None, stopped, states.truncated)

    # -- deciding

    async def decide(
        self, id: str, decision: Callable[[Any], Any], options: DecisionOptions
    ) -> Decided[Any, Any]:
        """See :meth:`streams.Aggregate.decide`."""
        histories, states = self._require_open()
        key = states.key_of(id)
        self._refuse_in_transaction()
        given = options.cause
        if isinstance(given, Message) or (given is None and is_handling()):
            with cause_of_call(self._name, id, given) as cause:
                if cause and histories.never_blocks:
                    # Yield once, so that tests notice concurrent calls, too.
                    await asyncio.sleep(0)
                return await self._take_turn(histories, states, id, key, decision, cause, options)
        cause = given or ""
        return await self._take_turn(histories, states, id, key, decision, cause, options)

    def _refuse_in_transaction(self) -> None:
        """:raises ConfigError: an append would wait for a transaction that is open here."""
        if in_transaction():
            raise ConfigError(
                f"aggregate {self._name!r}: deciding while message.transaction is open would wait "
                "for itself: decide before the first execute"
            )
        if in_block():
            raise ConfigError(
                f"aggregate {self._name!r}: deciding and appending are transactions of their own, "
                "and inside a block of app.transaction() would wait for its end: do it before or "
                "after"
            )

    async def _take_turn(
        self,
        histories: HistoryClient,
        states: StateLoader,
        id: str,
        key: bytes,
        decision: Callable[[Any], Any],
        cause: str,
        options: DecisionOptions,
    ) -> Decided[Any, Any]:
        """Decide, after the earlier calls on the same aggregate."""
        if options.refusals and not cause:
            raise ConfigError(
                f"aggregate {self._name!r}: with_options(refusals=...) remembers refusals by "
                f"their causes, and the call upon {id!r} has none: give with_options(cause=...)"
            )
        lock = self._lock
        self._counters.decisions += 1
        if not lock.try_acquire(id):
            await lock.wait(id)
        try:
            return await self._decide(histories, states, id, key, decision, cause, options)
        except LogError:
            self._counters.failures += 1
            raise
        finally:
            lock.release(id)

    async def _decide(
        self,
        histories: HistoryClient,
        states: StateLoader,
        id: str,
        key: bytes,
        decision: Callable[[Any], Any],
        cause: str,
        options: DecisionOptions,
    ) -> Decided[Any, Any]:
        known = states.cache.get(id)
        is_fresh = False
        attempt = 1
        while True:
            # A closed aggregate is refused without an append, so a cached state must not decide it.
            is_closed = known is not None and known.head.is_final
            if known is None or cause or attempt > 1 or (is_closed and not is_fresh):
                known, caused = await states.load(id, key, known, cause)
                is_fresh = True
                if caused is not None:
                    return await self._earlier_outcome(states, id, key, known, caused, cause)
            mismatch = self._version_mismatch(id, options.expected, known)
            failure: Exception | None = None
            events: Sequence[Any] = ()
            if mismatch is None:
                try:
                    result = decision(known.state)
                except Exception as error:
                    failure = error
                else:
                    events = events_of(self._name, result)
            if not events and not is_fresh:
                # No append will validate the cached state, so load a fresh one.
                known, _ = await states.load(id, key, known)
                is_fresh = True
                continue
            if mismatch is not None:
                raise mismatch
            is_refusal = isinstance(failure, options.refusals)
            if failure is not None and not is_refusal:
                raise failure
            if not events and not is_refusal:
                return self._make_decided(known, (), ())
            if failure is None:
                append, next_state = self._prepare_append(id, key, known, events, cause, options)
            else:
                append, next_state = self._prepare_refusal(key, known, failure, cause), known.state
            outcome = await self._append(histories, append)
            if is_refusal and isinstance(outcome, Appended):
                states.cache_state(id, known._replace(head=append.head))
                raise DecisionRefused(self._name, id, cause) from failure
            if isinstance(outcome, Appended):
                return self._record_appended(states, id, append, outcome, next_state, events)
            try:
                delay = self._retry_delay(states, id, known, outcome, options.retry, attempt)
            except (AggregateClosed, WrongExpectedVersion):
                if cause:  # another process may have appended this very decision meanwhile
                    known, caused = await states.load(id, key, known, cause)
                    if caused is not None:
                        return await self._earlier_outcome(states, id, key, known, caused, cause)
                raise
            if attempt > 1:  # on the first conflict, the faster writer is done already
                await asyncio.sleep(delay)
            attempt += 1

    def _retry_delay(
        self,
        states: StateLoader,
        id: str,
        known: KnownState,
        outcome: Refused,
        retry: Retry,
        attempt: int,
    ) -> float:
        """Seconds until a decision whose append was refused is taken again.

        :raises StreamsError: the decision is not taken again.
        """
        self._counters.refused += 1
        if outcome.reason == "truncated":
            raise states.lost(id, known)
        if outcome.reason == "final":
            states.cache.drop(id)
            raise self._definition.closed_error(id)
        self._counters.conflicts += 1
        conflict = WrongExpectedVersion(
            self._name,
            id,
            known.head.base.version,
            outcome.head.base.version,
            is_conflict=True,
        )
        delay = retry_delay(retry, attempt, conflict, random.random())
        if delay is None:
            raise conflict
        self._counters.retries += 1
        return delay

    def _version_mismatch(
        self, id: str, expected: Expected | None, known: KnownState
    ) -> WrongExpectedVersion | None:
        """The error for an aggregate that does not have the expected version; None: it has."""
        version = known.head.base.version
        if expected is None or expected == "any":
            return None
        holds = (
            version == 0
            if expected == "new"
            else version > 0
            if expected == "exists"
            else version == expected
        )
        return None if holds else WrongExpectedVersion(self._name, id, expected, version)

    def _prepare_append(
        self,
        id: str,
        key: bytes,
        known: KnownState,
        events: Sequence[Any],
        cause: str,
        options: DecisionOptions,
    ) -> tuple[EventAppend, Any]:
        """The append of a decision's events, and the state after it."""
        base = known.head.base
        is_closed = known.head.is_final
        found = self._definition.prepare_events(id, known.state, events, is_closed=is_closed)
        records = [Record(each, key, str(uuid7()), options.headers) for each in found.values]
        return make_append(key, base, records, cause=cause, is_final=found.is_final), found.state

    def _prepare_refusal(
        self, key: bytes, known: KnownState, failure: Exception, cause: str
    ) -> EventAppend:
        """The append of a refusal. Of the exception it has only the name: its text may be personal,
        and histories are kept for ever."""
        name = failure.name if isinstance(failure, NamedRefusal) else type(failure).__name__
        records = [Record(b"", key, str(uuid7()))]
        base = known.head.base
        return make_append(key, base, records, cause=cause, is_refusal=True, refused_by=name)

    async def _append(self, histories: HistoryClient, append: EventAppend) -> Appended | Refused:
        """Append, and send the same append again while its outcome is unknown."""
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
                # Nothing was written this time, but an earlier attempt may have written.
                unknown = OutcomeUnknown(f"{unknown}; when it was sent again: {error}")
        assert unknown is not None  # noqa: S101 - it was sent at least once
        raise unknown

    def _record_appended(
        self,
        states: StateLoader,
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
        states.cache_state(id, known)
        if states.snapshots is not None:
            states.snapshots.offer_appended(append.key, append.base.version, known)
        name, partition = self._topic, outcome.partition
        positions = tuple([Position(name, partition, offset) for offset in outcome.offsets])
        return self._make_decided(known, tuple(events), positions)

    def _make_decided(
        self, known: KnownState, events: Sequence[Any], positions: Sequence[Position]
    ) -> Decided[Any, Any]:
        last = None
        if known.offset >= 0:
            last = Position(self._topic, known.partition, known.offset)
        return Decided(known.state, known.head.base.version, events, positions, last)

    async def _earlier_outcome(
        self,
        states: StateLoader,
        id: str,
        key: bytes,
        known: KnownState,
        caused: Caused,
        cause: str,
    ) -> Decided[Any, Any]:
        """The outcome of an earlier decision with the same cause.

        :raises DecisionRefused: the decision was refused.
        """
        self._counters.caused += 1
        if not caused.event_count:
            raise DecisionRefused(self._name, id, cause)
        then, found = await states.load_caused(id, key, caused)
        if then.head.base.version == known.head.base.version:
            then = known
        events: list[Any] = []
        positions: list[Position] = []
        for stored, decoded, partition in found:
            events += decoded
            positions += [Position(self._topic, partition, stored.offset)] * len(decoded)
        return self._make_decided(then, tuple(events), tuple(positions))

    # -- reading

    async def load(self, id: str, at: int | datetime | None) -> Loaded[Any]:
        """See :meth:`streams.Aggregate.load`."""
        _, states = self._require_open()
        key = states.key_of(id)
        try:
            if at is None:
                known, _ = await states.load(id, key, states.cache.get(id))
            else:
                known = await states.load_at(id, key, at)
        except LogError:
            self._counters.failures += 1
            raise
        return Loaded(known.state, known.head.base.version, known.head.is_final)

    async def read(self, id: str, start: int) -> AsyncIterator[ReadEvent]:
        """See :meth:`streams.Aggregate.read`."""
        _, states = self._require_open()
        async for each in states.read(id, states.key_of(id), start):
            yield each
