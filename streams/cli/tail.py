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

from streams.cli import output
from streams.cli.command_errors import UsageError, print_error
from streams.cli.offset_arguments import OFFSET_HELP, parse_offsets, require_partition
from streams.cli.options import AsJson, Key, Partition, Url, argument_bytes, open_url

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow

POLL_INTERVAL = 0.2
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
        typer.Option("--from", metavar="PLACE", help=f"Everything from there on: {OFFSET_HELP}."),
    ] = None,
    partition: Partition = None,
    key: Key = None,
    url: Url = None,
    json: AsJson = False,
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
    from streams.log.range_reader import RangeReader
    from streams.topic_reader import resolve_ranges

    offsets = None if start is None else parse_offsets(start, "--from", topic)
    if follow and offsets is not None and number is not None:
        raise UsageError("--from, -n and --follow: leave one of them out")
    line_count = 10 if number is None else number
    key_bytes = None if key is None else argument_bytes(key)
    with open_url(url, "ro") as log:
        printer = _MessagePrinter(log, json=json)
        now = time.time()
        require_partition(offsets, "--from", partition, log.topic(topic).partitions)
        # With a key, how far back its last messages are is not known.
        default_start = "earliest" if key_bytes is not None else -line_count
        if offsets is None and line_count == 0:
            offsets = "latest"
        offset_ranges = resolve_ranges(
            log,
            topic,
            default_start if offsets is None else offsets,
            "latest",
            partition=partition,
            now=now,
        )
        rows = RangeReader(log, topic, offset_ranges, key=key_bytes)
        try:
            if offsets is None:
                printer.print_rows(deque(rows, maxlen=line_count))
            else:
                printer.print_rows(islice(rows, number))
        finally:
            rows.close()
        if follow:
            _follow(
                log, topic, {p: end for p, (_, end) in offset_ranges.items()}, key_bytes, printer
            )


def _follow(
    log: Log, topic: str, ends: dict[int, int], key: bytes | None, printer: _MessagePrinter
) -> None:
    from streams.errors import Unavailable
    from streams.log.range_reader import OffsetRange, RangeReader

    reachable = True
    while True:
        try:
            offset_ranges = {
                p: OffsetRange(at, log.watermarks(topic, p)[1]) for p, at in ends.items()
            }
            rows = RangeReader(log, topic, offset_ranges, key=key)
            try:
                for row in rows:
                    printer.print_row(row)
                    ends[row.batch.partition] = row.position.offset + 1
            finally:
                rows.close()
            ends.update({p: max(ends[p], end) for p, (_, end) in offset_ranges.items()})
        except Unavailable as error:
            if reachable:
                print_error(f"waiting for the log: {error}")
            reachable = False
        else:
            reachable = True
        printer.flush()
        time.sleep(POLL_INTERVAL)


class _MessagePrinter:
    """Messages on standard output."""

    def __init__(self, log: Log, *, json: bool) -> None:
        self._log = log
        self._json = json
        self._colour = not json and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def print_rows(self, rows: Iterable[LogRow]) -> None:
        """Print these."""
        for row in rows:
            self.print_row(row)
        self.flush()

    def print_row(self, row: LogRow) -> None:
        """Print one."""
        log, batch, index = self._log, row.batch, row.index
        if self._json:
            output.write_bytes(output.json_line(log, batch, index))
            return
        where = output.position_text(log, batch, index)
        line = output.call_or_report(
            where, lambda: output.message_line(log, batch, index, colour=self._colour)
        )
        if line is not None:
            output.write_bytes(line.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Let whoever reads have it."""
        sys.stdout.buffer.flush()
