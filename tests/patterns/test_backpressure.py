"""Never above the maximum, in order, and nobody stuck, whatever is cancelled or fails."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import ConfigError, InvalidValue
from streams.patterns import BackpressureController, NotAcquired
from tests.patterns.keeping import until


async def spin(turns: int = 3) -> None:
    """Let everything run that can."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_as_many_as_there_are_places_and_the_rest_in_line() -> None:
    controller = BackpressureController(2)
    order: list[int] = []

    async def work(number: int) -> None:
        await controller.acquire()
        order.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await spin()
    assert order == [0, 1]
    assert (controller.pending, controller.waiting) == (2, 3)
    for done in range(3):
        controller.release()
        # The place is the next one's already, though it has not woken up.
        assert (controller.pending, controller.waiting) == (2, 2 - done)
        await spin()
        assert order == list(range(3 + done))
    controller.release()
    controller.release()
    assert (controller.pending, controller.waiting) == (0, 0)
    await asyncio.gather(*tasks)


async def test_nobody_slips_in_between_a_release_and_the_wake_up() -> None:
    controller = BackpressureController(1)
    await controller.acquire()
    waiter = asyncio.create_task(controller.acquire())
    await spin()
    controller.release()
    late = asyncio.create_task(controller.acquire())
    await spin()
    assert waiter.done()
    assert not late.done()
    assert controller.pending == 1
    controller.release()
    await late
    controller.release()


async def test_a_release_without_acquire_is_an_error() -> None:
    controller = BackpressureController(2, max_bytes=10)
    with pytest.raises(NotAcquired, match=r"release\(\)"):
        controller.release()
    await controller.acquire(3)
    with pytest.raises(NotAcquired, match=r"release\(4\)"):
        controller.release(4)
    with pytest.raises(NotAcquired):
        controller.release()
    assert (controller.pending, controller.pending_bytes) == (1, 3)
    controller.release(3)
    with pytest.raises(NotAcquired) as raised:
        controller.release(3)
    assert isinstance(raised.value, RuntimeError)
    assert (controller.pending, controller.pending_bytes) == (0, 0)
    await controller.acquire()  # and it still works
    controller.release()


async def test_async_with_and_with_backpressure_give_the_place_back() -> None:
    controller = BackpressureController(1)
    async with controller as same:
        assert same is controller
        assert controller.pending == 1
    with pytest.raises(ValueError, match="inside"):
        async with controller:
            raise ValueError("inside")
    assert controller.pending == 0

    async def work() -> int:
        assert controller.pending == 1
        return 5

    async def fail() -> int:
        raise ValueError("work")

    assert await controller.with_backpressure(work) == 5
    assert await controller.with_backpressure(lambda: work()) == 5
    with pytest.raises(ValueError, match="work"):
        await controller.with_backpressure(fail)
    assert (controller.pending, controller.waiting) == (0, 0)


async def test_a_cancelled_one_gives_its_place_back() -> None:
    controller = BackpressureController(1)
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(controller.with_backpressure(work))
    await begun.wait()
    waiting = asyncio.create_task(controller.with_backpressure(work))
    third = asyncio.create_task(controller.acquire())
    await spin()
    waiting.cancel()
    await spin()
    assert (controller.pending, controller.waiting) == (1, 1)
    running.cancel()
    await third
    assert (controller.pending, controller.waiting) == (1, 0)
    controller.release()


@pytest.mark.parametrize("first", ["release", "cancel"])
async def test_cancelled_as_its_turn_comes_it_passes_it_on(first: str) -> None:
    controller = BackpressureController(1)
    await controller.acquire()
    struck = asyncio.create_task(controller.acquire())
    following = asyncio.create_task(controller.acquire())
    await spin()
    if first == "release":
        controller.release()
        struck.cancel()
    else:
        struck.cancel()
        controller.release()
    with pytest.raises(asyncio.CancelledError):
        await struck
    await following
    assert (controller.pending, controller.waiting) == (1, 0)
    controller.release()
    assert controller.pending == 0


async def test_a_limit_to_the_wait() -> None:
    controller = BackpressureController(1)
    await controller.acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await controller.acquire()
    assert controller.waiting == 0
    controller.release()
    assert controller.pending == 0


async def test_bytes_are_bounded_too() -> None:
    controller = BackpressureController(10, max_bytes=100)
    await controller.acquire(60)
    await controller.acquire(40)
    large = asyncio.create_task(controller.acquire(50))
    small = asyncio.create_task(controller.acquire(1))
    weightless = asyncio.create_task(controller.acquire())
    await spin()
    # In order: those behind a large one wait with it, whether they would fit or not.
    assert (controller.pending, controller.waiting) == (2, 3)
    assert (controller.pending_bytes, controller.waiting_bytes) == (100, 51)
    controller.release(40)
    await spin()
    assert not large.done()
    controller.release(60)
    await asyncio.gather(large, small, weightless)
    assert (controller.pending, controller.pending_bytes) == (3, 51)
    for size in (50, 1, 0):
        controller.release(size)
    assert (controller.pending, controller.pending_bytes) == (0, 0)


async def test_those_behind_a_cancelled_large_one_are_let_in() -> None:
    controller = BackpressureController(10, max_bytes=100)
    await controller.acquire(60)
    large = asyncio.create_task(controller.acquire(50))
    small = [asyncio.create_task(controller.acquire(20)) for _ in range(3)]
    await spin()
    large.cancel()
    await asyncio.gather(*small[:2])
    assert (controller.pending_bytes, controller.waiting) == (100, 1)
    controller.release(60)
    await small[2]
    for _ in small:
        controller.release(20)


async def test_one_that_is_larger_than_the_bound_is_let_in_alone() -> None:
    controller = BackpressureController(10, max_bytes=100)
    await controller.acquire(1)
    huge = asyncio.create_task(controller.acquire(500))
    await spin()
    assert not huge.done()
    controller.release(1)
    await huge
    other = asyncio.create_task(controller.acquire(1))
    await spin()
    assert not other.done()
    controller.release(500)
    await other
    controller.release(1)


async def test_sized_holds_a_place_of_that_size() -> None:
    controller = BackpressureController(2, max_bytes=10)
    with pytest.raises(ValueError, match="inside"):
        async with controller.sized(7):
            assert controller.pending_bytes == 7
            raise ValueError("inside")
    assert controller.pending_bytes == controller.pending == 0

    async def work() -> int:
        return controller.pending_bytes

    assert await controller.with_backpressure(work, size=9) == 9


async def test_a_plain_function_holds_its_place_to_its_end() -> None:
    controller = BackpressureController(1)
    begun, hold = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        assert hold.wait(30)
        return threading.get_ident()

    call = asyncio.create_task(controller.with_backpressure(work))
    await until(begun.is_set, "begun")
    call.cancel()
    await spin()
    assert controller.pending == 1  # no thread can be interrupted
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert controller.pending == 0
    assert await controller.with_backpressure(work) != threading.get_ident()


def test_a_controller_belongs_to_one_loop_at_a_time() -> None:
    controller = BackpressureController(1)

    async def use() -> None:
        async with controller:
            pass

    async def keep() -> None:
        await controller.acquire()

    asyncio.run(use())
    asyncio.run(use())
    asyncio.run(keep())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())


async def test_what_cannot_be_is_refused() -> None:
    for bound in (0, -1, 1.5, True, None, "many"):
        with pytest.raises(ConfigError) as raised:
            BackpressureController(bound)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
    for bound in (0, 1.5, True, "many"):
        with pytest.raises(ConfigError):
            BackpressureController(1, max_bytes=bound)  # type: ignore[arg-type]
    controller = BackpressureController(1)
    for size in (-1, 1.5, True, "many", None):
        with pytest.raises(InvalidValue):
            await controller.acquire(size)  # type: ignore[arg-type]

    async def work() -> None: ...

    with pytest.raises(ConfigError, match="a lambda around the call"):
        await controller.with_backpressure(work())  # type: ignore[call-overload]
    assert repr(controller) == "<BackpressureController 0 of 1, 0 waiting>"


# -- whatever is cancelled or fails ----------------------------------------------------------------


class Fate(NamedTuple):
    """What becomes of one task."""

    way: int
    """How it takes its place."""
    size: int
    turns: int
    """How often it lets others run while it has it."""
    fails: bool
    cancelled: int | None
    """After how many turns of the loop it is cancelled, if it is."""


class Load:
    """Tasks on a controller, and what was seen of them."""

    def __init__(self, most: int, most_bytes: int | None) -> None:
        self.controller = BackpressureController(most, max_bytes=most_bytes)
        self.most, self.most_bytes = most, most_bytes
        self.running = self.bytes = 0
        self.highest = 0
        self.entered: list[int] = []

    async def task(self, number: int, fate: Fate) -> None:
        controller, size = self.controller, fate.size
        if fate.way == 0:
            await controller.with_backpressure(lambda: self.work(number, fate), size=size)
        elif fate.way == 1:
            async with controller.sized(size):
                await self.work(number, fate)
        else:
            await controller.acquire(size)
            try:
                await self.work(number, fate)
            finally:
                controller.release(size)

    async def work(self, number: int, fate: Fate) -> None:
        self.entered.append(number)
        alone = not self.bytes
        self.running += 1
        self.bytes += fate.size
        self.highest = max(self.highest, self.running)
        try:
            # What is true of those inside is true of the counters, and of the bounds.
            assert self.running <= self.controller.pending <= self.most
            assert self.bytes <= self.controller.pending_bytes
            if self.most_bytes is not None and fate.size:
                assert self.bytes <= self.most_bytes or alone
            await spin(fate.turns)
            if fate.fails:
                raise ValueError(number)
        finally:
            self.running -= 1
            self.bytes -= fate.size

    async def strike(self, tasks: list[asyncio.Task[None]], fates: list[Fate]) -> None:
        turn = 0
        for when, task in sorted(
            ((fate.cancelled, task) for fate, task in zip(fates, tasks, strict=True)),
            key=lambda each: each[0] or 0,
        ):
            if when is not None:
                await spin(when - turn)
                turn = when
                task.cancel()

    async def run(self, fates: list[Fate]) -> list[Any]:
        tasks = [asyncio.create_task(self.task(*each)) for each in enumerate(fates)]
        striking = asyncio.create_task(self.strike(tasks, fates))
        # Nobody is stuck.
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 100)
        await striking
        ends = (type(None), ValueError, asyncio.CancelledError)
        assert not [each for each in results if not isinstance(each, ends)]
        controller = self.controller
        assert (controller.pending, controller.waiting) == (0, 0)
        assert (controller.pending_bytes, controller.waiting_bytes) == (0, 0)
        # First come, first served, of those that were served at all.
        assert self.entered == sorted(self.entered)
        return results


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most_bytes", [None, 100])
async def test_10000_tasks_cancelled_and_failing_at_random(
    seed: int, most_bytes: int | None
) -> None:
    random_ = random.Random(seed)
    fates = [
        Fate(
            way=random_.randrange(3),
            size=random_.randrange(40) if most_bytes else 0,
            turns=random_.randrange(4),
            fails=random_.random() < 0.2,
            cancelled=random_.randrange(1, 1500) if random_.random() < 0.4 else None,
        )
        for _ in range(10_000)
    ]
    load = Load(16, most_bytes)
    results = await load.run(fates)
    assert sum(isinstance(each, ValueError) for each in results) > 500
    assert sum(isinstance(each, asyncio.CancelledError) for each in results) > 500
    assert results.count(None) > 1_000
    assert load.highest == 16 if most_bytes is None else load.highest > 3


FATES = st.builds(
    Fate,
    way=st.integers(0, 2),
    size=st.sampled_from([0, 1, 15, 40]),
    turns=st.integers(0, 3),
    fails=st.booleans(),
    cancelled=st.none() | st.integers(1, 12),
)


@given(st.lists(FATES, max_size=20), st.integers(1, 4), st.sampled_from([None, 1, 20, 60]))
@settings(max_examples=300)
def test_any_mix_keeps_the_bounds(fates: list[Fate], most: int, most_bytes: int | None) -> None:
    asyncio.run(Load(most, most_bytes).run(fates))
