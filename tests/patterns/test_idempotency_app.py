"""A store of an app: on the app's log, on its clock, alive as long as the app; and what becomes of
messages and sagas whose store was closed too early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from streams import ConfigError, Message, NotRunning, ProcessorDied, Retry, Streams
from streams.patterns import (
    IdempotencyStore,
    IdempotentProcessor,
    MessageQueue,
    QueueMessage,
    SagaFailedError,
    SagaOrchestrator,
    SagaStep,
)
from streams.testing import Clock, harness
from tests.conformance.stage import PATIENCE, QUICK, Stage


async def one() -> int:
    return 1


async def test_a_store_of_an_app_is_on_its_log_and_opened_with_it_each_time(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    store = IdempotencyStore(app, name=stage.group)
    once = IdempotentProcessor(store)
    runs: list[int] = []

    async def charge(value: int) -> int:
        runs.append(value)
        return value

    async def handle(value: int, message: Message[int]) -> None:
        await once.process(f"charge:{value // 2}", lambda: charge(value))
        stage.seen.begin(message.key, value)
        stage.seen.end(message.key, value)

    app.processor(topic, group=stage.group, flow=QUICK)(handle)
    assert repr(store) == f"<IdempotencyStore {stage.group!r} in {app!r}>"
    with pytest.raises(NotRunning, match="the app is not running"):
        await store.get("charge:0")
    if stage.url.startswith("kafka"):
        with pytest.raises(ConfigError, match="kafka cannot say who came first; keep claims in"):
            await app.__aenter__()
        return
    for turn in range(2):
        async with app:
            await topic.publish_many([4 * turn, 4 * turn + 1, 4 * turn + 2])
            await stage.until(lambda: len(stage.seen.values) == 3 * (turn + 1), "handled")  # noqa: B023
            assert await store.get(f"charge:{2 * turn}") in (4 * turn, 4 * turn + 1)
            async with IdempotencyStore(stage.url, name=stage.group) as beside:  # the same place
                assert await beside.get(f"charge:{2 * turn + 1}") == 4 * turn + 2
        assert len(runs) == 2 * (turn + 1)
        with pytest.raises(NotRunning):
            await once.process("charge:9", one)


async def test_it_is_there_in_the_lifespan_until_handlers_and_lifespan_have_ended() -> None:
    said: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        await store.set("a", 1)
        yield
        said.append(await store.get("a"))

    app = Streams("memory://", lifespan=lifespan)
    topic = app.topic("t", int)
    store = IdempotencyStore(app)
    begun = asyncio.Event()

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        begun.set()
        await asyncio.sleep(0)
        said.append(await IdempotentProcessor(store).process("k", one))

    async with app:
        await topic.publish(1)
        await begun.wait()
    assert said == [1, 1]
    async with app.connected():
        assert await store.get("a") == 1
        assert await store.get("k") is None  # memory:// is another log each time
        late = IdempotencyStore(app)  # made while the app runs
        await late.set("b", 2)
    with pytest.raises(NotRunning):
        await late.get("b")


async def test_the_harness_replaces_its_url_and_clock() -> None:
    app = Streams("kafka://nobody:1")
    store = IdempotencyStore(app)
    for clock in (Clock(), Clock()):
        async with harness(app, clock=clock):
            assert await store.get("k") is None
            await store.set("k", 1, ttl=60)
            assert store.clock is clock
            clock.advance(61)
            assert await store.get("k") is None
            await store.set("k", 2)


def test_what_cannot_be_given_with_an_app() -> None:
    app = Streams("memory://")
    wrong: Any
    for wrong in ({"config": {}}, {"clock": Clock()}):
        with pytest.raises(ConfigError, match="config and clock are the app's"):
            IdempotencyStore(app, **wrong)
    for wrong in (None, 5, app.topic("t")):
        with pytest.raises(ConfigError, match=r"^IdempotencyStore\(.*\): an app, Streams\("):
            IdempotencyStore(wrong)


async def test_a_processor_goes_on_with_a_store_that_was_opened_again() -> None:
    store = IdempotencyStore("memory://")
    once = IdempotentProcessor(store)
    for _ in range(2):
        async with store:
            assert await once.process("k", one) == 1


async def test_a_store_that_was_closed_too_early_makes_no_message_fail(stage: Stage) -> None:
    """It is the program's fault: nothing is retried, dead-lettered or handled."""
    app = stage.app()
    queue = MessageQueue(app, partitions=1)
    mails = queue.declare(stage.topic_name, int)
    store = IdempotencyStore("memory://")
    once = IdempotentProcessor(store)
    await store.close()
    tried: list[int] = []

    @mails.subscribe
    async def handle(message: QueueMessage[int]) -> None:
        tried.append(message.retries)
        await once.process("k", one)

    with pytest.raises(ProcessorDied) as died:
        async with app:
            await mails.publish(1)
            async with asyncio.timeout(PATIENCE):
                await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, ConfigError)
    assert "closed; close it after whatever uses it has ended" in str(died.value.__cause__)
    assert tried == [0]


async def test_a_saga_is_not_compensated_over_a_store_that_was_closed_too_early() -> None:
    app = Streams("memory://")
    store = IdempotencyStore("memory://")
    undone: list[str] = []
    called = asyncio.Event()

    async def reserve(context: dict[str, int]) -> None: ...

    async def release(context: dict[str, int]) -> None:
        undone.append("reserve")

    async def pay(context: dict[str, int]) -> None:
        called.set()
        await IdempotentProcessor(store).process("pay", one)

    orders = SagaOrchestrator(app, "orders", context=dict[str, int], partitions=1)
    orders.add_step(SagaStep("reserve", reserve, release))
    orders.add_step(SagaStep("pay", pay, retry=Retry(attempts=2, delay=0)))
    await store.close()
    with pytest.raises(ProcessorDied):
        async with app:
            with suppress(SagaFailedError):
                await orders.execute({"total": 1}, id="order-1")
            assert undone == []
    assert called.is_set()
    assert undone == []
