"""When an exactly-once processor commits, and what waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from streams import Flow, Message, Streams
from streams.errors import Unavailable
from streams.log.protocol import Commit
from streams.log.url import open_log
from streams.message import Record
from streams.testing import harness
from tests.conformance.pipelines import CommitOutputs, intercept
from tests.processing.support import until

pytestmark = pytest.mark.anyio


async def test_a_test_with_a_clock_of_its_own_waits_for_no_pace() -> None:
    app = Streams(f"memory://{uuid4().hex}")
    source, target = app.topic("a", int), app.topic("b", int)

    @app.processor(source, group="g", to=target, exactly_once=True)
    async def double(number: int) -> int:
        return 2 * number

    async with harness(app) as h:
        for number in range(3):
            await source.publish(number)
            await h.settled()
        assert [each.value async for each in target.read()] == [0, 2, 4]
        assert app.stats().published == 6


async def test_what_is_held_is_bounded_while_nothing_can_be_stored() -> None:
    url = f"memory://{uuid4().hex}"
    log = open_log(url)
    app = Streams(url)
    source, target = app.topic("a", int), app.topic("b", int)
    may_store = False
    handled = 0

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            if outputs and not may_store:
                raise Unavailable("not yet")
            commit_outputs(outputs, commits)

        return call

    intercept(app, around)

    @app.processor(
        source, group="g", to=target, exactly_once=True, concurrency=4,
        flow=Flow(messages=100, commit=0.01),
    )  # fmt: skip
    async def pass_on(number: int, message: Message[int]) -> int:
        nonlocal handled
        handled += 1
        return number

    async with app:
        await source.publish_many(range(1_000))
        await until(lambda: handled >= 100)
        stats = pass_on.stats()
        assert stats is not None
        assert stats.in_flight == handled == 100
        may_store = True
        await until(
            lambda: sum(each.position for each in log.committed("g", "a").values()) == 1_000
        )
        assert [each.value async for each in target.read()] == list(range(1_000))
    log.close()


@pytest.mark.parametrize("plain", [False, True])
async def test_large_outputs_are_bounded_and_stored_early(plain: bool) -> None:
    """Long before ``Flow(commit=)``, when they take up a quarter of ``Flow(bytes=)``."""
    url = f"memory://{uuid4().hex}"
    log = open_log(url)
    app = Streams(url)
    source, target = app.topic("a", int), app.topic("b", bytes)
    may_store = False
    handled = tries = 0

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            nonlocal tries
            tries += 1
            if outputs and not may_store:
                raise Unavailable("not yet")
            commit_outputs(outputs, commits)

        return call

    def stored() -> int:
        return sum(each.position for each in log.committed("g", "a").values())

    intercept(app, around)

    def swell(number: int) -> bytes:
        nonlocal handled
        handled += 1
        return bytes(100_000)

    async def swell_async(number: int) -> bytes:
        return swell(number)

    handler: Any = swell if plain else swell_async
    app.processor(
        source, group="g", to=target, exactly_once=True,
        flow=Flow(bytes=1 << 20, commit=3_600.0),
    )(handler)  # fmt: skip

    async with app:
        await source.publish_many(range(50))
        await until(lambda: handled >= 11)
        tried = tries
        await until(lambda: tries >= tried + 2)
        assert handled == 11  # 1 MiB
        may_store = True
        # Two take up less than a quarter: they wait.
        await until(lambda: handled == 50 and stored() >= 48)
    async with app.connected():
        assert len([each async for each in target.read()]) == 50  # the end waits for nothing
    log.close()


@pytest.mark.parametrize("plain", [False, True])
async def test_what_came_before_a_handler_that_takes_long_is_stored_meanwhile(plain: bool) -> None:
    """Its results are taken out of the run that it is part of, while that goes on."""
    url = f"memory://{uuid4().hex}"
    log = open_log(url)
    app = Streams(url)
    source, target = app.topic("a", int, partitions=1), app.topic("b", int)
    begun, go_on = threading.Event(), threading.Event()
    go_on_async = asyncio.Event()

    def plain_handler(number: int) -> int | None:
        if number == 5:
            begun.set()
            go_on.wait(60)
        return None if number == 3 else number

    async def async_handler(number: int) -> int | None:
        if number == 5:
            begun.set()
            await go_on_async.wait()
        return None if number == 3 else number

    handler: Any = plain_handler if plain else async_handler
    processor: Any = app.processor(
        source, group="g", to=target, exactly_once=True, flow=Flow(commit=0.01)
    )(handler)
    processor.pause()
    async with app:
        await source.publish_many(range(10))
        processor.resume()
        await until(begun.is_set)
        await until(lambda: log.committed("g", "a").get(0, (0,))[0] == 5)
        stats = processor.stats()
        assert stats is not None
        assert (stats.handled, stats.in_flight) == (5, 5)
        assert [each.value async for each in target.read()] == [0, 1, 2, 4]
        go_on.set()
        go_on_async.set()
        await until(lambda: log.committed("g", "a")[0].position == 10)
        assert [each.value async for each in target.read()] == [0, 1, 2, 4, *range(5, 10)]
    log.close()
