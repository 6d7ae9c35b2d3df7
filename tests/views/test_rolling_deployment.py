"""Old and new code side by side: new tags, an upcast and a new version of a view, under load, with
a processor and a process manager in both."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, Command, Message, ProcessManager, Streams, View
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    Closed,
    Credited,
    Deposited,
    Opened,
    Withdrawn,
    credit,
    deposit,
)
from tests.views.bank import Balance, Bank, unique

pytestmark = pytest.mark.anyio


class Total(Struct, frozen=True):
    """What version 2 of the balances keeps."""

    tenths: int = 0


NewEvent = Opened | Credited | Withdrawn | Closed
"""``Credited`` is what was ``Deposited``."""


def cents_of(event: NewEvent) -> int:
    return event.cents if isinstance(event, Credited) else 0


def evolve(account: Account, event: NewEvent) -> Account:
    return Account(account.owner, account.cents + cents_of(event))


def fold_balance(balance: Balance | None, event: NewEvent) -> Balance:
    found = balance or Balance()
    return Balance(found.owner, found.cents + cents_of(event), found.moves + 1)


def fold_total(total: Total | None, event: NewEvent) -> Total:
    return Total((total or Total()).tenths + 10 * cents_of(event))


class Added(Struct, tag="added", frozen=True):
    cents: int


class Tally(Struct, frozen=True):
    def add(self, cents: int) -> Added:
        return Added(cents)


class Nothing(Struct, frozen=True):
    """What an instance of the manager has to know."""


PARTITIONS = 3
"""Of the events. A member of two has at least one of them, whatever else its group reads."""

NEW_KEYS = ("new-1", "new-4", "new-6")
"""One in each of the partitions, on every log."""

PROMOTED_WITHIN = 500
"""Rounds in which events come. A machine with much else to do may fold more slowly than they come;
then no more come until version 2 is promoted."""

TALLIED = 5
"""The manager takes the amounts that are divisible by this."""


class Followers:
    """A processor and a process manager over a bank's events, the same in old code and new.

    :param handled: what the processors were given: the versions of each key, in order.
    """

    def __init__(
        self, app: Streams, accounts: Aggregate[Any, Account], handled: dict[str, list[int]]
    ) -> None:
        self.app = app
        self.tallies: Aggregate[Added, Tally] = Aggregate(
            app, f"{accounts.name}-tallies", Added, Tally, lambda tally, event: tally, partitions=2
        )

        @app.processor(accounts.events, group=f"{accounts.name}-mails")
        async def send(event: Any, message: Message[Any]) -> None:
            handled[message.key or ""].append(accounts.events.version_of(message))

        def react(state: Nothing, event: Any) -> tuple[Nothing, list[Any]]:
            return state, [Command(self.tallies, str(event.cents), Tally.add, event.cents)]

        def key_of(event: Any) -> str | None:
            return None if event.cents % TALLIED else str(event.cents)

        self.manager: ProcessManager[Nothing] = ProcessManager(
            app, f"{accounts.name}-tally", Nothing, react, accounts.events, key=key_of, partitions=2
        )

    def held_back(self) -> int:
        return sum(each.held_back for each in self.app.health().processors.values())

    def dead_letters(self) -> int:
        return sum(each.dead_letters for each in self.app.stats().processors.values())


class NewBank:
    """The bank as tomorrow's code has it."""

    def __init__(self, app: Streams, name: str) -> None:
        self.app = app
        self.accounts: Aggregate[Any, Account] = Aggregate(
            app, name, NewEvent, Account, evolve, partitions=PARTITIONS
        )
        self.accounts.upcast(Deposited)(lambda old: Credited(old.cents))
        self.first = self.accounts.view("balances", Balance)(fold_balance)
        self.second: View[Total] = self.accounts.view("balances", Total, version=2)(fold_total)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(60.0, marks=pytest.mark.faults)])
async def test_old_and_new_code_side_by_side(stage: Stage, seconds: float) -> None:
    """No read fails and none steps back; nothing is left out by either version of the view. What
    old code cannot read waits for new code: nothing is dead, the processor gets each key's events
    in order, and each command of the manager has its effect once."""
    name, handled = unique(), defaultdict[str, list[int]](list)
    old = Bank(stage.app(), name, partitions=PARTITIONS)
    new = NewBank(stage.app(), name)
    old_followers = Followers(old.app, old.accounts, handled)
    new_followers = Followers(new.app, new.accounts, handled)
    async with AsyncExitStack() as running:
        await running.enter_async_context(old.app)
        for number in range(30):
            done = await old.accounts.decide("old", deposit, number)
        await old.balances.get("old", wait_for=done)
        async with new.app:
            served, seen_by_old, seen_by_new = set[type](), 0, 0
            reads, began = 0, time.monotonic()
            while Total not in served or reads < 60 or time.monotonic() < began + seconds:
                if reads < PROMOTED_WITHIN or Total in served:
                    reads += 1
                    done = await old.accounts.decide("old", deposit, 29 + reads)
                    # New tags, in all partitions, which old code cannot read.
                    for key in NEW_KEYS:
                        credited = await new.accounts.decide(key, credit, 29 + reads)
                by_old = await old.balances.get("old")
                assert by_old is not None
                assert by_old.cents >= seen_by_old
                found: Any = await new.second.get("old")
                cents = found.cents if isinstance(found, Balance) else found.tenths // 10
                assert cents >= seen_by_new
                seen_by_old, seen_by_new = by_old.cents, cents
                served.add(type(found))
            assert await new.second.get("old", wait_for=done) == Total(10 * done.state.cents)
            found = await new.second.get(NEW_KEYS[-1], wait_for=credited)
            assert found == Total(10 * credited.state.cents)
            await stage.until(old_followers.held_back, "old code holds back what it cannot read")
            assert old_followers.dead_letters() == 0
            # The old code goes; the new goes on with the old version where that waited.
            await running.aclose()

            def first_has_all() -> bool:
                read = new.first._version.read
                documents = [
                    read(new.app.log, key).document for key in (b"old", NEW_KEYS[-1].encode())
                ]
                return documents == [
                    Balance("", done.state.cents, done.version),
                    Balance("", credited.state.cents, credited.version),
                ]

            await stage.until(first_has_all, "version 1 has folded everything")
            assert {each.waiting for each in new.app.health().views.values()} == {()}

            def in_order() -> dict[str, list[int]]:
                """What was handled, each event where it was handled first."""
                return {key: list(dict.fromkeys(each)) for key, each in handled.items()}

            expected = {"old": list(range(1, done.version + 1))}
            for key in NEW_KEYS:
                expected[key] = list(range(1, credited.version + 1))
            await stage.until(
                lambda: sum(map(len, in_order().values())) == sum(map(len, expected.values())),
                "the processor has handled everything",
            )
            assert in_order() == expected
            for cents in range(0, 30 + reads, TALLIED):
                count = 1 if cents < 30 else 4
                async with asyncio.timeout(60):
                    while (await new_followers.tallies.load(str(cents))).version < count:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            tallies = new_followers.tallies.events.read()
            found = [each.value.cents async for each in tallies]
            assert sorted(found) == sorted(
                cents
                for cents in range(0, 30 + reads, TALLIED)
                for _ in range(1 if cents < 30 else 4)
            )
            assert (new_followers.held_back(), new_followers.dead_letters()) == (0, 0)


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
