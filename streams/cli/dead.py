"""``streams dead``: what could not be handled, and what to do about it."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams import wire
from streams.cli import show
from streams.cli.failures import Failed, Misused
from streams.cli.options import Json, Url, open_url
from streams.config import DeadLetters
from streams.errors import ConfigError

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
    name: Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    r"""List the dead letters that wait, the oldest first.

    Without a group and a topic, list where there are any.

    [bold]Examples[/bold]

      [cyan]streams dead ls[/cyan]
      [cyan]streams dead ls billing orders[/cyan]
      [cyan]streams dead ls billing orders -n 10[/cyan]
      [cyan]streams dead ls billing orders --json | jq -r '.\[].error' | sort | uniq -c[/cyan]
    """
    from streams.patterns.deadletters.redriving import LOOKED_AT

    if (group is None) != (topic is None):
        raise Misused("streams dead ls takes a group and its topic, or neither")
    with open_url(url, "ro") as log:
        if group is None or topic is None:
            _topics(log, json=json)
            return
        letters = _letters(log, group, topic, name)
        with closing(letters.rows(everything=everything)) as rows:
            ours = (row for row in rows if _of(row, group, topic))
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
    if json:
        show.print_json(found)
        return
    columns = ["place", "failed_at", "key", "attempts", "error", "source"]
    show.table(
        [name.replace("_", " ") for name in columns],
        [[_cell(each[name]) for name in columns] for each in found],
    )


def _cell(found: Any) -> show.Cell:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return found if found is None or isinstance(found, int) else str(found)


def _topics(log: Log, *, json: bool) -> None:
    from streams.patterns.deadletters.redriving import dead_topics, dealt

    found: list[dict[str, Any]] = []
    for name in dead_topics(log):
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
            {"dead_letters": name, "waiting": waiting, "total": total, "oldest_seconds": age}
        )
    if json:
        show.print_json(found)
        return
    show.table(
        ["dead letters", "waiting", "total", "oldest"],
        [
            [each["dead_letters"], each["waiting"], each["total"], show.age(each["oldest_seconds"])]
            for each in found
        ],
    )


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
    limit: Limit = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", "-k", metavar="KEY", help="A closed key, instead; repeatable."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="All closed keys, instead.")] = False,
    name: Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Put the dead letters that wait back.

    They go to the topic TOPIC.GROUP.retry, which the group's processors read
    beside TOPIC: no other group sees them again. A letter is put back once;
    should it fail again, it is a new dead letter.

    With --key or --keys: let the message that closes a key be handled again,
    and then those that wait behind it.

    [bold]Examples[/bold]

      [cyan]streams dead retry billing orders[/cyan]
      [cyan]streams dead retry billing orders -n 1[/cyan]   try the oldest first
      [cyan]streams dead retry billing orders --key c-17[/cyan]
    """
    if key and keys:
        raise Misused("streams dead retry takes --key or --keys, not both")
    if key or keys:
        if limit is not None or name is not None:
            raise Misused("streams dead retry: --limit and --name are not for closed keys")
        _retry_keys(group, topic, key or [], url, json=json)
        return
    with open_url(url) as log:
        retry_topic = DeadLetters().retry(topic, group)
        done = _letters(log, group, topic, name).put_back(
            lambda row: retry_topic, wanted=lambda row: _of(row, group, topic), limit=limit
        )
    _told(group, topic, done, "retried", json=json)
    if not json:
        show.note(f"{show.number(done, 'letter')} put back, to {retry_topic}")


def _retry_keys(group: str, topic: str, names: list[str], url: str | None, *, json: bool) -> None:
    with open_url(url) as log:
        heads = _heads(log, group, topic)
        if names:
            chosen = [heads.one(_bytes(each)) for each in dict.fromkeys(names)]
        else:
            chosen = [head for head in heads.all() if head.dead]
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
    key: Key,
    value: Annotated[
        str | None, typer.Option("--value", metavar="TEXT", help="What its value is to be.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="The same, from a file; - is standard input."
        ),
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Put another value in the place of the message that closes a key.

    It keeps its key, headers and ID, and is handled, and then those that wait
    behind it.

    [bold]Examples[/bold]

      [cyan]streams dead edit billing orders c-17 --value '{"n": 1}'[/cyan]
      [cyan]streams dead show billing orders --key c-17 --json | jq -c .value > v.json[/cyan]
      [cyan]streams dead edit billing orders c-17 -f v.json[/cyan]
    """
    if (value is None) == (file is None):
        raise Misused("streams dead edit takes --value or --file")
    if value is not None:
        data = _bytes(value)
    elif file == Path("-"):
        data = sys.stdin.buffer.read()
    else:
        data = b"" if file is None else file.read_bytes()
    with open_url(url) as log:
        heads = _heads(log, group, topic)
        heads.command("edit", heads.one(_bytes(key)), data)
    _decided(group, topic, 1, "edited", json=json)


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
    limit: Limit = None,
    name: Name = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set the dead letters that wait aside.

    They are not retried and not listed any more. Nothing is deleted:
    [cyan]streams dead ls --all[/cyan] lists them.

    [bold]Examples[/bold]

      [cyan]streams dead purge billing orders[/cyan]
      [cyan]streams dead purge billing orders -n 10[/cyan]
    """
    with open_url(url) as log:
        letters = _letters(log, group, topic, name)
        done = letters.set_aside(wanted=lambda row: _of(row, group, topic), limit=limit)
    _told(group, topic, done, "purged", json=json)
    if not json:
        show.note(
            f"{show.number(done, 'letter')} set aside; streams dead ls --all still lists them"
        )


def _told(group: str, topic: str, done: int, what: str, *, json: bool) -> None:
    if json:
        show.print_json({"group": group, "topic": topic, what: done})


def _letters(log: Log, group: str, topic: str, name: str | None) -> Letters:
    from streams.patterns.deadletters.redriving import Letters

    return Letters(log, name or DeadLetters().name(topic, group))


def _of(row: Row, group: str, topic: str) -> bool:
    """A letter is of this group and topic; one topic may hold those of several."""
    from streams.patterns.deadletters.redriving import source_of

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
    source = [_header(headers, name) for name in (letters.TOPIC, letters.PARTITION, letters.OFFSET)]
    kind = (_header(headers, letters.EXCEPTION) or "?").rpartition(".")[2]
    said = _header(headers, letters.MESSAGE)
    return {
        "place": f"{batch.partition}/{log.show(row.position.offset)}",
        "position": _where(log, row),
        "failed_at": _moment(_header(headers, letters.TIME), batch.time(index)),
        "id": show.printable(batch.id(index)),
        "key": show.readable(batch.keys[index]),
        "attempts": letters.attempts_of(headers) or None,
        "error": f"{kind}: {said}" if said else kind,
        "source": "/".join(part or "?" for part in source),
        "redrives": letters.redrives_of(headers),
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
