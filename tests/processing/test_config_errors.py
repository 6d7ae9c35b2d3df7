"""A ``ConfigError`` inside a handler ends its processor: never tried again, never a dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stream_codecs import BindError, Bound, default_codec
from streams import (
    BatchError,
    ConfigError,
    DeadLetters,
    InvalidValue,
    Message,
    MessageQueue,
    Processor,
    ProcessorDied,
    Reject,
    Retry,
    Streams,
    Topic,
)
from streams.testing import harness
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio

BAD = 3


class Wrong(ConfigError):
    """What a program that cannot work raises; subclasses count, too."""

    def __init__(self) -> None:
        super().__init__("no message can be handled like this")


RETRIES = [
    Retry(attempts=5, delay=0),
    Retry(attempts=1, never=(ValueError,)),  # a ConfigError is one
    Retry(attempts=5, delay=0, durable=True),
    Retry(attempts=5, delay=0, in_order=False),
]


class World:
    """An app on a file, whose processor meets :data:`BAD` as the fourth message of one key."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/log.db"
        self.calls: list[int] = []
        self.mended = False

    def app(self, type: Any = int, **options: Any) -> tuple[Streams, Topic[Any]]:
        app = Streams(self.url)
        return app, app.topic("t", type, partitions=1, **options)

    def handle(self, value: int) -> None:
        self.calls.append(value)
        if value == BAD and not self.mended:
            raise Wrong

    async def dies(self, app: Streams, topic: Topic[Any], values: Any = range(5)) -> ProcessorDied:
        with pytest.raises(ProcessorDied) as died:
            async with app:
                await topic.publish_many(list(values))
                await asyncio.Event().wait()  # is cancelled
        return died.value

    def check(self, app: Streams, died: ProcessorDied) -> None:
        """The message was handled once at most, and everybody is told why."""
        assert isinstance(died.__cause__, ConfigError)
        assert str(died.__cause__) in str(died)
        assert self.calls.count(BAD) <= 1
        health = app.health()
        assert not health.live
        errors = [each.error for each in health.processors.values() if each.error is not None]
        assert [str(died.__cause__) in each for each in errors] == [True]

    async def letters(self) -> list[Any]:
        """The group's dead letters."""
        app, _ = self.app(bytes)
        dead = app.topic("t.g.dead", bytes, partitions=1)
        async with app.connected():
            return list(dead.read())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def plain(world: World, *, message: bool) -> Callable[..., Any]:
    def with_message(value: int, message: Message[int]) -> None:
        world.handle(value)

    return with_message if message else world.handle


def asynchronous(world: World, *, message: bool) -> Callable[..., Any]:
    async def handle(value: int) -> None:
        world.handle(value)

    async def with_message(value: int, message: Message[int]) -> None:
        await asyncio.sleep(0)
        world.handle(value)

    return with_message if message else handle


@pytest.mark.parametrize("retry", RETRIES, ids=["retry", "never", "durable", "out of order"])
@pytest.mark.parametrize("message", [False, True])
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_a_handler(
    world: World,
    kind: Callable[..., Callable[..., Any]],
    concurrency: int,
    message: bool,
    retry: Retry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, topic = world.app(key=lambda value: "k")
    processor: Processor[..., Any] = app.processor(
        topic, group="g", concurrency=concurrency, retry=retry, flow=QUICK
    )(kind(world, message=message))
    died = await world.dies(app, topic)
    assert isinstance(died.__cause__, Wrong)
    world.check(app, died)
    assert world.calls == [0, 1, 2, BAD]
    lines = [each for each in caplog.records if "stays unsettled" in each.getMessage()]
    assert len(lines) == 1
    assert processor.name in lines[0].getMessage()
    assert "t/0/" in lines[0].getMessage()
    assert await world.letters() == []
    # With the code mended, the next process goes on with that very message.
    world.mended = True
    async with app:
        await until(lambda: 4 in world.calls)
    assert world.calls == [0, 1, 2, BAD, BAD, 4]


@pytest.mark.parametrize("kind", [plain, asynchronous])
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_batch(world: World, kind: Callable[..., Any], size: int) -> None:
    app, topic = world.app()

    def handle(values: list[int]) -> None:
        for value in values:
            world.handle(value)

    async def handle_async(values: list[int]) -> None:
        handle(values)

    app.processor(topic, group="g", batch=size, flow=QUICK)(
        handle if kind is plain else handle_async
    )
    died = await world.dies(app, topic)
    world.check(app, died)
    assert await world.letters() == []


class UnnamedDeadLetters(DeadLetters):
    """Knows no topic for a dead letter once the app runs."""

    running = False

    def name(self, topic: str, group: str) -> str:
        if self.running:
            raise Wrong
        return super().name(topic, group)


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_a_dead_letter_that_cannot_be_made(
    world: World,
    kind: Callable[..., Any],
    batch: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, topic = world.app()

    def handle(value: Any) -> None:
        monkeypatch.setattr(UnnamedDeadLetters, "running", True)
        raise Reject("never")

    async def handle_async(value: Any) -> None:
        handle(value)

    app.processor(topic, group="g", batch=batch, dead_letters=UnnamedDeadLetters(), flow=QUICK)(
        handle if kind is plain else handle_async
    )
    died = await world.dies(app, topic)
    assert isinstance(died.__cause__, Wrong)
    world.check(app, died)
    assert "cannot write the dead letter" not in caplog.text


@pytest.mark.parametrize("to", [False, True])
async def test_what_a_batch_error_names(world: World, to: bool) -> None:
    app, topic = world.app()
    out = app.topic("out", int)

    def handle(values: list[int]) -> list[None]:
        world.calls += values
        if BAD in values and not world.mended:
            raise BatchError({values.index(BAD): Wrong()}, [None] * len(values))
        return [None] * len(values)

    app.processor(topic, group="g", batch=5, to=out if to else None, flow=QUICK)(handle)

    died = await world.dies(app, topic)
    world.check(app, died)
    assert await world.letters() == []
    world.mended, before = True, world.calls.count(4)
    async with app:
        await until(lambda: world.calls.count(BAD) > 1)
    if before:
        assert world.calls.count(4) == before  # it was done, and counts as done


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_a_filter(world: World, kind: Callable[..., Any], batch: int | None) -> None:
    app, topic = world.app()

    def wanted(value: int) -> bool:
        if value == BAD:
            raise Wrong
        return True

    async def handle_async(given: Any) -> None: ...

    def handle(given: Any) -> None: ...

    app.processor(topic, group="g", batch=batch, filter=wanted, flow=QUICK)(
        handle if kind is plain else handle_async
    )
    died = await world.dies(app, topic)
    world.check(app, died)
    assert await world.letters() == []


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_the_key_of_what_is_returned(
    world: World, kind: Callable[..., Any], batch: int | None
) -> None:
    app, topic = world.app()

    def key(value: int) -> str:
        if value == BAD:
            raise Wrong
        return "k"

    out = app.topic("out", int, key=key)

    async def handle_async(given: Any) -> Any:
        return given

    def handle(given: Any) -> Any:
        return given

    app.processor(topic, group="g", batch=batch, to=out, flow=QUICK)(
        handle if kind is plain else handle_async
    )
    died = await world.dies(app, topic)
    world.check(app, died)
    assert await world.letters() == []


class Lazy:
    """A codec that finds out what it cannot do when it is used first."""

    name = "lazy"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def bind(self, type: Any, *, topic: str = "", role: str = "value") -> Bound[Any]:
        bound: Bound[Any] = default_codec(int).bind(int, topic=topic)

        def decode(data: bytes, headers: Any = None) -> Any:
            value = bound.decode(data)
            if value == BAD:
                raise self.error
            return value

        def encode(value: Any) -> bytes:
            if value == BAD and isinstance(self.error, BindError) and topic == "out":
                raise self.error
            return bound.encode(value)

        return Bound(encode=encode, decode=decode, explain=bound.explain)


@pytest.mark.parametrize(
    "error", [Wrong(), BindError("no schema registry")], ids=["ours", "codec's"]
)
@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("kind", [plain, asynchronous])
async def test_decoding(
    world: World, kind: Callable[..., Any], batch: int | None, error: Exception
) -> None:
    app, topic = world.app(codec=Lazy(error))

    async def handle_async(given: Any) -> None: ...

    def handle(given: Any) -> None: ...

    app.processor(topic, group="g", batch=batch, flow=QUICK)(
        handle if kind is plain else handle_async
    )
    died = await world.dies(app, topic)
    world.check(app, died)
    assert str(error) in str(died)
    assert await world.letters() == []


@pytest.mark.parametrize("many", [False, True])
async def test_encoding(world: World, many: bool) -> None:
    app, topic = world.app()
    out = app.topic("out", int, codec=Lazy(BindError("no schema registry")))

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int) -> None:
        world.calls.append(value)
        await (out.publish_many([value]) if many else out.publish(value))

    died = await world.dies(app, topic)
    world.check(app, died)
    assert "no schema registry" in str(died)


async def test_an_identity_in_the_value(world: World) -> None:
    def identity(value: int) -> str:
        if value == BAD:
            raise Wrong
        return str(value)

    world.mended = True
    app = Streams(world.url)
    topic = app.topic("t", int, partitions=1)
    async with app.connected():
        await topic.publish_many(range(5))
    app, topic = world.app(id=identity)
    app.processor(topic, group="g", flow=QUICK)(world.handle)
    with pytest.raises(ProcessorDied) as died:
        async with app:
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    assert await world.letters() == []


async def test_within_an_exception_group(world: World) -> None:
    app, topic = world.app()

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int) -> None:
        async def one() -> None:
            world.handle(value)

        async with asyncio.TaskGroup() as group:
            group.create_task(one())

    died = await world.dies(app, topic)
    assert isinstance(died.__cause__, Wrong)
    world.check(app, died)


async def test_what_other_handlers_have_done_is_committed(world: World) -> None:
    """Only what failed and what had not ended comes again."""
    app, topic = world.app(key=str)

    @app.processor(topic, group="g", concurrency=4, flow=QUICK)
    async def handle(value: int) -> None:
        if value == BAD:
            await until(lambda: len(world.calls) >= 4)
        world.handle(value)

    await world.dies(app, topic)
    assert sorted(world.calls) == [0, 1, 2, BAD, 4]
    world.mended = True
    async with app:
        await until(lambda: world.calls.count(BAD) == 2)
    assert sorted(world.calls) == [0, 1, 2, BAD, BAD, 4]


# -- what our own calls say


async def _transaction(app: Streams, message: Message[int]) -> None:
    message.transaction.execute("SELECT 1")


async def _publish_within(app: Streams, message: Message[int]) -> None:
    async with message.transaction:
        message.transaction.execute("SELECT 1")
        await app.topics["out"].publish(1)


async def _two_statements(app: Streams, message: Message[int]) -> None:
    async with message.transaction:
        message.transaction.execute("SELECT 1; SELECT 2")


async def _wait(app: Streams, message: Message[int]) -> None:
    app.wait(app.topics["out"].publish(1))


async def _declare(app: Streams, message: Message[int]) -> None:
    app.processor(app.topics["out"], group="late")


Act = Callable[[Streams, Message[int]], Awaitable[None]]


@pytest.mark.parametrize(
    ("act", "options", "memory", "said"),
    [
        (_transaction, {}, True, "a message of 't' has none here"),
        (_transaction, {"to": True}, False, "without to="),
        (_transaction, {"to": True, "exactly_once": True}, False, "without to="),
        (_transaction, {"dead_letters": DeadLetters(sequenced=True)}, False, "sequenced=True"),
        (_publish_within, {}, False, "wait for itself"),
        (_two_statements, {}, False, "one statement"),
        (_wait, {}, True, "use await"),
        (_declare, {}, True, "declare them before"),
    ],
    ids=[
        "memory",
        "to=",
        "exactly once",
        "sequenced",
        "publish in transaction",
        "two",
        "wait",
        "declare",
    ],
)
async def test_what_cannot_work_whatever_the_message(
    world: World, act: Act, options: dict[str, Any], memory: bool, said: str
) -> None:
    app = Streams("memory://" if memory else world.url)
    topic, out = app.topic("t", int, partitions=1), app.topic("out", int)
    if options.pop("to", False):
        options["to"] = out

    async def handle(value: int, message: Message[int]) -> None:
        world.calls.append(value)
        await act(app, message)

    app.processor(topic, group="g", retry=Retry(attempts=3, delay=0), flow=QUICK, **options)(handle)

    died = await world.dies(app, topic, [7])
    assert said in str(died)
    assert "\n" not in str(died)
    assert world.calls == [7]


async def test_what_came_with_a_message_is_that_messages_failure() -> None:
    """Whoever can write a message cannot stop a processor with it."""
    from streams.patterns import (
        BackpressureController,
        ChoreographySaga,
        DeduplicatedConsumer,
        Delays,
        EventBus,
        IdempotencyStore,
        IdempotentProcessor,
        SagaOrchestrator,
        SagaStep,
    )

    app = Streams("memory://")
    topic = app.topic("t", dict[str, Any])
    out = app.topic("out", int, partitions=2)
    queue, delays, bus = MessageQueue(app), Delays(app), EventBus(app)
    saga = SagaOrchestrator().add_step(SagaStep("one", lambda context: None))
    store = IdempotencyStore("memory://")
    once: IdempotentProcessor[Any] = IdempotentProcessor(store)
    bounded = BackpressureController(1)

    async def nothing(*given: Any) -> None: ...

    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"deeper": deep}
    calls: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
        "queue": lambda given: queue.publish("no such name!", 1),
        "event": lambda given: bus.publish("not a topic *", 1),
        "saga": lambda given: saga.execute({}, id="\n"),
        "context": lambda given: saga.execute(deep),
        "choreography": lambda given: ChoreographySaga(bus, "").start("order.placed", 1),
        "key": lambda given: once.process("", nothing),
        "lease": lambda given: store.claim("k", lease=-1),
        "ttl": lambda given: store.set("k", 1, ttl=-1),
        "fingerprint": lambda given: once.process("k", nothing, fingerprint={1, object()}),
        "identity": lambda given: DeduplicatedConsumer().process(given, nothing),
        "size": lambda given: bounded.acquire(-1),
        "delay": lambda given: delays.publish(out, 1, delay=-1),
        "at": lambda given: delays.publish(out, 1),
        "cancel": lambda given: delays.cancel(""),
        "read": lambda given: asyncio.to_thread(lambda: list(out.read("yesterday"))),
        "offset": lambda given: asyncio.to_thread(lambda: list(out.read("1x", partition=0))),
    }

    @app.processor(topic, group="g", retry=Retry(attempts=1), flow=QUICK)
    async def handle(value: dict[str, Any]) -> None:
        await calls[value["call"]](value)

    async with store, harness(app) as running:
        await topic.publish_many([{"call": name} for name in calls])
        await running.settled()
        letters = await running.dead(topic, "g")
        found = [each.headers["__streams.errors.exception"] for each in letters]
        assert found == [f"streams.errors.{InvalidValue.__name__}"] * len(calls)
        assert app.health().ok


async def test_a_queue(world: World) -> None:
    app = Streams(world.url)
    queue = MessageQueue(app, partitions=1)

    async def handle(message: Any) -> None:
        world.handle(message.data)

    _ = queue.subscribe("jobs", handle)
    with pytest.raises(ProcessorDied) as died:
        async with app:
            for number in range(5):
                await queue.publish("jobs", number, key="k")
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    assert world.calls == [0, 1, 2, BAD]
    async with app.connected():
        assert list(app.topic("jobs.jobs.dead", bytes).read()) == []


async def test_a_reject_is_still_a_dead_letter() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int) -> None:
        try:
            raise Wrong
        except ConfigError as error:
            raise Reject("the handler decided") from error

    async with harness(app) as running:
        await topic.publish(1)
        await running.settled()
        assert len(await running.dead(topic, "g")) == 1


async def test_a_harness_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "streams")
    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        message.transaction.execute("SELECT 1")

    with pytest.raises(ProcessorDied, match="has none here"):
        async with harness(app) as running:
            await topic.publish(1)
            await running.settled()
