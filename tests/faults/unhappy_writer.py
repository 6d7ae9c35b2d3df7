"""A process that decides once, and is stopped or killed at the worst moment.

python -m tests.faults.unhappy_writer URL NAME ID HOW

``freeze`` stops itself (SIGSTOP) between decision and append; ``once`` does, too, and does not try
again; ``tear`` kills itself when the log has all but the last record of its append. What it saw and
what became of it is printed as one line of JSON.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from streams import Retry, Streams
from streams.eventsourcing import WrongExpectedVersion
from streams.message import Record
from tests.eventsourcing.bank import Account, AccountEvent, Deposited, accounts
from tests.faults.worker import end_with_parent

CENTS = (1, 2, 3)
"""What it pays in."""


class Told(msgspec.Struct):
    """What it has to tell.

    :param seen: the balance at each call of its decision.
    :param version: of its last event; or, if it was refused, the aggregate's.
    """

    seen: list[int]
    version: int
    refused: bool = False


async def decide(url: str, name: str, id: str, how: str) -> Told:
    app = Streams(url)
    bank = accounts(app, name)
    seen: list[int] = []

    def decision(account: Account) -> list[AccountEvent]:
        seen.append(account.cents)
        if len(seen) == 1 and how in ("freeze", "once"):
            os.kill(os.getpid(), signal.SIGSTOP)
        return [Deposited(each) for each in CENTS]

    if how == "once":
        bank = bank.with_options(retry=Retry(attempts=1))
    async with app.connected():
        try:
            done = await bank.decide(id, decision)
        except WrongExpectedVersion as error:
            return Told(seen, error.actual, refused=True)
        return Told(seen, done.version)


def tear_appends() -> None:
    """Give the log all but the last record of an append, and be killed once it has them."""
    from streams.log.kafka.producer import Writer

    append = Writer.append

    def append_and_die(self: Writer, topic: str, records: Sequence[Record], *rest: Any) -> None:
        append(self, topic, records[:-1], lambda results: os.kill(os.getpid(), signal.SIGKILL))

    Writer.append = append_and_die  # type: ignore[method-assign,assignment]


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    url, name, id, how = sys.argv[1:]
    if how == "tear":
        tear_appends()
    told = asyncio.run(decide(url, name, id, how))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


if __name__ == "__main__":
    main()
