"""The same with the toolkit: what a user would write, with every promise and default on.

Each function is a task of a worker process (:mod:`benchmarks.worker`): it takes plain values and
returns plain values.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from benchmarks.counting import MessageCounter, OrderCheck, percentiles
from benchmarks.machine import MemorySampler
from benchmarks.orders import KEYS, PARTITIONS, Order, Ping, customer, order, ping
from benchmarks.process import WorkerProcess
from streams import Flow, Streams
from streams.config import RETRY_PARTITIONS
from streams.event_loop import loop_factory

Answer = dict[str, Any]

TIME_LIMIT = 900.0
"""Seconds after which a measurement is aborted."""


class Stalled(Exception):
    """A measurement did not end; the message says how far it got."""


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine on the kind of loop that an app uses."""

    async def awaited() -> Any:
        return await main()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(awaited())


async def wait_done(done: threading.Event, app: Streams) -> None:
    """Wait for a measurement's end.

    :raises Stuck: it does not come.
    """
    if not await asyncio.to_thread(done.wait, TIME_LIMIT):
        raise Stalled(f"not over within {TIME_LIMIT:g} s: {app.stats()}")


# -- making a log ----------------------------------------------------------------------------------

_kept_open: list[tuple[asyncio.Runner, AsyncExitStack]] = []
"""Keeps a log in memory open as long as this process lives."""


def fill(url: str, topic: str, messages: int, keys: int = KEYS) -> Answer:
    """Publish the orders 0 to ``messages``; a log in memory stays until the process ends."""
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer, partitions=PARTITIONS)

    async def publish() -> None:
        for start in range(0, messages, 10_000):
            end = min(start + 10_000, messages)
            await orders.publish_many([order(number, keys) for number in range(start, end)])

    publish_and_keep(app, publish)
    return {}


def publish_and_keep(app: Streams, publish: Callable[[], Awaitable[None]]) -> None:
    """Publish to a log; one in memory stays until the process ends."""

    async def anchor(stack: AsyncExitStack) -> None:
        await stack.enter_async_context(app.connected())
        await publish()

    runner = asyncio.Runner(loop_factory=loop_factory())
    stack = AsyncExitStack()
    runner.run(anchor(stack))
    if app.url.startswith("memory:"):
        _kept_open.append((runner, stack))
        gc.collect()
        gc.freeze()  # spare the collector the log's contents while we measure
    else:
        runner.run(stack.aclose())
        runner.close()


def create(url: str, topic: str) -> Answer:
    """An empty topic."""
    return fill(url, topic, 0)


# -- consuming ------------------------------------------------------------------------------------


def handler(shape: str, counter: MessageCounter, wait: float = 0.0) -> Callable[..., Any]:
    """A handler that counts.

    :param shape: ``plain``, ``batch``, ``async`` or ``threads``.
    :param wait: seconds that it waits; a plain one and a batch one do not.
    """
    if shape == "plain":
        return counter.count_one
    if shape == "batch":
        return counter.count_batch
    if shape == "threads":
        lock = threading.Lock()

        def in_a_thread(value: Order) -> None:
            time.sleep(wait)
            with lock:
                counter.count_one()

        return in_a_thread

    one = counter.count_one
    if not wait:

        async def at_once(value: Order) -> None:
            one()

        return at_once

    async def later(value: Order) -> None:
        await asyncio.sleep(wait)
        one()

    return later


def consume(
    url: str,
    topic: str,
    messages: int,
    shape: str = "plain",
    concurrency: int = 1,
    wait: float = 0.0,
    skip: int = 1,
    id: str | None = None,
    flow: dict[str, float] | None = None,
    size: int = 1_000,
) -> Answer:
    """Run a processor in a new group over ``messages`` of a topic.

    :param shape: ``plain``, ``batch``, ``async`` or ``threads``.
    :param wait: seconds that a handler waits.
    :param id: the field with the message ID; None: it travels in a header.
    :param flow: settings of :class:`streams.Flow` that are not the defaults.
    :param size: messages a batch, at most, where ``shape`` is ``batch``.
    """
    counter = MessageCounter(messages, skip)
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer, id=id)
    batch = size if shape == "batch" else None
    app.processor(
        orders,
        group=f"bench-{uuid4().hex}",
        concurrency=concurrency,
        batch=batch,
        flow=Flow(**(flow or {})),  # type: ignore[arg-type]
    )(handler(shape, counter, wait))

    async def main() -> MemorySampler:
        async with app:
            with MemorySampler() as memory:
                await wait_done(counter.done, app)
            return memory

    memory: MemorySampler = run(main)
    return {**counter.result, "growth": memory.growth, "memory": memory.curve()}


def pipeline(
    url: str, topic: str, messages: int, concurrency: int, exactly_once: bool = False
) -> Answer:
    """Run a processor with ``to=`` in a new group, from the first message that is handled until the
    results of ``messages`` are stored.

    :param exactly_once: outputs and positions in transactions.
    """
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer)
    target = app.topic(f"bench-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)
    started_at = cpu = 0.0

    async def pass_on(value: Order) -> Order:
        nonlocal started_at, cpu
        if not started_at:
            started_at, cpu = time.perf_counter(), time.process_time()
        return value

    app.processor(
        orders, group=f"bench-{uuid4().hex}", to=target, concurrency=concurrency,
        exactly_once=exactly_once,
    )(pass_on)  # fmt: skip

    async def main() -> float:
        async with app:
            until = time.perf_counter() + TIME_LIMIT
            while True:
                if app.stats().published >= messages:
                    return time.perf_counter()
                if time.perf_counter() > until:
                    raise Stalled(f"not over within {TIME_LIMIT:g} s: {app.stats()}")
                await asyncio.sleep(0.005)

    ended_at: float = run(main)
    seconds, used = ended_at - started_at, time.process_time() - cpu
    figures = {"seconds": seconds, "messages": messages, "cpu_us": used / messages * 1e6}
    return {"rate": messages / seconds, **figures}


def keeps_order(
    url: str, topic: str, messages: int, concurrency: int, wait: float, shape: str = "async"
) -> Answer:
    """The same with a handler that checks that each key's orders come one after the other."""
    counter, check, lock = MessageCounter(messages), OrderCheck(), threading.Lock()
    app = Streams(url)
    orders = app.topic(topic, Order, key=customer)

    async def later(value: Order) -> None:
        check.handler_started(value.customer, value.order_id)
        await asyncio.sleep(wait)
        check.handler_returned(value.customer)
        counter.count_one()

    def in_a_thread(value: Order) -> None:
        with lock:
            check.handler_started(value.customer, value.order_id)
        time.sleep(wait)
        with lock:
            check.handler_returned(value.customer)
            counter.count_one()

    handler: Any = in_a_thread if shape == "threads" else later
    app.processor(orders, group=f"bench-{uuid4().hex}", concurrency=concurrency)(handler)

    async def main() -> None:
        async with app:
            await wait_done(counter.done, app)

    run(main)
    return {"violations": check.violations, "messages": messages}


# -- publishing -----------------------------------------------------------------------------------


def publish_many(url: str, messages: int, size: int) -> Answer:
    """``publish_many`` of ``size`` at a time into a new topic, each time until acknowledged."""
    app = Streams(url)
    topic = app.topic(f"bulk-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)
    values = [order(number) for number in range(messages)]

    async def main() -> float:
        async with app.connected():
            await topic.publish_many(values[:size])  # open the connections
            began = time.perf_counter()
            for start in range(0, messages, size):
                await topic.publish_many(values[start : start + size])
            return messages / (time.perf_counter() - began)

    return {"rate": run(main)}


def publish_each(url: str, messages: int, tasks: int) -> Answer:
    """``tasks`` coroutines that each publish one message after the other."""
    app = Streams(url)
    topic = app.topic(f"each-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)

    async def main() -> float:
        async with app.connected():
            return await publish_concurrently(topic.publish, messages, tasks)

    return {"rate": run(main)}


async def publish_concurrently(
    publish: Callable[[Order], Awaitable[Any]], messages: int, tasks: int
) -> float:
    """Messages a second that ``tasks`` coroutines get acknowledged together."""
    share = messages // tasks
    await publish(order(0))  # open the connections

    async def one(number: int) -> None:
        for turn in range(share):
            await publish(order(number * share + turn))

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(tasks)))
    return share * tasks / (time.perf_counter() - began)


def call_at_rate(send: Callable[[int], None], messages: int, rate: int) -> None:
    """Call ``send`` with 0 to ``messages``, ``rate`` times a second."""
    begin = time.monotonic() + 0.1
    for number in range(messages):
        left = begin + number / rate - time.monotonic()
        if left > 0:
            time.sleep(left)
        send(number)


# -- latency --------------------------------------------------------------------------------------


class ArrivalTimes:
    """Measures the latency of each ping; the first ``skip`` are a warm-up."""

    def __init__(self, messages: int, skip: int) -> None:
        self._left = messages
        self._skip = skip
        self.milliseconds: list[float] = []
        self.done = threading.Event()

    def record(self, value: Ping) -> None:
        """A ping has come to its handler."""
        if self._skip:
            self._skip -= 1
            return
        self.milliseconds.append((time.monotonic_ns() - value.sent) / 1e6)
        self._left -= 1
        if self._left == 0:
            self.done.set()

    @property
    def result(self) -> Answer:
        """Quantiles in milliseconds."""
        found = {name: round(value, 3) for name, value in percentiles(self.milliseconds).items()}
        return {"p50": found["p50"], "p99": found["p99"], "quantiles": found}


def latency(
    url: str, messages: int, rate: int, shape: str = "plain", concurrency: int = 1
) -> Answer:
    """From the call of publish in another process to the handler's start here."""
    arrivals = ArrivalTimes(messages, skip=rate // 2)
    app = Streams(url)
    name = f"pings-{uuid4().hex}"
    pings = app.topic(name, Ping, key=customer, partitions=PARTITIONS)
    one = arrivals.record

    async def at_once(value: Ping) -> None:
        one(value)

    handler: Any = at_once if shape == "async" else one
    app.processor(pings, group=f"bench-{uuid4().hex}", concurrency=concurrency)(handler)

    async def main() -> None:
        async with app:
            with WorkerProcess() as other:
                count = messages + rate // 2
                await asyncio.to_thread(
                    other.run_task, "pace", url=url, topic=name, messages=count, rate=rate
                )
                await wait_done(arrivals.done, app)

    run(main)
    return arrivals.result


def pace(url: str, topic: str, messages: int, rate: int) -> Answer:
    """Publish ``rate`` pings a second, each by ``await publish`` in a task of its own."""
    app = Streams(url)
    pings = app.topic(topic, Ping, key=customer)

    async def main() -> None:
        async with app.connected():
            running: set[asyncio.Task[Any]] = set()
            loop = asyncio.get_running_loop()

            async def one(number: int) -> None:
                await pings.publish(ping(time.monotonic_ns(), number))

            def begin(number: int) -> None:
                task = loop.create_task(one(number))
                running.add(task)
                task.add_done_callback(running.discard)

            def begin_soon(number: int) -> None:
                loop.call_soon_threadsafe(begin, number)

            # By a thread: a loop's timers are too coarse for it (uvloop's have whole milliseconds).
            await asyncio.to_thread(call_at_rate, begin_soon, messages, rate)
            await asyncio.gather(*running)

    run(main)
    return {}


# -- doing nothing --------------------------------------------------------------------------------


def idle(url: str, seconds: float) -> Answer:
    """A processor on an empty topic: the process's CPU time in percent of a core."""
    app = Streams(url)
    topic = app.topic(f"idle-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)

    async def handle(value: Order) -> None: ...

    app.processor(topic, group=f"bench-{uuid4().hex}", concurrency=64)(handle)

    async def main() -> float:
        async with app:
            while not app.stats().processors["handle"].partitions:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)  # after it has joined
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(seconds)
            return (time.process_time() - cpu) / (time.perf_counter() - began) * 100

    return {"percent": run(main)}


# -- several processes -----------------------------------------------------------------------------


class Member:
    """One process of a group, started paused; its handler works for some microseconds of CPU."""

    def __init__(self, url: str, topic: str, group: str, turns: int) -> None:
        self.handled = 0
        self.first = self.last = 0.0
        app = Streams(url)
        orders = app.topic(topic, Order, key=customer)

        def handle(value: Order) -> None:
            for _ in range(turns):
                pass
            if not self.handled:
                self.first = time.perf_counter()
            self.handled += 1
            self.last = time.perf_counter()

        self.processor = app.processor(orders, group=group)(handle)
        self.processor.pause()
        self.app = app
        self.background = app.background()
        self.background.__enter__()


_members: list[Member] = []


def join(url: str, topic: str, group: str, turns: int) -> Answer:
    """Become a member of a group, and handle nothing yet."""
    _members.append(Member(url, topic, group, turns))
    return {}


def look() -> Answer:
    """The progress of this member."""
    member = _members[-1]
    (stats,) = member.app.stats().processors.values()
    return {
        "partitions": stats.partitions,
        "handled": member.handled,
        "first": member.first,
        "last": member.last,
    }


def go() -> Answer:
    """Start handling."""
    _members[-1].processor.resume()
    return {}


def leave() -> Answer:
    """Leave the group."""
    _members.pop().background.__exit__(None, None, None)
    return {}


def loop_turns_for(seconds: float) -> int:
    """Iterations of an empty loop in so much CPU time on this machine."""
    turns = 200_000
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(turns):
            pass
        best = min(best, time.thread_time() - began)
    return max(1, round(turns * seconds / best))


def share(url: str, topic: str, messages: int, processes: int, work: float) -> Answer:
    """``processes`` members of one group over a topic, each message ``work`` seconds of CPU."""
    group, turns = f"bench-{uuid4().hex}", loop_turns_for(work)
    members = [WorkerProcess() for _ in range(processes)]
    try:
        for member in members:
            member.run_task("join", url=url, topic=topic, group=group, turns=turns)
        _wait_until(members, _is_shared_out)
        time.sleep(1)
        _wait_until(members, _is_shared_out)  # and still are
        for member in members:
            member.run_task("go")
        seen = _wait_until(members, lambda seen: sum(s["handled"] for s in seen) >= messages)
        handled = sum(s["handled"] for s in seen)
        busy = [s for s in seen if s["handled"]]
        seconds = max(s["last"] for s in busy) - min(s["first"] for s in busy)
        for member in members:
            member.run_task("leave")
        return {"rate": handled / seconds, "shares": [s["handled"] for s in seen]}
    finally:
        for member in members:
            member.close()


def _is_shared_out(seen: list[Answer]) -> bool:
    """Whether the group's partitions are shared out: the topic's, and those for what is put back
    from its dead letters."""
    owned = [each["partitions"] for each in seen]
    return bool(sum(owned) == PARTITIONS + RETRY_PARTITIONS and min(owned) > 0)


def _wait_until(
    members: list[WorkerProcess], wanted: Callable[[list[Answer]], bool]
) -> list[Answer]:
    ends = time.monotonic() + TIME_LIMIT
    while True:
        seen = [member.run_task("look") for member in members]
        if wanted(seen):
            return seen
        if time.monotonic() > ends:
            raise Stalled(f"not over within {TIME_LIMIT:g} s: {seen}")
        time.sleep(0.1)
