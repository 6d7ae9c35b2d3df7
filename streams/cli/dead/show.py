"""``streams dead show``: one dead letter whole, with its traceback."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import output
from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.dead.closed_keys import closed_key_json, open_closed_keys
from streams.cli.dead.options import Group, Name, Topic
from streams.cli.dead.rendering import cell_value, letter_details
from streams.cli.dead.topics import is_of, open_dead_letters
from streams.cli.options import AsJson, Url, argument_bytes, open_url

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow
    from streams.patterns.deadletters import DeadLetterRows


def show_dead_letter(
    group: Group,
    topic: Topic,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="WHICH", help="Its position, PARTITION/OFFSET or message ID; else the oldest."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", "-k", metavar="KEY", help="What closes this key, instead."),
    ] = None,
    name: Name = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Show one dead letter whole, with its traceback.

    [bold]Examples[/bold]

      [cyan]streams dead show billing orders[/cyan]         the oldest that waits
      [cyan]streams dead show billing orders 3/17[/cyan]
      [cyan]streams dead show billing orders 3/17 --json | jq .value[/cyan]
      [cyan]streams dead show billing orders --key c-17[/cyan]
    """
    if key is not None and (which is not None or name is not None):
        raise UsageError("streams dead show takes --key, or WHICH and --name")
    with open_url(url, "ro") as log:
        if key is None:
            details = _find_dead_letter(log, group, topic, which, name)
        else:
            closed_key = next(open_closed_keys(log, group, topic).heads(argument_bytes(key)), None)
            if closed_key is None:
                raise CommandFailed(
                    f"key {key!r} is not closed; see streams dead keys {group} {topic}"
                )
            details = {
                **closed_key_json(log, closed_key),
                **letter_details(log, closed_key.row, waiting=closed_key.is_dead),
            }
    if json:
        output.print_json(details)
        return
    trace, headers = details.pop("traceback"), details.pop("headers")
    value = {part: details.pop(part) for part in ("value", "text", "base64") if part in details}
    output.print_mapping({part: cell_value(cell) for part, cell in details.items()})
    for header, text in headers.items():
        output.print_line(f"header {header}: {text or ''}")
    for part, cell in value.items():
        text = cell if isinstance(cell, str) else output.json_bytes(cell).decode("utf-8", "replace")
        output.print_line("")
        output.print_line(f"{part}:")
        output.print_indented(text.rstrip())
    output.print_line("")
    output.print_line("traceback:")
    output.print_indented((trace or "(none)").rstrip())


def _find_dead_letter(
    log: Log, group: str, topic: str, which: str | None, name: str | None
) -> dict[str, Any]:
    from streams.patterns.deadletters import SCAN_LIMIT

    dead_letters = open_dead_letters(log, group, topic, name)
    partition_offset = None if which is None else dead_letters.parse_position(which)
    if partition_offset is not None and (
        found := _first_details(
            log, dead_letters.row_at(*partition_offset[1:]), group, topic, which
        )
    ):
        return found
    rows = dead_letters.rows(everything=which is not None)
    if found := _first_details(log, rows, group, topic, which):
        return found
    problem = "no dead letter waits" if which is None else f"there is no letter {which!r}"
    if rows.is_truncated:
        problem += f" among the oldest {SCAN_LIMIT:,}"
    raise CommandFailed(
        f"{dead_letters.name}: {problem}; see streams dead ls {group} {topic} --all"
    )


def _first_details(
    log: Log, rows: DeadLetterRows, group: str, topic: str, which: str | None
) -> dict[str, Any] | None:
    """The first letter of a group and topic, or the one that is meant."""
    with closing(rows):
        matching = (row for row in rows if is_of(row, group, topic))
        found = next((row for row in matching if which is None or _is_named(log, row, which)), None)
        return None if found is None else letter_details(log, found, waiting=rows.is_waiting(found))


def _is_named(log: Log, row: LogRow, which: str) -> bool:
    position = output.position_text(log, row.batch, row.index)
    return which in (position, position.partition("/")[2], row.batch.id(row.index))
