"""The app: the accounts, and the saga that moves money from one to another.

A transfer takes three steps, each of which is one decision on one account:

    send      at the sender's account: the money leaves it (undone by *take back*)
    receive   at the receiver's account: the money is there
    arrive    at the sender's again: the money is no longer on its way

The process that runs the saga may be killed at any instruction here, and then the current step is
called again by another. Each decision names the step as its *cause*; if an account has an event
of that cause already, it is found and nothing is appended. So money moves once. A refusal is
remembered in the same way (``refusals=``): otherwise a second call, made when there is money,
would succeed, after the saga has acted on the refusal. That an account is closed need not be
remembered: it stays so. (With a new cause each time, a run with more kills creates money.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from msgspec import Struct

from examples.bank.account import Account, AccountEvent, Closed, NoAccount, Overdrawn, evolve
from streams import (
    Aggregate,
    AggregateClosed,
    DecisionRefused,
    Retry,
    SagaOrchestrator,
    SagaStep,
    Snapshot,
    StepCall,
    Streams,
)

PARTITIONS = 4


class Transfer(Struct):
    """The context of the saga."""

    source: str
    target: str
    cents: int


PATIENT = Retry(
    attempts=1_000_000, delay=0.1, cap=5.0, never=(Overdrawn, NoAccount, AggregateClosed)
)
"""The errors that end a transfer; any other is an outage, and waited for."""


@dataclass(frozen=True)
class Bank:
    """The objects of a bank in one process.

    :param app: to be entered before the rest is used.
    """

    app: Streams
    accounts: Aggregate[AccountEvent, Account]
    transfers: SagaOrchestrator[Transfer]


def create(
    url: str,
    name: str = "bank",
    member: str | None = None,
    lifespan: Callable[[Streams], AbstractAsyncContextManager[None]] | None = None,
) -> Bank:
    """A bank on a log.

    :param name: of the bank; its topics are ``NAME-accounts.events`` and ``NAME-transfers.saga``.
    :param member: the name of this process in its group, so that it gets its partitions back
        when it is restarted after a kill.
    :param lifespan: the resources that the process has open while it works.
    """
    app = Streams(url, member=member, lifespan=lifespan)
    accounts: Aggregate[AccountEvent, Account] = Aggregate(
        app, f"{name}-accounts", AccountEvent, Account, evolve,
        partitions=PARTITIONS, final=Closed, snapshot=Snapshot(every=100),
    )  # fmt: skip
    transfers = SagaOrchestrator(
        app, f"{name}-transfers", context=Transfer, partitions=PARTITIONS, concurrency=32
    )

    def caused(call: StepCall) -> Aggregate[AccountEvent, Account]:
        """The accounts, with this step as the cause of decisions: the same in each of its calls."""
        cause = call.idempotency_key
        return accounts.with_options(cause=cause, refusals=(Overdrawn, NoAccount))

    async def send(transfer: Transfer, call: StepCall) -> None:
        source, target, cents = transfer.source, transfer.target, transfer.cents
        try:
            await caused(call).decide(source, Account.send, call.saga_id, target, cents)
        except DecisionRefused as error:
            raise Overdrawn(f"{source} cannot send {cents} cents") from error

    async def take_back(transfer: Transfer, call: StepCall) -> None:
        await caused(call).decide(transfer.source, Account.take_back, call.saga_id)

    async def receive(transfer: Transfer, call: StepCall) -> None:
        target, cents = transfer.target, transfer.cents
        try:
            await caused(call).decide(target, Account.receive, call.saga_id, cents)
        except DecisionRefused as error:
            raise NoAccount(f"nobody has opened an account {target}") from error

    async def arrive(transfer: Transfer, call: StepCall) -> None:
        await caused(call).decide(transfer.source, Account.note_arrival, call.saga_id)

    for step in (
        SagaStep("send", send, take_back, retry=PATIENT, compensation_retry=PATIENT),
        SagaStep("receive", receive, retry=PATIENT),
        SagaStep("arrive", arrive, retry=PATIENT),
    ):
        transfers.add_step(step)
    return Bank(app, accounts, transfers)
