"""Sources with positions at which there is no message, for which a view does not wait; and
checkpoints that do not fit them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from streams import Position, Retention, Streams, Topic, View, ViewTimeout
from streams.eventsourcing.views.checkpoints import encode_checkpoint
from streams.log.documents import Checkpoint
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import deposit
from tests.views.bank import Bank, unique

pytestmark = pytest.mark.anyio


class Sold(Struct, frozen=True):
    item: str


class Count(Struct, frozen=True):
    sold: int = 0


def count(found: Count | None, event: Sold) -> Count:
    return Count((found or Count()).sold + 1)


def counted(app: Streams, sales: Topic[Sold], *, keyed: bool) -> View[Count]:
    if keyed:
        return View(app, f"{sales.name}-count", Count, count, sales, key=lambda event: event.item)
    return View(app, f"{sales.name}-count", Count, count, sales)


@pytest.mark.needs("trims")
@pytest.mark.parametrize("keyed", [False, True])
async def test_a_partition_that_retention_has_emptied_keeps_no_view_from_being_ready(
    stage: Stage, keyed: bool
) -> None:
    app = stage.app()
    sales = app.topic(
        stage.topic_name, Sold, key="item", partitions=2, retention=Retention(seconds=0.05)
    )
    emptied, kept = 0, 1

    async with app.connected():
        log = app.log
        await app.publisher.publish_many(
            sales.name, [sales.record(Sold(f"k{each}")) for each in range(20)]
        )
        assert all(log.watermarks(sales.name, each)[1] for each in (emptied, kept))
        keys = [f"k{each}" for each in range(20)]
        partitions = {key: (await sales.publish(Sold(key))).partition for key in keys}
        one = next(key for key in keys if partitions[key] == kept)

        def is_empty() -> bool:
            first, end = log.watermarks(sales.name, emptied)
            return first == end

        while not is_empty():
            await sales.publish(Sold(one))
    app = stage.app()
    sales = app.topic(
        stage.topic_name, Sold, key="item", partitions=2, retention=Retention(seconds=3_600)
    )
    view = counted(app, sales, keyed=keyed)
    async with app:
        await view.ready(timeout=60)
        assert app.health().ready


@pytest.mark.needs("commits_outputs")
@pytest.mark.parametrize("keyed", [False, True])
async def test_the_end_of_a_transaction_keeps_no_view_from_being_ready(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    """On Kafka it takes up an offset behind the last message. However long it takes to see that of
    all partitions: what was reached is not asked for again when the goal is taken anew."""
    monkeypatch.setattr("streams.eventsourcing.views.family.PROMOTION_LAG", 0.0)
    app = stage.app()
    numbers = stage.topic(app, partitions=1)
    sales = app.topic(f"{stage.topic_name}-sales", Sold, key="item", partitions=1)

    @app.processor(numbers, group=stage.group, to=sales, exactly_once=True)
    async def sell(number: int) -> Sold:
        return Sold(f"k{number}")

    async with app:
        await stage.publish(numbers, *range(5), key="k")
        await stage.committed(app)
    app = stage.app()
    sales = app.topic(f"{stage.topic_name}-sales", Sold, key="item", partitions=1)
    view = counted(app, sales, keyed=keyed)
    async with app:
        await view.ready(timeout=60)
        assert await view.get_many([f"k{each}" for each in range(5)]) == {
            f"k{each}": Count(1) for each in range(5)
        }


async def test_a_checkpoint_beyond_the_log_holds_up_its_own_partition_alone(stage: Stage) -> None:
    """It begins once the log has what the checkpoint says, or that was put right; health tells."""
    name = unique()
    bank = Bank(stage.app(), name)
    async with bank.app:
        places: dict[str, Position] = {}
        for number in range(12):
            done = await bank.accounts.decide(f"a-{number}", deposit, 1)
            places[f"a-{number}"] = done.positions[-1]
            await bank.balances.get(f"a-{number}", wait_for=done)
    bad = places["a-0"].partition
    good = next(key for key, place in places.items() if place.partition != bad)
    anchor: Any = stage.anchor
    collection = f"{bank.balances.name}.v1"

    def write_checkpoint(checkpoint: Checkpoint) -> None:
        writer = anchor.documents.claim(collection, bad)
        writer.write([], checkpoint)
        writer.close()

    right = await asyncio.to_thread(lambda: anchor.documents.checkpoint(collection, bad))
    wrong = Checkpoint(right.position + 1_000, encode_checkpoint((right.position + 999, "x"), {}))
    await asyncio.to_thread(write_checkpoint, wrong)
    bank = Bank(stage.app(), name)
    async with bank.app:
        done = await bank.accounts.decide(good, deposit, 2)
        found = await bank.balances.get(good, wait_for=done)
        assert found is not None
        assert found.cents == 3

        def waiting() -> Any:
            return bank.app.health().views[collection].waiting

        (reason,) = await stage.until(waiting, "health tells")
        assert f"/{bad}: CheckpointBeyondLog" in reason
        assert not bank.app.health().ok
        await asyncio.to_thread(write_checkpoint, right)
        done = await bank.accounts.decide("a-0", deposit, 2)
        found = await bank.balances.get("a-0", wait_for=done)
        assert found is not None
        await stage.until(lambda: not waiting(), "it goes on")
        found = await bank.balances.get("a-0")
        assert found is not None
        assert found.cents == 3


async def test_a_position_beyond_the_log_is_waited_for_until_the_time_is_up(stage: Stage) -> None:
    """It may come; no reader stands at the end of the log meanwhile."""
    app = stage.app()
    sales = app.topic(stage.topic_name, Sold, key="item", partitions=1)
    view = counted(app, sales, keyed=False)
    async with app:
        last = await sales.publish(Sold("cup"))
        await view.get("cup", wait_for=last)
        with pytest.raises(ViewTimeout):
            await view.get("cup", wait_for=last._replace(offset=last.offset + 100), timeout=1.5)
