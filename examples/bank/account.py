"""An account: its events, its state, and the decisions on it.

Nothing here depends on a log. A decision is a method that returns the event to be appended, or
raises and nothing is appended. ``evolve`` returns the account's state after an event, and decides
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from msgspec import Struct, field
from msgspec.structs import replace


class Opened(Struct, tag="opened", frozen=True):
    """The account was opened."""

    owner: str


class Deposited(Struct, tag="deposited", frozen=True):
    """Money was paid in over the counter."""

    cents: int


class Withdrawn(Struct, tag="withdrawn", frozen=True):
    """Money was paid out over the counter."""

    cents: int


class Sent(Struct, tag="sent", frozen=True):
    """Money has left this account, and is on its way to another."""

    transfer: str
    to: str
    cents: int


class Received(Struct, tag="received", frozen=True):
    """Money has come from another account."""

    transfer: str
    cents: int


class Arrived(Struct, tag="arrived", frozen=True):
    """The money that was sent is at the other account."""

    transfer: str


class Returned(Struct, tag="returned", frozen=True):
    """The money that was sent could not be received, and is back."""

    transfer: str
    cents: int


class Closed(Struct, tag="closed", frozen=True):
    """The account is closed; its balance was paid out."""

    paid_out: int


AccountEvent = Opened | Deposited | Withdrawn | Sent | Received | Arrived | Returned | Closed


class NoAccount(Exception):
    """No account of that ID was opened."""


class Overdrawn(Exception):
    """The balance is too low."""


class MoneyOnItsWay(Exception):
    """An account cannot be closed while a transfer from it is on its way: it may come back."""


class Account(Struct, frozen=True):
    """The state of an account after its events.

    :param on_its_way: cents of each transfer from here that has not arrived yet.
    """

    owner: str = ""
    cents: int = 0
    on_its_way: Mapping[str, int] = field(default_factory=dict)

    # -- decisions

    def open(self, owner: str, cents: int = 0) -> list[AccountEvent]:
        if self.owner:
            return []  # it is open already
        return [Opened(owner), Deposited(cents)] if cents else [Opened(owner)]

    def withdraw(self, cents: int) -> Withdrawn:
        self._check_cents(cents)
        return Withdrawn(cents)

    def send(self, transfer: str, to: str, cents: int) -> Sent:
        self._check_cents(cents)
        return Sent(transfer, to, cents)

    def receive(self, transfer: str, cents: int) -> Received:
        self._check_open()
        return Received(transfer, cents)

    def note_arrival(self, transfer: str) -> Arrived:
        return Arrived(transfer)

    def take_back(self, transfer: str) -> Returned:
        return Returned(transfer, self.on_its_way[transfer])

    def close(self) -> Closed:
        self._check_open()
        if self.on_its_way:
            raise MoneyOnItsWay(f"{len(self.on_its_way)} transfers of {self.owner}")
        return Closed(self.cents)

    def _check_open(self) -> None:
        if not self.owner:
            raise NoAccount("nobody has opened this account")

    def _check_cents(self, cents: int) -> None:
        if not self.owner or cents > self.cents:
            raise Overdrawn(f"there are {self.cents} cents, and {cents} are wanted")


def evolve(account: Account, event: AccountEvent) -> Account:
    """The account after an event."""
    match event:
        case Opened():
            return replace(account, owner=event.owner)
        case Deposited() | Received():
            return replace(account, cents=account.cents + event.cents)
        case Withdrawn():
            return replace(account, cents=account.cents - event.cents)
        case Sent():
            on_its_way = {**account.on_its_way, event.transfer: event.cents}
            return replace(account, cents=account.cents - event.cents, on_its_way=on_its_way)
        case Arrived():
            return replace(account, on_its_way=_without(account.on_its_way, event.transfer))
        case Returned():
            on_its_way = _without(account.on_its_way, event.transfer)
            return replace(account, cents=account.cents + event.cents, on_its_way=on_its_way)
        case Closed():
            return replace(account, cents=0)
        case _:
            assert_never(event)


def _without(transfers: Mapping[str, int], transfer: str) -> dict[str, int]:
    return {id: cents for id, cents in transfers.items() if id != transfer}
