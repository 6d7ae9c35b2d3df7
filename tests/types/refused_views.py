"""Uses of views that type checkers refuse: ``# error`` for both, ``# error: pyright`` where only
Pyright can see it.

Read by ``test_types.py``, never run: each statement that is marked has an error, no other one has.
"""

from __future__ import annotations

from accepted_views import (
    AccountEvent,
    Balance,
    Deposited,
    Order,
    accounts,
    add,
    app,
    balances,
    count,
    customer_of,
    orders,
    refunds,
)

from streams import View


def use(coroutine: object) -> None:
    """Takes what is to be awaited, so that nobody complains that it is not."""


def narrow(balance: Balance | None, event: Deposited) -> Balance:
    return Balance()


def not_none(balance: Balance, event: AccountEvent) -> Balance:
    return balance


def other(balance: Balance | None, event: AccountEvent) -> str:
    return ""


async def later(balance: Balance | None, event: AccountEvent) -> Balance:
    return Balance()


accounts.view("a", Balance)(narrow)  # error
accounts.view("a", Balance)(not_none)  # error
accounts.view("a", Balance)(other)  # error
accounts.view("a", Balance)(later)  # error
accounts.view("a", Balance, version="2")  # error
accounts.view("a", Balance, key=lambda event: 5)  # error
View(app, "a", Balance, count)  # error
View(app, "a", Balance, count, orders, refunds)  # error
View(app, "a", Balance, add, "orders")  # error
View("memory://", "a", Balance, count, orders)  # error
View(app, "a", Balance, count, orders, key=customer_of, version=None)  # error
use(balances.get(5))  # error
use(balances.get("a", wait_for=5))  # error
use(balances.scan(5))  # error
use(orders.follow(5.0))  # error
wrong: View[Order] = balances  # error
