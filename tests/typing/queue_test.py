"""What both type checkers, in their strict modes, make of queues' handles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USES = Path(__file__).with_name("queue_uses.py")


def mypy(folder: Path) -> set[int]:
    """The lines in which mypy finds an error."""
    said = checker("mypy", "--strict", "--no-error-summary", "--hide-error-context", str(folder))
    return {int(line) for line in re.findall(r"^[^\n]*?\.py:(\d+): error:", said, re.MULTILINE)}


def pyright(folder: Path) -> set[int]:
    """The same of pyright."""
    settings = {
        "include": [str(folder)],
        "extraPaths": [str(ROOT), str(ROOT / "codecs")],
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    found = json.loads(checker("pyright", "--outputjson", "--project", str(folder)))
    return {
        each["range"]["start"]["line"] + 1
        for each in found["generalDiagnostics"]
        if each["severity"] == "error"
    }


def checker(*words: str) -> str:
    """What a checker says of it."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("check", [mypy, pyright], ids=lambda check: check.__name__)
def test_queues(check: Callable[[Path], set[int]], tmp_path: Path) -> None:
    source = USES.read_text(encoding="utf-8")
    # Without what tells the repository's own check that the wrong lines are meant.
    (tmp_path / USES.name).write_text(re.sub(r"# type: ignore\S*  (?=# wrong)", "", source))
    lines = enumerate(source.splitlines(), 1)
    assert check(tmp_path) == {number for number, line in lines if line.endswith("# wrong")}
