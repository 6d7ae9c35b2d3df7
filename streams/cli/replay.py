"""``streams replay``: reads a range of a topic again, into a handler, a topic, or as JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.app_loading import app_and_topic, load_app
from streams.cli.command_errors import INTERRUPTED, CommandFailed, UsageError, print_error
from streams.cli.key_arguments import unescape
from streams.cli.log_queries import await_index
from streams.cli.message_lines import MessageLines, event_reader
from streams.cli.offset_arguments import (
    OFFSET_HELP,
    format_positions,
    parse_offsets,
    require_partition,
)
from streams.cli.options import (
    AppUrl,
    Escapes,
    Index,
    Json,
    Key,
    Partition,
    argument_bytes,
    open_url,
    resolve_url,
)
from streams.text import did_you_mean, error_text

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.config import Dedup
    from streams.log.protocol import Log
    from streams.log.range_reader import RangeReader
    from streams.log.url import ChosenUrl
    from streams.processor import Processor
    from streams.replay import ReplayFailed, ReplayResult
    from streams.replay.token_bucket import TokenBucket
    from streams.topic_reader import OffsetSpec

MAX_FAILURES_SHOWN = 10
"""How many failures are shown one by one; further ones are only counted."""


class OnError(StrEnum):
    """The reaction to a message that fails for good."""

    stop = "stop"
    skip = "skip"


class _Range:
    """The range to read."""

    def __init__(
        self, topic: str, start: str, end: str, partition: int | None, key: str | None
    ) -> None:
        self.topic = topic
        self.start = parse_offsets(start, "--start", topic)
        found = parse_offsets(end, "--end", topic)
        if isinstance(found, Mapping):
            if len(found) > 1:
                raise UsageError(f"--end {end!r}: --end takes a single offset; {OFFSET_HELP}")
            ((number, found),) = found.items()
            if partition not in (None, number):
                raise UsageError(f"--end {end!r}: not an offset in partition {partition}")
            partition = number
            if isinstance(self.start, Mapping):
                if set(self.start) != {number}:
                    raise UsageError(f"--end {end!r}: --start names another partition")
                self.start = self.start[number]
        self.end: OffsetSpec = found
        self.partition = partition
        self.key = None if key is None else argument_bytes(key)

    def require_partitions(self, log: Log) -> None:
        """:raises UsageError: an offset is given without its partition."""
        count = log.describe_topic(self.topic).partitions
        require_partition(self.start, "--start", self.partition, count)
        if not isinstance(self.start, Mapping):
            require_partition(self.end, "--end", self.partition, count)


def replay(
    first: Annotated[
        str, Argument(metavar="APP|TOPIC", help="Topic, or MODULE:APP followed by it.")
    ],
    second: Annotated[
        str | None, Argument(metavar="TOPIC", help="Topic, if an app comes first.")
    ] = None,
    into: Annotated[
        str | None, Option("--into", metavar="PROCESSOR", help="Run its handler on the messages.")
    ] = None,
    to: Annotated[
        str | None, Option("--to", metavar="TOPIC", help="Write the messages to another topic.")
    ] = None,
    start: Annotated[
        str, Option("--start", "-s", metavar="OFFSET", help=f"Where to start: {OFFSET_HELP}.")
    ] = "earliest",
    end: Annotated[
        str, Option("--end", "-e", metavar="OFFSET", help="Stop before this offset.")
    ] = "latest",
    partition: Partition = None,
    key: Key = None,
    rate: Annotated[
        float | None, Option("--rate", metavar="N", help="At most N messages per second.")
    ] = None,
    window: Annotated[
        int | None, Option("--window", min=0, metavar="N", help="Remember N message IDs; 0: none.")
    ] = None,
    errors: Annotated[
        OnError, Option("--errors", help="What to do when a message fails for good.")
    ] = OnError.stop,
    escapes: Escapes = False,
    index: Index = None,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Read a range of a topic again, without moving any group.

    Messages are printed as JSON lines, unless a destination is given:

      [cyan]--into PROCESSOR[/cyan] runs its handler as declared (retries,
      concurrency, batches, filter), with a dedup window of the replay's own.
      What the handler returns is not published, and no message becomes a
      dead letter.

      [cyan]--to TOPIC[/cyan] writes them unchanged: bytes, key, headers and ID.

    Events of an aggregate are printed with its ID and their versions; with the
    app that declares it, as its code reads them today.

    The command joins no group. To make a group handle a topic again, including
    everything that it writes, see [cyan]streams reset[/cyan].

    [bold]Examples[/bold]

      [cyan]streams replay orders --start 2h | jq .value[/cyan]
      [cyan]streams replay orders -k customer-42[/cyan]          one key's history
      [cyan]streams replay shop:app orders --into totals[/cyan]
      [cyan]streams replay orders --to orders-test --rate 100 --start -5000[/cyan]
      [cyan]streams replay orders --start 0/1041,1/998[/cyan]    partition 0 from 1041...
    """
    from streams.app import Streams
    from streams.config import Dedup

    target, topic = app_and_topic("replay", first, second)
    _check_destination(target, topic, into, to)
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--rate {rate:g}: must be greater than 0")
    key = None if key is None else unescape(key, escapes=escapes)
    span = _Range(topic, start, end, partition, key)
    app = None if target is None else load_app(target, url)
    url_source = resolve_url(url) if app is None else app.url_source
    if into is None and to is None:
        _print_range(app, span, url_source, rate, index)
        return
    if index is not None:
        raise UsageError(
            "--index is only for printed messages; an app takes event_index= in its URL"
        )
    app = Streams(url_source.url) if app is None else app
    if not json:
        output.print_note(f"replaying {topic} on {url_source}")
    dedup = None if window is None else Dedup(window=window)
    began = time.monotonic()
    result = _replay_range(app, span, into, to, rate=rate, dedup=dedup, errors=errors, began=began)
    _print_result(result, began, json=json)


def _check_destination(target: str | None, topic: str, into: str | None, to: str | None) -> None:
    """:raises UsageError: the options name two destinations, or a processor without its app."""
    if into is not None and to is not None:
        raise UsageError("--into and --to cannot be combined")
    if into is not None and target is None:
        raise UsageError(f"--into {into} needs an app: write MODULE:APP before {topic}")


def _print_result(result: ReplayResult, began: float, *, json: bool) -> None:
    """Print the first failures, and how many messages were read and handled."""
    for failure in result.failures[:MAX_FAILURES_SHOWN]:
        print_error(f"skipped {failure}")
    if json:
        output.print_json(_summary_json(result, time.monotonic() - began))
    else:
        output.print_note(_summary_text(result, began))


def _print_range(
    app: Streams | None,
    span: _Range,
    url_source: ChosenUrl,
    rate: float | None,
    index: str | None,
) -> None:
    """Print the range as JSON lines."""
    from streams.log.range_reader import RangeReader
    from streams.replay.result import total_messages
    from streams.replay.token_bucket import TokenBucket
    from streams.topic_reader import resolve_ranges

    topic, now = span.topic, time.time()
    read = event_reader(app, topic)
    with ExitStack() as stack:
        log = stack.enter_context(open_url(url_source, "ro", app, index=index))
        span.require_partitions(log)
        holds_events = log.describe_topic(topic).is_event_topic
        if holds_events:
            await_index(log, topic)
        ranges = resolve_ranges(log, topic, span.start, span.end, partition=span.partition, now=now)
        rows = stack.enter_context(closing(RangeReader(log, topic, ranges, key=span.key)))
        lines = MessageLines(log, holds_events=holds_events, read=read)
        _print_rows(rows, lines, TokenBucket(rate), total_messages(log, topic, ranges), topic)


def _print_rows(
    rows: RangeReader, lines: MessageLines, bucket: TokenBucket, total: int | None, topic: str
) -> None:
    """Print messages as lines, at the bucket's rate, and show the progress."""
    quiet = sys.stdout.isatty()  # the lines themselves show the progress
    with output.progress_bar(f"reading {topic}", quiet=quiet) as show_progress:
        while True:
            while (available := bucket.available(1_000)) <= 0:
                time.sleep(bucket.seconds_to_next())
            chunk = rows.read_chunk(available)
            if not chunk and rows.is_at_end:
                break
            for row in chunk:
                output.write_bytes(lines.json(row.batch, row.index))
            sys.stdout.buffer.flush()
            bucket.consume(len(chunk))
            show_progress(rows.scanned, total)


def _replay_range(
    app: Streams,
    span: _Range,
    into: str | None,
    to: str | None,
    *,
    rate: float | None,
    dedup: Dedup | None,
    errors: OnError,
    began: float,
) -> ReplayResult:
    """Replay the range into a handler or a topic."""
    import asyncio

    from streams.cli.logging_setup import configure_warnings
    from streams.event_loop import loop_factory

    app.open_mode = "rw"  # a log that does not exist has nothing to replay
    configure_warnings()
    with output.progress_bar(f"replaying {span.topic}") as show_progress:
        replaying = _replay_connected(
            app, span, into, to, show_progress,
            rate=rate, dedup=dedup, errors=errors, began=began,
        )  # fmt: skip
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                return runner.run(replaying)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


async def _replay_connected(
    app: Streams,
    span: _Range,
    into: str | None,
    to: str | None,
    show_progress: Callable[[int, int | None], None],
    *,
    rate: float | None,
    dedup: Dedup | None,
    errors: OnError,
    began: float,
) -> ReplayResult:
    """Replay the range in the app, without its processors.

    :raises CommandFailed: a message failed, and such messages are not to be skipped.
    """
    import asyncio

    from streams.replay import ReplayFailed, ReplayResult, replay

    last_result = ReplayResult(None)

    def on_progress(result: ReplayResult) -> None:
        nonlocal last_result
        last_result = result
        show_progress(result.scanned, result.total)

    async with app.connected():
        target = to if into is None else _find_processor(app, into)
        await asyncio.to_thread(span.require_partitions, app.log)
        try:
            return await replay(
                app, span.topic, target or "", start=span.start, end=span.end,
                partition=span.partition, key=span.key, rate=rate, dedup=dedup,
                errors=errors.value, progress=on_progress,
            )  # fmt: skip
        except ReplayFailed as failed:
            raise _stopped(app.log, failed, began) from failed
        except asyncio.CancelledError:
            _print_interrupted(app.log, last_result, began)
            raise


def _stopped(log: Log, failed: ReplayFailed, began: float) -> CommandFailed:
    """The error for a message that failed: it says where to continue."""
    where = format_positions(log, failed.result.positions)
    return CommandFailed(
        f"stopped at {failed.failure}; {_summary_text(failed.result, began)}; "
        f"continue with --start {where}, or skip such messages with --errors skip"
    )


def _print_interrupted(log: Log, result: ReplayResult, began: float) -> None:
    """Print where to continue, if anything was read."""
    if result.positions:
        where = format_positions(log, result.positions)
        print_error(f"interrupted; {_summary_text(result, began)}; continue with --start {where}")


def _find_processor(app: Streams, name: str) -> Processor[..., Any]:
    for processor in app.processors:
        if processor.name == name:
            to = processor.options.to
            if to is not None:
                output.print_note(f"what {name} returns is not published to {to.name}")
            return processor
    names = [each.name for each in app.processors]
    known = f"it has: {', '.join(names) or 'none'}"
    hint = " ".join(filter(None, (did_you_mean(name, names), known)))
    raise CommandFailed(f"--into {name}: the app has no such processor; {hint}")


def _summary_text(result: ReplayResult, began: float) -> str:
    seconds = time.monotonic() - began
    parts = [f"{result.handled:,} done"]
    if result.duplicates:
        parts.append(output.plural(result.duplicates, "duplicate"))
    if result.filtered:
        parts.append(f"{result.filtered:,} filtered out")
    if result.failed:
        parts.append(f"{result.failed:,} failed")
    rate = f", {result.read / seconds:,.0f} a second" if seconds >= 1 else ""
    count = output.plural(result.read, "message")
    return f"{count} read: {', '.join(parts)} in {seconds:.1f} s{rate}"


def _summary_json(result: ReplayResult, seconds: float) -> dict[str, Any]:
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
                "id": output.printable_text(each.id),
                "attempts": each.attempts,
                "error": f"{type(each.error).__name__}: {error_text(each.error)}",
            }
            for each in result.failures
        ],
        "seconds": round(seconds, 3),
    }
