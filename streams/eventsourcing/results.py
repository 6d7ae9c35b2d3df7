"""The results that an aggregate returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic

import msgspec
from typing_extensions import TypeVar

from streams.health import AggregateStats as AggregateStats
from streams.message import Position

E = TypeVar("E")
S = TypeVar("S")


class Decided(msgspec.Struct, Generic[S, E], frozen=True):
    """The outcome of a decision.

    As text it is a token, the position of the last event: with it, a caller can wait until a view
    has processed that event.

    :param state: the state after the events.
    :param version: the version of the last event; 0 if there is none.
    :param events: the events that were appended; empty if the decision returned none.
    :param positions: the positions of the events.
    :param last: the position of the last record that the state was folded from; None: none.
    """

    state: S
    version: int
    events: Sequence[E]
    positions: Sequence[Position]
    last: Position | None = None

    def __str__(self) -> str:
        return "" if self.last is None else str(self.last)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """An aggregate as it is now, or was at a version or a time.

    :param version: the version of the last event that the state was folded from; 0: none.
    :param is_closed: it has had its final event.
    """

    state: S
    version: int
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class RecordedEvent(Generic[E]):
    """An event of a history.

    :param version: its number in the history, from 1. Events that an upcast made of one stored
        event share its number.
    :param time: when the log appended it; UTC.
    """

    event: E
    version: int
    id: str
    time: datetime
    position: Position
