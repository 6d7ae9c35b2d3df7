"""Clients that decide upon the accounts of a bank, and write down what they call and are told.

A client is one app with several calls at once. It is run by a process of its own, to be killed and
frozen (:mod:`tests.faults.deciders`), or by a task, on a log in memory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from random import Random
from typing import Any, assert_never

import msgspec

from streams import Retry, Streams
from streams.errors import LogError, NotRunning, OutcomeUnknown, Unavailable
from streams.eventsourcing import (
    Aggregate,
    Cache,
    DecisionRefused,
    Snapshot,
    WrongExpectedVersion,
)
from tests.faults.decisions import (
    FOR_GOOD,
    IN,
    OUT,
    Answered,
    Called,
    Figures,
    Outcome,
    Recorder,
    now,
)

AGGREGATES = 50
PARTITIONS = 4
AT_ONCE = 6
"""Calls of one client at the same time."""

PAUSE = 0.05
"""Seconds after a call that failed."""

FIGURES_EVERY = 20
"""Answers between two lines of figures."""


class Put(msgspec.Struct, tag="put", frozen=True):
    """Money came. Every event says which decision it is of, and where in it it stands."""

    cents: int
    decision: str
    index: int
    count: int


class Took(msgspec.Struct, tag="took", frozen=True):
    """Money went."""

    cents: int
    decision: str
    index: int
    count: int


AccountEvent = Put | Took


class Overdrawn(Exception):
    """There is not so much money."""

    def __init__(self, account: Account, wanted: int) -> None:
        super().__init__(account, wanted)
        self.account = account
        self.wanted = wanted


class Account(msgspec.Struct, frozen=True):
    """A balance, and of how many events it is made."""

    cents: int = 0
    events: int = 0

    def withdraw(self, amounts: list[int], decision: str) -> list[AccountEvent]:
        if sum(amounts) > self.cents:
            raise Overdrawn(self, sum(amounts))
        return [Took(each, decision, n, len(amounts)) for n, each in enumerate(amounts)]

    def deposit(self, amounts: list[int], decision: str) -> list[AccountEvent]:
        return [Put(each, decision, n, len(amounts)) for n, each in enumerate(amounts)]

    def look(self) -> None:
        return None


def cents_of(event: AccountEvent) -> int:
    match event:
        case Put():
            return event.cents
        case Took():
            return -event.cents
        case _:
            assert_never(event)


def evolve(account: Account, event: AccountEvent) -> Account:
    return Account(account.cents + cents_of(event), account.events + 1)


def declare(app: Streams, name: str, **options: Any) -> Aggregate[AccountEvent, Account]:
    """The accounts. Few states are kept, so that some come from snapshots and some from events."""
    options = {"snapshot": Snapshot(every=20), "cache": Cache(count=AGGREGATES // 2), **options}
    return Aggregate(app, name, AccountEvent, Account, evolve, partitions=PARTITIONS, **options)


class Transfer:
    """Money from one account to another, in two decisions. What it is follows from its name, so
    that any client may carry it out, or finish what another has begun."""

    def __init__(self, name: str) -> None:
        random = Random(name)
        self.name = name
        self.source, self.target = random.sample(range(AGGREGATES), 2)
        self.cents = random.randrange(1, 60)


def account_name(number: int) -> str:
    return f"account-{number}"


@dataclass(frozen=True)
class Plan:
    """What a client is to do.

    :param seed: of all that it chooses at random.
    """

    folder: Path
    url: str
    aggregate: str
    client: str
    seed: int


class Client:
    """One client, while its app is entered.

    :param stopping: whether to begin no further call.
    """

    def __init__(self, plan: Plan, stopping: Callable[[], bool]) -> None:
        self._plan = plan
        self._stopping = stopping
        self._random = Random(f"{plan.seed}/{plan.client}")
        self._recorder = Recorder(plan.folder, plan.client)
        self._calls = 0
        self._answers = 0
        self._transfers = self._claims = 0
        self._seen: dict[str, int] = {}
        """The version at which each account was seen last."""
        app = Streams(plan.url)
        self._app = app
        self._accounts = declare(app, plan.aggregate)

    async def run(self) -> None:
        """Call until it is to stop, then wait for what was called."""
        async with AsyncExitStack() as stack:
            if not await self._enter(stack):
                return
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._work())
            self._write_figures()
        self._recorder.close()

    async def _enter(self, stack: AsyncExitStack) -> bool:
        """Enter the app as soon as the log can be reached; False if it is to stop before that."""
        while not self._stopping():
            try:
                await stack.enter_async_context(self._app.connected())
            except Unavailable:
                await asyncio.sleep(PAUSE)
            else:
                return True
        return False

    async def finish(self, transfers: list[Transfer]) -> None:
        """Carry out the second halves of transfers, each of them twice."""
        async with self._app.connected():
            for transfer in transfers * 2:
                await self._halve(transfer, transfer.target, Account.deposit, IN)
        self._recorder.close()

    async def _work(self) -> None:
        actions = [
            (self._deposit, 30),
            (self._withdraw, 25),
            (self._transfer, 15),
            (self._claim, 10),
            (self._look, 10),
            (self._load, 5),
            (self._expect, 8),
            (self._cancel, 7),
        ]
        chosen, weights = zip(*actions, strict=True)
        while not self._stopping():
            (action,) = self._random.choices(chosen, weights)
            await action()

    # -- what it does

    def _account(self) -> str:
        # Some are decided upon far more often than others.
        return account_name(int(AGGREGATES * self._random.random() ** 2))

    def _amounts(self, most: int) -> list[int]:
        count = 1 if self._random.random() < 0.6 else self._random.randrange(2, 5)
        return [self._random.randrange(1, most) for _ in range(count)]

    async def _deposit(self) -> None:
        await self._decide(self._account(), Account.deposit, self._amounts(50))

    async def _withdraw(self) -> None:
        await self._decide(self._account(), Account.withdraw, self._amounts(90))

    async def _transfer(self) -> None:
        # All clients go through the same transfers, so several are at one at the same time.
        self._transfers += self._random.randrange(1, 6)
        transfer = Transfer(f"{self._plan.seed}-{self._transfers}")
        if await self._halve(transfer, transfer.source, Account.withdraw, OUT) == "decided":
            await self._halve(transfer, transfer.target, Account.deposit, IN)

    async def _halve(
        self, transfer: Transfer, number: int, decision: Callable[..., Any], half: str
    ) -> Outcome:
        """One half, until it is known what became of it."""
        name = transfer.name + half
        while True:
            outcome = await self._decide(
                account_name(number), decision, [transfer.cents], name=name, cause=name
            )
            if outcome in ("decided", "looked") or self._stopping():
                return outcome
            await asyncio.sleep(PAUSE)

    async def _claim(self) -> None:
        """A command of a process manager, which several clients carry out at the same time: it is
        done once, or refused for good."""
        self._claims += self._random.randrange(1, 4)
        claim = Transfer(f"claim-{self._plan.seed}-{self._claims}")
        account, amounts = account_name(claim.source), [claim.cents, 2 * claim.cents]
        options: dict[str, Any] = {"cause": claim.name, "refusals": Overdrawn}
        await self._decide(account, Account.withdraw, amounts, name=claim.name, **options)

    async def _look(self) -> None:
        await self._decide(self._account(), lambda account, *_: account.look(), [])

    async def _load(self) -> None:
        account = self._account()
        call = self._call(account, "")
        try:
            found = await self._accounts.load(account)
        except Exception as error:
            self._failed(call, account, error)
            return
        self._answer(call, account, "looked", found.version, cents=found.state.cents)

    async def _expect(self) -> None:
        """Decide upon the version that was seen before, which others may have left behind."""
        account = self._account()
        await self._decide(
            account, Account.deposit, self._amounts(20), expected=self._seen.get(account, 0)
        )

    async def _cancel(self) -> None:
        """Decide, and think better of it."""
        work = asyncio.create_task(
            self._decide(self._account(), Account.deposit, self._amounts(20))
        )
        for _ in range(self._random.randrange(30)):
            await asyncio.sleep(0)
        await asyncio.sleep(self._random.random() * 0.01 * self._random.randrange(2))
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    # -- calls and answers

    async def _decide(
        self,
        account: str,
        decision: Callable[..., Any],
        amounts: list[int],
        *,
        name: str = "",
        **options: Any,
    ) -> Outcome:
        call = self._call(account, name)
        accounts = self._accounts.with_options(
            retry=Retry(attempts=30, delay=0.002, cap=0.1), **options
        )
        try:
            done = await accounts.decide(account, decision, amounts, name or call)
        except asyncio.CancelledError:
            self._answer(call, account, "unknown", reason="cancelled")
            raise
        except Exception as error:
            return self._failed(call, account, error)
        if not done.events:
            return self._answer(call, account, "looked", done.version, cents=done.state.cents)
        return self._answer(
            call,
            account,
            "decided",
            done.version,
            # What a cause came to before is told with the state as it was then.
            cents=done.state.cents,
            events=len(done.events),
            positions=tuple(map(str, done.positions)),
        )

    def _failed(self, call: str, account: str, error: Exception) -> Outcome:
        reason = type(error).__name__
        if isinstance(error, Overdrawn):
            seen = error.account
            return self._answer(
                call, account, "looked", seen.events, cents=seen.cents, overdrawn=error.wanted
            )
        if isinstance(error, WrongExpectedVersion):
            assert isinstance(error.expected, int)
            return self._answer(
                call, account, "looked", error.actual, expected=error.expected, reason=reason
            )
        if isinstance(error, DecisionRefused):
            return self._answer(call, account, "failed", reason=FOR_GOOD)
        if isinstance(error, OutcomeUnknown):
            return self._answer(call, account, "unknown", reason=reason)
        if isinstance(error, (LogError, NotRunning)):
            return self._answer(call, account, "failed", reason=f"{reason}: {error}")
        raise error

    def _call(self, account: str, name: str) -> str:
        self._calls += 1
        call = f"{self._plan.client}.{self._calls}"
        self._recorder.write(Called(now(), call, name or call, account))
        return call

    def _answer(
        self, call: str, account: str, outcome: Outcome, version: int = 0, **what: Any
    ) -> Outcome:
        self._recorder.write(Answered(now(), call, outcome, version, **what))
        if outcome in ("decided", "looked"):
            self._seen[account] = version
        self._answers += 1
        if self._answers % FIGURES_EVERY == 0:
            self._write_figures()
        return outcome

    def _write_figures(self) -> None:
        stats = self._accounts.stats()
        figures = Figures(stats.conflicts, stats.retries, stats.caused, stats.snapshots)
        self._recorder.write(figures)


def run_process(plan: Plan) -> None:
    """A client in a process of its own: SIGTERM stops it, and so does its parent's end."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(Client(plan, stopping.is_set).run())


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
