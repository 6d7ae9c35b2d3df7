"""Tests decisions without a log: given these events, when this is decided, then these follow.

.. code-block:: python

    given(accounts, Opened("ada"), Deposited(500)).when(Account.withdraw, 700).raises(Overdrawn)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec

from typing_extensions import TypeVar

from streams.callables import shown_function
from streams.errors import StreamsError
from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.definition import AggregateDefinition, events_of

E = TypeVar("E")
S = TypeVar("S")
P = ParamSpec("P")


class When(Generic[S, E]):
    """The outcome of a decision.

    :param state: the state after its events; unchanged if there are none.
    """

    def __init__(
        self, state: S, events: Sequence[E], error: Exception | None, description: str
    ) -> None:
        self.state = state
        self._events = tuple(events)
        self._error = error
        self._description = description

    def then(self, *events: E) -> None:
        """Assert that the decision returned these events, and no others.

        :raises AssertionError: it did not.
        """
        if self._error is not None:
            raise AssertionError(
                f"{self._description} raised {self._error!r} instead of returning {list(events)!r}"
            ) from self._error
        if self._events != events:
            raise AssertionError(
                f"{self._description} returned {list(self._events)!r} instead of {list(events)!r}"
            )

    def raises(self, error: type[BaseException]) -> None:
        """Assert that the decision raised an error of this type.

        :raises AssertionError: it did not.
        """
        if self._error is None:
            raise AssertionError(
                f"{self._description} returned {list(self._events)!r} instead of raising "
                f"{error.__name__}"
            )
        if not isinstance(self._error, error):
            raise AssertionError(
                f"{self._description} raised {self._error!r} instead of {error.__name__}"
            ) from self._error

    def unchanged(self) -> None:
        """Assert that the decision returned no event.

        :raises AssertionError: it did not.
        """
        self.then()


class Given(Generic[S, E]):
    """An aggregate with a history.

    :param state: the state that the events were folded into.
    """

    def __init__(self, definition: AggregateDefinition[E, S], events: Sequence[E]) -> None:
        self._definition = definition
        self._is_closed = False
        self.state: S = definition.state_type.initial
        for event in events:
            self.state, self._is_closed = self._after((event,))

    def when(
        self,
        decision: Callable[Concatenate[S, P], E | Sequence[E] | None],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> When[S, E]:
        """Take a decision on the state."""
        name = shown_function(decision)
        given = [repr(each) for each in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
        description = f"{name}({', '.join(given)}) upon {self.state!r}"
        try:
            decided = decision(self.state, *args, **kwargs)
        except Exception as error:
            return When(self.state, (), error, description)
        events = events_of(self._definition.name, decided)
        if not events:
            return When(self.state, (), None, description)
        try:
            state, _ = self._after(events)
        except StreamsError as error:
            return When(self.state, (), error, description)
        return When(state, events, None, description)

    def _after(self, events: Sequence[Any]) -> tuple[S, bool]:
        """The state after the events of one append, each encoded and decoded as in the log; and
        whether the aggregate is closed."""
        definition, state = self._definition, self.state
        found = definition.prepare_events("given", state, events, is_closed=self._is_closed)
        for value in found.values:
            for each in definition.codec.decode(value):
                state = definition.evolve(state, each)
        return state, found.is_final


def given(aggregate: Aggregate[E, S], *events: E) -> Given[S, E]:
    """An aggregate with these events as its history; pure, without a log.

    :raises TypeError: one is not an event of the aggregate.
    :raises EncodeError: one could not be appended.
    :raises AggregateClosed: one follows the final event.
    """
    return Given(aggregate.definition, events)
