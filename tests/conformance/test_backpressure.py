"""**backpressure** and **drain**: what is held is bounded, and a stop finishes what runs."""

from __future__ import annotations

import asyncio

import pytest

from streams import Flow, Message, Streams
from tests.conformance.stage import QUICK, Stage
from tests.servers.lifetime import until


@pytest.mark.parametrize("bound", [1, 7, 50])
async def test_messages_held_are_bounded_by_count(stage: Stage, bound: int) -> None:
    app, gate = stage.app(), asyncio.Event()
    topic = stage.topic(app)
    most = 0

    def look() -> int:
        return app.stats().processors["handle"].in_flight

    flow = Flow(messages=bound, commit=0.05)
    app.processor(topic, group=stage.group, concurrency=500, flow=flow)(
        stage.recorder(lambda value, _: gate.wait())
    )
    async with app:
        await stage.publish(topic, *range(400), key=str)
        await stage.until(lambda: look() >= bound, "the bound reached")
        for _ in range(50):
            most = max(most, look())
            await asyncio.sleep(0.005)
        gate.set()
        await stage.handled(400)
        most = max(most, look())
    assert most <= bound
    assert stage.seen.most_at_once <= bound


async def test_messages_held_are_bounded_by_bytes(stage: Stage) -> None:
    app, gate = stage.app(), asyncio.Event()
    topic = stage.topic(app, bytes, partitions=1)
    flow = Flow(bytes=1 << 20, commit=0.05)
    big = b"x" * 20_000
    count = 0

    @app.processor(topic, group=stage.group, concurrency=500, flow=flow)
    async def handle(value: bytes) -> None:
        nonlocal count
        await gate.wait()
        count += 1

    async with app:
        for _ in range(4):
            records = [topic.record(big) for _ in range(50)]
            await app.publisher.publish_many(topic.name, records)
        await stage.until(lambda: app.stats().processors["handle"].in_flight_bytes >= len(big) * 10)
        for _ in range(30):
            held = app.stats().processors["handle"].in_flight_bytes
            assert held <= 2 * (1 << 20), "held far beyond the bound"
            await asyncio.sleep(0.005)
        gate.set()
        await stage.until(lambda: count == 200)


async def test_a_message_larger_than_the_bound_is_taken_alone(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, bytes, partitions=1)
    sizes: list[int] = []
    flow = Flow(bytes=1_000, commit=0.05)

    @app.processor(topic, group=stage.group, flow=flow)
    async def handle(value: bytes) -> None:
        sizes.append(len(value))

    async with app:
        for size in (10, 50_000, 10, 50_000):
            await topic.publish(b"x" * size)
        await stage.until(lambda: len(sizes) == 4)
    assert sorted(sizes) == [10, 10, 50_000, 50_000]


async def test_one_waiting_key_does_not_hold_up_the_rest_for_ever(stage: Stage) -> None:
    """Its backlog fills the bound, so its partition waits; no longer than the policy's total."""
    from streams import Retry

    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def fail(value: int, message: Message[int]) -> None:
        if value == 0:
            raise ConnectionError("always")

    retry = Retry(attempts=4, delay=0.05, cap=0.1)
    app.processor(
        topic, group=stage.group, concurrency=8, retry=retry, flow=Flow(messages=20, commit=0.05)
    )(stage.recorder(fail))
    async with app:
        await stage.publish(topic, *range(100), key="hot")
        await stage.publish(topic, *range(100, 120), key=str)
        await stage.handled(119)
        await stage.committed(app)


async def test_pause_and_resume_skip_and_repeat_nothing(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(stage.recorder())
    processor = app.processors[0]
    async with app:
        for start in range(0, 500, 50):
            processor.pause()
            await stage.publish(topic, *range(start, start + 50), key=str)
            processor.resume()
        await stage.handled(500)
        processor.pause()
        assert app.health().processors["handle"].paused
        await stage.publish(topic, 1_000)
        before = len(stage.seen.handled)
        poller = processor.poller
        assert poller is not None
        await stage.until(lambda: poller._driver_paused, "the pause reached the log")
        assert len(stage.seen.handled) == before
        processor.resume()
        await stage.handled(501)
    assert sorted(stage.seen.values) == [*range(500), 1_000]


async def when_stopping(stage: Stage, app: Streams, then: asyncio.Event) -> None:
    """Set an event once a processor of the app has been told to stop, and starts nothing more."""
    poller = app.processors[0].poller
    assert poller is not None
    await stage.until(lambda: poller._finishing, "told to stop")
    then.set()


async def test_stop_finishes_what_is_in_flight_and_commits(stage: Stage) -> None:
    app, entered, release = stage.app(), asyncio.Event(), asyncio.Event()
    topic = stage.topic(app, partitions=1)

    async def slow() -> None:
        entered.set()
        await release.wait()

    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(
        stage.recorder(lambda value, _: slow())
    )
    async with app:
        positions = await stage.publish(topic, *range(5), key=str)
        await entered.wait()
        await stage.until(lambda: stage.seen.most_at_once == 5)
        stopped = asyncio.create_task(when_stopping(stage, app, release))
    await stopped
    assert sorted(stage.seen.values) == [0, 1, 2, 3, 4]
    place = stage.anchor.describe_group(stage.group).positions[topic.name, 0]
    assert place.position > positions[-1].offset


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_stop_takes_in_no_more(stage: Stage, asynchronous: bool) -> None:
    """What was polled and not begun stays for the next one, and the commit says exactly that."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    handled = list[int]()

    def stopping() -> bool:
        poller = app.processors[0].poller
        return poller is not None and poller._finishing

    # From some message on each lasts until the stop has begun, so that they cannot all be handled.
    def plain(value: int) -> None:
        if value >= 20:
            until(stopping, 60, "told to stop")
        handled.append(value)

    async def later(value: int) -> None:
        if value >= 20:
            await stage.until(stopping, "told to stop")
        handled.append(value)

    app.processor(topic, group=stage.group, flow=QUICK)(later if asynchronous else plain)
    async with app:
        positions = await stage.publish(topic, *range(5_000), key=str)
        await stage.until(lambda: len(handled) > 10)
    assert len(handled) < 5_000
    place = stage.anchor.describe_group(stage.group).positions[topic.name, 0]
    assert place.position == positions[len(handled)].offset


async def test_the_drain_deadline_cancels_async_handlers(stage: Stage) -> None:
    app, cancelled = stage.app(), []
    topic = stage.topic(app, partitions=1)

    @app.processor(topic, group=stage.group, concurrency=8, flow=Flow(drain=0.1, commit=0.05))
    async def handle(value: int) -> None:
        stage.seen.begin(None, value)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(value)
            raise

    async with app:
        positions = await stage.publish(topic, *range(3), key=str)
        await stage.until(lambda: stage.seen.most_at_once == 3)
    assert sorted(cancelled) == [0, 1, 2]
    place = stage.anchor.describe_group(stage.group).positions[topic.name, 0]
    assert place.position <= positions[0].offset
