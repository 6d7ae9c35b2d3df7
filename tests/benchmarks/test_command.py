"""The command as it is run: quick, on one log, told again from its JSON, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from tests.servers.lifetime import until

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"case", "log", "ratio", "spread", "figure", "baseline", "target", "met"}
SMALL = ["--messages", "3000", "--repeats", "2"]


def test_a_small_run_tells_the_same_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--quick", "--log", "memory", "--case", "plain handler", *SMALL]
    assert main([*run, "--save", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["case"] for row in rows] == [
        "plain handler", "plain handler that waits 5 ms, 64 threads",
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= KEYS
        assert len(row["ratios"]) == 2
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert row["figure"] > 0
        assert row["machine"]["msgspec"]
        assert row["settings"]["ours"]
    assert "plain handler" in capsys.readouterr().out
    page = (tmp_path / "results.html").read_text()
    assert (tmp_path / "results.md").read_text().count("\n| memory") == 2

    again = tmp_path / "again.html"
    assert main(["--from", str(tmp_path / "results.json"), "--html", str(again)]) == 0
    assert again.read_text() == page


def test_codecs_need_no_log(tmp_path: Path) -> None:
    file = tmp_path / "codecs.json"
    assert main(["--log", "codecs", "--case", "messagepack", *SMALL, "--json", str(file)]) == 0
    rows = {row["case"].rpartition(", ")[2]: row for row in json.loads(file.read_text())}
    assert set(rows) == {"size", "encode", "decode"}
    assert rows["size"]["ratio"] < 1  # MessagePack is smaller


def test_the_cases_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for log in ("memory", "sqlite", "redis", "kafka", "codecs"):
        assert any(line.startswith(f"{log}: ") for line in lines)
    assert main(["--list", "--quick"]) == 0
    assert "kafka" not in capsys.readouterr().out
    assert main(["--list", "--against", "HEAD", "--log", "memory"]) == 0
    assert all(line.startswith("memory: ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--log", "rabbit"], "invalid choice: 'rabbit'"),
        (["--peer", "celery"], "invalid choice: 'celery'"),
        (["--repeats", "0"], "at least 1"),
        (["--repeats", "many"], "invalid whole number value: 'many'"),
        (["--messages", "10"], "at least 1,000"),
        (["--json", "."], "is a folder"),
    ],
)
def test_a_command_line_that_cannot_work(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ("{}", "is no list of rows"),
        ('[{"case": 1}]', "is no list of rows"),
    ],
)
def test_results_that_are_none(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    assert main(["--from", str(file)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_case_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--log", "memory", "--case", "teleportation"]) == 1
    assert "--list shows them" in capsys.readouterr().err


def test_an_address_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMS_TEST_REDIS", "redis://127.0.0.1:1")
    monkeypatch.setattr("tests.servers.find.until", _never)
    assert main(["--log", "redis", *SMALL]) == 1
    assert "STREAMS_TEST_REDIS" in capsys.readouterr().err


def _never(ready: object, limit: float, what: str) -> None:
    raise TimeoutError(f"{what}: not within {limit:g} s")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what is left")
def test_an_interrupted_run_leaves_nothing_and_tells_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    mark = f"BENCH_MARK={os.getpid()}"
    name, _, value = mark.partition("=")
    run = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--log", "codecs", "--log", "memory",
         "--case", "json against msgspec", "--case", "idle", "--repeats", "50",
         "--json", str(file)],
        cwd=ROOT,
        env={**os.environ, name: value},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        until(lambda: len(_marked(mark)) >= 2 or None, 60, "a worker runs")
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=60)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 130
    assert b"Interrupted." in error
    assert b"Traceback" not in error
    until(lambda: not _marked(mark) or None, 30, "every process has ended")


def _marked(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:
            continue
    return found
