"""**retry**: a failing key waits and the others go on; then dead letters."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streams import BatchError, Message, Reject, Retry, RetryAfter
from tests.conformance.stage import QUICK, Stage

FAST = Retry(attempts=3, delay=0.005, cap=0.01)


def handler(stage: Stage, act: Any, *, asynchronous: bool) -> Any:
    """The recording handler, async or plain."""
    if asynchronous:
        return stage.recorder(act)

    def plain(value: Any, message: Message[Any]) -> None:
        stage.seen.begin(message.key, value, message.attempt)
        ok = False
        try:
            act(value, message)
            ok = True
        finally:
            stage.seen.end(message.key, value, ok=ok)

    return plain


def always(value: int, message: Message[int]) -> None:
    if value == 0:
        raise ConnectionError("always")


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_others_go_on_while_a_key_waits(stage: Stage, asynchronous: bool) -> None:
    app, mended = stage.app(), threading.Event()
    topic = stage.topic(app, partitions=1)

    def until_mended(value: int, message: Message[int]) -> None:
        if value == 0 and not mended.is_set():
            raise ConnectionError("not yet")

    retry = Retry(attempts=10_000, delay=0.002, cap=0.01)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(
        handler(stage, until_mended, asynchronous=asynchronous)
    )
    async with app:
        await stage.publish(topic, 0, key="stuck")
        await stage.publish(topic, 1, key="stuck")
        await stage.publish(topic, *range(2, 50), key=lambda value: f"k{value}")
        await stage.handled(48)
        assert not {0, 1} & set(stage.seen.values)
        mended.set()
        await stage.handled(50)
    assert stage.seen.values[48:] == [0, 1]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_attempts_are_limited_and_the_first_counts(stage: Stage, asynchronous: bool) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, retry=FAST, flow=QUICK)(
        handler(stage, always, asynchronous=asynchronous)
    )
    async with app:
        await stage.publish(topic, 0, 1, key="k")
        await stage.committed(app)
        (letter,) = await stage.letters(app)
    assert stage.seen.attempts[0] == [1, 2, 3]
    assert stage.seen.values == [1]
    assert letter.headers["__streams.errors.attempts"] == "3"


@pytest.mark.parametrize("error", [Reject("no"), KeyError("never tried again")])
async def test_some_failures_are_final(stage: Stage, error: Exception) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def fail(value: int, message: Message[int]) -> None:
        if value == 0:
            raise error

    retry = Retry(attempts=5, delay=0.005, never=(KeyError,))
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(fail))
    async with app:
        await stage.publish(topic, 0, 1, key="k")
        await stage.committed(app)
        assert len(await stage.letters(app)) == 1
    assert stage.seen.attempts[0] == [1]


async def test_retry_after_replaces_the_backoff(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def fail(value: int, message: Message[int]) -> None:
        if message.attempt == 1:
            raise RetryAfter(0.01)

    # The backoff alone would take longer than the test is patient.
    retry = Retry(attempts=3, delay=3600, cap=3600)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(fail))
    async with app:
        await stage.publish(topic, 1, key="k")
        await stage.handled(1)
    assert stage.seen.attempts[1] == [1, 2]


async def test_out_of_order_lets_the_key_go_on(stage: Stage) -> None:
    app, mended = stage.app(), threading.Event()
    topic = stage.topic(app, partitions=1)

    def until_mended(value: int, message: Message[int]) -> None:
        if value == 0 and not mended.is_set():
            raise ConnectionError("not yet")

    retry = Retry(attempts=10_000, delay=0.002, cap=0.01, in_order=False)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(until_mended))
    async with app:
        await stage.publish(topic, 0, 1, 2, key="k")
        await stage.handled(2)
        assert stage.seen.values == [1, 2]
        mended.set()
        await stage.handled(3)
        await stage.committed(app)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_failed_batch_is_run_one_by_one(
    stage: Stage, asynchronous: bool, concurrency: int
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    lock, attempts, handled = threading.Lock(), dict[int, list[int]](), list[int]()

    def plain(values: list[int], messages: list[Message[int]]) -> None:
        with lock:
            for value, message in zip(values, messages, strict=True):
                attempts.setdefault(value, []).append(message.attempt)
            if 5 in values:
                raise ConnectionError("five")
            handled.extend(values)

    async def later(values: list[int], messages: list[Message[int]]) -> None:
        plain(values, messages)

    app.processor(
        topic, group=stage.group, batch=10, concurrency=concurrency, retry=FAST, flow=QUICK
    )(later if asynchronous else plain)
    async with app.connected():
        await stage.publish(topic, *range(20), key=lambda value: f"k{value % 3}")
    async with app:
        await stage.committed(app)
        assert [letter.raw.value for letter in await stage.letters(app)] == [b"5"]
    assert sorted(handled) == [value for value in range(20) if value != 5]
    assert attempts[5][-1] == 3
    assert all(each[-1] == 1 for value, each in attempts.items() if value != 5)
    for key in range(3):
        mine = [value for value in handled if value % 3 == key]
        assert mine == sorted(mine)


async def test_a_batch_error_names_those_that_failed(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    calls: list[list[int]] = []

    @app.processor(topic, group=stage.group, batch=10, retry=FAST, flow=QUICK)
    def handle(values: list[int]) -> None:
        calls.append(values)
        bad: dict[int, Exception] = {}
        bad |= {n: Reject("three") for n, value in enumerate(values) if value == 3}
        bad |= {n: ConnectionError("seven") for n, value in enumerate(values) if value == 7}
        if bad:
            raise BatchError(bad)

    async with app.connected():
        await stage.publish(topic, *range(10), key=str)
    async with app:
        await stage.committed(app)
        dead = {letter.raw.value for letter in await stage.letters(app)}
    assert dead == {b"3", b"7"}
    seen = [value for values in calls for value in values]
    assert {value: seen.count(value) for value in range(10)} == {
        value: 3 if value == 7 else 1 for value in range(10)
    }


async def test_an_async_handler_that_takes_too_long_is_cancelled_and_tried_again(
    stage: Stage,
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    cancelled: list[int] = []

    @app.processor(topic, group=stage.group, timeout=0.05, retry=FAST, flow=QUICK, concurrency=4)
    async def handle(value: int, message: Message[int]) -> None:
        stage.seen.begin(message.key, value, message.attempt)
        try:
            if value == 0 and message.attempt < 3:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(message.attempt)
            raise
        finally:
            stage.seen.end(message.key, value, ok=message.attempt == 3 or value != 0)

    async with app:
        await stage.publish(topic, 0, 1, key="k")
        await stage.publish(topic, 2, key="other")
        await stage.committed(app)
        assert await stage.letters(app) == []
    assert cancelled == [1, 2]
    assert stage.seen.attempts == {0: [1, 2, 3], 1: [1], 2: [1]}


async def test_a_plain_handler_that_takes_too_long_is_reported(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    app, release = stage.app(), threading.Event()
    topic = stage.topic(app, partitions=1)

    @app.processor(topic, group=stage.group, timeout=0.01, flow=QUICK)
    def handle(value: int) -> None:
        release.wait(60)
        stage.seen.handled.append((None, value))

    async with app:
        await stage.publish(topic, 1)
        await stage.until(lambda: app.health().processors["handle"].overdue, "reported")
        assert not app.health().ok
        assert "cannot be interrupted" in caplog.text
        release.set()
        await stage.committed(app)
        assert app.health().ok
    assert stage.seen.values == [1]
