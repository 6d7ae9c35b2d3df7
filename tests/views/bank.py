"""Views over the bank's accounts, as the tests use them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from msgspec import Struct

from streams import Aggregate, Streams, View
from streams.eventsourcing.views.inspection import VersionInspector
from streams.eventsourcing.views.operations import ViewOperator
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    AccountEvent,
    Closed,
    Deposited,
    Opened,
    Withdrawn,
    accounts,
)


class Balance(Struct, frozen=True):
    owner: str = ""
    cents: int = 0
    moves: int = 0


class Holder(Struct, frozen=True):
    accounts: int = 0


def fold_balance(balance: Balance | None, event: AccountEvent) -> Balance | None:
    """One document an account; none once it is closed."""
    found = balance or Balance()
    match event:
        case Opened():
            return Balance(event.owner, found.cents, found.moves)
        case Deposited():
            return Balance(found.owner, found.cents + event.cents, found.moves + 1)
        case Withdrawn():
            return Balance(found.owner, found.cents - event.cents, found.moves + 1)
        case Closed():
            return None


def owner_of(event: AccountEvent) -> str | None:
    return event.owner if isinstance(event, Opened) else None


def fold_holder(holder: Holder | None, event: AccountEvent) -> Holder:
    return Holder((holder.accounts if holder else 0) + 1)


def unique() -> str:
    """The name of an aggregate that nobody else has."""
    return f"accounts-{uuid4().hex[:8]}"


async def until_nobody_runs(stage: Stage, operator: ViewOperator) -> None:
    """Nobody runs the first version of a view any more."""
    view = await operator.load()
    known = view.find_version(1)
    assert known is not None
    inspector = VersionInspector(stage.anchor, operator.name, view, known)
    while await asyncio.to_thread(inspector.members):  # noqa: ASYNC110 - the log says it
        await asyncio.sleep(0.02)


class Bank:
    """An app with accounts and their balances, as one process has them."""

    def __init__(
        self, app: Streams, name: str, fold: Any = fold_balance, *, partitions: int = 2,
        **options: Any,
    ) -> None:  # fmt: skip
        self.app = app
        self.accounts: Aggregate[Any, Account] = accounts(app, name, partitions=partitions)
        self.balances: View[Balance] = self.accounts.view("balances", Balance, **options)(fold)
