"""The events of all benchmarks: JSON orders of about 200 bytes, 10,000 keys."""

from __future__ import annotations

import msgspec

KEYS = 10_000


class Order(msgspec.Struct, frozen=True):
    """An order as a shop would publish it."""

    order_id: str
    customer: str
    amount: float
    currency: str
    items: list[str]
    note: str


def order(number: int) -> Order:
    """The order of a number; always the same."""
    customer = f"customer-{number * 7919 % KEYS:05d}"
    items = ["alpha", "beta"]
    return Order(f"order-{number:08d}", customer, number % 1000 / 4, "EUR", items, "x" * 70)


def customer(value: Order) -> str:
    """The key."""
    return value.customer
