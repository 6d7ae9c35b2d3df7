"""Commands that look make no file and change none; what is not there is named, and what is near."""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.errors import ConfigError, Fatal, LogError, NotFound
from streams.log.url import open_log
from tests.cli.conftest import Run, Shell, fill, order
from tests.conformance.records import append, record

LOOKING = (
    "topics ls",
    "topics show orders",
    "groups ls",
    "groups ls --all",
    "groups show billing",
    "tail orders",
    "tail orders --json --from earliest",
    "replay orders",
    "replay shop:app orders",
    "reset billing orders --to earliest --dry-run",
    "dead ls",
    "dead ls billing orders --all",
    "dead show billing orders",
    "dead keys billing orders",
    "saga list",
    "saga status trips ann",
    "aggregates ls",
    "aggregates ls shop:app",
    "aggregates ls accounts",
    "aggregates show accounts a-1 --events",
    "managers ls shop:app",
    "managers show shop:app transfers",
    "doctor shop:app",
)

CHANGING = (
    "topics delete orders --yes",
    "groups delete billing --yes",
    "reset billing orders --to earliest",
    "publish orders",
    "replay orders --to others",
    "replay shop:app orders --into bill",
    "dead retry billing orders --yes",
    "dead purge billing orders --yes",
    "dead edit billing orders c1 --value 1",
    "dead drop billing orders c1",
    "saga resume trips ann",
    "saga abandon trips an --yes",
    "aggregates drop-snapshots accounts --yes",
)


def files(folder: Path, start: str = "") -> dict[str, bytes]:
    """What stands in a folder; SQLite's shared memory has no content of its own."""
    return {
        path.name: b"" if path.name.endswith("-shm") else path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name.startswith(start)
    }


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is there to be asked, and there is nothing to be read."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


@pytest.mark.parametrize("command", LOOKING + CHANGING)
def test_a_file_that_is_not_there_is_not_made_and_the_nearest_is_named(
    shell: Shell, run: Run, command: str, nobody: None
) -> None:
    (shell.folder / "shop.db").write_bytes(b"")
    (shell.folder / "quite_different.db").write_bytes(b"")
    before = files(shell.folder)
    result = run(*shlex.split(command), "--url", "sqlite:///shpo.db")
    assert result.status == 1
    said = result.out if command.startswith("doctor") else result.err
    assert str(shell.folder / "shpo.db") in said
    assert "beside it there is shop.db" in said
    assert {name: data for name, data in files(shell.folder).items() if name in before} == before
    assert not files(shell.folder, "shpo")


def test_a_folder_without_databases_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*/a\.db; the folder has no \*\.db file"):
        open_log(f"sqlite:///{tmp_path}/a.db", mode="ro")


@pytest.mark.parametrize("command", LOOKING + CHANGING)
def test_another_programs_file_is_left_as_it_is(
    shell: Shell, run: Run, command: str, nobody: None
) -> None:
    theirs = sqlite3.connect(shell.folder / "theirs.db")
    theirs.execute("CREATE TABLE sold (n)")
    theirs.commit()
    theirs.close()
    before = files(shell.folder)["theirs.db"]
    result = run(*shlex.split(command), "--url", "sqlite:///theirs.db")
    assert result.status == 1
    assert "without a log in it" in result.out + result.err
    assert files(shell.folder, "theirs") == {"theirs.db": before}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("command", LOOKING)
def test_a_log_is_as_it_was_after_a_look(
    shell: Shell, run: Run, command: str, killed: bool
) -> None:
    from streams.log.protocol import Retention

    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(5)])
        log.create_topic("orders", 2, Retention(messages=1))  # a look does not trim either
        log.initialize_offsets("billing", "orders", {0: 0, 1: 0})
    if killed:
        code = (
            "import os, signal\n"
            "from streams.log.url import open_log\n"
            "from streams.message import Record\n"
            "log = open_log('sqlite:///shop.db')\n"
            "log.append('orders', [Record(b'{}', b'k', 'last')], lambda answers: None)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=shell.folder, env=shell.environment, check=False
        )
        assert ended.returncode == -signal.SIGKILL
        assert files(shell.folder)["shop.db-wal"]
    before = files(shell.folder, "shop.db")
    result = run(*shlex.split(command))
    assert result.status in (0, 1)
    assert files(shell.folder, "shop.db") == before
    if killed and command == "tail orders --json --from earliest":
        assert "last" in [each["id"] for each in result.lines]


def test_create_makes_a_file_and_says_so_beside_which(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    assert shell("topics", "create", "t", "--url", "sqlite:///other.db").status == 0
    assert (shell.folder / "other.db").exists()
    ended = shell("run", "shop:app", "--url", "sqlite:///no/such/folder.db")
    assert ended.status == 2


def test_run_says_that_its_log_is_new(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    with shell.start("run", "shop:app", "--url", "sqlite:///shpo.db") as process:
        assert process.stderr is not None
        lines = [process.stderr.readline().decode()]
        while "is a new log" not in lines[-1]:
            lines.append(process.stderr.readline().decode())
            assert lines[-1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert "shpo.db is a new log; beside it there was shop.db already" in lines[-1]


# -- the same in code


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_code_may_ask_for_a_file_that_is_there(tmp_path: Path, mode: str) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(NotFound):
        open_log(f"{url}?mode={mode}")
    assert not list(tmp_path.iterdir())
    log = open_log(url)
    log.create_topic("t", 1)
    log.close()
    log = open_log(f"{url}?mode={mode}")
    assert [topic.name for topic in log.topics()] == ["t"]
    if mode == "ro":
        with pytest.raises(Fatal, match="mode=ro, which only looks"):
            log.create_topic("u", 1)
        (answer,) = append(log, "t", [record(b"1")])
        assert isinstance(answer, LogError)
    else:
        append(log, "t", [record(b"1")])
        assert log.watermarks("t", 0) == (0, 1)
    log.close()


def test_the_stricter_of_the_url_and_the_caller_counts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(NotFound):
        open_log(f"{url}?mode=ro", mode="rwc")
    with pytest.raises(NotFound):
        open_log(f"{url}?mode=rwc", mode="ro")
    with pytest.raises(ConfigError, match=r"'rwc'.*'rw'.*'ro'"):
        open_log(f"{url}?mode=r")
    assert not list(tmp_path.iterdir())
