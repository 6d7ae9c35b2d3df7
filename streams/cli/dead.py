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
from streams.cli import editing, show
from streams.cli.choosing import Choice, DryRun, Error, OfKey, Since, Until, Which, choice
from streams.cli.failures import Failed, Misused
from streams.cli.options import Json, Url, Yes, confirm, open_url
from streams.config import DeadLetters
from streams.errors import ConfigError, NotFound
from streams.text import nearest

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Headers
    from streams.patterns.deadletters.closed import Head, Heads
    from streams.patterns.deadletters.redriving import LetterRows, Letters
    from streams.replay.copying import Row

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
def ls(
    group: Annotated[
        str | None, typer.Argument(metavar="GROUP", help="Whose; all there are, if not given.")
    ] = None,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Of which topic.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were retried or purged.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, metavar="N", help="The oldest N only."),
    ] = 1_000,
    error: Error = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    url: Url = None,
    json: Json = False,
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
    from streams.patterns.deadletters.redriving import LOOKED_AT

    if (group is None) != (topic is None):
        raise Misused("streams dead ls takes a group and its topic, or neither")
    asked = choice(error, key, since, until)
    if topic is None and name is None and not asked.everything:
        raise Misused(
            "streams dead ls: --error, --key, --since and --until go with a group and its topic, "
            "or with --name"
        )
    with open_url(url, "ro") as log:
        if topic is None and name is None:
            _topics(log, json=json)
            return
        letters = _letters(log, group, topic, name)
        with closing(letters.rows(everything=everything)) as rows:
            ours = (row for row in rows if _of(row, group, topic) and asked(row))
            found = []
            for row in islice(ours, limit):
                make = partial(_brief, log, row, waiting=rows.waits(row))
                if (brief := show.tried(_where(log, row), make)) is not None:
                    found.append(brief)
            more = next(ours, None) is not None
        if more:
            show.note(f"the oldest {limit:,}, and there are more; --limit N lists N")
        elif rows.cut:
            show.note(f"only the oldest {LOOKED_AT:,} letters of {letters.name} were looked at")
        if not found and group is not None and topic is not None:
            _tell_elsewhere(log, group, topic, letters.name)
    if json:
        show.print_json(found)
        return
    columns = ["place", "failed_at", "key", "attempts", "error", "origin"]
    if group is None:
        columns.insert(1, "group")
    show.table(
        [name.replace("_", " ") for name in columns],
        [[_cell(each[name]) for name in columns] for each in found],
    )


def _cell(found: Any) -> show.Cell:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return found if found is None or isinstance(found, int) else str(found)


def _topics(log: Log, *, json: bool) -> None:
    from streams.cli.letter_topics import arguments, find
    from streams.patterns.deadletters.redriving import dealt

    found: list[dict[str, Any]] = []
    other: str | None = None
    looked = find(log)
    for name, sources in looked.topics:
        waiting, total, oldest = 0, 0, None
        for partition, done in dealt(log, name, log.topic(name).partitions).items():
            first, end = log.bounds(name, partition)
            place = max(first, done.position)
            waiting += log.lag(name, partition, place) or 0
            for low, high in done.ranges:
                picked = (log.lag(name, partition, low), log.lag(name, partition, high))
                waiting -= (picked[0] or 0) - (picked[1] or 0)
            total += log.lag(name, partition, first) or 0
            moment = _time_of(log, name, partition, place, end)
            if moment is not None:
                oldest = moment if oldest is None else min(oldest, moment)
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
        if other is None:
            asked = (arguments(group, topic, name) for topic, group in sources)
            other = next((f"streams dead ls {words}" for words in asked if "--name" in words), None)
    if not looked.whole:
        show.note("not every partition was looked at for dead letters: name the topic with --name")
    if json:
        show.print_json(found)
        return
    show.table(
        ["dead letters", "of", "waiting", "total", "oldest"],
        [
            [
                each["dead_letters"],
                ", ".join(f"{of['group']} {of['topic']}" for of in each["of"]) or None,
                each["waiting"],
                each["total"],
                show.age(each["oldest_seconds"]),
            ]
            for each in found
        ],
    )
    if other is not None:
        show.note(f"a topic with another name than TOPIC.GROUP.dead is given as --name: {other}")


def _time_of(log: Log, topic: str, partition: int, position: int, end: int) -> float | None:
    if position >= end:
        return None
    with closing(log.reader(topic, partition, position, end)) as reader:
        batch = reader.read(1)
    return None if batch is None else batch.time(0)


@app.command("show")
def show_letter(
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
    json: Json = False,
) -> None:
    """Show one dead letter whole, with its traceback.

    [bold]Examples[/bold]

      [cyan]streams dead show billing orders[/cyan]         the oldest that waits
      [cyan]streams dead show billing orders 3/17[/cyan]
      [cyan]streams dead show billing orders 3/17 --json | jq .value[/cyan]
      [cyan]streams dead show billing orders --key c-17[/cyan]
    """
    if key is not None and (which is not None or name is not None):
        raise Misused("streams dead show takes --key, or WHICH and --name")
    with open_url(url, "ro") as log:
        if key is None:
            whole = _whole_letter(log, group, topic, which, name)
        else:
            head = next(_heads(log, group, topic).all(_bytes(key)), None)
            if head is None:
                raise Failed(f"key {key!r} is not closed; see streams dead keys {group} {topic}")
            whole = {**_closed(log, head), **_whole(log, head.row, waiting=head.dead)}
    if json:
        show.print_json(whole)
        return
    trace, headers = whole.pop("traceback"), whole.pop("headers")
    value = {part: whole.pop(part) for part in ("value", "text", "base64") if part in whole}
    show.mapping({part: _cell(cell) for part, cell in whole.items()})
    for header, text in headers.items():
        show.say(f"header {header}: {text or ''}")
    for part, cell in value.items():
        text = cell if isinstance(cell, str) else show.as_json(cell).decode("utf-8", "replace")
        show.say("")
        show.say(f"{part}:")
        show.block(text.rstrip())
    show.say("")
    show.say("traceback:")
    show.block((trace or "(none)").rstrip())


def _whole_letter(
    log: Log, group: str, topic: str, which: str | None, name: str | None
) -> dict[str, Any]:
    from streams.patterns.deadletters.redriving import LOOKED_AT

    letters = _letters(log, group, topic, name)
    place = None if which is None else _place(log, which)
    if place is not None and (found := _first(log, letters.at(*place), group, topic, which)):
        return found
    rows = letters.rows(everything=which is not None)
    if found := _first(log, rows, group, topic, which):
        return found
    what = "no dead letter waits" if which is None else f"there is no letter {which!r}"
    if rows.cut:
        what += f" among the oldest {LOOKED_AT:,}"
    raise Failed(f"{letters.name}: {what}; see streams dead ls {group} {topic} --all")


def _first(
    log: Log, rows: LetterRows, group: str, topic: str, which: str | None
) -> dict[str, Any] | None:
    """The first letter of a group and topic, or the one that is meant."""
    with closing(rows):
        ours = (row for row in rows if _of(row, group, topic))
        found = next((row for row in ours if which is None or _is(log, row, which)), None)
        return None if found is None else _whole(log, found, waiting=rows.waits(found))


def _place(log: Log, which: str) -> tuple[int, int] | None:
    """The partition and offset that were given; None: it is a message ID."""
    partition, slash, offset = "/".join(which.split("/")[-2:]).partition("/")
    if not slash or not (partition.isascii() and partition.isdigit() and len(partition) < 10):
        return None
    try:
        return int(partition), log.parse(offset)
    except ConfigError:
        return None


@app.command("retry")
def retry(
    group: Group,
    topic: Topic,
    which: Which = None,
    limit: Limit = None,
    error: Error = None,
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
    yes: Yes = False,
    name: Name = None,
    url: Url = None,
    json: Json = False,
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
    asked = choice(error, key, since, until)
    if key and keys:
        raise Misused("streams dead retry takes --key or --keys, not both")
    if which and keys:
        raise Misused("streams dead retry takes WHICH or --keys, not both")
    if keys and (limit is not None or name is not None):
        raise Misused("streams dead retry: --limit and --name are not for closed keys")
    with open_url(url) as log:
        if keys or (key and not which and name is None):
            closed = _closed_keys(log, group, topic, asked, wanted=key)
            if closed is not None:
                _retry_keys(log, group, topic, closed, asked, limit, dry_run, yes, json=json)
                return
        retry_topic = DeadLetters().retry(topic, group)
        letters = _letters(log, group, topic, name)
        if key and not which:
            _check_key(letters, group, topic, asked, key)
        _deal(
            letters,
            group,
            topic,
            _Task("retried", "put back", f"to {retry_topic}"),
            partial(letters.put_back, lambda row: retry_topic),
            which=which,
            asked=asked,
            limit=limit,
            dry_run=dry_run,
            yes=yes,
            json=json,
        )


class _Task(NamedTuple):
    """What a command does with letters, in words."""

    field: str
    """In JSON."""
    what: str
    where: str


def _deal(
    letters: Letters,
    group: str,
    topic: str,
    task: _Task,
    act: Callable[..., int],
    *,
    which: list[str] | None,
    asked: Choice,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> int:
    """Do it with the letters that are meant. Unless each is named, they are counted first, and
    somebody is asked."""

    def wanted(row: Row) -> bool:
        return _of(row, group, topic) and asked(row)

    if which:
        if limit is not None:
            raise Misused("--limit is for all letters, or those that an option picks out")
        chosen = letters.look_up(which, wanted)
    else:
        chosen = letters.look_for(wanted, limit)
    number = show.number(chosen.count, "letter")
    if dry_run:
        if json:
            found = {"group": group, "topic": topic, task.field: 0, "matching": chosen.count}
            show.print_json(found)
        else:
            show.note(f"{number} would be {task.what}, {task.where}; nothing is changed")
        return chosen.count
    if chosen.count and not which:
        confirm(f"{number} of {letters.name}: to be {task.what}, {task.where}?", yes=yes)
    done = act(wanted=chosen.wanted, limit=limit, ends=chosen.ends)
    _dealt(group, topic, done, task, json=json)
    return done


def _dealt(group: str, topic: str, done: int, task: _Task, *, json: bool) -> None:
    _told(group, topic, done, task.field, json=json)
    if not json:
        show.note(f"{show.number(done, 'letter')} {task.what}, {task.where}")


def _closed_keys(
    log: Log, group: str, topic: str, asked: Choice, *, wanted: list[str] | None
) -> list[Head] | None:
    """The closed keys that are meant; None: none of these is closed, so letters are meant.

    :raises NotFound: all are meant, and no key was ever closed here.
    :raises NotClosed: some of them are closed, and not this one; or no decision is waited for.
    """
    if wanted is None:
        heads = _heads(log, group, topic)
        return [head for head in heads.all() if head.dead and asked(head.row)]
    try:
        heads = _heads(log, group, topic)
    except NotFound:
        return None
    names = [_bytes(each) for each in dict.fromkeys(wanted)]
    if not any(next(heads.all(each), None) for each in names):
        return None
    rest = replace(asked, keys=None)
    return [head for each in names if rest((head := heads.one(each)).row)]


def _check_key(letters: Letters, group: str, topic: str, asked: Choice, names: list[str]) -> None:
    """Where no letter has one of these keys, and keys can be closed: say that they are not.

    :raises NotClosed: the first of them that is not.
    """
    if letters.waiting(lambda row: _of(row, group, topic) and asked(row)):
        return
    try:
        heads = _heads(letters.log, group, topic)
    except NotFound:
        return
    for name in names:
        heads.one(_bytes(name))


def _retry_keys(
    log: Log,
    group: str,
    topic: str,
    chosen: list[Head],
    asked: Choice,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    *,
    json: bool,
) -> None:
    if limit is not None:
        raise Misused("streams dead retry: --limit and --name are not for closed keys")
    heads = _heads(log, group, topic)
    number = show.number(len(chosen), "key")
    if dry_run:
        if json:
            found = {"group": group, "topic": topic, "retried": 0, "matching": len(chosen)}
            show.print_json(found)
        else:
            show.note(f"{number} would be retried; nothing is changed")
        return
    if chosen and (asked.keys is None or not replace(asked, keys=None).everything):
        confirm(f"{number} of {heads.name}: to be retried?", yes=yes)
    for head in chosen:
        heads.command("retry", head)
    _decided(group, topic, len(chosen), "retried", json=json)


@app.command("keys")
def closed_keys(
    group: Group,
    topic: Topic,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="So many at most.")
    ] = 1_000,
    url: Url = None,
    json: Json = False,
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
        heads = _heads(log, group, topic).all(limit=limit)
        tried = (show.tried(f"key {head.key!r}", partial(_closed, log, head)) for head in heads)
        found = [each for each in tried if each is not None]
    if json:
        show.print_json(found)
        return
    columns = ["key", "parked", "state", "failed_at", "attempts", "redrives", "error", "place"]
    show.table(
        [name.replace("_", " ") for name in columns],
        [[_cell(each[name]) for name in columns] for each in found],
    )


@app.command("edit")
def edit(
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
    json: Json = False,
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
        raise Misused("streams dead edit takes WHICH or --key")
    if key is not None and name is not None:
        raise Misused("streams dead edit: --name is not for closed keys")
    data = editing.given(value, file)
    command = editing.editor() if data is None else []

    def made(row: Row) -> bytes:
        old = row.batch.values[row.index] or b""
        return editing.edited(old, command) if data is None else data

    with open_url(url) as log:
        head = None if name is not None else _closing(log, group, topic, which, key)
        if which is None or head is not None:
            heads = _heads(log, group, topic)
            head = heads.one(_bytes(key or which or ""))
            heads.command("edit", head, made(head.row))
            _decided(group, topic, 1, "edited", json=json)
            return
        letters = _letters(log, group, topic, name)
        chosen = letters.look_up([which], lambda row: _of(row, group, topic))
        if chosen.count > 1:
            raise Failed(
                f"{letters.name}: {chosen.count} letters have the ID {which!r}; name one by its "
                f"PARTITION/OFFSET, see streams dead ls {group} {topic}"
            )
        (partition, end), *_ = chosen.ends.items()
        with closing(letters.at(partition, end - 1)) as rows:
            row = next(iter(rows))
        retry_topic = DeadLetters().retry(topic, group)
        new = made(row)
        done = letters.put_back(
            lambda row: retry_topic, wanted=chosen.wanted, ends=chosen.ends, edited=new
        )
        if not done:
            raise Failed(f"{letters.name}: letter {which!r} was dealt with meanwhile")
    task = _Task("edited", "edited and put back", f"to {retry_topic}")
    _dealt(group, topic, done, task, json=json)


def _closing(log: Log, group: str, topic: str, which: str | None, key: str | None) -> Head | None:
    """What closes the key that is meant; None: a letter is meant.

    :raises Misused: it can be both.
    """
    try:
        heads = _heads(log, group, topic)
    except NotFound:
        if key is None:
            return None
        raise
    head = next(heads.all(_bytes(which or key or "")), None)
    if head is None or which is None:
        return head
    try:
        _letters(log, group, topic, None).look_up([which], lambda row: _of(row, group, topic))
    except NotFound:
        return head
    raise Misused(
        f"{which!r} is a closed key and a letter: give it as --key, or the letter as its "
        f"PARTITION/OFFSET, see streams dead ls {group} {topic}"
    )


@app.command("drop")
def drop(
    group: Group,
    topic: Topic,
    key: Key,
    url: Url = None,
    json: Json = False,
) -> None:
    """Let go of the message that closes a key.

    Those that wait behind it are handled. The log keeps it as long as it keeps
    TOPIC.GROUP.parked.

    [bold]Examples[/bold]

      [cyan]streams dead drop billing orders c-17[/cyan]
    """
    with open_url(url) as log:
        heads = _heads(log, group, topic)
        heads.command("drop", heads.one(_bytes(key)))
    _decided(group, topic, 1, "dropped", json=json)


def _decided(group: str, topic: str, count: int, what: str, *, json: bool) -> None:
    _told(group, topic, count, what, json=json)
    if not json:
        show.note(
            f"{show.number(count, 'key')} {what}; whoever owns the partition follows, once it runs"
        )


def _heads(log: Log, group: str, topic: str) -> Heads:
    from streams.patterns.deadletters.closed import Heads

    return Heads(log, group, topic)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _closed(log: Log, head: Head) -> dict[str, Any]:
    brief = _brief(log, head.row, waiting=head.dead)
    if not head.dead and brief["error"] == "?":
        brief["error"] = brief["failed_at"] = None
    return {**brief, "parked": head.parked, "state": "dead" if head.dead else "coming back"}


@app.command("purge")
def purge(
    group: Group,
    topic: Topic,
    which: Which = None,
    limit: Limit = None,
    error: Error = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    name: Name = None,
    url: Url = None,
    json: Json = False,
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
    asked = choice(error, key, since, until)
    with open_url(url) as log:
        letters = _letters(log, group, topic, name)
        _deal(
            letters,
            group,
            topic,
            _Task("purged", "set aside", "where streams dead ls --all still lists them"),
            letters.set_aside,
            which=which,
            asked=asked,
            limit=limit,
            dry_run=dry_run,
            yes=yes,
            json=json,
        )


def _told(group: str, topic: str, done: int, what: str, *, json: bool) -> None:
    if json:
        show.print_json({"group": group, "topic": topic, what: done})


def _letters(log: Log, group: str | None, topic: str | None, name: str | None) -> Letters:
    """The dead letters of a group and topic, or those in the topic of this name.

    :raises Failed: there is no such topic; says where their letters stand.
    """
    from streams.cli.letter_topics import elsewhere, find, likely
    from streams.patterns.deadletters.redriving import Letters

    usual = "" if group is None or topic is None else DeadLetters().name(topic, group)
    try:
        return Letters(log, name or usual)
    except NotFound as error:
        found = find(log).topics
        known = [each.name for each in found]
        more = nearest(name or usual, known) if known else "there is none at all"
        if group is not None and topic is not None:
            if others := elsewhere(found, group, topic, ""):
                more = _there(others, group, topic)
            elif name is None and (meant := likely(found, group, topic)) is not None:
                more = f"did you mean {meant}?"
        raise Failed(f"there is no dead letter topic {name or usual!r}; {more}") from error


def _tell_elsewhere(log: Log, group: str, topic: str, name: str) -> None:
    """Where nothing of a group and topic was found in a topic: say where their letters stand, or
    whose letters are here."""
    from streams.cli.letter_topics import elsewhere, find

    found = find(log).topics
    here = next((each.sources for each in found if each.name == name), ())
    if others := elsewhere(found, group, topic, name):
        show.note(_there(others, group, topic))
    elif here and (topic, group) not in here:
        whose = ", ".join(f"{group} {topic}" for topic, group in here)
        show.note(f"in {name} are letters of GROUP TOPIC: {whose}")


def _there(names: list[str], group: str, topic: str) -> str:
    return (
        f"letters of group {group} and topic {topic} stand in {', '.join(names)}: add --name "
        f"{names[0]}"
    )


def _of(row: Row, group: str | None, topic: str | None) -> bool:
    """A letter is of this group and topic; one topic may hold those of several."""
    from streams.patterns.deadletters.redriving import source_of

    if group is None and topic is None:
        return True
    said_topic, said_group = source_of(row.batch.headers(row.index))
    return said_topic in (None, topic) and said_group in (None, group)


def _where(log: Log, row: Row) -> str:
    return f"{row.batch.topic}/{row.batch.partition}/{log.show(row.position.offset)}"


def _is(log: Log, row: Row, which: str) -> bool:
    where = _where(log, row)
    return which in (where, where.partition("/")[2], row.batch.id(row.index))


def _brief(log: Log, row: Row, *, waiting: bool) -> dict[str, Any]:
    from streams import letters

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    parts = [_header(headers, name) for name in (letters.TOPIC, letters.PARTITION, letters.OFFSET)]
    source = "/".join(part or "?" for part in parts)
    kind = (_header(headers, letters.EXCEPTION) or "?").rpartition(".")[2]
    said = _header(headers, letters.MESSAGE)
    error = f"{kind}: {said}" if said else kind
    failed_at = _moment(_header(headers, letters.TIME), batch.time(index))
    first = wire.iso(_header(headers, letters.FIRST_FAILED))
    return {
        "place": f"{batch.partition}/{log.show(row.position.offset)}",
        "position": _where(log, row),
        "failed_at": failed_at,
        "group": _header(headers, letters.GROUP),
        "id": show.printable(batch.id(index)),
        "key": show.readable(batch.keys[index]),
        "attempts": letters.attempts_of(headers) or None,
        "error": error,
        "source": source,
        "origin": _header(headers, letters.ORIGIN) or source,
        "first_failed_at": failed_at if first is None else show.iso(first.timestamp()),
        "first_error": _header(headers, letters.FIRST_ERROR) or error,
        "redrives": letters.redrives_of(headers),
        "edited": _header(headers, letters.EDITED) is not None,
        "waiting": waiting,
    }


def _moment(written: str | None, otherwise: float) -> str:
    found = wire.iso(written)
    return show.iso(otherwise if found is None else found.timestamp())


def _whole(log: Log, row: Row, *, waiting: bool) -> dict[str, Any]:
    from streams import letters
    from streams.message import ID

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    return {
        **_brief(log, row, waiting=waiting),
        "headers": {
            show.printable(name): show.readable(value)
            for name, value in headers
            if name != ID and not name.startswith(letters.PREFIX)
        },
        "traceback": _header(headers, letters.STACKTRACE),
        **show.value(batch.values[index]),
    }


def _header(headers: Headers, name: str) -> str | None:
    found = [value for each, value in headers if each == name]
    return show.readable(found[-1]) if found else None
