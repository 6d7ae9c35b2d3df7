"""A plain script: payments booked into balances, exactly once.

    python examples/worker.py run            # handles payments until Ctrl-C
    python examples/worker.py pay ada 250    # publishes one, from anywhere else
    sqlite3 payments.db "SELECT * FROM balances"

The balances are rows of the log's own file. The handler changes them in ``message.transaction``,
which commits them together with the position of the payment: kill the script whenever you like
and no payment counts twice or not at all.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from streams import Message, Reject, Streams, Transaction


class Payment(msgspec.Struct, frozen=True):
    """``cents`` for an account."""

    account: str
    cents: int


app = Streams(os.environ.get("STREAMS_URL", "sqlite:///payments.db"))
payments = app.topic("payments", Payment, key="account", partitions=4)


@app.processor(payments, group="balances", concurrency=4)
def book(payment: Payment, message: Message[Payment, Transaction]) -> None:
    """Add to the account's balance; a plain function, so it runs in worker threads."""
    if payment.cents <= 0:
        raise Reject(f"{payment.cents} cents are no payment")
    execute = message.transaction.execute
    execute("CREATE TABLE IF NOT EXISTS balances (account TEXT PRIMARY KEY, cents INTEGER)")
    execute(
        "INSERT INTO balances VALUES (?1, ?2)"
        " ON CONFLICT (account) DO UPDATE SET cents = cents + ?2",
        (payment.account, payment.cents),
    )


async def pay(payment: Payment) -> None:
    """Publish, and run no handler here."""
    async with app.connected():
        print(await payments.publish(payment))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["run"]:
            app.run()
        case ["pay", account, cents] if cents.lstrip("-").isdigit():
            asyncio.run(pay(Payment(account, int(cents))))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
