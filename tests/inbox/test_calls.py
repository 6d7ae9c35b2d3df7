"""Code that is written once: it makes plain calls and async ones, and sees the same errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from streams import Message, Retry, Sqlite, Streams
from streams.inbox.calls import Calls, run_calls, run_calls_async
from streams.inbox.inbox import Inbox
from streams.processing.outcomes import TransactionPostponed
from streams.testing import harness


def double(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return 2 * number


async def double_async(number: int) -> int:
    await asyncio.sleep(0)
    return double(number)


def sum_of(call: Callable[[int], int | Awaitable[int]], numbers: list[int]) -> Calls[int]:
    """The sum of what the calls give; an error counts as 100, and the next call is made."""
    found = 0
    for number in numbers:
        try:
            found += yield call(number)
        except ValueError:
            found += 100
    return found


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3], [-1], [1, -1, 2], [1, -1]])
async def test_both_kinds_of_calls(numbers: list[int]) -> None:
    expected = sum(100 if each < 0 else 2 * each for each in numbers)
    assert run_calls(sum_of(double, numbers)) == expected
    assert await run_calls_async(sum_of(double_async, numbers)) == expected


async def test_an_error_that_passes() -> None:
    def calls(call: Callable[[int], Any]) -> Calls[int]:
        found: int = yield call(-1)
        return found

    with pytest.raises(ValueError, match="-1"):
        run_calls(calls(double))
    with pytest.raises(ValueError, match="-1"):
        await run_calls_async(calls(double_async))


async def test_a_task_that_is_cancelled_makes_the_calls_that_follow_an_error() -> None:
    entered, made = asyncio.Event(), list[int]()

    async def wait() -> None:
        entered.set()
        await asyncio.Event().wait()

    async def note() -> None:
        await asyncio.sleep(0)
        made.append(1)

    def calls() -> Calls[None]:
        try:
            yield wait()
        except BaseException:
            yield note()
            raise

    task = asyncio.create_task(run_calls_async(calls()))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made == [1]


async def test_a_plain_handler_that_raises_what_ends_a_generator(tmp_path: Path) -> None:
    """Its dead letter names that error, and not the one which Python makes of it."""
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=1)

    @app.processor(topic, group="g", transaction=Sqlite(tmp_path / "a.db"), retry=Retry(attempts=1))
    def handle(value: int, message: Message[int, Any]) -> None:
        raise StopIteration("no more")

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        (dead,) = await h.dead(topic, "g")
    assert dead.header("__streams.errors.exception") == b"builtins.StopIteration"


class SlowToOpen(Sqlite):
    """A database whose opening waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.entered, self.release = threading.Event(), threading.Event()
        self.opened = 0

    @override
    def open(self, connections: int) -> None:
        self.entered.set()
        self.release.wait()
        super().open(connections)
        self.opened += 1

    @override
    def close(self) -> None:
        super().close()
        self.opened -= 1


async def test_an_app_that_is_left_while_the_database_is_opened(tmp_path: Path) -> None:
    """What opened it closes it again: nobody else would."""
    app = Streams("memory://")
    database = SlowToOpen(tmp_path / "a.db")

    @app.processor(app.topic("numbers", int), group="g", transaction=database)
    def handle(value: int, message: Message[int, Any]) -> None: ...

    inbox = handle.inbox
    assert isinstance(inbox, Inbox)
    entering = asyncio.create_task(app.__aenter__())
    await asyncio.to_thread(database.entered.wait)
    await inbox.__aexit__()
    database.release.set()
    with pytest.raises(TransactionPostponed, match="its app was left"):
        await entering
    assert database.opened == 0
