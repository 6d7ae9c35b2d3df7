"""The process managers of an app, a row for each.

Records that can be listed are, whatever else is in the log; the others are named on standard error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.log_queries import await_index
from streams.inspection.counting import count_dead_letters, sum_known

if TYPE_CHECKING:
    from streams.cli.managers.log_and_app import LogAndApp
    from streams.eventsourcing.managers.inspection import ManagerInspector
    from streams.log.protocol import Log


def manager_rows(opened: LogAndApp, newest: int | None) -> list[dict[str, Any]]:
    """A row for each manager.

    :param newest: read at most this many of the newest records of each partition; None: all.
    """
    if not opened.managers:
        output.print_note(f"{opened.target} declares no process managers")
    found: list[dict[str, Any]] = []
    for name in opened.managers:
        make = partial(manager_row, opened, opened.inspector(name), newest)
        row = output.call_or_report(f"process manager {name}", make)
        if row is not None:
            found.append(row)
    return found


def manager_row(
    opened: LogAndApp, inspector: ManagerInspector, newest: int | None
) -> dict[str, Any]:
    """The row of one manager, at a bounded cost.

    :raises LogError: the log cannot be read.
    """
    name, log = inspector.manager.name, opened.log
    await_index_of(opened, inspector)
    totals, timeouts = inspector.count_reactions(newest), inspector.timeouts(newest)
    if not (totals.is_complete and timeouts.is_complete):
        output.print_note(
            f"{name}: only the last {newest:,} reactions and timeouts of each partition were "
            "read; --newest 0 reads all"
        )
    if totals.unreadable:
        reactions = output.plural(totals.unreadable, "reaction")
        output.print_note(
            f"{name}: {reactions} cannot be decoded: streams aggregates ls {opened.target} {name} "
            "--undecodable lists their instances"
        )
    now = time.time() * 1000
    return {
        "manager": name,
        "processes": len(inspector.members(name)),
        "instances": totals.instances,
        "running": totals.running,
        "timeouts": len(timeouts.entries),
        "overdue": sum(each.due < now for each in timeouts.entries),
        "refused": totals.refused,
        "dead": sum(count_dead(log, inspector).values()),
        "lag": sum_known(each.lag for each in inspector.partitions()),
        "complete": totals.is_complete and timeouts.is_complete,
    }


def count_dead(log: Log, inspector: ManagerInspector) -> dict[str, int]:
    """The numbers of waiting dead letters, by their topic."""
    names = dict.fromkeys(each.name for each in inspector.dead_letters)
    return {name: count_dead_letters(log, name) for name in names}


def await_index_of(opened: LogAndApp, inspector: ManagerInspector) -> None:
    """Wait until the log knows which reactions count, if there are any."""
    from streams.errors import NotFound

    try:
        opened.log.describe_topic(inspector.reactions_topic)
    except NotFound:
        name = inspector.manager.name
        output.print_note(f"{name}: its topics do not exist yet; the app creates them when it runs")
        return
    await_index(opened.log, inspector.reactions_topic)


MANAGER_COLUMNS = (
    "manager",
    "processes",
    "instances",
    "running",
    "timeouts",
    "overdue",
    "refused",
    "dead",
    "lag",
)


def print_managers(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    output.print_rows(rows, MANAGER_COLUMNS, json=False)
