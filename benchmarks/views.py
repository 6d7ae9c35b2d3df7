"""The cost of views: rebuilds and reads, as tasks of a worker process.

The accounts of one bank (:mod:`benchmarks.aggregates`), folded into a document each.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec

from benchmarks.aggregates import (
    SAMPLE,
    WARM_UP,
    AccountEvent,
    Opened,
    account_id,
    deposit,
    fill_accounts,
    open_accounts,
)
from benchmarks.counting import MessageCounter, percentiles
from benchmarks.machine import MemorySampler
from benchmarks.ours import Answer, run, wait_done
from streams import Streams, Topic, View
from streams.eventsourcing.views.tracker import FoldingProgress
from streams.log.url import open_log

EVENTS_EACH = 100
"""Events of each account."""
PARTITIONS = 8
FILLED_AT_ONCE = 10_000

_kept_open: list[Any] = []
"""Keeps a log in memory open as long as this process lives."""


class Balance(msgspec.Struct, frozen=True):
    """A document of the view."""

    owner: str = ""
    cents: int = 0
    moves: int = 0


def fold_balance(balance: Balance | None, event: AccountEvent) -> Balance:
    """The view's function."""
    if type(event) is Opened:
        return Balance(event.owner)
    found = balance or Balance()
    return Balance(found.owner, found.cents + event.cents, found.moves + 1)  # type: ignore[union-attr]


async def _until_folded(view: View[Any]) -> FoldingProgress:
    """Wait until a view has folded all events."""
    while (progress := await view.progress()).share != 1.0:  # noqa: ASYNC110 - the log says it
        await asyncio.sleep(0.01)
    return progress


def fill_bank(url: str, name: str, accounts: int, events: int) -> Answer:
    """Fill accounts with events; once."""
    if url.startswith("memory"):
        _kept_open.append(open_log(url))
    return fill_accounts(url, name, accounts, events)


def rebuild(url: str, name: str, events: int) -> Answer:
    """Fold a view from the beginning, until all of it is stored in the log."""
    app = Streams(url)
    bank = open_accounts(app, name)
    began: list[float] = []

    def fold(balance: Balance | None, event: AccountEvent) -> Balance:
        if not began:
            began[:] = [time.perf_counter(), time.process_time()]
        return fold_balance(balance, event)

    view: View[Balance] = View(app, f"rebuilt-{uuid4().hex}", Balance, fold, bank.events)

    async def main() -> Answer:
        async with app:
            progress = await _until_folded(view)
            took, used = time.perf_counter() - began[0], time.process_time() - began[1]
        assert progress.total is not None
        assert progress.total >= events
        return {"rate": progress.total / took, "cpu_us": used / progress.total * 1e6}

    answer: Answer = run(main)
    return answer


READ_PAUSE = 0.005
"""Seconds between two reads while a version is built."""
WRITE_PAUSE = 0.01
"""Seconds between two decisions while a version is built."""
LATER_READS = 50
"""The least number of reads after the new version was promoted."""


def rebuild_beside(url: str, name: str, events: int) -> Answer:
    """Fold version 2 of a view from the beginning while version 1 serves: it is read, and
    accounts are decided on, all the while, until version 2 has been promoted and read.

    ``stale_first`` is the greatest lag of version 1's documents behind the decisions, in ms, and
    ``staler`` the greatest additional lag of a read.

    :raises RuntimeError: a read went back in time.
    """
    view_name = f"served-{uuid4().hex}"
    _fold_first(url, name, view_name)
    app = Streams(url)
    bank = open_accounts(app, name)
    first: View[Balance] = View(app, view_name, Balance, fold_balance, bank.events)
    began: list[float] = []
    ended: list[float] = []
    left = events

    def fold(balance: Balance | None, event: AccountEvent) -> Balance:
        nonlocal left
        if not began:
            began[:] = [time.perf_counter(), time.process_time()]
        left -= 1
        if left == 0:
            ended[:] = [time.perf_counter(), time.process_time()]
        return fold_balance(balance, event)

    second: View[Balance] = View(app, view_name, Balance, fold, bank.events, version=2)
    chosen = random.Random(events)
    reads: list[float] = []
    staleness: list[float] = []
    staleness_of_first: list[float] = []
    decided: dict[tuple[str, int], float] = {}
    """When each deposit of an account was decided."""
    seen: dict[str, int] = {}
    last = ""
    """The account that was decided on last, which every other read is of."""
    is_over = False

    def any_account() -> str:
        return account_id(chosen.randrange(max(1, events // EVENTS_EACH)))

    def behind(key: str, document: Balance | None, asked: float) -> float:
        """The lag of a document in seconds."""
        moves = 0 if document is None else document.moves
        return max(0.0, asked - decided.get((key, moves + 1), asked))

    async def read() -> None:
        while not is_over:
            key = last if len(reads) % 2 and last else any_account()
            asked = time.perf_counter()
            of_first = await asyncio.to_thread(first._version.read, app.log, key.encode())
            staleness_of_first.append(behind(key, of_first.document, asked))
            asked = time.perf_counter()
            found = await second.get(key)
            reads.append(time.perf_counter() - asked)
            staleness.append(behind(key, found, asked))
            moves = 0 if found is None else found.moves
            if moves < seen.get(key, 0):
                raise RuntimeError(f"{key} was at {seen[key]} deposits, and is at {moves} again")
            seen[key] = moves
            await asyncio.sleep(READ_PAUSE)

    async def write() -> None:
        nonlocal last
        while not is_over:
            key = any_account()
            done = await bank.decide(key, deposit, 1)
            decided[key, done.version - 1] = time.perf_counter()
            last = key
            await asyncio.sleep(WRITE_PAUSE)

    async def until_promoted() -> None:
        nonlocal is_over
        while not ended or second.health().promoted != 2:  # noqa: ASYNC110 - it is in the log
            await asyncio.sleep(0.01)
        enough = len(reads) + LATER_READS
        while len(reads) < enough:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        is_over = True

    async def main() -> Answer:
        async with app, asyncio.TaskGroup() as tasks:
            for each in (read, write, until_promoted):
                tasks.create_task(each())
        took, used = ended[0] - began[0], ended[1] - began[1]
        answer = {"rate": events / took, "cpu_us": used / events * 1e6, "reads": len(reads)}
        answer |= {key: value * 1e3 for key, value in percentiles(reads).items()}
        oldest, oldest_of_first = max(staleness) * 1e3, max(staleness_of_first) * 1e3
        return answer | {
            "stale_first": oldest_of_first,
            "staler": max(0.0, oldest - oldest_of_first),
        }

    answer: Answer = run(main)
    return answer


def _fold_first(url: str, name: str, view_name: str) -> None:
    """Fold and promote version 1."""
    app = Streams(url)
    bank = open_accounts(app, name)
    view: View[Balance] = View(app, view_name, Balance, fold_balance, bank.events)

    async def main() -> None:
        async with app:
            await _until_folded(view)
            await view.ready(60)

    run(main)


def process_events(url: str, name: str, events: int) -> Answer:
    """Pass the same events through a bare processor."""
    app = Streams(url)
    bank = open_accounts(app, name)
    counter = MessageCounter(events)
    one = counter.count_one

    @app.processor(bank.events, group=f"bare-{uuid4().hex}")
    async def count(event: AccountEvent) -> None:
        one()

    async def main() -> None:
        async with app:
            await wait_done(counter.done, app)

    run(main)
    return counter.result


def get_documents(url: str, name: str, documents: int) -> Answer:
    """Milliseconds of a ``get`` of one of many documents."""
    app = Streams(url)
    bank = open_accounts(app, name, cached=False)
    view: View[Balance] = View(app, f"{name}.balances", Balance, fold_balance, bank.events)
    chosen = random.Random(documents)

    async def main() -> Answer:
        async with app:
            await _until_folded(view)
            await view.ready()
            seconds: list[float] = []
            for number in range(WARM_UP + SAMPLE):
                began = time.perf_counter()
                found = await view.get(account_id(chosen.randrange(documents)))
                if number >= WARM_UP:
                    seconds.append(time.perf_counter() - began)
                assert found is not None
        found_ms = percentiles(seconds)
        return {key: value * 1e3 for key, value in found_ms.items()}

    answer: Answer = run(main)
    return answer


# -- many documents --------------------------------------------------------------------------------


class Reading(msgspec.Struct, frozen=True):
    """A meter's value."""

    meter: str
    value: int


def fold_reading(last: Reading | None, reading: Reading) -> Reading:
    """The view's function: the last reading of each meter."""
    return reading


def _meter(number: int) -> str:
    return f"meter-{number:08d}"


def _readings(app: Streams, topic: str) -> Topic[Reading]:
    return app.topic(topic, Reading, key="meter", partitions=PARTITIONS)


def fill_readings(url: str, topic: str, documents: int) -> Answer:
    """Publish one reading for each of many meters; once."""
    app = Streams(url)
    readings = _readings(app, topic)

    async def main() -> None:
        async with app.connected():
            ends = [app.log.watermarks(topic, each)[1] for each in range(PARTITIONS)]
            if any(ends):
                return
            for start in range(0, documents, FILLED_AT_ONCE):
                numbers = range(start, min(start + FILLED_AT_ONCE, documents))
                await readings.publish_many([Reading(_meter(each), each) for each in numbers])

    run(main)
    return {}


def fold_readings(url: str, topic: str, documents: int) -> Answer:
    """Fold a document for each of many meters: the rate, the process's peak memory during the
    folding and the reads, and the milliseconds of a ``get`` of any."""
    app = Streams(url)
    view: View[Reading] = View(
        app, f"{topic}-{uuid4().hex}", Reading, fold_reading, _readings(app, topic)
    )
    chosen = random.Random(documents)

    async def main() -> Answer:
        with MemorySampler() as memory:
            async with app:
                began = time.perf_counter()
                await _until_folded(view)
                took = time.perf_counter() - began
                await view.ready(600)
                seconds: list[float] = []
                for number in range(WARM_UP + SAMPLE):
                    expected = chosen.randrange(documents)
                    asked = time.perf_counter()
                    found = await view.get(_meter(expected))
                    if number >= WARM_UP:
                        seconds.append(time.perf_counter() - asked)
                    assert found is not None
                    assert found.value == expected
        peak = max(size for _, size in memory.samples)
        found_ms = {key: value * 1e3 for key, value in percentiles(seconds).items()}
        return {"rate": documents / took, "peak": peak, **found_ms}

    answer: Answer = run(main)
    return answer


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task
    for task in (
        fill_bank,
        rebuild,
        rebuild_beside,
        process_events,
        get_documents,
        fill_readings,
        fold_readings,
    )
}
