"""``streams groups``: who reads, how far they are, and what they are waiting for."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import output
from streams.cli.log_queries import read_first
from streams.cli.options import AsJson, AssumeYes, IncludeInternal, Url, confirm, open_url
from streams.log.protocol import TopicPartition

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

app = typer.Typer(no_args_is_help=True, help="List, show and delete consumer groups.")

Name = Annotated[str, typer.Argument(metavar="GROUP", help="Its name.")]


@app.command("ls")
def list_groups(
    include_internal: IncludeInternal = False, url: Url = None, json: AsJson = False
) -> None:
    r"""List the groups: who runs, and what is waiting.

    Those that the toolkit keeps for itself (they follow delays, journals of
    sagas, or mark dead letters as dealt with) are left out, unless --all is
    given.

    [bold]Examples[/bold]

      [cyan]streams groups ls[/cyan]
      [cyan]streams groups ls --json | jq '.\[] | select(.lag > 1000)'[/cyan]
    """
    from streams.patterns.internal_topics import internal_topics, is_internal_group

    found: list[dict[str, Any]] = []
    hidden = 0
    with open_url(url, "ro") as log:
        names = log.groups()
        topics = output.call_or_report("topics", log.topics) or ()
        internal = internal_topics((info.name for info in topics), names)
        for name in names:
            # Others name their groups as they like, and one may be gone by now.
            row = output.call_or_report(f"group {name}", partial(_group_json, log, name))
            if row is None:
                continue
            if not include_internal and is_internal_group(name, row["topics"], internal):
                hidden += 1
            else:
                found.append(row)
    if json:
        output.print_json(found)
        return
    output.print_table(
        ["group", "members", "lag", "topics"],
        [
            [each["group"], each["members"], each["lag"], ", ".join(each["topics"])]
            for each in found
        ],
    )
    output.print_hidden_count(hidden, "group")


def _group_json(log: Log, name: str) -> dict[str, Any]:
    info = log.group(name)
    return {
        "group": output.printable_text(name),
        "members": len(info.members),
        "topics": sorted({topic for topic, _ in info.positions}),
        "lag": _total_lag(log, info),
    }


def _total_lag(log: Log, info: GroupInfo) -> int | None:
    partition_lags = [
        log.lag(topic, partition, held.position)
        for (topic, partition), held in info.positions.items()
    ]
    return (
        None
        if None in partition_lags
        else sum(partition_lag for partition_lag in partition_lags if partition_lag is not None)
    )


@app.command("show")
def show_group(group: Name, url: Url = None, json: AsJson = False) -> None:
    """Show where a group is in every partition.

    The oldest message that is not settled holds its partition's position back:
    its age and its key are shown. [cyan]ahead[/cyan] counts what is settled behind it.

    [bold]Examples[/bold]

      [cyan]streams groups show billing[/cyan]
      [cyan]watch streams groups show billing[/cyan]
    """
    with open_url(url, "ro") as log:
        info = log.group(group)
        owners = {
            topic_partition: member.id
            for member in info.members
            for topic_partition in member.partitions
        }
        topic_partitions = sorted({*info.positions, *owners})
        rows = [
            _partition_json(log, info, topic, partition, owners)
            for topic, partition in topic_partitions
        ]
    if json:
        members = [
            {
                "id": each.id,
                "partitions": [list(topic_partition) for topic_partition in each.partitions],
            }
            for each in info.members
        ]
        output.print_json({"group": group, "members": members, "partitions": rows})
        return
    output.print_line(f"{group}: {output.count_text(len(info.members), 'member')} running")
    output.print_table(
        ["topic", "partition", "position", "end", "lag", "ahead", "oldest", "key", "owner"],
        [
            [
                row["topic"],
                str(row["partition"]),
                output.offset_cell(row["position"]),
                output.offset_cell(row["end"]),
                row["lag"],
                row["ahead"],
                output.age_text(row["oldest_seconds"]),
                row["oldest_key"],
                row["owner"],
            ]
            for row in rows
        ],
    )


def _partition_json(
    log: Log, info: GroupInfo, topic: str, partition: int, owners: dict[TopicPartition, str]
) -> dict[str, Any]:
    from streams.replay.offset_reset import settled_ahead
    from streams.replay.result import count_messages

    held = info.positions.get((topic, partition))
    first, end = log.watermarks(topic, partition)
    position = first if held is None else held.position
    settled_ahead_count: int | None = 0
    for low, high in () if held is None else settled_ahead(held):
        range_count = count_messages(log, topic, partition, low, high)
        settled_ahead_count = (
            None
            if settled_ahead_count is None or range_count is None
            else settled_ahead_count + range_count
        )
    oldest = read_first(log, topic, partition, max(first, position), end)
    return {
        "topic": topic,
        "partition": partition,
        "position": None if held is None else output.offset_json(log, held.position),
        "end": output.offset_json(log, end),
        "lag": log.lag(topic, partition, position),
        "ahead": settled_ahead_count,
        "owner": owners.get((topic, partition)),
        "oldest_seconds": None if oldest is None else max(0.0, time.time() - oldest.time(0)),
        "oldest_key": None if oldest is None else output.bytes_text(oldest.keys[0]),
        "oldest_id": None if oldest is None else output.printable_text(oldest.id(0)),
    }


@app.command("delete")
def delete_group(group: Name, yes: AssumeYes = False, url: Url = None) -> None:
    """Delete a group and its positions.

    Should its processors start again, they begin as a new group does.

    [bold]Examples[/bold]

      [cyan]streams groups delete billing-test[/cyan]
      [cyan]streams groups delete billing-test --yes[/cyan]
    """
    with open_url(url) as log:
        positions = len(log.group(group).positions)
        confirm(
            f"Delete group {group} with its {output.count_text(positions, 'position')}?", yes=yes
        )
        log.delete_group(group)
    output.print_line(f"{group}: deleted")
