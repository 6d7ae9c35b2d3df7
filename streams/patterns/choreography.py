"""Sagas without an orchestrator: each step listens to events and answers with one.

A step is a durable subscriber of a bus: it receives an event, does its work, and publishes that it
succeeded or failed; what happens next is up to the subscribers of that event. The saga's ID
travels with every event as ``ce_correlationid``, its cause's ID as ``ce_causationid``; an event's
data is plain data, so subscribers that know nothing of sagas see ordinary events.

Over a log a step is at-least-once. Its answer's ID is derived from the event's ID and the step's
name, on success and failure alike: a step that is run again after a crash answers under the same
ID, and of two answers the first counts, at every subscriber that remembers IDs.

A :class:`SagaTracker` watches a bus and knows which sagas are open, done, failed and stuck.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Self, Unpack, cast, overload
from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec.structs import force_setattr
from uuid_utils import uuid7

from stream_codecs import EncodeError
from streams.callables import callable_name
from streams.clock import SYSTEM
from streams.config import Retry
from streams.errors import (
    ConfigError,
    HandlerTimeout,
    InvalidValue,
    Reject,
    find_code_too_old,
    find_config_error,
)
from streams.log.names import to_valid_name
from streams.message import CORRELATION
from streams.numbers import is_int
from streams.patterns.arguments import NOT_GIVEN, check_seconds
from streams.patterns.bus import (
    WILDCARD,
    DurableOptions,
    Event,
    EventBus,
    Subscription,
    Trie,
    check_event,
    check_handler,
    check_pattern,
    check_topic,
)
from streams.patterns.clock_waits import Interrupted, interrupt_after, sleep_until
from streams.text import error_text, get_logger
from streams.topic_reader import OffsetSpec

__all__ = ["ChoreographySaga", "SagaEvent", "SagaState", "SagaTracker", "create_handler"]

logger = get_logger("streams.choreography")

STEP_HEADER = "saga_step"
STATUS_HEADER = "saga_status"
ERROR_HEADER = "saga_error"
"""The headers of a saga's events, beside ``ce_correlationid`` and ``ce_causationid``."""

STARTED_TOPIC = "saga.started"
"""The default topic of the event that starts a saga."""

MAX_ERROR_LENGTH = 1_000
"""The longest error text in the header, in characters."""

MAX_GROUP_LENGTH = 100
"""The longest name of a group that is made from topics, in characters."""


class SagaEvent(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An event as a step of a saga sees it.

    :param saga_id: which saga it belongs to.
    :param step_name: the step that published it; the event's topic if no step did.
    :param status: how that step ended; ``"started"`` if no step published it.
    :param data: the event's data.
    :param error: for a failure, the type and text of the exception that the step raised.
    :param event: the event itself, with its headers and attempt. Built from the other fields if it
        is not given, as in a test.
    """

    saga_id: str
    step_name: str
    status: Literal["started", "succeeded", "failed"]
    data: Any
    error: str | None = None
    event: Event = None  # type: ignore[assignment]  # never None: __post_init__ makes one

    def __post_init__(self) -> None:
        given = cast("Event | None", self.event)
        if given is None:
            headers = {
                CORRELATION: self.saga_id,
                STEP_HEADER: self.step_name,
                STATUS_HEADER: self.status,
            }
            if self.error is not None:
                headers[ERROR_HEADER] = self.error
            event = Event(
                topic=self.step_name,
                data=self.data,
                id=str(uuid7()),
                key=self.saga_id,
                timestamp=datetime.now(timezone.utc),
                headers=headers,
            )
            force_setattr(self, "event", event)

    @property
    def id(self) -> str:
        """The event's ID: the same in every attempt, so it can serve as an idempotency key."""
        return self.event.id

    @classmethod
    def of(cls, event: Event) -> SagaEvent:
        """The event as its step sees it. An event without a saga starts a saga of its own."""
        check_event(event, "SagaEvent.of")
        status: Any = event.headers.get(STATUS_HEADER)
        return cls(
            saga_id=event.correlation_id or event.id,
            step_name=event.headers.get(STEP_HEADER) or event.topic,
            status=status if status in ("succeeded", "failed") else "started",
            data=event.data,
            error=event.headers.get(ERROR_HEADER),
            event=event,
        )

    def __repr__(self) -> str:
        # The data stays out: it may hold secrets that must not reach a log line.
        return f"<SagaEvent {self.saga_id!r} {self.step_name} {self.status}>"


StepFunction = Callable[[SagaEvent], Any]
"""A step's work, ``async def`` or plain: it returns the answer's data; None: the data of the event.
Raising :class:`~streams.errors.Reject` fails the step at once."""


def create_handler(
    bus: EventBus,
    listen_to: str,
    execute: StepFunction,
    on_success: str | None,
    on_failure: str | None,
    *,
    name: str | None = None,
    group: str | None = None,
    **options: Unpack[DurableOptions],
) -> Subscription:
    """Make a step: receive an event, do something, publish the outcome. Call the returned handle to
    end it.

    Over a log a step that raises is retried as ``retry=`` says (:class:`~streams.Retry`, five
    attempts by default), then it has failed. On a local bus the first attempt decides.

    :param listen_to: the topic, or on a :class:`~streams.patterns.PatternEventBus` a pattern, of
        its events.
    :param execute: its work, called with a :class:`SagaEvent`; it returns the data of
        ``on_success``, or None to pass on the event's data.
    :param on_success: the topic of its answer if it succeeds; None: it publishes nothing.
    :param on_failure: the topic of its answer if it fails, with the event's data; None: the event
        becomes a dead letter (on a local bus the error hook is called).
    :param name: the step's name; that of the function if not given.
    :param group: the step's consumer group; derived from the topics if not given. A step that keeps
        its group misses nothing when its code is renamed.
    :param options: as in :meth:`EventBus.subscribe`. A call that takes longer than ``timeout=``
        (which a local bus ignores) has failed as if it had raised.
    :raises ConfigError: any of these cannot work.
    """
    if not isinstance(bus, EventBus):
        raise ConfigError(f"create_handler({bus!r}, ...): an EventBus is needed")
    asynchronous = check_handler(execute, SagaEvent)
    for topic in (on_success, on_failure):
        if topic is not None:
            bus.check_declared(check_topic(topic))
    timeout = options.get("timeout")
    if timeout is not None:
        check_seconds("create_handler", "timeout", timeout)
        options["timeout"] = None  # the step keeps it itself, so that it can answer
    step = ChoreographyStep(
        name=_step_name(name, execute, listen_to),
        group=group or _default_group(check_pattern(listen_to), on_success),
        bus=bus, execute=execute, asynchronous=asynchronous,
        on_success=on_success, on_failure=on_failure, retry=options.get("retry", Retry()),
        timeout=None if bus.app is None else timeout,
    )  # fmt: skip

    async def handle(event: Event) -> None:
        await step.handle(event)

    handle.__name__ = step.name  # the name in statistics and log lines
    return bus.subscribe(listen_to, handle, group=step.group, **options)


@dataclass(frozen=True, slots=True)
class ChoreographyStep:
    """How a step handles an event."""

    name: str
    group: str
    bus: EventBus
    execute: StepFunction
    asynchronous: bool
    on_success: str | None
    on_failure: str | None
    retry: Retry
    timeout: float | None
    """The time limit of one call, in seconds."""

    async def handle(self, event: Event) -> None:
        """Execute the step, and publish its answer."""
        saga_event = SagaEvent.of(event)
        try:
            result = await self._run_step(saga_event)
        except Exception as error:
            if self.on_failure is None or not self._is_final(error, event):
                raise
            if find_config_error(error) is not None:
                raise  # the step cannot work with any event: it did not fail because of this one
            if self.bus.app is not None and find_code_too_old(error) is not None:
                raise  # the event waits for newer code
            logger.warning(
                "saga %s: step %s failed over %r: %r", saga_event.saga_id, self.name, event, error
            )
            await self._publish_outcome(event, self.on_failure, "failed", event.data, error)
            return
        if self.on_success is not None:
            try:
                data = event.data if result is None else result
                await self._publish_outcome(event, self.on_success, "succeeded", data)
            except EncodeError as error:
                # Its result cannot be encoded, and never will be.
                if self.on_failure is None:
                    raise Reject(f"step {self.name}: {error}") from error
                await self._publish_outcome(event, self.on_failure, "failed", event.data, error)

    async def _run_step(self, saga_event: SagaEvent) -> Any:
        """The step's result. If it ends in any other way it raises an ``Exception``, unless its
        processor cancels it."""
        app = self.bus.app
        try:
            if app is None or self.timeout is None:
                return await self._execute(saga_event)
            clock = app.clock
            end = clock.monotonic() + self.timeout
            async with interrupt_after(clock, end, lambda: sleep_until(clock, end)):
                return await self._execute(saga_event)
        except Interrupted:
            raise HandlerTimeout(f"step {self.name} ran longer than {self.timeout:g} s") from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError(f"step {self.name} was cancelled from within") from error

    async def _execute(self, saga_event: SagaEvent) -> Any:
        if self.asynchronous:
            return await self.execute(saga_event)
        result = await asyncio.to_thread(self.execute, saga_event)
        return await result if inspect.isawaitable(result) else result

    def _is_final(self, error: Exception, event: Event) -> bool:
        """Whether no further attempt follows."""
        if self.bus.app is None or isinstance(error, (Reject, *self.retry.never)):
            return True
        return event.attempt >= self.retry.attempts

    async def _publish_outcome(
        self, event: Event, topic: str, status: str, data: Any, error: Exception | None = None
    ) -> None:
        headers = {STEP_HEADER: self.name, STATUS_HEADER: status}
        if error is not None:
            failure = f"{type(error).__name__}: {error_text(error)}"[:MAX_ERROR_LENGTH]
            headers[ERROR_HEADER] = failure.encode("utf-8", "replace").decode()
        id = derive_id(event.id, self.group, self.name)
        await self.bus.publish_derived(event, topic, data, id=id, headers=headers)


def derive_id(*parts: str) -> str:
    """An ID derived from these parts; the same parts give the same ID."""
    return str(uuid5(NAMESPACE_URL, "\0".join(parts)))


def _step_name(name: str | None, execute: StepFunction, listen_to: str) -> str:
    if name is not None:
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ConfigError(f"create_handler(name={name!r}): the step's name, a non-empty str")
        return name
    function_name = callable_name(execute)
    return listen_to if function_name == "<lambda>" else function_name


def _default_group(listen_to: str, on_success: str | None) -> str:
    group_name = to_valid_name(f"{listen_to}.to.{on_success or 'end'}", "_")
    if len(group_name) > MAX_GROUP_LENGTH:
        group_name = f"{group_name[:MAX_GROUP_LENGTH]}-{derive_id(listen_to, on_success or '')[:8]}"
    return group_name


class ChoreographySaga:
    """One saga, to be started.

    :param saga_id: names it, on every event; a UUIDv7 if not given.
    """

    def __init__(self, bus: EventBus, saga_id: str | None = None) -> None:
        if not isinstance(bus, EventBus):
            raise ConfigError(f"ChoreographySaga({bus!r}, ...): an EventBus is needed")
        if saga_id is not None and not (isinstance(saga_id, str) and saga_id):
            raise InvalidValue(
                f"ChoreographySaga(..., {saga_id!r}): the saga's ID, a non-empty str"
            )
        self.bus = bus
        self.saga_id = saga_id if saga_id is not None else str(uuid7())

    @overload
    async def start(self, topic: str, data: Any = None, *, step_name: str = "start") -> str: ...

    @overload
    async def start(self, data: Any, /, *, step_name: str = "start") -> str: ...

    @overload
    async def start(self, *, data: Any = None, step_name: str = "start") -> str: ...

    async def start(
        self, topic: Any = NOT_GIVEN, data: Any = None, *, step_name: str = "start"
    ) -> str:
        """Publish the event that starts the saga; its ID.

        ``start(data)`` publishes it as ``saga.started``, ``start(topic, data)`` under that topic. A
        ``str`` as the only argument is a topic: text is given as ``start(data="text")``.

        The ID is derived from the saga's and the topic, so a saga that is started twice over a log
        runs once. On a local bus this returns when everything that follows from it has happened.

        :raises ConfigError, EncodeError, LogError: as :meth:`EventBus.publish`.
        """
        if not isinstance(topic, str):
            if topic is not NOT_GIVEN:
                if data is not None:
                    raise ConfigError(
                        f"start(topic, data): the topic is a str, such as {STARTED_TOPIC!r}, not a "
                        f"{type(topic).__name__}"
                    )
                data = topic
            topic = STARTED_TOPIC
        headers = {CORRELATION: self.saga_id, STEP_HEADER: step_name, STATUS_HEADER: "started"}
        id = derive_id(self.saga_id, "start", topic)
        return await self.bus.publish(topic, data, key=self.saga_id, id=id, headers=headers)

    create_handler = staticmethod(create_handler)

    def __repr__(self) -> str:
        return f"<ChoreographySaga {self.saga_id!r} on {self.bus!r}>"


class SagaState(msgspec.Struct, frozen=True, kw_only=True):
    """A tracker's knowledge of a saga.

    :param status: ``"open"``, ``"done"`` or ``"failed"``.
    :param step_name: the step that published last.
    :param topic: the topic of that event.
    :param started: when the saga's first event happened, as far as the tracker has seen.
    :param updated: when its last event happened.
    :param error: the error text of the last step that failed.
    """

    saga_id: str
    status: Literal["open", "done", "failed"]
    step_name: str
    topic: str
    started: datetime
    updated: datetime
    error: str | None = None


class SagaTracker:
    """Watches a bus and tells which sagas are open, done, failed, stuck.

    It is an observer: an ephemeral subscriber that, over a log, first reads the earlier events. All
    its state is in memory; a new tracker has the same after reading the log again. Any number of
    trackers may watch one bus.

    :param done: topic or topics (patterns) whose events complete a saga.
    :param failed: those whose events fail it; None: the failure of any step. An end may be
        superseded by a later one.
    :param topics: the topic or pattern that it watches.
    :param stuck_after: an open saga without an event for this many seconds is stuck.
    :param keep: how many sagas that have ended are remembered; open ones all are.
    :raises ConfigError: any of these cannot work.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        done: str | Iterable[str],
        failed: str | Iterable[str] | None = None,
        topics: str = WILDCARD,
        stuck_after: float = 300.0,
        keep: int = 10_000,
    ) -> None:
        if not isinstance(bus, EventBus):
            raise ConfigError(f"SagaTracker({bus!r}, ...): an EventBus is needed")
        check_seconds("SagaTracker", "stuck_after", stuck_after)
        if not is_int(keep, 0):
            raise ConfigError(f"SagaTracker(keep={keep!r}): must be a non-negative integer")
        self.bus = bus
        self._topics = bus.check_declared(topics)
        self._done_topics = _topic_trie(bus, "done", done)
        self._failed_topics = None if failed is None else _topic_trie(bus, "failed", failed)
        self._stuck_after = float(stuck_after)
        self._max_ended = keep
        self._open_sagas: dict[str, SagaState] = {}
        self._ended_sagas: OrderedDict[str, SagaState] = OrderedDict()
        """Ended sagas, the most recently changed last."""
        self._ended_at: dict[str, datetime] = {}
        """When ended sagas came to their end."""
        self._subscription: Subscription | None = None

    # -- starting, stopping

    async def start(self, since: OffsetSpec | None = "earliest") -> None:
        """Start watching.

        :param since: over a log, the offset to read from first (:meth:`streams.Topic.read`); None
            reads only new events.
        :raises NotRunning: the bus's app is not entered.
        """
        if self._subscription is not None:
            raise ConfigError("SagaTracker: it watches already")
        subscription = self._subscription = self.bus.add_subscription(
            self._topics, self._handle_event, None, None, {}
        )
        try:
            await subscription.ready()
            if self.bus.app is not None and since is not None:
                # Events published meanwhile are seen twice, which changes nothing.
                # An event that cannot be decoded belongs to no saga, and must not stop a tracker.
                async for event in self.bus.read(self._topics, since, errors="skip"):
                    self.see(event)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop watching; its state is kept."""
        if self._subscription is not None:
            self._subscription()
            self._subscription = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()

    async def _handle_event(self, event: Event) -> None:
        self.see(event)

    def see(self, event: Event) -> None:
        """Apply an event; it may come twice, or after a later one.

        Events of no saga are ignored: those without ``ce_correlationid``, and those of a saga of
        which no event of a step was seen.
        """
        check_event(event, "SagaTracker.see")
        saga_id = event.correlation_id
        if not saga_id:
            return
        known = self._open_sagas.get(saga_id) or self._ended_sagas.get(saga_id)
        if known is None and STATUS_HEADER not in event.headers:
            return
        saga_event = SagaEvent.of(event)
        state = SagaState(
            saga_id=saga_id, status="open", step_name=saga_event.step_name, topic=event.topic,
            started=event.timestamp, updated=event.timestamp, error=saga_event.error,
        )  # fmt: skip
        if known is not None:
            state = _merge_states(known, state)
        outcome = self._outcome_of(event.topic, saga_event.status)
        if outcome is not None and event.timestamp >= self._ended_at.get(saga_id, event.timestamp):
            self._ended_at[saga_id] = event.timestamp
            state = msgspec.structs.replace(state, status=outcome)
        self._store_state(state)

    def _outcome_of(self, topic: str, status: str) -> Literal["done", "failed"] | None:
        if self._done_topics.match(topic):
            return "done"
        if status == "failed" if self._failed_topics is None else self._failed_topics.match(topic):
            return "failed"
        return None

    def _store_state(self, state: SagaState) -> None:
        saga_id = state.saga_id
        if state.status == "open":
            self._open_sagas[saga_id] = state
            return
        self._open_sagas.pop(saga_id, None)
        self._ended_sagas[saga_id] = state
        self._ended_sagas.move_to_end(saga_id)
        while len(self._ended_sagas) > self._max_ended:
            oldest, _ = self._ended_sagas.popitem(last=False)
            self._ended_at.pop(oldest, None)

    # -- queries

    def get(self, saga_id: str) -> SagaState | None:
        """One saga; None if it is unknown, or was forgotten."""
        _check_saga_id("get", saga_id)
        return self._open_sagas.get(saga_id) or self._ended_sagas.get(saga_id)

    def open(self) -> list[SagaState]:
        """Sagas that have not ended, stuck ones included; the oldest first."""
        return _oldest_first(self._open_sagas.values())

    def stuck(self) -> list[SagaState]:
        """Those of :meth:`open` without an event for ``stuck_after`` seconds."""
        app = self.bus.app
        oldest_allowed = (SYSTEM if app is None else app.clock).time() - self._stuck_after
        return [each for each in self.open() if each.updated.timestamp() < oldest_allowed]

    def done(self) -> list[SagaState]:
        """Completed sagas."""
        return _oldest_first(each for each in self._ended_sagas.values() if each.status == "done")

    def failed(self) -> list[SagaState]:
        """Failed sagas."""
        return _oldest_first(each for each in self._ended_sagas.values() if each.status == "failed")

    def forget(self, saga_id: str) -> bool:
        """Forget a saga, such as one that was given up. False: it was unknown."""
        _check_saga_id("forget", saga_id)
        self._ended_at.pop(saga_id, None)
        found = self._open_sagas.pop(saga_id, None) or self._ended_sagas.pop(saga_id, None)
        return found is not None


def _check_saga_id(method: str, saga_id: object) -> None:
    if not isinstance(saga_id, str):
        raise InvalidValue(f"SagaTracker.{method}({saga_id!r}): the saga's ID is a str")


def _topic_trie(bus: EventBus, option: str, topics: str | Iterable[str]) -> Trie[bool]:
    if not isinstance(topics, Iterable):
        raise ConfigError(f"SagaTracker({option}={topics!r}): a topic, or several")
    found: Trie[bool] = Trie()
    for topic in (topics,) if isinstance(topics, str) else topics:
        found.add(bus.check_declared(topic), True)
    return found


def _merge_states(known: SagaState, seen: SagaState) -> SagaState:
    """Two states of one saga as one, in whatever order they were seen."""
    older, younger = sorted((known, seen), key=lambda each: each.updated)
    return SagaState(
        saga_id=known.saga_id,
        status=known.status,
        step_name=younger.step_name,
        topic=younger.topic,
        started=min(known.started, seen.started),
        updated=younger.updated,
        error=younger.error or older.error,
    )


def _oldest_first(states: Iterable[SagaState]) -> list[SagaState]:
    return sorted(states, key=lambda each: (each.started, each.saga_id))
