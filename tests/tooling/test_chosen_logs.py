"""On which logs a case runs (:mod:`tests.chosen_logs`)."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import pytest

from tests.chosen_logs import CONFORMANCE_KINDS, KINDS, choose, not_chosen
from tests.conformance.logs import MAIN_LOGS

ROOT = Path(__file__).parents[2]
MAIN = tuple(case.name for case in MAIN_LOGS)


def test_each_case_runs_on_one_of_each_kind_and_all_logs_are_used() -> None:
    uses: Counter[str] = Counter()
    for number in range(400):
        chosen = choose(f"test_this[{number}-]", MAIN, KINDS)
        assert [len(chosen.intersection(kind)) for kind in KINDS] == [1, 1]
        assert chosen == choose(f"test_this[{number}-]", MAIN[::-1], KINDS)
        uses.update(chosen)
    assert all(uses[log] > 300 / len(kind) for kind in KINDS for log in kind)
    pairs = {frozenset(choose(f"test_that[{number}-]", MAIN, KINDS)) for number in range(100)}
    assert len(pairs) == len(KINDS[0]) * len(KINDS[1])


def test_what_is_of_no_kind_always_runs() -> None:
    chosen = choose("test_that[]", (*MAIN, "kip848", "valkey"), CONFORMANCE_KINDS)
    of_no_kind = {*MAIN}.difference(*CONFORMANCE_KINDS)
    assert {"memory", "sqlite"} <= of_no_kind < chosen
    assert len(chosen) == len(of_no_kind) + len(CONFORMANCE_KINDS)


@pytest.mark.parametrize("log", MAIN)
def test_what_is_for_one_log_alone_runs_on_it(log: str) -> None:
    assert choose("test_that[]", [log], KINDS) == {log}


def test_what_says_nothing_of_a_log_is_left_in(request: pytest.FixtureRequest) -> None:
    assert not_chosen([request.node]) == []


def collected(*options: str) -> dict[str, set[str]]:
    """The logs of each case of a folder's tests, as pytest collects them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         "tests/managers/test_managers.py", *options],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cases: defaultdict[str, set[str]] = defaultdict(set)
    for found in re.finditer(r"::(\w+)\[(\w+)\]$", done.stdout, re.MULTILINE):
        if found[2] in MAIN:
            cases[found[1]].add(found[2])
    return cases


def test_pytest_leaves_out_the_others_unless_they_are_asked_for() -> None:
    everything, usual, named = collected("--every-log"), collected(), collected("-k", "redis")
    assert set(everything) == set(usual)
    for case, logs in everything.items():
        assert usual[case] == choose(f"tests/managers/test_managers.py::{case}[]", logs, KINDS)
    assert set(chain(*everything.values())) == set(MAIN)
    assert {case for case, logs in everything.items() if "redis" in logs} == set(named)
