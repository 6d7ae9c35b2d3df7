"""Payments: transfers that may have to wait, carried out by a process manager.

A saga takes its steps one after the other. A payment waits for other people: one of more than
:data:`LIMIT` is held until it is approved, and comes back if that does not happen in time.

    pay        the money leaves the sender's account (or the balance is too low: a notice is sent)
    approve    a large one is approved; else a timeout passes, and the money is taken back
    receive    the money is at the receiver's account (or there is none: it is taken back)

``react`` is all of it, and pure. Its commands are stored before they are carried out, and each is
carried out once, whichever process is killed. A letter of the bank is an event, too: a program that
sends letters reads the topic ``NAME-letters.events``, and finds each there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from msgspec import Struct
from msgspec.structs import replace

from examples.bank.account import (
    Account,
    AccountEvent,
    Arrived,
    Closed,
    NoAccount,
    Overdrawn,
    Received,
    Returned,
    Sent,
    evolve,
)
from examples.bank.transfers import PARTITIONS
from streams import (
    Aggregate,
    Cancel,
    Command,
    End,
    ProcessManager,
    Refused,
    Schedule,
    Snapshot,
    Streams,
    Topic,
)

LIMIT = 1_000_00
"""The largest payment that needs no approval, in cents."""

PATIENCE = timedelta(days=1)
"""How long a payment that needs approval is held."""

PREFIX = "pay-"
"""The prefix of the IDs of payments, by which they differ from a saga's transfers."""


class Pay(Struct, tag="pay", frozen=True):
    """A request to pay."""

    id: str
    source: str
    target: str
    cents: int


class Approve(Struct, tag="approve", frozen=True):
    """A large payment was checked and approved."""

    id: str


Request = Pay | Approve


class NotApproved(Struct, tag="not-approved", frozen=True):
    """A payment was not approved in time."""


class Payment(Struct, frozen=True):
    """The state of a payment."""

    id: str = ""
    source: str = ""
    target: str = ""
    cents: int = 0
    is_sent: bool = False
    is_approved: bool = False


class OverdraftNotice(Struct, tag="overdraft-notice", frozen=True):
    """A letter to the owner of an account: its balance was too low."""

    payment: str
    cents: int


class Letters(Struct, frozen=True):
    """The letters to one owner."""

    count: int = 0

    def write_overdraft_notice(self, payment: str, cents: int) -> OverdraftNotice:
        return OverdraftNotice(payment, cents)


def count_letter(letters: Letters, event: OverdraftNotice) -> Letters:
    return Letters(letters.count + 1)


def payment_of(event: Request | AccountEvent) -> str | None:
    """The ID of the payment that a message belongs to."""
    match event:
        case Pay(id) | Approve(id):
            return id
        case Sent(transfer) | Received(transfer) | Arrived(transfer) | Returned(transfer):
            return transfer if transfer.startswith(PREFIX) else None
        case _:
            return None


@dataclass(frozen=True)
class Payments:
    """The objects of the payments in one process.

    :param app: to be entered before the rest is used.
    """

    app: Streams
    accounts: Aggregate[AccountEvent, Account]
    requests: Topic[Request]
    letters: Aggregate[OverdraftNotice, Letters]
    manager: ProcessManager[Payment]


def create(url: str, name: str = "bank") -> Payments:
    """A bank's payments on a log; its accounts are those of its transfers."""
    app = Streams(url)
    accounts: Aggregate[AccountEvent, Account] = Aggregate(
        app, f"{name}-accounts", AccountEvent, Account, evolve,
        partitions=PARTITIONS, final=Closed, snapshot=Snapshot(every=100),
    )  # fmt: skip
    letters: Aggregate[OverdraftNotice, Letters] = Aggregate(
        app, f"{name}-letters", OverdraftNotice, Letters, count_letter, partitions=PARTITIONS
    )
    requests: Topic[Request] = app.topic(
        f"{name}-requests", Request, key="id", partitions=PARTITIONS
    )

    def receive(payment: Payment) -> Command:
        return Command(accounts, payment.target, Account.receive, payment.id, payment.cents)

    def react(
        payment: Payment, event: Request | AccountEvent | NotApproved | Refused
    ) -> tuple[Payment, Sequence[Command | Schedule | Cancel | End]]:
        id, source, cents = payment.id, payment.source, payment.cents
        match event:
            case Pay() if not id:
                begun = Payment(event.id, event.source, event.target, event.cents)
                return begun, [
                    Command(
                        accounts, event.source, Account.send, event.id, event.target, event.cents
                    )
                ]
            case Refused(decision="send"):
                notice = Command(letters, source, Letters.write_overdraft_notice, id, cents)
                return payment, [notice, End()]
            case Sent() if cents <= LIMIT or payment.is_approved:
                return payment, [receive(payment)]
            case Sent():
                return replace(payment, is_sent=True), [Schedule(PATIENCE, NotApproved())]
            case Approve() if payment.is_sent:
                return payment, [Cancel("not-approved"), receive(payment)]
            case Approve():
                return replace(payment, is_approved=True), []
            case Received():
                return payment, [Command(accounts, source, Account.note_arrival, id)]
            case Refused(decision="receive") | NotApproved():
                return payment, [Command(accounts, source, Account.take_back, id)]
            case Arrived() | Returned():
                return payment, [End()]
            case _:
                return payment, []

    manager = ProcessManager(
        app, f"{name}-payments", Payment, react, requests, accounts.events,
        key=payment_of, timeouts=NotApproved, refusals=(Overdrawn, NoAccount),
        partitions=PARTITIONS,
    )  # fmt: skip
    return Payments(app, accounts, requests, letters, manager)
