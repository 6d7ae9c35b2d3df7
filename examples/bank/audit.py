"""The bank's sums, computed again from its events alone, and the errors in them.

Nothing here uses ``evolve`` or a state: the events are added up as by an accountant who has never
seen the code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from examples.bank.account import (
    AccountEvent,
    Arrived,
    Closed,
    Deposited,
    Received,
    Returned,
    Sent,
    Withdrawn,
)
from streams import RecordedEvent

History = Sequence[RecordedEvent[AccountEvent]]


class Sums(NamedTuple):
    """The sums of the histories.

    :param paid_in: cents paid in over the counter, into all accounts.
    :param paid_out: the same, paid out.
    :param balances: cents in each account.
    :param on_its_way: cents that have left an account, and have neither arrived nor come back.
    :param received: transfers whose money has arrived.
    :param has_gaps: whether an account's versions are not 1, 2, 3 and so on.
    """

    events: int
    paid_in: int
    paid_out: int
    balances: Mapping[str, int]
    on_its_way: int
    received: int
    has_gaps: bool
    errors: list[str]

    @property
    def money_after(self) -> int:
        """All money that was ever paid in, wherever it is now."""
        return self.paid_out + sum(self.balances.values()) + self.on_its_way


def audit(histories: Mapping[str, History]) -> Sums:
    """Go through the histories of all accounts."""
    errors: list[str] = []
    has_gaps = False
    held: Counter[str] = Counter()
    paid_in = paid_out = events = 0
    transfers: dict[str, list[tuple[str, AccountEvent]]] = {}
    for id, history in histories.items():
        versions = [each.version for each in history]
        if versions != list(range(1, len(history) + 1)):
            errors.append(f"{id}: its versions are {versions}")
            has_gaps = True
        for each in history:
            events += 1
            event = each.event
            match event:
                case Deposited():
                    paid_in += event.cents
                    held[id] += event.cents
                case Withdrawn():
                    paid_out += event.cents
                    held[id] -= event.cents
                case Closed():
                    paid_out += event.paid_out
                    held[id] -= event.paid_out
                case Sent():
                    held[id] -= event.cents
                case Received() | Returned():
                    held[id] += event.cents
                case _:
                    pass
            if isinstance(event, (Sent, Received, Arrived, Returned)):
                transfers.setdefault(event.transfer, []).append((id, event))
            if held[id] < 0:
                errors.append(f"{id}: {held[id]} cents at version {each.version}")
    on_its_way = 0
    for transfer, parts in transfers.items():
        found, cents = _check_transfer(transfer, parts)
        errors += found
        on_its_way += cents
    received = sum(isinstance(event, Received) for each in transfers.values() for _, event in each)
    return Sums(events, paid_in, paid_out, dict(held), on_its_way, received, has_gaps, errors)


def _check_transfer(
    transfer: str, parts: Sequence[tuple[str, AccountEvent]]
) -> tuple[list[str], int]:
    """The errors of a transfer, and its cents that are on their way."""
    errors = []
    counts = Counter(type(event) for _, event in parts)
    errors += [
        f"{transfer}: {kind.__name__} {count} times" for kind, count in counts.items() if count > 1
    ]
    sent = [event for _, event in parts if isinstance(event, Sent)]
    came = [(id, event) for id, event in parts if isinstance(event, (Received, Returned))]
    if len(came) > 1:
        errors.append(f"{transfer}: its money came to {' and '.join(id for id, _ in came)}")
    if came and not sent:
        errors.append(f"{transfer}: its money came from nowhere")
    if sent and came and came[0][1].cents != sent[0].cents:
        errors.append(f"{transfer}: {sent[0].cents} cents were sent, {came[0][1].cents} came")
    return errors, sent[0].cents if sent and not came else 0
