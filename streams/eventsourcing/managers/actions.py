"""What a process manager's function answers with, and what comes back to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from streams.callables import shown_function
from streams.eventsourcing.aggregate import Aggregate

E = TypeVar("E")
S = TypeVar("S")
P = ParamSpec("P")


class Command:
    """A decision that is to be taken upon an aggregate, once.

    :param aggregate: as it was declared, on the manager's app.
    :param id: of the one to decide upon.
    :param decision: a method of the aggregate's state, or a function that the manager was given
        with ``decisions=``: it is stored by its name.
    :param args: for it; and ``kwargs``. They are stored as JSON, and read back as the types that
        the decision's annotations say.
    """

    __slots__ = ("aggregate", "args", "decision", "id", "kwargs")

    def __init__(
        self,
        aggregate: Aggregate[E, S],
        id: str,
        decision: Callable[Concatenate[S, P], E | Sequence[E] | None],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        self.aggregate: Aggregate[Any, Any] = aggregate
        self.id = id
        self.decision: Callable[..., Any] = decision
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs

    def _parts(self) -> tuple[Any, ...]:
        return (self.aggregate.name, self.id, self.decision, self.args, self.kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and self._parts() == other._parts()

    __hash__ = None  # type: ignore[assignment]  # its arguments may be anything

    def __repr__(self) -> str:
        name = shown_function(self.decision)
        given = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        return f"Command({', '.join([self.aggregate.name, repr(self.id), name, *given])})"


class Schedule(msgspec.Struct, frozen=True):
    """A timeout: an event that comes to the instance later, unless it is cancelled before.

    :param after: so many seconds, or a timedelta.
    :param event: one of the manager's ``timeouts=``.
    :param name: by which it is cancelled, or replaced by another of that name; the event's tag if
        not given.
    """

    after: float | timedelta
    event: Any
    name: str = ""


class Cancel(msgspec.Struct, frozen=True):
    """The timeout of that name does not come any more. Harmless where there is none."""

    name: str


class End(msgspec.Struct, frozen=True):
    """The instance has ended: its timeouts are cancelled, and whatever comes later for its key is
    passed over. Commands beside it are carried out."""


Action = Command | Schedule | Cancel | End


class Refused(msgspec.Struct, frozen=True):
    """An event: a command was refused, for ever.

    :param aggregate: the name of the one that was to decide, and its ID.
    :param decision: its name, as it is stored.
    :param reason: the name of the exception, one of the manager's ``refusals=``; or
        ``"AggregateClosed"``.
    """

    aggregate: str
    id: str
    decision: str
    reason: str
