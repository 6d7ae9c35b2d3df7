"""Measures a case: ours and its rivals alternately, the ratio each time, their median and spread.

A machine's speed drifts, so only figures that were taken at the same time can be compared. Every
other round goes backwards, so that no side always runs first. A side that fails is reported in its
row, and the others go on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.cases import Case, Limit, Rival, Side
from benchmarks.peers.install import InstalledPeer
from benchmarks.process import ROOT, MeasureError, WorkerProcess

Answer = dict[str, Any]
Report = Callable[[str], None]
"""Called with the name of the next measurement."""


class Row(TypedDict):
    """One line of the table: ours against one rival.

    Ratios are ours divided by the rival's, so if ``better`` is ``less`` a small one is good.
    ``target``, ``met``, and all figures of a side that failed, are None if there is none.
    """

    case: str
    log: str
    against: str
    unit: str
    better: str
    ratio: float | None
    spread: list[float] | None
    figure: float | None
    baseline: float | None
    target: float | None
    met: bool | None
    ratios: list[float]
    error: str | None
    concurrency: int | None
    violations: int | None
    settings: dict[str, dict[str, str]]
    details: dict[str, Any]
    machine: dict[str, str]


class SideRunner:
    """Runs the sides of one case; workers live as long as the case.

    :param root: the checkout whose code the workers run.
    """

    def __init__(
        self, peers: Mapping[str, InstalledPeer], stack: ExitStack, root: Path = ROOT
    ) -> None:
        self._peers = peers
        self._stack = stack
        self._root = root
        self._workers: dict[str, WorkerProcess] = {}

    def run(self, side: Side) -> Answer:
        """One measurement.

        :raises MeasureError: it failed.
        """
        if side.peer:
            return self._peers[side.peer].run(side.task, side.arguments)
        if side.fresh:
            with WorkerProcess(self._root) as worker:
                return worker.run_task(side.task, **side.arguments)
        return self._worker(side).run_task(side.task, **side.arguments)

    def prepare(self, side: Side) -> None:
        """Run what a side needs before its first measurement."""
        if side.prepare is not None:
            task, arguments = side.prepare
            worker = self._worker(side)
            worker.run_task(task, **arguments)

    def _worker(self, side: Side) -> WorkerProcess:
        name = side.process or side.name
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = self._stack.enter_context(WorkerProcess(self._root))
        return worker


def measure(
    case: Case,
    repeats: int,
    peers: Mapping[str, InstalledPeer],
    machine: Mapping[str, str],
    report: Report = lambda what: None,
) -> list[Row]:
    """All rows of a case; rivals of peers that are not in ``peers`` are left out."""
    rivals = [r for r in case.rivals if isinstance(r.side, Limit) or _is_available(r.side, peers)]
    if not rivals:
        return []
    sides: dict[str, Side] = {case.ours.name: case.ours}
    for rival in rivals:
        if isinstance(rival.side, Side):
            sides[rival.side.name] = rival.side
    answers: dict[str, list[Answer]] = {name: [] for name in sides}
    failures: dict[str, str] = {}
    violations: int | None = None
    with ExitStack() as stack:
        runner = SideRunner(peers, stack)
        for name, side in sides.items():
            report(f"{name}: preparing")
            _try_measuring(failures, name, lambda side=side: runner.prepare(side))  # type: ignore[misc]
        for turn in range(repeats):
            side_names = list(sides) if turn % 2 == 0 else list(reversed(sides))
            for name in side_names:
                if name in failures or case.ours.name in failures:
                    continue
                report(f"{name} ({turn + 1} of {repeats})")
                side = sides[name]
                answer = _try_measuring(failures, name, lambda side=side: runner.run(side))  # type: ignore[misc]
                if answer is not None:
                    answers[name].append(answer)
        if case.check is not None and case.ours.name not in failures:
            report("is order kept?")
            check = case.check
            checked = _try_measuring(failures, case.ours.name, lambda: runner.run(check))
            violations = checked["violations"] if checked is not None else None
    return [_row(case, rival, answers, failures, violations, machine) for rival in rivals]


def _is_available(side: Side, peers: Mapping[str, InstalledPeer]) -> bool:
    return not side.peer or side.peer in peers


def _try_measuring(failures: dict[str, str], name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except MeasureError as error:
        failures[name] = str(error)
        return None


def _row(
    case: Case,
    rival: Rival,
    answers: Mapping[str, Sequence[Answer]],
    failures: Mapping[str, str],
    violations: int | None,
    machine: Mapping[str, str],
) -> Row:
    metric, name = rival.metric, rival.side.name
    ours = [answer[metric.key] * metric.scale for answer in answers[case.ours.name]]
    settings = {"ours": dict(case.ours.settings)}
    details: dict[str, Any] = _details(answers[case.ours.name], "ours")
    if isinstance(rival.side, Limit):
        theirs = [rival.side.value * metric.scale] * len(ours)
    else:
        found = answers[name]
        theirs = [answer[metric.key] * metric.scale for answer in found]
        last = found[-1].get("settings") if found else None
        settings["baseline"] = dict(last or rival.side.settings)
        details |= _details(found, "baseline")
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
    error = failures.get(case.ours.name) or failures.get(name)
    row: Row = {
        "case": case.name + rival.suffix,
        "log": case.log,
        "against": name,
        "unit": metric.unit,
        "better": metric.better,
        "ratio": None,
        "spread": None,
        "figure": None,
        "baseline": None,
        "target": rival.target,
        "met": None,
        "ratios": [round_figure(ratio) for ratio in ratios],
        "error": error,
        "concurrency": case.concurrency,
        "violations": violations,
        "settings": settings,
        "details": details,
        "machine": dict(machine),
    }
    if ratios and error is None:
        ratio = statistics.median(ratios)
        row["ratio"] = round_figure(ratio)
        row["spread"] = [round_figure(min(ratios)), round_figure(max(ratios))]
        row["figure"] = round_figure(statistics.median(ours))
        row["baseline"] = round_figure(statistics.median(theirs))
        if rival.target is not None:
            met = ratio >= rival.target if metric.better == "more" else ratio <= rival.target
            row["met"] = met and not violations
    return row


def _details(answers: Sequence[Answer], whose: str) -> dict[str, Any]:
    """The data of plots: the last measurement's curves, and CPU time per message."""
    if not answers:
        return {}
    last = answers[-1]
    kept: dict[str, Any] = {
        key: last[key] for key in ("quantiles", "memory", "shares") if key in last
    }
    if "cpu_us" in last:
        kept["cpu_us"] = round_figure(statistics.median(answer["cpu_us"] for answer in answers))
    return {whose: kept} if kept else {}


def round_figure(value: float) -> float:
    """Four significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, max(0, 3 - math.floor(math.log10(abs(value)))))
