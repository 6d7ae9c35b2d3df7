"""Whatever a pattern is given, the error is one of ours, on one line: never a ``TypeError`` from
somewhere inside, and never silence until the first message comes.

Every parameter of every constructor and method is given each of :data:`WRONG`, one at a time. What
is taken is taken; what is refused must be refused by name.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

import pytest

from stream_codecs import CodecError
from streams import ConfigError, Message, Streams, StreamsError
from streams.patterns import (
    BackpressureController,
    ChoreographySaga,
    ClosedKeys,
    ConsumerConfig,
    DeadLetterManager,
    DeduplicatedConsumer,
    Delays,
    Event,
    EventBus,
    EventFilter,
    FilteredSubscriber,
    IdempotencyStore,
    IdempotentProcessor,
    MessageConsumer,
    MessageQueue,
    MetricsCollector,
    MonitoringServer,
    PatternEventBus,
    SagaEvent,
    SagaOrchestrator,
    SagaStep,
    SagaTracker,
    create_handler,
    instrument,
)

pytestmark = pytest.mark.anyio

WRONG: tuple[Any, ...] = (
    None, 0, -3, 2.5, float("nan"), True, "", "a b\0", b"x", [], ["x"], {"a": 1}, object(), int,
    lambda: None,
)  # fmt: skip

Call = tuple[str, Callable[..., Any], dict[str, Any]]


async def step(context: Any) -> None:
    """A step, a handler, an operation's work."""


def act() -> int:
    return 1


def event() -> Event:
    now = datetime.now(timezone.utc)
    return Event(topic="t", data=1, id="1", key=None, timestamp=now, headers={})


def constructors(app: Streams) -> Iterator[Call]:
    bus, queue = EventBus(), MessageQueue(app)
    yield "BackpressureController", BackpressureController, {"max_concurrency": 1, "max_bytes": 1}
    yield "ChoreographySaga", ChoreographySaga, {"bus": bus, "saga_id": "s"}
    yield "ClosedKeys", ClosedKeys, {"app": app, "topic": "t", "group": "g"}
    yield (
        "ConsumerConfig",
        ConsumerConfig,
        {
            "concurrency": 1,
            "max_retries": 1,
            "retry_delay": 1.0,
            "dead_letter_queue": "d",
            "retry_cap": 1.0,
            "never": (ValueError,),
            "timeout": 1.0,
            "drain": 1.0,
            "commit": 1.0,
        },
    )
    yield "DeadLetterManager", DeadLetterManager, {"app": app, "name": "t.g.dead"}
    yield "DeduplicatedConsumer", DeduplicatedConsumer, {"max_size": 1}
    delays = {"app": app, "name": "later", "partitions": 1, "pending": 10}
    yield "Delays", Delays, delays
    over = {"app": app, "name": "e", "type": int, "codec": None, "partitions": 1}
    over["retention"] = None
    for kind in (EventBus, PatternEventBus):
        yield kind.__name__, kind, {**over, "concurrency": 1, "on_error": None}
    yield "EventFilter", EventFilter, {"topic": "t", "type": int, "attributes": {}}
    durable = {"group": "g", "concurrency": 1, "timeout": 1.0, "start": "earliest"}
    filtered = {"bus": bus, "filter": EventFilter(), "group": None}
    yield "FilteredSubscriber", FilteredSubscriber, filtered
    yield (
        "FilteredSubscriber durable",
        lambda **given: FilteredSubscriber(bus, EventFilter(), **given).subscribe(step)(),
        durable,
    )
    store: dict[str, Any] = {"url": "memory://", "name": "n", "config": {}, "clock": None}
    yield "IdempotencyStore", IdempotencyStore, store
    yield (
        "IdempotentProcessor",
        IdempotentProcessor,
        {
            "store": IdempotencyStore(),
            "ttl": 1.0,
            "lease": 1.0,
            "wait": True,
            "errors": (ValueError,),
            "type": int,
            "codec": None,
        },
    )
    consumer = {"queue": queue, "config": ConsumerConfig()}
    yield "MessageConsumer", MessageConsumer, consumer
    yield "MessageQueue", MessageQueue, {"app": app, "partitions": 1, "retention": None}
    yield "MetricsCollector", MetricsCollector, {"app": app, "patience": 1.0}
    server = {"app": app, "host": "127.0.0.1", "port": 0, "stuck": 1.0}
    yield "MonitoringServer", MonitoringServer, server
    saga: dict[str, Any] = {"app": app, "name": "s", "context": dict}
    saga |= {"partitions": 1, "concurrency": 1, "retention": None}
    yield "SagaOrchestrator", SagaOrchestrator, saga
    yield "SagaOrchestrator in memory", SagaOrchestrator, {"app": None, "name": None}
    yield (
        "SagaStep",
        SagaStep,
        {
            "name": "s",
            "execute": step,
            "compensate": step,
            "retry": SagaStep("x", step).retry,
            "compensation_retry": SagaStep("x", step).retry,
            "timeout": 1.0,
            "compensate_failed": False,
        },
    )
    tracker = {"bus": bus, "done": "d", "failed": "f", "topics": "*", "stuck_after": 1.0, "keep": 1}
    yield "SagaTracker", SagaTracker, tracker
    yield (
        "create_handler",
        create_handler,
        {
            "bus": bus,
            "listen_to": "t",
            "execute": step,
            "on_success": "a",
            "on_failure": "b",
            "name": "n",
            "group": "g",
        },
    )
    yield "instrument", instrument, {"app": app, "tracer_provider": None}
    yield "SagaEvent.of", SagaEvent.of, {"event": event()}
    yield "subscribe", bus.subscribe, {"topic": "t", "handler": step, "in_thread": False}
    yield (
        "subscribe durable",
        lambda **given: EventBus(app, "durable").subscribe("t", step, **given)(),
        durable,
    )
    yield "declare", lambda topic: EventBus().declare(topic), {"topic": "t"}
    yield (
        "MessageQueue.declare",
        lambda **given: MessageQueue(app).declare(**given),
        {"queue": "q", "type": int, "codec": None, "partitions": 1, "retention": None},
    )
    yield "MessageQueue.topic", queue.topic, {"queue": "q"}
    yield (
        "MessageQueue.subscribe",
        lambda **given: MessageQueue(Streams("memory://")).subscribe(**given),
        {"queue": "q", "handler": step, "config": ConsumerConfig()},
    )
    yield (
        "MessageQueue.subscribe as a decorator",
        lambda queue, config: MessageQueue(app).subscribe(queue, config=config)(step),
        {"queue": "r", "config": ConsumerConfig()},
    )
    orchestrator = SagaOrchestrator[Any]()
    add = {"step": "s", "execute": step, "compensate": step}
    yield "add_step", lambda **given: SagaOrchestrator[Any]().add_step(**given), add
    yield "add_step of a step", orchestrator.add_step, {"step": SagaStep("one", step)}
    beside = {"beside": SagaStep("t", step)}
    yield "add_parallel", lambda beside: orchestrator.add_parallel(beside), beside


@asynccontextmanager
async def methods(app: Streams) -> AsyncIterator[list[Call]]:
    topic = app.topic("orders", int)
    queue, bus, logged = MessageQueue(app), EventBus(), EventBus(app, "events")
    jobs = queue.declare("jobs", int, partitions=1)
    delays = Delays(app, "later")
    saga = SagaOrchestrator(app, "saga", context=dict[str, Any]).add_step("a", step)
    store = IdempotencyStore()
    once = IdempotentProcessor(store)
    letters, closed = DeadLetterManager(app, "orders.g.dead"), ClosedKeys(app, topic, "g")
    tracker = SagaTracker(bus, done="done")
    consumer, limits = MessageConsumer(queue), BackpressureController(100, max_bytes=10**6)

    async def worked(queue_name: Any, handler: Any) -> None:
        await consumer.start(queue_name, handler)
        await consumer.stop()

    async def tracked(since: Any) -> None:
        async with SagaTracker(logged, done="done") as found:
            found.stop()
            await found.start(since)

    async def read(topic: Any, start: Any, end: Any) -> None:
        async for _ in logged.read(topic, start, end):
            pass

    in_memory = SagaOrchestrator[Any]().add_step("a", step)

    async def listed(status: Any, newest: Any) -> None:
        await saga.list(status, newest=newest)

    async def sized(size: Any) -> None:
        async with limits.sized(size):
            pass

    async def acquired(size: Any) -> None:
        await limits.acquire(size)
        limits.release(size)

    publish = {"data": 1, "key": "k", "id": "i", "headers": {}}
    claims = {"key": "k", "lease": 1.0}
    async with app, store:
        yield [
            ("acquire", acquired, {"size": 1}),
            ("sized", sized, {"size": 1}),
            ("with_backpressure", limits.with_backpressure, {"operation": act, "size": 1}),
            ("ChoreographySaga.start", ChoreographySaga(bus).start, {"topic": "t", "data": 1}),
            ("ChoreographySaga.start short", ChoreographySaga(logged).start, {"data": 1}),
            (
                "ChoreographySaga.start of a step",
                ChoreographySaga(logged).start,
                {"topic": "t", "step_name": "s"},
            ),
            ("ClosedKeys.keys", closed.keys, {"limit": 1}),
            ("ClosedKeys.retry", closed.retry, {"key": "k"}),
            ("ClosedKeys.edit", closed.edit, {"key": "k", "value": 1}),
            ("ClosedKeys.drop", closed.drop, {"key": "k"}),
            (
                "move_to_dead_letter",
                letters.move_to_dead_letter,
                {"message": Message(1), "error": "e", "source_queue": "orders", "group": "g"},
            ),
            ("get_dead_letters", letters.get_dead_letters, {"limit": 1, "filter": None}),
            ("reprocess", letters.reprocess, {"target": None, "filter": None, "limit": 1}),
            ("purge", letters.purge, {"filter": None, "limit": 1}),
            (
                "DeduplicatedConsumer.process",
                DeduplicatedConsumer().process,
                {"message": Message(1), "handler": step},
            ),
            (
                "Delays.publish",
                delays.publish,
                {"topic": topic, "value": 1, "delay": 3600, "at": None, "key": "k", "id": "i"},
            ),
            ("Delays.cancel", delays.cancel, {"id": "i", "within": 0.1}),
            ("EventBus.publish", bus.publish, {"topic": "t", **publish, "cause": event()}),
            ("EventBus.publish over a log", logged.publish, {"topic": "t", **publish}),
            ("EventBus.publish at", logged.publish, {"topic": "t", "data": 1, "timestamp": None}),
            (
                "EventBus.answer",
                logged.publish_derived,
                {"cause": event(), "topic": "t", "data": 1, "id": "i", "headers": {}},
            ),
            ("EventBus.read", read, {"topic": "*", "start": "earliest", "end": "latest"}),
            ("EventFilter.matches", EventFilter().matches, {"event": event()}),
            ("store.get", store.get, {"key": "k", "type": int}),
            ("store.set", store.set, {"key": "k", "value": 1, "ttl": 1.0, "type": int}),
            ("store.forget", store.forget, {"key": "k"}),
            ("store.claim", store.claim, {**claims, "fingerprint": "f"}),
            (
                "store.complete",
                store.complete,
                {"key": "k", "token": "t", "value": 1, "ttl": 1.0, "type": int},
            ),
            ("store.release", store.release, {"key": "k", "token": "t"}),
            ("store.renew", store.renew, {**claims, "token": "t"}),
            ("store.place", store.store_key, {"key": "k"}),
            (
                "IdempotentProcessor.process",
                once.process,
                {"key": "p", "operation": act, "fingerprint": None, "wait": None},
            ),
            ("MessageConsumer.start", worked, {"queue_name": "jobs", "handler": step}),
            ("MessageQueue.publish", queue.publish, {"queue": "jobs", **publish, "delay": 3600}),
            ("MessageQueue.cancel", queue.cancel, {"queue": "jobs", "id": "i", "within": 0.1}),
            ("Queue.publish", jobs.publish, {**publish, "delay": 3600}),
            ("Queue.cancel", jobs.cancel, {"id": "i", "within": 0.1}),
            ("saga.execute", in_memory.execute, {"context": {}, "id": "x"}),
            ("saga.start", saga.start, {"context": {}, "id": "i"}),
            ("saga.status", saga.status, {"id": "i", "newest": 1}),
            ("saga.list", listed, {"status": "completed", "newest": 1}),
            ("saga.resume", saga.resume, {"id": "i"}),
            ("saga.abandon", saga.abandon, {"id": "i", "reason": ""}),
            ("tracker.start", tracked, {"since": "earliest"}),
            ("tracker.see", tracker.see, {"event": event()}),
            ("tracker.get", tracker.get, {"saga_id": "s"}),
            ("tracker.forget", tracker.forget, {"saga_id": "s"}),
        ]  # fmt: skip


OURS = (StreamsError, CodecError)


async def fault(call: Callable[..., Any], given: dict[str, Any]) -> str:
    """What is not as it should be when it is called so; empty: nothing."""
    try:
        async with asyncio.timeout(20):
            found = call(**given)
            if inspect.isawaitable(found):
                await found
    except OURS as error:
        return "" if "\n" not in str(error) else f"an error of several lines: {error}"
    except TimeoutError as error:
        return "" if str(error) else "it hangs"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def swept(calls: Iterator[Call] | list[Call]) -> list[str]:
    found: list[str] = []
    for name, call, good in calls:
        for option in good:
            for wrong in WRONG:
                said = await fault(call, {**good, option: wrong})
                if said:
                    found.append(f"{name}({option}={wrong!r}): {said}")
    return found


async def test_constructors_and_declarations() -> None:
    found = await swept(constructors(Streams("memory://")))
    assert not found, "\n".join(found)


async def test_what_is_not_an_app_is_refused_where_it_is_given() -> None:
    for name, call, good in constructors(Streams("memory://")):
        if "app" not in good:
            continue
        for wrong in WRONG:
            if wrong is None and ("Bus" in name or good["app"] is None):
                continue  # a local one, a saga in memory
            with pytest.raises(ConfigError):
                call(**{**good, "app": wrong})


async def test_methods() -> None:
    async with methods(Streams("memory://")) as calls:
        found = await swept(calls)
    assert not found, "\n".join(found)
