"""Transfers while workers are killed, and then a check of the bank's sums."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from examples.bank.account import Account, Closed, MoneyOnItsWay, Overdrawn
from examples.bank.audit import History, Sums, audit
from examples.bank.transfers import Bank, Transfer, create
from examples.bank.worker import Figures, figures_of, read_figures
from streams import SagaStatus

OWNERS = ("ada", "bob", "cyd", "dan", "eve", "fay")
CLOSED = "cyd"
"""The owner whose account is closed half-way."""
NOBODY = "nobody"
"""An account that is never opened."""
MONEY = 100_00
"""The initial balance of each account, in cents."""

TIMEOUT = 120.0
"""Seconds after which the run is aborted."""

ROOT = Path(__file__).resolve().parents[2]


class DemoError(Exception):
    """The run could not be finished; the text is one line."""


class Outcome(NamedTuple):
    """The result of the run.

    :param money_before: cents that were paid in at the start.
    :param refused: transfers that were not made, by reason.
    :param errors: the errors found; none, if the log keeps its promises.
    """

    money_before: int
    sums: Sums
    figures: Figures
    completed: int
    refused: Counter[str]
    counter_refusals: int
    kills: int
    errors: list[str]


def transfers_of(count: int, choose: random.Random) -> list[Transfer]:
    """Transfers between the few accounts, some larger than all balances, a few to a missing
    account."""
    found = []
    for number in range(count):
        source, target = choose.sample(OWNERS, 2)
        if number % 40 == 7:
            target = NOBODY
        cents = 10 * MONEY if number % 15 == 4 else choose.randrange(1, 10_00)
        found.append(Transfer(source, target, cents))
    return found


async def run(
    url: str,
    count: int,
    kills: int,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
) -> Outcome:
    """Make transfers, kill the workers that carry them out, and check the sums.

    :param count: the number of transfers; from 10.
    :param kills: how often a worker is killed in the first half; once more in the second.
    :param folder: for the file of the log, if no URL is given, and the workers' figures.
    :raises DemoError: the run got stuck.
    """
    url = url or f"sqlite:///{folder}/bank.db"
    choose = random.Random(seed)
    name = f"bank-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}"
    bank = create(url, name)
    wanted = {f"t{n:05}": each for n, each in enumerate(transfers_of(count, choose))}
    ids = list(wanted)
    first, second = ids[: count // 2], ids[count // 2 :]
    is_memory = url.startswith("memory:")  # other processes cannot use it: this one does the work
    async with bank.app if is_memory else bank.app.connected():
        accounts = bank.accounts
        await asyncio.gather(
            *(accounts.decide(owner, Account.open, owner, MONEY) for owner in OWNERS)
        )
        report(f"{len(OWNERS)} accounts with {MONEY / 100:,.2f} each")
        refusals = 0
        async with _workers(url, name, folder, 0 if is_memory else 2) as workers:
            await _start(bank, wanted, first)
            report(f"{len(first)} transfers are begun")
            refusals += await _ask_for_too_much(bank)
            for number, limit in enumerate(sorted(choose.choices(range(1, count // 3), k=kills))):
                await _wait_for_ended(bank, limit, workers)
                if workers.kill(number):
                    report(f"a worker was killed with SIGKILL when {limit} transfers were over")
            paid_out = await _close(bank, CLOSED)
            report(f"the account of {CLOSED} is closed, {paid_out / 100:,.2f} are paid out")
            await _start(bank, wanted, second)
            report(f"{len(second)} more transfers are begun")
            refusals += await _ask_for_too_much(bank)
            if workers.kill(kills):
                report("a worker was killed with SIGKILL")
            await _wait_for_ended(bank, count, workers)
        ended = await _ended(bank)
        histories = {id: [each async for each in accounts.read(id)] for id in (*OWNERS, NOBODY)}
        seen = await _seen_by_readers(bank)
        states = {id: (await accounts.load(id)).state for id in histories}
        figures = Figures(*map(sum, zip(read_figures(folder), figures_of(bank), strict=True)))
    sums = audit(histories)
    refused = Counter(_reason(each) for each in ended if each.status != "completed")
    completed = len(ended) - refused.total()
    errors = _errors(wanted, ended, sums, completed, states, histories)
    errors += [
        f"{id}: a reader of the topic sees other events than its history has"
        for id, history in histories.items()
        if seen.get(id, []) != [each.id for each in history]
    ]
    made = workers.kills
    return Outcome(len(OWNERS) * MONEY, sums, figures, completed, refused, refusals, made, errors)


async def _start(bank: Bank, wanted: Mapping[str, Transfer], ids: list[str]) -> None:
    await asyncio.gather(*(bank.transfers.start(wanted[id], id=id) for id in ids))


async def _ask_for_too_much(bank: Bank) -> int:
    """Withdraw more than the balance from all accounts at once; returns how many refused."""
    refused = 0
    for answer in await asyncio.gather(
        *(bank.accounts.decide(owner, Account.withdraw, 1_000_000_00) for owner in OWNERS[:2]),
        return_exceptions=True,
    ):
        if not isinstance(answer, Overdrawn):
            raise RuntimeError(f"more was paid out than there is: {answer!r}")
        refused += 1
    return refused


async def _close(bank: Bank, owner: str) -> int:
    """Close an account once no transfer from it can come back; returns the cents it paid out."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                done = await bank.accounts.decide(owner, Account.close)
            except MoneyOnItsWay:
                await asyncio.sleep(0.02)
            else:
                return sum(each.paid_out for each in done.events if isinstance(each, Closed))


async def _ended(bank: Bank) -> list[SagaStatus[Transfer]]:
    return await bank.transfers.list("completed", "compensated", "failed", "stopped")


async def _seen_by_readers(bank: Bank) -> dict[str | None, list[str]]:
    """The IDs of each account's events, as readers of the topic get them."""
    seen: dict[str | None, list[str]] = {}
    async with bank.accounts.events.read() as messages:
        async for message in messages:
            seen.setdefault(message.key, []).append(message.id)
    return seen


def _reason(saga: SagaStatus[Transfer]) -> str:
    """Why a transfer was not made: the exception's name."""
    return saga.status if saga.failure is None else saga.failure.error.kind


async def _wait_for_ended(bank: Bank, count: int, workers: _Workers) -> None:
    """Wait until ``count`` transfers have ended.

    :raises DemoError: no worker carries them out.
    """
    deadline = time.monotonic() + TIMEOUT
    while (ended := len(await _ended(bank))) < count:
        workers.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{ended} of {count} transfers are over after {TIMEOUT:g} s")
        await asyncio.sleep(0.05)


class _Workers:
    """Processes that carry transfers out; one that was killed is restarted."""

    def __init__(self, url: str, name: str, folder: Path, count: int) -> None:
        self._url, self._name, self._folder = url, name, folder
        self._lives = 0
        self.kills = 0
        self._running = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        self._lives += 1
        figures = self._folder / f"{self._lives}.figures"
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [
            *(sys.executable, "-m", "examples.bank.worker"),
            *(self._url, self._name, f"worker-{number}", str(figures)),
        ]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})

    def check(self) -> None:
        """:raises DemoError: a worker has ended by itself."""
        for worker in self._running:
            if worker.poll() is not None:
                raise DemoError(f"a worker ended by itself with status {worker.returncode}")

    def kill(self, number: int) -> bool:
        """``kill -9`` a worker, whatever it is doing; returns whether there was one."""
        if not self._running:
            return False
        index = number % len(self._running)
        self._running[index].kill()
        self._running[index].wait()
        self._running[index] = self._start(index)
        self.kills += 1
        return True

    def close(self) -> None:
        """Let the workers finish what they have begun."""
        for worker in self._running:
            worker.send_signal(signal.SIGTERM)
        for worker in self._running:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@asynccontextmanager
async def _workers(url: str, name: str, folder: Path, count: int) -> AsyncIterator[_Workers]:
    workers = await asyncio.to_thread(_Workers, url, name, folder, count)
    try:
        yield workers
    finally:
        await asyncio.to_thread(workers.close)


def _errors(
    wanted: Mapping[str, Transfer],
    ended: list[SagaStatus[Transfer]],
    sums: Sums,
    completed: int,
    states: Mapping[str, Account],
    histories: Mapping[str, History],
) -> list[str]:
    """The errors in the bank's sums."""
    errors = list(sums.errors)
    errors += [f"{id} was lost" for id in wanted.keys() - {each.id for each in ended}]
    errors += [
        f"{each.id} is {each.status}"
        for each in ended
        if each.status not in ("completed", "compensated")
    ]
    before = len(OWNERS) * MONEY
    if sums.paid_in != before or sums.money_after != before:
        errors.append(f"{before} cents became {sums.money_after}")
    if sums.on_its_way:
        errors.append(f"{sums.on_its_way} cents are on their way, though no transfer is")
    if sums.received != completed:
        errors.append(f"{completed} transfers completed, and {sums.received} arrived")
    errors += [
        f"{id}: {state.cents} cents by its state, {sums.balances.get(id, 0)} by its events"
        for id, state in states.items()
        if state.cents != sums.balances.get(id, 0)
    ]
    if not any(isinstance(each.event, Closed) for each in histories[CLOSED]):
        errors.append(f"the account of {CLOSED} was not closed")
    return errors
