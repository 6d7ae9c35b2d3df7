"""Slow handlers, pausing without end, and reading the past beside a live group."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

from streams import Flow, Message, Streams
from streams.replay import replay
from tests.faults.run import Run
from tests.faults.sizes import BOTH, on, sizes
from tests.servers.lifetime import until

QUICK = Flow(commit=0.1)


@on("kafka")
async def test_a_handler_slower_than_max_poll_interval_stays_in_the_group(run: Run) -> None:
    settings = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}
    app = Streams(f"{run.ground.direct.partition('?')[0]}?{urlencode(settings)}")
    topic = app.topic(run.topic, bytes)
    calls: list[str] = []

    @app.processor(topic, group=run.group, flow=Flow(messages=1, commit=0.1))
    async def slow(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)
        await asyncio.sleep(9.0)

    async with app:
        await topic.publish(b"slow", id="slow")
        await asyncio.to_thread(until, run.at_end, 60, "handled and committed")
        stats = app.stats().processors["slow"]
    assert calls == ["slow"]
    # Assigned once, never revoked or lost: the topic and its retry topic, in one or two steps.
    assert stats.rebalances <= 2
    assert stats.losses == 0


@sizes(50, 1_000, long_logs=BOTH)
async def test_paused_and_resumed_again_and_again(run: Run, size: int) -> None:
    """Nothing is skipped and nothing repeated."""
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes)
    calls: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=Flow(messages=200, commit=0.1))
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)
        await asyncio.sleep(0.001)

    messages = 40 * size
    async with app:
        records = [
            topic.record(b"x", key=f"k{number % 100}", id=f"m{number}")
            for number in range(messages)
        ]
        await app.publisher.publish_many(topic.name, records)
        for number in range(size):
            work.pause()
            # Now and then long enough for the driver itself to be paused.
            await asyncio.sleep(0.4 if number % 50 == 0 else 0.002)
            work.resume()
            await asyncio.sleep(0.002)
        await asyncio.to_thread(until, run.at_end, 120, "handled and committed")
    assert len(calls) == messages
    assert len(set(calls)) == messages


@sizes(1_000, 50_000, long_logs=BOTH)
async def test_a_replay_beside_a_live_group_moves_nothing(run: Run, size: int) -> None:
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes)
    live: list[str] = []
    again: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=QUICK)
    async def work(value: bytes, message: Message[bytes]) -> None:
        live.append(message.id)

    def records(first: int) -> list[object]:
        return [
            topic.record(b"x", key=f"k{number % 100}", id=f"m{number}")
            for number in range(first, first + size)
        ]

    def places() -> dict[tuple[str, int], int]:
        found = run.log.describe_group(run.group).positions
        return {key: place.position for key, place in found.items()}

    async with app:
        await app.publisher.publish_many(topic.name, records(0))  # type: ignore[arg-type]
        await asyncio.to_thread(until, run.at_end, 60, "handled and committed")
        before = await asyncio.to_thread(places)
        replayed = await replay(app, topic, lambda value, message: again.append(message.id))
        assert await asyncio.to_thread(places) == before, "a replay moved the group"
        # And once more while the group works.
        both = asyncio.create_task(
            replay(app, topic, lambda value, message: again.append(message.id))
        )
        await app.publisher.publish_many(topic.name, records(size))  # type: ignore[arg-type]
        await both
        await asyncio.to_thread(until, run.at_end, 60, "handled and committed")
        members = (await asyncio.to_thread(run.log.describe_group, run.group)).members
    assert replayed.handled == size
    assert sorted(again[:size]) == sorted(f"m{number}" for number in range(size))
    assert sorted(live) == sorted(f"m{number}" for number in range(2 * size))
    assert len(members) == 1, "a replay joins no group"
