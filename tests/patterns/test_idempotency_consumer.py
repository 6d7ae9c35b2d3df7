"""Handling each message ID once, in one process."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from streams import Message
from streams.errors import ConfigError, InvalidValue
from streams.patterns import DeduplicatedConsumer
from tests.patterns.keeping import until


@dataclass
class Event:
    """A message of somebody else's."""

    id: Any
    value: int = 0


class Handler:
    """A handler that waits until it is told how to end."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, message: Any) -> None:
        self.calls.append(message)
        await self.go.wait()
        if self.error is not None:
            raise self.error


async def test_an_id_is_handled_once() -> None:
    consumer = DeduplicatedConsumer()
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append(message.value)

    assert await consumer.process(Message(1, id="a"), handle) is True
    assert await consumer.process(Message(2, id="a"), handle) is False
    assert await consumer.process(Event("a", 3), handle) is False
    assert await consumer.process(Event("b", 4), handle) is True
    assert seen == [1, 4]
    assert (consumer.handled, consumer.duplicates, len(consumer)) == (2, 2, 2)
    assert Event("a") in consumer
    assert Event("c") not in consumer


async def test_concurrent_duplicates_run_once() -> None:
    consumer, handler = DeduplicatedConsumer(), Handler()
    calls = [
        asyncio.create_task(consumer.process(Event("a", number), handler)) for number in range(50)
    ]
    await until(lambda: handler.calls, "begun")
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)  # a duplicate waits for its outcome
    handler.go.set()
    results = await asyncio.gather(*calls)
    assert sorted(results) == [False] * 49 + [True]
    assert len(handler.calls) == 1
    assert len(consumer._single_flight) == 0


async def test_a_failed_handler_leaves_the_id_unseen() -> None:
    consumer, handler = DeduplicatedConsumer(), Handler()
    handler.error = ValueError("no")
    handler.go.set()
    with pytest.raises(ValueError, match="no"):
        await consumer.process(Event("a"), handler)
    assert Event("a") not in consumer
    handler.error = None
    assert await consumer.process(Event("a"), handler) is True
    assert consumer.handled == 1


async def test_a_duplicate_that_waited_is_handled_where_the_first_failed() -> None:
    consumer, bad, good = DeduplicatedConsumer(), Handler(), Handler()
    bad.error = ValueError("no")
    good.go.set()
    first = asyncio.create_task(consumer.process(Event("a"), bad))
    await until(lambda: bad.calls, "begun")
    rest = [asyncio.create_task(consumer.process(Event("a"), good)) for _ in range(3)]
    bad.go.set()
    with pytest.raises(ValueError, match="no"):
        await first
    assert await asyncio.gather(*rest) == [True, False, False]
    assert len(good.calls) == 1


async def test_a_cancelled_handler_leaves_the_id_unseen() -> None:
    consumer, handler = DeduplicatedConsumer(), Handler()
    first = asyncio.create_task(consumer.process(Event("a"), handler))
    await until(lambda: handler.calls, "begun")
    second = asyncio.create_task(consumer.process(Event("a"), handler))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: len(handler.calls) == 2, "the second begun")
    handler.go.set()
    assert await second is True


async def test_who_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    consumer, good = DeduplicatedConsumer(), Handler()
    good.go.set()
    calls: list[asyncio.Task[bool]] = []

    async def fail(message: Any) -> None:
        await until(lambda: len(calls) == 4, "all there")
        # It runs before the second one, whose turn it is then, has woken up.
        asyncio.get_running_loop().call_soon(calls[1].cancel)
        raise ValueError("no")

    calls.append(asyncio.create_task(consumer.process(Event("a"), fail)))
    await asyncio.sleep(0)
    calls += [asyncio.create_task(consumer.process(Event("a"), good)) for _ in range(3)]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert isinstance(results[0], ValueError)
    assert isinstance(results[1], asyncio.CancelledError)
    assert results[2:] == [True, False]
    assert len(consumer._single_flight) == 0


async def test_as_many_ids_as_were_asked_for_are_remembered() -> None:
    consumer = DeduplicatedConsumer(max_size=3)

    async def handle(message: Any) -> None: ...

    for id in "abc":
        assert await consumer.process(Event(id), handle)
    for id in "abc":
        assert not await consumer.process(Event(id), handle)
    assert await consumer.process(Event("d"), handle)
    assert len(consumer) == 3
    assert [id in consumer for id in map(Event, "abcd")] == [False, True, True, True]
    assert await consumer.process(Event("a"), handle)


async def test_an_identity_is_what_a_processors_is() -> None:
    consumer = DeduplicatedConsumer()

    async def handle(message: Any) -> None: ...

    for headers in (
        {},
        {"ce_source": "here"},
        {"ce_source": "there"},
        {"streams_redrive": "1"},
        {"streams_redrive": "1", "streams_first_position": "7"},
    ):
        message = Message(1, id="a", headers=headers)
        assert await consumer.process(message, handle) is True
        assert await consumer.process(message, handle) is False
    assert await consumer.process(Message(1, id="a", headers={"streams_redrive": "0"}), handle) is (
        False
    )


async def test_a_plain_handler_runs_in_a_thread() -> None:
    consumer = DeduplicatedConsumer()
    threads: list[int] = []

    def handle(message: Any) -> None:
        threads.append(threading.get_ident())

    results = await asyncio.gather(*(consumer.process(Event("a"), handle) for _ in range(5)))
    assert sorted(results) == [False] * 4 + [True]
    assert threads != [threading.get_ident()]


async def test_what_is_no_message_is_refused() -> None:
    consumer = DeduplicatedConsumer()

    async def handle(message: Any) -> None: ...

    for message in (Event(""), Event(None), Event(7), object()):
        with pytest.raises(InvalidValue) as raised:
            await consumer.process(message, handle)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError):
        await consumer.process(Event("a"), None)  # type: ignore[arg-type]
    for size in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigError):
            DeduplicatedConsumer(max_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
async def test_any_mix_of_failing_and_cancelling_handles_each_id_once(seed: int) -> None:
    random_ = random.Random(seed)
    consumer = DeduplicatedConsumer()
    running: set[str] = set()
    handled: list[str] = []

    async def handle(message: Event) -> None:
        assert message.id not in running
        assert message.id not in handled
        running.add(message.id)
        try:
            for _ in range(random_.randrange(4)):
                await asyncio.sleep(0)
            if random_.random() < 0.5:
                raise ValueError
            handled.append(message.id)
        finally:
            running.remove(message.id)

    async def strike(call: asyncio.Task[bool]) -> None:
        for _ in range(random_.randrange(30)):
            await asyncio.sleep(0)
        call.cancel()

    calls = [
        asyncio.create_task(consumer.process(Event(random_.choice("abcdef")), handle))
        for _ in range(300)
    ]
    strikes = [asyncio.create_task(strike(call)) for call in calls if random_.random() < 0.3]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
    await asyncio.gather(*strikes)
    expected = (bool, ValueError, asyncio.CancelledError)
    assert not [each for each in results if not isinstance(each, expected)]
    assert len(handled) == len(set(handled)) == len(consumer)
    assert results.count(True) == len(handled)
    assert len(consumer._single_flight) == 0
