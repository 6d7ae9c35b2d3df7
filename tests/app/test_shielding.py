"""Work that is brought to its end although whoever awaits it is cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from streams import DeadLetterManager, Reject, Streams
from streams.cancellation import run_in_thread, run_to_completion, wait_deferring_cancel
from streams.patterns.backpressure import BackpressureController
from streams.replay import replay
from streams.testing import harness
from tests.processing.support import until

pytestmark = pytest.mark.anyio


class Work:
    """Work that begins, and ends when it is told to."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.done = False
        self.failure = failure

    async def run(self) -> str:
        self.begun.set()
        await self.go.wait()
        self.done = True
        if self.failure is not None:
            raise self.failure
        return "result"


async def settled() -> None:
    """Whatever can run by now has run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_it_returns_and_raises() -> None:
    work = Work()
    work.go.set()
    assert await run_to_completion(work.run()) == "result"
    work.failure = ValueError("no")
    with pytest.raises(ValueError, match="no") as found:
        await run_to_completion(work.run())
    assert found.value is work.failure
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)
    assert await run_to_completion(future) == 7


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_cancellation_comes_after_the_work(times: int) -> None:
    work, hurried = Work(), list[int]()
    task = asyncio.create_task(run_to_completion(work.run(), lambda: hurried.append(1)))
    await work.begun.wait()
    for number in range(1, times + 1):
        task.cancel(f"number {number}")
        await settled()
        assert not task.done()
        assert len(hurried) == number
    work.go.set()
    with pytest.raises(asyncio.CancelledError, match=f"number {times}"):
        await task
    assert work.done
    assert task.cancelled()
    assert task.cancelling() == times  # nothing was uncancelled


async def test_a_failure_is_not_lost_beside_a_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(ValueError("the disk is full"))
    task = asyncio.create_task(run_to_completion(work.run()))
    await work.begun.wait()
    task.cancel()
    await settled()
    work.go.set()
    with (
        caplog.at_level(logging.WARNING, "streams"),
        pytest.raises(asyncio.CancelledError) as found,
    ):
        await task
    assert found.value.__cause__ is work.failure
    assert "the disk is full" in caplog.text


async def test_a_cancellation_that_was_there_before_does_not_keep_it_from_running() -> None:
    work = Work()
    work.go.set()

    async def outer() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # is delivered where it waits next
        await run_to_completion(work.run())

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(outer())
    assert work.done


async def test_a_cancellation_in_the_moment_of_its_end() -> None:
    work = Work()
    task = asyncio.create_task(run_to_completion(work.run()))
    await work.begun.wait()
    work.go.set()
    while not work.done:  # noqa: ASYNC110 - at its very step, not some steps later
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_that_is_cancelled_itself() -> None:
    inner = asyncio.create_task(Work().run())
    task = asyncio.create_task(run_to_completion(inner))
    await settled()
    inner.cancel("by somebody")
    with pytest.raises(asyncio.CancelledError, match="by somebody"):
        await task
    assert task.cancelling() == 0


async def test_work_and_caller_are_both_cancelled() -> None:
    inner = asyncio.create_task(Work().run())
    task = asyncio.create_task(run_to_completion(inner))
    await settled()
    task.cancel("the caller")
    await settled()
    inner.cancel("the work")
    with pytest.raises(asyncio.CancelledError, match="the caller"):
        await task


@pytest.mark.parametrize("failure", [None, ValueError("no")])
async def test_a_timeout_around_it_is_a_timeout(failure: ValueError | None) -> None:
    work = Work(failure)
    scope = asyncio.timeout(None)
    with pytest.raises(TimeoutError) as found:
        async with scope:
            scope.reschedule(asyncio.get_running_loop().time())
            asyncio.get_running_loop().call_later(0.01, work.go.set)
            await run_to_completion(work.run())
    assert work.done
    cancelled = found.value.__cause__ or found.value.__context__  # no cause before Python 3.11.3
    assert isinstance(cancelled, asyncio.CancelledError)
    assert cancelled.__cause__ is failure
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_timeout_and_a_cancellation_from_further_out() -> None:
    work = Work()

    async def inner() -> None:
        async with asyncio.timeout(0):
            await run_to_completion(work.run())

    task = asyncio.create_task(inner())
    await until(lambda: task.cancelling() > 0)  # the timeout has come
    task.cancel("from further out")
    await settled()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):  # and no TimeoutError: somebody wants it gone
        await task
    assert task.cancelling() == 1


@pytest.mark.parametrize("failure", [None, OSError("the disk is full")])
async def test_a_task_group_that_aborts(
    failure: OSError | None, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(failure)

    async def sibling() -> None:
        await work.begun.wait()
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, work.go.set)
        raise LookupError("sibling")

    with pytest.raises(ExceptionGroup) as found:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_to_completion(work.run()))
            group.create_task(sibling())
    assert [type(each) for each in found.value.exceptions] == [LookupError]
    assert work.done
    # The group drops the cancellation, and with it the failure: a log line has it.
    assert ("the disk is full" in caplog.text) == (failure is not None)


async def test_the_body_of_a_task_group() -> None:
    work = Work()

    async def sibling() -> None:
        await work.begun.wait()
        asyncio.get_running_loop().call_later(0.01, work.go.set)
        raise LookupError("sibling")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(sibling())
            await run_to_completion(work.run())
            raise AssertionError("it was cancelled")
    assert work.done
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_outcome_that_is_wanted_in_spite_of_a_cancellation() -> None:
    work = Work()
    inner = asyncio.create_task(work.run())
    found = list[tuple[bool, str]]()

    async def outer() -> None:
        cancelled = await wait_deferring_cancel(inner)
        found.append((cancelled is not None, inner.result()))

    task = asyncio.create_task(outer())
    await work.begun.wait()
    task.cancel()
    await settled()
    work.go.set()
    await task
    assert found == [(True, "result")]


async def test_a_thread_is_waited_for() -> None:
    begun, go, over = threading.Event(), threading.Event(), list[str]()

    def work(name: str) -> None:
        begun.set()
        go.wait()
        over.append(name)

    task = asyncio.create_task(run_in_thread(work, name="it"))
    await until(begun.is_set)
    task.cancel()
    await settled()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over == ["it"]


# -- where it is used


Use = Callable[[Streams, Callable[[], None]], Awaitable[Any]]


async def _reprocess(app: Streams, work: Callable[[], None]) -> Any:
    def wanted(letter: object) -> bool:
        work()
        return False

    return await DeadLetterManager(app, "t.g.dead").reprocess(filter=wanted)


async def _backpressure(app: Streams, work: Callable[[], None]) -> Any:
    return await BackpressureController(1).with_backpressure(work)


USES: list[Use] = [_reprocess, _backpressure]


@pytest.mark.parametrize("use", USES, ids=["dead letters", "backpressure"])
async def test_every_use_gives_its_caller_the_cancellation(
    use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()
        raise OSError("the disk is full")

    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g")
    async def refuse(value: int) -> None:
        raise Reject

    async with harness(app) as running:
        await topic.publish(1)
        await running.settled()
        coroutine: Coroutine[Any, Any, Any] = use(app, work)  # type: ignore[assignment]
        task = asyncio.create_task(coroutine)
        await until(begun.is_set)
        task.cancel()
        await settled()
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "the disk is full" in caplog.text


async def test_a_copy_that_is_cancelled_waits_for_the_thread_that_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from streams.log import range_reader

    begun, go, order = threading.Event(), threading.Event(), list[str]()
    chunk, close = range_reader.RangeReader.read_chunk, range_reader.RangeReader.close

    def slow(
        self: range_reader.RangeReader, messages: int, size: int = 1 << 20
    ) -> list[range_reader.LogRow]:
        begun.set()
        go.wait()
        order.append("read")
        return chunk(self, messages, size)

    def closed(self: range_reader.RangeReader) -> None:
        order.append("closed")
        close(self)

    monkeypatch.setattr(range_reader.RangeReader, "read_chunk", slow)
    monkeypatch.setattr(range_reader.RangeReader, "close", closed)
    app = Streams("memory://")
    topic, other = app.topic("t", int), app.topic("u", int)
    async with app.connected():
        await topic.publish(1)
        task = asyncio.create_task(replay(app, topic, other))
        await until(begun.is_set)
        for _ in range(2):
            task.cancel()
            await settled()
        assert order == []
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert order == ["read", "closed"]
