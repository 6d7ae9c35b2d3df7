"""``streams tail``: the last messages of a topic, and those that arrive."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli import show
from streams.cli.failures import Misused, report
from streams.cli.options import Json, Key, Partition, Url, open_url
from streams.cli.places import HELP, one_partition, places

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.replay.copying import Row

LOOK = 0.2
"""Seconds between looks at whether something arrived."""


def tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="What to read.")],
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--lines",
            min=0,
            metavar="N",
            help="So many of the last messages (10); with --from, of the first from there.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what arrives, until Ctrl-C.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="PLACE", help=f"Everything from there on: {HELP}."),
    ] = None,
    partition: Partition = None,
    key: Key = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show the last messages of a topic, and what arrives.

    No group is joined, and no position moves.

    [bold]Examples[/bold]

      [cyan]streams tail orders[/cyan]
      [cyan]streams tail orders -n 0 -f[/cyan]           only what arrives from now on
      [cyan]streams tail orders -f -k customer-42[/cyan]
      [cyan]streams tail orders --from 15m --json | jq .value[/cyan]
      [cyan]streams tail orders --from orders/0/4519 -n 5[/cyan]
    """
    from streams.reading import ranges
    from streams.replay.copying import Rows

    found = None if start is None else places(start, "--from", topic)
    if follow and found is not None and number is not None:
        raise Misused("--from, -n and --follow: leave one of them out")
    last = 10 if number is None else number
    wanted = None if key is None else key.encode("utf-8", "surrogateescape")
    with open_url(url, "ro") as log:
        printer = _Printer(log, json=json)
        now = time.time()
        one_partition(found, "--from", partition, log.topic(topic).partitions)
        # With a key, how far back its last messages are is not known.
        back = "earliest" if wanted is not None else -last
        if found is None and last == 0:
            found = "latest"
        spans = ranges(
            log, topic, back if found is None else found, "latest", partition=partition, now=now
        )
        rows = Rows(log, topic, spans, key=wanted)
        try:
            if found is None:
                printer.rows(deque(rows, maxlen=last))
            else:
                printer.rows(islice(rows, number))
        finally:
            rows.close()
        if follow:
            _follow(log, topic, {p: end for p, (_, end) in spans.items()}, wanted, printer)


def _follow(
    log: Log, topic: str, ends: dict[int, int], key: bytes | None, printer: _Printer
) -> None:
    from streams.errors import Unavailable
    from streams.replay.copying import Rows

    reachable = True
    while True:
        try:
            spans = {p: (at, log.bounds(topic, p)[1]) for p, at in ends.items()}
            rows = Rows(log, topic, spans, key=key)
            try:
                for row in rows:
                    printer.row(row)
                    ends[row.batch.partition] = row.position.offset + 1
            finally:
                rows.close()
            ends.update({p: max(ends[p], end) for p, (_, end) in spans.items()})
        except Unavailable as error:
            if reachable:
                report(f"waiting for the log: {error}")
            reachable = False
        else:
            reachable = True
        printer.flush()
        time.sleep(LOOK)


class _Printer:
    """Messages on standard output."""

    def __init__(self, log: Log, *, json: bool) -> None:
        self._log = log
        self._json = json
        self._colour = not json and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def rows(self, rows: Iterable[Row]) -> None:
        """Print these."""
        for row in rows:
            self.row(row)
        self.flush()

    def row(self, row: Row) -> None:
        """Print one."""
        log, batch, index = self._log, row.batch, row.index
        if self._json:
            show.write(show.json_line(log, batch, index))
            return
        where = f"{batch.topic}/{batch.partition}/{log.show(batch.offsets[index])}"
        line = show.tried(where, lambda: show.message_line(log, batch, index, colour=self._colour))
        if line is not None:
            show.write(line.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Let whoever reads have it."""
        sys.stdout.buffer.flush()
