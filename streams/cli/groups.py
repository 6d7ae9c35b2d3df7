"""``streams groups``: the consumer groups, their progress, and their lag."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from streams.cli import output
from streams.cli.options import Json, ShowAll, Url, Yes, confirm, open_url

if TYPE_CHECKING:
    from streams.inspection.groups import GroupPosition
    from streams.log.protocol import Log

app = typer.Typer(no_args_is_help=True, help="List, show and delete consumer groups.")

AT_ONCE = 8
"""How many groups are queried at the same time: each takes several answers of a server."""

Name = Annotated[str, Argument(metavar="GROUP", help="Name of the group.")]


@app.command("ls")
def list_groups(show_all: ShowAll = False, url: Url = None, json: Json = False) -> None:
    r"""List the consumer groups with their members and lag.

    Groups that the toolkit keeps for itself (to follow delays and journals of
    sagas, or to mark dead letters as handled) are left out unless --all is
    given.

    [bold]Examples[/bold]

      [cyan]streams groups ls[/cyan]
      [cyan]streams groups ls --json | jq '.\[] | select(.lag > 1000)'[/cyan]
    """
    from streams.patterns.internal_topics import internal_topics, is_internal_group

    found: list[dict[str, Any]] = []
    hidden = 0
    with open_url(url, "ro") as log:
        names = log.list_groups()
        topics = output.call_or_report("topics", log.describe_topics) or ()
        internal = internal_topics((info.name for info in topics), names)
        # Other clients name their groups in any way, and a group may be gone by now.
        rows = _ask_for_all(log, names)
        for name, row in zip(names, rows, strict=True):
            if row is None:
                continue
            if not show_all and is_internal_group(name, row["topics"], internal):
                hidden += 1
            else:
                found.append(row)
    columns = ["group", "members", "lag", "topics"]
    output.print_rows(found, columns, json=json)
    if not json:
        output.print_hidden_count(hidden, "group")


def _ask_for_all(log: Log, names: Sequence[str]) -> list[dict[str, Any] | None]:
    def ask(name: str) -> dict[str, Any] | None:
        return output.call_or_report(f"group {name}", partial(_group_json, log, name))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(ask, names))


def _group_json(log: Log, name: str) -> dict[str, Any]:
    from streams.inspection.groups import total_lag

    info = log.describe_group(name)
    return {
        "group": output.printable_text(name),
        "members": len(info.members),
        "topics": sorted({topic for topic, _ in info.positions}),
        "lag": total_lag(log, info),
    }


@app.command("show")
def show_group(group: Name, url: Url = None, json: Json = False) -> None:
    """Show a group's position and lag in each partition.

    The oldest unsettled message holds back its partition's position; its age
    and key are shown. [cyan]ahead[/cyan] counts the later messages that are settled.

    [bold]Examples[/bold]

      [cyan]streams groups show billing[/cyan]
      [cyan]watch streams groups show billing[/cyan]
    """
    from streams.inspection.groups import group_positions

    with open_url(url, "ro") as log:
        info = log.describe_group(group)
        rows = [_partition_json(log, each) for each in group_positions(log, info)]
    members = [{"id": m.id, "partitions": [list(at) for at in m.partitions]} for m in info.members]
    if json:
        output.print_json({"group": group, "members": members, "partitions": rows})
        return
    output.print_line(f"{group}: {output.plural(len(members), 'member')} running")
    columns = {name: name for name in ("topic", "partition", "position", "end", "lag", "ahead")}
    columns |= {"oldest": "oldest_seconds", "key": "oldest_key", "owner": "owner"}
    output.print_rows(rows, columns, json=False)


def _partition_json(log: Log, found: GroupPosition) -> dict[str, Any]:
    oldest = found.oldest
    return {
        "topic": found.topic,
        "partition": found.partition,
        "position": None if found.position is None else output.offset_json(log, found.position),
        "end": output.offset_json(log, found.end),
        "lag": found.lag,
        "ahead": found.ahead,
        "owner": found.owner,
        "oldest_seconds": None if oldest is None else max(0.0, time.time() - oldest.time(0)),
        "oldest_key": None if oldest is None else output.bytes_text(oldest.keys[0]),
        "oldest_id": None if oldest is None else output.printable_text(oldest.id(0)),
    }


@app.command("delete")
def delete_group(group: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a group and its positions.

    If its processors start again, they begin like a new group.

    [bold]Examples[/bold]

      [cyan]streams groups delete billing-test[/cyan]
      [cyan]streams groups delete billing-test --yes[/cyan]
    """
    from streams.replay.fixed_groups import check_may_delete_group

    with open_url(url) as log:
        positions = output.plural(len(log.describe_group(group).positions), "position")
        check_may_delete_group(log, group)
        confirm(f"Delete group {group} with its {positions}?", yes=yes)
        log.delete_group(group)
    output.print_line(f"{group}: deleted")
