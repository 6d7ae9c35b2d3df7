"""A shop in which everything that the dashboard shows has happened: what the browser's tests look
at, and what the pictures of the documentation are taken of.

A process that runs the shop is entered like any app; nothing here depends on which log it is.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from streams import (
    Aggregate,
    Cancel,
    Command,
    DeadLetters,
    End,
    Outbox,
    ProcessManager,
    Refused,
    Reject,
    Retry,
    Schedule,
    Streams,
    Topic,
)
from streams.config import Flow
from streams.log.protocol import Committed
from streams.message import Record
from streams.patterns import Delays, SagaOrchestrator, SagaStep

ORDERS = 240
CUSTOMERS = ("amara", "björk", "chidi", "dilek", "elif", "佐藤", "goran", "hanna")
BEYOND = datetime(2090, 1, 1, tzinfo=timezone.utc)


class OrderPlaced(msgspec.Struct, frozen=True):
    """What the shop sells."""

    order: str
    customer: str
    cents: int
    items: list[str]


class Parcel(msgspec.Struct, frozen=True):
    order: str
    weight: float


class Opened(msgspec.Struct, tag="opened", frozen=True):
    owner: str


class Paid(msgspec.Struct, tag="paid", frozen=True):
    cents: int


class Charged(msgspec.Struct, tag="charged", frozen=True):
    cents: int
    order: str


AccountEvent = Opened | Paid | Charged


class Overdrawn(Exception):
    """There is not that much money."""


class Account(msgspec.Struct, frozen=True):
    """An account after its events."""

    owner: str = ""
    cents: int = 0

    def open(self, owner: str, cents: int) -> list[AccountEvent]:
        return [Opened(owner), Paid(cents)]

    def charge(self, cents: int, order: str) -> Charged:
        if cents > self.cents:
            raise Overdrawn(f"there are {self.cents} cents")
        return Charged(cents, order)


def evolve(account: Account, event: AccountEvent) -> Account:
    match event:
        case Opened(owner):
            return Account(owner, account.cents)
        case Paid(cents):
            return Account(account.owner, account.cents + cents)
        case Charged(cents):
            return Account(account.owner, account.cents - cents)


class Balance(msgspec.Struct, frozen=True):
    """What a view keeps of an account."""

    cents: int = 0
    charges: int = 0


class TooLate(msgspec.Struct, tag="too-late", frozen=True):
    pass


class Invoice(msgspec.Struct, frozen=True):
    order: str = ""
    state: str = "new"


class Fulfilment(msgspec.Struct):
    """What a saga carries from step to step."""

    order: str
    customer: str
    receipt: str | None = None


class Declined(Exception):
    """The bank says no."""


@dataclass
class Shop:
    """The app and what is declared on it."""

    app: Streams
    orders: Topic[OrderPlaced]
    parcels: Topic[Parcel]
    reminders: Topic[str]
    delays: Delays
    accounts: Aggregate[AccountEvent, Account]
    fulfilments: SagaOrchestrator[Fulfilment]
    outbox: Outbox
    gate: asyncio.Event
    database: Path
    suffix: str

    async def fill(self) -> None:
        """Let everything happen; returns when it has."""
        for number, customer in enumerate(CUSTOMERS):
            await self.accounts.decide(customer, Account.open, customer.title(), 2_000 * number)
        placed = [
            self.orders.record(
                OrderPlaced(
                    f"o-{number}",
                    CUSTOMERS[number % len(CUSTOMERS)],
                    500 + number * 7,
                    [f"cup-{number % 5}", "tray"][: 1 + number % 2],
                ),
                id=f"o-{number}",
                headers={"source": "web", "trace": f"{number:08x}"},
            )
            for number in range(ORDERS)
        ]
        await self.orders.connection.publisher.publish_many(self.orders.name, placed)
        await self.publish_bytes(b"not JSON \x1b[31m<script>alert(1)</script> \xe4\xbd", "odd")
        await asyncio.to_thread(self._leave_reports_behind)
        await asyncio.to_thread(self._write_rows_that_are_refused)
        for number in range(12):
            when = {"at": BEYOND} if number % 2 else {"delay": 86_400.0 + 3_600 * number}
            await self.delays.publish(
                self.reminders, f"basket {number} is still there", id=f"basket-{number}",
                key=CUSTOMERS[number % 8], **when,
            )  # fmt: skip
        for number in range(20):
            await self.fulfilments.start(
                Fulfilment(f"o-{number}", CUSTOMERS[number % 8]), id=f"saga-{number}"
            )

    async def publish_bytes(self, value: bytes, id: str) -> None:
        """An order that is none."""
        record = Record(value=value, key=b"elif", id=id)
        await self.app.publisher.publish_many(self.orders.name, [record])

    def _write_rows_that_are_refused(self) -> None:
        """What another program has put into the outbox: two rows of a topic that nobody declares,
        which wait, and two that cannot be published, as their headers are none."""
        with closing(sqlite3.connect(self.database, timeout=30)) as connection, connection:
            for number in range(4):
                topic = "invoices-of-old" if number < 2 else self.orders.name
                connection.execute(
                    "INSERT INTO outbox "
                    "(id, aggregatetype, aggregateid, type, payload, messageid, headers) "
                    "VALUES (?, ?, ?, 'invoice', ?, ?, ?)",
                    (
                        f"00000000-0000-4000-8000-{number:012}", topic, f"c-{number}", b"{}",
                        f"i-{number}", None if number < 2 else "traceparent: 00",
                    ),
                )  # fmt: skip

    def _leave_reports_behind(self) -> None:
        """A group that has begun once, and that nobody consumes for now."""
        log = self.app.log
        firsts = {
            partition: Committed(log.watermarks(self.orders.name, partition)[0])
            for partition in range(log.describe_topic(self.orders.name).partitions)
        }
        log.reset_offsets(f"reports{self.suffix}", self.orders.name, firsts)


def build(url: str, folder: Path, suffix: str = "") -> Shop:
    """The shop on a log.

    :param suffix: of its names, where others use the same log.
    """
    outbox_url = f"sqlite:///{folder}/shop.db"

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        await outbox.create_tables()
        yield

    def named(name: str) -> str:
        return name + suffix

    app = Streams(url, lifespan=lifespan)
    quick = Flow(commit=0.05)
    orders = app.topic(named("orders"), OrderPlaced, key="customer", partitions=4)
    parcels = app.topic(named("parcels"), Parcel, key="order", partitions=2)
    reminders = app.topic(named("reminders"), str, partitions=1)
    app.topic(named("invoices"), dict[str, Any], key="order", partitions=1)
    delays = Delays(app, named("delays"))
    outbox = Outbox(app, outbox_url)
    gate = asyncio.Event()

    @app.processor(orders, group=named("billing"), to=parcels, retry=Retry(attempts=2, delay=0.01),
                   concurrency=16, flow=quick)  # fmt: skip
    async def bill(order: OrderPlaced) -> Parcel:
        number = int(order.order.partition("-")[2])
        if number % 24 == 5:
            raise ConnectionError("the bank does not answer")
        if number % 40 == 7:
            raise Reject(f"{order.customer} has no address")
        return Parcel(order.order, order.cents / 100)

    @app.processor(orders, group=named("stock"), dead_letters=DeadLetters(sequenced=True),
                   concurrency=16, flow=quick)  # fmt: skip
    async def reserve(order: OrderPlaced) -> None:
        if order.customer in ("chidi", "佐藤") and order.order.endswith(("2", "3")):
            raise Reject(f"{order.items[0]} is sold out")

    @app.processor(parcels, group=named("shipping"), concurrency=4, flow=quick)
    async def ship(parcel: Parcel) -> None:
        if parcel.order == "o-30":
            await gate.wait()  # what a group waits for

    @app.processor(reminders, group=named("mail"), flow=quick)
    async def remind(text: str) -> None:
        pass

    accounts: Aggregate[AccountEvent, Account] = Aggregate(
        app, named("accounts"), AccountEvent, Account, evolve, partitions=2
    )

    @accounts.view(named("balances"), Balance)
    def balances(balance: Balance | None, event: AccountEvent) -> Balance | None:
        found = balance or Balance()
        match event:
            case Paid(cents):
                return Balance(found.cents + cents, found.charges)
            case Charged(cents):
                return Balance(found.cents - cents, found.charges + 1)
            case _:
                return found

    def react(
        invoice: Invoice, event: Any
    ) -> tuple[Invoice, list[Command | Schedule | Cancel | End]]:
        match event:
            case OrderPlaced(order, customer, cents):
                commands: list[Command | Schedule | Cancel | End] = [
                    Command(accounts, customer, Account.charge, cents, order),
                    Schedule(86_400.0, TooLate()),
                ]
                return Invoice(order, "charged"), commands
            case Refused():
                return Invoice(invoice.order, "refused"), [End()]
            case _:
                return invoice, []

    ProcessManager(
        app, named("invoicing"), Invoice, react, orders,
        key=lambda event: event.order, timeouts=TooLate, refusals=Overdrawn,
        dead_letters=DeadLetters(),
    )  # fmt: skip

    fulfilments = SagaOrchestrator(
        app, named("fulfilment"), context=Fulfilment, partitions=1, concurrency=16
    )

    async def pack(data: Fulfilment) -> None:
        if data.order == "o-3":
            await gate.wait()

    async def unpack(data: Fulfilment) -> None:
        if data.order == "o-9":
            raise RuntimeError("the parcel is nowhere to be found")

    async def charge(data: Fulfilment) -> None:
        if data.customer in ("björk", "elif"):
            raise Declined(f"{data.customer}'s card is declined")
        data.receipt = f"r-{data.order}"

    fulfilments.add_step(SagaStep("pack", pack, unpack, compensation_retry=Retry(attempts=1)))
    fulfilments.add_step(SagaStep("charge", charge))
    return Shop(
        app, orders, parcels, reminders, delays, accounts, fulfilments, outbox, gate,
        folder / "shop.db", suffix,
    )  # fmt: skip
