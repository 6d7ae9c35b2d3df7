#!/usr/bin/env python3
"""Everything a developer, or a machine that checks, does here: ``demo``, ``test``, ``check``,
``bench`` and ``faults``, each with all its set-up.

``python3 scripts/dev.py COMMAND [-- ARGUMENTS]``: the arguments reach what is run (the demo,
pytest, the benchmarks). The set-up is :mod:`environment`'s; this file knows what each command runs.
All families of checks run even if one fails; the exit status is the first failure's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from environment import ROOT, Environment, SetupError, call, say


class Step(NamedTuple):
    """One program to run in ``.venv``."""

    name: str
    command: Sequence[str]


CHECKS = (
    Step("ruff check", ("ruff", "check", ".")),
    Step("ruff format", ("ruff", "format", "--check", ".")),
    Step("mypy", ("python", "-m", "mypy")),
    Step("pyright", ("python", "-m", "pyright")),
    Step("import-linter", ("lint-imports", "--no-logo")),
)
SERVERS = Step("servers", ("python", "-m", "tests.servers"))


def steps(command: str, arguments: Sequence[str]) -> list[Step]:
    """What a command runs, in order."""
    if command == "demo":
        return [Step("demo", ("python", "-m", "examples.flights", *arguments))]
    if command == "bench":
        return [Step("benchmarks", ("python", "-m", "benchmarks", *arguments))]
    if command == "faults":
        return [SERVERS, Step("faults", ("python", "-m", "pytest", "-m", "faults", *arguments))]
    if command == "check":
        return list(CHECKS)
    # Much of a test's time is waiting for a server, and the servers are shared by all workers.
    workers = str(min(6, 2 * (os.cpu_count() or 1)))
    spread = ("-n", workers, "--dist", "worksteal")
    return [*CHECKS, SERVERS, Step("pytest", ("python", "-m", "pytest", *spread, *arguments))]


def run(environment: Environment, plan: Sequence[Step]) -> int:
    """Run all steps; 0 if every one succeeded, else the status of the first that did not."""
    results = []
    for step in plan:
        if len(plan) > 1:
            say(f"\n--- {step.name}")
        began = time.monotonic()
        program = str(environment.bin / step.command[0])
        command = [program, *step.command[1:]]
        status = call(command, environment.variables(), environment.root)
        results.append((step.name, status, time.monotonic() - began))
    if len(plan) > 1:
        say("")
        for name, status, seconds in results:
            verdict = "ok" if status == 0 else f"FAILED (exit status {status})"
            say(f"{name:<14} {seconds:6.1f} s  {verdict}")
    return next((status for _, status, _ in results if status), 0)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    own, dashes, arguments = list(argv), False, []
    if "--" in own:
        cut = own.index("--")
        own, dashes, arguments = own[:cut], True, own[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Set up .venv as needed, then run one of the project's commands in it.",
        epilog="What follows -- reaches the demo, pytest or the benchmarks.",
    )
    parser.add_argument("command", choices=["demo", "test", "check", "bench", "faults"])
    command = parser.parse_args(own).command
    if dashes and command == "check":
        parser.error("check takes no arguments")
    environment = Environment(ROOT)
    try:
        environment.ensure([] if command == "demo" else ["dev"])
    except (SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    status = run(environment, steps(command, arguments))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        os._exit(130)
