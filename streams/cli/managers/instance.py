"""One instance of a process manager: its state, its timeouts, its reactions and commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.aggregates.lists import list_keys
from streams.cli.command_errors import CommandFailed
from streams.cli.managers.lists import await_index_of
from streams.cli.managers.manager import due_json, timeout_row
from streams.text import did_you_mean

if TYPE_CHECKING:
    from streams.cli.managers.log_and_app import LogAndApp
    from streams.eventsourcing.managers.inspection import (
        InspectedCommand,
        InspectedInstance,
        InspectedReaction,
        InspectedTimeout,
        ManagerInspector,
    )

SUGGESTED_FROM = 1_000
"""How many instances of each partition are searched for one similar to a key that does not
exist."""


def instance_json(
    opened: LogAndApp, inspector: ManagerInspector, key: str, number: int | None
) -> dict[str, Any]:
    """An instance as a document.

    :param number: this many of its last reactions; None: all.
    :raises CommandFailed: there is no such instance.
    """
    from streams.errors import NotFound

    await_index_of(opened, inspector)
    try:
        found = inspector.inspect_instance(key, number)
    except NotFound:
        found = None
    if found is None:
        raise _not_there(opened, inspector, key)
    reactions = [
        row
        for each in found.reactions
        if (row := _reaction_row(opened, inspector, found, each)) is not None
    ]
    timeouts = [
        row
        for each in found.timeouts
        if (row := output.call_or_report("a timeout", partial(_timeout_json, each))) is not None
    ]
    return {
        "manager": inspector.manager.name,
        "id": output.printable_text(key),
        "version": found.version,
        "ended": found.instance.has_ended,
        "stopped": found.stopped or None,
        "state": output.document_json(bytes(found.instance.state)),
        "waits_for": list(_waits_for(found, timeouts)),
        "timeouts": timeouts,
        "reactions": reactions,
        "more_reactions": found.more,
    }


def _not_there(opened: LogAndApp, inspector: ManagerInspector, key: str) -> CommandFailed:
    """The error for an instance that does not exist; names a similar one."""
    from itertools import islice

    from streams.errors import LogError

    try:
        info = opened.log.describe_topic(inspector.reactions_topic)
        keys = list_keys(opened.log, info, b"", None, SUGGESTED_FROM)
        known = [output.bytes_text(each.key) or "" for each in islice(keys, SUGGESTED_FROM)]
    except LogError:
        known = []
    shown = output.printable_text(key)
    hint = did_you_mean(shown, known)
    more = f"; {hint}" if hint else ""
    return CommandFailed(f"{inspector.manager.name} {shown!r}: there is no such instance{more}")


def _waits_for(found: InspectedInstance, timeouts: list[dict[str, Any]]) -> Iterator[str]:
    """The events that it waits for, in words, beside the messages of its topics."""
    for each in found.open_commands:
        stored = each.stored
        yield output.printable_text(
            f"command {each.sequence} to be carried out: {stored.aggregate} {stored.id} "
            f"{stored.decision}"
        )
    for row in timeouts:
        if row["state"] == "waiting":
            late = ", which is overdue" if row["overdue_seconds"] else ""
            yield f"timeout {row['name']} at {row['due']}{late}"


def _timeout_json(found: InspectedTimeout) -> dict[str, Any]:
    due = due_json(found.due)
    if found.state != "waiting":
        due["overdue_seconds"] = 0.0
    return {
        "name": output.printable_text(found.name),
        "sequence": found.sequence,
        "state": found.state,
        **due,
        "event": output.document_json(found.event),
    }


def _reaction_row(
    opened: LogAndApp,
    inspector: ManagerInspector,
    found: InspectedInstance,
    each: InspectedReaction,
) -> dict[str, Any] | None:
    where = f"reaction {each.stored.version}"
    make = partial(_reaction_json, opened, inspector, found, each)
    return output.call_or_report(where, make)


def _reaction_json(
    opened: LogAndApp,
    inspector: ManagerInspector,
    found: InspectedInstance,
    each: InspectedReaction,
) -> dict[str, Any]:
    stored, reacted = each.stored, each.reacted
    offset = opened.log.format_offset(stored.offset)
    common = {
        "version": stored.version,
        "time": output.iso_time(stored.time),
        "position": f"{inspector.reactions_topic}/{found.partition}/{offset}",
        "cause": output.printable_text(each.cause) or None,
    }
    if reacted is None:
        return {**common, "why": each.reason}
    return {
        **common,
        "to": output.printable_text(reacted.to),
        "commands": [_command_json(one) for one in each.commands],
        "scheduled": list(map(output.printable_text, each.scheduled)),
        "cancelled": list(map(output.printable_text, each.cancelled)),
        "ends": reacted.ends,
        "state": output.document_json(bytes(reacted.state)),
    }


def _command_json(found: InspectedCommand) -> dict[str, Any]:
    stored, outcome = found.stored, found.outcome
    return {
        "sequence": found.sequence,
        "aggregate": output.printable_text(stored.aggregate),
        "id": output.printable_text(stored.id),
        "decision": output.printable_text(stored.decision),
        "args": [output.document_json(bytes(each)) for each in stored.args],
        "kwargs": {
            output.printable_text(name): output.document_json(bytes(each))
            for name, each in stored.kwargs.items()
        },
        "outcome": outcome.outcome,
        "reason": output.printable_text(outcome.reason) or None,
        "first_version": outcome.first_version or None,
        "events": outcome.event_count,
    }


def print_instance(document: Mapping[str, Any]) -> None:
    """Print an instance for people."""
    ended = ", ended" if document["ended"] else ""
    reactions = output.plural(document["version"], "reaction")
    output.print_line(f"{document['manager']} {document['id']}: {reactions}{ended}")
    lines: dict[str, output.Cell] = {
        "state": output.json_bytes(document["state"]).decode().rstrip()
    }
    if document["stopped"]:
        lines["stopped"] = document["stopped"]
    output.print_mapping(lines)
    for each in document["waits_for"]:
        output.print_line(f"waits for {each}")
    if document["timeouts"]:
        output.print_line("")
        rows = list(map(timeout_row, document["timeouts"]))
        output.print_rows(rows, {"timeout": "name", "state": "state", "due": "due"}, json=False)
    output.print_line("")
    rows = [{**row, "did": _did(row), "to": row.get("to")} for row in document["reactions"]]
    output.print_rows(rows, ["version", "time", "to", "did"], json=False)
    if document["more_reactions"]:
        output.print_note("there are more reactions: -n 0 shows all")


def _did(row: Mapping[str, Any]) -> str:
    """The outcome of a reaction, on one line."""
    if "why" in row:
        return f"(cannot be decoded: {row['why']})"
    parts = [_command_text(each) for each in row["commands"]]
    parts += [f"schedule {name}" for name in row["scheduled"]]
    parts += [f"cancel {name}" for name in row["cancelled"]]
    parts += ["end"] if row["ends"] else []
    return "; ".join(parts) or "-"


def _command_text(found: Mapping[str, Any]) -> str:
    outcome = {
        "done": f"done, version {found['first_version']}",
        "refused": f"refused: {found['reason']}" if found["reason"] else "refused",
        "nothing": "came to nothing",
        "open": "not carried out yet",
        "unknown": f"unknown: {found['reason']}",
    }[found["outcome"]]
    return f"{found['decision']} {found['aggregate']} {found['id']} ({outcome})"
