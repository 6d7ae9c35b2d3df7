"""``streams topics``: what there is to read."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import show
from streams.cli.bookkeeping import not_shown, own_topics
from streams.cli.failures import Misused
from streams.cli.options import All, Json, Url, Yes, confirm, open_url
from streams.cli.places import duration

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.log.protocol import Log

app = typer.Typer(no_args_is_help=True, help="List, create, delete and show topics.")

Name = Annotated[str, typer.Argument(metavar="TOPIC", help="Its name.")]


KeepFor = Annotated[
    str | None,
    typer.Option("--keep-for", metavar="TIME", help="Drop messages older than 90s, 12h, 7d..."),
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", min=1, metavar="N", help="Keep about so many a partition (not Kafka)."),
]
KeepBytes = Annotated[
    int | None,
    typer.Option(
        "--keep-bytes", min=1, metavar="N", help="Keep about so many bytes a partition (Kafka)."
    ),
]
Compacted = Annotated[
    bool, typer.Option("--compacted", help="Keep the last message of each key alone (Kafka).")
]


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
            [info.name, info.partitions, messages, show.kept(info.retention)]
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
    show.say(f"{topic}: {show.kept(info.retention)}")
    show.table(
        ["partition", "first", "end", "messages"],
        [
            [
                str(part["partition"]),
                show.place(part["first"]),
                show.place(part["end"]),
                part["messages"],
            ]
            for part in parts
        ],
    )


@app.command("create")
def create(
    topic: Name,
    partitions: Annotated[
        int, typer.Option("--partitions", "-p", min=1, metavar="N", help="How many.")
    ] = 1,
    keep_for: KeepFor = None,
    keep: Keep = None,
    keep_bytes: KeepBytes = None,
    compacted: Compacted = False,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", metavar="NAME=VALUE", help="A setting of the server's own."),
    ] = None,
    url: Url = None,
) -> None:
    """Create a topic.

    Doing it again is harmless; with another number of partitions it is an
    error. Messages that a group has not handled are kept whatever their age,
    except on Kafka.

    [bold]Examples[/bold]

      [cyan]streams topics create orders --partitions 8[/cyan]
      [cyan]streams topics create clicks -p 4 --keep-for 7d --keep 1000000[/cyan]
      [cyan]streams topics create orders -p 8 --config min.insync.replicas=2[/cyan]
    """
    from streams.config import Retention

    settings: dict[str, str] = {}
    for pair in config or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Misused(f"--config {pair!r}: write it as name=value")
        settings[name] = value
    retention = _given(keep_for, keep, keep_bytes, compacted=compacted)
    with open_url(url, "rwc") as log:
        info = log.create(topic, partitions, retention, settings or None)
    show.say(
        f"{info.name}: {show.number(info.partitions, 'partition')}, {show.kept(info.retention)}"
    )
    differs = show.kept(info.retention) != show.kept(retention)
    if differs and retention != Retention() and info.retention_known:
        words = show.retention_options(retention)
        show.note(
            f"{topic} was there, and its retention is as it was: streams topics retain {topic} "
            f"{words} changes it"
        )


@app.command("retain")
def retain(
    topic: Name,
    keep_for: KeepFor = None,
    keep: Keep = None,
    keep_bytes: KeepBytes = None,
    compacted: Compacted = False,
    for_ever: Annotated[
        bool, typer.Option("--for-ever", help="Keep messages for ever from now on.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Change how long a topic keeps its messages.

    What is given replaces what the topic had: of the bounds, those that are
    left out do not hold any more.

    [bold]Examples[/bold]

      [cyan]streams topics retain clicks --keep-for 7d[/cyan]         asks first
      [cyan]streams topics retain clicks --keep-for 7d --yes[/cyan]
      [cyan]streams topics retain orders --for-ever[/cyan]
    """
    from streams.config import Retention

    retention = _given(keep_for, keep, keep_bytes, compacted=compacted)
    if for_ever == (retention != Retention()):
        raise Misused(
            "say how long messages are kept: --for-ever, or one or more of --keep-for, --keep, "
            "--keep-bytes and --compacted"
        )
    with open_url(url) as log:
        info = log.topic(topic)
        if not for_ever:
            confirm(
                f"{topic}: {show.kept(info.retention)}. {show.kept(retention).capitalize()} "
                "from now on, and delete what is beyond that?",
                yes=yes,
            )
        info = log.retain(topic, retention)
    show.say(f"{info.name}: {show.kept(info.retention)}")


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


def _given(
    keep_for: str | None, keep: int | None, keep_bytes: int | None, *, compacted: bool
) -> Retention:
    from streams.config import Retention

    seconds = None if keep_for is None else duration(keep_for, "--keep-for")
    return Retention(seconds, keep, keep_bytes, compacted)


def _messages(log: Log, topic: str, partitions: int) -> int | None:
    found = 0
    for partition in range(partitions):
        part = log.lag(topic, partition, log.bounds(topic, partition)[0])
        if part is None:
            return None
        found += part
    return found


def _retention_json(retention: Retention) -> dict[str, Any]:
    return asdict(retention)
