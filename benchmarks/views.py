"""What views cost: rebuilds and reads, as tasks of a worker process.

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
    fill_accounts,
    open_accounts,
)
from benchmarks.counting import MessageCounter, percentiles
from benchmarks.ours import Answer, run, wait_done
from streams import Streams, View
from streams.eventsourcing.views.tracker import Progress
from streams.log.url import open_log

_kept_open: list[Any] = []
"""Keeps a log in memory as long as this process lives."""


class Balance(msgspec.Struct, frozen=True):
    """A document."""

    owner: str = ""
    cents: int = 0
    moves: int = 0


def fold_balance(balance: Balance | None, event: AccountEvent) -> Balance:
    """The view's function."""
    if type(event) is Opened:
        return Balance(event.owner)
    found = balance or Balance()
    return Balance(found.owner, found.cents + event.cents, found.moves + 1)  # type: ignore[union-attr]


async def _until_folded(view: View[Balance]) -> Progress:
    """Wait until a view has folded all that there is."""
    while (progress := await view.progress()).share != 1.0:  # noqa: ASYNC110 - the log says it
        await asyncio.sleep(0.01)
    return progress


def fill_bank(url: str, name: str, accounts: int, events: int) -> Answer:
    """So many accounts with so many events each; once."""
    if url.startswith("memory"):
        _kept_open.append(open_log(url))
    return fill_accounts(url, name, accounts, events)


def rebuild(url: str, name: str, events: int) -> Answer:
    """A view that is folded from the beginning, until all of it stands in the log."""
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


def process_events(url: str, name: str, events: int) -> Answer:
    """The same events through a bare processor."""
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
    """Milliseconds that a ``get`` of one of so many documents takes."""
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


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task for task in (fill_bank, rebuild, process_events, get_documents)
}
