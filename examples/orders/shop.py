"""The client side: places orders and asks for their outcome, with either kind of saga.

No order is carried out here: the workers do that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from examples.orders import choreography, saga
from examples.orders.choreography import PLACED, REFUSED, SHIPPED
from examples.orders.saga import Order
from streams import Streams
from streams.patterns import ChoreographySaga, EventBus, SagaOrchestrator, SagaState, SagaTracker

MAX_TRACKED = 1_000_000
"""How many ended orders a tracker remembers."""


class Ended(NamedTuple):
    """An order that has ended.

    :param status: ``completed``, ``compensated``, or the error.
    """

    id: str
    status: str
    order: Order


class Orchestrated:
    """Asks the orchestrator for the state of each order."""

    def __init__(self, orders: SagaOrchestrator[Order]) -> None:
        self._orders = orders

    async def place(self, order: Order, id: str) -> None:
        """Start an order; returns when the start is durable."""
        await self._orders.start(order, id=id)

    async def ended_count(self) -> int:
        """How many orders were completed or compensated."""
        return len(await self._orders.list("completed", "compensated"))

    async def ended(self) -> list[Ended]:
        """All ended orders with their status."""
        found = await self._orders.list("completed", "compensated", "failed", "stopped")
        return [Ended(each.id, each.status, each.context) for each in found]


@asynccontextmanager
async def open_orchestrated(url: str, database: str) -> AsyncIterator[Orchestrated]:
    app, orders = saga.create(url, database)
    async with app.connected():
        yield Orchestrated(orders)


class Choreographed:
    """Without an orchestrator, a tracker follows the events of each order."""

    def __init__(self, bus: EventBus, tracker: SagaTracker) -> None:
        self._bus = bus
        self._tracker = tracker

    async def place(self, order: Order, id: str) -> None:
        await ChoreographySaga(self._bus, id).start(PLACED, order)

    async def ended_count(self) -> int:
        return len(self._tracker.done()) + len(self._tracker.failed())

    async def ended(self) -> list[Ended]:
        found: dict[str, Ended] = {}
        for topic, status in ((SHIPPED, "completed"), (REFUSED, "compensated")):
            async for event in self._bus.read(topic):
                id = event.correlation_id or event.id
                found[id] = Ended(id, status, event.data)
        return list(found.values())

    def state(self, id: str) -> SagaState | None:
        """The state of an order so far; None: no event of it was seen."""
        return self._tracker.get(id)


@asynccontextmanager
async def open_choreographed(url: str) -> AsyncIterator[Choreographed]:
    app = Streams(url)
    bus = choreography.order_bus(app)
    tracker = SagaTracker(bus, done=SHIPPED, failed=REFUSED, keep=MAX_TRACKED)
    async with app, tracker:
        yield Choreographed(bus, tracker)


Shop = Orchestrated | Choreographed


def open_shop(url: str, database: str, *, choreographed: bool) -> AbstractAsyncContextManager[Shop]:
    """A shop on a log."""
    return open_choreographed(url) if choreographed else open_orchestrated(url, database)
