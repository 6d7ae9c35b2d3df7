"""Plain handlers of a local bus: in place while they are quick, else in a thread; never by a clock,
but by a timer that the test holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from streams import ConfigError, InvalidValue, Streams
from streams.patterns import Event, EventBus, PatternEventBus
from streams.patterns.bus.inline_policy import (
    MAX_INTERRUPTION,
    MAX_TRIAL_CALLS,
    QUICK_CALL,
    STEADY_CALLS,
    TRIAL_CALLS,
    InlinePolicy,
)
from streams.patterns.bus.local_router import YIELD_AFTER

pytestmark = pytest.mark.anyio

MAIN = threading.main_thread()


class Timer:
    """Time passes only where a test says so."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 1.0
        self.step = step
        """What each look takes."""

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def local(timer: Callable[[], float], **options: Any) -> PatternEventBus:
    bus = PatternEventBus(**options)
    assert bus._local_router is not None
    bus._local_router.timer = timer
    return bus


class Watched:
    """A plain handler that remembers where it was called."""

    def __init__(self, does: Callable[[Event], Any] = lambda event: None) -> None:
        self.threads: list[threading.Thread] = []
        self._does = does

    def __call__(self, event: Event) -> Any:
        self.threads.append(threading.current_thread())
        return self._does(event)

    @property
    def in_place(self) -> list[bool]:
        return [thread is MAIN for thread in self.threads]


async def quickened(bus: EventBus, topic: str = "warm") -> None:
    """Let its handlers be called in place."""
    for _ in range(TRIAL_CALLS):
        await bus.publish(topic, None)


async def test_quick_handlers_are_called_in_place() -> None:
    bus, handlers = local(Timer()), [Watched() for _ in range(10)]
    for each in handlers:
        bus.subscribe("a", each)
    for _ in range(TRIAL_CALLS + 20):
        await bus.publish("a", 1)
    for each in handlers:
        assert each.in_place == [False] * TRIAL_CALLS + [True] * 20


async def test_a_handler_that_takes_long_does_not_hold_the_loop_up() -> None:
    """Each of its calls waits for the loop, which goes on."""
    bus, gate = local(Timer(step=2 * QUICK_CALL)), threading.Event()
    slow = Watched(lambda event: gate.wait(30))
    bus.subscribe("a", slow)
    for _ in range(3 * TRIAL_CALLS):
        gate.clear()
        publishing = asyncio.create_task(bus.publish("a", 1))
        asyncio.get_running_loop().call_soon(gate.set)  # which a blocked loop would not come to
        await publishing
    assert slow.in_place == [False] * 3 * TRIAL_CALLS


async def test_one_that_became_slow_goes_back_to_the_threads() -> None:
    timer = Timer()
    taking = 0.0

    def work(event: Event) -> None:
        timer.now += taking

    bus, handler, other = local(timer), Watched(work), Watched()
    bus.subscribe("a", other)
    bus.subscribe("a", handler)
    await quickened(bus, "a")
    taking = 2 * QUICK_CALL
    await bus.publish("a", 1)
    assert handler.in_place[-1], "nobody could know"
    await bus.publish("a", 1)
    assert not handler.in_place[-1]
    assert other.in_place[-2:] == [True, True], "a slow one drags nobody along"
    taking = 0.0
    begun = len(handler.threads)
    for _ in range(2 * TRIAL_CALLS + 1):
        await bus.publish("a", 1)
    assert handler.in_place[begun:] == [False] * 2 * TRIAL_CALLS + [True], (
        "it is watched for longer"
    )


def test_a_pace_is_lost_and_won() -> None:
    pace = InlinePolicy()

    def watched() -> int:
        calls = 0
        while not pace.runs_inline:
            pace.record_thread_call(0.0)
            calls += 1
        return calls

    assert watched() == TRIAL_CALLS
    trial = TRIAL_CALLS
    while trial < MAX_TRIAL_CALLS:
        trial *= 2
        pace.record_slow_call(2 * QUICK_CALL)
        assert watched() == trial
    pace.record_slow_call(2 * QUICK_CALL)
    assert watched() == MAX_TRIAL_CALLS
    pace.inline_calls = STEADY_CALLS
    pace.record_slow_call(MAX_INTERRUPTION)
    assert pace.runs_inline, "an interruption is let pass"
    pace.inline_calls = STEADY_CALLS
    pace.record_slow_call(2 * MAX_INTERRUPTION)
    assert watched() == TRIAL_CALLS, "a long one after many quick ones is the first of its kind"
    pace.record_slow_call(2 * QUICK_CALL)
    for _ in range(3):
        pace.record_thread_call(0.0)
    pace.record_thread_call(2 * QUICK_CALL)
    assert watched() == 2 * TRIAL_CALLS, "one slow call begins the count anew"


async def test_a_handler_may_ask_for_a_thread() -> None:
    bus, handler = local(Timer()), Watched()
    bus.subscribe("a", handler, in_thread=True)
    for _ in range(3 * TRIAL_CALLS):
        await bus.publish("a", 1)
    assert handler.in_place == [False] * 3 * TRIAL_CALLS
    with pytest.raises(ConfigError, match=r"in_thread=True\): .* is async"):
        bus.subscribe("a", quickened_async, in_thread=True)
    other = Watched()
    bus.subscribe("a", other)
    with pytest.raises(ConfigError, match="with other options already"):
        bus.subscribe("b", other, in_thread=True)


async def quickened_async(event: Event) -> None: ...


async def test_over_a_log_a_plain_handler_has_a_thread() -> None:
    app = Streams("memory://")
    bus, handler, done = PatternEventBus(app), Watched(), asyncio.Event()
    bus.subscribe("a", handler)

    async def last(event: Event) -> None:
        done.set()

    bus.subscribe("end", last)
    async with app:
        for _ in range(2 * TRIAL_CALLS):
            await bus.publish("a", 1, key="k")
        await bus.publish("end", 1, key="k")
        await asyncio.wait_for(done.wait(), 30)
    assert handler.in_place == [False] * 2 * TRIAL_CALLS


async def test_context_variables_are_the_publishers_and_nobody_elses() -> None:
    """In place as in a thread."""
    found: list[tuple[str, str]] = []
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    def changes(event: Event) -> None:
        found.append(("changes", tenant.get()))
        tenant.set("changed")

    bus = local(Timer())
    bus.subscribe("a", changes)
    bus.subscribe("a", lambda event: found.append(("looks", tenant.get())))
    for number in range(2 * TRIAL_CALLS):
        tenant.set(f"t{number}")
        await bus.publish("a", 1)
        assert sorted(found) == [("changes", f"t{number}"), ("looks", f"t{number}")]
        assert tenant.get() == f"t{number}"
        found.clear()


async def test_what_goes_wrong_in_place_is_told_and_stops_nobody() -> None:
    told: list[tuple[str, Any]] = []
    bus = local(Timer(), on_error=lambda error, event, handler: told.append((str(error), handler)))

    async def awaited(event: Event) -> None:
        await asyncio.sleep(0)
        raise LookupError("awaited")

    def broken(event: Event) -> None:
        raise StopIteration("broken")

    def cancels(event: Event) -> None:
        raise asyncio.CancelledError

    def asks(value: Any) -> bool:
        raise ZeroDivisionError("asked too much")

    later: Callable[[Event], Any] = lambda event: awaited(event)  # noqa: E731 - it has no name
    last = Watched()
    for handler in (broken, cancels, later, last):
        bus.subscribe("a", handler)
    bus.add_subscription("*", asks, None, asks, {})
    for _ in range(TRIAL_CALLS + 1):
        told.clear()
        await bus.publish("a", 1)
        assert len(told) == 4
        assert dict(told) == {
            "broken raised StopIteration": broken,
            "cancels was cancelled from within": cancels,
            "awaited": later,
            "asked too much": asks,
        }
    assert last.in_place == [False] * TRIAL_CALLS + [True]


async def test_in_place_too_nobody_is_called_after_it_was_unsubscribed() -> None:
    bus, got = local(Timer()), list[str]()

    def first(event: Event) -> None:
        got.append("first")
        if event.data == "end":
            subscription()

    bus.subscribe("a", first)
    subscription = bus.subscribe("a", lambda event: got.append("second"))
    await quickened(bus, "a")
    got.clear()
    await bus.publish("a", 1)
    await bus.publish("a", "end")
    await bus.publish("a", 2)
    assert got == ["first", "second", "first", "first"]
    bus.subscribe("a", lambda event: got.append("third"))
    await bus.publish("a", 3)
    assert got[-2:] == ["first", "third"]


async def test_no_call_overtakes_one_that_is_in_a_thread() -> None:
    """However often a handler changes between the two."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    timer, got = Timer(), list[int]()
    places = set[bool]()

    def handle(event: Event) -> None:
        got.append(event.data)
        places.add(threading.current_thread() is MAIN)
        if event.data % 40 == 39:
            timer.now += 2 * QUICK_CALL

    bus = local(timer)
    bus.subscribe("a", handle)
    async with asyncio.TaskGroup() as group:
        for number in range(600):
            group.create_task(bus.publish("a", number))
            if number % 50 == 0:
                await asyncio.sleep(0.001)  # some end, some do not
    assert got == list(range(600))
    for number in range(600, 900):
        await bus.publish("a", number)
    assert got == list(range(900))
    assert places == {True, False}


async def test_a_cancelled_publish_leaves_nothing_pending() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    bus, gate, running = local(Timer()), threading.Event(), threading.Event()
    got: list[int] = []

    def handle(event: Event) -> None:
        if event.data == 0:
            running.set()
            gate.wait(30)
        got.append(event.data)

    bus.subscribe("a", handle)
    bus.subscribe("a", Watched())
    subscribers = bus._registry.subscribers.values()
    pace = next(each.inline_policy for each in subscribers if each.handler is handle)
    first = asyncio.create_task(bus.publish("a", 0))
    async with asyncio.timeout(30):
        while not running.is_set():  # noqa: ASYNC110 - it is set in a thread
            await asyncio.sleep(0)
    others = [asyncio.create_task(bus.publish("a", 1)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in (first, *others):
        task.cancel()
    ended = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    assert pace.in_threads > 0, "its call goes on in its thread"
    gate.set()
    async with asyncio.timeout(30):
        while pace.in_threads:  # noqa: ASYNC110 - nothing tells us when
            await asyncio.sleep(0)
    assert got == [0], "what had not begun is not begun"
    await bus.publish("a", 2)
    assert got == [0, 2]


async def test_whoever_else_is_on_the_loop_has_a_turn() -> None:
    """Also where nothing that a publisher calls ever waits."""
    timer = Timer()
    bus = local(timer)
    bus.subscribe("a", lambda event: None)
    await quickened(bus, "a")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    timer.step = QUICK_CALL / 2
    published = 0
    while turns < 3:
        await bus.publish("a", 1)
        published += 1
        assert published < 10 * YIELD_AFTER / QUICK_CALL * 3
    task.cancel()
    timer.step = 0.0
    before = turns
    for _ in range(100):
        await bus.publish("a", 1)
    assert turns <= before + 1, "and no oftener than that"


async def test_topics_without_number_are_not_kept() -> None:
    bus, got = local(Timer()), list[str]()
    bus.subscribe("order.*", lambda event: got.append(event.topic))
    await quickened(bus, "order.0")
    got.clear()
    for number in range(3_000):
        await bus.publish(f"order.{number}", 1)
    assert len(got) == 3_000
    assert bus._local_router is not None
    assert len(bus._local_router._matches) <= 1_024
    for wrong in ("a b", "order.*", "", 7):
        with pytest.raises(InvalidValue):
            await bus.publish(wrong, 1)  # type: ignore[arg-type]
