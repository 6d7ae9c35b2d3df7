"""Run the benchmarks: ``python -m benchmarks [--quick] [--log memory] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cases import Case, Embedded

LOGS = ("memory", "sqlite")


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Ours and the baseline in turn; the median ratio and its spread."""
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(case.baseline())
        ours.append(case.ours())
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "case": case.name,
        "log": case.log,
        "ratio": round(ratio, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "figure": round(statistics.median(ours)),
        "baseline": round(statistics.median(theirs)),
        "target": case.target,
        "met": None if case.target is None else ratio >= case.target,
    }


def machine() -> dict[str, str]:
    """What a figure depends on."""
    packages = ("streams-toolkit", "msgspec", "orjson", "apsw")
    return {
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        **{package: version(package) for package in packages},
    }


def main() -> int:
    """The process's exit status: always 0; a benchmark is not a test."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages and repeats")
    parser.add_argument("--log", choices=LOGS, action="append", help="only this log; repeatable")
    parser.add_argument("--case", action="append", help="only cases whose name holds this text")
    parser.add_argument("--repeats", type=int, help="measurements a case (5; 3 with --quick)")
    parser.add_argument("--messages", type=int, help="messages in a log (400,000; quick: 100,000)")
    parser.add_argument("--json", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    messages = arguments.messages or (100_000 if arguments.quick else 400_000)
    console = Console(highlight=False)
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for log in arguments.log or LOGS:
            filling = progress.add_task(f"{log}: filling", total=None)
            world = Embedded(log, messages)
            progress.remove_task(filling)
            try:
                cases = [
                    case
                    for case in world.cases()
                    if not arguments.case or any(text in case.name for text in arguments.case)
                ]
                task = progress.add_task(log, total=len(cases))
                for case in cases:
                    progress.update(task, description=f"{log}: {case.name}")
                    rows.append(measure(case, repeats))
                    progress.advance(task)
            finally:
                world.close()
    table = Table(title=f"Messages a second, median of {repeats}, beside the loop by hand")
    for column in ("log", "case", "ours", "by hand", "ratio", "spread", "target"):
        table.add_column(column, justify="left" if column in ("log", "case") else "right")
    for row in rows:
        low, high = row["spread"]
        style = None if row["met"] in (True, None) else "yellow"
        table.add_row(
            row["log"], row["case"], f"{row['figure']:,}", f"{row['baseline']:,}",
            f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['target']}", style=style,
        )  # fmt: skip
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
