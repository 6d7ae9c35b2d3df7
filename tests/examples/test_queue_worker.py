"""The queue worker: each of its mails comes to its end, on every log; and again on the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAID = [
    "ada: sent at attempt 1: welcome",
    "bob: sent at attempt 2: welcome",
    "eve: sent at attempt 1: a second has passed",
    "nobody: given up after 2 retries: LookupError: there is no such mailbox",
]


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python examples/queue_worker.py ...`` in a folder."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "queue_worker.py"), *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sorted(lines) == SAID
    assert lines[-1] == SAID[-1]


def test_on_a_file_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        check(script(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")])}
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "streams.cli", "dead", "ls", "mails", "mails"),
            *("--name", "lost-mails", "--url", "sqlite:///mails.db"),
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert listed.stdout.count("LookupError") == 2


def test_in_memory(tmp_path: Path) -> None:
    check(script(tmp_path, "memory://"))


@pytest.mark.parametrize("server", ["kafka", "redis_server"])
def test_on_real_servers(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    check(script(tmp_path, request.getfixturevalue(server).url))


def test_what_is_no_log_is_said_in_a_line(tmp_path: Path) -> None:
    done = script(tmp_path, "mails.db")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("queue_worker: log URL")
    assert done.stderr.count("\n") == 1
