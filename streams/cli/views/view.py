"""One view: its versions, their partitions, and the stopped documents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.views.lists import (
    print_stopped,
    print_versions,
    rows_of,
    stopped_rows,
)

if TYPE_CHECKING:
    from streams.cli.views.view_log import ViewLog
    from streams.eventsourcing.views.inspection import InspectedPartition, VersionInspector


def view_json(view_log: ViewLog, name: str, number: int | None, lines: int) -> dict[str, Any]:
    """A view as a document.

    :param number: only this version of it.
    :param lines: at most this many stopped documents of each version; 0: all.
    """
    view = view_log.view(name)
    versions: list[dict[str, Any]] = []
    for inspector, row in rows_of(view_log.inspectors_of(name, view, number)):
        where = output.printable_text(inspector.collection)
        more = output.call_or_report(where, partial(_more_json, view_log, inspector, lines))
        versions.append({**row, **(more or {})})
    return {
        "view": output.printable_text(name),
        "promoted": view.promoted or None,
        "retries": len(view.retries),
        "versions": versions,
    }


def _more_json(view_log: ViewLog, inspector: VersionInspector, lines: int) -> dict[str, Any]:
    known = inspector.known
    stopped, has_more = stopped_rows(inspector, lines)
    return {
        "topics": [output.printable_text(each) for each in known.topics],
        "keyed_topic": inspector.tracker.keyed_topic if known.is_keyed else None,
        "shape": output.printable_text(known.shape),
        "groups": list(map(output.printable_text, inspector.groups)),
        "places": [_partition_json(view_log, each) for each in inspector.partitions()],
        "stopped_documents": stopped,
        "more_stopped": has_more,
    }


def _partition_json(view_log: ViewLog, found: InspectedPartition) -> dict[str, Any]:
    log = view_log.log
    return {
        "topic": output.printable_text(found.topic),
        "partition": found.partition,
        "position": None if found.position is None else output.offset_json(log, found.position),
        "end": output.offset_json(log, found.end),
        "lag": found.lag,
        "owner": None if found.owner is None else output.printable_text(found.owner),
        "problem": found.problem or None,
    }


def print_view(document: Mapping[str, Any]) -> None:
    """Print a view for people."""
    promoted = document["promoted"]
    serves = "no version serves yet" if promoted is None else f"version {promoted} serves"
    output.print_line(f"{document['view']}: {serves}")
    print_versions(document["versions"])
    for version in document["versions"]:
        if "places" not in version:
            continue
        output.print_line("")
        keyed = version["keyed_topic"]
        through = f", through {keyed}" if keyed else ""
        output.print_line(
            f"version {version['version']} of {', '.join(version['topics'])}{through}"
        )
        columns = ["partition", "position", "end", "lag", "owner"]
        output.print_rows(version["places"], columns, json=False)
        for place in version["places"]:
            if place["problem"]:
                output.print_line(place["problem"])
        if version["stopped_documents"]:
            output.print_line(f"stopped documents: {version['stopped']:,}")
            print_stopped(version["stopped_documents"])
        if version["more_stopped"]:
            output.print_note("there are more: -n 0 shows all")
    if document["retries"]:
        output.print_line(f"{output.plural(document['retries'], 'document')} to be resumed")
