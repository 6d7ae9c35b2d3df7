"""The rows of aggregates: which there are, and that each of their tasks measures what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import _parse, _sizes
from benchmarks.aggregate_cases import AGGREGATE_PREFIX, aggregate_cases
from benchmarks.cases import FULL, LOGS, QUICK, Case, Limit, LogTarget, Side, Sizes
from benchmarks.peers.install import PEERS
from benchmarks.worker import task_of
from tests.servers.find import KafkaAddress

SMALL = replace(FULL, messages=2_000, per_pattern=1_000, aggregates=2_000)

SINGLY, AT_ONCE, LOAD = "decide, one at a time", "decide, 1,000 at once", "load of 20 events"
LONG_ONES = {"load of 1,000,000 events, snapshot", "load of 1,000,000 events, none"}
GROWTH = {"load 1 of 1,000,000", "decide 1 of 1,000,000"}
INDEX = {
    "index of 1,000,000 events",
    "index of 1,000,000 events, from its file",
    "index of 1,000,000 events, from snapshots",
}


def named(log: str, sizes: Sizes, url: str = "url", folder: str = "") -> dict[str, Case]:
    target = LogTarget(log, url, "orders", folder=folder)
    return {
        case.name.removeprefix(AGGREGATE_PREFIX): case for case in aggregate_cases(target, sizes)
    }


def test_there_are_rows_beside_the_peer_and_beside_limits() -> None:
    assert named("sqlite", FULL).keys() == LONG_ONES | GROWTH | {
        SINGLY, AT_ONCE, LOAD, f"{LOAD}, 1,000 at once", "replay of 1,000,000",
    }  # fmt: skip
    assert named("redis", FULL).keys() == LONG_ONES | GROWTH | {SINGLY, AT_ONCE, LOAD}
    assert named("kafka", FULL).keys() == LONG_ONES | INDEX | {SINGLY, AT_ONCE}


def test_every_name_is_used_once_and_every_peer_is_known() -> None:
    for log in LOGS:
        found = aggregate_cases(LogTarget(log, "url", "orders"), FULL)
        assert len({case.name for case in found}) == len(found)
        rivals = [rival.side for case in found for rival in case.rivals]
        assert {side.peer for side in rivals if isinstance(side, Side) and side.peer} <= {*PEERS}
        assert all(side.value > 0 for side in rivals if isinstance(side, Limit))


def test_a_quick_run_fills_no_long_topic() -> None:
    assert not (LONG_ONES | GROWTH) & named("redis", QUICK).keys()
    assert not (LONG_ONES | INDEX) & named("kafka", QUICK).keys()


def test_how_many_aggregates_there_are_can_be_said() -> None:
    sizes = _sizes(_parse(["--aggregates", "10,000,000"]))
    assert "load 1 of 10,000,000" in named("sqlite", sizes)


def run(side: Side) -> dict[str, Any]:
    if side.prepare is not None:
        task, given = side.prepare
        task_of(task)(**given)
        task_of(task)(**given)  # filled before
    return task_of(side.task)(**side.arguments)


@pytest.mark.parametrize("name", sorted(named("sqlite", SMALL)))
def test_each_task_measures(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db?synchronous=normal"
    check(named("sqlite", SMALL, url, str(tmp_path))[name])


def test_each_of_an_index_does(kafka: KafkaAddress, tmp_path: Path) -> None:
    sizes = replace(SMALL, messages=2_010)  # a topic of its own: its name is of their number
    found = named("kafka", sizes, kafka.url, str(tmp_path))
    for name in INDEX:
        check(found[name.replace("1,000,000", "2,010")])
    assert list((tmp_path / "index").iterdir())


def check(case: Case) -> None:
    answer = run(case.ours)
    for rival in case.rivals:
        assert answer[rival.metric.key] >= 0
        if isinstance(rival.side, Side) and not rival.side.peer:
            theirs = run(rival.side)
            assert theirs["rate"] > 0
            assert theirs[rival.metric.key] >= 0  # a memory's growth may be none
