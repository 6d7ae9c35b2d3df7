"""The rows of views: which there are, and that each of their tasks measures what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import FULL, LOGS, Case, LogTarget, Side
from benchmarks.peers.install import PEERS
from benchmarks.view_cases import VIEW_PREFIX, view_cases
from benchmarks.worker import task_of

SMALL = replace(FULL, messages=2_000)


def cases(log: str, url: str = "url", folder: str = "") -> dict[str, Case]:
    target = LogTarget(log, url, "orders", folder=folder)
    return {case.name.removeprefix(VIEW_PREFIX): case for case in view_cases(target, SMALL)}


def test_there_are_rows_on_each_log() -> None:
    for log in LOGS:
        expected = {"build from 2,000 events", "get 1 of 20"}
        assert cases(log).keys() == (set() if log in ("codecs", "memory") else expected)
    peers = {
        rival.side.peer
        for rival in cases("sqlite")["build from 2,000 events"].rivals
        if isinstance(rival.side, Side) and rival.side.peer
    }
    assert peers == {"eventsourcing"}
    assert peers <= {*PEERS}


def run(side: Side) -> dict[str, Any]:
    if side.prepare is not None:
        task, arguments = side.prepare
        task_of(task)(**arguments)
    return task_of(side.task)(**side.arguments)


def test_each_task_measures(tmp_path: Path) -> None:
    for case in cases("sqlite", f"sqlite:///{tmp_path / 'log.db'}", str(tmp_path)).values():
        sides = [case.ours, *(each.side for each in case.rivals if isinstance(each.side, Side))]
        for side in sides:
            if not side.peer:
                found = run(side)
                assert found["rate"] > 0
                assert found["cpu_us"] > 0
