"""``streams topics``: lists, shows, creates and deletes topics."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.offset_arguments import parse_duration
from streams.cli.options import Json, ShowAll, Url, Yes, confirm, open_url
from streams.inspection.counting import count_all

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.log.protocol import Log

app = typer.Typer(no_args_is_help=True, help="List, show, create, change and delete topics.")

Name = Annotated[str, Argument(metavar="TOPIC", help="Name of the topic.")]


KeepFor = Annotated[
    str | None,
    Option("--keep-for", metavar="TIME", help="Delete messages older than this: 90s, 12h, 7d."),
]
Keep = Annotated[
    int | None,
    Option("--keep", min=1, metavar="N", help="Keep about N messages per partition (not Kafka)."),
]
KeepBytes = Annotated[
    int | None,
    Option("--keep-bytes", min=1, metavar="N", help="Keep about N bytes per partition (Kafka)."),
]
Compacted = Annotated[
    bool, Option("--compacted", help="Keep only the last message of each key (Kafka).")
]


@app.command("ls")
def list_topics(show_all: ShowAll = False, url: Url = None, json: Json = False) -> None:
    r"""List the topics.

    Topics that the toolkit keeps for itself (dead letters, retries, delays,
    journals of sagas) are left out unless --all is given.

    [bold]Examples[/bold]

      [cyan]streams topics ls[/cyan]
      [cyan]streams topics ls --all[/cyan]
      [cyan]streams topics ls --json | jq -r '.\[].topic'[/cyan]
    """
    from streams.patterns.internal_topics import internal_topics

    with open_url(url, "ro") as log:
        topics = log.describe_topics()
        internal: set[str] = set()
        if not show_all:
            groups = output.call_or_report("groups", log.list_groups) or ()
            internal = internal_topics((info.name for info in topics), groups)
        shown = [info for info in topics if info.name not in internal]
        found = [
            {
                "topic": info.name,
                "partitions": info.partitions,
                "messages": output.call_or_report(
                    info.name, partial(count_all, log, info.name, info.partitions)
                ),
                "retention": asdict(info.retention),
            }
            for info in shown
        ]
    if json:
        output.print_json(found)
        return
    for row, info in zip(found, shown, strict=True):
        row["retention"] = output.retention_text(info.retention)
    columns = ["topic", "partitions", "messages", "retention"]
    output.print_rows(found, columns, json=False)
    output.print_hidden_count(len(internal), "topic")


@app.command("show")
def show_topic(topic: Name, url: Url = None, json: Json = False) -> None:
    """Show a topic's retention, and where each partition begins and ends.

    [bold]Examples[/bold]

      [cyan]streams topics show orders[/cyan]
    """
    with open_url(url, "ro") as log:
        info = log.describe_topic(topic)
        rows = [_partition_json(log, topic, each) for each in range(info.partitions)]
    if json:
        output.print_json({"topic": topic, "retention": asdict(info.retention), "partitions": rows})
        return
    output.print_line(f"{topic}: {output.retention_text(info.retention)}")
    columns = ["partition", "first", "end", "messages"]
    output.print_rows(rows, columns, json=False)


def _partition_json(log: Log, topic: str, partition: int) -> dict[str, Any]:
    first, end = log.watermarks(topic, partition)
    return {
        "partition": partition,
        "first": output.offset_json(log, first),
        "end": output.offset_json(log, end),
        "messages": log.lag(topic, partition, first),
    }


@app.command("create")
def create_topic(
    topic: Name,
    partitions: Annotated[
        int, Option("--partitions", "-p", min=1, metavar="N", help="Number of partitions.")
    ] = 1,
    keep_for: KeepFor = None,
    keep: Keep = None,
    keep_bytes: KeepBytes = None,
    compacted: Compacted = False,
    config: Annotated[
        list[str] | None,
        Option("--config", metavar="NAME=VALUE", help="A setting of the server; repeatable."),
    ] = None,
    url: Url = None,
) -> None:
    """Create a topic.

    Creating a topic again is harmless; with another number of partitions it is
    an error. Messages that a group has not handled are kept whatever their age,
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
            raise UsageError(f"--config {pair!r}: write it as name=value")
        settings[name] = value
    retention = _parse_retention(keep_for, keep, keep_bytes, compacted=compacted)
    with open_url(url, "rwc") as log:
        info = log.create_topic(topic, partitions, retention, settings or None)
    output.print_line(
        f"{info.name}: {output.plural(info.partitions, 'partition')}, "
        f"{output.retention_text(info.retention)}"
    )
    differs = output.retention_text(info.retention) != output.retention_text(retention)
    if differs and retention != Retention() and info.retention_known:
        options_text = output.retention_options(retention)
        output.print_note(
            f"{topic} already exists and keeps its retention: streams topics retain {topic} "
            f"{options_text} changes it"
        )


@app.command("retain")
def set_retention(
    topic: Name,
    keep_for: KeepFor = None,
    keep: Keep = None,
    keep_bytes: KeepBytes = None,
    compacted: Compacted = False,
    for_ever: Annotated[
        bool, Option("--for-ever", help="Keep messages for ever from now on.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Change how long a topic keeps its messages.

    The given options replace the topic's retention: bounds that are left out
    no longer apply.

    [bold]Examples[/bold]

      [cyan]streams topics retain clicks --keep-for 7d[/cyan]         asks first
      [cyan]streams topics retain clicks --keep-for 7d --yes[/cyan]
      [cyan]streams topics retain orders --for-ever[/cyan]
    """
    from streams.config import Retention
    from streams.log.events import events_only

    retention = _parse_retention(keep_for, keep, keep_bytes, compacted=compacted)
    if for_ever == (retention != Retention()):
        raise UsageError(
            "give how long messages are kept: --for-ever, or one or more of --keep-for, --keep, "
            "--keep-bytes and --compacted"
        )
    with open_url(url) as log:
        info = log.describe_topic(topic)
        if not for_ever:
            if info.is_event_topic:
                raise events_only(topic, "trimmed")
            before, after = map(output.retention_text, (info.retention, retention))
            confirm(
                f"{topic}: {before}. {after.capitalize()} from now on, and delete what is beyond "
                "that?",
                yes=yes,
            )
        info = log.set_retention(topic, retention)
    output.print_line(f"{info.name}: {output.retention_text(info.retention)}")


@app.command("delete")
def delete_topic(topic: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a topic with its messages and all positions in it.

    [bold]Examples[/bold]

      [cyan]streams topics delete clicks[/cyan]         asks first
      [cyan]streams topics delete clicks --yes[/cyan]
    """
    from streams.replay.fixed_groups import check_may_delete

    with open_url(url) as log:
        messages = count_all(log, topic, log.describe_topic(topic).partitions)
        check_may_delete(log, topic)
        confirm(f"Delete {topic} with its {output.plural(messages, 'message')}?", yes=yes)
        log.delete_topic(topic)
    output.print_line(f"{topic}: deleted")


def _parse_retention(
    keep_for: str | None, keep: int | None, keep_bytes: int | None, *, compacted: bool
) -> Retention:
    from streams.config import Retention

    seconds = None if keep_for is None else parse_duration(keep_for, "--keep-for")
    return Retention(seconds, keep, keep_bytes, compacted)
