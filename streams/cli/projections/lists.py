"""The versions of an app's projections, for people and for programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streams.cli import output

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.projections.operations import VersionState

RATE_TIME = 1.0
"""Seconds over which the rate of a version that is being built is measured."""

_VERSION_COLUMNS = {
    "projection": "projection",
    "version": "version",
    "state": "state",
    "processes": "processes",
    "declared": "declared",
    "handled": "share",
    "messages/s": "rate",
    "left": "left_seconds",
}
_PARTITION_COLUMNS = ("version", "topic", "partition", "position", "lag")


async def version_rows(app: Streams) -> list[dict[str, Any]]:
    """A row for each version of each projection."""
    return await _rows(app, None)


async def _rows(app: Streams, name: str | None) -> list[dict[str, Any]]:
    from streams.projections import operations

    states = await operations.inspect_projections(app.log, app.projections, name)
    found = [each for state in states for each in state.versions]
    rows = [_version_row(each) for each in found]
    if any(_is_measured(each) for each in found):
        began = time.monotonic()
        await asyncio.sleep(RATE_TIME)
        states = await operations.inspect_projections(app.log, app.projections, name)
        later = [each for state in states for each in state.versions]
        seconds = time.monotonic() - began
        now = {(each.name, each.version): each for each in later}
        for before, row in zip(found, rows, strict=True):
            after = now.get((before.name, before.version))
            if after is not None and _is_measured(before):
                row |= _version_row(after) | _rate(before, after, seconds)
    return rows


def _is_measured(each: VersionState) -> bool:
    return bool(each.processes) and each.progress.share not in (None, 1.0)


def _rate(before: VersionState, after: VersionState, seconds: float) -> dict[str, Any]:
    start, (handled, total) = before.progress.handled, after.progress
    if start is None or handled is None or total is None:
        return {}
    rate = max(0.0, (handled - start) / seconds)
    return {
        "rate": round(rate, 1),
        "left_seconds": round((total - handled) / rate, 1) if rate else None,
    }


def _version_row(each: VersionState) -> dict[str, Any]:
    return {
        "projection": output.printable_text(each.name),
        "version": each.version,
        "state": each.state,
        "serves": each.serves,
        "processes": each.processes,
        "declared": each.declared,
        "handled": each.progress.handled,
        "total": each.progress.total,
        "share": each.progress.share,
        "rate": None,
        "left_seconds": None,
    }


def print_versions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a table."""
    shown = [
        {
            **row,
            "version": str(row["version"]),
            "share": _share_text(row["share"]),
            "rate": None if row["rate"] is None else round(row["rate"]),
        }
        for row in rows
    ]
    output.print_rows(shown, _VERSION_COLUMNS, json=False)


def _share_text(share: float | None) -> str | None:
    if share is None:
        return None
    return "100%" if share >= 1.0 else f"{min(share, 0.999):.1%}"


async def projection_json(app: Streams, name: str) -> dict[str, Any]:
    """A projection with its versions and their partitions."""
    from streams.projections import operations

    log = app.log
    (state,) = await operations.inspect_projections(log, app.projections, name)
    return {
        "projection": output.printable_text(state.name),
        "serving": state.serving,
        "versions": await _rows(app, name),
        "partitions": [
            {
                "version": each.version,
                "topic": output.printable_text(one.topic),
                "partition": one.partition,
                "position": None if one.position is None else output.offset_json(log, one.position),
                "lag": one.lag,
            }
            for each in state.versions
            for one in each.partitions
        ],
    }


def print_projection(found: Mapping[str, Any]) -> None:
    """Print a projection for people."""
    serving = found["serving"]
    shown = "no version serves yet" if serving is None else f"version {serving} serves"
    output.print_line(f"{found['projection']}: {shown}")
    print_versions(found["versions"])
    output.print_line("")
    partitions = [{**each, "version": str(each["version"])} for each in found["partitions"]]
    output.print_rows(partitions, _PARTITION_COLUMNS, json=False)
