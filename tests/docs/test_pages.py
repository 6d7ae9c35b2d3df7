"""Every page's blocks run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import typer

from streams.cli.root import make_app
from tests.docs.blocks import OTHER, PAGES, PYTHON, ROOT, SHELL, Block, blocks, commands
from tests.docs.run import compiled

NEEDS_SERVERS = {"kafka.md", "redis.md"}
"""Their blocks are compiled and their commands read; the rest is in tests/log and conformance."""

COMPILED_ONLY = NEEDS_SERVERS | {"cli.md", "scaling.md"}
"""The same; what these two show is of an app of its own, and run by tests/cli and tests/interop."""

ALL = [(page, block) for page in PAGES for block in blocks(page)]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "STREAMS_URL"}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")]),
        "PYTHONWARNINGS": "error",
        "COLUMNS": "120",
    }


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in COMPILED_ONLY],
    ids=lambda page: page.name,
)
def test_a_page_runs_from_its_top_to_its_bottom(
    page: Path, tmp_path: Path, disk_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run", str(page)],
        # The doctor warns of a file in memory, where that of tmp_path may be.
        cwd=disk_path if page.name == "doctor.md" else tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout


def test_every_block_is_of_a_kind_that_is_known() -> None:
    for _, block in ALL:
        assert block.language in (*PYTHON, *SHELL, *OTHER), block.place
        if block.language in PYTHON:
            compiled(block)


def test_what_is_not_run_is_little_and_says_why() -> None:
    left_out = [block for _, block in ALL if "not run" in block.marks]
    assert len(left_out) <= 3, [block.place for block in left_out]
    assert all(len(block.marks["not run"]) > 10 for block in left_out)


def shown() -> Iterator[tuple[Block, list[str]]]:
    """Every command that any page shows, in blocks and within the text."""
    for _, block in ALL:
        if block.language in SHELL:
            for line in commands(block):
                yield block, shlex.split(line.partition(" | ")[0])
    for page in PAGES:
        for inline in re.finditer(r"`((?:streams|make|python -m) [^`\n]+)`", page.read_text()):
            yield Block(page.name, 0, "", "", {}), shlex.split(inline[1].partition(" | ")[0])


def test_every_streams_command_can_be_read() -> None:
    """Parsed by the command line itself, not run: no page names an option that is not there."""
    root: Any = typer.main.get_command(make_app())
    context = root.make_context("streams", [], resilient_parsing=True)
    found = 0
    for block, words in shown():
        if words[0] != "streams" or any(word.isupper() and word.isalpha() for word in words):
            continue  # another program, or a pattern such as `streams COMMAND --help`
        found += 1
        command, rest = root, [word for word in words[1:] if word not in ("--help", "-h")]
        while hasattr(command, "commands") and rest:
            name = rest.pop(0)
            assert name in command.commands, f"{block.place}: {' '.join(words)}"
            command = command.commands[name]
        try:
            if rest:
                command.make_context(words[1], rest, parent=context)
        except Exception as error:
            pytest.fail(f"{block.place}: {' '.join(words)}: {error}")
    assert found > 20


def make_problem(words: list[str]) -> str | None:
    """What is wrong with a call of make; None: nothing, or it is another program."""
    lines = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets = {name for line in lines for name in line.split()}
    words = list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    if words[:1] != ["make"]:
        return None
    for word in words[1:]:
        if word not in targets and not re.match(r"(ARGS|PYTHON)=", word):
            # What stands behind `--` is a target to make, too, and no argument of what it runs.
            return f"make has no target {word!r}; arguments are written ARGS='...'"
    return None


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ("make faults", True),
        ("make faults ARGS='-k \"kill_9 and redis\"'", True),
        ("STREAMS_SEED=7 make faults", True),
        ("make faults -- -k 'kill_9 and redis'", False),
        ("make faults -k kill_9", False),
        ("STREAMS_SEED=7 make fault", False),
    ],
)
def test_a_call_of_make_is_looked_at(call: str, right: bool) -> None:
    assert (make_problem(shlex.split(call)) is None) is right


def test_every_call_of_make_is_one() -> None:
    calls = [(block.place, words) for block, words in shown() if "make" in words]
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"^ {4}(make .*?)(?: #.*)?$", contributing, re.MULTILINE)
    calls += [("CONTRIBUTING.md", shlex.split(line)) for line in found]
    assert len(calls) > 12
    for place, words in calls:
        assert make_problem(words) is None, f"{place}: {' '.join(words)}"


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_and_module_that_is_named_exists() -> None:
    for page in PAGES:
        for named in re.findall(
            r"`((?:tests|streams|codecs|examples)/[\w/.*]+)`", page.read_text()
        ):
            assert list(ROOT.glob(named.rstrip("/"))), f"{page.name}: {named}"
        for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {test}(" in (ROOT / path).read_text(), f"{page.name}: {path}::{test}"


TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
PROOF = re.compile(r"<sup>([a-z](?: [a-z])*)</sup>")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows_of(table: str) -> list[list[str]]:
    """The rows below a table's head, cell by cell."""
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def what_gives_what() -> tuple[list[list[str]], dict[str, str]]:
    """The combinations of log, effect and publishing; and the proofs by letter."""
    text = (ROOT / "docs" / "transactions.md").read_text()
    section = text.partition("\n## What gives what\n")[2].partition("\n## ")[0]
    combinations, proofs = map(rows_of, TABLE.findall(section))
    assert all(len(row) == 2 for row in proofs)
    return combinations, dict(proofs)


def test_each_combination_of_log_effect_and_publishing_has_its_proof() -> None:
    combinations, proofs = what_gives_what()
    assert len(combinations) > 12
    assert len({(effect, publishes) for effect, publishes, *_ in combinations}) > 12
    named = set[str]()
    for effect, publishes, *logs in combinations:
        assert len(logs) == 4, (effect, publishes)
        for cell in logs:
            letters = {letter for found in PROOF.findall(cell) for letter in found.split()}
            assert letters, f"{effect}, {publishes}: no proof of {cell!r}"
            assert letters <= proofs.keys(), f"{effect}, {publishes}: {cell!r}"
            named |= letters
    assert named == proofs.keys()  # none stands there for nothing


def test_each_proof_is_a_test() -> None:
    _, proofs = what_gives_what()
    assert list(proofs) == sorted(proofs)
    for letter, proof in proofs.items():
        tests = TEST.findall(proof)
        assert tests, letter
        for path, name in tests:
            file = ROOT / path
            assert file.exists(), f"{letter}: {path}"
            assert re.search(rf"^(?:async )?def {name}\(", file.read_text(), re.MULTILINE), name
