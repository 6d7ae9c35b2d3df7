"""An aggregate type as it was declared, and the checks of its decisions' events; without a log."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple

from typing_extensions import TypeVar

from streams.app import Streams
from streams.config import Retry
from streams.errors import InvalidValue
from streams.eventsourcing.causes import Cause
from streams.eventsourcing.errors import AggregateClosed
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.snapshots import Snapshot
from streams.eventsourcing.state_cache import Cache
from streams.eventsourcing.state_type import StateType
from streams.log.event_headers import MAX_COUNT

E = TypeVar("E")
S = TypeVar("S")

Expected = int | Literal["any", "new", "exists"]
"""The version that an aggregate must have: this number, any, none yet (``"new"``), or at least 1
(``"exists"``)."""

CONFLICT_RETRY = Retry(attempts=20, delay=0.002, cap=0.25)
"""How a decision is retried on a conflict, by default."""


@dataclass(frozen=True, slots=True)
class AggregateDefinition(Generic[E, S]):
    """An aggregate type, as it was declared.

    :param fingerprint: identifies the snapshots that can be used; empty: none can.
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

    def closed_error(self, id: str) -> AggregateClosed:
        """The error for an append after the final event."""
        return AggregateClosed(f"{self.name} {id!r} has had its final event")

    def prepare_events(
        self, id: str, state: S, events: Sequence[Any], *, is_closed: bool
    ) -> PreparedEvents[S]:
        """Encode a decision's events and fold them into the state, so that no event is appended
        that cannot be encoded or folded.

        :param is_closed: the aggregate has had its final event.
        :raises AggregateClosed: ``is_closed`` is true.
        :raises InvalidValue: there are too many events for one append, or one follows the final
            event.
        :raises TypeError: one is not an event, or ``evolve`` does not return a state for it.
        :raises EncodeError: one does not fit its type.
        """
        if len(events) > MAX_COUNT:
            raise InvalidValue(
                f"aggregate {self.name!r}: a decision upon {id!r} returned {len(events)} events; "
                f"at most {MAX_COUNT} are possible"
            )
        if is_closed:
            raise self.closed_error(id)
        encode, evolve, final = self.codec.encode, self.evolve, self.final
        holds = self.state_type.holds
        values = []
        for event in events:
            values.append(encode(event))
            state = evolve(state, event)
            if not holds(state):
                raise TypeError(
                    f"aggregate {self.name!r}: evolve returned {_format_state(state)} for "
                    f"{event!r}: it has to return the state in every case"
                )
        if final is None:
            return PreparedEvents(values, state, is_final=False)
        if any(isinstance(each, final) for each in events[:-1]):
            raise InvalidValue(
                f"aggregate {self.name!r}: a decision upon {id!r} returned events after its "
                "final one"
            )
        return PreparedEvents(values, state, is_final=isinstance(events[-1], final))


class PreparedEvents(NamedTuple, Generic[S]):
    """Events that can be appended.

    :param values: the encoded events.
    :param state: the state after them.
    :param is_final: the last one is the aggregate's final event.
    """

    values: Sequence[bytes]
    state: S
    is_final: bool


class DecisionOptions(NamedTuple):
    """The options that :meth:`~streams.eventsourcing.aggregate.Aggregate.with_options` sets."""

    cause: Cause = None
    """None: the message that is being handled, if there is one."""
    expected: Expected | None = None
    refusals: tuple[type[Exception], ...] = ()
    """Exceptions that a decision raises to refuse; the refusal is stored under its cause."""
    headers: tuple[tuple[str, bytes], ...] = ()
    retry: Retry = CONFLICT_RETRY


def _format_state(state: Any) -> str:
    return "None" if state is None else f"a {type(state).__name__}"


def events_of(aggregate: str, result: Any) -> Sequence[Any]:
    """The result of a decision, as a sequence of events.

    :raises TypeError: the decision was an async function.
    """
    if result is None:
        return ()
    if isinstance(result, (list, tuple)):
        return result
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"aggregate {aggregate!r}: a decision is a plain function, as it may be called more "
            "than once, and this one is async: await what it needs first, and give it the result"
        )
    if isinstance(result, Sequence) and not isinstance(result, (str, bytes, bytearray)):
        return result
    return (result,)
