"""Process managers that both type checkers accept, and that can be declared.

Read by ``test_types.py``, as ``accepted.py``; ``refused_managers.py`` is the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_type

from accepted_aggregates import (
    Account,
    AccountEvent,
    Opened,
    Overdrawn,
    Withdrawn,
    accounts,
    app,
    deposit,
)
from msgspec import Struct

from streams import (
    Cancel,
    Command,
    End,
    Loaded,
    ManagerStats,
    ProcessManager,
    Refused,
    Retry,
    Schedule,
    Snapshot,
)


class Late(Struct, tag="late", frozen=True):
    days: int


class Customer(Struct, frozen=True):
    owner: str = ""


def welcome(
    customer: Customer, event: AccountEvent | Late | Refused
) -> tuple[Customer, Sequence[Command | Schedule | Cancel | End]]:
    match event:
        case Opened(owner):
            return Customer(owner), [
                Command(accounts, owner, deposit, 5),
                Command(accounts, owner, Account.withdraw, cents=5),
                Schedule(timedelta(days=1), Late(1)),
                Schedule(0.5, Late(1), name="soon"),
            ]
        case Withdrawn():
            return customer, [Cancel("late"), End()]
        case Refused(aggregate, id, decision, reason):
            assert_type(aggregate, str)
            assert_type((id, decision, reason), tuple[str, str, str])
            return customer, ()
        case Late(days):
            assert_type(days, int)
            return customer, [End()]
        case _:
            return customer, []


def welcome_list(customer: Customer, event: AccountEvent) -> tuple[Customer, list[Command]]:
    return customer, [Command(accounts, "a", deposit, 5)]


def owner_of(event: AccountEvent) -> str | None:
    return event.owner if isinstance(event, Opened) else None


manager = ProcessManager(
    app,
    "welcomes",
    Customer,
    welcome,
    accounts.events,
    app.topic("visits", bytes),
    key=owner_of,
    timeouts=Late,
    refusals=Overdrawn,
    decisions=[deposit],
    snapshot=Snapshot(every=100),
    partitions=2,
    retry=Retry(attempts=3),
    concurrency=4,
)
assert_type(manager, ProcessManager[Customer])
other = ProcessManager(
    app, "others", Customer, welcome_list, accounts.events,
    key=owner_of, decisions={"deposit": deposit}, refusals=(Overdrawn, KeyError), start="latest",
    initial=Customer("x"),
)  # fmt: skip


async def use() -> None:
    found = await manager.load("ada")
    assert_type(found, Loaded[Customer])
    assert_type(found.state.owner, str)
    assert_type(manager.stats(), ManagerStats)
