"""The saga: reserve, charge, ship; and how each is undone.

This module knows the whole order. The steps are plain functions, because the services block; the
call's idempotency key is passed to the service unchanged.
"""

from __future__ import annotations

import os

import msgspec

from examples.orders.services import Declined, OutOfStock, Services, Undeliverable
from streams import Retry, Streams
from streams.patterns import SagaOrchestrator, SagaStep, StepCall

PRICE = 1200
"""Cents; everything costs the same here."""


class Order(msgspec.Struct):
    """The data of a saga: its input, and the results of its steps."""

    customer: str
    sku: str
    cents: int = PRICE
    receipt: str | None = None
    parcel: str | None = None


def create(url: str, database: str) -> tuple[Streams, SagaOrchestrator[Order]]:
    """An app on a log, and the orchestrator of orders over the services of a file."""
    services = Services(database)
    app = Streams(url)
    orders = SagaOrchestrator(app, "orders", context=Order, partitions=4, concurrency=16)

    def reserve(order: Order, call: StepCall) -> None:
        services.reserve(call.idempotency_key, order.sku)

    def release(order: Order, call: StepCall) -> None:
        services.release(call.idempotency_key, order.sku)

    def charge(order: Order, call: StepCall) -> None:
        order.receipt = services.charge(call.idempotency_key, order.customer, order.cents)

    def refund(order: Order, call: StepCall) -> None:
        services.refund(call.idempotency_key, order.customer, order.cents)

    def ship(order: Order, call: StepCall) -> None:
        order.parcel = services.ship(call.idempotency_key, order.customer, order.sku)

    def patient(*final: type[Exception]) -> Retry:
        """The policy: a call to a busy service is retried; a refusal is final."""
        return Retry(attempts=5, delay=0.2, never=final)

    orders.add_step(SagaStep("reserve", reserve, release, retry=patient(OutOfStock)))
    orders.add_step(SagaStep("charge", charge, refund, retry=patient(Declined)))
    # The last step: any earlier failure is undone, and nothing after it can fail.
    orders.add_step(SagaStep("ship", ship, retry=patient(Undeliverable)))
    return app, orders


URL = os.environ.get("STREAMS_URL", "sqlite:///orders.db")
DATABASE = os.environ.get("ORDERS_DB", "services.db")
