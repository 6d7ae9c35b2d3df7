"""Run the demo: ``python -m examples.flights [--data FILE] [--url URL] [--json]``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from rich.console import Console

from examples.flights.demo import DemoError, run
from examples.flights.report import as_json, show
from streams.errors import StreamsError

DATA = Path(__file__).parent / "data" / "flights-2013-01.csv.gz"


def main() -> int:
    """The process's exit status: 0, 1 where a promise was broken, 2 where it could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights",
        description="A month of flights through a log, with a worker killed in the middle.",
    )
    parser.add_argument("--data", type=Path, default=DATA, help="a flights file (CSV, or gzip)")
    parser.add_argument(
        "--url",
        default=os.environ.get("STREAMS_URL", ""),
        help="the log, such as kafka://localhost:9092; a temporary SQLite file if not given",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    console = Console(stderr=arguments.json, highlight=False)
    try:
        outcome = asyncio.run(
            run(arguments.data, arguments.url, lambda line: console.print(f"· {line}"))
        )
    except (DemoError, StreamsError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(as_json(outcome))
    else:
        show(outcome, console)
    return 1 if outcome.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
