"""An app's life: entering, leaving, and being interrupted in either."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streams import Flow, NotRunning, ProcessorDied, Retry, Streams
from streams.testing import Clock, harness
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio


others: set[int | None] = set()
"""Threads that were there before the test: a handler of another one that cannot be ended."""


@pytest.fixture(autouse=True)
def _before() -> None:
    others.clear()
    others.update(each.ident for each in threading.enumerate())


def left() -> list[str]:
    """Threads and tasks of this test's apps that are still there."""
    threads = [
        each.name
        for each in threading.enumerate()
        if each.name.startswith("streams") and each.ident not in others
    ]
    tasks = [each.get_name() for each in asyncio.all_tasks() if not each.done()]
    return threads + [name for name in tasks if name.startswith("streams")]


async def test_an_exit_that_is_cancelled_still_leaves_in_order(tmp_path: Path) -> None:
    app, begun = Streams(f"sqlite:///{tmp_path}/log.db"), list[int]()
    topic = app.topic("t", int)

    @app.processor(topic, group="g", concurrency=2, flow=Flow(drain=60))
    async def handle(value: int) -> None:
        begun.append(value)
        if value:
            await asyncio.Event().wait()

    async def live() -> None:
        async with app:
            await topic.publish_many([0, 1])
            await until(lambda: len(begun) == 2)

    life = asyncio.create_task(live())
    await until(lambda: app.runtime.stopping)
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert left() == []
    async with app.connected():
        # What was handled is committed, what was cancelled is not.
        assert app.log.describe_group("g").positions["t", 0].position == 1


@pytest.mark.parametrize("steps", range(0, 24, 3))
async def test_entering_that_is_cancelled_leaves_nothing(tmp_path: Path, steps: int) -> None:
    app = Streams(f"sqlite:///{tmp_path}/log.db")

    @app.processor(app.topic("t", int), group="g", flow=QUICK)
    async def handle(value: int) -> None: ...

    async def live() -> None:
        async with app:
            await asyncio.Event().wait()

    life = asyncio.create_task(live())
    for _ in range(steps):  # not a wait: where it is cancelled need not be known
        await asyncio.sleep(0.001)
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert left() == []
    async with app:
        assert app.health().connected


async def test_handlers_that_swallow_their_cancellation_end_with_the_app() -> None:
    app, begun = Streams("memory://"), list[int]()
    topic = app.topic("t", int)

    @app.processor(topic, group="g", concurrency=2, flow=Flow(drain=0))
    async def handle(value: int) -> None:
        begun.append(value)
        for _ in range(2):  # once at the drain deadline, once when the executor closes
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async with app:
        await topic.publish_many([0, 1])
        await until(lambda: len(begun) == 2)
    assert left() == []


async def test_a_plain_handler_that_outlives_the_drain_is_waited_for_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The partitions that are given up at the end have no deadline of their own."""
    app, begun, go_on = Streams("memory://"), threading.Event(), threading.Event()
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=Flow(drain=0.05))
    def handle(value: int) -> None:
        begun.set()
        go_on.wait()

    async with app:
        await topic.publish(1)
        await until(begun.is_set)
    go_on.set()
    told = [each for each in caplog.messages if "outlived the drain deadline" in each]
    assert len(told) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_resuming_does_not_restart_an_app_that_ends(asynchronous: bool) -> None:
    app, begun, go = Streams("memory://"), list[int](), threading.Event()
    topic = app.topic("t", int)

    async def wait(value: int) -> None:
        begun.append(value)
        await asyncio.to_thread(go.wait)

    def block(value: int) -> None:
        begun.append(value)
        go.wait()

    processor = app.processor(topic, group="g", flow=QUICK)(wait if asynchronous else block)

    async def live() -> None:
        async with app:
            await topic.publish_many(range(100))
            await until(lambda: begun)

    life = asyncio.create_task(live())
    await until(lambda: processor.poller is not None and processor.poller._finishing)
    processor.resume()
    go.set()
    await life
    assert begun == [0]


async def test_a_lifespan_may_publish_and_sees_only_its_own_errors() -> None:
    app, seen = Streams("memory://"), list[BaseException]()
    topic = app.topic("t", int, partitions=3)

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        try:
            await topic.publish(1)
            yield
        except BaseException as error:
            seen.append(error)
            raise

    app.lifespan = lifespan
    try:
        raise KeyError("handled further out")
    except KeyError:
        async with app.connected():
            assert app.log.describe_topic("t").partitions == 3
    assert seen == []
    with pytest.raises(ZeroDivisionError):
        async with app.connected():
            raise ZeroDivisionError
    assert [type(error) for error in seen] == [ZeroDivisionError]


async def test_an_app_is_entered_again_only_when_it_has_ended() -> None:
    app, held, go = Streams("memory://"), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        yield
        held.set()
        await go.wait()

    app.lifespan = lifespan

    async def live() -> None:
        async with app.connected():
            pass

    life = asyncio.create_task(live())
    await held.wait()
    with pytest.raises(NotRunning, match="running already"):
        async with app:
            pass
    go.set()
    await life
    app.lifespan = None
    async with app:
        assert app.health().connected


def test_a_background_app_that_died_is_told_at_the_end() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g")
    def handle(value: int) -> None:
        raise SystemExit(3)

    with pytest.raises(ProcessorDied, match="SystemExit"), app.background():
        # Before: the app may have ended when the publishing returns.
        thread = next(t for t in threading.enumerate() if t.name == "streams-background")
        app.wait(topic.publish(1))
        thread.join(30)  # its loop is closed when the body ends
        assert not thread.is_alive()


async def test_only_one_of_many_threads_runs_an_app() -> None:
    app, outcomes = Streams("memory://"), list[str]()
    barrier, over = threading.Barrier(4), threading.Event()

    def live() -> None:
        barrier.wait()
        try:
            with app.background():
                outcomes.append("ran")
                over.wait(30)
        except NotRunning:
            outcomes.append("refused")

    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    await until(lambda: len(outcomes) == 4)
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ran", "refused", "refused", "refused"]


async def test_a_stuck_handler_under_a_tests_clock_does_not_hold_its_exit() -> None:
    app, begun = Streams("memory://"), list[int]()
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=Flow(drain=3600))
    async def handle(value: int) -> None:
        begun.append(value)
        await asyncio.Event().wait()

    async def live() -> None:
        async with harness(app, clock=Clock()):
            await topic.publish(1)
            await until(lambda: begun)

    life = asyncio.create_task(live())
    await until(lambda: app.runtime.stopping)
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert left() == []


async def test_an_error_without_words_is_a_dead_letter_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", retry=Retry(attempts=1), flow=QUICK)
    async def handle(value: int) -> None:
        raise Mute

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert letter.headers["__streams.errors.message"] == "(its str() raised RuntimeError)"


async def test_an_error_that_python_cannot_print_is_a_dead_letter_all_the_same() -> None:
    """Python asks an exception for ``__notes__``, and this one looks that up in a response."""

    class Refused(Exception):
        def __getattr__(self, name: str) -> int:
            return {"status": 503}[name]

    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", retry=Retry(attempts=1), flow=QUICK)
    async def handle(value: int) -> None:
        raise Refused("busy")

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert letter.headers["__streams.errors.message"] == "busy"
    stack = letter.headers["__streams.errors.stacktrace"]
    assert stack == "Refused (its traceback cannot be shown: KeyError)"
