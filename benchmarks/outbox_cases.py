"""The cases of outboxes: their rivals, and the ratio that each should reach.

Relaying is measured beside ``publish_many`` of the same orders: it also reads each from the
database and deletes it there.
"""

from __future__ import annotations

from typing import Any

from benchmarks.cases import P50, P99, Case, Limit, LogTarget, Metric, Rival, Side, Sizes

OUTBOX_PREFIX = "outbox: "
"""The first part of the names of these cases."""

MESSAGES = Metric("rate", "messages/s")

PUBLISHED_AT_ONCE = 10_000


def outbox_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """All cases of outboxes on a log: from PostgreSQL where there is one, and from SQLite."""
    if log_target.log in ("codecs", "memory") or not sizes.all_patterns:
        return []
    databases = {"SQLite": f"sqlite:///{log_target.folder}/outbox.db"}
    if log_target.database:
        databases = {"PostgreSQL": log_target.database, **databases}
    found: list[Case] = []
    for name, database in databases.items():
        given: dict[str, Any] = {"url": log_target.url, "database": database}
        messages = sizes.publish
        ours = Side("streams", "relay", {**given, "messages": messages}, process="outboxes")
        direct = Side(
            "publish_many", "publish_many",
            {"url": log_target.url, "messages": messages, "size": PUBLISHED_AT_ONCE},
        )  # fmt: skip
        found.append(
            Case(
                f"{OUTBOX_PREFIX}relay from {name}", log_target.log, ours,
                [Rival(direct, 0.5, MESSAGES)],
            )
        )  # fmt: skip
        timed = Side(
            "streams", "commit_to_handler", {**given, "messages": min(1_000, sizes.per_pattern)},
            process="outboxes", settings={"with": "200 commits a second"},
        )  # fmt: skip
        found.append(
            Case(
                f"{OUTBOX_PREFIX}commit to handler, {name}", log_target.log, timed,
                [
                    Rival(Limit("15 ms", 15.0), 1.0, P50),
                    Rival(Limit("100 ms", 100.0), None, P99, ", the slowest of 100"),
                ],
            )
        )  # fmt: skip
    return found
