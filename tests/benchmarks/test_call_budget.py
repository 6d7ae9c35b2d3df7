"""A budget that no clock decides: calls, and bytecode instructions, that a message costs.

Counted are the calls that our code makes or is (the handler's own call is one of them) and the
instructions that our code runs, in every thread, between an app's start and its end on a log in
memory. What does not depend on the number of messages is taken out by counting twice; what comes
as time passes, by letting none come: commits, which have a budget of their own
(:data:`streams.engine.commit_pace.CORE_SHARE`), and slices of the event loop.

A number here may be lowered when the loop gets leaner. Whoever wants to raise one pays for it on
every message: see `make bench` first.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import stream_codecs
import streams
from streams import Flow, Streams
from streams.engine import commit_pace
from streams.patterns import instrument
from streams.processing import async_executor

pytestmark = pytest.mark.skipif(
    sys.gettrace() is not None, reason="a debugger or a coverage tool traces already"
)

OURS = (streams.__path__[0], stream_codecs.__path__[0])
FEW, MANY = 1_000, 5_000
"""Messages of the two runs; few enough to be held at once, so that both are read in one piece."""


class Order(msgspec.Struct, frozen=True):
    order_id: str
    customer: str


class Budget(NamedTuple):
    """What a message may cost, at most.

    Instructions are those of CPython 3.11: other versions have other ones.
    """

    calls: float
    instructions: float


BUDGETS = {
    "plain": Budget(calls=2.5, instructions=35),
    # A batch is so cheap that a poll cycle or two more of a busy machine count as much as itself.
    "batch": Budget(calls=0.5, instructions=4),
    "async": Budget(calls=3.5, instructions=63),
    "async, with the message": Budget(calls=5.6, instructions=102),
    "async, traced and not sampled": Budget(calls=9, instructions=135),
    "threads": Budget(calls=21, instructions=480),
}
"""What was measured when a number was last set, and up to a tenth for what polls, and waits for one
another, at a pace of their own."""


class Meter:
    """Counts what our code does, in all threads that begin while it is on. A context manager."""

    def __init__(self, what: str) -> None:
        self._counts: dict[int, int] = {}
        self._instructions = what == "instructions"

    def __enter__(self) -> Meter:
        if self._instructions:
            threading.settrace(self._entered)
            sys.settrace(self._entered)
        else:
            threading.setprofile(self._called)
            sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        threading.settrace(None)
        threading.setprofile(None)

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def _add(self) -> None:
        thread = threading.get_ident()  # each thread its own: no count is lost between two
        self._counts[thread] = self._counts.get(thread, 0) + 1

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            if frame.f_code.co_filename.startswith(OURS):
                self._add()
        elif event == "call":
            caller = frame.f_back
            if frame.f_code.co_filename.startswith(OURS) or (
                caller is not None and caller.f_code.co_filename.startswith(OURS)
            ):
                self._add()

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._traced

    def _traced(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self._add()
        return self._traced


async def spent(shape: str, messages: int, what: str) -> int:
    """What a processor of this shape spends on so many messages."""
    url = f"memory://{uuid4().hex}"
    filler = Streams(url)
    topic = filler.topic("orders", Order, key="customer", partitions=4)
    over = threading.Event()
    left = messages

    def seen(count: int = 1) -> None:
        nonlocal left
        left -= count
        if left == 0:
            over.set()

    app = Streams(url)
    if "traced" in shape:
        instrument(app, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    orders = app.topic("orders", Order, key="customer")
    options, handler = _handlers(seen)[shape]
    app.processor(orders, group="budget", flow=Flow(commit=3_600), **options)(handler)
    async with filler.connected():
        await topic.publish_many(
            [Order(f"order-{n}", f"customer-{n % 1000}") for n in range(messages)]
        )
        with Meter(what) as meter:
            async with app:
                await _wait(over)
        return meter.count


def _handlers(seen: Callable[..., None]) -> dict[str, tuple[dict[str, Any], Callable[..., Any]]]:
    def plain(order: Order) -> None:
        seen()

    def batch(orders: list[Order]) -> None:
        seen(len(orders))

    async def at_once(order: Order) -> None:
        seen()

    async def with_message(order: Order, message: streams.Message[Order]) -> None:
        seen()

    lock = threading.Lock()

    def locked(order: Order) -> None:
        with lock:
            seen()

    return {
        "plain": ({}, plain),
        "batch": ({"batch": 1_000}, batch),
        "async": ({"concurrency": 64}, at_once),
        "async, with the message": ({"concurrency": 64}, with_message),
        "async, traced and not sampled": ({"concurrency": 64}, at_once),
        "threads": ({"concurrency": 4}, locked),
        "filtered": ({"concurrency": 64, "filter": bool}, at_once),
    }


async def _wait(over: threading.Event) -> None:
    import asyncio

    await asyncio.to_thread(over.wait, 100)
    assert over.is_set()


@pytest.fixture(autouse=True)
def _nothing_comes_as_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_pace, "CORE_SHARE", 1e-9)
    monkeypatch.setattr(async_executor, "TIME_SLICE", 3_600.0)


RUNS = 40
"""Runs of each size, at most, until the least of them tell that the budget is kept."""


async def per_message(shape: str, what: str, budget: float = 0.0) -> float:
    """What a message costs: by the least that a run of each size took, as what a thread does while
    it waits for another comes on top, and is the more the less the threads are run."""
    few = many = cost = float("inf")
    for _ in range(RUNS):
        few = min(few, await spent(shape, FEW, what))
        many = min(many, await spent(shape, MANY, what))
        cost = (many - few) / (MANY - FEW)
        if cost <= budget:
            break
    return cost


@pytest.mark.parametrize("shape", BUDGETS)
async def test_a_message_costs_no_more_calls_than_it_did(shape: str) -> None:
    budget = BUDGETS[shape].calls
    cost = await per_message(shape, "calls", budget)
    assert cost <= budget, f"{cost:.2f} calls a message"


if sys.version_info[:2] == (3, 11):

    @pytest.mark.parametrize("shape", BUDGETS)
    async def test_a_message_costs_no_more_instructions_than_it_did(shape: str) -> None:
        budget = BUDGETS[shape].instructions
        cost = await per_message(shape, "instructions", budget)
        assert cost <= budget, f"{cost:.1f} instructions a message"


@pytest.mark.parametrize("what", ["calls", "instructions"])
async def test_the_meter_sees_a_call_more(what: str) -> None:
    bare = await per_message("async", what, BUDGETS["async"]._asdict()[what])
    # One run of each size: what comes on top of the least that it costs is far less than a call.
    filtered = await per_message("filtered", what, float("inf"))
    assert filtered >= bare + 1  # a filter is called for each message
