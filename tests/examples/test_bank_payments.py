"""The bank's payments: each comes to its end, with the sums right and each letter written once."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from examples.bank.account import (
    Account,
    AccountEvent,
    Arrived,
    Closed,
    Deposited,
    Opened,
    Returned,
    Sent,
)
from examples.bank.audit import audit
from examples.bank.payments import (
    LIMIT,
    PATIENCE,
    Approve,
    OverdraftNotice,
    Pay,
    Payments,
    create,
)
from streams.testing import Clock, Harness, harness

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
LARGE = LIMIT + 1
OWNERS = ("ada", "bob", "cyd", "nobody")


async def pay(bank: Payments, h: Harness, id: str, target: str, cents: int) -> None:
    await bank.requests.publish(Pay(id, "ada", target, cents))
    await h.settled()


async def events(bank: Payments, owner: str, id: str) -> list[type[AccountEvent]]:
    """What happened to an account because of a payment."""
    return [
        type(each.event)
        async for each in bank.accounts.read(owner)
        if getattr(each.event, "transfer", "") == id
    ]


async def test_each_payment_comes_to_its_end() -> None:
    bank, clock = create("memory://"), Clock()
    async with harness(bank.app, clock=clock) as h:
        for owner, cents in (("ada", 3 * LARGE), ("bob", 0), ("cyd", 0)):
            await bank.accounts.decide(owner, Account.open, owner, cents)
        await bank.accounts.decide("cyd", Account.close)
        await pay(bank, h, "pay-1", "bob", 5)
        assert await events(bank, "ada", "pay-1") == [Sent, Arrived]
        # Nobody has such an account, or has it any more: it comes back.
        for id, target in (("pay-2", "nobody"), ("pay-3", "cyd")):
            await pay(bank, h, id, target, 7)
            assert await events(bank, "ada", id) == [Sent, Returned]
        # There is too little; that there is more later changes nothing.
        await pay(bank, h, "pay-4", "bob", 9 * LARGE)
        await bank.accounts.append("ada", Deposited(9 * LARGE), expected="any")
        await bank.requests.publish(Pay("pay-4", "ada", "bob", 9 * LARGE))
        await h.settled()
        assert await events(bank, "ada", "pay-4") == []
        letters = [each.event async for each in bank.letters.read("ada")]
        assert letters == [OverdraftNotice("pay-4", 9 * LARGE)]
        # A large one is held until it is approved, before or after the money has left.
        await pay(bank, h, "pay-5", "bob", LARGE)
        assert await events(bank, "ada", "pay-5") == [Sent]
        await bank.requests.publish(Approve("pay-5"))
        await h.settled()
        assert await events(bank, "ada", "pay-5") == [Sent, Arrived]
        # ... and comes back if it is not; to approve it then is too late.
        await pay(bank, h, "pay-6", "bob", LARGE)
        clock.advance(PATIENCE + timedelta(seconds=1))
        await h.settled()
        await bank.requests.publish(Approve("pay-6"))
        await h.settled()
        assert await events(bank, "ada", "pay-6") == [Sent, Returned]
        for number in range(1, 7):
            assert (await bank.manager.load(f"pay-{number}")).is_closed
        sums = audit({id: [each async for each in bank.accounts.read(id)] for id in OWNERS})
        assert sums.errors == []
        assert (sums.received, sums.on_its_way) == (2, 0)
        assert sums.balances["bob"] == 5 + LARGE
        assert sums.money_after == sums.paid_in


def test_a_transfer_of_the_saga_is_no_payment() -> None:
    key_of = create("memory://").manager._definition.key_of
    assert key_of(Sent("pay-1", "bob", 1)) == "pay-1"
    assert key_of(Sent("t-1", "bob", 1)) is None
    assert [key_of(each) for each in (Opened("ada"), Closed(0))] == [None, None]


def test_its_commands(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
    environment = {**os.environ, "STREAMS_URL": "sqlite:///mine.db", "PYTHONPATH": paths}

    def output(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "examples.bank", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (status, "")
        return done.stdout

    output("open", "ada", "500")
    output("open", "bob")
    assert output("pay", "ada", "bob", "200") == "paid: 2.00 from ada to bob\n"
    assert output("pay", "ada", "nobody", "1", status=1) == "not paid: it came back\n"
    assert output("pay", "ada", "bob", "301", status=1) == "not paid: a notice was sent\n"
    assert output("show", "ada").splitlines()[-1] == "ada: 3.00 at version 6"
