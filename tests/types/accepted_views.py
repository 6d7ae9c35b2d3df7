"""Views that both type checkers accept, and that can be declared.

Read by ``test_types.py``, as ``accepted.py``; ``refused_views.py`` is the other half.
"""

from __future__ import annotations

from typing import assert_type

from msgspec import Struct

from streams import Aggregate, Message, Position, Streams, View


class Opened(Struct, tag="opened", frozen=True):
    owner: str


class Deposited(Struct, tag="deposited", frozen=True):
    cents: int


AccountEvent = Opened | Deposited


class Account(Struct, frozen=True):
    cents: int = 0

    def deposit(self, cents: int) -> Deposited:
        return Deposited(cents)


def evolve(account: Account, event: AccountEvent) -> Account:
    return account


class Balance(Struct, frozen=True):
    cents: int = 0


class Order(Struct, frozen=True):
    customer: str


class Refund(Struct, frozen=True):
    customer: str


app = Streams("memory://")
accounts = Aggregate(app, "accounts", AccountEvent, Account, evolve)
orders = app.topic("orders", Order)
refunds = app.topic("refunds", Refund)


@accounts.view("balances", Balance)
def balances(balance: Balance | None, event: AccountEvent) -> Balance | None:
    return balance


@accounts.view(
    "owners", Balance, key=lambda event: event.owner if isinstance(event, Opened) else None
)
def owners(balance: Balance | None, event: AccountEvent, message: Message[AccountEvent]) -> Balance:
    return Balance(message.partition)


def add(balance: Balance | None, event: Order | Refund) -> Balance:
    return balance or Balance()


def count(balance: Balance | None, event: Order) -> Balance:
    return balance or Balance()


def customer_of(event: Order | Refund) -> list[str]:
    return [event.customer]


one = View(app, "one", Balance, count, orders)
both = View(app, "both", Balance, add, orders, refunds, key=customer_of, version=2, promote=False)


async def read() -> None:
    done = await accounts.decide("a", Account.deposit, 5)
    assert_type(balances, View[Balance])
    assert_type(await balances.get("a", wait_for=done), Balance | None)
    assert_type(await owners.get("a", wait_for=str(done), timeout=1), Balance | None)
    assert_type(await both.get("a", wait_for=Position("orders", 0, 1)), Balance | None)
    assert_type(await one.get_many(["a"]), dict[str, Balance])
    assert_type(await one.scan("a", limit=5, start="a"), list[tuple[str, Balance]])
    async for document in one.watch("a"):
        assert_type(document, Balance | None)
    async for message in orders.follow():
        assert_type(message.value, Order)
    assert_type(await balances.retry("a"), bool)
    await balances.ready(timeout=1)
