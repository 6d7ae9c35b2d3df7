"""``streams groups``: who reads, how far they are, and what they are waiting for."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli import show
from streams.cli.bookkeeping import is_own_group, not_shown, own_topics
from streams.cli.options import All, Json, Url, Yes, confirm, open_url

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log
    from streams.message import Batch

app = typer.Typer(no_args_is_help=True, help="List, show and delete consumer groups.")

Name = Annotated[str, typer.Argument(metavar="GROUP", help="Its name.")]


@app.command("ls")
def ls(everything: All = False, url: Url = None, json: Json = False) -> None:
    r"""List the groups: who runs, and what is waiting.

    Those that the toolkit keeps for itself (they follow delays, journals of
    sagas, or mark dead letters as dealt with) are left out, unless --all is
    given.

    [bold]Examples[/bold]

      [cyan]streams groups ls[/cyan]
      [cyan]streams groups ls --json | jq '.\[] | select(.lag > 1000)'[/cyan]
    """
    found: list[dict[str, Any]] = []
    hidden = 0
    with open_url(url, "ro") as log:
        names = log.groups()
        topics = show.tried("topics", log.topics) or ()
        own = own_topics((info.name for info in topics), names)
        for name in names:
            # Others name their groups as they like, and one may be gone by now.
            row = show.tried(f"group {name}", partial(_row, log, name))
            if row is None:
                continue
            if not everything and is_own_group(name, row["topics"], own):
                hidden += 1
            else:
                found.append(row)
    if json:
        show.print_json(found)
        return
    show.table(
        ["group", "members", "lag", "topics"],
        [
            [each["group"], each["members"], each["lag"], ", ".join(each["topics"])]
            for each in found
        ],
    )
    not_shown(hidden, "group")


def _row(log: Log, name: str) -> dict[str, Any]:
    info = log.group(name)
    return {
        "group": show.printable(name),
        "members": len(info.members),
        "topics": sorted({topic for topic, _ in info.positions}),
        "lag": _lag(log, info),
    }


def _lag(log: Log, info: GroupInfo) -> int | None:
    parts = [
        log.lag(topic, partition, held.position)
        for (topic, partition), held in info.positions.items()
    ]
    return None if None in parts else sum(part for part in parts if part is not None)


@app.command("show")
def show_group(group: Name, url: Url = None, json: Json = False) -> None:
    """Show where a group is in every partition.

    The oldest message that is not settled holds its partition's position back:
    its age and its key are shown. [cyan]ahead[/cyan] counts what is settled behind it.

    [bold]Examples[/bold]

      [cyan]streams groups show billing[/cyan]
      [cyan]watch streams groups show billing[/cyan]
    """
    with open_url(url, "ro") as log:
        info = log.group(group)
        owners = {place: member.id for member in info.members for place in member.partitions}
        places = sorted({*info.positions, *owners})
        parts = [_part(log, info, topic, partition, owners) for topic, partition in places]
    if json:
        members = [
            {"id": each.id, "partitions": [list(place) for place in each.partitions]}
            for each in info.members
        ]
        show.print_json({"group": group, "members": members, "partitions": parts})
        return
    show.say(f"{group}: {show.number(len(info.members), 'member')} running")
    show.table(
        ["topic", "partition", "position", "end", "lag", "ahead", "oldest", "key", "owner"],
        [
            [
                part["topic"],
                str(part["partition"]),
                show.place(part["position"]),
                show.place(part["end"]),
                part["lag"],
                part["ahead"],
                show.age(part["oldest_seconds"]),
                part["oldest_key"],
                part["owner"],
            ]
            for part in parts
        ],
    )


def _part(
    log: Log, info: GroupInfo, topic: str, partition: int, owners: dict[tuple[str, int], str]
) -> dict[str, Any]:
    from streams.replay.resetting import settled_ahead
    from streams.replay.result import count

    held = info.positions.get((topic, partition))
    first, end = log.bounds(topic, partition)
    position = first if held is None else held.position
    ahead: int | None = 0
    for low, high in () if held is None else settled_ahead(held):
        part = count(log, topic, partition, low, high)
        ahead = None if ahead is None or part is None else ahead + part
    oldest = _oldest(log, topic, partition, max(first, position), end)
    return {
        "topic": topic,
        "partition": partition,
        "position": None if held is None else show.offset(log, held.position),
        "end": show.offset(log, end),
        "lag": log.lag(topic, partition, position),
        "ahead": ahead,
        "owner": owners.get((topic, partition)),
        "oldest_seconds": None if oldest is None else max(0.0, time.time() - oldest.time(0)),
        "oldest_key": None if oldest is None else show.readable(oldest.keys[0]),
        "oldest_id": None if oldest is None else show.printable(oldest.id(0)),
    }


def _oldest(log: Log, topic: str, partition: int, position: int, end: int) -> Batch | None:
    """What stands at a position: the first message that is not settled."""
    if position >= end:
        return None
    reader = log.reader(topic, partition, position, end)
    try:
        return reader.read(1)
    finally:
        reader.close()


@app.command("delete")
def delete(group: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a group and its positions.

    Should its processors start again, they begin as a new group does.

    [bold]Examples[/bold]

      [cyan]streams groups delete billing-test[/cyan]
      [cyan]streams groups delete billing-test --yes[/cyan]
    """
    with open_url(url) as log:
        positions = len(log.group(group).positions)
        confirm(f"Delete group {group} with its {show.number(positions, 'position')}?", yes=yes)
        log.forget(group)
    show.say(f"{group}: deleted")
