"""Handlers of every kind: what they are written as, what they return, what they raise."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streams import BatchError, Message, ProcessorDied, Retry, Streams
from streams.message import Record
from streams.testing import harness
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio

ONCE = Retry(attempts=1)


class Handler:
    """Handlers that are not functions."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def method(self, value: int, message: Message[int]) -> None:
        self.seen.append((value, message.value))

    async def async_method(self, value: int, message: Message[int]) -> None:
        self.seen.append((value, message.value))

    def with_more(self, value: int, message: Message[int], *, more: int) -> None:
        self.seen.append((value, message.value, more))


class Called(Handler):
    def __call__(self, value: int) -> None:
        self.seen.append((value,))


class CalledAsync(Handler):
    async def __call__(self, value: int, message: Message[int]) -> None:
        self.seen.append((value, message.value))


def decorated(handler: Handler) -> Callable[..., Any]:
    @functools.wraps(handler.async_method)
    async def wrapper(*args: Any) -> None:
        await handler.async_method(*args)

    return wrapper


@pytest.mark.parametrize(
    ("kind", "make", "seen"),
    [
        (Handler, lambda h: h.method, (1, 1)),
        (Handler, lambda h: h.async_method, (1, 1)),
        (Handler, lambda h: functools.partial(h.with_more, more=2), (1, 1, 2)),
        (Handler, lambda h: functools.partial(h.async_method), (1, 1)),
        (Handler, decorated, (1, 1)),
        (Called, lambda h: h, (1,)),
        (CalledAsync, lambda h: h, (1, 1)),
        (CalledAsync, functools.partial, (1, 1)),
    ],
)
async def test_whatever_can_be_called(
    kind: type[Handler], make: Callable[[Any], Any], seen: tuple[Any, ...]
) -> None:
    app, handler = Streams("memory://"), kind()
    topic = app.topic("t", int)
    app.processor(topic, group="g", flow=QUICK)(make(handler))
    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
    assert handler.seen == [seen]


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_async_function_in_disguise_loses_nothing(
    concurrency: int, batch: int | None
) -> None:
    app = Streams("memory://")
    topic = app.topic("t", int, partitions=1)

    async def work(given: Any) -> None: ...

    def handle(given: Any) -> Any:
        return work(given)

    app.processor(topic, group="g", concurrency=concurrency, batch=batch, flow=QUICK)(handle)

    with pytest.raises(ProcessorDied, match="returned a coroutine: make what wraps"):
        async with app:
            await topic.publish(1)
            await asyncio.Event().wait()


async def test_a_generator_needs_a_place_for_its_values() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)

    def values(value: int) -> Iterator[int]:
        yield value

    @app.processor(topic, group="g", flow=QUICK)
    def handle(value: int) -> Iterator[int]:
        return values(value)

    with pytest.raises(ProcessorDied, match="give to= the topic"):
        async with app:
            await topic.publish(1)
            await asyncio.Event().wait()


@pytest.mark.parametrize("batch", [None, 1])
async def test_a_generators_code_runs_like_any_handler(batch: int | None) -> None:
    """Not under the executor's lock: two at once, and the poller goes on meanwhile."""
    app, meet = Streams("memory://"), threading.Barrier(2)
    topic, out = app.topic("t", int), app.topic("out", int)

    def values(value: int) -> Iterator[int]:
        meet.wait(30)
        yield value
        yield value + 1

    def handle(given: Any) -> Any:
        return values(given) if batch is None else [values(each) for each in given]

    app.processor(topic, group="g", concurrency=2, batch=batch, to=out, retry=ONCE, flow=QUICK)(
        handle
    )

    async with harness(app) as h:
        await topic.publish_many([10, 20])
        await h.settled()
        found = sorted(message.value for message in await h.messages(out))
    assert found == [10, 11, 20, 21]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        StopIteration(1),
        TimeoutError("late"),
        RuntimeError("plain"),
        concurrent.futures.CancelledError(),
    ],
)
async def test_errors_with_a_meaning_elsewhere_are_failures(
    error: Exception, asynchronous: bool
) -> None:
    app, seen = Streams("memory://"), list[int]()
    topic = app.topic("t", int, partitions=1)

    def act(value: int) -> None:
        if value == 1:
            raise error
        seen.append(value)

    async def act_async(value: int) -> None:
        act(value)

    app.processor(topic, group="g", retry=ONCE, flow=QUICK)(act_async if asynchronous else act)
    async with harness(app) as h:
        await topic.publish_many([0, 1, 2])
        await h.settled()
        assert len(await h.dead(topic, group="g")) == 1
    assert seen == [0, 2]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"concurrency": 2},
        {"batch": 1},
        {"exactly_once": True},
        {"exactly_once": True, "concurrency": 2},
    ],
    ids=str,
)
async def test_a_plain_handler_whose_own_task_was_cancelled_has_failed(
    options: dict[str, Any],
) -> None:
    """``asyncio.run`` raises the cancellation in the handler's thread, which nobody cancelled."""
    app, seen = Streams("memory://"), list[int]()
    topic = app.topic("t", int, partitions=1)
    target = app.topic("target", int, partitions=1)

    async def call(value: int) -> None:
        if value == 1:
            raise asyncio.CancelledError
        seen.append(value)

    def act(value: Any) -> None:
        asyncio.run(call(value[0] if "batch" in options else value))

    declare: Any = app.processor
    to = {"to": target} if "exactly_once" in options else {}
    declare(topic, group="g", retry=ONCE, flow=QUICK, **to, **options)(act)
    async with harness(app) as h:
        await topic.publish_many([0, 1, 2])
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert seen == [0, 2]
    assert letter.headers["__streams.errors.message"] == "act was cancelled from within"
    assert "CancelledError" in letter.headers["__streams.errors.stacktrace"]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("options", [{}, {"concurrency": 2}, {"batch": 3}], ids=str)
async def test_a_filter_that_raises_a_cancellation_has_failed(
    options: dict[str, Any], asynchronous: bool
) -> None:
    app, seen = Streams("memory://"), list[int]()
    topic = app.topic("t", int, partitions=1)

    def accepts(value: int) -> bool:
        if value == 1:
            raise asyncio.CancelledError
        return True

    def act(value: Any) -> None:
        seen.extend(value if "batch" in options else [value])

    async def act_async(value: Any) -> None:
        act(value)

    declare: Any = app.processor
    declare(topic, group="g", filter=accepts, retry=ONCE, flow=QUICK, **options)(
        act_async if asynchronous else act
    )
    async with harness(app) as h:
        await topic.publish_many([0, 1, 2])
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert sorted(seen) == [0, 2]
    assert "was cancelled from within" in letter.headers["__streams.errors.message"]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_is_no_failure_ends_the_processor_and_settles_nothing(
    error: type[BaseException], asynchronous: bool
) -> None:
    app, again = Streams("memory://"), list[int]()
    topic = app.topic("t", int, partitions=1)
    raises = True

    def act(value: int) -> None:
        if raises:
            raise error
        again.append(value)

    async def act_async(value: int) -> None:
        act(value)

    app.processor(topic, group="g", flow=QUICK)(act_async if asynchronous else act)
    app.given_url = f"memory://{error.__name__}-{asynchronous}"
    keep = Streams(app.given_url)
    async with keep.connected():  # what is in memory lasts as long as somebody holds it
        with pytest.raises(ProcessorDied, match=error.__name__):
            async with app:
                await topic.publish(1)
                await asyncio.Event().wait()
        raises = False
        async with app:
            await until(lambda: again)
    assert again == [1]


async def test_an_id_that_cannot_be_found_is_a_dead_letter() -> None:
    app, seen = Streams("memory://"), list[list[str]]()
    topic = app.topic("t", list[str], id=lambda value: next(iter(value)), partitions=1)

    @app.processor(topic, group="g", retry=ONCE, flow=QUICK)
    def handle(value: list[str]) -> None:
        seen.append(value)

    async with harness(app) as h:
        values = (b'["a"]', b"[]", b'["c"]')
        records = [Record(value, None, str(at)) for at, value in enumerate(values)]
        await app.publisher.publish_many("t", records)
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert seen == [["a"], ["c"]]
    assert letter.value == b"[]"


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_batch_error_that_names_nobody_is_everybodys(asynchronous: bool) -> None:
    """Also where a filter keeps some messages from the handler."""
    app = Streams("memory://")
    topic = app.topic("t", int, partitions=1)

    def act(values: list[int]) -> None:
        raise BatchError({})

    async def act_async(values: list[int]) -> None:
        act(values)

    processor = app.processor(
        topic, group="g", batch=10, filter=lambda value: value != 1, retry=ONCE, flow=QUICK
    )(act_async if asynchronous else act)
    processor.pause()
    async with harness(app) as h:
        await topic.publish_many([0, 1, 2])
        processor.resume()
        await h.settled()
        stats = app.stats().processors[processor.name]
        assert len(await h.dead(topic, group="g")) == 2
    assert (stats.handled, stats.filtered, stats.dead_letters) == (0, 1, 2)


@pytest.mark.parametrize("filtered", [False, True])
async def test_a_long_run_of_the_fast_path_is_counted_while_it_runs(filtered: bool) -> None:
    app, step, counted = Streams("memory://"), threading.Semaphore(0), list[tuple[int, int]]()
    topic = app.topic("t", int, partitions=1)

    @app.processor(topic, group="g", filter=(lambda value: value % 2 == 0) if filtered else None)
    def handle(value: int) -> None:
        step.acquire(timeout=30)

    handle.pause()
    async with harness(app) as h:
        await topic.publish_many(range(10))
        handle.resume()

        def now() -> tuple[int, int]:
            stats = app.stats().processors["handle"]
            return stats.handled, stats.filtered

        for done in range(5):
            wanted = (done, done) if filtered else (done, 0)
            await until(functools.partial(lambda wanted: now() == wanted, wanted))
            counted.append(now())
            step.release()
        step.release(10)
        await h.settled()
        counted.append(now())
    ends = (5, 5) if filtered else (10, 0)
    assert counted == [*((n, n) if filtered else (n, 0) for n in range(5)), ends]
