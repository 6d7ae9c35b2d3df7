"""Run the demo: ``python -m examples.flights [--data FILE] [--url URL] [--keep] [--json]``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import sys
import tempfile
from pathlib import Path
from shlex import quote

from rich.console import Console

from examples.flights.demo import DemoError, run
from examples.flights.report import as_json, show
from streams.errors import StreamsError

DATA = Path(__file__).parent / "data" / "flights-2013-01.csv.gz"


def main() -> int:
    """Run the demo; returns 0, 1 if a promise was broken, 2 if it could not run."""
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
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the temporary file, and say how to look at it in a browser",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    if arguments.keep and arguments.url.startswith("memory:"):
        parser.error("--keep: what is in memory ends with the process")
    console = Console(stderr=arguments.json, highlight=False)
    url: str = arguments.url
    if arguments.keep and not url:
        url = f"sqlite:///{tempfile.mkdtemp(prefix='flights-')}/flights.db"
    try:
        outcome = asyncio.run(run(arguments.data, url, lambda line: console.print(f"· {line}")))
    except (DemoError, StreamsError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(as_json(outcome))
    else:
        show(outcome, console)
    if arguments.keep:
        console.print(
            look_at("THE-SAME-URL" if arguments.url else "", url), soft_wrap=True, markup=False
        )
    return 1 if outcome.broken() else 0


def look_at(named: str, url: str) -> str:
    """The commands that show the data that the demo left behind.

    :param named: the log's name to print if the caller has named it, as its URL may hold a
        password; empty: it is ``url``.
    """
    folder = Path(sys.executable).parent
    lines = ["What happened is kept. Look at it in a browser:"]
    if any(importlib.util.find_spec(name) is None for name in ("jinja2", "starlette", "uvicorn")):
        lines.append(f"  {quote(str(folder / 'python'))} -m pip install '.[web]'   (once)")
    lines.append(f"  {quote(str(folder / 'streams'))} web --url {named or quote(url)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
