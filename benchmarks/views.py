"""What views cost: building one from all events, and reading documents, as tasks of a worker.

The events are those of :mod:`benchmarks.aggregates`, which other rows read as well.
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
    declare_accounts,
    one_by_one,
)
from benchmarks.counting import MessageCounter
from benchmarks.ours import Answer, run
from streams import Streams


class Balance(msgspec.Struct, frozen=True):
    """One account's document."""

    owner: str = ""
    cents: int = 0
    reference: str = ""


def fold(balance: Balance | None, event: AccountEvent) -> Balance:
    """The view's function."""
    if isinstance(event, Opened):
        return Balance(event.owner)
    before = balance or Balance()
    return Balance(before.owner, before.cents + event.cents, event.reference)


def build_view(url: str, name: str, events: int) -> Answer:
    """A new view of all events of a bank, from entering the app until it can be read."""
    app = Streams(url)
    view = declare_accounts(app, name).view(f"built-{uuid4().hex}", Balance)(fold)

    async def main() -> Answer:
        began, cpu = time.perf_counter(), time.process_time()
        async with app:
            await view.ready()
            took, used = time.perf_counter() - began, time.process_time() - cpu
        return {"rate": events / took, "cpu_us": used / events * 1e6}

    answer: Answer = run(main)
    return answer


def handle_events(url: str, name: str, events: int) -> Answer:
    """The same events through a bare processor that does nothing, in the same way."""
    app = Streams(url)
    bank = declare_accounts(app, name)
    counter = MessageCounter(events)
    one = counter.count_one

    @app.processor(bank.events, group=f"handled-{uuid4().hex}")
    def count(event: Any) -> None:
        one()

    async def main() -> Answer:
        began, cpu = time.perf_counter(), time.process_time()
        async with app:
            await asyncio.to_thread(counter.done.wait)
            took, used = time.perf_counter() - began, time.process_time() - cpu
        return {"rate": events / took, "cpu_us": used / events * 1e6}

    answer: Answer = run(main)
    return answer


def get_documents(url: str, name: str, accounts: int) -> Answer:
    """One document of so many, again and again."""
    app = Streams(url)
    view = declare_accounts(app, name).view("read", Balance)(fold)
    chosen = random.Random(name)

    async def call(number: int) -> None:
        found = await view.get(account_id(chosen.randrange(accounts)))
        assert found is not None

    async def main() -> Answer:
        async with app:
            await view.ready()
            await one_by_one(call, WARM_UP)
            return await one_by_one(call, SAMPLE)

    answer: Answer = run(main)
    return answer


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task for task in (build_view, handle_events, get_documents)
}
