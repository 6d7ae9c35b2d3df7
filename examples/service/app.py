"""The service: events, the processor, and the web endpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import NAMESPACE_URL, uuid5

import msgspec
from fastapi import FastAPI, Header, HTTPException
from starlette.routing import Route

from examples.service.store import Store
from streams import HealthEndpoint, Message, Reject, Retry, Streams, exit_on_failure
from streams.patterns import (
    ConsumerConfig,
    IdempotencyStore,
    IdempotentProcessor,
    KeyReused,
    MessageConsumer,
    MessageQueue,
    QueueMessage,
)
from streams.web import Dashboard, Passwords

logger = logging.getLogger("orders")


class Ordered(msgspec.Struct, frozen=True):
    """A customer orders ``quantity`` pieces of a SKU."""

    order: str
    sku: str
    quantity: int


class Decided(msgspec.Struct, frozen=True):
    """Whether the pieces were reserved."""

    order: str
    reserved: bool


def create(
    url: str | None = None, database: str = "stock.db", claims: str = "sqlite:///claims.db"
) -> FastAPI:
    """The service on a log (``STREAMS_URL`` if not given) and a database of its own.

    :param claims: the store of answers by idempotency key. Use Redis if several machines
        serve it.
    """
    store = Store(database)
    answers = IdempotencyStore(claims)
    once = IdempotentProcessor(answers, ttl=86_400, type=dict[str, str])

    @asynccontextmanager
    async def opened(app: Streams) -> AsyncIterator[None]:
        async with store, answers:  # open before the first message, closed after the last handler
            yield

    events = Streams(url or os.environ.get("STREAMS_URL", "sqlite:///service.db"), lifespan=opened)
    orders = events.topic("orders", Ordered, key="sku", partitions=4)
    decisions = events.topic("decisions", Decided, key="order")
    mails = MessageQueue(events, partitions=4)
    mails.declare("mails", Decided)
    mailer = MessageConsumer(mails, ConsumerConfig(concurrency=4, max_retries=8))

    @events.processor(
        orders, group="stock", concurrency=32, to=decisions, timeout=10, retry=Retry(attempts=5)
    )
    async def reserve(order: Ordered, message: Message[Ordered]) -> Decided:
        if order.quantity < 1:
            raise Reject("an order is for one piece at least")
        # At least once: after a crash the message may come again, with the same ID.
        reserved = await store.reserve(message.id, order.sku, order.quantity)
        decision = Decided(order.order, reserved)
        await mails.publish("mails", decision, id=message.id)
        return decision

    async def mail(message: QueueMessage[Decided]) -> None:
        logger.info("the customer would get a mail about %s", message.data)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with exit_on_failure(events):
            await mailer.start("mails", mail)
            yield

    healthz = Route("/healthz", HealthEndpoint(events))
    api = FastAPI(title="Orders", lifespan=lifespan, routes=[healthz])

    # The dashboard, for users in STREAMS_WEB_PASSWORDS only; without that variable there is no
    # dashboard. Over TLS, or on this machine.
    operators = Passwords.from_environment("all")
    if operators is not None:
        api.mount("/ops", Dashboard(events, access=operators))

    @api.post("/stock/{sku}", status_code=204)
    async def fill(sku: str, count: int) -> None:
        await store.fill(sku, count)

    @api.get("/stock/{sku}")
    async def left(sku: str) -> dict[str, int]:
        return {"left": await store.left(sku)}

    @api.post("/orders", status_code=202)
    async def place(
        sku: str, quantity: int, idempotency_key: Annotated[str, Header(max_length=100)]
    ) -> dict[str, str]:
        order = str(uuid5(NAMESPACE_URL, idempotency_key))

        async def publish() -> dict[str, str]:
            # If it is killed here and called again: the same message ID makes it one order.
            position = await orders.publish(Ordered(order, sku, quantity), id=order)
            return {"order": order, "position": str(position)}

        try:
            return await once.process(f"order:{order}", publish, fingerprint=[sku, quantity])
        except KeyReused:
            raise HTTPException(422, "this key was used for another order") from None

    @api.get("/orders/{order}")
    async def decided(order: str) -> dict[str, bool | None]:
        async with decisions.read(key=order) as reading:
            async for message in reading:
                return {"reserved": message.value.reserved}
        return {"reserved": None}

    @api.get("/stats")
    async def stats() -> dict[str, dict[str, int]]:
        found = events.stats().processors
        return {
            name: {"handled": found[name].handled, "dead_letters": found[name].dead_letters}
            for name in ("reserve", "mail")
        }

    return api
