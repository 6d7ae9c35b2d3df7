"""The cases of the inbox, with the ratio that it should reach: 0.8 of a loop by hand that does the
same transaction. On Kafka; the log matters little beside a transaction."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case, LogTarget, Metric, Rival, Side, Sizes

INBOX_PREFIX = "inbox: "
"""The first part of the names of these cases."""

TARGET = 0.8

SINGLE = Metric("rate", "transactions/s")
BATCH = Metric("rate", "messages/s")


def inbox_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """The cases of the inbox."""
    if log_target.log != "kafka":
        return []

    def case(name: str, metric: Metric, messages: int, *, batch: bool) -> Case:
        given: dict[str, Any] = {
            "url": log_target.url, "topic": log_target.topic, "messages": messages, "batch": batch,
        }  # fmt: skip
        ours = Side("streams", "inbox", given, process="inbox", settings={"with": "AsyncPsycopg"})
        same = Side(
            "by hand, the same transaction", "inbox_by_hand", given, process="inbox",
            settings={"with": "psycopg_pool, the inbox's own statement, UPDATE, COMMIT"},
        )  # fmt: skip
        bare = Side(
            "by hand, a bare table of IDs", "inbox_by_hand", {**given, "bare": True},
            process="inbox",
            settings={"with": "psycopg_pool, INSERT ON CONFLICT DO NOTHING, UPDATE, COMMIT"},
        )  # fmt: skip
        rivals = [Rival(same, TARGET, metric), Rival(bare, None, metric)]
        return Case(f"{INBOX_PREFIX}{name}", log_target.log, ours, rivals)

    single = min(sizes.messages, 10 * sizes.per_pattern)
    return [
        case("one UPDATE a message, 64 at once", SINGLE, single, batch=False),
        case("batches of 500", BATCH, sizes.messages, batch=True),
    ]
