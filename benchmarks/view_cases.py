"""What views are measured against, and what each should reach.

Building one is held against a bare processor of the same events, in the same run; on SQLite also
against a projection of eventsourcing, a Python toolkit of the same kind.
"""

from __future__ import annotations

from typing import Any

from benchmarks.aggregate_cases import CPU, EVENTS, EVENTS_OF_A_REPLAY
from benchmarks.cases import P50, P99, Case, Limit, LogTarget, Rival, Side, Sizes

VIEW_PREFIX = "views: "
"""The first part of the names of these cases."""

EVENTS_OF_A_SERVER = 100_000
"""Built from on the servers, at most: what is filled there is filled over the network."""


def view_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """All cases of views on a log."""
    if log_target.log in ("codecs", "memory"):
        return []
    events = sizes.messages
    if log_target.log != "sqlite":
        events = min(events, EVENTS_OF_A_SERVER)
    accounts = events // EVENTS_OF_A_REPLAY
    name = f"viewed-{events}"
    given: dict[str, Any] = {"url": log_target.url, "name": name}
    filled = (
        "fill_accounts", {**given, "accounts": accounts, "events": EVENTS_OF_A_REPLAY}
    )  # fmt: skip

    def side(name: str, task: str, said: str, **arguments: Any) -> Side:
        return Side(
            name, task, {**given, **arguments}, process="views", prepare=filled,
            settings={"with": said},
        )  # fmt: skip

    handled = side("a bare processor", "handle_events", "a plain function", events=events)
    rivals = [Rival(handled, 0.5, EVENTS), Rival(handled, None, CPU, ", CPU time")]
    if log_target.log == "sqlite":
        peer = Side(
            "eventsourcing", "project",
            {"folder": log_target.folder, "accounts": accounts, "events": EVENTS_OF_A_REPLAY},
            peer="eventsourcing",
        )  # fmt: skip
        rivals.append(Rival(peer, 5.0, EVENTS))
    built = side("streams", "build_view", "documents of 60 bytes, JSON", events=events)
    read = side("streams", "get_documents", "one after the other", accounts=accounts)
    log = log_target.log
    return [
        Case(f"{VIEW_PREFIX}build from {events:,} events", log, built, tuple(rivals)),
        Case(
            f"{VIEW_PREFIX}get 1 of {accounts:,}", log, read,
            (
                Rival(Limit("2 ms", 2.0), 1.0, P50, ", p50"),
                Rival(Limit("20 ms", 20.0), 1.0, P99, ", p99"),
            ),
        ),
    ]  # fmt: skip
