"""The cost of the patterns: each beside the bare processor, publish or call that does the same
work.

Each function is a task of a worker process (:mod:`benchmarks.worker`) that measures one of several
``way``s. ``bare`` is the one without the pattern. Both handle the same orders on the same log, by
the same handler at the same concurrency; the difference is the pattern's cost.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any
from uuid import uuid4

from benchmarks.counting import MessageCounter
from benchmarks.orders import PARTITIONS, Order, customer, order
from benchmarks.ours import (
    Answer,
    fill,
    handler,
    publish_and_keep,
    publish_concurrently,
    run,
    wait_done,
)
from streams import DeadLetters, Message, Retry, Streams
from streams.patterns import (
    BackpressureController,
    ChoreographySaga,
    ConsumerConfig,
    DeduplicatedConsumer,
    Delays,
    Event,
    EventBus,
    IdempotencyStore,
    IdempotentProcessor,
    MessageConsumer,
    MessageQueue,
    PatternEventBus,
    QueueMessage,
    SagaEvent,
    SagaOrchestrator,
    create_handler,
)

CONCURRENCY = 64
"""Concurrent handlers, if they are async."""
STEPS = 3
"""The number of steps of a saga."""
TOPIC = "order.eu.paid"
"""The topic of every event on a bus."""

Call = Callable[[Order], Awaitable[Any]]


def _unique_name(what: str) -> str:
    return f"{what}-{uuid4().hex}"


# -- a topic that exists -------------------------------------------------------------------------


def fill_events(url: str, topic: str, messages: int) -> Answer:
    """Publish the orders 0 to ``messages`` on a bus, each as an event."""
    app = Streams(url)
    call = _bus_publisher(EventBus(app, topic, type=Order, partitions=PARTITIONS))

    async def publish() -> None:
        for start in range(0, messages, 1_000):
            numbers = range(start, min(start + 1_000, messages))
            await asyncio.gather(*(call(order(number)) for number in numbers))

    publish_and_keep(app, publish)
    return {}


def processor(
    url: str, topic: str, messages: int, way: str, shape: str = "plain", concurrency: int = 1
) -> Answer:
    """Run a processor in a new group over ``messages`` of a topic.

    :param way: ``bare``, ``message`` (its handler takes the message too), ``sequenced`` (its dead
        letters close their key; there are none), ``durable`` (its retries are counted in the log;
        there are none), ``metrics`` (collected, and scraped once a second), ``spans`` (of every
        call) or ``sampled spans`` (of one call in a hundred).
    """
    counter = MessageCounter(messages)
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer)
    options: dict[str, Any] = {}
    if way == "sequenced":
        options["dead_letters"] = DeadLetters(sequenced=True)
    elif way == "durable":
        options["retry"] = Retry(durable=True)
    handle = handler(shape, counter)
    if way == "message":
        handle = _with_message(counter)
    app.processor(orders, group=_unique_name("bench"), concurrency=concurrency, **options)(handle)

    async def main() -> None:
        with _observed(app, way):
            async with app:
                await wait_done(counter.done, app)

    run(main)
    return counter.result


def _with_message(counter: MessageCounter) -> Callable[..., Any]:
    one = counter.count_one

    async def handle(value: Order, message: Message[Order]) -> None:
        one()

    return handle


def _observed(app: Streams, way: str) -> AbstractContextManager[None]:
    if way == "metrics":
        return _scraping(app)
    if way == "spans":
        return _tracing(app, 1.0)
    if way == "sampled spans":
        return _tracing(app, 0.01)
    return nullcontext()


@contextmanager
def _scraping(app: Streams) -> Iterator[None]:
    """Scrape fifteen times as often as Prometheus does by default."""
    from prometheus_client import CollectorRegistry, generate_latest

    from streams.patterns import MetricsCollector

    registry = CollectorRegistry()
    registry.register(MetricsCollector(app))
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            generate_latest(registry)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _tracing(app: Streams, share: float) -> Iterator[None]:
    """Create spans, collect them in batches, and send them nowhere."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from streams.patterns import instrument

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    instrument(app, tracer_provider=provider)
    try:
        yield
    finally:
        provider.shutdown()


def queue(url: str, messages: int) -> Answer:
    """A :class:`MessageConsumer` on a queue with ``messages``."""
    name = _unique_name("queue")
    fill(url, name, messages)  # a queue is a topic
    counter = MessageCounter(messages)
    one = counter.count_one
    app = Streams(url)
    queues = MessageQueue(app, partitions=PARTITIONS)
    queues.declare(name, Order)

    async def handle(message: QueueMessage[Order]) -> None:
        one()

    async def main() -> None:
        async with app:
            consumer = MessageConsumer(queues, ConsumerConfig(concurrency=CONCURRENCY))
            await consumer.start(name, handle)
            await wait_done(counter.done, app)
            await consumer.stop()

    run(main)
    return counter.result


def subscriber(url: str, topic: str, messages: int) -> Answer:
    """A durable subscriber of a bus with ``messages``, in a new group."""
    counter = MessageCounter(messages)
    app = Streams(url)
    bus = EventBus(app, topic, type=Order)
    bus.subscribe(
        TOPIC, _counting_handler(counter), group=_unique_name("bench"), concurrency=CONCURRENCY
    )

    async def main() -> None:
        async with app:
            await wait_done(counter.done, app)

    run(main)
    return counter.result


def _counting_handler(counter: MessageCounter) -> Callable[[Event], Awaitable[None]]:
    one = counter.count_one

    async def heard(event: Event) -> None:
        one()

    return heard


# -- publishing ------------------------------------------------------------------------------------


def publishing(url: str, messages: int, tasks: int, way: str) -> Answer:
    """``tasks`` coroutines that each publish one message after the other.

    :param way: ``bare``, ``queue`` or ``bus``.
    """
    app = Streams(url)
    publish = _publisher_of(app, way)

    async def main() -> float:
        async with app.connected():
            return await publish_concurrently(publish, messages, tasks)

    return {"rate": run(main)}


def _publisher_of(app: Streams, way: str) -> Call:
    name = _unique_name(way)
    if way == "bus":
        return _bus_publisher(EventBus(app, name, type=Order, partitions=PARTITIONS))
    if way == "bare":
        return app.topic(name, Order, key=customer, partitions=PARTITIONS).publish
    queues = MessageQueue(app, partitions=PARTITIONS)
    queues.declare(name, Order)

    async def publish(value: Order) -> None:
        await queues.publish(name, value, key=value.customer)

    return publish


def _bus_publisher(bus: EventBus) -> Call:
    async def publish(value: Order) -> None:
        await bus.publish(TOPIC, value, key=value.customer)

    return publish


# -- from publish to handler -----------------------------------------------------------------------


def passing(url: str, messages: int, tasks: int, way: str) -> Answer:
    """``tasks`` coroutines that publish, and a handler that runs meanwhile: messages a second from
    the first call of publish to the last of the handler.

    :param way: ``bare``; ``delay``, every message by :class:`Delays`, due at once; ``ephemeral``,
        events to an ephemeral subscriber; ``chain``, each message through three processors;
        ``saga``, a durable one of three steps; ``choreography``, one of three steps over a bus.
    """
    share = messages // tasks
    counter = MessageCounter(1 + share * tasks)
    app = Streams(url)
    publish = _VARIANTS[way](app, counter)

    async def some(first: int) -> None:
        for number in range(first, first + share):
            await publish(order(number))

    async def main() -> float:
        async with app:
            await publish(order(0))
            while not counter.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # until the handlers have joined
            began = time.perf_counter()
            await asyncio.gather(*(some(1 + task * share) for task in range(tasks)))
            await wait_done(counter.done, app)
        return share * tasks / (counter.ended_at - began)

    return {"rate": run(main)}


def _bare(app: Streams, counter: MessageCounter) -> Call:
    topic = app.topic(_unique_name("bare"), Order, key=customer, partitions=PARTITIONS)
    app.processor(topic, group=_unique_name("bench"), concurrency=CONCURRENCY)(
        handler("async", counter)
    )
    return topic.publish


def _delay(app: Streams, counter: MessageCounter) -> Call:
    topic = app.topic(_unique_name("late"), Order, key=customer, partitions=PARTITIONS)
    app.processor(topic, group=_unique_name("bench"), concurrency=CONCURRENCY)(
        handler("async", counter)
    )
    delays = Delays(app, _unique_name("delays"), partitions=PARTITIONS)

    async def publish(value: Order) -> None:
        await delays.publish(topic, value, delay=0)

    return publish


def _ephemeral(app: Streams, counter: MessageCounter) -> Call:
    bus = EventBus(app, _unique_name("bus"), type=Order, partitions=PARTITIONS)
    bus.subscribe(TOPIC, _counting_handler(counter))
    return _bus_publisher(bus)


def _chain(app: Streams, counter: MessageCounter) -> Call:
    name = _unique_name("chain")
    topics = [
        app.topic(f"{name}-{step}", Order, key="order_id", partitions=PARTITIONS)
        for step in range(STEPS)
    ]

    async def hand_on(value: Order) -> Order:
        return value

    for source, target in itertools.pairwise(topics):
        app.processor(source, group=name, concurrency=CONCURRENCY, to=target)(hand_on)
    app.processor(topics[-1], group=name, concurrency=CONCURRENCY)(handler("async", counter))
    return topics[0].publish


def _saga(app: Streams, counter: MessageCounter) -> Call:
    saga = SagaOrchestrator(
        app, _unique_name("saga"), context=Order, partitions=PARTITIONS, concurrency=CONCURRENCY
    )
    for step, action in enumerate(_actions(counter)):
        saga.add_step(f"step-{step}", action)

    async def start(value: Order) -> None:
        await saga.start(value, id=value.order_id)

    return start


def _actions(counter: MessageCounter) -> list[Call]:
    """The actions of a saga's steps: they do nothing, and the last one counts."""

    async def nothing(value: Order) -> None: ...

    return [*[nothing] * (STEPS - 1), handler("async", counter)]


def _choreography(app: Streams, counter: MessageCounter) -> Call:
    bus = EventBus(app, _unique_name("dance"), type=Order, partitions=PARTITIONS)
    one = counter.count_one

    async def hand_on(event: SagaEvent) -> None: ...

    async def last(event: SagaEvent) -> None:
        one()

    for step in range(STEPS):
        over = step == STEPS - 1
        create_handler(
            bus, f"step.{step}", last if over else hand_on, None if over else f"step.{step + 1}",
            None, name=f"step-{step}", group=_unique_name("bench"), concurrency=CONCURRENCY,
        )  # fmt: skip

    async def start(value: Order) -> None:
        await ChoreographySaga(bus, value.order_id).start("step.0", value)

    return start


_VARIANTS: dict[str, Callable[[Streams, MessageCounter], Call]] = {
    "bare": _bare, "delay": _delay, "ephemeral": _ephemeral, "chain": _chain, "saga": _saga,
    "choreography": _choreography,
}  # fmt: skip


# -- without a log ---------------------------------------------------------------------------------


async def _calls_per_second(call: Call, calls: int) -> float:
    """Calls per second, one after the other."""
    values = [order(number) for number in range(1_000)]
    await call(values[0])
    began = time.perf_counter()
    for number in range(calls):
        await call(values[number % 1_000])
    return calls / (time.perf_counter() - began)


def local(calls: int, way: str, subscribers: int = 10, *, plain: bool = False) -> Answer:
    """Publish each order to ``subscribers``, async or ``plain``: a local ``bus``, or ``bare`` calls
    of each handler."""

    def another() -> Callable[[Any], Any]:
        async def heard(event: Any) -> None: ...

        def heard_plainly(event: Any) -> None: ...

        return heard_plainly if plain else heard

    handlers = [another() for _ in range(subscribers)]
    bus = EventBus()
    for handle in handlers:
        bus.subscribe(TOPIC, handle)

    async def call_each(value: Order) -> None:
        for handle in handlers:
            await handle(value)

    async def call_each_plainly(value: Order) -> None:
        for handle in handlers:
            handle(value)

    bare = call_each_plainly if plain else call_each
    return {
        "rate": run(lambda: _calls_per_second(_bus_publisher(bus) if way == "bus" else bare, calls))
    }


UNMATCHED_PATTERNS = ("s{}.*", "*.s{}", "order.s{}.*", "order.*.s{}", "order.eu.s{}", "s{}.*.paid")
"""Patterns that match no event's topic."""


def matching(calls: int, patterns: int) -> Answer:
    """Microseconds of one publish on a local bus with ``patterns`` patterns that do not match, and
    one that does."""
    bus = PatternEventBus()

    async def never(event: Event) -> None:
        raise AssertionError(event.topic)

    async def heard(event: Event) -> None: ...

    for number in range(patterns):
        bus.subscribe(UNMATCHED_PATTERNS[number % len(UNMATCHED_PATTERNS)].format(number), never)
    bus.subscribe("order.*.paid", heard)
    return {"cost": 1e6 / run(lambda: _calls_per_second(_bus_publisher(bus), calls))}


def saga_in_memory(calls: int, way: str) -> Answer:
    """Three steps that do nothing: a ``saga`` in memory, or ``bare`` calls."""

    async def step(value: Order) -> None: ...

    saga: SagaOrchestrator[Any] = SagaOrchestrator()
    for number in range(STEPS):
        saga.add_step(f"step-{number}", step)

    async def call_each(value: Order) -> None:
        for _ in range(STEPS):
            await step(value)

    return {
        "rate": run(lambda: _calls_per_second(saga.execute if way == "saga" else call_each, calls))
    }


def deduplicated(calls: int, way: str) -> Answer:
    """A handler called through a :class:`DeduplicatedConsumer`, or by a ``bare`` call; no message
    is a duplicate."""
    consumer = DeduplicatedConsumer()
    messages = [Message(order(n), id=f"message-{n}") for n in range(calls)]

    async def handle(message: Message[Order]) -> None: ...

    async def process(message: Message[Order]) -> None:
        await consumer.process(message, handle)

    async def main() -> float:
        call = process if way == "deduplicated" else handle
        began = time.perf_counter()
        for message in messages:
            await call(message)
        return calls / (time.perf_counter() - began)

    return {"rate": run(main)}


def places(calls: int, tasks: int, way: str) -> Answer:
    """``tasks`` coroutines that share 64 permits: of a ``controller``, or of a ``bare``
    ``asyncio.Semaphore``. Each holder yields to the others once."""

    async def main() -> float:
        shared: Any = asyncio.Semaphore(CONCURRENCY)
        if way == "controller":
            shared = BackpressureController(CONCURRENCY)

        async def call(value: Order) -> None:
            async with shared:
                await asyncio.sleep(0)

        return await publish_concurrently(call, calls, tasks)

    return {"rate": run(main)}


def once(url: str, calls: int, way: str) -> Answer:
    """64 coroutines that call an operation, each time under another key: through an
    :class:`IdempotentProcessor`, or by a ``bare`` call.

    :param url: the store's.
    """

    async def main() -> float:
        async with _operations(url, way) as call:
            return await publish_concurrently(call, calls, CONCURRENCY)

    return {"rate": run(main)}


@asynccontextmanager
async def _operations(url: str, way: str) -> AsyncIterator[Call]:
    async def operation() -> int:
        return 1

    if way == "bare":

        async def plain(value: Order) -> int:
            return await operation()

        yield plain
        return
    async with IdempotencyStore(url, name=_unique_name("bench")) as store:
        charges = IdempotentProcessor(store, type=int)
        numbers = itertools.count()

        async def process(value: Order) -> int:
            return await charges.process(f"charge:{next(numbers)}", operation)

        yield process


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task
    for task in (
        fill_events, processor, queue, subscriber, publishing, passing, local, matching,
        saga_in_memory, deduplicated, places, once,
    )
}  # fmt: skip
