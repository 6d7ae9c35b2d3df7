"""Old and new code side by side: new tags, an upcast and a new version of a view, under load."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, Streams, View
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, Closed, Deposited, Opened, Withdrawn, deposit
from tests.views.bank import Balance, Bank, unique

pytestmark = pytest.mark.anyio


class Credited(Struct, tag="credited", frozen=True):
    """What was ``Deposited``."""

    cents: int


class Total(Struct, frozen=True):
    """What version 2 of the balances keeps."""

    tenths: int = 0


NewEvent = Opened | Credited | Withdrawn | Closed


def cents_of(event: NewEvent) -> int:
    return event.cents if isinstance(event, Credited) else 0


def evolve(account: Account, event: NewEvent) -> Account:
    return Account(account.owner, account.cents + cents_of(event))


def credit(account: Account, cents: int) -> Credited:
    return Credited(cents)


def fold_balance(balance: Balance | None, event: NewEvent) -> Balance:
    found = balance or Balance()
    return Balance(found.owner, found.cents + cents_of(event), found.moves + 1)


def fold_total(total: Total | None, event: NewEvent) -> Total:
    return Total((total or Total()).tenths + 10 * cents_of(event))


class NewBank:
    """The bank as tomorrow's code has it."""

    def __init__(self, app: Streams, name: str) -> None:
        self.app = app
        self.accounts: Aggregate[Any, Account] = Aggregate(
            app, name, NewEvent, Account, evolve, partitions=2
        )
        self.accounts.upcast(Deposited)(lambda old: Credited(old.cents))
        self.first = self.accounts.view("balances", Balance)(fold_balance)
        self.second: View[Total] = self.accounts.view("balances", Total, version=2)(fold_total)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(60.0, marks=pytest.mark.faults)])
async def test_old_and_new_code_side_by_side(stage: Stage, seconds: float) -> None:
    """No read fails and none steps back; nothing is left out by either version of the view."""
    name = unique()
    old = Bank(stage.app(), name)
    new = NewBank(stage.app(), name)
    async with AsyncExitStack() as running:
        await running.enter_async_context(old.app)
        for number in range(30):
            done = await old.accounts.decide("old", deposit, number)
        await old.balances.get("old", wait_for=done)
        async with new.app:
            served, seen_by_old, seen_by_new = set[type](), 0, 0
            reads, began = 0, time.monotonic()
            while Total not in served or reads < 60 or time.monotonic() < began + seconds:
                reads += 1
                done = await old.accounts.decide("old", deposit, 1)
                # New tags, in both partitions, which old code cannot read.
                for key in ("new-1", "new-2", "new-3"):
                    credited = await new.accounts.decide(key, credit, 1)
                by_old = await old.balances.get("old")
                assert by_old is not None
                assert by_old.cents >= seen_by_old
                found: Any = await new.second.get("old")
                cents = found.cents if isinstance(found, Balance) else found.tenths // 10
                assert cents >= seen_by_new
                seen_by_old, seen_by_new = by_old.cents, cents
                served.add(type(found))
            assert await new.second.get("old", wait_for=done) == Total(10 * done.state.cents)
            found = await new.second.get("new-3", wait_for=credited)
            assert found == Total(10 * credited.state.cents)
            # The old code goes; the new goes on with the old version where that waited.
            await running.aclose()

            def first_has_all() -> bool:
                read = new.first._version.read
                documents = [read(new.app.log, key).document for key in (b"old", b"new-3")]
                return documents == [
                    Balance("", done.state.cents, done.version),
                    Balance("", credited.state.cents, credited.version),
                ]

            await stage.until(first_has_all, "version 1 has folded everything")
            assert {each.waiting for each in new.app.health().views.values()} == {()}


async def test_a_rebuild_has_no_effects(stage: Stage) -> None:
    """Mails are sent by a processor in a group without a version: a new version sends none."""
    name, mails = unique(), list[Any]()

    def bank(with_second: bool) -> Bank:
        found = Bank(stage.app(), name)
        if with_second:
            found.accounts.view("balances", Total, version=2)(
                lambda total, event: Total((total or Total()).tenths + 1)
            )

        @found.app.processor(found.accounts.events, group=f"{name}-mails")
        async def send(event: Any) -> None:
            mails.append(event)

        return found

    before = bank(with_second=False)
    async with before.app:
        for number in range(40):
            await before.accounts.decide("a", deposit, number)
        await stage.until(lambda: len(mails) == 40, "all mails are sent")
        await before.balances.ready()
    after = bank(with_second=True)
    second: Any = after.app.views[f"{after.balances.name}.v2"]
    async with after.app:
        while not isinstance(await second.get("a"), Total):  # noqa: ASYNC110 - the log says it
            await asyncio.sleep(0.005)
        done = await after.accounts.decide("a", deposit, 40)
        assert await second.get("a", wait_for=done) == Total(41)
        await stage.until(lambda: len(mails) >= 41, "the last mail is sent")
        assert [each.cents for each in mails] == list(range(41))
