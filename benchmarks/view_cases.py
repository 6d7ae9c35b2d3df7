"""What views are measured against, and what each should reach.

A rebuild is measured beside a bare processor of the same events, on every log, and on SQLite beside
eventsourcing, a Python toolkit of the same kind.
"""

from __future__ import annotations

from typing import Any

from benchmarks.cases import P50, P99, Case, Limit, LogTarget, Metric, Rival, Side, Sizes

VIEW_PREFIX = "views: "
"""The first part of the names of these cases."""

EVENTS_EACH = 100
"""Of each account."""
PEER_ACCOUNTS = 20
"""For the peer, which commits each event."""

EVENTS = Metric("rate", "events/s")
CPU = Metric("cpu_us", "µs/event", "less")


def view_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """All cases of views on a log."""
    if log_target.log == "codecs":
        return []
    events = sizes.view_events
    given: dict[str, Any] = {"url": log_target.url, "name": f"folded-{events}"}

    def side(name: str, task: str, said: str) -> Side:
        return Side(
            name, task, {**given, "events": events}, process="views",
            prepare=(
                "fill_bank", {**given, "accounts": events // EVENTS_EACH, "events": EVENTS_EACH},
            ),
            settings={"with": said},
        )  # fmt: skip

    bare = side("a bare processor", "process_events", "async def, one event a call")
    rivals = [Rival(bare, 0.5, EVENTS), Rival(bare, None, CPU, ", CPU time")]
    if log_target.log == "sqlite":
        peer = Side(
            "eventsourcing", "project",
            {"folder": log_target.folder, "accounts": PEER_ACCOUNTS, "events": EVENTS_EACH},
            peer="eventsourcing",
        )  # fmt: skip
        rivals.append(Rival(peer, 5.0, EVENTS))
    documents = events // EVENTS_EACH
    reading = Side(
        "streams", "get_documents", {**given, "documents": documents}, process="views",
        prepare=("fill_bank", {**given, "accounts": documents, "events": EVENTS_EACH}),
    )  # fmt: skip
    return [
        Case(
            f"{VIEW_PREFIX}rebuild of {events:,}", log_target.log,
            side("streams", "rebuild", "until all of it stands in the log"), rivals,
        ),
        Case(
            f"{VIEW_PREFIX}get 1 of {documents:,}", log_target.log, reading,
            [
                Rival(Limit("5 ms", 5.0), None, P50),
                Rival(Limit("20 ms", 20.0), None, P99, ", the slowest of 100"),
            ],
        ),
    ]  # fmt: skip
