"""Aggregates: decisions on a state that is folded from events, in the app's own log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self

from typing_extensions import TypeForm, TypeVar

from stream_codecs import Codec
from streams.app import Streams
from streams.config import Retry
from streams.errors import ConfigError, InvalidValue
from streams.eventsourcing.causes import follow_handlers
from streams.eventsourcing.declaration_checks import check_app, check_fold, check_refusals
from streams.eventsourcing.definition import AggregateDefinition, DecisionOptions, Expected
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.results import AggregateStats, Decided, Loaded, RecordedEvent
from streams.eventsourcing.runtime import AggregateRuntime
from streams.eventsourcing.snapshots import Snapshot
from streams.eventsourcing.state_cache import Cache
from streams.eventsourcing.state_type import StateType
from streams.eventsourcing.views.view import Fold, Keys, View
from streams.health import AggregateHealth
from streams.log.event_headers import APPEND_HEADERS, MAX_CAUSE
from streams.message import ID, Message, Position
from streams.numbers import is_int
from streams.topic import check_codec
from streams.wire import utc_from_seconds

E = TypeVar("E")
S = TypeVar("S")
Old = TypeVar("Old")
D = TypeVar("D")
P = ParamSpec("P")


class Aggregate(Generic[E, S]):
    """Aggregates of one type. Each has an ID, a history of events, and a state folded from them.

    Its events are in the topic ``{name}.events``, with the aggregate's ID as their key.

    :param event: the union of its events, each a struct with a tag.
    :param state: the type that they are folded into; frozen.
    :param evolve: returns the state after an event. It must have no side effects, and never fail.
    :param partitions: number of partitions of the event topic; it can never change.
    :param snapshot: keep states in the log, so that loading need not read every event.
    :param codec: the codec of events and snapshots; JSON by default.
    :param initial: the state before the first event; ``state()`` by default.
    :param final: an event after which nothing can be appended.
    :param cache: how many states are kept in memory.
    :raises ConfigError: a declaration that cannot work.
    """

    def __init__(
        self,
        app: Streams,
        name: str,
        event: TypeForm[E],
        state: type[S],
        evolve: Callable[[S, E], S],
        *,
        partitions: int | None = None,
        snapshot: Snapshot | None = None,
        codec: Codec | None = None,
        initial: S | None = None,
        final: type[Any] | None = None,
        cache: Cache | None = None,
    ) -> None:
        where = f"aggregate {name!r}"
        check_app(where, app)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: its name is a text, such as 'accounts'")
        check_fold(where, evolve)
        check_codec(where, codec)
        if snapshot is not None and not isinstance(snapshot, Snapshot):
            raise ConfigError(f"{where}: snapshot={snapshot!r}: give Snapshot(every=...)")
        if cache is not None and not isinstance(cache, Cache):
            raise ConfigError(f"{where}: cache={cache!r}: give Cache(count=...)")
        self.app = app
        self.name = name
        self._codec: EventCodec[E] = EventCodec(name, event, codec)
        if final is not None and final not in self._codec.event_classes:
            raise ConfigError(f"{where}: final={final!r} is not one of its events")
        state_type: StateType[S] = StateType(name, state, initial, codec)
        self._events: EventTopic[E] = EventTopic(app, name, self._codec, partitions)
        if self._events.name in app.topics:
            raise ConfigError(f"{where}: the app has a topic {self._events.name!r} already")
        self._options = DecisionOptions()
        self.definition: AggregateDefinition[E, S] = AggregateDefinition(
            app,
            name,
            self._events,
            self._codec,
            state_type,
            evolve,
            final,
            snapshot,
            "" if snapshot is None else state_type.fingerprint(snapshot.version),
            cache if cache is not None else Cache(),
        )
        self._runtime = AggregateRuntime(self.definition)
        app.add_topic(self._events)
        app.add_resource(self._runtime)
        follow_handlers(app)
        app.aggregates[name] = self

    def __repr__(self) -> str:
        return f"<Aggregate {self.name!r}>"

    # -- declaring

    @property
    def events(self) -> EventTopic[E]:
        """The topic of its events. It is read and processed like any other; only the aggregate
        writes to it."""
        return self._events

    def upcast(self, old: type[Old], /) -> Callable[[Callable[[Old], Any]], Callable[[Old], Any]]:
        """Declare what an event of an old type becomes: decorates a function that is given the old
        event and returns an event, a sequence of events, or None. They may be of old types again.

        ``upcast(bytes)`` is given the bytes of an event that cannot be decoded, and returns
        NotImplemented if it does not recognize them.

        :raises ConfigError: the type is one of the current events, has an upcast already, or its
            upcasts form a cycle.
        """

        def declare(function: Callable[[Old], Any]) -> Callable[[Old], Any]:
            self._codec.add_upcast(old, function)
            return function

        return declare

    def with_options(
        self,
        *,
        cause: str | Message[Any] | Literal[False] | None = None,
        expected: Expected | None = None,
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        refusals: type[Exception] | tuple[type[Exception], ...] | None = None,
    ) -> Self:
        """The same aggregate, with other options for the decisions taken through it.

        :param cause: identifies the reason for the decision, so that it is taken once. If events
            were appended to the aggregate for the same cause before, they are returned and nothing
            is appended. A text is used as it is, for one decision on an aggregate. A message, in a
            handler, is the cause of each of the handler's calls: when the message is handled again,
            the first call finds what the first one appended, and the second what the second did.
            Default: in a handler, its message. False: no cause.
        :param expected: the version at which the caller has seen the aggregate, as in an If-Match.
        :param headers: headers of each event.
        :param retry: how often a decision is retried on conflicts.
        :param refusals: exceptions by which a decision refuses. A refusal is stored under its
            cause: the call raises :class:`~streams.DecisionRefused`, and so does every later call
            for the same cause, whatever was appended in between. Meant for process managers, which
            compensate a step that was refused.
        :raises InvalidValue: one of these values is invalid.
        """
        options = self._options
        if cause is not None:
            options = options._replace(cause=_check_cause(self.name, cause))
        if expected is not None:
            options = options._replace(expected=_check_expected(self.name, expected))
        if headers is not None:
            options = options._replace(headers=_encode_headers(self.name, headers))
        if retry is not None:
            if not isinstance(retry, Retry):
                raise InvalidValue(f"aggregate {self.name!r}: retry={retry!r}: give a Retry(...)")
            options = options._replace(retry=retry)
        if refusals is not None:
            where = f"aggregate {self.name!r}"
            options = options._replace(refusals=check_refusals(where, refusals, InvalidValue))
        found = copy(self)
        found._options = options  # noqa: SLF001 - it is one of these
        return found

    def view(
        self,
        name: str,
        document: type[D],
        /,
        *,
        key: Callable[[E], Keys] | None = None,
        version: int = 1,
        codec: Codec | None = None,
        promote: bool = True,
    ) -> Callable[[Fold[D, E]], View[D]]:
        """Declare a view of its events: decorates the function that is given a document and an
        event and returns the next document (:class:`View`). The view's name is
        ``{aggregate}.{name}``.

        :param key: which document an event changes; by default, there is one for each aggregate.
        :raises ConfigError: a declaration that cannot work.
        """

        def declare(fold: Fold[D, E]) -> View[D]:
            return View(
                self.app,
                f"{self.name}.{name}",
                document,
                fold,
                self._events,
                key=key,
                version=version,
                codec=codec,
                promote=promote,
            )

        return declare

    # -- deciding

    async def decide(
        self,
        id: str,
        decision: Callable[Concatenate[S, P], E | Sequence[E] | None],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Decided[S, E]:
        """Take a decision on an aggregate, and append the events that it returns.

        :param decision: a function or method, called with the state and the further arguments. It
            must have no side effects, as it may be called more than once.
        :raises WrongExpectedVersion: ``expected`` does not hold, or every attempt met a conflict.
        :raises AggregateClosed: the aggregate has had its final event.
        :raises DecisionRefused: the decision raised one of ``refusals``, now or earlier for the
            same cause.
        :raises ConfigError: in a handler, where the cause has to be given explicitly.
        :raises OutcomeUnknown: the events may have been appended.
        :raises HistoryTruncated: the log has lost events that it had acknowledged.
        :raises Undecodable: one of the aggregate's events cannot be decoded.
        :raises Unavailable: the log cannot be reached; nothing was appended.
        """

        def call(state: S) -> Any:
            return decision(state, *args, **kwargs)

        return await self._runtime.decide(id, call, self._options)

    async def append(
        self, id: str, events: E | Sequence[E], *, expected: Expected
    ) -> Decided[S, E]:
        """Append events without a decision.

        :param expected: the version that the aggregate must have; or ``"any"``, ``"new"`` (it has
            no events) or ``"exists"``.
        :raises WrongExpectedVersion: the aggregate has another version.
        """
        options = self._options._replace(expected=_check_expected(self.name, expected))
        return await self._runtime.decide(id, lambda state: events, options)

    # -- reading

    async def load(self, id: str, *, at: int | datetime | None = None) -> Loaded[S]:
        """An aggregate's state and version, read to the log's end.

        :param at: the state as of this version, or of this time (with a time zone).
        :raises InvalidValue: the aggregate never had this version.
        """
        return await self._runtime.load(id, at)

    async def read(self, id: str, *, start: int = 0) -> AsyncIterator[RecordedEvent[E]]:
        """An aggregate's events after version ``start``, up to the log's end as it is when reading
        reaches it. Earlier events are read from the log, too, and skipped."""
        async for stored, events, partition in self._runtime.read(id, start):
            position = Position(self._events.name, partition, stored.offset)
            time = utc_from_seconds(stored.time)
            for index, event in enumerate(events):
                event_id = stored.record.id if len(events) == 1 else f"{stored.record.id}#{index}"
                yield RecordedEvent(event, stored.version, event_id, time, position)

    def stats(self) -> AggregateStats:
        """Current statistics."""
        return self._runtime.stats()

    def health(self) -> AggregateHealth:
        """Whether the aggregate type can be used, and which aggregates cannot."""
        return self._runtime.health()


def _check_cause(name: str, cause: Any) -> str | Message[Any] | Literal[False]:
    if cause is False or isinstance(cause, Message):
        return cause
    if not isinstance(cause, str) or not cause:
        problem = f"cause={cause!r}: a non-empty str, a message, or False"
        raise InvalidValue(f"aggregate {name!r}: {problem}")
    if len(_encode_text(name, "cause", cause)) > MAX_CAUSE:
        raise InvalidValue(f"aggregate {name!r}: a cause has at most {MAX_CAUSE} bytes")
    return cause


def _encode_headers(name: str, headers: Any) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(headers, Mapping):
        raise InvalidValue(f"aggregate {name!r}: headers={headers!r}: a mapping of str")
    found = []
    for header, content in headers.items():
        if not isinstance(header, str) or not isinstance(content, str):
            raise InvalidValue(f"aggregate {name!r}: header {header!r}: names and values are str")
        if header == ID or header in APPEND_HEADERS:
            raise InvalidValue(f"aggregate {name!r}: header {header!r} is written by the append")
        _encode_text(name, "header", header)
        found.append((header, _encode_text(name, f"header {header!r}", content)))
    return tuple(found)


def _encode_text(name: str, what: str, text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        problem = f"{what}: {text!r} holds a lone surrogate, which is no text"
        raise InvalidValue(f"aggregate {name!r}: {problem}") from None


def _check_expected(name: str, expected: Any) -> Expected:
    if not is_int(expected, 0) and expected not in ("any", "new", "exists"):
        raise InvalidValue(
            f"aggregate {name!r}: expected={expected!r}: a version from 0, 'any', 'new' or 'exists'"
        )
    return expected  # type: ignore[no-any-return]
