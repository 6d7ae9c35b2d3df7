"""**order**: within a group, handlers of one key run in log order and never overlap."""

from __future__ import annotations

import asyncio
import threading
from random import Random
from typing import Any

import pytest

from streams import Flow, Message, Retry
from tests.conformance.stage import QUICK, Stage

KEYS = 20
MESSAGES = 1_000


def key_of(value: int) -> str:
    return f"k{value % KEYS}"


def in_order(stage: Stage, count: int = MESSAGES) -> None:
    assert stage.seen.overlaps == []
    by_key = stage.seen.by_key()
    assert sum(map(len, by_key.values())) == count
    for values in by_key.values():
        assert values == sorted(values)


async def test_async_handlers_far_above_the_partition_count(stage: Stage) -> None:
    app, random, crowded = stage.app(), Random(1), asyncio.Event()
    topic = stage.topic(app)
    pauses = [random.choice((0, 0, 0.001, 0.003)) for _ in range(MESSAGES)]

    async def pause(value: int) -> None:
        if stage.seen.most_at_once > 2:  # there are 2 partitions
            crowded.set()
        await crowded.wait()
        await asyncio.sleep(pauses[value])

    handler = stage.recorder(lambda value, _: pause(value))
    app.processor(topic, group=stage.group, concurrency=100, flow=QUICK)(handler)
    async with app:
        await stage.publish(topic, *range(MESSAGES), key=key_of)
        await stage.handled(MESSAGES)
        await stage.committed(app)
    in_order(stage)


async def test_plain_handlers_in_many_threads(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    crowded, never = threading.Event(), threading.Event()

    @app.processor(topic, group=stage.group, concurrency=16, flow=QUICK)
    def handle(value: int, message: Message[int]) -> None:
        stage.seen.begin(message.key, value)
        if stage.seen.most_at_once > 2:  # there are 2 partitions
            crowded.set()
        assert crowded.wait(60)
        never.wait(0.001 if value % 7 == 0 else 0)
        stage.seen.end(message.key, value)

    async with app:
        await stage.publish(topic, *range(MESSAGES), key=key_of)
        await stage.handled(MESSAGES)
    in_order(stage)


async def test_one_plain_handler(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)

    @app.processor(topic, group=stage.group, flow=QUICK)
    def handle(value: int, message: Message[int]) -> None:
        stage.seen.begin(message.key, value)
        stage.seen.end(message.key, value)

    async with app:
        await stage.publish(topic, *range(MESSAGES), key=key_of)
        await stage.handled(MESSAGES)
    in_order(stage)
    assert stage.seen.most_at_once == 1


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_batches_hold_a_key_in_one_batch_at_a_time(stage: Stage, concurrency: int) -> None:
    app = stage.app()
    topic = stage.topic(app)

    @app.processor(topic, group=stage.group, batch=16, concurrency=concurrency, flow=QUICK)
    async def handle(values: list[int], messages: list[Message[int]]) -> None:
        keys = {message.key for message in messages}
        for key in keys:
            stage.seen.begin(key, len(messages))
        await asyncio.sleep(0.001)
        for key in keys:
            stage.seen.end(key, None, ok=False)
        stage.seen.handled += [(m.key, value) for value, m in zip(values, messages, strict=True)]

    async with app:
        await stage.publish(topic, *range(MESSAGES), key=key_of)
        await stage.handled(MESSAGES)
    in_order(stage)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_through_retries(stage: Stage, asynchronous: bool) -> None:
    app = stage.app()
    topic = stage.topic(app)

    def fail(value: int, message: Message[int]) -> None:
        if value % 13 == 0 and message.attempt <= 2:
            raise ConnectionError("now and then")

    def plain(value: int, message: Message[int]) -> None:
        stage.seen.begin(message.key, value, message.attempt)
        ok = False
        try:
            fail(value, message)
            ok = True
        finally:
            stage.seen.end(message.key, value, ok=ok)

    handler: Any = stage.recorder(fail) if asynchronous else plain
    retry = Retry(attempts=5, delay=0.005, cap=0.01)
    concurrency = 32 if asynchronous else 1
    app.processor(topic, group=stage.group, concurrency=concurrency, retry=retry, flow=QUICK)(
        handler
    )
    async with app:
        await stage.publish(topic, *range(MESSAGES), key=key_of)
        await stage.handled(MESSAGES)
    in_order(stage)
    assert all(
        attempts == ([1, 2, 3] if value % 13 == 0 else [1])
        for value, attempts in stage.seen.attempts.items()
    )


async def test_through_rebalances(stage: Stage) -> None:
    """Members come and go while messages are handled; each key's are in order over all of them."""
    handler = stage.recorder(lambda value, _: asyncio.sleep(0.001 if value % 5 == 0 else 0))
    apps = [stage.app() for _ in range(3)]
    for app in apps:
        topic = stage.topic(app, partitions=6)
        app.processor(topic, group=stage.group, concurrency=32, flow=QUICK)(handler)
    first = apps[0].topics[stage.topic_name]
    async with apps[0]:
        await stage.publish(first, *range(MESSAGES // 4), key=key_of)
        async with apps[1]:
            await stage.publish(first, *range(MESSAGES // 4, MESSAGES // 2), key=key_of)
            async with apps[2]:
                await stage.handled(MESSAGES // 4)
                await stage.publish(first, *range(MESSAGES // 2, MESSAGES), key=key_of)
                await stage.handled(MESSAGES * 3 // 4)
        await stage.handled(MESSAGES)
        await stage.committed(apps[0])
    in_order(stage)


async def test_through_restarts(stage: Stage) -> None:
    for start in range(0, MESSAGES, MESSAGES // 4):
        app = stage.app()
        topic = stage.topic(app)
        app.processor(topic, group=stage.group, concurrency=32, flow=QUICK)(stage.recorder())
        async with app:
            await stage.publish(topic, *range(start, start + MESSAGES // 4), key=key_of)
            await stage.handled(start // 2)  # stopped with work left over
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, concurrency=32, flow=QUICK)(stage.recorder())
    async with app:
        await stage.handled(MESSAGES)
    in_order(stage)


async def test_a_key_still_being_handled_waits_when_its_partition_comes_back(stage: Stage) -> None:
    """The fence: a plain handler outlives the drain deadline, its partition goes and returns."""
    release, entered = threading.Event(), threading.Event()
    flow = Flow(commit=0.05, drain=0.0)
    app, other = stage.app(), stage.app()
    topic = stage.topic(app, partitions=2)
    stage.topic(other, partitions=2)

    @app.processor(topic, group=stage.group, concurrency=8, flow=flow)
    def handle(value: int, message: Message[int]) -> None:
        stage.seen.begin(message.key, value)
        if value == 0:
            entered.set()
            release.wait(60)
        stage.seen.end(message.key, value)

    @other.processor(other.topics[stage.topic_name], group=stage.group, flow=flow)
    def never(value: int) -> None:
        raise ConnectionError("always")  # nothing is settled there, so all comes back

    try:
        async with app:
            await stage.publish(topic, 0, key="slow")
            assert await asyncio.to_thread(entered.wait, 60)
            (runner, poller) = app.processors[0].executor, app.processors[0].poller
            assert runner is not None
            assert poller is not None
            # The partition is revoked and returns to the same process, as a rebalance does it.
            held = [each.state for each in poller._owned.values()]
            slow = [owned for owned in held if owned.in_flight]
            assert len(slow) == 1
            key = next(iter(slow[0].in_flight))
            async with other:
                taker = other.processors[0].poller
                assert taker is not None
                await stage.until(lambda: taker._owned, "a partition given to the other")
            await stage.until(lambda: len(poller._owned) == len(held), "all partitions back")
            again = [each.state for each in poller._owned.values() if key in each.state.in_flight]
            fenced = [owned for owned in again if owned is not slow[0]]
            await stage.publish(topic, 1, key="slow")
            await stage.publish(topic, *range(2, 12), key=lambda value: f"other{value}")
            await stage.handled(10)
            assert 1 not in stage.seen.values, "the slow key was overtaken by itself"
            assert fenced or slow[0] in again
            release.set()
            await stage.until(lambda: 1 in stage.seen.values, "the slow key goes on")
    finally:
        release.set()
    assert stage.seen.overlaps == []


async def test_keyless_messages_run_freely(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    all_there = asyncio.Event()

    @app.processor(topic, group=stage.group, concurrency=40, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        stage.seen.begin(None, value)
        if stage.seen.most_at_once == 40:
            all_there.set()
        await all_there.wait()
        stage.seen.end(None, value)

    async with app:
        await stage.publish(topic, *range(40))
        await stage.handled(40)
    assert stage.seen.most_at_once == 40
