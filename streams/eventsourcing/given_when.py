"""Testing decisions without a log: given what has happened, when this is decided, then that.

.. code-block:: python

    given(accounts, Opened("ada"), Deposited(500)).when(Account.withdraw, 700).raises(Overdrawn)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec

from typing_extensions import TypeVar

from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.runtime import Definition, events_of

E = TypeVar("E")
S = TypeVar("S")
P = ParamSpec("P")


class When(Generic[S, E]):
    """What a decision came to.

    :param state: after its events; as it was where there are none.
    """

    def __init__(
        self, state: S, events: Sequence[E], error: Exception | None, description: str
    ) -> None:
        self.state = state
        self._events = tuple(events)
        self._error = error
        self._description = description

    def then(self, *events: E) -> None:
        """It returned these events, and no others.

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
        """It raised an error of this type.

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
        """It returned nothing.

        :raises AssertionError: it did not.
        """
        self.then()


class Given(Generic[S, E]):
    """An aggregate to which something has happened.

    :param state: what the events were folded into.
    """

    def __init__(self, definition: Definition[E, S], events: Sequence[E]) -> None:
        self._definition = definition
        self.state: S = _fold(definition, definition.state_type.initial, events)

    def when(
        self,
        decision: Callable[Concatenate[S, P], E | Sequence[E] | None],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> When[S, E]:
        """Take a decision upon the state."""
        name = getattr(decision, "__qualname__", repr(decision))
        given = [repr(each) for each in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
        description = f"{name}({', '.join(given)}) upon {self.state!r}"
        try:
            events: Sequence[Any] = events_of(decision(self.state, *args, **kwargs))
        except Exception as error:
            return When(self.state, (), error, description)
        return When(_fold(self._definition, self.state, events), events, None, description)


def given(aggregate: Aggregate[E, S], *events: E) -> Given[S, E]:
    """An aggregate to which these events have happened; pure, without a log.

    :raises TypeError: one is no event of the aggregate.
    :raises EncodeError: one could not be appended.
    """
    return Given(aggregate.definition, events)


def _fold(definition: Definition[E, S], state: S, events: Sequence[E]) -> S:
    """The state after events, each of which is written and read back, as the log would."""
    codec = definition.codec
    for event in events:
        for each in codec.decode(codec.encode(event)):
            state = definition.evolve(state, each)
    return state
