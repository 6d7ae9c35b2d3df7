"""Orders while workers are killed, and then a check of the books of stock, bank and carrier."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from examples.orders.saga import PRICE, Order
from examples.orders.services import Services
from examples.orders.shop import Ended, Shop, open_shop

CUPS, MONEY = 20, 3 * PRICE
"""Too few cups for all orders, and too little money for some customers."""

TIMEOUT = 120.0

ENDED_STATUSES = ("completed", "compensated")

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """The outcome of the orders, and the errors in the books."""

    statuses: Counter[str]
    kills: int
    errors: list[str]


def orders_of(count: int) -> dict[str, Order]:
    """Orders of a few customers, by ID: some are far away, some have too little money."""
    customers = ["ada", "bob", "cyd", "dan", "eve", "far-fay"]
    return {
        f"o{n:04}": Order(customers[n % len(customers)], ("cup", "pot")[n % 3 == 0])
        for n in range(count)
    }


async def run(
    url: str,
    database: str,
    count: int,
    kills: int,
    seed: int,
    report: Callable[[str], None],
    *,
    choreographed: bool = False,
) -> Outcome:
    """Place orders, kill workers while they carry them out, and check the books."""
    services = Services(database)
    wanted = orders_of(count)
    services.fill("cup", CUPS)
    services.fill("pot", count)
    for customer in {order.customer for order in wanted.values()}:
        services.deposit(customer, MONEY)
    async with open_shop(url, database, choreographed=choreographed) as shop:
        for id, order in wanted.items():
            await shop.place(order, id)
        report(f"{count} orders are placed")
        async with _workers(url, database, choreographed=choreographed) as workers:
            for number, limit in enumerate(_kill_points(count, kills, random.Random(seed))):
                await _wait_for_ended(shop, limit)
                workers.kill(number % 2)
                report(f"a worker was killed when {limit} orders were over")
            await _wait_for_ended(shop, count)
        found = await shop.ended()
    errors = audit(wanted, found, services)
    return Outcome(Counter(each.status for each in found), kills, errors)


def _kill_points(count: int, kills: int, random: random.Random) -> list[int]:
    return sorted(random.randrange(count * 3 // 4) for _ in range(kills))


async def _wait_for_ended(shop: Shop, count: int) -> None:
    """Wait until ``count`` orders have ended."""
    async with asyncio.timeout(TIMEOUT):
        while await shop.ended_count() < count:  # noqa: ASYNC110 - workers end them
            await asyncio.sleep(0.05)


class _Workers:
    """Two processes that carry orders out; one that was killed is restarted."""

    def __init__(self, url: str, database: str, *, choreographed: bool) -> None:
        self._command = [sys.executable, "-m", "examples.orders", "work", "--quiet"]
        if choreographed:
            self._command.append("--choreographed")
        self._environment = {
            **os.environ,
            "STREAMS_URL": url,
            "ORDERS_DB": database,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")]),
        }
        self._running = [self._start(), self._start()]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=self._environment)

    def kill(self, number: int) -> None:
        """``kill -9`` a worker, whatever it is doing."""
        self._end(self._running[number], signal.SIGKILL)
        self._running[number] = self._start()

    def close(self) -> None:
        for worker in self._running:
            self._end(worker, signal.SIGTERM)

    def _end(self, worker: subprocess.Popen[bytes], how: signal.Signals) -> None:
        worker.send_signal(how)
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


@asynccontextmanager
async def _workers(url: str, database: str, *, choreographed: bool) -> AsyncIterator[_Workers]:
    workers = await asyncio.to_thread(_Workers, url, database, choreographed=choreographed)
    try:
        yield workers
    finally:
        await asyncio.to_thread(workers.close)


def audit(wanted: dict[str, Order], found: Sequence[Ended], services: Services) -> list[str]:
    """Check that the three services agree: orders not shipped were not paid, and are in stock."""
    errors = [f"{each.id} is {each.status}" for each in found if each.status not in ENDED_STATUSES]
    errors += [f"{id} was lost" for id in wanted.keys() - {each.id for each in found}]
    done = [each for each in found if each.status == "completed"]
    parcels = services.parcels()
    sent = sorted(each.order.parcel or "" for each in done)
    if sent != sorted(parcels):
        errors.append(f"{len(parcels)} parcels were sent for {len(done)} orders")
    for sku, left in services.pieces().items():
        first = CUPS if sku == "cup" else len(wanted)
        out = sum(1 for each in done if each.order.sku == sku)
        if left != first - out:
            errors.append(f"{sku}: {left} left of {first}, and {out} sent")
    for customer, cents in services.balances().items():
        paid = sum(each.order.cents for each in done if each.order.customer == customer)
        if cents != MONEY - paid:
            errors.append(f"{customer}: {cents} left of {MONEY}, and {paid} to pay")
    return errors
