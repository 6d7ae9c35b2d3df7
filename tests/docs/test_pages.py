"""Every page's blocks run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from streams.cli.root import app as command_line
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
def test_a_page_runs_from_its_top_to_its_bottom(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run", str(page)],
        cwd=tmp_path,
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
    root: Any = typer.main.get_command(command_line)
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


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for line in targets for name in line.split()}
    for block, words in shown():
        if words[0] == "make":
            assert words[1] in known, block.place


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
