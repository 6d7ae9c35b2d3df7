"""``streams dead purge``: set dead letters aside."""

from __future__ import annotations

from streams.cli.dead import options
from streams.cli.dead.filter import parse_filter
from streams.cli.dead.handling import LetterAction, LetterRequest, handle_letters
from streams.cli.dead.topics import open_to_resolve
from streams.cli.key_arguments import unescape_each
from streams.cli.options import Escapes, Json, Url, Yes, open_url


def purge_dead_letters(
    group: options.Group,
    topic: options.Topic,
    which: options.WhichLetters = None,
    limit: options.Limit = None,
    error: options.ErrorText = None,
    key: options.Keys = None,
    since: options.Since = None,
    until: options.Until = None,
    escapes: Escapes = False,
    dry_run: options.DryRun = False,
    yes: Yes = False,
    name: options.Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set waiting dead letters aside: all, some, or single ones.

    They are no longer retried or listed. Nothing is deleted:
    [cyan]streams dead ls --all[/cyan] lists them.

    Unless each dead letter is named, the command counts them first and asks;
    --yes does not ask, and --dry-run only counts. The message that closes a key
    is dropped with [cyan]streams dead drop[/cyan].

    [bold]Examples[/bold]

      [cyan]streams dead purge billing orders[/cyan]
      [cyan]streams dead purge billing orders 3/17 o-42[/cyan]
      [cyan]streams dead purge billing orders --error ValueError --until 7d[/cyan]
      [cyan]streams dead purge billing orders -n 10[/cyan]
    """
    key = unescape_each(key, escapes=escapes)
    letter_filter = parse_filter(error, key, since, until)
    which = unescape_each(which, escapes=escapes)
    request = LetterRequest(group, topic, which, letter_filter, limit, dry_run, yes, json)
    with open_url(url) as log:
        dead_letters = open_to_resolve(log, group, topic, name)
        handle_letters(
            dead_letters,
            request,
            LetterAction("purged", "set aside", "where streams dead ls --all still lists them"),
            lambda selection: dead_letters.purge(
                matches=selection.matches, limit=limit, end_offsets=selection.end_offsets
            ),
        )
