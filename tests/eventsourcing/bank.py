"""The aggregate that the tests decide upon: accounts of a bank."""

from __future__ import annotations

from typing import Any, assert_never

from msgspec import Struct

from streams import Streams
from streams.eventsourcing import Aggregate


class Opened(Struct, tag="opened", frozen=True):
    owner: str


class Deposited(Struct, tag="deposited", frozen=True):
    cents: int


class Withdrawn(Struct, tag="withdrawn", frozen=True):
    cents: int


class Closed(Struct, tag="closed", frozen=True):
    pass


class Credited(Struct, tag="credited", frozen=True):
    """An event of tomorrow: of newer code than this."""

    cents: int


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

    def close(self) -> Closed:
        return Closed()


def deposit(account: Account, cents: int) -> list[AccountEvent]:
    return [Deposited(cents)]


def credit(account: Account, cents: int) -> Credited:
    """As newer code decides."""
    return Credited(cents)


def open_with(account: Account, owner: str, cents: int) -> list[AccountEvent]:
    return [Opened(owner), Deposited(cents)]


def nothing(account: Account) -> None:
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


def accounts(app: Streams, name: str = "accounts", **options: Any) -> Aggregate[Any, Account]:
    """Accounts, declared on an app."""
    options.setdefault("partitions", 2)
    return Aggregate(app, name, AccountEvent, Account, evolve, **options)
