"""The events of all benchmarks: JSON orders of about 200 bytes, 10,000 keys by default.

It imports only msgspec, so that peers can import it in an environment of their own.
"""

from __future__ import annotations

import msgspec

KEYS = 10_000
PARTITIONS = 4


class Order(msgspec.Struct, frozen=True):
    """An order as a shop would publish it."""

    order_id: str
    customer: str
    amount: float
    currency: str
    items: list[str]
    note: str


class Ping(msgspec.Struct, frozen=True):
    """An event of the same size that says when it was sent."""

    sent: int
    """The monotonic clock's nanoseconds, which processes of one machine share."""
    customer: str
    note: str


def order(number: int, keys: int = KEYS) -> Order:
    """The order with a number; always the same. Orders of one key have rising numbers."""
    customer = f"customer-{number * 7919 % keys:07d}"
    items = ["alpha", "beta"]
    return Order(f"order-{number:010d}", customer, number % 1000 / 4, "EUR", items, "x" * 74)


def ping(sent: int, number: int) -> Ping:
    """One of the paced events."""
    return Ping(sent, f"customer-{number * 7919 % KEYS:07d}", "x" * 130)


def customer(value: Order | Ping) -> str:
    """The key."""
    return value.customer


def message_id(number: int) -> str:
    """The ID of an order's message: as long as a UUID, and the same in every log."""
    return f"{number:08x}-0000-7000-8000-{number:012x}"
