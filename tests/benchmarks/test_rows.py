"""From measurements to rows: alternation, ratios, targets; with workers that are real processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from benchmarks.cases import GROWTH, P99, Case, Limit, Rival, Side
from benchmarks.counting import MessageCounter, OrderCheck, percentiles
from benchmarks.measure import Row, measure
from benchmarks.peers.install import PEERS, InstalledPeer
from benchmarks.process import MeasureError, WorkerProcess, run_once


class Scripted(InstalledPeer):
    """A peer whose figures are known before."""

    def __init__(self, *answers: Mapping[str, Any] | str) -> None:
        super().__init__(PEERS["quix"], [])
        self._answers = list(answers)
        self.asked: list[Mapping[str, Any]] = []

    def run(self, task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(arguments)
        answer = self._answers.pop(0)
        if isinstance(answer, str):
            raise MeasureError(answer)
        return dict(answer)


def scripted(name: str) -> Side:
    return Side(name, "consume", {"of": name}, peer=name)


def rows(
    ours: list[Any], theirs: list[Any], *rivals: Rival, violations: int | None = None
) -> list[Row]:
    peers = {"ours": Scripted(*ours), "theirs": Scripted(*theirs)}
    check = None
    if violations is not None:
        peers["check"] = Scripted({"violations": violations})
        check = scripted("check")
    case = Case("a case", "kafka", scripted("ours"), rivals, check)
    return measure(case, len(ours), cast("dict[str, InstalledPeer]", peers), {"python": "3"})


def test_a_ratio_is_the_median_of_the_ratios_of_each_turn() -> None:
    ours = [{"rate": 90.0}, {"rate": 300.0}, {"rate": 80.0}]
    theirs = [{"rate": 100.0}, {"rate": 200.0}, {"rate": 200.0}]
    (row,) = rows(ours, theirs, Rival(scripted("theirs"), 0.85))
    assert row["ratios"] == [0.9, 1.5, 0.4]
    assert row["ratio"] == 0.9
    assert row["spread"] == [0.4, 1.5]
    assert (row["figure"], row["baseline"]) == (90.0, 200.0)
    assert row["met"] is True
    assert row["machine"] == {"python": "3"}


@pytest.mark.parametrize(
    ("rival", "answer", "ratio", "met"),
    [
        (Rival(Limit("the limit", 200.0), 0.5), {"rate": 100.0}, 0.5, True),
        (Rival(Limit("the limit", 200.0), 0.51), {"rate": 100.0}, 0.5, False),
        (Rival(Limit("the limit", 200.0)), {"rate": 100.0}, 0.5, None),
        (Rival(Limit("less is better", 2.0), 1.0, P99), {"p99": 2.0}, 1.0, True),
        (Rival(Limit("less is better", 2.0), 1.0, P99), {"p99": 2.1}, 1.05, False),
        (Rival(Limit("bytes", 64 << 20), 1.0, GROWTH), {"growth": 32 << 20}, 0.5, True),
    ],
)
def test_a_target_is_a_bound_on_the_better_side(
    rival: Rival, answer: dict[str, float], ratio: float, met: bool | None
) -> None:
    (row,) = rows([answer], [], rival)
    assert row["ratio"] == ratio
    assert row["met"] is met


def test_nobody_always_runs_first() -> None:
    asked: list[str] = []

    class Noted(Scripted):
        def run(self, task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            asked.append(arguments["of"])
            return {"rate": 1.0}

    case = Case("a case", "kafka", scripted("ours"), (Rival(scripted("theirs")),))
    peers: dict[str, InstalledPeer] = {"ours": Noted(), "theirs": Noted()}
    measure(case, 3, peers, {})
    assert asked == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_order_out_of_order_misses_a_target() -> None:
    limit = Rival(Limit("the limit", 100.0), 0.5)
    (kept,) = rows([{"rate": 100.0}], [], limit, violations=0)
    (lost,) = rows([{"rate": 100.0}], [], limit, violations=2)
    assert (kept["met"], kept["violations"]) == (True, 0)
    assert (lost["met"], lost["violations"]) == (False, 2)


def test_a_rival_that_fails_is_told_and_the_others_go_on() -> None:
    ours = [{"rate": 100.0}, {"rate": 100.0}]
    limit = Rival(Limit("the limit", 100.0), 1.0)
    failed, fine = rows(ours, ["it broke"], Rival(scripted("theirs"), 0.5), limit)
    assert failed["error"] == "it broke"
    assert (failed["ratio"], failed["met"]) == (None, None)
    assert (fine["ratio"], fine["met"], fine["error"]) == (1.0, True, None)


def test_where_ours_fails_no_row_has_a_ratio() -> None:
    limit = Rival(Limit("the limit", 100.0), 1.0)
    found = rows(["out of luck"], [{"rate": 1.0}], Rival(scripted("theirs")), limit)
    assert [row["error"] for row in found] == ["out of luck"] * 2
    assert [row["ratio"] for row in found] == [None] * 2


def test_peers_that_are_not_there_give_no_row() -> None:
    case = Case("a case", "kafka", scripted("ours"), (Rival(scripted("theirs")),))
    assert measure(case, 1, {"ours": Scripted({"rate": 1.0})}, {}) == []


# -- what handlers count --------------------------------------------------------------------------


def test_what_is_measured_begins_after_what_is_skipped() -> None:
    counter = MessageCounter(10, skip=4)
    for _ in range(9):
        counter.count_one()
    assert not counter.done.is_set()
    counter.count_one()
    assert counter.done.is_set()
    assert counter.result["messages"] == 6
    assert counter.seen == 10
    ended = counter.result
    counter.count_one()  # what comes after the last changes nothing
    assert counter.result == ended


@pytest.mark.parametrize(("sizes", "measured"), [((1, 5, 4), 9), ((5, 5), 5), ((3, 3, 3, 3), 9)])
def test_batches_count_what_came_after_the_first_of_them(
    sizes: tuple[int, ...], measured: int
) -> None:
    counter = MessageCounter(10)
    for size in sizes:
        assert not counter.done.is_set()
        counter.count_batch([None] * size)
    assert counter.done.is_set()
    assert counter.result["messages"] == measured


def test_one_batch_is_nothing_to_measure() -> None:
    counter = MessageCounter(10)
    counter.count_batch([None] * 10)
    with pytest.raises(ValueError, match="in one batch"):
        assert counter.result


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        MessageCounter(1)


def test_the_order_check_sees_an_overlap_and_a_step_back() -> None:
    check = OrderCheck()
    check.handler_started("ada", "order-1")
    check.handler_returned("ada")
    check.handler_started("ada", "order-2")
    check.handler_started("bob", "order-1")
    assert check.violations == 0
    check.handler_started("ada", "order-3")  # the second runs still
    assert check.violations == 1
    check.handler_returned("bob")
    check.handler_started("bob", "order-1")  # again
    assert check.violations == 2


def test_percentiles_are_measurements() -> None:
    found = percentiles([float(n) for n in range(1_001)])
    assert (found["p0"], found["p50"], found["p99"], found["p100"]) == (0, 500, 990, 1000)
    assert found["p99.9"] == 999
    assert percentiles([7.0])["p50"] == 7.0


# -- processes ------------------------------------------------------------------------------------


def test_a_worker_that_fails_says_why_and_goes_on() -> None:
    with WorkerProcess() as worker:
        with pytest.raises(MeasureError, match="unable to open database file"):
            worker.run_task("sqlite", path="/nowhere/at/all.db", messages=10)
        assert worker.run_task("codec", name="JSON", seconds=0.01)["size"] == 200


def test_a_worker_that_is_gone_is_told() -> None:
    with WorkerProcess() as worker:
        worker._popen.kill()
        with pytest.raises(MeasureError, match="the process ended"):
            worker.run_task("codec", name="JSON")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('{\"rate\": 5}')", None),
        ("print('nothing of use')", "no figures"),
        ("print('[1]')", "no figures"),
        ("raise SystemExit('it cannot')", "it cannot"),
        ('print(\'{"error": "no luck"}\')', "no luck"),
    ],
)
def test_a_peers_last_line_is_its_answer(program: str, said: str | None) -> None:
    import sys

    command = [sys.executable, "-c", program]
    if said is None:
        assert run_once(command) == {"rate": 5}
    else:
        with pytest.raises(MeasureError, match=said):
            run_once(command)
