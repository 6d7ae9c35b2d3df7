"""What is measured: each case is our figure and its baseline, both in messages a second."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from benchmarks.baseline import Row, SqliteFile, batches_by_hand, by_hand, from_list
from benchmarks.orders import Order, customer, order
from streams import Streams
from streams.app import loop_factory

PARTITIONS = 4


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    log: str
    ours: Callable[[], float]
    baseline: Callable[[], float]
    target: float | None = None
    unit: str = "messages/s"


class Counter:
    """Counts messages and knows when the first and the last came."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self._messages = messages
        self._began = 0.0
        self._ended = 0.0
        self.over = threading.Event()

    def one(self, value: Any = None) -> None:
        """One message was handled."""
        self._left -= 1
        if self._left <= 0:
            self._end()
        elif not self._began:
            self._began = time.perf_counter()

    def many(self, values: list[Any]) -> None:
        """A batch was handled."""
        self._left -= len(values)
        if self._left <= 0:
            self._end()
        elif not self._began:
            self._messages -= len(values)
            self._began = time.perf_counter()

    def _end(self) -> None:
        self._ended = time.perf_counter()
        self.over.set()

    @property
    def rate(self) -> float:
        """Messages a second, from the first to the last."""
        return (self._messages - 1) / (self._ended - self._began)


class Embedded:
    """The embedded logs, filled once: every measurement reads it all in a group of its own."""

    def __init__(self, log: str, messages: int) -> None:
        self.log = log
        self.messages = messages
        self._folder = tempfile.TemporaryDirectory(prefix="streams-bench-")
        folder = Path(self._folder.name)
        name = uuid4().hex
        self.url = f"memory://{name}" if log == "memory" else f"sqlite:///{folder / 'log.db'}"
        self._anchor = Streams(self.url)
        self._topic = "orders"
        self._file = SqliteFile(str(folder / "raw.db"))
        encode = msgspec.json.encode
        orders = [order(number) for number in range(messages)]
        self._rows: list[Row] = [
            (n % PARTITIONS, n, f"{n:032x}", each.customer.encode(), encode(each))
            for n, each in enumerate(orders)
        ]
        if log == "sqlite":
            self._file.append(self._rows)
        self._orders = orders
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._anchor.__aenter__())
        self._loop.run_until_complete(self._fill())

    def close(self) -> None:
        """Let go of the logs."""
        self._loop.run_until_complete(self._anchor.__aexit__(None, None, None))
        self._loop.close()
        self._file.close()
        self._folder.cleanup()

    async def _fill(self) -> None:
        app = Streams(self.url)
        topic = app.topic(self._topic, Order, key=customer, partitions=PARTITIONS)
        async with app.connected():
            for start in range(0, self.messages, 10_000):
                await topic.publish_many(self._orders[start : start + 10_000])

    # -- consuming

    def consume(self, handler: Callable[..., Any], messages: int, **options: Any) -> float:
        """Run a processor over the whole topic; ``handler`` is given a counter."""
        counter = Counter(messages)
        app = Streams(self.url)
        topic = app.topic(self._topic, Order, key=customer)
        app.processor(topic, group=uuid4().hex, **options)(handler(counter))

        async def run() -> None:
            async with app:
                await asyncio.to_thread(counter.over.wait, 600)

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run())
        return counter.rate

    def plain(self) -> float:
        """A plain handler."""
        return self.consume(lambda counter: counter.one, self.messages)

    def batch(self) -> float:
        """A batch handler."""
        return self.consume(lambda counter: counter.many, self.messages, batch=1_000)

    def asynchronous(self) -> float:
        """An async handler that does not wait, 64 at once, in order per key."""

        def make(counter: Counter) -> Callable[[Order], Any]:
            async def handle(value: Order) -> None:
                counter.one()

            return handle

        return self.consume(make, self.messages, concurrency=64)

    def waiting(self, concurrency: int, seconds: float = 0.005) -> float:
        """An async handler that waits 5 ms."""

        def make(counter: Counter) -> Callable[[Order], Any]:
            async def handle(value: Order) -> None:
                await asyncio.sleep(seconds)
                counter.one()

            return handle

        messages = min(self.messages, int(concurrency / seconds * 2))
        return self.consume(make, messages, concurrency=concurrency)

    def threads(self, concurrency: int, seconds: float = 0.005) -> float:
        """A plain handler that waits 5 ms, in threads."""

        def make(counter: Counter) -> Callable[[Order], Any]:
            lock = threading.Lock()

            def handle(value: Order) -> None:
                time.sleep(seconds)
                with lock:
                    counter.one()

            return handle

        messages = min(self.messages, int(concurrency / seconds * 2))
        return self.consume(make, messages, concurrency=concurrency)

    def loop(self) -> float:
        """The loop by hand."""
        counter = Counter(self.messages)
        if self.log == "memory":
            by_hand(from_list(self._rows), counter.one, lambda positions: None)
        else:
            by_hand(self._file.batches(), counter.one, self._file.commit)
        return counter.rate

    def batch_loop(self) -> float:
        """The batch loop by hand."""
        counter = Counter(self.messages)
        if self.log == "memory":
            batches_by_hand(from_list(self._rows), counter.many, lambda positions: None)
        else:
            batches_by_hand(self._file.batches(), counter.many, self._file.commit)
        return counter.rate

    # -- publishing

    def publish(self) -> float:
        """``publish_many`` in thousands, acknowledged."""
        app = Streams(self.url)
        topic = app.topic(f"bulk-{uuid4().hex}", Order, key=customer, partitions=PARTITIONS)
        count = min(self.messages, 50_000)

        async def run() -> float:
            async with app.connected():
                began = time.perf_counter()
                for start in range(0, count, 1_000):
                    await topic.publish_many(self._orders[start : start + 1_000])
                return count / (time.perf_counter() - began)

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(run())

    def publish_by_hand(self) -> float:
        """Encoding, fresh IDs, and apsw's executemany in thousands."""
        from uuid_utils import uuid7

        encode = msgspec.json.encode
        count = min(self.messages, 50_000)
        self._file.clear()
        began = time.perf_counter()
        for start in range(0, count, 1_000):
            rows: list[Row] = [
                (n % PARTITIONS, n, str(uuid7()), each.customer.encode(), encode(each))
                for n, each in enumerate(self._orders[start : start + 1_000])
            ]
            self._file.append(rows)
        rate = count / (time.perf_counter() - began)
        self._file.clear()
        self._file.append(self._rows)
        return rate

    def cases(self) -> list[Case]:
        """All cases of this log, with the ratio each should reach."""
        log = self.log
        loop_target = 0.8 if log == "memory" else 0.85
        found = [
            Case("plain handler", log, self.plain, self.loop, loop_target),
            Case("batch handler", log, self.batch, self.batch_loop, 0.9),
            Case("async handler, 64 at once", log, self.asynchronous, self.loop, 0.65),
            _limit("async handler that waits 5 ms, 64 at once", log, self.waiting, 64, 0.96),
            _limit("async handler that waits 5 ms, 256 at once", log, self.waiting, 256, 0.94),
            _limit("plain handler that waits 5 ms, 64 threads", log, self.threads, 64, 0.90),
        ]
        if log == "sqlite":
            found.append(Case("publish_many", log, self.publish, self.publish_by_hand, 0.8))
        return found


def _limit(
    name: str, log: str, measure: Callable[[int], float], concurrency: int, target: float
) -> Case:
    """A case whose baseline is what arithmetic allows."""
    limit = concurrency / 0.005
    return Case(name, log, lambda: measure(concurrency), lambda: limit, target)
