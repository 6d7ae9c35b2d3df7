"""Purses, and a manager that moves money from one to another.

A transfer takes from the source, else (the source is poor) from the reserve, and gives to the
target. If the target does not take it, it is tried again later by a timeout, and then given back.
"""

from __future__ import annotations

from typing import Annotated, Any, assert_never

from msgspec import Meta, Struct
from msgspec.structs import replace

from streams import (
    Aggregate,
    Cancel,
    Command,
    End,
    Flow,
    ProcessManager,
    Refused,
    Retry,
    Schedule,
    Streams,
)
from streams.eventsourcing.managers.actions import Action


class Opened(Struct, tag="opened", frozen=True):
    cents: int


class Taken(Struct, tag="taken", frozen=True):
    transfer: str
    cents: int


class Given(Struct, tag="given", frozen=True):
    transfer: str
    cents: int


class GivenBack(Struct, tag="given-back", frozen=True):
    transfer: str
    cents: int


class Noticed(Struct, tag="noticed", frozen=True):
    transfer: str


PurseEvent = Opened | Taken | Given | GivenBack | Noticed


class Poor(Exception):
    pass


class NoPurse(Exception):
    pass


class Purse(Struct, frozen=True):
    cents: int | None = None
    notices: int = 0

    def open(self, cents: int) -> Opened:
        return Opened(cents)

    def take(self, transfer: str, cents: int) -> Taken:
        if cents > (self.cents or 0):
            raise Poor
        return Taken(transfer, cents)

    def give(self, transfer: str, cents: int) -> Given:
        if self.cents is None:
            raise NoPurse
        return Given(transfer, cents)


def give_back(purse: Purse, transfer: str, cents: Annotated[int, Meta(ge=0)]) -> GivenBack:
    return GivenBack(transfer, cents)


def notice(purse: Purse, transfer: str) -> Noticed | None:
    """Of each purse, one is enough."""
    return None if purse.notices else Noticed(transfer)


def evolve(purse: Purse, event: PurseEvent) -> Purse:
    match event:
        case Opened():
            return replace(purse, cents=event.cents)
        case Taken():
            return replace(purse, cents=(purse.cents or 0) - event.cents)
        case Given() | GivenBack():
            return replace(purse, cents=(purse.cents or 0) + event.cents)
        case Noticed():
            return replace(purse, notices=purse.notices + 1)
        case _:
            assert_never(event)


class Order(Struct, tag="order", frozen=True):
    transfer: str
    source: str
    target: str
    cents: int


class TryAgain(Struct, tag="try-again", frozen=True):
    tries: int


class TooLate(Struct, tag="too-late", frozen=True):
    pass


class Transfer(Struct, frozen=True):
    id: str = ""
    source: str = ""
    target: str = ""
    cents: int = 0
    tries: int = 0


RESERVE = "reserve"
PAUSE = 0.02
DEADLINE = 3600.0
QUICK = Flow(commit=0.01, drain=0.05)


def transfer_of(event: Any) -> str | None:
    return getattr(event, "transfer", None)


class World:
    """Purses and their manager, as one process has them.

    :param source: how transfers are ordered.
    """

    def __init__(self, app: Streams, name: str, **options: Any) -> None:
        self.app = app
        self.name = name
        self.orders = app.topic(
            f"{name}-orders", Order, key="transfer", id="transfer", partitions=1
        )
        self.purses: Aggregate[PurseEvent, Purse] = Aggregate(
            app, f"{name}-purses", PurseEvent, Purse, evolve, partitions=1
        )
        options = {
            "partitions": 1,
            "timeouts": TryAgain | TooLate,
            "refusals": (Poor, NoPurse),
            "decisions": [give_back, notice],
            "retry": Retry(attempts=20, delay=0.01, cap=0.1),
            "flow": QUICK,
            **options,
        }
        self.transfers: ProcessManager[Transfer] = ProcessManager(
            app, f"{name}-transfers", Transfer, self.react, self.orders, self.purses.events,
            key=transfer_of, **options,
        )  # fmt: skip

    def react(self, transfer: Transfer, event: Any) -> tuple[Transfer, list[Action]]:
        purses = self.purses
        id, cents = transfer.id, transfer.cents
        match event:
            case Order():
                begun = Transfer(event.transfer, event.source, event.target, event.cents)
                return begun, [
                    Schedule(DEADLINE, TooLate()),
                    Command(purses, event.source, Purse.take, event.transfer, event.cents),
                ]
            case Refused(decision="take") if transfer.source != RESERVE:
                assert event.reason == "Poor"
                poor = transfer.source
                return replace(transfer, source=RESERVE), [
                    Command(purses, poor, notice, id),
                    Command(purses, RESERVE, Purse.take, id, cents),
                ]
            case Refused(decision="take"):
                return transfer, [End()]
            case Taken() | TryAgain():
                return transfer, [Command(purses, transfer.target, Purse.give, id, cents=cents)]
            case Refused(decision="give") if transfer.tries < 1:
                assert event.reason == "NoPurse"
                tries = transfer.tries + 1
                return replace(transfer, tries=tries), [Schedule(PAUSE, TryAgain(tries))]
            case Refused(decision="give") | TooLate():
                return transfer, [
                    Cancel("too-late"),
                    Command(purses, transfer.source, give_back, id, cents),
                ]
            case Given() | GivenBack():
                return transfer, [End()]
            case _:
                return transfer, []

    async def open(self, **cents: int) -> None:
        for purse, each in cents.items():
            await self.purses.decide(purse, Purse.open, each)

    async def events(self, purse: str) -> list[Any]:
        return [each.event async for each in self.purses.read(purse)]

    async def has_ended(self, transfer: str) -> bool:
        return (await self.transfers.load(transfer)).is_closed
