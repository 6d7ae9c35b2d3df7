"""Run the example; see ``python -m examples.shop --help``."""

from __future__ import annotations

import argparse
import logging
import sys
from tempfile import TemporaryDirectory

from examples.shop.demo import DemoError, run
from streams.errors import StreamsError


def main() -> int:
    """Run the example; returns 0; 1 if the books do not balance; 2 if it could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.shop",
        description="Orders while the service and its workers are killed; then the books.",
    )
    parser.add_argument("--url", help="the log (a SQLite file that is made anew)")
    parser.add_argument("--database", metavar="DSN", help="an empty PostgreSQL (a SQLite file)")
    parser.add_argument("--orders", type=int, default=300, metavar="N", help="how many (300)")
    parser.add_argument("--kills", type=int, default=2, metavar="N", help="of each process (2)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all choices (1)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if arguments.orders < 20 or not 0 <= arguments.kills <= arguments.orders // 4:
        parser.error("--orders: at least 20, and --kills: a fourth of them at most")
    with TemporaryDirectory() as folder:
        url = arguments.url or f"sqlite:///{folder}/log.db"
        database = arguments.database or f"sqlite:///{folder}/shop.db"
        try:
            found = run(url, database, arguments.orders, arguments.kills, arguments.seed, print)
        except (DemoError, StreamsError) as error:
            print(f"shop: {error}", file=sys.stderr)
            return 2
    print(
        f"pieces placed {found.placed:,}, out of the stock {found.taken:,}, shipped "
        f"{found.shipped:,}, billed {found.billed:,}; orders shipped or billed twice: {found.twice}"
    )
    print("the books are equal" if found.are_equal else "THE BOOKS ARE NOT EQUAL")
    return 0 if found.are_equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
