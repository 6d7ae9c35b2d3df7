"""One process manager: its declaration, the topics that it reads, the timeouts that wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.managers.lists import count_dead, manager_row, print_managers

if TYPE_CHECKING:
    from streams.cli.managers.log_and_app import LogAndApp
    from streams.eventsourcing.managers.inspection import (
        ManagerInspector,
        PendingEntry,
        ReadPartition,
        TimeoutDue,
    )


def manager_json(
    opened: LogAndApp, inspector: ManagerInspector, newest: int | None, number: int | None
) -> dict[str, Any]:
    """A manager as a document.

    :param newest: read at most this many of the newest records of each partition; None: all.
    :param number: this many of the next timeouts; None: all.
    """
    row = manager_row(opened, inspector, newest)
    dead = count_dead(opened.log, inspector)
    timeouts = inspector.timeouts(newest).entries
    return {
        **row,
        "definition": _definition_json(inspector),
        "places": [_partition_json(opened, each) for each in inspector.partitions()],
        "members": {group: list(inspector.members(group)) for group in inspector.groups},
        "dead_letters": {topic: count for topic, count in dead.items() if count},
        "next_timeouts": [_timeout_json(each) for each in timeouts[:number]],
    }


def _definition_json(inspector: ManagerInspector) -> dict[str, Any]:
    definition = inspector.manager.definition
    processor, timeouts = inspector.manager.processors[0], definition.timeouts
    return {
        "state": type(definition.state.initial).__name__,
        "topics": list(processor.topics),
        "timeouts": [] if timeouts is None else timeouts.names,
        "refusals": list(definition.commands.reasons),
        "decisions": list(definition.commands.named),
        "reactions": inspector.reactions_topic,
        "partitions": inspector.manager.instances.events.partitions,
        "group": processor.group,
    }


def _partition_json(opened: LogAndApp, found: ReadPartition) -> dict[str, Any]:
    log = opened.log
    return {
        "group": found.group,
        "topic": found.topic,
        "partition": found.partition,
        "position": None if found.position is None else output.offset_json(log, found.position),
        "end": output.offset_json(log, found.end),
        "lag": found.lag,
        "owner": None if found.owner is None else output.printable_text(found.owner),
    }


def _timeout_json(found: PendingEntry[TimeoutDue]) -> dict[str, Any]:
    due = found.value
    return {
        "id": output.printable_text(due.key),
        "name": output.printable_text(due.name),
        "sequence": output.printable_text(due.sequence),
        **due_json(found.due / 1000),
    }


def due_json(due: float) -> dict[str, Any]:
    """When a timeout is due, and how long it is overdue."""
    text = output.call_or_report("a timeout", partial(output.iso_time, due))
    return {"due": text, "overdue_seconds": max(0.0, time.time() - due)}


def print_manager(document: Mapping[str, Any]) -> None:
    """Print a manager for people."""
    definition = document["definition"]
    output.print_line(f"{document['manager']}: reads {', '.join(definition['topics'])}")
    lines: dict[str, output.Cell] = {
        "state": f"{definition['state']}, in {definition['reactions']}",
    }
    for field in ("timeouts", "refusals", "decisions"):
        if definition[field]:
            lines[field] = ", ".join(definition[field])
    for group, members in document["members"].items():
        lines[f"group {group}"] = ", ".join(members) or "no process runs it"
    for topic, count in document["dead_letters"].items():
        lines[f"dead in {topic}"] = output.plural(count, "message")
    output.print_mapping(lines)
    output.print_line("")
    print_managers([dict(document)])
    if document["places"]:
        output.print_line("")
        columns = ["topic", "partition", "position", "end", "lag", "owner"]
        output.print_rows(document["places"], columns, json=False)
    if document["next_timeouts"]:
        output.print_line("")
        columns = ["id", "name", "due", "overdue"]
        output.print_rows(list(map(timeout_row, document["next_timeouts"])), columns, json=False)
        if document["timeouts"] > len(document["next_timeouts"]):
            output.print_note("there are more timeouts: -n 0 shows all")


def timeout_row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A timeout as a row of a table."""
    overdue = found["overdue_seconds"]
    return {**found, "overdue": output.age_text(overdue) if overdue else None}
