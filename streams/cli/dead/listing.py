"""``streams dead ls``: the dead letters that wait, or the topics that have any."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.dead import options
from streams.cli.dead.filter import parse_filter
from streams.cli.dead.rendering import letter_summary
from streams.cli.dead.topics import (
    dead_ls_arguments,
    find_closed_keys,
    open_dead_letters,
    print_closed_keys,
    print_other_topics,
)
from streams.cli.key_arguments import unescape_each
from streams.cli.options import Escapes, Json, Url, open_url
from streams.inspection.letter_topics import (
    FoundTopic,
    find_dead_letter_topics,
    is_of,
    letter_counts,
)

if TYPE_CHECKING:
    from streams.inspection.closed_keys import KeyCounts, ParkedSource
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow
    from streams.patterns.deadletters import DeadLetterTopic


def list_dead_letters(
    group: Annotated[
        str | None, Argument(metavar="GROUP", help="Consumer group of the dead letters.")
    ] = None,
    topic: Annotated[
        str | None, Argument(metavar="TOPIC", help="Topic that the group was reading.")
    ] = None,
    include_handled: Annotated[
        bool, Option("--all", help="Include those that were retried or purged.")
    ] = False,
    limit: Annotated[
        int, Option("--limit", "-n", min=1, metavar="N", help="Only the oldest N.")
    ] = 1_000,
    error: options.ErrorText = None,
    key: options.Keys = None,
    since: options.Since = None,
    until: options.Until = None,
    escapes: Escapes = False,
    name: options.Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    r"""List the waiting dead letters, oldest first.

    Without a group and a topic, list the topics that have any: topics named like
    dead letter topics, topics whose newest messages are dead letters, and topics
    with closed keys (DeadLetters(sequenced=True)).
    With [cyan]--name[/cyan] alone, list the dead letters in that topic, of any group.

    [bold]Examples[/bold]

      [cyan]streams dead ls[/cyan]
      [cyan]streams dead ls billing orders[/cyan]
      [cyan]streams dead ls --name lost-mails[/cyan]
      [cyan]streams dead ls billing orders -n 10[/cyan]
      [cyan]streams dead ls billing orders --error timeout --since 2h[/cyan]
      [cyan]streams dead ls billing orders --json | jq -r '.\[].error' | sort | uniq -c[/cyan]
    """
    if (group is None) != (topic is None):
        raise UsageError("streams dead ls takes a group and its topic, or neither")
    key = unescape_each(key, escapes=escapes)
    letter_filter = parse_filter(error, key, since, until)
    if topic is None and name is None and not letter_filter.matches_all:
        raise UsageError(
            "streams dead ls: --error, --key, --since and --until go with a group and its topic, "
            "or with --name"
        )
    with open_url(url, "ro") as log:
        if topic is None and name is None:
            _print_topics(log, json=json)
            return
        dead_letters = open_dead_letters(log, group, topic, name)
        found = _summaries(
            dead_letters,
            lambda row: is_of(row, group, topic) and letter_filter(row),
            limit,
            include_handled=include_handled,
        )
        if not found and group is not None and topic is not None:
            print_other_topics(log, group, topic, dead_letters.name)
        if group is not None and topic is not None:
            for each in find_closed_keys(log, group, topic):
                print_closed_keys(*each)
    columns = ["place", "failed_at", "key", "attempts", "error", "origin"]
    if group is None:
        columns.insert(1, "group")
    output.print_rows(found, columns, json=json)


def _summaries(
    dead_letters: DeadLetterTopic,
    matches: Callable[[LogRow], bool],
    limit: int,
    *,
    include_handled: bool,
) -> list[dict[str, Any]]:
    """The oldest letters that match; says so if there are more, or may be."""
    from streams.patterns.deadletters import SCAN_LIMIT

    log = dead_letters.log
    found: list[dict[str, Any]] = []
    with closing(dead_letters.rows(everything=include_handled)) as rows:
        matching = (row for row in rows if matches(row))
        for row in islice(matching, limit):
            where = output.position_text(log, row.batch, row.index)
            make_json = partial(letter_summary, log, row, waiting=rows.is_waiting(row))
            if (summary := output.call_or_report(where, make_json)) is not None:
                found.append(summary)
        has_more = next(matching, None) is not None
    if has_more:
        output.print_note(f"only the oldest {limit:,} are listed; --limit N lists more")
    elif rows.is_truncated:
        where = dead_letters.name
        output.print_note(f"only the oldest {SCAN_LIMIT:,} dead letters of {where} were read")
    return found


def _print_topics(log: Log, *, json: bool) -> None:
    search = find_dead_letter_topics(log, output.call_or_report)
    found = [_topic_json(log, each) for each in search.topics]
    if not search.complete:
        output.print_note(
            "not every partition was searched for dead letters: name the topic with --name"
        )
    closed = find_closed_keys(log)
    found += [_closed_json(*each) for each in closed]
    if json:
        output.print_json(found)
        return
    for row in found:
        row["of"] = [f"{of['group']} {of['topic']}" for of in row["of"]]
    columns = {"dead letters": "dead_letters", "of": "of", "waiting": "waiting", "total": "total"}
    columns |= {"oldest": "oldest_seconds"}
    if closed:
        columns |= {"closed keys": "closed_keys", "parked": "parked"}
    output.print_rows(found, columns, json=False)
    for source, counts in closed:
        print_closed_keys(source, counts)
    words = (
        dead_ls_arguments(of.group, of.topic, each.name)
        for each in search.topics
        for of in each.sources
    )
    if (example := next((each for each in words if "--name" in each), None)) is not None:
        output.print_note(
            "a topic that is not named TOPIC.GROUP.dead is given as --name: streams dead ls "
            f"{example}"
        )


def _topic_json(log: Log, topic: FoundTopic) -> dict[str, Any]:
    counts = letter_counts(log, topic.name)
    return {
        "dead_letters": topic.name,
        "of": [{"group": group, "topic": topic} for topic, group in topic.sources],
        "waiting": counts.waiting,
        "total": counts.total,
        "oldest_seconds": None if counts.oldest is None else max(0.0, time.time() - counts.oldest),
        "closed_keys": None,
        "parked": None,
    }


def _closed_json(source: ParkedSource, counts: KeyCounts) -> dict[str, Any]:
    return {
        "dead_letters": source.name,
        "of": [{"group": source.group, "topic": source.topic}],
        "waiting": counts.dead,
        "total": None,
        "oldest_seconds": None,
        "closed_keys": counts.keys,
        "parked": counts.parked,
    }
