"""``streams dead show``: one dead letter in full, with its traceback."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.dead.closed_keys import closed_key_json, open_closed_keys
from streams.cli.dead.options import Group, Name, Topic
from streams.cli.dead.rendering import letter_details
from streams.cli.dead.topics import open_dead_letters
from streams.cli.key_arguments import unescape
from streams.cli.options import Escapes, Json, Url, argument_bytes, open_url
from streams.inspection.letter_topics import is_of

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow
    from streams.patterns.deadletters import DeadLetterRows


def show_dead_letter(
    group: Group,
    topic: Topic,
    which: Annotated[
        str | None,
        Argument(
            metavar="WHICH", help="Position, PARTITION/OFFSET or message ID; default: the oldest."
        ),
    ] = None,
    key: Annotated[
        str | None, Option("--key", "-k", metavar="KEY", help="Show what closes this key instead.")
    ] = None,
    escapes: Escapes = False,
    name: Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show one dead letter in full, with its traceback.

    [bold]Examples[/bold]

      [cyan]streams dead show billing orders[/cyan]         the oldest that waits
      [cyan]streams dead show billing orders 3/17[/cyan]
      [cyan]streams dead show billing orders 3/17 --json | jq .value[/cyan]
      [cyan]streams dead show billing orders --key c-17[/cyan]
    """
    if key is not None and (which is not None or name is not None):
        raise UsageError("streams dead show takes --key, or WHICH and --name")
    which = None if which is None else unescape(which, escapes=escapes)
    key = None if key is None else unescape(key, escapes=escapes)
    with open_url(url, "ro") as log:
        if key is None:
            details = _find_dead_letter(log, group, topic, which, name)
        else:
            details = _find_closed_key(log, group, topic, key)
    if json:
        output.print_json(details)
    else:
        _print_for_people(details)


def _print_for_people(details: dict[str, Any]) -> None:
    trace, headers = details.pop("traceback"), details.pop("headers")
    value = {part: details.pop(part) for part in ("value", "text", "base64") if part in details}
    output.print_mapping({part: output.field_cell(part, cell) for part, cell in details.items()})
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


def _find_closed_key(log: Log, group: str, topic: str, key: str) -> dict[str, Any]:
    """The message that closes a key.

    :raises CommandFailed: the key is not closed.
    """
    head = next(open_closed_keys(log, group, topic).heads(argument_bytes(key)), None)
    if head is None:
        hint = f"see streams dead keys {group} {topic}"
        raise CommandFailed(f"key {key!r} is not closed; {hint}")
    whole = letter_details(log, head.row, waiting=head.is_dead)
    return {**closed_key_json(log, head), **whole}


def _find_dead_letter(
    log: Log, group: str, topic: str, which: str | None, name: str | None
) -> dict[str, Any]:
    from streams.patterns.deadletters import RESOLVED_LIMIT, SCAN_LIMIT

    dead_letters = open_dead_letters(log, group, topic, name)

    def find(rows: DeadLetterRows) -> dict[str, Any] | None:
        with closing(rows):
            for row in rows:
                if is_of(row, group, topic) and (which is None or _is_named(log, row, which)):
                    return letter_details(log, row, waiting=rows.is_waiting(row))
        return None

    position = None if which is None else dead_letters.parse_position(which)
    if position is not None and (found := find(dead_letters.row_at(*position[1:]))):
        return found
    rows = dead_letters.rows()
    if found := find(rows):
        return found
    problem = "no dead letter waits" if which is None else f"there is no dead letter {which!r}"
    if rows.is_truncated:
        problem += f" among the oldest {SCAN_LIMIT:,}"
    if which is not None:
        newest = dead_letters.newest_rows()
        if found := find(newest.rows):
            return found
        if not newest.is_whole:
            problem = (
                f"no dead letter {which!r} waits, nor is it one of the newest {RESOLVED_LIMIT:,} "
                "of a partition; give its PARTITION/OFFSET"
            )
    hint = f"see streams dead ls {group} {topic} --all"
    raise CommandFailed(f"{dead_letters.name}: {problem}; {hint}")


def _is_named(log: Log, row: LogRow, which: str) -> bool:
    position = output.position_text(log, row.batch, row.index)
    return which in (position, position.partition("/")[2], row.batch.id(row.index))
