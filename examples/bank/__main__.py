"""Run the example; see ``python -m examples.bank --help``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from rich.console import Console

from examples.bank.account import Account, Arrived, Returned
from examples.bank.demo import DemoError, run
from examples.bank.payments import LIMIT, PATIENCE, PREFIX, Approve, Pay, Payments
from examples.bank.payments import create as create_payments
from examples.bank.report import money, show
from examples.bank.transfers import Bank, Transfer, create
from streams.errors import StreamsError
from streams.patterns import SagaFailedError

URL = "sqlite:///bank.db"
"""The default log of all commands except the demo."""


def main() -> int:
    """Run the command line; returns the exit status: 0; 1 if the sums are wrong or a command was
    refused; 2 if it could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.bank",
        description="Accounts and transfers, with workers that are killed.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser("demo", help="make transfers, kill workers, do the sums")
    for each in (parser, demo):
        each.add_argument("--transfers", type=int, default=300, metavar="N", help="how many (300)")
        each.add_argument("--kills", type=int, default=2, metavar="N", help="in the first half (2)")
        each.add_argument("--seed", type=int, default=1, metavar="N", help="of all choices (1)")
    commands.add_parser("work", help="carry transfers out until Ctrl-C")
    opening = commands.add_parser("open", help="open an account")
    opening.add_argument("owner", help="whose; the account's ID, too")
    opening.add_argument("cents", type=int, nargs="?", default=0, help="that are paid in (0)")
    send = commands.add_parser("send", help="make a transfer, and wait for its end")
    send.add_argument("source")
    send.add_argument("target")
    send.add_argument("cents", type=int)
    paying = commands.add_parser("pay", help="pay, and carry payments out until that is over")
    paying.add_argument("source")
    paying.add_argument("target")
    paying.add_argument("cents", type=int)
    approving = commands.add_parser("approve", help="approve a payment that is held")
    approving.add_argument("id")
    looking = commands.add_parser("show", help="what happened to an account")
    looking.add_argument("owner")
    for each in (parser, *commands.choices.values()):
        each.add_argument(
            "--url",
            default=argparse.SUPPRESS,  # it may stand before the command or after it
            help="the log, such as kafka://localhost:9092; if not given, STREAMS_URL, else a file",
        )
    arguments = parser.parse_args()
    if arguments.transfers < 10 or arguments.kills < 0:
        parser.error("--transfers is at least 10, --kills at least 0")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    url: str = getattr(arguments, "url", os.environ.get("STREAMS_URL", ""))
    try:
        if arguments.command in (None, "demo"):
            return _demo(arguments, url)
        if arguments.command in ("pay", "approve"):
            act = _pay if arguments.command == "pay" else _approve
            return asyncio.run(act(create_payments(url or URL), arguments))
        bank = create(url or URL)
        if arguments.command == "work":
            bank.app.run()
            return 0
        action = {"open": _open, "send": _send, "show": _show}[arguments.command]
        return asyncio.run(action(bank, arguments))
    except (DemoError, StreamsError) as error:
        print(f"bank: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _demo(arguments: argparse.Namespace, url: str) -> int:
    console = Console(highlight=False)
    with TemporaryDirectory(prefix="bank-") as folder:
        outcome = asyncio.run(
            run(
                url,
                arguments.transfers,
                arguments.kills,
                arguments.seed,
                Path(folder),
                lambda line: console.print(f"· {line}"),
            )
        )
    show(outcome, console)
    return 1 if outcome.errors else 0


async def _open(bank: Bank, arguments: argparse.Namespace) -> int:
    async with bank.app.connected():
        done = await bank.accounts.decide(
            arguments.owner, Account.open, arguments.owner, arguments.cents
        )
    print(f"{arguments.owner}: {money(done.state.cents)} at version {done.version}")
    return 0


async def _send(bank: Bank, arguments: argparse.Namespace) -> int:
    transfer = Transfer(arguments.source, arguments.target, arguments.cents)
    async with bank.app.connected():
        try:
            await bank.transfers.execute(transfer)
        except SagaFailedError as error:
            print(f"not sent: {error}")
            return 1
    print(f"sent: {money(transfer.cents)} from {transfer.source} to {transfer.target}")
    return 0


async def _pay(bank: Payments, arguments: argparse.Namespace) -> int:
    id = f"{PREFIX}{uuid4().hex[:8]}"
    async with bank.app:
        await bank.requests.publish(Pay(id, arguments.source, arguments.target, arguments.cents))
        if arguments.cents > LIMIT:
            print(f"held for {PATIENCE}; to approve: python -m examples.bank approve {id}")
        while not (await bank.manager.load(id)).is_closed:  # noqa: ASYNC110 - it is in the log
            await asyncio.sleep(0.05)
        kinds = {
            type(each.event)
            async for each in bank.accounts.read(arguments.source)
            if getattr(each.event, "transfer", "") == id
        }
    if Arrived not in kinds:
        print("not paid: it came back" if Returned in kinds else "not paid: a notice was sent")
        return 1
    print(f"paid: {money(arguments.cents)} from {arguments.source} to {arguments.target}")
    return 0


async def _approve(bank: Payments, arguments: argparse.Namespace) -> int:
    async with bank.app.connected():
        await bank.requests.publish(Approve(arguments.id))
    return 0


async def _show(bank: Bank, arguments: argparse.Namespace) -> int:
    async with bank.app.connected():
        async for each in bank.accounts.read(arguments.owner):
            print(f"{each.version:>6}  {each.time:%Y-%m-%d %H:%M:%S}  {each.event}")
        found = await bank.accounts.load(arguments.owner)
    print(f"{arguments.owner}: {money(found.state.cents)} at version {found.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
