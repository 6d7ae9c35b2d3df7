"""The same order without an orchestrator: stock, bank and carrier react to each other's events.

    order.placed ── reserve ── stock.reserved ── charge ── order.paid ── ship ── order.shipped
                       │                            │                      │
                       │                       order.unpaid ── refund ── order.undeliverable
                       │                            │
                  order.refused ─────────────── release

Each function below belongs to one of the three services; none knows the whole order.
A saga has each step once, so its ID and the step's name are the call's idempotency key.
"""

from __future__ import annotations

from msgspec.structs import replace

from examples.orders.saga import Order
from examples.orders.services import Refused, Services
from streams import Retry, Streams
from streams.patterns import EventBus, SagaEvent, create_handler

PLACED = "order.placed"
SHIPPED = "order.shipped"
REFUSED = "order.refused"
"""The topics of the two ends are SHIPPED and REFUSED."""

RETRY = Retry(attempts=5, delay=0.2, never=(Refused,))
"""A call to a busy service is retried; a refusal is final."""


def order_bus(app: Streams) -> EventBus:
    """The bus that the three services share."""
    return EventBus(app, "order-events", type=Order, partitions=4)


def create(url: str, database: str) -> tuple[Streams, EventBus]:
    """An app on a log in which all three services take part; each could have an app of its own."""
    services = Services(database)
    app = Streams(url)
    bus = order_bus(app)
    stock(bus, services)
    bank(bus, services)
    carrier(bus, services)
    return app, bus


def stock(bus: EventBus, services: Services) -> None:
    """A piece is reserved for an order, and released when it is not paid."""

    def reserve(heard: SagaEvent) -> None:
        services.reserve(f"{heard.saga_id}/reserve", heard.data.sku)

    def release(heard: SagaEvent) -> None:
        services.release(f"{heard.saga_id}/release", heard.data.sku)

    create_handler(bus, PLACED, reserve, "stock.reserved", REFUSED, retry=RETRY)
    create_handler(bus, "order.unpaid", release, REFUSED, None)


def bank(bus: EventBus, services: Services) -> None:
    """An order is charged when its piece is reserved, and refunded when it cannot be delivered."""

    def charge(heard: SagaEvent) -> Order:
        order: Order = heard.data
        receipt = services.charge(f"{heard.saga_id}/charge", order.customer, order.cents)
        return replace(order, receipt=receipt)

    def refund(heard: SagaEvent) -> None:
        order: Order = heard.data
        services.refund(f"{heard.saga_id}/refund", order.customer, order.cents)

    create_handler(bus, "stock.reserved", charge, "order.paid", "order.unpaid", retry=RETRY)
    create_handler(bus, "order.undeliverable", refund, "order.unpaid", None)


def carrier(bus: EventBus, services: Services) -> None:
    """A parcel is sent when its order is paid."""

    def ship(heard: SagaEvent) -> Order:
        order: Order = heard.data
        parcel = services.ship(f"{heard.saga_id}/ship", order.customer, order.sku)
        return replace(order, parcel=parcel)

    create_handler(bus, "order.paid", ship, SHIPPED, "order.undeliverable", retry=RETRY)
