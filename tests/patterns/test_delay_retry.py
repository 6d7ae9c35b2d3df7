"""Retries that hold up nothing, and those that keep order and the count, on every log."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streams import BatchError, Flow, Message, Retry, RetryAfter
from streams.retries.attempt_log import DELAYED
from tests.conformance.records import append, record
from tests.conformance.stage import QUICK, Stage

LOOSE = Retry(attempts=3, delay=0.005, cap=0.01, in_order=False)


async def test_it_leaves_its_lane_and_its_attempts_survive_a_restart(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    topic = stage.topic(first, partitions=1)
    retry = Retry(attempts=3, delay=0.005, in_order=False)
    never = asyncio.Event()

    def later(value: int, message: Message[int]) -> Any:
        if value != 0:
            return None
        if message.attempt == 1:
            raise RetryAfter(0.3)
        return never.wait()  # this life is long enough to see it come back, and too short to end

    flow = Flow(commit=0.05, drain=0.0)
    first.processor(topic, group=stage.group, retry=retry, flow=flow, concurrency=4)(
        stage.recorder(later)
    )
    async with first:
        await stage.publish(topic, 0, 1, 2, key="k", id=None)
        await stage.handled(2)
        await stage.committed(first)  # it holds up no position while it waits
    assert stage.seen.values == [1, 2]
    assert stage.seen.attempts[0] in ([1], [1, 2])
    topic = stage.topic(second, partitions=1)
    seen: list[Message[int]] = []

    @second.processor(topic, group=stage.group, retry=retry, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        seen.append(message)
        stage.seen.handled.append((message.key, value))
        assert (message.key, message.topic) == ("k", f"{topic.name}.{stage.group}.retry")
        if message.attempt == 2:
            raise ConnectionError("once more")

    async with second:
        await stage.until(lambda: len(seen) == 2, "it came back twice")
        assert await stage.letters(second) == []
    assert [message.attempt for message in seen] == [2, 3]
    assert len({message.id for message in seen}) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_last_attempt_ends_in_the_dead_letters(stage: Stage, asynchronous: bool) -> None:
    app, lock = stage.app(), threading.Lock()
    topic = stage.topic(app, partitions=2)
    attempts: list[int] = []

    def plain(value: int, message: Message[int]) -> None:
        with lock:
            attempts.append(message.attempt)
        raise ConnectionError("always")

    async def later(value: int, message: Message[int]) -> None:
        plain(value, message)

    handler: Any = later if asynchronous else plain
    app.processor(topic, group=stage.group, retry=LOOSE, flow=QUICK)(handler)
    async with app:
        await topic.publish(5, key="k", id="m5", headers={"color": "red"})
        letters: list[Message[Any]] = []
        while not letters:
            letters = await stage.letters(app)
        (letter,) = letters
    assert attempts == [1, 2, 3]
    assert (letter.id, letter.key, letter.raw.value) == ("m5", "k", b"5")
    assert letter.headers["__streams.errors.attempts"] == "3"
    assert letter.headers["color"] == "red"
    assert not any(name.startswith("streams_delay") for name in letter.headers)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_of_a_batch_only_what_failed_leaves(stage: Stage, asynchronous: bool) -> None:
    app, lock = stage.app(), threading.Lock()
    topic = stage.topic(app, partitions=1)
    done: list[int] = []
    attempts: dict[int, list[int]] = {}

    def plain(values: list[int], messages: list[Message[int]]) -> None:
        wrong: dict[int, Exception] = {}
        with lock:
            for index, message in enumerate(messages):
                attempts.setdefault(message.value, []).append(message.attempt)
                if message.value % 5 == 0 and message.attempt < 3:
                    wrong[index] = ConnectionError("not yet")
                else:
                    done.append(message.value)
        if wrong:
            raise BatchError(wrong)

    async def later(values: list[int], messages: list[Message[int]]) -> None:
        plain(values, messages)

    handler: Any = later if asynchronous else plain
    app.processor(topic, group=stage.group, batch=10, retry=LOOSE, flow=QUICK)(handler)
    async with app.connected():
        await stage.publish(topic, *range(20), key="k")
    async with app:
        await stage.until(lambda: len(done) == 20, "all done")
        await stage.committed(app)
        assert await stage.letters(app) == []

        def counted() -> tuple[int, int]:
            stats = app.stats().processors[handler.__name__]
            return stats.handled, stats.retries

        await stage.until(lambda: counted() == (20, 8), "counted")
    assert sorted(done) == list(range(20))
    assert all(tries == ([1, 2, 3] if value % 5 == 0 else [1]) for value, tries in attempts.items())


async def test_in_order_and_durable_keeps_the_key_and_the_count(stage: Stage) -> None:
    retry = Retry(attempts=4, delay=0.005, cap=0.01, durable=True)
    first, second = stage.app(), stage.app()
    topic = stage.topic(first, partitions=1)
    never = asyncio.Event()

    def twice(value: int, message: Message[int]) -> Any:
        if value == 0:
            if message.attempt == 3:
                return never.wait()  # until the life ends
            raise ConnectionError("no")
        return None

    flow = QUICK.__class__(commit=0.05, drain=0.0)
    first.processor(topic, group=stage.group, concurrency=2, retry=retry, flow=flow)(
        stage.recorder(twice)
    )
    async with first:
        await stage.publish(topic, 0, 1, key="k")
        await stage.until(lambda: stage.seen.attempts[0] == [1, 2, 3], "two attempts failed")
    topic = stage.topic(second, partitions=1)

    def always(value: int, message: Message[int]) -> None:
        if value == 0:
            raise ConnectionError("no")

    second.processor(topic, group=stage.group, concurrency=2, retry=retry, flow=QUICK)(
        stage.recorder(always)
    )
    async with second:
        await stage.handled(1)
        await stage.committed(second)
        (letter,) = await stage.letters(second)
    assert stage.seen.attempts[0] == [1, 2, 3, 3, 4]
    assert stage.seen.values == [1]
    assert letter.headers["__streams.errors.attempts"] == "4"


async def test_a_note_about_a_message_that_is_yet_to_come_is_a_strangers(stage: Stage) -> None:
    """It was written before there was such a message, and would hide whichever comes there."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    retry = Retry(attempts=2, delay=0.005, durable=True)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder())
    notes = f"{topic.name}.{stage.group}.attempts"
    async with app.connected():
        first = await topic.publish(0, key="k")
        stage.anchor.create_topic(notes, 1)
        places = [f"{topic.name}/0/{first.offset + n}".encode() for n in range(1, 5)]
        append(stage.anchor, notes, [record(b"%d" % DELAYED, place) for place in places])
    async with app:
        await stage.handled(1)
        await stage.publish(topic, 1, key="k")
        await stage.handled(2)
