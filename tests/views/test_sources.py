"""Sources with positions at which there is no message: a view does not wait for them."""

from __future__ import annotations

import pytest
from msgspec import Struct

from streams import Retention, Streams, Topic, View
from tests.conformance.stage import Stage

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
    stage: Stage, keyed: bool
) -> None:
    """On Kafka it takes up an offset behind the last message."""
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
