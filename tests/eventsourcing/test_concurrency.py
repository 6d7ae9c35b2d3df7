"""Decisions beside each other: cancelled, from threads and loops, while the app closes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streams.errors import ConfigError, LogError, NotRunning
from streams.eventsourcing import Loaded
from streams.eventsourcing.keyed_lock import KeyedLock
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, Deposited, accounts, deposit

pytestmark = pytest.mark.anyio


async def test_a_cancelled_decision_counts_or_does_not_and_the_next_one_knows(
    stage: Stage,
) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        for number in range(30):
            task = asyncio.create_task(bank.decide("a", deposit, 1))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            done = await bank.decide("a", deposit, 100)
            # The state is what its events add up to, with or without the cancelled one.
            events = [each.event async for each in bank.read("a")]
            assert events[-1] == Deposited(100)
            assert done.state.cents == sum(each.cents for each in events)
            assert done.version == len(events)
            assert events.count(Deposited(100)) == number + 1
            assert events.count(Deposited(1)) <= number + 1
        assert await bank.load("a") == Loaded(done.state, done.version)


async def test_a_turn_that_was_handed_to_one_who_is_cancelled_goes_on() -> None:
    lock = KeyedLock()
    assert lock.try_acquire("a")
    waiting = [asyncio.create_task(lock.wait("a")) for _ in range(2)]
    await asyncio.sleep(0)
    lock.release("a")  # to the first, which has not run since
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    await waiting[1]
    assert waiting[0].cancelled()
    lock.release("a")
    assert lock.try_acquire("a")


async def test_all_are_cancelled_and_none_waits_for_ever(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        tasks = [asyncio.create_task(bank.decide("a", deposit, 1)) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        done = await bank.decide("a", deposit, 1)
        assert done.version == done.state.cents
        assert done.version >= 26  # those that nobody cancelled, and this one


async def test_what_waits_when_the_app_closes_is_told(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        await bank.decide("a", deposit, 1)
        tasks = [asyncio.create_task(bank.decide(f"a-{n % 5}", deposit, 1)) for n in range(50)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [each for each in answers if isinstance(each, BaseException)]
    assert all(isinstance(each, (NotRunning, LogError)) for each in failed), failed
    with pytest.raises(NotRunning):
        await bank.decide("a", deposit, 1)
    other = stage.app()
    same = accounts(other, stage.topic_name)
    async with other:
        events = 0
        for number in range(5):
            state = await same.load(f"a-{number}")
            assert state.state.cents == state.version
            events += state.version
        assert 50 - len(failed) <= events <= 50


async def test_threads_decide_through_the_app(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)

    def decide(number: int) -> int:
        return app.wait(bank.decide(f"a-{number % 3}", deposit, 1)).version

    async with app:
        with ThreadPoolExecutor(8) as threads:
            loop = asyncio.get_running_loop()
            futures = [loop.run_in_executor(threads, decide, number) for number in range(60)]
            versions = await asyncio.gather(*futures)
        assert sorted(versions) == sorted([*range(1, 21)] * 3)


async def test_another_loop_is_told_to_use_the_app(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    failures: list[Exception] = []

    def on_another_loop(make: Callable[[], Any]) -> None:
        try:
            asyncio.run(make())
        except Exception as error:
            failures.append(error)

    async def read_first() -> None:
        async for _ in bank.read("a"):
            pass

    async with app:
        for make in (
            lambda: bank.decide("a", deposit, 1),
            lambda: bank.append("a", Deposited(1), expected="any"),
            lambda: bank.load("a"),
            read_first,
        ):
            thread = threading.Thread(target=on_another_loop, args=(make,))
            thread.start()
            await asyncio.to_thread(thread.join)
        assert await bank.load("a") == Loaded(Account(), 0)
    assert len(failures) == 4
    assert all(isinstance(each, ConfigError) for each in failures), failures
    assert all("app.wait(...)" in str(each) for each in failures)


async def test_the_same_app_can_be_entered_again(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    for number in range(1, 4):
        async with app:
            done = await bank.decide("a", deposit, 1)
            assert (done.version, bank.stats().decisions) == (number, 1)
