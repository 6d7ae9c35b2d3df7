"""What is declared, and what was meant: queues and a bus's topics, handles, decorators."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams import ConfigError, InvalidValue, Streams
from streams.patterns import (
    ChoreographySaga,
    ConsumerConfig,
    Event,
    EventBus,
    EventFilter,
    FilteredSubscriber,
    MessageConsumer,
    MessageQueue,
    PatternEventBus,
    Queue,
    QueueMessage,
    SagaEvent,
    SagaTracker,
    create_handler,
)
from streams.testing import harness
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio


class Mail(msgspec.Struct):
    to: str


async def test_a_handle_publishes_subscribes_cancels_and_starts(stage: Stage) -> None:
    app = stage.app()
    queue = MessageQueue(app)
    mails = queue.declare(f"{stage.topic_name}-mails", Mail, partitions=1)
    assert isinstance(mails, Queue)
    assert (mails.name, mails.topic) == (f"{stage.topic_name}-mails", queue.topic(mails.name))
    got: list[tuple[str, str]] = []

    @mails.subscribe(config=ConsumerConfig(concurrency=3))
    async def first(message: QueueMessage[Mail]) -> None:
        got.append((message.id, message.data.to))

    def second(message: QueueMessage[Mail]) -> None:
        got.append((message.id, message.data.to))

    consumer = MessageConsumer(queue)
    async with harness(app, url=stage.url) as h:
        later = await mails.publish(Mail("eve"), delay=3600, id="later")
        assert await mails.cancel(later) == "cancelled"
        await mails.publish(Mail("ada"), key="ada", id="1")
        await h.settled()
        await consumer.start(mails, second)
        await mails.publish(Mail("bob"), id="2", headers={"a": "b"})
        await h.settled()
        await consumer.stop()
        await (await mails.subscribe(second)).stop()
    assert sorted(got) == [("1", "ada"), ("2", "bob")]
    assert callable(first)


async def test_subscribing_is_a_decorator_too(memory_url: str) -> None:
    app = Streams(memory_url)
    queue, bus, local = MessageQueue(app), PatternEventBus(app), EventBus()
    got: list[Any] = []

    @queue.subscribe("mails")
    async def mail(message: QueueMessage[Any]) -> None:
        got.append(message.data)

    @bus.subscribe("order.*", group="billing")
    @bus.subscribe("other.*")
    def bill(event: Event) -> None:
        got.append(event.data)

    @local.subscribe("here")
    def here(event: Event) -> None:
        got.append(event.data)

    async with harness(app) as h:
        await queue.publish("mails", 1)
        await bus.publish("order.paid", 2)
        await bus.publish("other.told", 3)
        await local.publish("here", 4)
        await h.settled()

        @queue.subscribe("mails")
        def another(message: QueueMessage[Any]) -> None:
            got.append(message.data)

        await queue.publish("mails", 5)
        await h.settled()
    assert sorted(got) == [1, 2, 3, 4, 5]
    now = QueueMessage("1", app_time(), 6, 0, "mails")
    await mail(now)  # it is the function that it was
    assert got[-1] == 6


def app_time() -> Any:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc)


def test_a_decorator_says_what_cannot_work() -> None:
    queue = MessageQueue(Streams("memory://"))
    wrong: Any = ConsumerConfig()
    with pytest.raises(ConfigError, match="give it as config="):
        _ = queue.subscribe("mails", wrong)
    with pytest.raises(ConfigError, match=r"takes one parameter|takes 2"):

        @queue.subscribe("mails")
        def two(message: QueueMessage[Any], other: Any) -> None: ...

    nothing: Any = None
    with pytest.raises(ConfigError, match="None is not a function"):
        _ = queue.subscribe("mails", nothing)
    with pytest.raises(ConfigError, match="handler None"):
        EventBus().subscribe("order", nothing)


async def test_a_queue_that_is_not_declared_beside_others_is_an_error(memory_url: str) -> None:
    app = Streams(memory_url)
    queue = MessageQueue(app)
    early = "early"
    queue.topic(early)
    queue.declare("mails", Mail)

    def take(message: QueueMessage[Any]) -> None: ...

    near = r"queue 'mial' is not declared.* did you mean 'mails'\? .*declare\('mial'"
    async with harness(app):
        for refused in (queue.publish("mial", Mail("ada")), queue.cancel("mial", "id")):
            with pytest.raises(InvalidValue, match=near):
                await refused
        with pytest.raises(ConfigError, match=near):
            _ = queue.subscribe("mial", take)
        with pytest.raises(ConfigError, match=near):
            queue.subscribe("mial")
        with pytest.raises(ConfigError, match=near):
            queue.topic("mial")
        with pytest.raises(ConfigError, match=near):
            await MessageConsumer(queue).start("mial", take)
        with pytest.raises(InvalidValue, match="there are 'early', 'mails'"):
            await queue.publish("x", 1)
        await queue.publish(early, 1)  # it was in use before anything was declared
        assert "mial" not in app.topics
    queue.declare("mial")
    queue.topic("mial")


async def test_a_dead_letter_queue_that_is_a_slip_of_a_declared_one_is_an_error() -> None:
    def take(message: QueueMessage[Any]) -> None: ...

    slip = ConsumerConfig(dead_letter_queue="lost-mials")
    near = (
        r"queue 'mails': dead_letter_queue='lost-mials' is not declared: did you mean 'lost-mails'"
    )

    queue = MessageQueue(Streams("memory://"))
    mails = queue.declare("mails", Mail)
    queue.declare("lost-mails", Mail)
    for declare in (
        lambda: mails.subscribe(take, slip),
        lambda: mails.subscribe(config=slip)(take),
    ):
        with pytest.raises(ConfigError, match=near + r"\? Declare it before .*'lost-mials'"):
            _ = declare()
    queue.declare("lost-mials")  # so it was meant
    _ = mails.subscribe(take, slip)

    other = MessageQueue(Streams("memory://"))
    _ = other.declare("mails", Mail).subscribe(take, slip)
    with pytest.raises(ConfigError, match=near + ", which is declared now"):
        other.declare("lost-mails", Mail)
    assert "lost-mails" not in other._topics

    fresh = MessageQueue(Streams("memory://"))
    mails = fresh.declare("mails", Mail)
    fresh.declare("lost-mails-us")
    # New names, however like they are; and one that is like the consumer's own queue.
    for name in ("mails-dead", "lost-mails", "lost-mails-eu", "mails2", "dmails"):
        _ = mails.subscribe(take, ConsumerConfig(dead_letter_queue=name))
    fresh.declare("lost-mails")


async def test_an_event_that_is_not_declared_beside_others_is_an_error(memory_url: str) -> None:
    app = Streams(memory_url)
    for bus in (PatternEventBus(), PatternEventBus(app)):
        async with harness(app):
            await bus.publish("order.pai", 1)  # nothing is declared
            bus.declare("order.placed", "order.paid")
            bus.declare("stock.reserved")
            near = r"event topic 'order.pai' is not declared .* did you mean 'order.paid'\?"
            with pytest.raises(InvalidValue, match=near):
                await bus.publish("order.pai", 1)
            with pytest.raises(ConfigError, match=near):
                bus.subscribe("order.pai", print)
            with pytest.raises(ConfigError, match=near):
                bus.subscribe("order.pai")
            with pytest.raises(ConfigError, match=r"pattern 'orders\.\*' fits no topic"):
                bus.subscribe("orders.*", print)
            with pytest.raises(ConfigError, match=near):
                FilteredSubscriber(bus, EventFilter(topic="order.pai")).subscribe(print)
            for pattern in ("order.*", "*", "*.reserved", "order.paid"):
                bus.subscribe(pattern, print)()
            await bus.publish("order.paid", 1)


async def test_a_step_that_would_say_what_nobody_declared_is_an_error() -> None:
    bus = EventBus()
    bus.declare("order.placed", "stock.reserved", "order.refused")

    async def step(event: SagaEvent) -> None: ...

    with pytest.raises(ConfigError, match=r"did you mean 'stock.reserved'"):
        create_handler(bus, "order.placed", step, "stock.reservd", None)
    with pytest.raises(ConfigError, match=r"did you mean 'order.refused'"):
        create_handler(bus, "order.placed", step, None, "order.refsed")
    with pytest.raises(ConfigError, match=r"did you mean 'order.placed'"):
        create_handler(bus, "order.plaeced", step, None, None)
    for option in ("done", "failed", "topics"):
        wrong: Any = {"done": "stock.reserved", option: "order.plaeced"}
        with pytest.raises(ConfigError, match=r"order\.placed"):
            SagaTracker(bus, **wrong)
    with pytest.raises(InvalidValue, match=r"'saga\.started' is not declared"):
        await ChoreographySaga(bus, "s").start({"total": 1})


async def test_the_short_form_starts_a_saga(stage: Stage) -> None:
    app = stage.app()
    bus = EventBus(app, f"{stage.topic_name}-bus", partitions=1)
    heard: list[tuple[str, str, str, Any]] = []

    async def reserve(event: SagaEvent) -> None:
        heard.append((event.saga_id, event.step_name, event.status, event.data))

    create_handler(bus, "saga.started", reserve, None, None, group=stage.group)
    create_handler(bus, "order.placed", reserve, None, None, group=f"{stage.group}-2")
    async with harness(app, url=stage.url) as h:
        await ChoreographySaga(bus, "order-1").start({"total": 20})
        await ChoreographySaga(bus, "order-1").start({"total": 20})  # once
        await ChoreographySaga(bus, "order-2").start(data="text")
        await ChoreographySaga(bus, "order-3").start()
        await ChoreographySaga(bus, "order-4").start("order.placed", {"total": 3})
        await ChoreographySaga(bus, "order-5").start([1, 2])
        await h.settled()
        wrong: Any = {"total": 1}
        with pytest.raises(ConfigError, match="the topic is a str"):
            await ChoreographySaga(bus, "order-6").start(wrong, {"total": 1})
        with pytest.raises(InvalidValue, match="event topic 'some text'"):
            await ChoreographySaga(bus, "order-7").start("some text")
    assert sorted(heard) == [
        ("order-1", "start", "started", {"total": 20}),
        ("order-2", "start", "started", "text"),
        ("order-3", "start", "started", None),
        ("order-4", "start", "started", {"total": 3}),
        ("order-5", "start", "started", [1, 2]),
    ]
