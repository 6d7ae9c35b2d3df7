"""A source that is deleted and made anew under its name: it is another history, upon which no view
folds what it made of the first one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from streams import Position, Streams, View, ViewTimeout
from streams.eventsourcing.views.operations import ViewOperationRefused, connected_operator
from tests.conformance.stage import Stage
from tests.views.bank import until_nobody_runs

pytestmark = pytest.mark.anyio

KEYED = pytest.mark.parametrize("keyed", [False, True])


class Ordered(Struct, frozen=True):
    customer: str
    cents: int


class Sum(Struct, frozen=True):
    cents: int = 0
    count: int = 0


def fold(sum: Sum | None, event: Ordered) -> Sum:
    found = sum or Sum()
    return Sum(found.cents + event.cents, found.count + 1)


class Shop:
    """An app with a view of one topic, as one process has it."""

    def __init__(self, app: Streams, name: str, *, keyed: bool) -> None:
        self.app = app
        self.orders = app.topic(name, Ordered, key="customer", partitions=1)
        key = (lambda event: event.customer) if keyed else None
        self.sums: View[Sum] = View(app, f"{name}-sums", Sum, fold, self.orders, key=key)

    async def order(self, cents: int, count: int) -> Position:
        for _ in range(count):
            position = await self.orders.publish(Ordered("ada", cents))
        return position

    def waiting(self) -> tuple[str, ...]:
        return self.sums.health().waiting


async def make_anew(stage: Stage, topic: str) -> None:
    log: Any = stage.anchor
    before = await asyncio.to_thread(log.incarnation, topic)
    await asyncio.to_thread(log.delete_topic, topic)
    while True:  # on Kafka the brokers hear of it one after the other
        try:
            await asyncio.to_thread(log.create_topic, topic, 1)
            if await asyncio.to_thread(log.incarnation, topic) != before:
                return
        except Exception:
            await asyncio.sleep(0.05)


async def rebuild(stage: Stage, view: str) -> None:
    async with connected_operator(stage.url, view) as operator:
        await until_nobody_runs(stage, operator)
        await operator.rebuild(1)


@KEYED
async def test_nothing_is_folded_upon_another_history(stage: Stage, keyed: bool) -> None:
    """Nor is what is there of the first one read for it; made anew, documents are of the second."""
    name = stage.topic_name
    shop = Shop(stage.app(), name, keyed=keyed)
    async with shop.app:
        assert await shop.sums.get("ada", wait_for=await shop.order(1, 5)) == Sum(5, 5)
    await make_anew(stage, name)
    shop = Shop(stage.app(), name, keyed=keyed)
    async with shop.app:
        position = await shop.order(100, 4)
        assert int(position.offset) < 5 or stage.case.name == "redis"
        (reason, *_) = await stage.until(shop.waiting, "health says it")
        assert "CheckpointBeyondLog" in reason
        assert f"{name!r} that was deleted" in reason
        with pytest.raises(ViewTimeout, match=f"{name!r} that was deleted.* streams views rebuild"):
            await shop.sums.get("ada", wait_for=position, timeout=0.5)
        last = await shop.order(100, 4)  # further than the first one was
        with pytest.raises(ViewTimeout, match="that was deleted"):
            await shop.sums.get_many(["ada"], wait_for=last, timeout=0.5)
        assert await shop.sums.get("ada") == Sum(5, 5)
    await rebuild(stage, shop.sums.name)
    shop = Shop(stage.app(), name, keyed=keyed)
    async with shop.app:
        assert await shop.sums.get("ada", wait_for=last) == Sum(800, 8)
        assert shop.waiting() == ()


@KEYED
async def test_a_process_that_runs_meanwhile_folds_nothing_of_it(stage: Stage, keyed: bool) -> None:
    name = stage.topic_name
    shop = Shop(stage.app(), name, keyed=keyed)
    async with shop.app:
        first = await shop.order(1, 5)
        assert await shop.sums.get("ada", wait_for=first) == Sum(5, 5)
        await make_anew(stage, name)
        (reason, *_) = await stage.until(shop.waiting, "health says it")
        assert "CheckpointBeyondLog" in reason
        last = await shop.order(100, 8)
        with pytest.raises(ViewTimeout, match="that was deleted"):
            await shop.sums.get("ada", wait_for=last, timeout=0.5)
        assert await shop.sums.get("ada") == Sum(5, 5)
    await rebuild(stage, shop.sums.name)
    shop = Shop(stage.app(), name, keyed=keyed)
    async with shop.app:
        assert await shop.sums.get("ada", wait_for=last) == Sum(800, 8)


async def test_a_keyed_view_is_made_anew_from_its_sources(stage: Stage) -> None:
    """So it is refused while somebody runs it, whatever its keyed topic has."""
    shop = Shop(stage.app(), stage.topic_name, keyed=True)
    async with shop.app, connected_operator(stage.url, shop.sums.name) as operator:
        last = await shop.order(1, 3)
        await shop.sums.get("ada", wait_for=last)
        with pytest.raises(ViewOperationRefused, match="written again from the sources"):
            await operator.rebuild(1)
        assert await shop.sums.get("ada") == Sum(3, 3)
    before = stage.anchor.incarnation(f"{shop.sums.name}.v1.keyed")
    await rebuild(stage, shop.sums.name)
    shop = Shop(stage.app(), stage.topic_name, keyed=True)
    async with shop.app:
        assert await shop.sums.get("ada", wait_for=last) == Sum(3, 3)
        assert stage.anchor.incarnation(f"{shop.sums.name}.v1.keyed") != before
