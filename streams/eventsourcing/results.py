"""What an aggregate answers."""

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
    """What a decision came to.

    As text it is a token, the position of the last event: whoever has it can wait until a view has
    seen that.

    :param state: after the events.
    :param version: of the last event; 0 where there is none.
    :param events: that were appended; none where the decision returned nothing.
    :param positions: of the events.
    :param last: the position of the last record that the state was folded from; None: of none.
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
    """An aggregate as it is, or was.

    :param version: of the last event that the state was folded from; 0 where there is none.
    :param is_closed: it has had its final event.
    """

    state: S
    version: int
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class RecordedEvent(Generic[E]):
    """An event as it stands in a history.

    :param version: its number in the history, from 1. Events that an upcast has made of one have
        the same.
    :param time: when the log took it; UTC.
    """

    event: E
    version: int
    id: str
    time: datetime
    position: Position
