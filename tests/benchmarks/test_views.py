"""The rows of views: which there are, and that each of their tasks measures what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.__main__ import _parse, _sizes
from benchmarks.cases import FULL, LOGS, Case, LogTarget, Side
from benchmarks.peers.install import PEERS
from benchmarks.view_cases import VIEW_PREFIX, view_cases
from benchmarks.worker import task_of

SMALL = replace(FULL, view_events=2_000, view_documents=2_000)


def named(log: str, url: str = "url", folder: str = "") -> dict[str, Case]:
    target = LogTarget(log, url, "orders", folder=folder)
    return {case.name.removeprefix(VIEW_PREFIX): case for case in view_cases(target, SMALL)}


def test_each_log_has_rows_and_every_peer_is_known() -> None:
    for log in LOGS:
        found = named(log)
        assert len(found) == {"codecs": 0, "memory": 3}.get(log, 4)
        rivals = [rival.side for case in found.values() for rival in case.rivals]
        assert {side.peer for side in rivals if isinstance(side, Side) and side.peer} <= {*PEERS}


def test_how_many_events_there_are_can_be_said() -> None:
    sizes = _sizes(_parse(["--view-events", "1,000,000", "--view-documents", "10,000,000"]))
    assert (sizes.view_events, sizes.view_documents) == (1_000_000, 10_000_000)


def run(side: Side) -> dict[str, Any]:
    if side.prepare is not None:
        task, given = side.prepare
        task_of(task)(**given)
    return task_of(side.task)(**side.arguments)


@pytest.mark.parametrize(
    ("log", "name"), [(log, name) for log in ("memory", "sqlite") for name in sorted(named(log))]
)
def test_each_task_measures(log: str, name: str, tmp_path: Path) -> None:
    url = f"memory://{uuid4().hex}" if log == "memory" else f"sqlite:///{tmp_path}/log.db"
    case = named(log, url, str(tmp_path))[name]
    answer = run(case.ours)
    for rival in case.rivals:
        figure = answer[rival.metric.key]
        assert figure > 0 or rival.metric.key.startswith("stale")
        if isinstance(rival.side, Side) and not rival.side.peer:
            assert run(rival.side)[rival.metric.key] > 0
