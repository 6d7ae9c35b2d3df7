"""Reset: a group goes on from another place, and handles what comes again."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from streams import ConfigError, GroupNotEmpty, InvalidValue, NotFound, Streams
from streams.engine.progress import decode_progress, encode_progress
from streams.log.protocol import Committed
from streams.replay import reset
from streams.testing import Clock, harness
from tests.processing.support import until

pytestmark = pytest.mark.anyio

START = datetime(2024, 1, 1, tzinfo=timezone.utc)


async def test_what_comes_again_is_handled_although_its_ids_were_seen(tmp_path: Path) -> None:
    app, seen = Streams(f"sqlite:///{tmp_path}/log.db"), list[int]()
    topic = app.topic("t", int, partitions=2)

    @app.processor(topic, group="g")
    def handle(value: int) -> None:
        seen.append(value)

    async def run(count: int) -> None:
        async with app:
            await until(lambda: len(seen) >= count)

    async with app.connected():
        await topic.publish_many(range(20))
    await run(20)
    async with app.connected():
        moves = await reset(app, "g", topic, -3)
        assert [(each.again, each.skipped) for each in moves] == [(3, 0), (3, 0)]
    await run(26)
    assert len(seen) == 26
    async with app.connected():
        before = app.log.describe_group("g").positions
        again = await reset(app, "g", "t", "earliest", dry_run=True)
        assert sum(each.again or 0 for each in again) == 20
        assert app.log.describe_group("g").positions == before


async def test_places() -> None:
    app, clock = Streams(), Clock(START)
    topic = app.topic("t", int, partitions=1)
    async with harness(app, clock=clock):
        log = app.log
        log.initialize_offsets("g", "t", {0: 0})
        for n in range(10):
            await topic.publish(n)
            clock.advance(60)

        async def to(when: Any, **options: Any) -> int:
            (move,) = await reset(app, "g", topic, when, **options)
            place = log.describe_group("g").positions["t", 0]
            assert place.position == move.after
            # The floor is the position: no older message counts as seen.
            assert decode_progress(*place) == (place.position, [])
            return place.position

        assert await to("latest") == 10
        assert await to(-4) == 6
        assert await to(-4) == 2
        assert await to(-4) == 0
        assert await to(7) == 7
        assert await to("3") == 3
        assert await to(START + timedelta(minutes=5)) == 5
        assert await to(timedelta(minutes=2)) == 8
        assert await to({0: 1}) == 1
        assert await to("earliest") == 0
        with pytest.raises(InvalidValue, match="ends at 10"):
            await to(11)
        with pytest.raises(InvalidValue, match="no time zone"):
            await to(datetime(2024, 1, 1))  # noqa: DTZ001
        with pytest.raises(NotFound):
            await to(0, partition=1)
        with pytest.raises(ConfigError, match="leave partition out"):
            await to({0: 1}, partition=0)
        with pytest.raises(NotFound):
            await reset(app, "stranger", topic, 0)
        log.create_topic("fresh", 1)
        with pytest.raises(InvalidValue, match="has no position in"):
            await reset(app, "g", "fresh", -1)
        assert [each.before for each in await reset(app, "g", "fresh", 0)] == [None]


async def test_what_was_settled_out_of_order_is_counted() -> None:
    app = Streams()
    topic = app.topic("t", int, partitions=1)
    async with harness(app):
        await topic.publish_many(range(10))
        # Settled: 0, 1 and, out of order, 4, 5 and 8.
        held = Committed(2, encode_progress(2, 0, [(4, 6), (8, 9)]).progress)

        async def counts(when: Any) -> tuple[int | None, int | None]:
            app.log.reset_offsets("g", "t", {0: held})
            (move,) = await reset(app, "g", topic, when)
            return move.again, move.skipped

        assert await counts(0) == (5, 0)
        assert await counts(2) == (3, 0)
        assert await counts(5) == (2, 2)
        assert await counts("latest") == (0, 5)


async def test_a_live_group_is_moved_only_by_force() -> None:
    app, seen = Streams(), list[int]()
    topic = app.topic("t", int)

    @app.processor(topic, group="g")
    def handle(value: int) -> None:
        seen.append(value)

    async with harness(app) as h:
        await topic.publish_many(range(5))
        await h.settled()
        with pytest.raises(GroupNotEmpty):
            await reset(app, "g", topic, "earliest")
        await h.settled()
        assert seen == [0, 1, 2, 3, 4]
        await reset(app, "g", topic, 2, force=True)
        await until(lambda: len(seen) == 8)
        await h.settled()
    assert seen == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_what_runs_when_a_live_group_is_moved_comes_again_too(concurrency: int) -> None:
    """A plain handler, which nobody can interrupt: it ends when its message came a second time."""
    app, seen = Streams(), list[int]()
    topic = app.topic("t", int, partitions=1)
    entered, release = threading.Event(), threading.Event()

    @app.processor(topic, group="g", concurrency=concurrency)
    def handle(value: int) -> None:
        seen.append(value)
        if len(seen) == 1:
            entered.set()
            release.wait(60)

    try:
        async with harness(app) as h:
            await topic.publish_many(range(3))
            assert await asyncio.to_thread(entered.wait, 60)
            stats = handle.stats()
            assert stats is not None
            before = stats.rebalances
            await reset(app, "g", topic, "earliest", force=True)

            def has_it_again() -> bool:
                stats = handle.stats()
                return stats is not None and stats.rebalances >= before + 2 and stats.in_flight > 0

            await until(has_it_again)
            release.set()
            await h.settled()
    finally:
        release.set()
    assert seen.count(0) == 2
