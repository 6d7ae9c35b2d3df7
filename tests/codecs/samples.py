"""Types that the tests encode, decode and take apart: one of every kind a user may declare."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import msgspec
from typing_extensions import TypedDict


class Departed(msgspec.Struct, tag="departed", frozen=True):
    tail_number: str | None
    carrier: str
    delay_minutes: int


class Cancelled(msgspec.Struct, tag="cancelled", frozen=True):
    tail_number: str | None
    carrier: str


class Diverted(msgspec.Struct, tag="diverted", frozen=True):
    tail_number: str | None
    carrier: str


class Item(msgspec.Struct):
    name: str
    price: float


class Status(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class Order(msgspec.Struct):
    id: uuid.UUID
    items: list[Item]
    status: Status
    prices: dict[str, float] = {}
    note: str | None = None


class Node(msgspec.Struct):
    value: int = 0
    next: Node | None = None
    children: list[Node] = []


class Everything(msgspec.Struct):
    """A field of every kind whose values the predicate judges by their classes, and some others."""

    flag: bool
    number: int
    ratio: float
    text: str
    blob: bytes
    moment: datetime.datetime
    day: datetime.date
    id: uuid.UUID
    amount: decimal.Decimal
    status: Status
    mode: Literal["fast", "slow", 3]
    maybe: int | str | None
    item: Item | None
    items: list[Item]
    names: list[str | None]
    ratios: dict[str, float]


class Refined(msgspec.Struct):
    """What only the decoder can judge."""

    short: Annotated[str, msgspec.Meta(max_length=3)]
    anything: Any


class Bounded(msgspec.Struct):
    """Constraints: the class of a value says nothing."""

    count: Annotated[int, msgspec.Meta(ge=0)]


class Access(enum.IntFlag):
    """Combinations are members too, made as needed."""

    READ = 1
    WRITE = 2


class Checked(msgspec.Struct):
    """A type with code of its own, which may say what it was given."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"s3cret {self.number}")
        if self.number == 0:
            raise KeyError("s3cret")


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    number: int


class Left(msgspec.Struct, tag=1, array_like=True):
    number: int


class Right(msgspec.Struct, tag=2, array_like=True):
    number: int


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Pair(NamedTuple):
    name: str
    number: int


class Row(TypedDict):
    name: str
    number: NotRequired[int]


class Foreign:
    """A class of another library."""

    x: int


def nested_json(levels: int, closed: bool = True) -> bytes:
    return b"[" * levels + (b"]" * levels if closed else b"")


def nested_msgpack(levels: int, closed: bool = True) -> bytes:
    return b"\x91" * (levels - 1) + (b"\x90" if closed else b"\x91")
