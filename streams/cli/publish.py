"""``streams publish``: JSON lines from a file or standard input, as messages of a topic.

Lines are published as soon as they arrive: a pipe that trickles is published line by line, a file
in chunks of some thousand lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import CommandFailed, UsageError, print_error
from streams.cli.key_arguments import unescape
from streams.cli.options import Escapes, Json, Url, argument_bytes, open_url

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Record

LINES_PER_APPEND = 5_000
"""The most lines in one append."""

READ_SIZE = 1 << 18
"""The most bytes in one read."""

MAX_LINE = 64 << 20
"""The longest line, in bytes: a file without line ends is not JSON lines."""


def publish(
    topic: Annotated[str, Argument(metavar="TOPIC", help="Topic to publish to.")],
    file: Annotated[str, Argument(metavar="FILE", help="JSON lines; - for standard input.")] = "-",
    key: Annotated[
        str | None, Option("--key", "-k", metavar="KEY", help="Key of all messages.")
    ] = None,
    key_field: Annotated[
        str | None, Option("--key-field", metavar="FIELD", help="Field with the key.")
    ] = None,
    id_field: Annotated[
        str | None, Option("--id-field", metavar="FIELD", help="Field with the message ID.")
    ] = None,
    escapes: Escapes = False,
    skip: Annotated[bool, Option("--skip", help="Skip invalid lines instead of stopping.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Publish JSON lines, one message each.

    The value of a message is its line, byte for byte. The command stops
    at an invalid line; the lines before it are published. Messages of one key
    keep their order. With [cyan]--id-field[/cyan], a file can be published twice without
    harm: consumers handle each message ID once.

    [bold]Examples[/bold]

      [cyan]echo '{"sku": 7, "n": 2}' | streams publish orders -k customer-42[/cyan]
      [cyan]streams publish orders o.jsonl --key-field customer --id-field id[/cyan]
      [cyan]tail -F app.log | jq -c --unbuffered .event | streams publish app[/cyan]
    """
    from streams.log.events import events_only

    if key is not None and key_field is not None:
        raise UsageError("--key and --key-field cannot be combined")
    key_bytes = None if key is None else argument_bytes(unescape(key, escapes=escapes))
    maker = _RecordMaker(key_bytes, key_field, id_field)
    written, skipped = 0, 0
    with ExitStack() as stack:
        source, size = stack.enter_context(_open_source(file))
        log = stack.enter_context(open_url(url))
        if log.describe_topic(topic).is_event_topic:
            raise events_only(topic, "published to")
        show_progress = stack.enter_context(output.progress_bar(f"publishing to {topic}"))
        for lines in _read_lines(source):
            records, problem = _make_records(maker, lines.lines, skip=skip)
            written += _append_durably(log, topic, records, written)
            skipped += len(lines.lines) - len(records) if skip else 0
            if problem is not None:
                before = output.plural(written, "message")
                raise CommandFailed(f"{problem}; published before it: {before}")
            show_progress(lines.bytes, size)
    if json:
        output.print_json({"topic": topic, "published": written, "skipped": skipped})
    else:
        also = f", {output.plural(skipped, 'invalid line')} skipped" if skipped else ""
        output.print_note(f"{output.plural(written, 'message')} published to {topic}{also}")


@contextmanager
def _open_source(file: str) -> Iterator[tuple[BufferedReader, int | None]]:
    """The source to read, and its size in bytes, if that is known."""
    if file != "-":
        with Path(file).open("rb") as source:
            yield source, os.fstat(source.fileno()).st_size or None
        return
    if sys.stdin.isatty():
        output.print_note("reading JSON lines from the terminal; press Ctrl-D to end")
    yield cast(BufferedReader, sys.stdin.buffer), None


class _LineChunk(NamedTuple):
    lines: Sequence[tuple[int, bytes]]
    """Line numbers, from 1, and lines without their ends; empty lines are left out."""
    bytes: int
    """The number of bytes read so far."""


def _read_lines(source: BufferedReader) -> Iterator[_LineChunk]:
    """Lines as they arrive: available lines are yielded before waiting for more."""
    number, done, size = 0, 0, 0
    rest: list[bytes] = []
    while True:
        data = source.read1(READ_SIZE)
        done += len(data)
        head, end, tail = data.rpartition(b"\n")
        if data and not end:
            rest.append(data)
            size += len(data)
            if size > MAX_LINE:
                raise CommandFailed(f"line {number + 1} is longer than {MAX_LINE >> 20} MiB")
            continue
        lines = (b"".join(rest) + head).split(b"\n")
        if not number:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # a byte order mark of an editor
        rest, size = [tail], len(tail)
        found = [(number + at, line.strip()) for at, line in enumerate(lines, 1)]
        number += len(lines)
        found = [pair for pair in found if pair[1]]
        for start in range(0, len(found), LINES_PER_APPEND):
            yield _LineChunk(found[start : start + LINES_PER_APPEND], done)
        if not data:
            return


class _RecordMaker(NamedTuple):
    """Makes the record of a line."""

    key: bytes | None
    key_field: str | None
    id_field: str | None

    def make_record(self, line: bytes) -> Record:
        """:raises ValueError: the line is not JSON, or lacks a field; the text says why."""
        import orjson
        from uuid_utils import uuid7

        from streams.message import Record

        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not JSON: {_json_error_text(error)}") from error
        key = self.key
        if self.key_field is not None:
            found = _text_field(value, self.key_field)
            key = None if found is None else found.encode()
        if self.id_field is None:
            return Record(line, key, str(uuid7()))
        id = _text_field(value, self.id_field)
        if not id or "\0" in id:
            raise ValueError(f"field {self.id_field!r} holds no message ID")
        return Record(line, key, id)


def _json_error_text(error: Exception) -> str:
    """The text of orjson's error, with the column only, as there is one line."""
    text, _, place = str(error).partition(": line ")
    column = place.partition("column ")[2].partition(" ")[0]
    return f"{text} (column {column})" if column else text


def _text_field(value: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        raise ValueError(f"no field {name!r}: the value is not an object")
    if name not in value:
        known = ", ".join(list(value)[:10]) or "none"
        raise ValueError(f"no field {name!r}; it has: {known}")
    found = value[name]
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    raise ValueError(f"field {name!r}: it must be text or a whole number")


def _make_records(
    maker: _RecordMaker, lines: Sequence[tuple[int, bytes]], *, skip: bool
) -> tuple[list[Record], str | None]:
    """Records up to the first invalid line, and the error of that line."""
    found: list[Record] = []
    for number, line in lines:
        try:
            found.append(maker.make_record(line))
        except ValueError as error:
            problem = f"line {number}: {error}"
            if not skip:
                return found, problem
            print_error(f"{problem}: skipped")
    return found, None


def _append_durably(log: Log, topic: str, records: Sequence[Record], before: int) -> int:
    """Append records and wait until they are durable; returns their number.

    :raises CommandFailed: some were not acknowledged.
    """
    from streams.log.appending import append_and_wait

    if not records:
        return 0
    results = append_and_wait(log, topic, records)
    failures = [result for result in results if isinstance(result, Exception)]
    if failures:
        raise CommandFailed(
            f"{failures[0]}; not acknowledged: {output.plural(len(failures), 'message')}; "
            f"published: {output.plural(before + len(records) - len(failures), 'message')}"
        )
    return len(records)
