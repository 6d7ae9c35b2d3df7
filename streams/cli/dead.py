"""``streams dead``: what could not be handled, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from streams import wire
from streams.cli import editing, output
from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.dead_letter_filter import (
    DeadLetterFilter,
    DryRun,
    ErrorText,
    Keys,
    Since,
    Until,
    WhichLetters,
    parse_filter,
)
from streams.cli.options import AsJson, AssumeYes, Url, confirm, open_url
from streams.config import DeadLetters
from streams.errors import ConfigError, NotFound
from streams.text import suggestion

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Headers
    from streams.patterns.deadletters.closed_keys import ClosedKeyHead, ClosedKeyReader
    from streams.patterns.deadletters.redriving import DeadLetterRows, DeadLetterTopic
    from streams.replay.into_topic import LogRow

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, retry and purge dead letters; decide what closes a key.",
)

Group = Annotated[str, typer.Argument(metavar="GROUP", help="Whose dead letters.")]
Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="Of which topic.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="TOPIC", help="Their topic, if it is not TOPIC.GROUP.dead as usual."
    ),
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The closed key.")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", "-n", min=1, metavar="N", help="The oldest N of each partition only."),
]


@app.command("ls")
def list_dead_letters(
    group: Annotated[
        str | None, typer.Argument(metavar="GROUP", help="Whose; all there are, if not given.")
    ] = None,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Of which topic.")] = None,
    include_handled: Annotated[
        bool, typer.Option("--all", help="Also those that were retried or purged.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, metavar="N", help="The oldest N only."),
    ] = 1_000,
    error: ErrorText = None,
    key: Keys = None,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    r"""List the dead letters that wait, the oldest first.

    Without a group and a topic, list where there are any: the topics that are
    named as dead letter topics are, and those whose newest messages are dead
    letters. With [cyan]--name[/cyan] alone, list the letters of that topic, of whatever group.

    [bold]Examples[/bold]

      [cyan]streams dead ls[/cyan]
      [cyan]streams dead ls billing orders[/cyan]
      [cyan]streams dead ls --name lost-mails[/cyan]
      [cyan]streams dead ls billing orders -n 10[/cyan]
      [cyan]streams dead ls billing orders --error timeout --since 2h[/cyan]
      [cyan]streams dead ls billing orders --json | jq -r '.\[].error' | sort | uniq -c[/cyan]
    """
    from streams.patterns.deadletters.redriving import SCAN_LIMIT

    if (group is None) != (topic is None):
        raise UsageError("streams dead ls takes a group and its topic, or neither")
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
        dead_letters = _open_dead_letters(log, group, topic, name)
        with closing(dead_letters.rows(everything=include_handled)) as rows:
            matching = (row for row in rows if _is_of(row, group, topic) and letter_filter(row))
            found = []
            for row in islice(matching, limit):
                make_summary = partial(_letter_summary, log, row, waiting=rows.is_waiting(row))
                if (
                    summary := output.call_or_report(_position_text(log, row), make_summary)
                ) is not None:
                    found.append(summary)
            more = next(matching, None) is not None
        if more:
            output.print_note(f"the oldest {limit:,}, and there are more; --limit N lists N")
        elif rows.is_truncated:
            output.print_note(
                f"only the oldest {SCAN_LIMIT:,} letters of {dead_letters.name} were looked at"
            )
        if not found and group is not None and topic is not None:
            _print_other_topics(log, group, topic, dead_letters.name)
    if json:
        output.print_json(found)
        return
    columns = ["place", "failed_at", "key", "attempts", "error", "origin"]
    if group is None:
        columns.insert(1, "group")
    output.print_table(
        [name.replace("_", " ") for name in columns],
        [[_cell_value(each[name]) for name in columns] for each in found],
    )


def _cell_value(found: Any) -> output.Cell:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return found if found is None or isinstance(found, int) else str(found)


def _print_topics(log: Log, *, json: bool) -> None:
    from streams.cli.dead_letter_topics import dead_ls_arguments, find_dead_letter_topics
    from streams.patterns.deadletters.redriving import resolved_offsets

    found: list[dict[str, Any]] = []
    example: str | None = None
    search = find_dead_letter_topics(log)
    for name, sources in search.topics:
        waiting, total, oldest = 0, 0, None
        for partition, done in resolved_offsets(log, name, log.topic(name).partitions).items():
            first, end = log.watermarks(name, partition)
            position = max(first, done.position)
            waiting += log.lag(name, partition, position) or 0
            for low, high in done.ranges:
                handled = (log.lag(name, partition, low), log.lag(name, partition, high))
                waiting -= (handled[0] or 0) - (handled[1] or 0)
            total += log.lag(name, partition, first) or 0
            oldest_here = _record_time(log, name, partition, position, end)
            if oldest_here is not None:
                oldest = oldest_here if oldest is None else min(oldest, oldest_here)
        age = None if oldest is None else max(0.0, time.time() - oldest)
        found.append(
            {
                "dead_letters": name,
                "of": [{"group": group, "topic": topic} for topic, group in sources],
                "waiting": waiting,
                "total": total,
                "oldest_seconds": age,
            }
        )
        if example is None:
            argument_texts = (dead_ls_arguments(group, topic, name) for topic, group in sources)
            example = next(
                (f"streams dead ls {words}" for words in argument_texts if "--name" in words), None
            )
    if not search.complete:
        output.print_note(
            "not every partition was looked at for dead letters: name the topic with --name"
        )
    if json:
        output.print_json(found)
        return
    output.print_table(
        ["dead letters", "of", "waiting", "total", "oldest"],
        [
            [
                each["dead_letters"],
                ", ".join(f"{of['group']} {of['topic']}" for of in each["of"]) or None,
                each["waiting"],
                each["total"],
                output.age_text(each["oldest_seconds"]),
            ]
            for each in found
        ],
    )
    if example is not None:
        output.print_note(
            f"a topic with another name than TOPIC.GROUP.dead is given as --name: {example}"
        )


def _record_time(log: Log, topic: str, partition: int, position: int, end: int) -> float | None:
    if position >= end:
        return None
    with closing(log.reader(topic, partition, position, end)) as reader:
        batch = reader.read(1)
    return None if batch is None else batch.time(0)


@app.command("show")
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
            closed_key = next(_open_closed_keys(log, group, topic).heads(_key_bytes(key)), None)
            if closed_key is None:
                raise CommandFailed(
                    f"key {key!r} is not closed; see streams dead keys {group} {topic}"
                )
            details = {
                **_closed_key_json(log, closed_key),
                **_letter_details(log, closed_key.row, waiting=closed_key.is_dead),
            }
    if json:
        output.print_json(details)
        return
    trace, headers = details.pop("traceback"), details.pop("headers")
    value = {part: details.pop(part) for part in ("value", "text", "base64") if part in details}
    output.print_mapping({part: _cell_value(cell) for part, cell in details.items()})
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
    from streams.patterns.deadletters.redriving import SCAN_LIMIT

    dead_letters = _open_dead_letters(log, group, topic, name)
    partition_offset = None if which is None else _parse_partition_offset(log, which)
    if partition_offset is not None and (
        found := _first_details(log, dead_letters.row_at(*partition_offset), group, topic, which)
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
        matching = (row for row in rows if _is_of(row, group, topic))
        found = next((row for row in matching if which is None or _is_named(log, row, which)), None)
        return (
            None if found is None else _letter_details(log, found, waiting=rows.is_waiting(found))
        )


def _parse_partition_offset(log: Log, which: str) -> tuple[int, int] | None:
    """The partition and offset that were given; None: it is a message ID."""
    partition, slash, offset = "/".join(which.split("/")[-2:]).partition("/")
    if not slash or not (partition.isascii() and partition.isdigit() and len(partition) < 10):
        return None
    try:
        return int(partition), log.parse_offset(offset)
    except ConfigError:
        return None


@app.command("retry")
def retry_dead_letters(
    group: Group,
    topic: Topic,
    which: WhichLetters = None,
    limit: Limit = None,
    error: ErrorText = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            "-k",
            metavar="KEY",
            help="Only those of this key; repeatable. A closed key: see above.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="All closed keys, instead.")] = False,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    yes: AssumeYes = False,
    name: Name = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Put the dead letters that wait back: all, some, or single ones.

    They go to the topic TOPIC.GROUP.retry, which the group's processors read
    beside TOPIC: no other group sees them again. A letter is put back once;
    should it fail again, it is a new dead letter, which still says where it
    came from. Those of a key go back in the order in which they failed.

    Unless each letter or key is named they are counted first, and you are
    asked; --yes does not ask, and --dry-run only counts.

    Where a message closes a key (DeadLetters(sequenced=True)), --key lets it
    be handled again, and then those that wait behind it; --keys all of them.

    [bold]Examples[/bold]

      [cyan]streams dead retry billing orders[/cyan]
      [cyan]streams dead retry billing orders 3/17 o-42[/cyan]   these two
      [cyan]streams dead retry billing orders --error timeout --since 2h --dry-run[/cyan]
      [cyan]streams dead retry billing orders -n 1[/cyan]        try the oldest first
      [cyan]streams dead retry billing orders --key c-17[/cyan]
    """
    letter_filter = parse_filter(error, key, since, until)
    if key and keys:
        raise UsageError("streams dead retry takes --key or --keys, not both")
    if which and keys:
        raise UsageError("streams dead retry takes WHICH or --keys, not both")
    if keys and (limit is not None or name is not None):
        raise UsageError("streams dead retry: --limit and --name are not for closed keys")
    with open_url(url) as log:
        if keys or (key and not which and name is None):
            closed = _select_closed_keys(log, group, topic, letter_filter, keys=key)
            if closed is not None:
                _retry_closed_keys(
                    log, group, topic, closed, letter_filter, limit, dry_run, yes, json=json
                )
                return
        retry_topic = DeadLetters().retry(topic, group)
        dead_letters = _open_dead_letters(log, group, topic, name)
        if key and not which:
            _require_closed(dead_letters, group, topic, letter_filter, key)
        _handle_letters(
            dead_letters,
            group,
            topic,
            _Action("retried", "put back", f"to {retry_topic}"),
            partial(dead_letters.redrive, lambda row: retry_topic),
            which=which,
            letter_filter=letter_filter,
            limit=limit,
            dry_run=dry_run,
            yes=yes,
            json=json,
        )


class _Action(NamedTuple):
    """What a command does with letters, in words."""

    field: str
    """In JSON."""
    done_text: str
    destination: str


def _handle_letters(
    dead_letters: DeadLetterTopic,
    group: str,
    topic: str,
    action: _Action,
    handle: Callable[..., int],
    *,
    which: list[str] | None,
    letter_filter: DeadLetterFilter,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> int:
    """Do it with the letters that are meant. Unless each is named, they are counted first, and
    somebody is asked."""

    def matches(row: LogRow) -> bool:
        return _is_of(row, group, topic) and letter_filter(row)

    if which:
        if limit is not None:
            raise UsageError("--limit is for all letters, or those that an option picks out")
        selection = dead_letters.select_named(which, matches)
    else:
        selection = dead_letters.select(matches, limit)
    number = output.count_text(selection.count, "letter")
    if dry_run:
        if json:
            found = {"group": group, "topic": topic, action.field: 0, "matching": selection.count}
            output.print_json(found)
        else:
            output.print_note(
                f"{number} would be {action.done_text}, {action.destination}; nothing is changed"
            )
        return selection.count
    if selection.count and not which:
        confirm(
            f"{number} of {dead_letters.name}: to be {action.done_text}, {action.destination}?",
            yes=yes,
        )
    done = handle(matches=selection.matches, limit=limit, end_offsets=selection.end_offsets)
    _print_handled(group, topic, done, action, json=json)
    return done


def _print_handled(group: str, topic: str, done: int, action: _Action, *, json: bool) -> None:
    _print_count_json(group, topic, done, action.field, json=json)
    if not json:
        output.print_note(
            f"{output.count_text(done, 'letter')} {action.done_text}, {action.destination}"
        )


def _select_closed_keys(
    log: Log, group: str, topic: str, letter_filter: DeadLetterFilter, *, keys: list[str] | None
) -> list[ClosedKeyHead] | None:
    """The closed keys that are meant; None: none of these is closed, so letters are meant.

    :raises NotFound: all are meant, and no key was ever closed here.
    :raises NotClosed: some of them are closed, and not this one; or no decision is waited for.
    """
    if keys is None:
        closed_keys_log = _open_closed_keys(log, group, topic)
        return [
            closed_key
            for closed_key in closed_keys_log.heads()
            if closed_key.is_dead and letter_filter(closed_key.row)
        ]
    try:
        closed_keys_log = _open_closed_keys(log, group, topic)
    except NotFound:
        return None
    names = [_key_bytes(each) for each in dict.fromkeys(keys)]
    if not any(next(closed_keys_log.heads(each), None) for each in names):
        return None
    filter_without_keys = replace(letter_filter, keys=None)
    return [
        closed_key
        for each in names
        if filter_without_keys((closed_key := closed_keys_log.dead_head(each)).row)
    ]


def _require_closed(
    dead_letters: DeadLetterTopic,
    group: str,
    topic: str,
    letter_filter: DeadLetterFilter,
    names: list[str],
) -> None:
    """Where no letter has one of these keys, and keys can be closed: say that they are not.

    :raises NotClosed: the first of them that is not.
    """
    if dead_letters.count_waiting(lambda row: _is_of(row, group, topic) and letter_filter(row)):
        return
    try:
        closed_keys_log = _open_closed_keys(dead_letters.log, group, topic)
    except NotFound:
        return
    for name in names:
        closed_keys_log.dead_head(_key_bytes(name))


def _retry_closed_keys(
    log: Log,
    group: str,
    topic: str,
    selection: list[ClosedKeyHead],
    letter_filter: DeadLetterFilter,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    *,
    json: bool,
) -> None:
    if limit is not None:
        raise UsageError("streams dead retry: --limit and --name are not for closed keys")
    closed_keys_log = _open_closed_keys(log, group, topic)
    number = output.count_text(len(selection), "key")
    if dry_run:
        if json:
            found = {"group": group, "topic": topic, "retried": 0, "matching": len(selection)}
            output.print_json(found)
        else:
            output.print_note(f"{number} would be retried; nothing is changed")
        return
    if selection and (
        letter_filter.keys is None or not replace(letter_filter, keys=None).matches_all
    ):
        confirm(f"{number} of {closed_keys_log.name}: to be retried?", yes=yes)
    for closed_key in selection:
        closed_keys_log.send_command("retry", closed_key)
    _print_decided(group, topic, len(selection), "retried", json=json)


@app.command("keys")
def list_closed_keys(
    group: Group,
    topic: Topic,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="So many at most.")
    ] = 1_000,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """List the closed keys, and what closes them.

    A processor with DeadLetters(sequenced=True) closes a key when a message of
    it is dead: later messages of that key are parked behind it, until it is
    retried, edited or dropped.

    [bold]Examples[/bold]

      [cyan]streams dead keys billing orders[/cyan]
      [cyan]streams dead retry billing orders --key c-17[/cyan]   handle it again
      [cyan]streams dead edit billing orders c-17 --value '{"n": 1}'[/cyan]
      [cyan]streams dead drop billing orders c-17[/cyan]          go on without it
    """
    with open_url(url, "ro") as log:
        found_keys = _open_closed_keys(log, group, topic).heads(limit=limit)
        summaries = (
            output.call_or_report(
                f"key {closed_key.key!r}", partial(_closed_key_json, log, closed_key)
            )
            for closed_key in found_keys
        )
        found = [each for each in summaries if each is not None]
    if json:
        output.print_json(found)
        return
    columns = ["key", "parked", "state", "failed_at", "attempts", "redrives", "error", "place"]
    output.print_table(
        [name.replace("_", " ") for name in columns],
        [[_cell_value(each[name]) for name in columns] for each in found],
    )


@app.command("edit")
def edit_dead_letter(
    group: Group,
    topic: Topic,
    which: Annotated[
        str | None,
        typer.Argument(metavar="WHICH", help="PARTITION/OFFSET, message ID, or closed key."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", "-k", metavar="KEY", help="The closed key, instead.")
    ] = None,
    value: Annotated[
        str | None, typer.Option("--value", metavar="TEXT", help="What its value is to be.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="The same, from a file; - is standard input."
        ),
    ] = None,
    name: Name = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Put a dead letter back with another value.

    It opens in your editor (VISUAL or EDITOR), unless --value or --file says
    what its value is to be. Its bytes are taken as they are. It keeps its key,
    headers and ID, and says where it came from and that it was edited. A letter
    that was not changed in the editor stays where it is.

    Of what closes a key, the edited message is handled in its place, and then
    those that wait behind it.

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
        raise UsageError("streams dead edit: --name is not for closed keys")
    data = editing.replacement_value(value, file)
    command = editing.editor_command() if data is None else []

    def new_value(row: LogRow) -> bytes:
        old = row.batch.values[row.index] or b""
        return editing.edit_in_editor(old, command) if data is None else data

    with open_url(url) as log:
        closed_key = None if name is not None else _closed_key_meant(log, group, topic, which, key)
        if which is None or closed_key is not None:
            closed_keys_log = _open_closed_keys(log, group, topic)
            closed_key = closed_keys_log.dead_head(_key_bytes(key or which or ""))
            closed_keys_log.send_command("edit", closed_key, new_value(closed_key.row))
            _print_decided(group, topic, 1, "edited", json=json)
            return
        dead_letters = _open_dead_letters(log, group, topic, name)
        selection = dead_letters.select_named([which], lambda row: _is_of(row, group, topic))
        if selection.count > 1:
            raise CommandFailed(
                f"{dead_letters.name}: {selection.count} letters have the ID {which!r}; name one "
                "by its "
                f"PARTITION/OFFSET, see streams dead ls {group} {topic}"
            )
        (partition, end), *_ = selection.end_offsets.items()
        with closing(dead_letters.row_at(partition, end - 1)) as rows:
            row = next(iter(rows))
        retry_topic = DeadLetters().retry(topic, group)
        new = new_value(row)
        done = dead_letters.redrive(
            lambda row: retry_topic,
            matches=selection.matches,
            end_offsets=selection.end_offsets,
            edited=new,
        )
        if not done:
            raise CommandFailed(f"{dead_letters.name}: letter {which!r} was dealt with meanwhile")
    action = _Action("edited", "edited and put back", f"to {retry_topic}")
    _print_handled(group, topic, done, action, json=json)


def _closed_key_meant(
    log: Log, group: str, topic: str, which: str | None, key: str | None
) -> ClosedKeyHead | None:
    """What closes the key that is meant; None: a letter is meant.

    :raises Misused: it can be both.
    """
    try:
        closed_keys_log = _open_closed_keys(log, group, topic)
    except NotFound:
        if key is None:
            return None
        raise
    closed_key = next(closed_keys_log.heads(_key_bytes(which or key or "")), None)
    if closed_key is None or which is None:
        return closed_key
    try:
        _open_dead_letters(log, group, topic, None).select_named(
            [which], lambda row: _is_of(row, group, topic)
        )
    except NotFound:
        return closed_key
    raise UsageError(
        f"{which!r} is a closed key and a letter: give it as --key, or the letter as its "
        f"PARTITION/OFFSET, see streams dead ls {group} {topic}"
    )


@app.command("drop")
def drop_closed_key(
    group: Group,
    topic: Topic,
    key: Key,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Let go of the message that closes a key.

    Those that wait behind it are handled. The log keeps it as long as it keeps
    TOPIC.GROUP.parked.

    [bold]Examples[/bold]

      [cyan]streams dead drop billing orders c-17[/cyan]
    """
    with open_url(url) as log:
        closed_keys_log = _open_closed_keys(log, group, topic)
        closed_keys_log.send_command("drop", closed_keys_log.dead_head(_key_bytes(key)))
    _print_decided(group, topic, 1, "dropped", json=json)


def _print_decided(group: str, topic: str, count: int, field: str, *, json: bool) -> None:
    _print_count_json(group, topic, count, field, json=json)
    if not json:
        output.print_note(
            f"{output.count_text(count, 'key')} {field}; whoever owns the partition follows, once "
            "it runs"
        )


def _open_closed_keys(log: Log, group: str, topic: str) -> ClosedKeyReader:
    from streams.patterns.deadletters.closed_keys import ClosedKeyReader

    return ClosedKeyReader(log, group, topic)


def _key_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _closed_key_json(log: Log, closed_key: ClosedKeyHead) -> dict[str, Any]:
    summary = _letter_summary(log, closed_key.row, waiting=closed_key.is_dead)
    if not closed_key.is_dead and summary["error"] == "?":
        summary["error"] = summary["failed_at"] = None
    return {
        **summary,
        "parked": closed_key.parked,
        "state": "dead" if closed_key.is_dead else "coming back",
    }


@app.command("purge")
def purge_dead_letters(
    group: Group,
    topic: Topic,
    which: WhichLetters = None,
    limit: Limit = None,
    error: ErrorText = None,
    key: Keys = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    yes: AssumeYes = False,
    name: Name = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Set the dead letters that wait aside: all, some, or single ones.

    They are not retried and not listed any more. Nothing is deleted:
    [cyan]streams dead ls --all[/cyan] lists them.

    Unless each letter is named they are counted first, and you are asked;
    --yes does not ask, and --dry-run only counts. What closes a key is let go
    of with [cyan]streams dead drop[/cyan].

    [bold]Examples[/bold]

      [cyan]streams dead purge billing orders[/cyan]
      [cyan]streams dead purge billing orders 3/17 o-42[/cyan]
      [cyan]streams dead purge billing orders --error ValueError --until 7d[/cyan]
      [cyan]streams dead purge billing orders -n 10[/cyan]
    """
    letter_filter = parse_filter(error, key, since, until)
    with open_url(url) as log:
        dead_letters = _open_dead_letters(log, group, topic, name)
        _handle_letters(
            dead_letters,
            group,
            topic,
            _Action("purged", "set aside", "where streams dead ls --all still lists them"),
            dead_letters.purge,
            which=which,
            letter_filter=letter_filter,
            limit=limit,
            dry_run=dry_run,
            yes=yes,
            json=json,
        )


def _print_count_json(group: str, topic: str, done: int, field: str, *, json: bool) -> None:
    if json:
        output.print_json({"group": group, "topic": topic, field: done})


def _open_dead_letters(
    log: Log, group: str | None, topic: str | None, name: str | None
) -> DeadLetterTopic:
    """The dead letters of a group and topic, or those in the topic of this name.

    :raises Failed: there is no such topic; says where their letters stand.
    """
    from streams.cli.dead_letter_topics import (
        find_dead_letter_topics,
        other_topics_of,
        suggest_arguments,
    )
    from streams.patterns.deadletters.redriving import DeadLetterTopic

    default_name = "" if group is None or topic is None else DeadLetters().name(topic, group)
    try:
        return DeadLetterTopic(log, name or default_name)
    except NotFound as error:
        found = find_dead_letter_topics(log).topics
        known = [each.name for each in found]
        hint = suggestion(name or default_name, known) if known else "there is none at all"
        if group is not None and topic is not None:
            if others := other_topics_of(found, group, topic, ""):
                hint = _use_name_hint(others, group, topic)
            elif name is None and (suggested := suggest_arguments(found, group, topic)) is not None:
                hint = f"did you mean {suggested}?"
        raise CommandFailed(
            f"there is no dead letter topic {name or default_name!r}; {hint}"
        ) from error


def _print_other_topics(log: Log, group: str, topic: str, name: str) -> None:
    """Where nothing of a group and topic was found in a topic: say where their letters stand, or
    whose letters are here."""
    from streams.cli.dead_letter_topics import find_dead_letter_topics, other_topics_of

    found = find_dead_letter_topics(log).topics
    here = next((each.sources for each in found if each.name == name), ())
    if others := other_topics_of(found, group, topic, name):
        output.print_note(_use_name_hint(others, group, topic))
    elif here and (topic, group) not in here:
        whose = ", ".join(f"{group} {topic}" for topic, group in here)
        output.print_note(f"in {name} are letters of GROUP TOPIC: {whose}")


def _use_name_hint(names: list[str], group: str, topic: str) -> str:
    return (
        f"letters of group {group} and topic {topic} stand in {', '.join(names)}: add --name "
        f"{names[0]}"
    )


def _is_of(row: LogRow, group: str | None, topic: str | None) -> bool:
    """A letter is of this group and topic; one topic may hold those of several."""
    from streams.patterns.deadletters.redriving import source_of

    if group is None and topic is None:
        return True
    said_topic, said_group = source_of(row.batch.headers(row.index))
    return said_topic in (None, topic) and said_group in (None, group)


def _position_text(log: Log, row: LogRow) -> str:
    return f"{row.batch.topic}/{row.batch.partition}/{log.format_offset(row.position.offset)}"


def _is_named(log: Log, row: LogRow, which: str) -> bool:
    position = _position_text(log, row)
    return which in (position, position.partition("/")[2], row.batch.id(row.index))


def _letter_summary(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    from streams import derived_records

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    parts = [
        _header_text(headers, name)
        for name in (
            derived_records.ERROR_TOPIC,
            derived_records.ERROR_PARTITION,
            derived_records.ERROR_OFFSET,
        )
    ]
    source = "/".join(part or "?" for part in parts)
    kind = (_header_text(headers, derived_records.ERROR_EXCEPTION) or "?").rpartition(".")[2]
    said = _header_text(headers, derived_records.ERROR_MESSAGE)
    error = f"{kind}: {said}" if said else kind
    failed_at = _failed_at_text(
        _header_text(headers, derived_records.ERROR_TIME), batch.time(index)
    )
    first = wire.parse_iso_time(_header_text(headers, derived_records.FIRST_FAILED))
    return {
        "place": f"{batch.partition}/{log.format_offset(row.position.offset)}",
        "position": _position_text(log, row),
        "failed_at": failed_at,
        "group": _header_text(headers, derived_records.ERROR_GROUP),
        "id": output.printable_text(batch.id(index)),
        "key": output.bytes_text(batch.keys[index]),
        "attempts": derived_records.attempts_of(headers) or None,
        "error": error,
        "source": source,
        "origin": _header_text(headers, derived_records.ORIGIN) or source,
        "first_failed_at": failed_at if first is None else output.iso_time(first.timestamp()),
        "first_error": _header_text(headers, derived_records.FIRST_ERROR) or error,
        "redrives": derived_records.redrives_of(headers),
        "edited": _header_text(headers, derived_records.EDITED) is not None,
        "waiting": waiting,
    }


def _failed_at_text(written: str | None, otherwise: float) -> str:
    found = wire.parse_iso_time(written)
    return output.iso_time(otherwise if found is None else found.timestamp())


def _letter_details(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    from streams import derived_records
    from streams.message import ID

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    return {
        **_letter_summary(log, row, waiting=waiting),
        "headers": {
            output.printable_text(name): output.bytes_text(value)
            for name, value in headers
            if name != ID and not name.startswith(derived_records.ERROR_PREFIX)
        },
        "traceback": _header_text(headers, derived_records.ERROR_STACKTRACE),
        **output.value_json(batch.values[index]),
    }


def _header_text(headers: Headers, name: str) -> str | None:
    found = [value for each, value in headers if each == name]
    return output.bytes_text(found[-1]) if found else None
