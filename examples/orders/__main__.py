"""Run the example; see ``python -m examples.orders --help``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from tempfile import TemporaryDirectory
from uuid import uuid4

from examples.orders import choreography, saga
from examples.orders.demo import run
from examples.orders.saga import DATABASE, URL, Order
from examples.orders.shop import open_choreographed
from streams.errors import StreamsError
from streams.patterns import SagaFailedError


def main() -> int:
    """Run the example; returns 0, or 1 if the books are wrong or an order failed."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.orders",
        description="Orders over three services, all done or all taken back.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser("demo", help="place orders, kill workers, look at the books")
    for each in (parser, demo):
        each.add_argument("--orders", type=int, default=60, metavar="N", help="how many (60)")
        each.add_argument("--kills", type=int, default=4, metavar="N", help="how often (4)")
        each.add_argument("--seed", type=int, default=1, metavar="N", help="of when (1)")
        each.add_argument("--url", help="the log; a temporary SQLite file if not given")
    work = commands.add_parser("work", help="carry orders out until Ctrl-C")
    work.add_argument("--quiet", action="store_true", help="say nothing of orders that failed")
    order = commands.add_parser("order", help="place one order and wait for its end")
    order.add_argument("customer", help="who; for 'far...' nobody delivers")
    order.add_argument("sku", help="what: cup or pot")
    parser.set_defaults(choreographed=False)
    for each in (parser, demo, work, order):
        each.add_argument(
            "--choreographed",
            action="store_true",
            default=argparse.SUPPRESS,  # it may stand before the command or after it
            help="three services that listen to each other, and nobody in charge",
        )
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.ERROR if getattr(arguments, "quiet", False) else logging.WARNING,
        format="%(message)s",
    )
    try:
        if arguments.command == "work":
            if arguments.choreographed:
                choreography.create(URL, DATABASE)[0].run()
            else:
                saga.create(URL, DATABASE)[0].run()
            return 0
        if arguments.command == "order":
            place = _place_choreographed if arguments.choreographed else _place_order
            return asyncio.run(place(Order(arguments.customer, arguments.sku)))
        return _demo(arguments)
    except StreamsError as error:
        print(f"orders: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _place_order(order: Order) -> int:
    app, orders = saga.create(URL, DATABASE)
    async with app.connected():
        try:
            done = await orders.execute(order)
        except SagaFailedError as error:
            print(f"not ordered: {error}")
            return 1
    print(f"ordered: parcel {done.parcel}, {done.receipt}")
    return 0


async def _place_choreographed(order: Order) -> int:
    id = str(uuid4())
    async with open_choreographed(URL) as shop:
        await shop.place(order, id)
        while (state := shop.state(id)) is None or state.status == "open":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if state.status == "failed":
            print(f"not ordered: {state.error}")
            return 1
        done = {each.id: each.order for each in await shop.ended()}[id]
    print(f"ordered: parcel {done.parcel}, {done.receipt}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    with TemporaryDirectory() as folder:
        outcome = asyncio.run(
            run(
                arguments.url or f"sqlite:///{folder}/orders.db",
                f"{folder}/services.db",
                arguments.orders,
                arguments.kills,
                arguments.seed,
                lambda line: print(f"· {line}"),
                choreographed=arguments.choreographed,
            )
        )
    found = ", ".join(f"{count} {status}" for status, count in sorted(outcome.statuses.items()))
    print(f"{found}, with {outcome.kills} kills")
    for error in outcome.errors:
        print(f"WRONG: {error}")
    if not outcome.errors:
        print("the books of stock, bank and carrier agree")
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    sys.exit(main())
