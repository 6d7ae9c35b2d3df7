"""What Mypy and Pyright, in their strict modes, say of programs that use the toolkit.

``accepted*.py`` and ``refused*.py`` hold what they must take and what they must not. README.md and
docs/ are programs as well: a page's blocks are one, with its lines where they are on the page, as
``tests.docs.run`` runs them; a block that is a file is one of its own.

Each checker runs once, over all of it, with a user's settings and not this repository's.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

import pytest

from tests.docs.blocks import PAGES, PYTHON, ROOT, Block, blocks

HERE = Path(__file__).parent
SUBJECTS = ("", "_aggregates", "_managers", "_transactions", "_views")
ACCEPTED = tuple(f"accepted{subject}.py" for subject in SUBJECTS)
REFUSED = tuple(f"refused{subject}.py" for subject in SUBJECTS)

PAGE = """\
# pyright: reportUnusedImport=false, reportUnusedVariable=false
# pyright: reportUnusedClass=false, reportUnusedFunction=false
from flights import *
async def page() -> None:
"""
"""What stands above a page's blocks: they may await, and go on from the README's quickstart. Made
one function, what a block leaves for the reader's own use seems to be unused."""


class Complaint(NamedTuple):
    """What a checker says of a line."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def test_mypy(programs: dict[str, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--output", "json", "--config-file", ""),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "programs"), *programs),
        ],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    found = [
        Complaint(each["file"], each["line"], each["message"])
        for each in said
        if each["severity"] == "error"
    ]
    problems = list(unexpected("mypy", found, programs))
    assert not problems, "\n".join(problems)


def test_pyright(programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    said: Any = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == len(programs)
    found = [
        Complaint(Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in said["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    problems = list(unexpected("pyright", found, programs))
    assert not problems, "\n".join(problems)


def environment() -> dict[str, str]:
    """Without this repository on the path: types are found where the package is installed."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, Path]:
    """Every program that is checked, by its name in the folder; where it comes from."""
    found: dict[str, Path] = {}
    for name in (*ACCEPTED, *REFUSED):
        found[name] = HERE / name
        (tmp_path / name).write_text((HERE / name).read_text(encoding="utf-8"), encoding="utf-8")
    for page in PAGES:
        code = [block for block in blocks(page) if block.language in PYTHON]
        files = [block for block in code if "file" in block.marks]
        rest = [block for block in code if "file" not in block.marks]
        texts = {block.marks["file"]: "\n" * block.line + block.text for block in files}
        if rest:
            texts[f"page_{page.stem.replace('-', '_')}.py"] = as_function(rest)
        for name, text in texts.items():
            assert name not in found, f"{page.name}: {found[name].name} has a file {name}, too"
            found[name] = page
            (tmp_path / name).write_text(text, encoding="utf-8")
    return found


def as_function(code: list[Block]) -> str:
    """The blocks of a page, each at its own line."""
    text = PAGE
    for block in code:
        text += "\n" * (block.line - text.count("\n")) + indent(block.text, "    ")
    return text


def unexpected(checker: str, found: list[Complaint], programs: dict[str, Path]) -> Iterator[str]:
    """Complaints about what is right, and what is wrong without one."""
    wrong = {name: list(expected(checker, name)) for name in REFUSED}
    assert all(len(statements) >= 15 for statements in wrong.values())
    for complaint in found:
        if complaint.file not in wrong:
            yield f"{programs[complaint.file].name}, {complaint}"
        elif not any(complaint.line in lines for lines in wrong[complaint.file]):
            yield f"{complaint}"
    for name, statements in wrong.items():
        for lines in statements:
            if not any(each.file == name and each.line in lines for each in found):
                yield f"{name}:{lines.start}: {checker} takes it"


def expected(checker: str, name: str) -> Iterator[range]:
    """The lines of each statement in a file of those refused that must have an error."""
    source = (HERE / name).read_text(encoding="utf-8")
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        first = min(
            [statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))]
        )
        last = statement.end_lineno or first
        for line in lines[first - 1 : last]:
            _, mark, of = line.partition("# error")
            if mark and of in ("", f": {checker}"):
                yield range(first, last + 1)


def test_what_is_accepted_can_be_declared() -> None:
    from tests.types import accepted, accepted_aggregates

    assert len(accepted.app.processors) > 40
    accepted_aggregates.test_account()
