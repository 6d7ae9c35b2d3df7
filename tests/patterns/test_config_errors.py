"""A ``ConfigError`` in what a pattern calls: it is nobody's failure but the program's. Code that is
too old for what it was called for: that waits for newer code."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streams import CodeTooOld, ConfigError, Message, ProcessorDied, Retry, Streams
from streams.patterns import (
    Event,
    EventBus,
    IdempotencyStore,
    IdempotentProcessor,
    OperationFailed,
    SagaEvent,
    SagaFailedError,
    SagaOrchestrator,
    SagaStep,
    create_handler,
)
from streams.replay import replay
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio

FAST = Retry(attempts=3, delay=0.001)


class Wrong(ConfigError):
    def __init__(self) -> None:
        super().__init__("it cannot work")


class Steps:
    """A saga's steps, what they did, and which of them cannot work."""

    def __init__(self, *wrong: str) -> None:
        self.wrong = set(wrong)
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)
        if line in self.wrong:
            raise Wrong

    def step(self, name: str, *, plain: bool = False) -> SagaStep[Any]:
        async def execute(context: Any) -> None:
            self.write(f"do {name}")

        def execute_plain(context: Any) -> None:
            self.write(f"do {name}")

        async def compensate(context: Any) -> None:
            self.write(f"undo {name}")

        return SagaStep(
            name,
            execute_plain if plain else execute,
            compensate,
            retry=FAST,
            compensation_retry=FAST,
        )


# -- sagas


@pytest.mark.parametrize("plain", [False, True])
async def test_a_durable_saga_stands_where_it_stood(tmp_path: Path, plain: bool) -> None:
    steps = Steps("do b")
    app = Streams(f"sqlite:///{tmp_path}/log.db")
    saga = SagaOrchestrator(app, "s", context=dict[str, int])
    saga.add_step(steps.step("a")).add_step(steps.step("b", plain=plain))
    with pytest.raises(ProcessorDied) as died:
        async with app:
            await saga.start({}, id="one")
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    assert steps.lines == ["do a", "do b"]
    async with app.connected():
        status = await saga.status("one")
        assert (status.status, status.done, status.failure) == ("running", ("a",), None)
        assert list(app.topic("s.saga.s.dead", bytes).read()) == []
    # With the code mended it goes on.
    steps.wrong.clear()
    async with app:
        await until(lambda: steps.lines == ["do a", "do b", "do b"])
        await saga.execute({}, id="one")


async def test_a_durable_saga_waits_for_newer_code(tmp_path: Path) -> None:
    """What its steps did stands, nothing is compensated, and it goes on elsewhere."""
    done: list[str] = []

    def declare(*, newer: bool) -> tuple[Streams, SagaOrchestrator[Any]]:
        app = Streams(f"sqlite:///{tmp_path}/log.db")
        saga = SagaOrchestrator(app, "s", context=dict[str, int])

        async def first(context: Any) -> None:
            done.append("a")

        async def second(context: Any) -> None:
            if not newer:
                raise CodeTooOld("an event of tomorrow")
            done.append("b")

        saga.add_step(SagaStep("a", first, retry=FAST)).add_step(SagaStep("b", second, retry=FAST))
        return app, saga

    old, saga = declare(newer=False)
    async with old:
        await saga.start({}, id="one")
        await until(lambda: any(each.held_back for each in old.health().processors.values()))
        status = await saga.status("one")
        assert (status.status, status.done, status.failure) == ("running", ("a",), None)
    app, saga = declare(newer=True)
    async with app:
        await saga.execute({}, id="one")
    assert done == ["a", "b"]


async def test_a_choreographed_step_waits_for_newer_code() -> None:
    app, answers = Streams("memory://"), list[Event]()
    bus = EventBus(app)

    async def charge(heard: SagaEvent) -> None:
        raise CodeTooOld("an event of tomorrow")

    async def look(event: Event) -> None:
        answers.append(event)

    create_handler(bus, "stock.reserved", charge, "payment.charged", "payment.failed", retry=FAST)
    bus.subscribe("payment.failed", look)
    async with app:
        await bus.publish("stock.reserved", 1)
        await until(lambda: any(each.held_back for each in app.health().processors.values()))
        assert answers == []


async def test_a_durable_sagas_compensation(tmp_path: Path) -> None:
    steps = Steps("undo a")
    app = Streams(f"sqlite:///{tmp_path}/log.db")

    async def fail(context: Any) -> None:
        raise LookupError("no")

    saga = SagaOrchestrator(app, "s", context=dict[str, int])
    saga.add_step(steps.step("a")).add_step("b", fail)
    with pytest.raises(ProcessorDied) as died:
        async with app:
            await saga.start({}, id="one")
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    async with app.connected():
        assert (await saga.status("one")).status == "compensating"
    steps.wrong.clear()
    async with app:
        with pytest.raises(SagaFailedError) as failed:
            await saga.execute({}, id="one")
        assert failed.value.failed_compensations == ()
    assert steps.lines == ["do a", "undo a", "undo a"]


async def test_steps_side_by_side(tmp_path: Path) -> None:
    steps = Steps("do b")
    app = Streams(f"sqlite:///{tmp_path}/log.db")
    saga = SagaOrchestrator(app, "s", context=dict[str, int])
    saga.add_parallel(steps.step("a"), steps.step("b"))
    with pytest.raises(ProcessorDied) as died:
        async with app:
            await saga.start({}, id="one")
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    async with app.connected():
        assert (await saga.status("one")).status == "running"


async def test_a_saga_in_memory_is_compensated_and_says_so_itself() -> None:
    """Nobody could go on with it; and whoever is told must not take it for the saga's failure."""
    steps = Steps("do b")
    saga = SagaOrchestrator().add_step(steps.step("a")).add_step(steps.step("b"))
    with pytest.raises(Wrong) as raised:
        await saga.execute({})
    assert steps.lines == ["do a", "do b", "undo a"]
    assert not hasattr(raised.value, "__notes__")


async def test_a_saga_in_memory_that_cannot_be_compensated() -> None:
    steps = Steps("do b", "undo a")
    saga = SagaOrchestrator().add_step(steps.step("a")).add_step(steps.step("b"))
    with pytest.raises(Wrong) as raised:
        await saga.execute({}, id="one")
    assert steps.lines == ["do a", "do b", "undo a"]  # once, whatever its retries say
    assert raised.value.__notes__ == ["saga one cannot work; not compensated: a"]


async def test_a_saga_within_a_handler_ends_the_processor() -> None:
    steps = Steps("do b")
    saga = SagaOrchestrator().add_step(steps.step("a")).add_step(steps.step("b"))
    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int) -> None:
        await saga.execute({})

    with pytest.raises(ProcessorDied) as died:
        async with app:
            await topic.publish(1)
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)


# -- the event bus


@pytest.mark.parametrize("group", ["g", None])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("beside", [False, True])
async def test_a_subscriber_over_a_log(group: str | None, plain: bool, beside: bool) -> None:
    told, heard = list[BaseException](), list[int]()
    app = Streams("memory://")
    bus = EventBus(app, on_error=lambda error, event, handler: told.append(error))

    async def handle(event: Event) -> None:
        raise Wrong

    def handle_plain(event: Event) -> None:
        raise Wrong

    async def other(event: Event) -> None:
        await asyncio.sleep(0.01)
        heard.append(event.data)

    options: dict[str, Any] = {"flow": QUICK} if group is not None else {}
    bus.subscribe("a.b", handle_plain if plain else handle, group=group, **options)
    if beside:
        bus.subscribe("a.b", other)
    with pytest.raises(ProcessorDied) as died:
        async with app:
            await bus.publish("a.b", 1)
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, Wrong)
    assert [type(each) for each in told] == [Wrong]
    if beside and group is None:
        assert heard == [1]  # others of the event are let finish


async def test_a_subscriber_of_a_local_bus_stops_nobody() -> None:
    told, heard = list[BaseException](), list[int]()
    bus = EventBus(on_error=lambda error, event, handler: told.append(error))

    async def handle(event: Event) -> None:
        raise Wrong

    async def other(event: Event) -> None:
        heard.append(event.data)

    bus.subscribe("a.b", handle)
    bus.subscribe("a.b", other)
    await bus.publish("a.b", 1)
    assert [type(each) for each in told] == [Wrong]
    assert heard == [1]


@pytest.mark.parametrize("local", [False, True])
async def test_a_step_of_a_choreographed_saga_answers_nothing(local: bool) -> None:
    told, answers = list[BaseException](), list[Event]()
    app = None if local else Streams("memory://")
    bus = EventBus(app, on_error=lambda error, event, handler: told.append(error))

    async def charge(heard: SagaEvent) -> None:
        raise Wrong

    async def look(event: Event) -> None:
        answers.append(event)

    create_handler(bus, "stock.reserved", charge, "payment.charged", "payment.failed")
    bus.subscribe("payment.failed", look)
    if app is None:
        await bus.publish("stock.reserved", 1)
    else:
        with pytest.raises(ProcessorDied) as died:
            async with app:
                await bus.publish("stock.reserved", 1)
                await asyncio.Event().wait()
        assert isinstance(died.value.__cause__, Wrong)
    assert [type(each) for each in told] == [Wrong]
    assert answers == []


# -- idempotency


@pytest.mark.parametrize("errors", [(ValueError,), (ConfigError,)])
async def test_it_is_no_outcome_to_be_remembered(errors: tuple[type[Exception], ...]) -> None:
    calls = list[int]()

    async def operation() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise Wrong
        if len(calls) == 3:
            raise errors[0]("an outcome")
        return 7

    async with IdempotencyStore("memory://") as store:
        once: IdempotentProcessor[int] = IdempotentProcessor(store, errors=errors)
        with pytest.raises(Wrong):
            await once.process("k", operation)
        assert await once.process("k", operation) == 7
        if errors == (ValueError,):
            with pytest.raises(OperationFailed):
                await once.process("other", operation)


async def test_a_type_that_cannot_be_stored() -> None:
    class Unheard: ...

    async with IdempotencyStore("memory://") as store:
        with pytest.raises(ConfigError, match="idempotency store: type=Unheard"):
            await store.set("k", Unheard(), type=Unheard)


# -- a replay


async def test_a_replay_into_a_handler_raises_it() -> None:
    app, calls = Streams("memory://"), list[int]()
    topic = app.topic("t", int)

    async def handle(value: int, message: Message[int]) -> None:
        calls.append(value)
        message.transaction.execute("SELECT 1")

    async with app.connected():
        await topic.publish_many([1, 2, 3])
        with pytest.raises(ConfigError, match="no replay"):
            await replay(app, topic, handle, errors="skip", retry=FAST)
        assert calls == [1]
