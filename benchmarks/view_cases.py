"""The cases of views: their rivals, and the ratio that each should reach.

A rebuild is measured beside a bare processor of the same events, on every log, and on SQLite beside
eventsourcing, a Python toolkit of the same kind.
"""

from __future__ import annotations

from typing import Any

from benchmarks.cases import P50, P99, Case, Limit, LogTarget, Metric, Rival, Side, Sizes
from benchmarks.views import EVENTS_EACH, PARTITIONS

VIEW_PREFIX = "views: "
"""The first part of the names of these cases."""

PEER_ACCOUNTS = 20
"""Accounts for the peer, which commits each event."""

MEMORY_LIMIT = (128 + 64 * PARTITIONS) << 20
"""The memory limit of a process that folds: its cache of documents is bounded per partition."""

EVENTS = Metric("rate", "events/s")
STALER = Metric("staler", "ms", "less")
STALE_FIRST = Metric("stale_first", "ms", "less")
PEAK = Metric("peak", "MiB", "less", 1 / (1 << 20))
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
        Case(
            f"{VIEW_PREFIX}rebuild of {events:,} beside the version that serves", log_target.log,
            side(
                "streams", "rebuild_beside",
                "200 reads and 100 decisions a second, until version 2 is promoted and read: no "
                "read fails, none goes back in time",
            ),
            [
                *rivals,
                Rival(Limit("20 ms", 20.0), None, P99, ", a get meanwhile, the slowest of 100"),
                Rival(Limit("1 s", 1_000.0), None, STALE_FIRST, ", lag of version 1"),
                Rival(Limit("1 s", 1_000.0), 1.0, STALER, ", the oldest read beyond that lag"),
            ],
        ),
        *_many_documents(log_target, sizes),
    ]  # fmt: skip


def _many_documents(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """Cases with many documents; not on the log in memory, which itself takes the memory."""
    documents = sizes.view_documents
    if log_target.log == "memory" or not documents:
        return []
    given = {"url": log_target.url, "topic": f"readings-{documents}", "documents": documents}
    ours = Side(
        "streams", "fold_readings", given, fresh=True, prepare=("fill_readings", given),
        settings={"with": "the first of the processes has published the messages"},
    )  # fmt: skip
    name = f"{VIEW_PREFIX}{documents:,} documents"
    limit = Limit(f"{MEMORY_LIMIT >> 20} MiB", MEMORY_LIMIT)
    return [
        Case(
            name, log_target.log, ours,
            [
                Rival(limit, 1.0, PEAK, ", the process's memory"),
                Rival(Limit("5 ms", 5.0), None, P50, ", get of any"),
                Rival(Limit("20 ms", 20.0), None, P99, ", get of any, the slowest of 100"),
            ],
        ),
    ]  # fmt: skip
