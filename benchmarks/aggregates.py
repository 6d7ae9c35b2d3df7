"""The cost of aggregates: decisions, loads and replays, as tasks of a worker process.

The aggregates are the accounts of one bank, opened once and paid into. Each task uses a bank name
of its own, so that other tasks have not made its histories longer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from benchmarks.counting import MessageCounter, percentiles
from benchmarks.machine import MemorySampler
from benchmarks.ours import TIME_LIMIT, Answer, Stalled, run
from streams import Streams
from streams.eventsourcing import Aggregate, Cache, Snapshot
from streams.replay import replay

PARTITIONS = 8
AT_ONCE = 1_000
"""Calls that run at the same time, in the concurrent cases."""
WARM_UP = 200
"""Decisions that are not measured."""
SAMPLE = 2_000
"""The number of calls of which the median is taken."""
LOOK = 0.005
"""Seconds between checks whether an index is built."""
PER_APPEND = 1_000
"""Events per append when a long history is filled."""


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """An account's first event."""

    owner: str


class Deposited(msgspec.Struct, tag="deposited", frozen=True):
    """Money was paid in."""

    cents: int
    reference: str


AccountEvent = Opened | Deposited


class Account(msgspec.Struct, frozen=True):
    """The state that the events fold to."""

    owner: str = ""
    cents: int = 0
    reference: str = ""


def evolve(account: Account, event: AccountEvent) -> Account:
    match event:
        case Opened(owner):
            return Account(owner)
        case Deposited(cents, reference):
            return Account(account.owner, account.cents + cents, reference)


REFERENCE = "transfer 4711 of the savings plan, standing order 12"
DEPOSIT = Deposited(5, REFERENCE)


def deposit(account: Account, cents: int) -> Deposited:
    """The decision that all measurements use."""
    return Deposited(cents, REFERENCE)


Accounts = Aggregate[AccountEvent, Account]


def open_accounts(
    app: Streams, name: str = "", *, cached: bool = True, snapshot: Snapshot | None = None
) -> Accounts:
    """A bank's accounts; without a name, of a new bank."""
    return Aggregate(
        app, name or f"accounts-{uuid4().hex}", AccountEvent, Account, evolve,
        partitions=PARTITIONS, cache=Cache() if cached else Cache(count=0), snapshot=snapshot,
    )  # fmt: skip


def account_id(number: int) -> str:
    """The ID of one account."""
    return f"account-{number}"


async def _in_rounds(call: Callable[[int], Awaitable[Any]], count: int) -> None:
    """Call a function with the numbers up to ``count``, a thousand at once."""
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        await asyncio.gather(*(call(number) for number in numbers))


async def _open(accounts: Accounts, count: int, events: int = 1) -> None:
    """Open accounts with ``events`` events each."""
    made: Sequence[AccountEvent] = [Opened("ada"), *[DEPOSIT] * (events - 1)]
    await _in_rounds(
        lambda number: accounts.append(account_id(number), made, expected="new"), count
    )


async def wait_built(app: Streams, bank: Accounts) -> None:
    """Wait until the log knows which events of a bank count; returns at once on a log that checks
    appends itself.

    :raises Stalled: it takes too long.
    """
    deadline = time.monotonic() + TIME_LIMIT
    log: Any = app.log  # a log that keeps histories
    while True:
        passed, total = await asyncio.to_thread(log.index_progress, bank.events.name)
        if passed >= total:
            return
        if time.monotonic() > deadline:
            raise Stalled(f"not over within {TIME_LIMIT:g} s: {passed:,} of {total:,} events")
        await asyncio.sleep(LOOK)


def timed(calls: int, seconds: Sequence[float], began: float, cpu: float) -> Answer:
    """Calls per second, CPU time of each, and milliseconds."""
    took, used = time.perf_counter() - began, time.process_time() - cpu
    answer = {"rate": calls / took, "cpu_us": used / calls * 1e6}
    if seconds:
        answer["p50"] = percentiles(seconds)["p50"] * 1e3
    return answer


async def _one_by_one(call: Callable[[int], Awaitable[Any]], calls: int) -> Answer:
    seconds: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(calls):
        before = time.perf_counter()
        await call(number)
        seconds.append(time.perf_counter() - before)
    return timed(calls, seconds, began, cpu)


# -- decisions and loads ---------------------------------------------------------------------------


def decide(url: str, accounts: int, decisions: int, *, at_once: bool = False) -> Answer:
    """Deposit into each account in turn, one after the other or a thousand at once."""
    app = Streams(url)
    bank = open_accounts(app)

    async def main() -> Answer:
        async with app:
            await _open(bank, accounts)

            async def call(number: int) -> None:
                await bank.decide(account_id(number % accounts), deposit, 5)

            await _in_rounds(call, WARM_UP)
            if not at_once:
                return await _one_by_one(call, decisions)
            began, cpu = time.perf_counter(), time.process_time()
            await _in_rounds(call, decisions)
            return timed(decisions, (), began, cpu)

    answer: Answer = run(main)
    return answer


def load(url: str, accounts: int, events: int, loads: int, *, at_once: bool = False) -> Answer:
    """Read and fold accounts of ``events`` events, one after the other or a thousand at once.
    Nothing is cached."""
    app = Streams(url)
    bank = open_accounts(app, cached=False)

    async def main() -> Answer:
        async with app:
            await _open(bank, accounts, events)

            async def call(number: int) -> None:
                loaded = await bank.load(account_id(number % accounts))
                assert loaded.version == events

            if not at_once:
                return await _one_by_one(call, loads)
            began, cpu = time.perf_counter(), time.process_time()
            await _in_rounds(call, loads)
            return timed(loads, (), began, cpu)

    answer: Answer = run(main)
    return answer


# -- long topics -----------------------------------------------------------------------------------


def fill_accounts(url: str, name: str, accounts: int, events: int = 1) -> Answer:
    """Fill accounts with ``events`` events each, for other tasks to read; once."""
    app = Streams(url)
    bank = open_accounts(app, name, cached=False)

    async def main() -> None:
        async with app:
            if not (await bank.load(account_id(accounts - 1))).version:
                await _open(bank, accounts, events)

    run(main)
    return {}


def replay_events(url: str, name: str, events: int) -> Answer:
    """Pass every event of a bank to a function."""
    app = Streams(url)
    bank = open_accounts(app, name)
    counter = MessageCounter(events)
    one = counter.count_one

    def count(event: Any) -> None:
        one()

    async def main() -> None:
        async with app.connected():
            await replay(app, bank.events, count)

    run(main)
    return counter.result


def one_of_many(url: str, accounts: int, way: str, name: str = "") -> Answer:
    """The median time of a ``load`` or a ``decide`` of one of many accounts. None is cached.

    :param name: the name of an existing bank with them; without one, they are opened.
    """
    app = Streams(url)
    bank = open_accounts(app, name, cached=False)
    chosen = random.Random(way)

    async def call(number: int) -> None:
        id = account_id(chosen.randrange(accounts))
        await (bank.load(id) if way == "load" else bank.decide(id, deposit, 5))

    async def main() -> Answer:
        async with app:
            if not name:
                await _open(bank, accounts)
            await _one_by_one(call, WARM_UP)
            return await _one_by_one(call, SAMPLE)

    answer: Answer = run(main)
    return answer


# -- one long history ------------------------------------------------------------------------------

LONG = "the-long-one"
EVERY = 1_000
"""Events between two snapshots."""


def fill_long(url: str, name: str, events: int) -> Answer:
    """Fill one account with ``events`` events, with snapshots."""
    app = Streams(url)
    bank = open_accounts(app, name, snapshot=Snapshot(every=EVERY))

    async def main() -> None:
        async with app:
            filled = (await bank.load(LONG)).version
            for _ in range(filled, events, PER_APPEND):
                await bank.append(LONG, [DEPOSIT] * PER_APPEND, expected="any")

    run(main)
    return {}


def load_long(url: str, name: str, way: str) -> Answer:
    """Milliseconds to load the long account, from its ``snapshot`` or from its ``events``,
    and the growth of the process meanwhile."""
    app = Streams(url)
    snapshot = Snapshot(every=EVERY) if way == "snapshot" else None
    bank = open_accounts(app, name, cached=False, snapshot=snapshot)

    async def main() -> Answer:
        async with app:
            await bank.load("another")
            await wait_built(app, bank)  # this is measured separately
            with MemorySampler(0.01) as memory:
                timed = await _one_by_one(
                    lambda number: bank.load(LONG), 100 if way == "snapshot" else 1
                )
        return {**timed, "growth": memory.growth}

    answer: Answer = run(main)
    return answer


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task
    for task in (
        decide, load, fill_accounts, replay_events, one_of_many, fill_long, load_long,
    )
}  # fmt: skip
