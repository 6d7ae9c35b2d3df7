"""Views and their versions, and the stopped documents, as rows.

Records that can be listed are, whatever else is in the log; the others are named on standard error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output

if TYPE_CHECKING:
    from streams.cli.views.view_log import ViewLog
    from streams.eventsourcing.views.inspection import StoppedKey, VersionInspector

RATE_TIME = 1.0
"""Seconds over which the rate of a version that is being built is measured."""


def version_rows(view_log: ViewLog, names: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each version of these views."""
    found: list[VersionInspector] = []
    for name in names:
        shown = f"view {output.printable_text(name)}"
        found += output.call_or_report(shown, partial(view_log.inspectors, name)) or ()
    return [row for _, row in rows_of(found)]


def rows_of(
    inspectors: Iterable[VersionInspector],
) -> list[tuple[VersionInspector, dict[str, Any]]]:
    """A row for each of these versions that can be read; those that are being built have a
    rate."""
    found: list[tuple[VersionInspector, dict[str, Any]]] = []
    for inspector in inspectors:
        shown = output.printable_text(inspector.collection)
        row = output.call_or_report(shown, partial(_version_row, inspector))
        if row is not None:
            found.append((inspector, row))
    _add_rates(found)
    return found


def _version_row(inspector: VersionInspector) -> dict[str, Any]:
    found = inspector.inspect()
    progress = found.progress
    return {
        "view": output.printable_text(inspector.name),
        "version": found.known.version,
        "state": found.state,
        "serves": found.serves,
        "processes": len(found.members),
        "partitions": found.partitions,
        "documents": found.totals.documents,
        "stopped": found.totals.stopped,
        "folded": progress.folded,
        "total": progress.total,
        "share": progress.share,
        "rate": None,
        "left_seconds": None,
    }


def _add_rates(found: list[tuple[VersionInspector, dict[str, Any]]]) -> None:
    """Measure the rate of versions that run and are behind."""
    behind = [
        (inspector, row)
        for inspector, row in found
        if row["processes"] and row["folded"] is not None and row["folded"] < row["total"]
    ]
    if not behind:
        return
    began = {inspector.collection: time.monotonic() for inspector, _ in behind}
    before = {inspector.collection: inspector.tracker.progress().folded for inspector, _ in behind}
    time.sleep(RATE_TIME)
    for inspector, row in behind:
        now = output.call_or_report(
            output.printable_text(inspector.collection), inspector.tracker.progress
        )
        start = before[inspector.collection]
        if now is None or now.folded is None or now.total is None or start is None:
            continue
        seconds = time.monotonic() - began[inspector.collection]
        rate = max(0.0, (now.folded - start) / seconds)
        row["rate"] = round(rate, 1)
        row["folded"], row["total"], row["share"] = now.folded, now.total, now.share
        if rate:
            row["left_seconds"] = round((now.total - now.folded) / rate, 1)


VERSION_COLUMNS = {
    "view": "view",
    "version": "version",
    "state": "state",
    "processes": "processes",
    "documents": "documents",
    "stopped": "stopped",
    "folded": "share",
    "events/s": "rate",
    "left": "left_seconds",
}


def print_versions(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    shown = [
        {
            **row,
            "version": str(row["version"]),
            "share": share_text(row["share"]),
            "rate": None if row["rate"] is None else round(row["rate"]),
        }
        for row in rows
    ]
    output.print_rows(shown, VERSION_COLUMNS, json=False)


def share_text(share: float | None) -> str | None:
    """A share of all events; 100% is shown only if none is missing."""
    if share is None:
        return None
    return "100%" if share >= 1.0 else f"{min(share, 0.999):.1%}"


def stopped_json(found: StoppedKey) -> dict[str, Any]:
    """A stopped document as JSON."""
    return {
        **output.lossless_json("key", found.key),
        "partition": found.partition,
        "position": output.printable_text(found.position),
        "why": output.printable_text(found.reason),
    }


def stopped_rows(inspector: VersionInspector, number: int) -> tuple[list[dict[str, Any]], bool]:
    """The first stopped documents, and whether there are more.

    :param number: at most this many; 0: all.
    """
    rows: list[dict[str, Any]] = []
    found: Iterator[StoppedKey] = inspector.stopped_documents()
    for each in found:
        if number and len(rows) == number:
            return rows, True
        rows.append(stopped_json(each))
    return rows, False


def print_stopped(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the rows as a table."""
    columns = {"key": "key", "position": "position", "why": "why"}
    output.print_rows(list(rows), columns, json=False)
