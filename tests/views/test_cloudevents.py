"""Views over topics into which others write CloudEvents in structured mode."""

from __future__ import annotations

import msgspec

from streams import CloudEvents, Streams, View
from streams.message import Record
from tests.views.bank import unique


class Order(msgspec.Struct, frozen=True):
    cents: int


class Sum(msgspec.Struct, frozen=True):
    cents: int = 0


def add(found: Sum | None, order: Order) -> Sum:
    return Sum((found or Sum()).cents + order.cents)


async def test_events_in_structured_mode_are_opened(memory_url: str) -> None:
    """Between others, by their messages' keys and by a key of their own."""
    app = Streams(memory_url, cloudevents=CloudEvents(source="/shop"))
    orders = app.topic(unique(), Order, partitions=1)
    direct = View(app, "direct", Sum, add, orders)
    keyed = View(app, "keyed", Sum, add, orders, key=lambda order: f"of-{order.cents}")
    envelope = {
        "specversion": "1.0", "id": "e-1", "source": "/other", "type": "placed",
        "datacontenttype": "application/json", "data": {"cents": 5},
    }  # fmt: skip
    headers = [("content-type", b"application/cloudevents+json")]
    structured = Record(msgspec.json.encode(envelope), b"a", "e-1", headers, 0)
    async with app:
        await orders.publish(Order(2), key="a")
        answers: list[object] = []
        app.log.append(orders.name, [structured], answers.extend)
        last = await orders.publish(Order(3), key="a")
        assert await direct.get("a", wait_for=last) == Sum(10)
        assert await keyed.get("of-5", wait_for=last) == Sum(5)
        assert await keyed.get("of-3", wait_for=last) == Sum(3)
