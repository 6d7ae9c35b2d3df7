#!/usr/bin/env python3
"""The commands of developers and CI: ``demo``, ``test``, ``check``, ``bench`` and ``faults``, each
with all its set-up, and ``setup``, which is the set-up of the tests alone.

``python3 scripts/dev.py COMMAND [-- ARGUMENTS]``: the arguments are passed to the program (the
demo, pytest, the benchmarks). The set-up is ``environment.py``'s; this file defines the steps of
each command. The checks run at the same time, and the output of each is printed in one piece. All
of them run even if one fails; the exit status is the first failure's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

from environment import ROOT, Environment, SetupError, print_now, run_program
from memory_folder import memory_folder


class Step(NamedTuple):
    """One program to run in ``.venv``.

    :param in_memory: whether its temporary files belong in memory, if there is room.
    """

    name: str
    command: Sequence[str]
    in_memory: bool = False


CHECKS = (
    Step("ruff check", ("ruff", "check", ".")),
    Step("ruff format", ("ruff", "format", "--check", ".")),
    Step("mypy", ("python", "-m", "mypy")),
    Step("pyright", ("python", "-m", "pyright")),
    Step("import-linter", ("lint-imports", "--no-logo")),
)
COLLECT = Step(
    "collect",
    (
        "python", "-m", "pytest", "--collect-only", "-p", "no:terminal",
        "-o", "addopts=--import-mode=importlib",
    ),
)  # fmt: skip
"""Compiles the tests, which otherwise each of pytest's workers would do, all at the same time. Its
output is dropped: a test that cannot be collected fails in pytest's own step, too, with the
reason."""

SERVERS = Step("servers", ("python", "-m", "tests.servers"))


class Result(NamedTuple):
    """The result of a step."""

    step: Step
    status: int
    seconds: float


def steps(command: str, arguments: Sequence[str]) -> list[Sequence[Step]]:
    """The steps of a command, in groups that run one after the other; those of a group run
    together."""
    if command == "setup":
        return []
    if command == "demo":
        return [[Step("demo", ("python", "-m", "examples.flights", *arguments))]]
    if command == "bench":
        return [[Step("benchmarks", ("python", "-m", "benchmarks", *arguments))]]
    if command == "faults":
        faults = ("python", "-m", "pytest", "-m", "faults", *arguments)
        return [[SERVERS], [Step("faults", faults, in_memory=True)]]
    if command == "check":
        return [CHECKS]
    # Much of a test's time is waiting for a server, and the servers are shared by all workers.
    # Tests that share a server of their own are a group, which one worker runs (tests/conftest.py).
    # Twelve on two cores did not end earlier, but used a tenth more CPU, polling while others
    # worked.
    workers = str(min(12, 4 * (os.cpu_count() or 1)))
    spread = ("-n", workers, "--dist", "loadgroup")
    return [
        [*CHECKS, COLLECT, SERVERS],
        [Step("pytest", ("python", "-m", "pytest", *spread, *arguments), in_memory=True)],
    ]


def run_on_terminal(environment: Environment, step: Step) -> Result:
    """Run a step on the terminal."""
    began = time.monotonic()
    variables = environment.variables()
    with memory_folder(variables) if step.in_memory else nullcontext() as folder:
        if folder is not None:
            print_now(f"Temporary files are in {folder} (TMPDIR= says where else).")
            variables["TMPDIR"] = str(folder)
        status = run_program(command_of(environment, step), variables, environment.root)
    return Result(step, status, time.monotonic() - began)


def run_together(environment: Environment, group: Sequence[Step]) -> list[Result]:
    """Run steps at the same time; print the output of each in one piece, in their order."""

    def captured(step: Step) -> tuple[Result, bytes]:
        began = time.monotonic()
        done = subprocess.run(
            command_of(environment, step),
            env=environment.variables(),
            cwd=environment.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return Result(step, done.returncode, time.monotonic() - began), done.stdout

    results = []
    # Ctrl-C in a terminal reaches the programs as well, so the wait for them is short.
    with ThreadPoolExecutor(len(group)) as pool:
        for result, output in pool.map(captured, group):
            print_now(f"\n--- {result.step.name}")
            sys.stdout.buffer.write(output)
            sys.stdout.flush()
            results.append(result)
    return results


def command_of(environment: Environment, step: Step) -> list[str]:
    """The step's command line, with its program in ``.venv``."""
    return [str(environment.bin / step.command[0]), *step.command[1:]]


def run(environment: Environment, plan: Sequence[Sequence[Step]]) -> int:
    """Run all steps; returns 0 if every one succeeded, else the status of the first that did
    not."""
    results: list[Result] = []
    alone = sum(map(len, plan)) == 1
    for group in plan:
        if len(group) > 1:
            results += run_together(environment, group)
            continue
        if not alone:
            print_now(f"\n--- {group[0].name}")
        results.append(run_on_terminal(environment, group[0]))
    if not alone:
        print_now("")
        for step, status, seconds in results:
            verdict = "ok" if status == 0 else f"FAILED (exit status {status})"
            print_now(f"{step.name:<14} {seconds:6.1f} s  {verdict}")
    return next((each.status for each in results if each.status), 0)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    own_arguments, dashes, arguments = list(argv), False, []
    if "--" in own_arguments:
        separator = own_arguments.index("--")
        own_arguments, dashes, arguments = (
            own_arguments[:separator],
            True,
            own_arguments[separator + 1 :],
        )
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Set up .venv as needed, then run one of the project's commands in it.",
        epilog="What follows -- reaches the demo, pytest or the benchmarks.",
    )
    parser.add_argument("command", choices=["setup", "demo", "test", "check", "bench", "faults"])
    command = parser.parse_args(own_arguments).command
    if dashes and command in ("setup", "check"):
        parser.error(f"{command} takes no arguments")
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
