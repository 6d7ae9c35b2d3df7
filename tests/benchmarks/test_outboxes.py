"""The rows of outboxes: which there are, and that each of their tasks measures what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases import FULL, LOGS, Case, LogTarget, Side
from benchmarks.outbox_cases import OUTBOX_PREFIX, outbox_cases
from benchmarks.worker import task_of

SMALL = replace(FULL, publish=2_000, per_pattern=100)


def named(log: str, url: str = "url", folder: str = "", database: str = "") -> dict[str, Case]:
    target = LogTarget(log, url, "orders", folder=folder, database=database)
    return {case.name.removeprefix(OUTBOX_PREFIX): case for case in outbox_cases(target, SMALL)}


def test_each_log_that_others_can_write_to_has_rows() -> None:
    for log in LOGS:
        count = 0 if log in ("codecs", "memory") else 4
        assert len(named(log, database="postgresql://")) == count


@pytest.mark.parametrize("name", sorted(named("sqlite", database="postgresql://")))
def test_each_task_measures(name: str, postgres: str, tmp_path: Path) -> None:
    case = named("sqlite", f"sqlite:///{tmp_path}/log.db", str(tmp_path), postgres)[name]
    answer: dict[str, Any] = task_of(case.ours.task)(**case.ours.arguments)
    for rival in case.rivals:
        assert answer[rival.metric.key] > 0
        if isinstance(rival.side, Side):
            assert task_of(rival.side.task)(**rival.side.arguments)[rival.metric.key] > 0
