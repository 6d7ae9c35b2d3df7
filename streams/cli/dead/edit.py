"""``streams dead edit``: put a dead letter back with another value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.dead import editor
from streams.cli.dead.closed_keys import open_closed_keys
from streams.cli.dead.handling import LetterAction, print_decided, print_handled
from streams.cli.dead.options import Group, Name, Topic
from streams.cli.dead.topics import open_dead_letters, open_to_resolve
from streams.cli.key_arguments import unescape
from streams.cli.options import Escapes, Json, Url, argument_bytes, open_url
from streams.errors import NotFound
from streams.inspection.letter_topics import is_of

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow
    from streams.patterns.deadletters import ClosedKeyHead, DeadLetterTopic


def edit_dead_letter(
    group: Group,
    topic: Topic,
    which: Annotated[
        str | None, Argument(metavar="WHICH", help="PARTITION/OFFSET, message ID, or closed key.")
    ] = None,
    key: Annotated[
        str | None, Option("--key", "-k", metavar="KEY", help="Closed key, instead of WHICH.")
    ] = None,
    value: Annotated[str | None, Option("--value", metavar="TEXT", help="The new value.")] = None,
    file: Annotated[
        Path | None,
        Option(
            "--file", "-f", metavar="FILE", help="File with the new value; - for standard input."
        ),
    ] = None,
    escapes: Escapes = False,
    name: Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Put a dead letter back with another value.

    The value opens in your editor (VISUAL or EDITOR), unless --value or --file
    gives the new one. Its bytes are used as they are. The message keeps its key,
    headers and ID, and records where it came from and that it was edited. A dead
    letter that is not changed in the editor stays where it is.

    If the message closes a key, the edited message is handled in its place, and
    then the messages parked behind it.

    [bold]Examples[/bold]

      [cyan]streams dead edit billing orders 3/17[/cyan]
      [cyan]streams dead edit billing orders o-42 --value '{"n": 1}'[/cyan]
      [cyan]streams dead show billing orders o-42 --json | jq -c .value > v.json[/cyan]
      [cyan]streams dead edit billing orders o-42 -f v.json[/cyan]
      [cyan]streams dead edit billing orders --key c-17[/cyan]    what closes this key
    """
    if (which is None) == (key is None):
        raise UsageError("streams dead edit takes WHICH or --key")
    if key is not None and name is not None:
        raise UsageError("streams dead edit: --name does not apply to closed keys")
    which = None if which is None else unescape(which, escapes=escapes)
    key = None if key is None else unescape(key, escapes=escapes)
    data = editor.replacement_value(value, file)
    command = editor.editor_command() if data is None else []

    def new_value(row: LogRow) -> bytes:
        old = row.batch.values[row.index] or b""
        return editor.edit_in_editor(old, command) if data is None else data

    with open_url(url) as log:
        head = None if name is not None else _closed_key_meant(log, group, topic, which, key)
        if which is None or head is not None:
            closed_keys = open_closed_keys(log, group, topic)
            head = closed_keys.dead_head(argument_bytes(key or which or ""))
            closed_keys.send_command("edit", head, new_value(head.row))
            print_decided(group, topic, 1, "edited", json=json)
            return
        dead_letters = open_to_resolve(log, group, topic, name)
        done, destination = _edit_letter(dead_letters, group, topic, which, new_value)
    action = LetterAction("edited", "edited and put back", f"to {destination}")
    print_handled(group, topic, done, action, json=json)


def _edit_letter(
    dead_letters: DeadLetterTopic,
    group: str,
    topic: str,
    which: str,
    new_value: Callable[[LogRow], bytes],
) -> tuple[int, str]:
    """Put one letter back with another value; returns the number of letters, and the topic.

    :raises CommandFailed: several letters have this ID; or it was handled meanwhile.
    """
    from streams.patterns.deadletters import put_back_topic

    selection = dead_letters.select_named([which], lambda row: is_of(row, group, topic))
    if selection.count > 1:
        raise CommandFailed(
            f"{dead_letters.name}: {selection.count} dead letters have the ID {which!r}; name "
            f"one by its PARTITION/OFFSET, see streams dead ls {group} {topic}"
        )
    (partition, end), *_ = selection.end_offsets.items()
    with closing(dead_letters.row_at(partition, end - 1)) as rows:
        row = next(iter(rows))
    destination = put_back_topic(dead_letters.log, topic, group)
    done = dead_letters.redrive(
        lambda row: destination,
        matches=selection.matches,
        end_offsets=selection.end_offsets,
        edited=new_value(row),
    )
    if not done:
        raise CommandFailed(f"{dead_letters.name}: dead letter {which!r} was handled meanwhile")
    return done, destination


def _closed_key_meant(
    log: Log, group: str, topic: str, which: str | None, key: str | None
) -> ClosedKeyHead | None:
    """The message that closes the selected key; None: a letter is selected.

    :raises UsageError: the argument may be either.
    """
    try:
        closed_keys = open_closed_keys(log, group, topic)
    except NotFound:
        if key is None:
            return None
        raise
    head = next(closed_keys.heads(argument_bytes(which or key or "")), None)
    if head is None or which is None:
        return head
    try:
        dead_letters = open_dead_letters(log, group, topic, None)
        dead_letters.select_named([which], lambda row: is_of(row, group, topic))
    except NotFound:
        return head
    raise UsageError(
        f"{which!r} is both a closed key and a dead letter: give the key as --key, or the dead "
        f"letter as its PARTITION/OFFSET, see streams dead ls {group} {topic}"
    )
