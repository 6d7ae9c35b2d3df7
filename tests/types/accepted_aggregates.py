"""Aggregates that both type checkers accept, and that can be declared.

Read by ``test_types.py``, as ``accepted.py``; ``refused_aggregates.py`` is the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, assert_never, assert_type

import pydantic
from msgspec import Struct

from streams import (
    Aggregate,
    AggregateStats,
    Cache,
    Decided,
    EventTopic,
    Loaded,
    Message,
    Position,
    RecordedEvent,
    Retry,
    Snapshot,
    Streams,
)
from streams.testing import Clock, Given, When, given, harness


class Opened(Struct, tag="opened", frozen=True):
    owner: str


class Deposited(Struct, tag="deposited", frozen=True):
    cents: int


class Withdrawn(Struct, tag="withdrawn", frozen=True):
    cents: int


class Closed(Struct, tag="closed", frozen=True):
    pass


class Foreign(Struct, tag="foreign", frozen=True):
    cents: int


class DepositedEuros(Struct, tag="deposited-euros", frozen=True):
    euros: int


AccountEvent = Opened | Deposited | Withdrawn | Closed


class Overdrawn(Exception):
    pass


class Account(Struct, frozen=True):
    owner: str = ""
    cents: int = 0

    def withdraw(self, cents: int) -> Withdrawn:
        if cents > self.cents:
            raise Overdrawn(cents)
        return Withdrawn(cents)

    def nothing(self) -> None:
        return None

    # What ``refused_aggregates.py`` tries to decide with.

    def foreign(self) -> Foreign:
        return Foreign(1)

    def generated(self, cents: int) -> Iterator[AccountEvent]:
        yield Withdrawn(cents)

    async def later(self, cents: int) -> Withdrawn:
        return Withdrawn(cents)

    @property
    def withdrawn(self) -> Withdrawn:
        return Withdrawn(1)


class Balance(Struct, frozen=True):
    cents: int = 0


def deposit(account: Account, cents: int) -> list[AccountEvent]:
    return [Deposited(cents)]


def deposit_one_type(account: Account, cents: int) -> list[Deposited]:
    return [Deposited(cents)]


def deposit_tuple(account: Account, cents: int) -> tuple[Deposited, ...]:
    return (Deposited(cents),)


def maybe(account: Account, cents: int = 3, *, note: str) -> Withdrawn | list[AccountEvent] | None:
    return None


def evolve(account: Account, event: AccountEvent) -> Account:
    match event:
        case Opened():
            return Account(event.owner, account.cents)
        case Deposited():
            return Account(account.owner, account.cents + event.cents)
        case Withdrawn():
            return Account(account.owner, account.cents - event.cents)
        case Closed():
            return account
        case _:
            assert_never(event)


app = Streams("memory://types")
accounts = Aggregate(
    app,
    "accounts",
    AccountEvent,
    Account,
    evolve,
    partitions=8,
    snapshot=Snapshot(every=100, version=1),
    final=Closed,
    cache=Cache(count=1_000),
)
assert_type(accounts.events, EventTopic[Opened | Deposited | Withdrawn | Closed])
assert_type(accounts.stats(), AggregateStats)


@accounts.upcast(DepositedEuros)
def euros(old: DepositedEuros) -> Deposited:
    return Deposited(old.euros * 100)


@accounts.upcast(bytes)
def raw(data: bytes) -> list[Deposited] | Any:
    return NotImplemented


# -- other kinds of states and events


@dataclass(frozen=True)
class Tally:
    events: int = 0


def count(tally: Tally, event: AccountEvent) -> Tally:
    return Tally(tally.events + 1)


tallies = Aggregate(app, "tallies", AccountEvent, Tally, count)


class Model(pydantic.BaseModel, frozen=True):
    cents: int


def add(model: Model, event: Deposited) -> Model:
    return Model(cents=model.cents + event.cents)


models = Aggregate(app, "models", Deposited, Model, add, initial=Model(cents=0))


def add_number(total: int, event: Deposited) -> int:
    return total + event.cents


numbers = Aggregate(app, "numbers", Deposited, int, add_number)


# -- a handler of its events, and one that decides


@app.processor(accounts.events, group="mail")
async def mail(event: AccountEvent, message: Message[AccountEvent]) -> None:
    assert_type(accounts.events.version_of(message), int)


@app.processor(accounts.events, group="bonus", batch=10)
async def bonus(events: list[AccountEvent], messages: list[Message[AccountEvent]]) -> None:
    for message in messages:
        await accounts.with_options(cause=message).decide("bonus", deposit, 1)


async def main() -> None:
    done = await accounts.decide("a-1", Account.withdraw, 500)
    assert_type(done, Decided[Account, Opened | Deposited | Withdrawn | Closed])
    assert_type(done.state, Account)
    assert_type(done.version, int)
    assert_type(done.positions, Sequence[Position])
    await accounts.decide("a", deposit, 3)
    await accounts.decide("a", deposit_one_type, cents=3)
    await accounts.decide("a", deposit_tuple, 3)
    await accounts.decide("a", maybe, note="x")
    await accounts.decide("a", maybe, 4, note="x")
    await accounts.decide("a", Account.nothing)
    await accounts.decide("a", lambda account: Withdrawn(account.cents))
    await accounts.append("a", [Deposited(1)], expected="new")
    await accounts.append("a", Deposited(1), expected=3)
    assert_type(await accounts.load("a"), Loaded[Account])
    await accounts.load("a", at=3)
    await accounts.load("a", at=datetime.now(timezone.utc))
    async for each in accounts.read("a", start=3):
        assert_type(each, RecordedEvent[Opened | Deposited | Withdrawn | Closed])
    async for message in accounts.events.read():
        assert_type(message.value, Opened | Deposited | Withdrawn | Closed)
    named = accounts.with_options(
        cause="m-1",
        expected=3,
        headers={"by": "ada"},
        retry=Retry(attempts=3),
        refusals=(Overdrawn, ValueError),
    )
    assert_type(named, Aggregate[Opened | Deposited | Withdrawn | Closed, Account])
    await named.with_options(cause=False, expected="exists", refusals=Overdrawn).decide(
        "a", Account.withdraw, cents=3
    )
    assert_type((await tallies.load("a")).state, Tally)
    assert_type((await numbers.load("a")).state, int)
    async with harness(app, clock=Clock()) as h:
        await h.settled()
        for stored in await h.messages(accounts.events):
            assert_type(stored.value, Opened | Deposited | Withdrawn | Closed)


def test_account() -> None:
    happened = given(accounts, Opened("ada"), Deposited(500))
    assert_type(happened, Given[Account, Opened | Deposited | Withdrawn | Closed])
    assert_type(happened.state, Account)
    assert_type(happened.when(deposit, 1), When[Account, Opened | Deposited | Withdrawn | Closed])
    happened.when(Account.withdraw, 700).raises(Overdrawn)
    happened.when(Account.withdraw, cents=7).then(Withdrawn(7))
    happened.when(Account.nothing).unchanged()
    given(accounts).when(deposit, 3).then(Deposited(3))
