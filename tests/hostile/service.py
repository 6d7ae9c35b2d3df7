"""Apps that read every kind of topic there is, and what their handlers saw."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import msgspec
from hypothesis import strategies as st
from typing_extensions import override

from streams import DeadLetters, Flow, Message, Retry, Streams
from streams.patterns import (
    DeadLetterManager,
    Delays,
    Event,
    EventBus,
    PatternEventBus,
    SagaOrchestrator,
)
from tests.hostile.generate import kinds
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written

QUICK = Flow(commit=0.05, drain=5.0)
PATIENCE = 30.0
"""Real seconds after which a condition that does not come about fails its test."""

GOOD = 1_000_000
"""Numbers from here on are those of good messages."""


class Item(msgspec.Struct):
    """What is ordered."""

    n: int


class Running(ABC):
    """An app that is run beside the test in a thread of its own."""

    app: Streams

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._run = uuid4().hex[:8]
        self.group = f"work-{self._run}"
        self._lock = threading.Lock()
        self._seen: dict[str, set[int]] = {}
        self._stack = ExitStack()
        self._next = GOOD

    def name(self, what: str) -> str:
        """The full name of a topic."""
        return f"{what}-{self._run}"

    # -- its life

    def start(self) -> None:
        """Run the app; again after :meth:`stop`."""
        self.app = Streams(self.ground.url)
        self.declare(self.app)
        self._stack.enter_context(self.app.background())

    def stop(self) -> None:
        """Stop the app: it drains, commits and leaves.

        :raises ProcessorDied: one of its processors died.
        """
        self._stack.close()

    @abstractmethod
    def declare(self, app: Streams) -> None:
        """Declare all that it reads."""

    @abstractmethod
    def kinds(self) -> dict[str, st.SearchStrategy[Written]]:
        """How hostile records are made, by the topic that they go to."""

    # -- what it saw

    def _saw(self, where: str, n: int) -> None:
        with self._lock:
            self._seen.setdefault(where, set()).add(n)

    def saw(self, where: str, n: int) -> bool:
        """Whether a handler was given that number."""
        with self._lock:
            return n in self._seen.get(where, ())

    def _look(self, message: Message[Any]) -> None:
        """What any handler may look at."""
        assert repr(message)
        assert message.timestamp.utcoffset() is not None
        assert message.position == (message.topic, message.partition, message.offset)
        assert len(message.raw) == 3
        dict(message.headers)

    # -- that it goes on

    def goes_on(self) -> None:
        """A good message of each kind is handled, and every processor is well."""
        self._next += 1
        self.handle_good(self._next)
        # On Kafka a commit may be refused while members still join.
        self._until(lambda: self.app.health().ok, "all processors")

    @abstractmethod
    def handle_good(self, n: int) -> None:
        """Publish a good message of each kind, and wait until it is handled."""

    def _until(self, over: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not over():
            health = self.app.health()
            errors = {name: each.error for name, each in health.processors.items() if each.error}
            assert not errors, errors
            assert time.monotonic() < give_up, f"{what} do not go on; {health}"
            time.sleep(0.002)


class Service(Running):
    """Processors, dead letters, delays, an event bus and a durable saga."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        for name in ("orders", "ordered", "delays", "events"):
            ground.create(self.name(name))
        for name in ("retry", "dead", "delay", "attempts"):
            ground.create(f"{self.name('orders')}.{self.group}.{name}")
        for name in ("retry", "parked"):
            ground.create(f"{self.name('ordered')}.{self.group}.{name}")
        ground.create(f"{self.name('saga')}.saga")

    @override
    def kinds(self) -> dict[str, st.SearchStrategy[Written]]:
        return kinds(self.name, self.group)

    @override
    def declare(self, app: Streams) -> None:
        orders = self.orders = app.topic(self.name("orders"), Item)
        ordered = self.ordered = app.topic(self.name("ordered"), Item)
        self.delays = Delays(app, self.name("delays"))
        self.bus = PatternEventBus(app, self.name("events"))
        self.saga = SagaOrchestrator(app, self.name("saga"), context=dict, flow=QUICK)
        self.saga.add_step("pay", self._pay)
        self.letters = DeadLetterManager(app, f"{orders.name}.{self.group}.dead")

        loose = Retry(2, delay=0.001, in_order=False)

        @app.processor(orders, group=self.group, concurrency=8, retry=loose, flow=QUICK)
        async def work(item: Item, message: Message[Item]) -> None:
            self._look(message)
            if item.n < 0:
                raise ValueError("negative")
            self._saw("orders", item.n)

        @app.processor(
            ordered,
            group=self.group,
            retry=Retry(1),
            flow=QUICK,
            dead_letters=DeadLetters(sequenced=True),
        )
        def work_in_order(item: Item, message: Message[Item]) -> None:
            self._look(message)
            if item.n < 0:
                raise ValueError("negative")
            self._saw("ordered", item.n)

        self.bus.subscribe("order.*", self._hear("ephemeral"))
        self.bus.subscribe(
            "order.*", self._hear("durable"), group=self.group, retry=Retry(1), flow=QUICK
        )

    async def _pay(self, context: dict[str, Any]) -> None:
        self._saw("saga", context["n"])

    def _hear(self, where: str) -> Callable[[Event], Any]:
        async def hear(event: Event) -> None:
            assert repr(event)
            assert event.timestamp.utcoffset() is not None
            n = event.data["n"]
            self._saw(where, n)

        return hear

    @override
    def handle_good(self, n: int) -> None:
        item = Item(n)

        async def publish() -> None:
            await self.orders.publish(item, key=f"good-{n}")
            await self.ordered.publish(item, key=f"good-{n}")
            await self.delays.publish(self.orders, Item(n + GOOD), delay=0, key=f"late-{n}")
            await self.bus.publish("order.paid", {"n": n})
            await self.saga.start({"n": n}, id=f"good-{n}")

        self.app.wait(publish())
        self._until(lambda: self.saw("orders", n), "orders")
        self._until(lambda: self.saw("ordered", n), "ordered")
        self._until(lambda: self.saw("ephemeral", n), "ephemeral subscribers")
        self._until(lambda: self.saw("durable", n), "durable subscribers")
        self._until(lambda: self.saw("saga", n), "sagas")
        self._until(lambda: self.saw("orders", n + GOOD), "delays")


__all__ = ["GOOD", "EventBus", "Item", "Service"]
