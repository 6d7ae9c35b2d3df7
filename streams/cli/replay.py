"""``streams replay``: a range of a topic again, into a handler, another topic, or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import show
from streams.cli.apps import load
from streams.cli.failures import INTERRUPTED, Failed, Misused, report
from streams.cli.options import AppUrl, Json, Key, Partition, given_url, open_url
from streams.cli.places import HELP, one_partition, places, written
from streams.text import close_match, words

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.log.url import Given
    from streams.processor import Processor
    from streams.reading import When
    from streams.replay import ReplayResult

SHOWN = 10
"""Failures told one by one; more are counted."""


class Errors(StrEnum):
    """What to do at a message that fails for good."""

    stop = "stop"
    skip = "skip"


class _Range:
    """What is to be read."""

    def __init__(
        self, topic: str, start: str, end: str, partition: int | None, key: str | None
    ) -> None:
        self.topic = topic
        self.start: When | Mapping[int, When] = places(start, "--start", topic)
        found = places(end, "--end", topic)
        if isinstance(found, Mapping):
            if len(found) > 1:
                raise Misused(f"--end {end!r}: one place; {HELP}")
            ((number, found),) = found.items()
            if partition not in (None, number):
                raise Misused(f"--end {end!r}: not a place in partition {partition}")
            partition = number
            if isinstance(self.start, Mapping):
                if set(self.start) != {number}:
                    raise Misused(f"--end {end!r}: --start names another partition")
                partition, self.start = number, self.start[number]
        self.end: When = found
        self.partition = partition
        self.key = None if key is None else key.encode("utf-8", "surrogateescape")

    def check(self, log: Log) -> None:
        """:raises Misused: an offset, and not said of which partition."""
        count = log.topic(self.topic).partitions
        one_partition(self.start, "--start", self.partition, count)
        if not isinstance(self.start, Mapping):
            one_partition(self.end, "--end", self.partition, count)


def replay(
    first: Annotated[
        str, typer.Argument(metavar="APP|TOPIC", help="The topic, or MODULE:APP before it.")
    ],
    second: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="The topic, behind an app.")
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="PROCESSOR", help="Run its handler over it.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TOPIC", help="Write it to another topic.")
    ] = None,
    start: Annotated[
        str, typer.Option("--start", "-s", metavar="PLACE", help=f"Where to begin: {HELP}.")
    ] = "earliest",
    end: Annotated[
        str, typer.Option("--end", "-e", metavar="PLACE", help="Where to end, before that place.")
    ] = "latest",
    partition: Partition = None,
    key: Key = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="Messages a second, at most."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", min=0, metavar="N", help="Message IDs remembered; 0: none."),
    ] = None,
    errors: Annotated[
        Errors, typer.Option("--errors", help="At a message that fails for good.")
    ] = Errors.stop,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Read a range of a topic again, moving nobody.

    Messages are printed as JSON lines, unless they go somewhere:

      [cyan]--into PROCESSOR[/cyan] runs its handler as it is declared (retries,
      concurrency, batches, filter; the dedup window is the replay's own).
      What it returns is not published, and nothing becomes a dead letter.

      [cyan]--to TOPIC[/cyan] writes them as they stand: bytes, key, headers and ID.

    No group is joined. To let a group itself go over a topic again, with all
    that it writes, see [cyan]streams reset[/cyan].

    [bold]Examples[/bold]

      [cyan]streams replay orders --start 2h | jq .value[/cyan]
      [cyan]streams replay orders -k customer-42[/cyan]          one key's history
      [cyan]streams replay shop:app orders --into totals[/cyan]
      [cyan]streams replay orders --to orders-test --rate 100 --start -5000[/cyan]
      [cyan]streams replay orders --start 0/1041,1/998[/cyan]    partition 0 from 1041...
    """
    if second is None and ":" in first:
        raise Misused(f"{first}: which of its topics? streams replay {first} TOPIC")
    target, topic = (None, first) if second is None else (first, second)
    if into is not None and to is not None:
        raise Misused("--into and --to: give one of them")
    if into is not None and target is None:
        raise Misused(f"--into {into}: of which app? Write MODULE:APP before {topic}")
    if rate is not None and not 0 < rate < float("inf"):
        raise Misused(f"--rate {rate:g}: messages a second, more than 0")
    found = _Range(topic, start, end, partition, key)
    app = None if target is None else load(target, url)
    given = given_url(url) if app is None else app.given_url
    if into is None and to is None:
        _print(found, given, rate)
        return
    _run(app, found, given, into=into, to=to, rate=rate, window=window, errors=errors, json=json)


def _print(found: _Range, given: Given, rate: float | None) -> None:
    """The range as JSON lines."""
    import sys

    from streams.reading import ranges
    from streams.replay.copying import Rows
    from streams.replay.pace import Pace
    from streams.replay.result import total

    with ExitStack() as stack:
        log = stack.enter_context(open_url(given, "ro"))
        found.check(log)
        spans = ranges(
            log, found.topic, found.start, found.end, partition=found.partition, now=time.time()
        )
        rows = Rows(log, found.topic, spans, key=found.key)
        stack.callback(rows.close)
        pace = Pace(rate)
        quiet = sys.stdout.isatty()  # the lines themselves are what a person sees
        bar = stack.enter_context(
            show.Bar(f"reading {found.topic}", total(log, found.topic, spans), quiet=quiet)
        )
        while True:
            while (room := pace.room(1_000)) <= 0:
                time.sleep(pace.delay())
            chunk = rows.chunk(room)
            if not chunk:
                break
            for row in chunk:
                show.write(show.json_line(log, row.batch, row.index))
            sys.stdout.buffer.flush()
            pace.spend(len(chunk))
            bar.at(rows.scanned)


def _run(
    app: Streams | None,
    found: _Range,
    given: Given,
    *,
    into: str | None,
    to: str | None,
    rate: float | None,
    window: int | None,
    errors: Errors,
    json: bool,
) -> None:
    """The range into a handler or a topic, and what came of it."""
    import asyncio

    from streams.app import Streams, loop_factory
    from streams.cli.logs import warnings
    from streams.config import Dedup
    from streams.replay import ReplayFailed, ReplayResult
    from streams.replay import replay as replay_range

    if app is None:
        app = Streams(given.url)
    app._mode = "rw"  # what is not there cannot be replayed
    warnings()
    if not json:
        show.note(f"replaying {found.topic} on {given}")
    last = ReplayResult(None)
    began = time.monotonic()

    async def go(app: Streams) -> ReplayResult:
        async with app.connected():
            target = to if into is None else _processor(app, into)
            await asyncio.to_thread(found.check, app.log)

            def seen(result: ReplayResult) -> None:
                nonlocal last
                last = result
                bar.at(result.scanned, result.total)

            try:
                return await replay_range(
                    app,
                    found.topic,
                    target or "",
                    start=found.start,
                    end=found.end,
                    partition=found.partition,
                    key=found.key,
                    rate=rate,
                    dedup=None if window is None else Dedup(window=window),
                    errors=errors.value,
                    progress=seen,
                )
            except ReplayFailed as failed:
                result = failed.result
                raise Failed(
                    f"stopped at {failed.failure}; {_said(result, began)}; go on with --start "
                    f"{written(app.log, result.positions)}, or pass such messages over with "
                    "--errors skip"
                ) from failed
            except asyncio.CancelledError:
                if last.positions:
                    where = written(app.log, last.positions)
                    report(f"interrupted; {_said(last, began)}; go on with --start {where}")
                raise

    with show.Bar(f"replaying {found.topic}") as bar:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                result = runner.run(go(app))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    for failure in result.failures[:SHOWN]:
        report(f"passed over {failure}")
    if json:
        show.print_json(_summary(result, time.monotonic() - began))
    else:
        show.note(_said(result, began))


def _processor(app: Streams, name: str) -> Processor[..., Any]:
    for processor in app.processors:
        if processor.name == name:
            if processor.options.to is not None:
                show.note(f"what {name} returns is not published to {processor.options.to.name}")
            return processor
    names = [each.name for each in app.processors]
    meant = close_match(name, names)
    hint = "" if meant is None else f"did you mean {meant!r}? "
    known = ", ".join(names) or "none"
    raise Failed(f"--into {name}: the app has no such processor; {hint}it has: {known}")


def _said(result: ReplayResult, began: float) -> str:
    seconds = time.monotonic() - began
    parts = [f"{result.handled:,} done"]
    if result.duplicates:
        parts.append(show.number(result.duplicates, "duplicate"))
    if result.filtered:
        parts.append(f"{result.filtered:,} filtered out")
    if result.failed:
        parts.append(f"{result.failed:,} failed")
    pace = f", {result.read / seconds:,.0f} a second" if seconds >= 1 else ""
    return (
        f"{show.number(result.read, 'message')} read: {', '.join(parts)} in {seconds:.1f} s{pace}"
    )


def _summary(result: ReplayResult, seconds: float) -> dict[str, Any]:
    return {
        "read": result.read,
        "handled": result.handled,
        "duplicates": result.duplicates,
        "filtered": result.filtered,
        "retries": result.retries,
        "failed": result.failed,
        "failures": [
            {
                "topic": each.position.topic,
                "partition": each.position.partition,
                "offset": str(each.position.offset),
                "position": str(each.position),
                "id": show.printable(each.id),
                "attempts": each.attempts,
                "error": f"{type(each.error).__name__}: {words(each.error)}",
            }
            for each in result.failures
        ],
        "seconds": round(seconds, 3),
    }
