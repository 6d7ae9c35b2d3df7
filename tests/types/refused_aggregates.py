"""Uses of aggregates that type checkers refuse: ``# error`` for both, ``# error: pyright`` where
only Pyright can see it.

Read by ``test_types.py``, never run: each statement that is marked has an error, no other one has.
"""

from __future__ import annotations

from accepted_aggregates import (
    Account,
    AccountEvent,
    Balance,
    Closed,
    Deposited,
    DepositedEuros,
    Foreign,
    Model,
    Opened,
    Overdrawn,
    Withdrawn,
    accounts,
    app,
    deposit,
    evolve,
    maybe,
)

from streams import Aggregate, Message
from streams.testing import given, harness


def use(coroutine: object) -> None:
    """Takes what is to be awaited, so that nobody complains that it is not."""


# -- declaring


def evolve_narrow(account: Account, event: Deposited) -> Account:
    return account


def evolve_other(balance: Balance, event: AccountEvent) -> Balance:
    return balance


def evolve_none(account: Account, event: AccountEvent) -> None: ...


async def evolve_later(account: Account, event: AccountEvent) -> Account:
    return account


Aggregate(app, "b", AccountEvent, Account, evolve_narrow)  # error
Aggregate(app, "b", AccountEvent, Account, evolve_other)  # error
Aggregate(app, "b", AccountEvent, Account, evolve_none)  # error
Aggregate(app, "b", AccountEvent, Account, evolve_later)  # error
Aggregate(app, "b", AccountEvent, Account)  # error
Aggregate("memory://", "b", AccountEvent, Account, evolve)  # error
Aggregate(app, "b", AccountEvent, Account, evolve, snapshot=100)  # error
Aggregate(app, "b", AccountEvent, Account, evolve, initial=Balance())  # error
Aggregate(app, "b", AccountEvent, Account, evolve, partitions="8")  # error
Aggregate(app, "b", AccountEvent, Account, evolve, final=Closed())  # error


@accounts.upcast(DepositedEuros)  # error
def euros(old: Deposited) -> Deposited:
    return old


# -- deciding

use(accounts.decide("a", Account.withdraw))  # error
use(accounts.decide("a", Account.withdraw, "5"))  # error
use(accounts.decide("a", Account.withdraw, 5, 6))  # error
use(accounts.decide("a", Account.withdraw, euros=5))  # error
use(accounts.decide("a", Account.foreign))  # error
use(accounts.decide("a", Account.generated, 5))  # error
use(accounts.decide("a", Account.later, 5))  # error
use(accounts.decide("a", Account.withdrawn))  # error: pyright
use(accounts.decide("a", Account().withdraw, 5))  # error
use(accounts.decide("a", maybe))  # error
use(accounts.decide("a", lambda account: Foreign(1)))  # error
use(accounts.decide(3, deposit, 3))  # error
use(accounts.append("a", [Foreign(1)], expected=1))  # error
use(accounts.append("a", [Deposited(1)], expected="never"))  # error
use(accounts.append("a", [Deposited(1)]))  # error
accounts.with_options(cause=True)  # error
accounts.with_options(cause=3)  # error
accounts.with_options(expected="never")  # error
accounts.with_options(headers={"by": 3})  # error
accounts.with_options(refusals=Overdrawn())  # error
accounts.with_options(refusals=[Overdrawn])  # error

# -- reading

use(accounts.load("a", at="yesterday"))  # error
accounts.read("a", start="new")  # error
accounts.events.version_of(3)  # error


@app.processor(accounts.events, group="g")
async def narrower(event: Opened) -> None: ...  # error


@app.processor(accounts.events, group="g")
async def of_messages(event: AccountEvent, message: Message[Opened]) -> None: ...  # error


# -- testing

given(accounts, Foreign(1))  # error
given(accounts).when(Account.withdraw)  # error
given(accounts).when(Account.withdraw, "5")  # error
given(accounts).when(Account.withdraw, 5).then(Foreign(1))  # error
given(accounts).when(Account.withdraw, 5).raises(Overdrawn(5))  # error
given(accounts).when(Account.foreign)  # error
given(Model(cents=1)).when(Account.withdraw, 5)  # error
harness(accounts)  # error
given(accounts).when(Account.withdraw, 5).then(Withdrawn(5))
