"""The bank: killed midway on each log, its sums are right; a step that is called twice moves money
once; an audit that sees what is wrong; and the commands of its docstring."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from examples.bank.account import (
    Account,
    AccountEvent,
    Arrived,
    Closed,
    Deposited,
    MoneyOnItsWay,
    NoAccount,
    Opened,
    Overdrawn,
    Received,
    Returned,
    Sent,
    Withdrawn,
    evolve,
)
from examples.bank.audit import Sums, audit
from examples.bank.demo import CLOSED, MONEY, NOBODY, OWNERS, run, transfers_of
from examples.bank.transfers import Bank, Transfer, create
from streams import Position, RecordedEvent, SagaFailedError, StepCall
from streams.testing import harness

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def workers_find_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "codecs")]))


@pytest.mark.parametrize(
    ("server", "setting"),
    [
        ("memory://", ""),
        ("", ""),
        # What a killed worker had is not waited for: it is started again under its name.
        ("kafka", "?session.timeout.ms=300000&max.poll.interval.ms=300000"),
        ("redis_server", "?lease=3600&socket_timeout=5"),
    ],
    ids=["memory", "sqlite", "kafka", "redis"],
)
async def test_workers_are_killed_and_no_money_is_lost_or_made(
    server: str, setting: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue(server).url}{setting}" if setting else server
    lines: list[str] = []
    outcome = await run(url, 90, 2, 1, tmp_path, lines.append)
    assert outcome.errors == []
    assert outcome.kills == (0 if server == "memory://" else 3)
    assert len([line for line in lines if "SIGKILL" in line]) == outcome.kills
    assert outcome.sums.money_after == outcome.money_before == len(OWNERS) * MONEY
    assert outcome.completed + outcome.refused.total() == 90
    assert set(outcome.refused) == {"Overdrawn", "NoAccount", "AggregateClosed"}
    assert outcome.counter_refusals == 4
    assert outcome.figures.decisions > 90


# -- a step that is called again


async def opened(bank: Bank, **cents: int) -> None:
    for owner, each in cents.items():
        await bank.accounts.decide(owner, Account.open, owner, each)


async def step(bank: Bank, number: int, transfer: Transfer) -> None:
    """Call a step of transfer t1, as its saga does."""
    chosen = bank.transfers.steps[number]
    call = StepCall("bank-transfers", "t1", chosen.name)
    await chosen.action(call).function(transfer)


async def test_a_step_that_is_called_again_moves_money_once() -> None:
    bank, transfer = create("memory://"), Transfer("ada", "bob", 30)
    async with harness(bank.app):
        await opened(bank, ada=100, bob=0)
        for number in (0, 0, 1, 0, 1, 1, 2, 2):
            await step(bank, number, transfer)
        assert (await bank.accounts.load("ada")).state == Account("ada", 70)
        assert (await bank.accounts.load("bob")).state == Account("bob", 30)
        assert bank.accounts.stats().caused == 5


async def test_a_refusal_is_the_same_whenever_it_is_asked_for() -> None:
    bank, transfer = create("memory://"), Transfer("ada", "bob", 30)
    async with harness(bank.app):
        await opened(bank, ada=10)
        for _ in range(2):  # the second time there is the money, and bob's account
            for number, error in enumerate((Overdrawn, NoAccount)):
                with pytest.raises(error):
                    await step(bank, number, transfer)
            await opened(bank, bob=0)
            await bank.accounts.append("ada", Deposited(1_000), expected="any")


async def test_each_refusal_is_taken_back() -> None:
    bank = create("memory://")
    async with harness(bank.app):
        await opened(bank, ada=100, bob=0, cyd=5)
        assert (await bank.accounts.decide("cyd", Account.close)).events == (Closed(5),)
        for source, target, cents, why in (
            ("ada", "bob", 101, "ada cannot send 101 cents"),
            ("nobody", "bob", 0, "nobody cannot send 0 cents"),
            ("ada", "nobody", 1, "nobody has opened an account nobody"),
            ("ada", "cyd", 1, "has had its final event"),
            ("cyd", "ada", 0, "has had its final event"),
        ):
            with pytest.raises(SagaFailedError, match=why) as caught:
                await bank.transfers.execute(Transfer(source, target, cents))
            assert caught.value.failed_compensations == ()
        await bank.transfers.execute(Transfer("ada", "bob", 99))
        assert (await bank.accounts.load("ada")).state == Account("ada", 1)
        assert (await bank.accounts.load("bob")).state == Account("bob", 99)
        events = [each.event async for each in bank.accounts.read("ada")]
        assert [type(each) for each in events] == [
            *(Opened, Deposited, Sent, Returned, Sent, Returned, Sent, Arrived)
        ]


def after(*events: AccountEvent) -> Account:
    account = Account()
    for event in events:
        account = evolve(account, event)
    return account


def test_what_an_account_refuses() -> None:
    ada = after(Opened("ada"), Deposited(50))
    assert ada.withdraw(50) == Withdrawn(50)
    assert ada.open("ada", 50) == []
    with pytest.raises(Overdrawn, match="there are 50 cents, and 51 are wanted"):
        ada.withdraw(51)
    with pytest.raises(NoAccount):
        Account().close()
    with pytest.raises(Overdrawn):
        Account().withdraw(0)
    sending = evolve(ada, Sent("t1", "bob", 20))
    with pytest.raises(MoneyOnItsWay, match="1 transfers of ada"):
        sending.close()
    assert evolve(sending, sending.take_back("t1")) == ada
    assert evolve(sending, Arrived("t1")).close() == Closed(30)


# -- the audit

AT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def recorded(*events: AccountEvent, start: int = 1) -> list[RecordedEvent[AccountEvent]]:
    return [
        RecordedEvent(event, version, f"e{version}", AT, Position("events", 0, version))
        for version, event in enumerate(events, start)
    ]


def sums(ada: Sequence[AccountEvent], bob: Sequence[AccountEvent] = (), start: int = 1) -> Sums:
    return audit({"ada": recorded(*ada, start=start), "bob": recorded(*bob)})


def test_sums_that_are_right() -> None:
    found = sums(
        [Opened("ada"), Deposited(50), Sent("t1", "bob", 20), Arrived("t1"), Withdrawn(5)],
        [Opened("bob"), Received("t1", 20), Sent("t2", "ada", 15)],
    )
    assert found == Sums(8, 50, 5, {"ada": 25, "bob": 5}, 15, 1, False, [])
    assert found.money_after == 50


START: list[AccountEvent] = [Opened("ada"), Deposited(50)]
ONCE = Sent("t", "bob", 20)


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (lambda: sums(START, start=2), "ada: its versions are [2, 3]"),
        (lambda: sums([*START, Withdrawn(51)]), "ada: -1 cents at version 3"),
        (lambda: sums([*START, ONCE, ONCE], [Received("t", 20)]), "t: Sent 2 times"),
        (lambda: sums([*START, ONCE], [Received("t", 20)] * 2), "t: Received 2 times"),
        (
            lambda: sums([*START, ONCE, Returned("t", 20)], [Received("t", 20)]),
            "t: its money came to ada and bob",
        ),
        (lambda: sums(START, [Received("t", 20)]), "t: its money came from nowhere"),
        (lambda: sums([*START, ONCE], [Received("t", 21)]), "t: 20 cents were sent, 21 came"),
    ],
)
def test_sums_that_are_wrong_are_seen(found: Callable[[], Sums], error: str) -> None:
    assert error in found().errors


def test_money_that_is_on_its_way_is_counted() -> None:
    assert sums([*START, ONCE]).on_its_way == 20
    assert sums([*START, ONCE], [Received("t", 20)]).on_its_way == 0
    assert sums([*START, Received("u", 20)]).money_after == 70  # from nowhere


def test_transfers_are_of_all_kinds() -> None:
    found = transfers_of(90, random.Random(1))
    assert {each.target for each in found} == {*OWNERS, NOBODY}
    assert CLOSED in {each.source for each in found[45:]}
    assert all(each.source != each.target for each in found)
    assert len([each for each in found if each.cents > len(OWNERS) * MONEY]) == 6


# -- the commands


def test_the_commands_of_its_docstring(tmp_path: Path) -> None:
    environment = {**os.environ, "STREAMS_URL": "sqlite:///mine.db"}

    def command(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "examples.bank", *words], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def output(*words: str, status: int = 0) -> str:
        process = command(*words)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (status, "")
        return out

    worker = command("work")
    try:
        assert output("open", "ada", "500") == "ada: 5.00 at version 2\n"
        assert output("open", "bob") == "bob: 0.00 at version 1\n"
        assert output("send", "ada", "bob", "200") == "sent: 2.00 from ada to bob\n"
        assert "ada cannot send 301 cents" in output("send", "ada", "bob", "301", status=1)
        shown = output("show", "ada", "--url", "sqlite:///mine.db").splitlines()
        assert [line.split()[0] for line in shown] == ["1", "2", "3", "4", "ada:"]
        assert shown[-1] == "ada: 3.00 at version 4"
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    finally:
        worker.kill()
        worker.communicate()


def test_the_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.bank", "--transfers", "20", "--kills", "0"],
        cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "STREAMS_URL"},
        stdout=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    for line in (r"money before .* 600\.00 ", r"money after .* 600\.00 ", "versions.* yes"):
        assert re.search(line, done.stdout), done.stdout


def test_a_log_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.bank", "show", "ada", "--url", "sqlite:////no/such/a.db"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("bank: sqlite:////no/such")
