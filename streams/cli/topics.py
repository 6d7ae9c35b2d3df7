"""``streams topics``: what there is to read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import show
from streams.cli.bookkeeping import not_shown, own_topics
from streams.cli.failures import Misused
from streams.cli.options import All, Json, Url, Yes, confirm, open_url
from streams.cli.places import duration

if TYPE_CHECKING:
    from streams.log.protocol import Log, Retention

app = typer.Typer(no_args_is_help=True, help="List, create, delete and show topics.")

Name = Annotated[str, typer.Argument(metavar="TOPIC", help="Its name.")]


@app.command("ls")
def ls(everything: All = False, url: Url = None, json: Json = False) -> None:
    r"""List the topics.

    What the toolkit keeps beside them (dead letters, retries, delays, journals
    of sagas) is left out, unless --all is given.

    [bold]Examples[/bold]

      [cyan]streams topics ls[/cyan]
      [cyan]streams topics ls --all[/cyan]
      [cyan]streams topics ls --json | jq -r '.\[].topic'[/cyan]
    """
    with open_url(url, "ro") as log:
        topics = log.topics()
        own: set[str] = set()
        if not everything:
            groups = show.tried("groups", log.groups) or ()
            own = own_topics((info.name for info in topics), groups)
        found = [
            (info, show.tried(info.name, partial(_messages, log, info.name, info.partitions)))
            for info in topics
            if info.name not in own
        ]
    if json:
        show.print_json(
            [
                {
                    "topic": info.name,
                    "partitions": info.partitions,
                    "messages": messages,
                    "retention": _retention_json(info.retention),
                }
                for info, messages in found
            ]
        )
        return
    show.table(
        ["topic", "partitions", "messages", "retention"],
        [
            [info.name, info.partitions, messages, _retention(info.retention)]
            for info, messages in found
        ],
    )
    not_shown(len(own), "topic")


@app.command("show")
def show_topic(topic: Name, url: Url = None, json: Json = False) -> None:
    """Show a topic: where each partition begins and ends.

    [bold]Examples[/bold]

      [cyan]streams topics show orders[/cyan]
    """
    with open_url(url, "ro") as log:
        info = log.topic(topic)
        parts: list[dict[str, Any]] = []
        for partition in range(info.partitions):
            first, end = log.bounds(topic, partition)
            parts.append(
                {
                    "partition": partition,
                    "first": show.offset(log, first),
                    "end": show.offset(log, end),
                    "messages": log.lag(topic, partition, first),
                }
            )
    if json:
        retention = _retention_json(info.retention)
        show.print_json({"topic": topic, "retention": retention, "partitions": parts})
        return
    show.say(f"{topic}: {_retention(info.retention)}")
    columns = ["partition", "first", "end", "messages"]
    show.table(columns, [[str(part["partition"]), *map(part.get, columns[1:])] for part in parts])


@app.command("create")
def create(
    topic: Name,
    partitions: Annotated[
        int, typer.Option("--partitions", "-p", min=1, metavar="N", help="How many.")
    ] = 1,
    keep_for: Annotated[
        str | None,
        typer.Option("--keep-for", metavar="TIME", help="Drop messages older than 90s, 12h, 7d..."),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, metavar="N", help="Keep about so many a partition."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", metavar="NAME=VALUE", help="A setting of the server's own."),
    ] = None,
    url: Url = None,
) -> None:
    """Create a topic.

    Doing it again is harmless; with another number of partitions it is an
    error. Messages that a group has not handled are kept whatever their age.

    [bold]Examples[/bold]

      [cyan]streams topics create orders --partitions 8[/cyan]
      [cyan]streams topics create clicks -p 4 --keep-for 7d --keep 1000000[/cyan]
      [cyan]streams topics create orders -p 8 --config min.insync.replicas=2[/cyan]
    """
    from streams.log.protocol import Retention

    settings: dict[str, str] = {}
    for pair in config or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Misused(f"--config {pair!r}: write it as name=value")
        settings[name] = value
    seconds = None if keep_for is None else duration(keep_for, "--keep-for")
    with open_url(url, "rwc") as log:
        info = log.create(topic, partitions, Retention(seconds, keep), settings or None)
    show.say(
        f"{info.name}: {show.number(info.partitions, 'partition')}, {_retention(info.retention)}"
    )


@app.command("delete")
def delete(topic: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a topic with its messages and all positions in it.

    [bold]Examples[/bold]

      [cyan]streams topics delete clicks[/cyan]         asks first
      [cyan]streams topics delete clicks --yes[/cyan]
    """
    with open_url(url) as log:
        messages = _messages(log, topic, log.topic(topic).partitions)
        confirm(f"Delete {topic} with its {show.number(messages, 'message')}?", yes=yes)
        log.delete(topic)
    show.say(f"{topic}: deleted")


def _messages(log: Log, topic: str, partitions: int) -> int | None:
    found = 0
    for partition in range(partitions):
        part = log.lag(topic, partition, log.bounds(topic, partition)[0])
        if part is None:
            return None
        found += part
    return found


def _retention(retention: Retention) -> str:
    kept = []
    if retention.seconds is not None:
        kept.append(f"for {show.age(retention.seconds)}")
    if retention.messages is not None:
        kept.append(f"about {retention.messages:,} a partition")
    return f"kept {', '.join(kept) or 'for ever'}"


def _retention_json(retention: Retention) -> dict[str, Any]:
    return {"seconds": retention.seconds, "messages": retention.messages}
