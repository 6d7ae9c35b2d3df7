"""``streams tail``: the last messages of a topic, and those that arrive."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Annotated, NamedTuple

from typer import Argument, Option

from streams.cli import output
from streams.cli.app_loading import app_and_topic, load_app
from streams.cli.command_errors import UsageError, print_error
from streams.cli.key_arguments import unescape
from streams.cli.log_queries import await_index
from streams.cli.message_lines import MessageLines, event_reader
from streams.cli.offset_arguments import OFFSET_HELP, parse_offsets, require_partition
from streams.cli.options import (
    AppUrl,
    Escapes,
    Index,
    Json,
    Key,
    Partition,
    argument_bytes,
    open_url,
)

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow, OffsetRanges
    from streams.topic_reader import OffsetSpec

POLL_INTERVAL = 0.2
"""Seconds between polls for new messages."""


def tail(
    first: Annotated[
        str, Argument(metavar="APP|TOPIC", help="Topic, or MODULE:APP followed by it.")
    ],
    second: Annotated[
        str | None, Argument(metavar="TOPIC", help="Topic, if an app comes first.")
    ] = None,
    number: Annotated[
        int | None,
        Option(
            "-n",
            "--lines",
            min=0,
            metavar="N",
            help="The last N messages (default 10); with --from, the first N from there.",
        ),
    ] = None,
    follow: Annotated[
        bool, Option("-f", "--follow", help="Keep printing new messages until Ctrl-C.")
    ] = False,
    start: Annotated[
        str | None,
        Option("--from", metavar="OFFSET", help=f"Print everything from there on: {OFFSET_HELP}."),
    ] = None,
    partition: Partition = None,
    key: Key = None,
    raw: Annotated[
        bool,
        Option("--raw", help="Print all records of an event topic as stored, events or not."),
    ] = False,
    escapes: Escapes = False,
    index: Index = None,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Show the last messages of a topic, and new ones as they arrive.

    The command joins no group and moves no position. Events of an aggregate are
    shown with its ID and their versions; on Kafka, it first finds out which events
    count. With the app that declares the aggregate, events are shown as its code
    reads them today, upcasts included; without it, or with --raw, as stored.

    [bold]Examples[/bold]

      [cyan]streams tail orders[/cyan]
      [cyan]streams tail orders -n 0 -f[/cyan]           only new messages
      [cyan]streams tail orders -f -k customer-42[/cyan]
      [cyan]streams tail orders --from 15m --json | jq .value[/cyan]
      [cyan]streams tail orders --from orders/0/4519 -n 5[/cyan]
      [cyan]streams tail shop:app accounts.events[/cyan]   events as the app reads them
    """
    from streams.topic_reader import resolve_ranges

    target, topic = app_and_topic("tail", first, second)
    key = None if key is None else unescape(key, escapes=escapes)
    wanted = _parse_wanted(topic, start, number, key, raw=raw)
    if follow and start is not None and number is not None:
        raise UsageError("--from, -n and --follow cannot be combined: leave one of them out")
    app = None if target is None else load_app(target, url)
    read = None if raw else event_reader(app, topic)
    with open_url(url, "ro", app, index=index) as log:
        info = log.describe_topic(topic)
        holds_events = info.is_event_topic and not raw
        printer = _MessagePrinter(
            log, MessageLines(log, holds_events=holds_events, read=read), json=json
        )
        require_partition(wanted.start, "--from", partition, info.partitions)
        now = time.time()
        ranges = resolve_ranges(log, topic, wanted.begin, "latest", partition=partition, now=now)
        if holds_events:
            await_index(log, topic)
        _print_wanted(printer, topic, ranges, wanted)
        if follow:
            ends = {p: end for p, (_, end) in ranges.items()}
            _follow(printer, topic, ends, wanted.key, raw=raw)


class _Wanted(NamedTuple):
    """The messages that the options ask for."""

    start: OffsetSpec | Mapping[int, OffsetSpec] | None
    """Where they begin; None: the last ones are wanted."""
    number: int | None
    """The last so many, or the first so many from ``start``; None: all from there."""
    key: bytes | None
    raw: bool

    @property
    def begin(self) -> OffsetSpec | Mapping[int, OffsetSpec]:
        """Where reading begins."""
        if self.start is not None:
            return self.start
        # With a key, it is unknown how far back its last messages are.
        return -(self.number or 0) if self.key is None else "earliest"


def _parse_wanted(
    topic: str, start: str | None, number: int | None, key: str | None, *, raw: bool
) -> _Wanted:
    """:raises UsageError: ``--from`` is not an offset."""
    offsets = None if start is None else parse_offsets(start, "--from", topic)
    key_bytes = None if key is None else argument_bytes(key)
    if offsets is None and number == 0:
        return _Wanted("latest", 0, key_bytes, raw)
    return _Wanted(offsets, 10 if offsets is None and number is None else number, key_bytes, raw)


def _print_wanted(
    printer: _MessagePrinter, topic: str, ranges: OffsetRanges, wanted: _Wanted
) -> None:
    """Print the messages of the ranges that are wanted."""
    from streams.log.range_reader import RangeReader

    log, number = printer.log, wanted.number
    if wanted.start is None and wanted.key is None:
        printer.print_rows(_last_messages(log, topic, ranges, number or 0, raw=wanted.raw))
        return
    with closing(RangeReader(log, topic, ranges, key=wanted.key, raw=wanted.raw)) as rows:
        is_last = wanted.start is None
        printer.print_rows(deque(rows, maxlen=number) if is_last else islice(rows, number))


def _last_messages(
    log: Log, topic: str, ranges: OffsetRanges, count: int, *, raw: bool
) -> list[LogRow]:
    """The last messages: how far back they are is unknown, as not every record of an
    event topic is an event, and on Kafka not every offset is a message's.

    :param ranges: the last offsets, as many in each partition.
    """
    from streams.log.range_reader import OffsetRange, RangeReader

    looked_at = dict.fromkeys(ranges, count)
    while True:
        found: deque[LogRow] = deque(maxlen=count)
        messages = Counter[int]()
        with closing(RangeReader(log, topic, ranges, raw=raw)) as rows:
            for row in rows:
                found.append(row)
                messages[row.batch.partition] += 1
        further_back = {}
        for number, (start, end) in ranges.items():
            if messages[number] >= count:
                continue
            looked_at[number] *= 4
            earlier = log.offset_before(topic, number, end, looked_at[number])
            if earlier < start:
                further_back[number] = OffsetRange(earlier, end)
        if not further_back:
            return list(found)
        ranges = {**ranges, **further_back}


def _follow(
    printer: _MessagePrinter, topic: str, ends: dict[int, int], key: bytes | None, *, raw: bool
) -> None:
    from streams.errors import Unavailable
    from streams.log.range_reader import OffsetRange, RangeReader

    log, reachable = printer.log, True
    while True:
        try:
            ranges = {p: OffsetRange(at, log.watermarks(topic, p)[1]) for p, at in ends.items()}
            with closing(RangeReader(log, topic, ranges, key=key, raw=raw)) as rows:
                for row in rows:
                    printer.print_row(row)
                    ends[row.batch.partition] = row.position.offset + 1
            ends.update({p: max(ends[p], end) for p, (_, end) in ranges.items()})
        except Unavailable as error:
            if reachable:
                print_error(f"waiting for the log: {error}")
            reachable = False
        else:
            reachable = True
        printer.flush()
        time.sleep(POLL_INTERVAL)


class _MessagePrinter:
    """Prints messages on standard output."""

    def __init__(self, log: Log, lines: MessageLines, *, json: bool) -> None:
        self.log = log
        self._lines = lines
        self._json = json
        self._colour = not json and sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def print_rows(self, rows: Iterable[LogRow]) -> None:
        for row in rows:
            self.print_row(row)
        self.flush()

    def print_row(self, row: LogRow) -> None:
        lines = self._lines
        if self._json:
            output.write_bytes(lines.json(row.batch, row.index))
        else:
            output.write_bytes(lines.text(row.batch, row.index, colour=self._colour))

    def flush(self) -> None:
        sys.stdout.buffer.flush()
