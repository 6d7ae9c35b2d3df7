"""Aggregates under test: the harness, a clock in the test's hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from streams import Message, Streams
from streams.config import Retry
from streams.errors import NotRunning
from streams.eventsourcing import Aggregate, Loaded, Snapshot
from streams.testing import Clock, harness
from tests.eventsourcing.bank import Account, AccountEvent, Deposited, accounts, deposit

pytestmark = pytest.mark.anyio


class Shop:
    """Orders, a handler that pays them into accounts, and a handler of what happens there."""

    def __init__(self) -> None:
        self.app = Streams("kafka://nowhere:1")
        self.bank: Aggregate[Any, Account] = accounts(self.app, snapshot=Snapshot(every=2))
        self.orders = self.app.topic("orders", int)
        self.attempts: list[int] = []
        self.seen: list[int] = []

        @self.app.processor(self.orders, group="pay", retry=Retry(attempts=3, delay=60))
        async def pay(cents: int, message: Message[int]) -> None:
            self.attempts.append(message.attempt)
            await self.bank.decide("shop", deposit, cents)
            if message.attempt < 3:
                raise ConnectionError("after the decision")

        @self.app.processor(self.bank.events, group="see")
        def see(event: AccountEvent) -> None:
            if isinstance(event, Deposited):
                self.seen.append(event.cents)


async def test_a_handlers_decisions_and_events_are_settled_with_everything_else() -> None:
    shop = Shop()
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    async with harness(shop.app, clock=Clock(start)) as h:
        await shop.orders.publish(5)
        await h.settled()
        assert (shop.attempts, shop.seen) == ([1], [5])
        for _ in range(2):
            h.clock.advance(timedelta(hours=1))
            await h.settled()
        assert (shop.attempts, shop.seen) == ([1, 2, 3], [5])
        await shop.bank.decide("shop", deposit, 7)
        await h.settled()
        assert shop.seen == [5, 7]
        stored = await h.messages(shop.bank.events)
        assert [each.value for each in stored] == [Deposited(5), Deposited(7)]
        assert [each.timestamp for each in stored] == [start, start + timedelta(hours=2)]
        times = [each.time async for each in shop.bank.read("shop")]
        assert times == [each.timestamp for each in stored]
        assert await shop.bank.load("shop", at=start + timedelta(hours=1)) == Loaded(
            Account("", 5), 1
        )


async def test_each_harness_begins_with_nothing() -> None:
    shop = Shop()
    for _ in range(2):
        async with harness(shop.app) as h:
            assert await shop.bank.load("shop") == Loaded(Account(), 0)
            done = await shop.bank.decide("shop", deposit, 1)
            assert (done.version, shop.bank.stats().decisions) == (1, 1)
            await h.settled()
    with pytest.raises(NotRunning):
        await shop.bank.load("shop")


async def test_an_event_that_a_processor_cannot_handle_is_among_its_dead_letters() -> None:
    app = Streams("memory://unused")
    bank = accounts(app)

    @app.processor(bank.events, group="see", retry=Retry(attempts=1))
    def see(event: AccountEvent) -> None:
        raise ValueError("no")

    async with harness(app) as h:
        await bank.decide("a", deposit, 1)
        await h.settled()
        (letter,) = await h.dead(bank.events, group="see")
        assert letter.key == "a"
        assert letter.headers["__streams.errors.message"] == "no"
