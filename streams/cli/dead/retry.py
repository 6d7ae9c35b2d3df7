"""``streams dead retry``: put dead letters back, or let closed keys be handled again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from typer import Option

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.dead import options
from streams.cli.dead.closed_keys import open_closed_keys
from streams.cli.dead.filter import parse_filter
from streams.cli.dead.handling import (
    LetterAction,
    LetterRequest,
    handle_letters,
    print_decided,
    print_dry_run,
)
from streams.cli.dead.topics import open_to_resolve
from streams.cli.key_arguments import unescape_each
from streams.cli.options import Escapes, Json, Url, Yes, argument_bytes, confirm, open_url
from streams.errors import NotFound

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.patterns.deadletters import ClosedKeyHead, DeadLetterTopic


def retry_dead_letters(
    group: options.Group,
    topic: options.Topic,
    which: options.WhichLetters = None,
    limit: options.Limit = None,
    error: options.ErrorText = None,
    key: Annotated[
        list[str] | None,
        Option(
            "--key",
            "-k",
            metavar="KEY",
            help="Only those with this key; repeatable. For a closed key, see above.",
        ),
    ] = None,
    keys: Annotated[bool, Option("--keys", help="Retry all closed keys instead.")] = False,
    since: options.Since = None,
    until: options.Until = None,
    escapes: Escapes = False,
    dry_run: options.DryRun = False,
    yes: Yes = False,
    name: options.Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Put waiting dead letters back: all, some, or single ones.

    They are written to TOPIC.GROUP.retry, which the group's processors read
    beside TOPIC: no other group sees them again. A dead letter is put back once;
    if it fails again, it becomes a new dead letter, which still names its origin.
    Those of one key go back in the order in which they failed. Messages that a
    delay topic could not deliver go back into that topic.

    Unless each dead letter or key is named, the command counts them first and
    asks; --yes does not ask, and --dry-run only counts.

    If a message closes a key (DeadLetters(sequenced=True)), --key has it handled
    again, and then the messages parked behind it; --keys does so for all closed
    keys.

    [bold]Examples[/bold]

      [cyan]streams dead retry billing orders[/cyan]
      [cyan]streams dead retry billing orders 3/17 o-42[/cyan]   these two
      [cyan]streams dead retry billing orders --error timeout --since 2h --dry-run[/cyan]
      [cyan]streams dead retry billing orders -n 1[/cyan]        try the oldest first
      [cyan]streams dead retry billing orders --key c-17[/cyan]
    """
    from streams.patterns.deadletters import put_back_topic

    key = unescape_each(key, escapes=escapes)
    letter_filter = parse_filter(error, key, since, until)
    if keys:
        _check_all_keys(which, key, limit, name)
    which = unescape_each(which, escapes=escapes)
    request = LetterRequest(group, topic, which, letter_filter, limit, dry_run, yes, json)
    with open_url(url) as log:
        if keys or (key and not which and name is None):
            heads = _select_closed_keys(log, request, key)
            if heads is not None:
                _retry_closed_keys(log, request, heads)
                return
        dead_letters = open_to_resolve(log, group, topic, name)
        destination = put_back_topic(log, topic, group)
        if key and not which:
            _require_closed(dead_letters, request, key)
        handle_letters(
            dead_letters,
            request,
            LetterAction("retried", "put back", f"to {destination}"),
            lambda selection: dead_letters.redrive(
                lambda row: destination,
                matches=selection.matches,
                limit=limit,
                end_offsets=selection.end_offsets,
            ),
        )


def _check_all_keys(
    which: list[str] | None, key: list[str] | None, limit: int | None, name: str | None
) -> None:
    """:raises UsageError: an argument does not go with ``--keys``."""
    if key:
        raise UsageError("streams dead retry takes --key or --keys, not both")
    if which:
        raise UsageError("streams dead retry takes WHICH or --keys, not both")
    if limit is not None or name is not None:
        raise UsageError("streams dead retry: --limit and --name do not apply to closed keys")


def _select_closed_keys(
    log: Log, request: LetterRequest, names: list[str] | None
) -> list[ClosedKeyHead] | None:
    """The messages that close the selected keys; None: none of these is closed, so letters are
    meant.

    :param names: the keys; None: all closed keys.
    :raises NotFound: all keys are selected, and no key was ever closed here.
    :raises NotClosed: some of the keys are closed, and this one is not; or it waits for no command.
    """
    try:
        closed_keys = open_closed_keys(log, request.group, request.topic)
    except NotFound:
        if names is None:
            raise
        return None
    if names is None:
        heads = [head for head in closed_keys.heads() if head.is_dead]
        return [head for head in heads if request.letter_filter(head.row)]
    keys = [argument_bytes(each) for each in dict.fromkeys(names)]
    if not any(next(closed_keys.heads(each), None) for each in keys):
        return None
    any_key = replace(request.letter_filter, keys=None)
    return [head for head in map(closed_keys.dead_head, keys) if any_key(head.row)]


def _require_closed(
    dead_letters: DeadLetterTopic, request: LetterRequest, names: list[str]
) -> None:
    """Called when no letter has one of these keys, and keys can be closed: report that they are
    not.

    :raises NotClosed: the first key that is not closed.
    """
    if dead_letters.count_waiting(request.matches):
        return
    try:
        closed_keys = open_closed_keys(dead_letters.log, request.group, request.topic)
    except NotFound:
        return
    for name in names:
        closed_keys.dead_head(argument_bytes(name))


def _retry_closed_keys(log: Log, request: LetterRequest, heads: list[ClosedKeyHead]) -> None:
    if request.limit is not None:
        raise UsageError("streams dead retry: --limit and --name do not apply to closed keys")
    closed_keys = open_closed_keys(log, request.group, request.topic)
    number = output.plural(len(heads), "key")
    if request.dry_run:
        print_dry_run(request, len(heads), "retried", f"{number} would be retried")
        return
    wanted = request.letter_filter
    if heads and (wanted.keys is None or not replace(wanted, keys=None).matches_all):
        confirm(f"{number} of {closed_keys.name} will be retried. Continue?", yes=request.yes)
    for head in heads:
        closed_keys.send_command("retry", head)
    print_decided(request.group, request.topic, len(heads), "retried", json=request.json)
