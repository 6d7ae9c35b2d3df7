"""The service: events, the processor, and the web around them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, Response

from examples.service.store import Store
from streams import Message, Reject, Retry, Streams


class Ordered(msgspec.Struct, frozen=True):
    """Somebody wants ``quantity`` pieces of a SKU."""

    order: str
    sku: str
    quantity: int


class Decided(msgspec.Struct, frozen=True):
    """Whether they were reserved."""

    order: str
    reserved: bool


def create(url: str | None = None, database: str = "stock.db") -> FastAPI:
    """The service on a log (``STREAMS_URL`` if not given) and a database of its own."""
    store = Store(database)

    @asynccontextmanager
    async def opened(app: Streams) -> AsyncIterator[None]:
        async with store:  # open before the first message, closed after the last handler
            yield

    events = Streams(url or os.environ.get("STREAMS_URL", "sqlite:///service.db"), lifespan=opened)
    orders = events.topic("orders", Ordered, key="sku", partitions=4)
    decisions = events.topic("decisions", Decided, key="order")

    @events.processor(
        orders, group="stock", concurrency=32, to=decisions, timeout=10, retry=Retry(attempts=5)
    )
    async def reserve(order: Ordered, message: Message[Ordered]) -> Decided:
        if order.quantity < 1:
            raise Reject("an order is for one piece at least")
        # At least once: after a crash it may come again, with the ID it had.
        return Decided(order.order, await store.reserve(message.id, order.sku, order.quantity))

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with events:
            yield

    api = FastAPI(title="Orders", lifespan=lifespan)

    @api.post("/stock/{sku}", status_code=204)
    async def fill(sku: str, count: int) -> None:
        await store.fill(sku, count)

    @api.get("/stock/{sku}")
    async def left(sku: str) -> dict[str, int]:
        return {"left": await store.left(sku)}

    @api.post("/orders/{order}", status_code=202)
    async def place(order: str, sku: str, quantity: int) -> dict[str, str]:
        # The order's number is the message ID: a client that repeats its request orders once.
        position = await orders.publish(Ordered(order, sku, quantity), id=order)
        return {"position": str(position)}

    @api.get("/orders/{order}")
    async def decided(order: str) -> dict[str, bool | None]:
        async with decisions.read(key=order) as reading:
            async for message in reading:
                return {"reserved": message.value.reserved}
        return {"reserved": None}

    @api.get("/healthz")
    async def healthz(response: Response) -> dict[str, bool]:
        ok = events.health().ok
        response.status_code = 200 if ok else 503
        return {"ok": ok}

    @api.get("/stats")
    async def stats() -> dict[str, int]:
        figures = events.stats().processors["reserve"]
        return {"handled": figures.handled, "dead_letters": figures.dead_letters}

    return api
