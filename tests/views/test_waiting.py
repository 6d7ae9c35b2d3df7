"""What the log is asked for what a read waits for; what is remembered makes no read older."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from msgspec import Struct

from streams import InvalidValue, Position, Streams, Topic, View, ViewNotReady, ViewTimeout
from streams.eventsourcing.views.operations import connected_operator
from tests.conformance.stage import Stage
from tests.views.bank import until_nobody_runs

pytestmark = pytest.mark.anyio


class Ordered(Struct, frozen=True):
    customer: str
    item: str


class Returned(Struct, frozen=True):
    customer: str
    item: str


class Item(Struct, frozen=True):
    orders: int = 0
    returns: int = 0


def item_of(event: Ordered | Returned) -> str:
    return event.item


def count(item: Item | None, event: Ordered | Returned) -> Item:
    found = item or Item()
    if isinstance(event, Ordered):
        return Item(found.orders + 1, found.returns)
    return Item(found.orders, found.returns + 1)


class Shop:
    """An app with a keyed view of two topics, as one process has it."""

    def __init__(self, app: Streams, name: str, fold: Any = count) -> None:
        self.app = app
        self.orders: Topic[Ordered] = app.topic(
            f"{name}-orders", Ordered, key="customer", partitions=2
        )
        self.returns: Topic[Returned] = app.topic(
            f"{name}-returns", Returned, key="customer", partitions=2
        )
        self.items: View[Item] = View(
            app, f"{name}-items", Item, fold, self.orders, self.returns, key=item_of
        )
        self.keyed_topic = f"{self.items.name}.v1.keyed"


class Asked(NamedTuple):
    """What one process asked its log about the view."""

    committed: list[str]
    ends: list[int]

    def clear(self) -> None:
        self.committed.clear()
        self.ends.clear()


@asynccontextmanager
async def reading(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Shop, Asked]]:
    """A process that only reads, and what it asks."""
    shop, asked = Shop(stage.app(), stage.topic_name), Asked([], [])
    async with shop.app.connected():
        log = shop.app.log
        kind, committed, watermarks = type(log), type(log).committed, type(log).watermarks

        def counted_committed(self: Any, group: str, topic: str) -> Any:
            if self is log and group == shop.keyed_topic:
                asked.committed.append(topic)
            return committed(self, group, topic)

        def counted_watermarks(self: Any, topic: str, partition: int) -> Any:
            if self is log and topic == shop.keyed_topic:
                asked.ends.append(partition)
            return watermarks(self, topic, partition)

        monkeypatch.setattr(kind, "committed", counted_committed)
        monkeypatch.setattr(kind, "watermarks", counted_watermarks)
        yield shop, asked


async def reads_without_asking(shop: Shop, asked: Asked, position: Position) -> None:
    """Read until one read asked nothing: while this process was held up for a second it asks."""
    deadline = time.monotonic() + 20
    while True:
        asked.clear()
        assert await shop.items.get("cup", wait_for=position) == Item(2)
        assert await shop.items.get_many(["cup"], wait_for=position) == {"cup": Item(2)}
        if not asked.committed and not asked.ends:
            return
        assert time.monotonic() < deadline, asked


async def test_what_is_known_to_be_folded_is_not_asked_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = Shop(stage.app(), stage.topic_name)
    async with folds.app, reading(stage, monkeypatch) as (reads, asked):
        first = await folds.orders.publish(Ordered("ada", "cup"))
        second = await folds.orders.publish(Ordered("ada", "cup"))
        await reads.items.ready()
        asked.clear()
        assert await reads.items.get("cup", wait_for=second) == Item(2)
        assert set(asked.committed) == {reads.orders.name}
        assert len(asked.ends) == 1  # of the partition that the document is in
        await reads_without_asking(reads, asked, second)
        await reads_without_asking(reads, asked, first)  # all below is known as well
        asked.clear()
        third = await folds.returns.publish(Returned("ada", "cup"))
        assert await reads.items.get("cup", wait_for=third) == Item(2, 1)
        assert set(asked.committed) == {reads.returns.name}


async def test_a_partition_that_does_not_exist_is_refused_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends a token decides what it says."""
    folds, reads = (Shop(stage.app(), stage.topic_name) for _ in range(2))
    async with folds.app, reads.app.connected():
        position = await folds.orders.publish(Ordered("ada", "cup"))
        await reads.items.get("cup", wait_for=position, timeout=60)
        log, topic, asked = reads.app.log, reads.orders.name, list[str]()
        describe = type(log).describe_topic

        def counted(self: Any, topic: str) -> Any:
            if self is log:
                asked.append(topic)
            return describe(self, topic)

        monkeypatch.setattr(type(log), "describe_topic", counted)
        for token in (f"{topic}/2/1", f"{topic}/77/1", f"{topic}/-1/1"):
            with pytest.raises(InvalidValue, match=r"has partitions 0 to 1|not a position"):
                await reads.items.get("cup", wait_for=token, timeout=5)
            with pytest.raises(InvalidValue, match=r"has partitions 0 to 1|not a position"):
                await reads.items.get_many(["cup"], wait_for=token, timeout=5)
        asked.clear()
        await reads.items.get("cup", wait_for=position)
        assert topic not in asked  # what is known to exist is not asked for again


@pytest.mark.parametrize("hears", ["it", "nothing", "nothing for long"])
async def test_documents_that_are_made_anew_are_waited_for_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, hears: str
) -> None:
    """Whether the process that reads has heard of it or not."""
    may_fold = threading.Event()
    may_fold.set()

    def gated(item: Item | None, event: Ordered | Returned) -> Item:
        assert may_fold.wait(60)
        return count(item, event)

    async with reading(stage, monkeypatch) as (reads, asked):
        folds = Shop(stage.app(), stage.topic_name, gated)
        async with folds.app:
            await folds.orders.publish(Ordered("ada", "cup"))
            position = await folds.orders.publish(Ordered("ada", "cup"))
            await reads.items.ready()
            await reads.items.get("cup", wait_for=position)
            await reads_without_asking(reads, asked, position)
        family = reads.items._family
        if hears != "it":
            at = family._heard_at

            async def hear_nothing() -> None:
                family._heard_at = time.monotonic() if hears == "nothing" else at - 2

            monkeypatch.setattr(family, "_load_view", hear_nothing)
            await hear_nothing()
        may_fold.clear()
        async with connected_operator(stage.url, reads.items.name) as operator:
            await until_nobody_runs(stage, operator)
            await operator.rebuild(1, heard_after=0)
        folds = Shop(stage.app(), stage.topic_name, gated)
        async with folds.app:
            with pytest.raises((ViewNotReady, ViewTimeout)):
                await reads.items.get("cup", wait_for=position, timeout=0.2)
            with pytest.raises((ViewNotReady, ViewTimeout)):
                await reads.items.get_many(["cup"], wait_for=position, timeout=0.2)
            may_fold.set()
            await folds.items.ready()
            assert await reads.items.get("cup", wait_for=position, timeout=60) == Item(2)
