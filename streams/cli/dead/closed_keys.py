"""``streams dead keys`` and ``drop``: keys that a dead message closes, with
``DeadLetters(sequenced=True)``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from streams.cli import output
from streams.cli.dead.handling import print_decided
from streams.cli.dead.options import ClosedKeyName, Group, Topic
from streams.cli.dead.rendering import letter_summary
from streams.cli.key_arguments import unescape
from streams.cli.options import Escapes, Json, Url, argument_bytes, open_url

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.patterns.deadletters import ClosedKeyHead, ClosedKeyReader


def list_closed_keys(
    group: Group,
    topic: Topic,
    limit: Annotated[
        int, Option("--limit", "-n", min=1, metavar="N", help="List at most N.")
    ] = 1_000,
    url: Url = None,
    json: Json = False,
) -> None:
    """List the closed keys, and the messages that close them.

    A processor with DeadLetters(sequenced=True) closes a key when a message of
    that key fails for good: later messages of the key are parked behind it
    until it is retried, edited or dropped.

    [bold]Examples[/bold]

      [cyan]streams dead keys billing orders[/cyan]
      [cyan]streams dead retry billing orders --key c-17[/cyan]   handle it again
      [cyan]streams dead edit billing orders c-17 --value '{"n": 1}'[/cyan]
      [cyan]streams dead drop billing orders c-17[/cyan]          go on without it
    """
    found = []
    with open_url(url, "ro") as log:
        reader = open_closed_keys(log, group, topic)
        left_out = output.LeftOut(log, reader.name, "record of a closed key")
        reader.on_ignored = left_out
        for head in reader.heads(limit=limit):
            make_json = partial(closed_key_json, log, head)
            if (row := output.call_or_report(f"key {head.key!r}", make_json)) is not None:
                found.append(row)
        left_out.print()
    columns = ["key", "parked", "state", "failed_at", "attempts", "redrives", "error", "place"]
    output.print_rows(found, columns, json=json)


def drop_closed_key(
    group: Group,
    topic: Topic,
    key: ClosedKeyName,
    escapes: Escapes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Drop the message that closes a key.

    The messages parked behind it are handled. The log keeps the dropped message
    as long as it keeps TOPIC.GROUP.parked.

    [bold]Examples[/bold]

      [cyan]streams dead drop billing orders c-17[/cyan]
    """
    key_bytes = argument_bytes(unescape(key, escapes=escapes))
    with open_url(url) as log:
        closed_keys = open_closed_keys(log, group, topic)
        closed_keys.send_command("drop", closed_keys.dead_head(key_bytes))
    print_decided(group, topic, 1, "dropped", json=json)


def open_closed_keys(log: Log, group: str, topic: str) -> ClosedKeyReader:
    """The closed keys of a group and topic.

    :raises NotFound: no key was ever closed there.
    """
    from streams.patterns.deadletters import ClosedKeyReader

    return ClosedKeyReader(log, group, topic)


def closed_key_json(log: Log, head: ClosedKeyHead) -> dict[str, Any]:
    """A closed key for JSON: the message that closes it, and the messages behind it."""
    summary = letter_summary(log, head.row, waiting=head.is_dead)
    if not head.is_dead and summary["error"] == "?":
        summary["error"] = summary["failed_at"] = None
    state = "dead" if head.is_dead else "coming back"
    return {**summary, "parked": head.parked, "state": state}
