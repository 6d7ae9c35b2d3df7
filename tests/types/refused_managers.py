"""Uses of process managers that type checkers refuse: ``# error`` for both.

Read by ``test_types.py``, never run: each statement that is marked has an error, no other one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accepted_aggregates import Account, AccountEvent, accounts, app, deposit
from accepted_managers import Customer, manager, owner_of, welcome

from streams import Command, End, ProcessManager, Schedule


def other_state(account: Account, event: AccountEvent) -> tuple[Account, list[End]]:
    return account, []


def no_actions(customer: Customer, event: AccountEvent) -> Customer:
    return customer


def events(customer: Customer, event: AccountEvent) -> tuple[Customer, Sequence[AccountEvent]]:
    return customer, [event]


async def later(customer: Customer, event: Any) -> tuple[Customer, list[End]]:
    return customer, []


def number_of(event: AccountEvent) -> int:
    return 1


ProcessManager(app, "m", Customer, other_state, accounts.events, key=owner_of)  # error
ProcessManager(app, "m", Customer, no_actions, accounts.events, key=owner_of)  # error
ProcessManager(app, "m", Customer, events, accounts.events, key=owner_of)  # error
ProcessManager(app, "m", Customer, later, accounts.events, key=owner_of)  # error
ProcessManager(app, "m", Customer, welcome, accounts.events, key=number_of)  # error
ProcessManager(app, "m", Customer, welcome, accounts.events)  # error
ProcessManager(app, "m", Customer, welcome, "accounts", key=owner_of)  # error
ProcessManager("m", app, Customer, welcome, accounts.events, key=owner_of)  # error
ProcessManager(app, "m", Customer, welcome, accounts.events, key=owner_of, refusals=1)  # error
ProcessManager(app, "m", Customer, welcome, accounts.events, key=owner_of, speed=1)  # error

Command(accounts, "a", deposit)  # error
Command(accounts, "a", deposit, "5")  # error
Command(accounts, "a", Account.withdraw, euros=5)  # error
Command(accounts, 5, deposit, 5)  # error
Command("accounts", "a", deposit, 5)  # error
Command(accounts, "a", welcome, 5)  # error
Schedule("soon", End())  # error
manager.load(5)  # error
