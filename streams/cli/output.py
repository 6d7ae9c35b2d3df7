r"""Output: tables, JSON, messages, progress.

The contents of messages are untrusted: any character that could control a terminal is written as an
escape (``\x1b``), in JSON as one of JSON's (:mod:`streams.text`). Every function here does so.
On a terminal, tables have colours; if standard output is a file or a pipe, the same columns are
plain and not truncated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from streams.inspection.texts import age_text as age_text
from streams.inspection.texts import bytes_text as bytes_text
from streams.inspection.texts import duration_text as duration_text
from streams.inspection.texts import plural as plural
from streams.inspection.texts import position_text as position_text
from streams.inspection.texts import retention_options as retention_options
from streams.inspection.texts import retention_text as retention_text
from streams.text import escape, escape_json, without_surrogates
from streams.text import printable_text as printable_text
from streams.wire import iso_time as iso_time

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch

Cell = str | int | None

T = TypeVar("T")


def write_bytes(data: bytes) -> None:
    """Write bytes to standard output unchanged: JSON, or a line formatted for people."""
    sys.stdout.buffer.write(data)


def json_bytes(found: Any) -> bytes:
    """One JSON document on one line."""
    import orjson

    try:
        document = orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate in a text, which JSON in UTF-8 cannot hold
        document = orjson.dumps(without_surrogates(found), option=orjson.OPT_APPEND_NEWLINE)
    return escape_json(document)


def print_json(found: Any) -> None:
    """One JSON document on standard output."""
    write_bytes(json_bytes(found))


def print_line(text: str) -> None:
    """A line for people, on standard output."""
    print(escape(text))  # noqa: T201 - the command's own output


def print_indented(text: str) -> None:
    """Print a text of several lines, indented, so that none can be mistaken for the command's
    own."""
    for row in escape(text, keep_lines=True).split("\n"):
        print(f"  {row}".rstrip())  # noqa: T201 - the command's own output


def print_note(text: str) -> None:
    """Print a line for people that is not part of the data, on standard error."""
    print(escape(text), file=sys.stderr)  # noqa: T201 - the command's own output


MAX_NAMED = 5
"""How many positions of records a note names."""


class LeftOut:
    """Collects records of a topic that a command cannot list, to be named in a note: the first
    positions, and the total.

    :param what: what they cannot be: ``"entry of a saga"``.
    """

    def __init__(self, log: Log, topic: str, what: str) -> None:
        self._log = log
        self._topic = topic
        self._what = what
        self._places: list[str] = []
        self._count = 0

    def __call__(self, partition: int, offset: int) -> None:
        """Add a record."""
        self._count += 1
        if len(self._places) < MAX_NAMED:
            self._places.append(f"{self._topic}/{partition}/{self._log.format_offset(offset)}")

    def print(self) -> None:
        """Print the note, if there are any."""
        if self._count:
            more = ", ..." if self._count > len(self._places) else ""
            print_note(
                f"{self._topic}: {plural(self._count, 'record')} left out that can be no "
                f"{self._what}: {', '.join(self._places)}{more} (`streams tail {self._topic} "
                "--from OFFSET -n 1` shows one)"
            )


def call_or_report(name: str, make: Callable[[], T]) -> T | None:
    """The result of ``make``. If it fails, one bad record must not hide the others: it is named
    on standard error, and None is returned.

    :param name: the record's name or its position.
    :raises Unavailable: the log cannot be reached, which is no record's fault.
    :raises Fatal: the log cannot work, which is not either.
    """
    from streams.cli.command_errors import error_line, print_error
    from streams.errors import Fatal, Unavailable

    try:
        return make()
    except (Unavailable, Fatal):
        raise
    except Exception as error:
        print_error(f"{escape(name)}: cannot be shown: {escape(error_line(error).text)}")
        return None


def print_hidden_count(count: int, noun: str) -> None:
    """Print how many topics of the toolkit's own, or groups that read only these, were left out of
    a list."""
    if count:
        are, which = "is" if count == 1 else "are", "of the toolkit's own"
        if noun == "group":
            which = f"that {'reads' if count == 1 else 'read'} only the toolkit's own topics"
        print_note(f"{plural(count, noun)} {which} {are} not shown; --all shows all")


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str], *, json: bool
) -> None:
    """Print rows as one JSON document, or as a table.

    :param columns: the fields that the table shows; a mapping gives each a heading of its own.
    """
    if json:
        print_json(rows)
        return
    if not isinstance(columns, Mapping):
        columns = {name.replace("_", " "): name for name in columns}
    cells = [[field_cell(name, row[name]) for name in columns.values()] for row in rows]
    print_table(list(columns), cells)


_WRITTEN_AS_THEY_ARE = frozenset({"partition", "position", "first", "end", "from", "to"})
"""Fields whose numbers are identifiers: they are shown unformatted, so that they can be pasted."""


def field_cell(name: str, found: Any) -> Cell:
    """A field of a JSON document as a cell of a table."""
    if name.endswith("seconds"):
        return age_text(found)
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, list):
        return ", ".join(map(str, found)) or None
    if found is None or (isinstance(found, int) and name not in _WRITTEN_AS_THEY_ARE):
        return found
    return str(found)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print rows under a heading; numbers are right-aligned."""
    rows = list(rows)
    if sys.stdout.isatty():
        _print_rich_table(columns, rows)
        return
    texts = [columns, *([escape(cell_text(cell)) for cell in row] for row in rows)]
    texts[0] = [name.upper() for name in columns]
    widths = [max(len(row[at]) for row in texts) for at in range(len(columns))]
    right = _numeric_columns(columns, rows)
    for row in texts:
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


def _numeric_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> set[int]:
    return {at for at in range(len(columns)) if any(isinstance(row[at], int) for row in rows)}


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    right = _numeric_columns(columns, rows)
    for at, name in enumerate(columns):
        found.add_column(name, justify="right" if at in right else "left", overflow="fold")
    for row in rows:
        found.add_row(*(Text(escape(cell_text(cell))) for cell in row))
    Console().print(found)


def cell_text(cell: Cell) -> str:
    """A cell's text: numbers with thousands separators, a dash for a missing value."""
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else cell


def offset_json(log: Log, position: int) -> int | str:
    """An offset for JSON: a number if the log writes offsets as numbers."""
    text = log.format_offset(position)
    return int(position) if text == str(int(position)) else text


def message_json(log: Log, batch: Batch, index: int) -> dict[str, Any]:
    """A message for JSON, without its value (:func:`value_json`)."""
    from streams.message import ID

    key, headers = batch.keys[index], batch.headers(index)
    found: dict[str, Any] = {
        "topic": batch.topic,
        "partition": batch.partition,
        "offset": offset_json(log, batch.offsets[index]),
        "position": position_text(log, batch, index),
        "time": iso_time(batch.time(index)),
        "id": printable_text(batch.id(index)),
        "key": bytes_text(key),
        "headers": {
            printable_text(name): bytes_text(value) for name, value in headers if name != ID
        },
    }
    if key is not None and not is_text(key):
        del found["key"]
        found["key_base64"] = base64_text(key)
    return found


def value_json(data: bytes | None) -> dict[str, Any]:
    """A value for JSON, without loss: the JSON that it holds (numbers keep their digits), or
    ``text``, or ``base64``."""
    if data is None:
        return {"value": None, "tombstone": True}
    found = _json_fragment(data)
    if found is not None:
        return {"value": found}
    return {"text": data.decode()} if is_text(data) else {"base64": base64_text(data)}


def document_json(data: bytes) -> Any:
    """A JSON document within another one, without loss; as text if it is not JSON."""
    found = _json_fragment(data)
    return bytes_text(data) if found is None else found


def _json_fragment(data: bytes) -> Any:
    import msgspec
    import orjson

    try:
        orjson.loads(data)
        return orjson.Fragment(msgspec.json.format(data, indent=-1))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


def base64_text(data: bytes) -> str:
    """Bytes as base64."""
    from base64 import b64encode

    return b64encode(data).decode()


def lossless_json(name: str, data: bytes) -> dict[str, str]:
    """Bytes under a name as text; if that loses some, also in base64."""
    shown = data.decode("utf-8", "backslashreplace")
    if shown.encode("utf-8", "backslashreplace") == data:
        return {name: shown}
    return {name: shown, f"{name}_base64": base64_text(data)}


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def progress_bar(
    description: str, *, quiet: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error if that is a terminal; nothing otherwise.

    The yielded function is called with the number done, and the total if that is known.

    :param quiet: show nothing on a terminal either.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(description), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_mapping(found: Mapping[str, Cell]) -> None:
    """Print names with their values, one a line."""
    width = max(map(len, found), default=0)
    for name, cell in found.items():
        print_line(f"{name:<{width}}  {cell_text(cell)}")
