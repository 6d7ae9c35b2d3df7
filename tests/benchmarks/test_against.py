"""A commit beside another one: the interval, the verdict, and a run against real git history."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import against
from benchmarks.__main__ import main
from benchmarks.against import MIN_TURNS, Comparison, UnknownRevision, interval, resolve
from benchmarks.cases import QUICK, LogTarget, cases

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--quick", "--log", "memory", "--case", "plain handler", "--messages", "2000"]


@given(st.integers(MIN_TURNS, 60))
def test_the_interval_holds_95_percent_and_is_the_narrowest_that_does(count: int) -> None:
    low, high = interval(list(map(float, range(count))))
    rank = int(low) + 1
    assert int(high) == count - rank

    def enclosed(rank: int) -> float:
        outside = sum(math.comb(count, below) for below in range(rank))
        return 1 - 2 * outside / int(2**count)

    assert enclosed(rank) >= 0.95 > enclosed(rank + 1)


@given(st.lists(st.floats(0.01, 100), min_size=MIN_TURNS, max_size=30), st.randoms())
def test_the_interval_does_not_depend_on_the_order_and_encloses_the_median(
    ratios: list[float], random: object
) -> None:
    shuffled = sorted(ratios, key=lambda _: random.random())  # type: ignore[attr-defined]
    low, high = interval(shuffled)
    assert (low, high) == interval(ratios)
    ordered = sorted(ratios)
    assert low <= ordered[(len(ratios) - 1) // 2] <= ordered[len(ratios) // 2] <= high


def test_too_few_turns_have_no_interval() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_TURNS}"):
        interval([1.0] * (MIN_TURNS - 1))


def compared(better: str, low: float, high: float, error: str | None = None) -> Comparison:
    return Comparison("c", "memory", "x", better, 1.0, (low, high), 1.0, 1.0, (), error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "more", "less"),
    [
        (0.90, 0.96, "slower", "quicker"),
        (0.90, 0.98, "", ""),
        (0.98, 1.02, "", ""),
        (1.04, 1.20, "quicker", "slower"),
        (1.01, 1.20, "", ""),
    ],
)
def test_only_a_whole_interval_beyond_the_tolerance_is_a_verdict(
    low: float, high: float, more: str, less: str
) -> None:
    assert compared("more", low, high).verdict == more
    assert compared("less", low, high).verdict == less
    assert compared("more", low, high, "it broke").verdict == "failed"


def test_every_verdict_is_counted() -> None:
    rows = [
        compared("more", 0.5, 0.6), compared("less", 0.5, 0.6), compared("more", 0.9, 1.1),
        compared("more", 1, 1, "it broke"),
    ]  # fmt: skip
    assert against.summary(rows).startswith("4 figures: 1 slower and 1 quicker")
    assert against.summary(rows).endswith("1 failed")
    lines = against.markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "slower" in lines[2]


def test_what_was_measured_by_one_case_is_not_measured_again_by_another() -> None:
    one, two = LogTarget("codecs", "", "one"), LogTarget("codecs", "", "two")
    found = against.pairs(cases(one, QUICK), cases(two, QUICK))
    asked = [(mine.ours.task, str(mine.ours.arguments)) for mine, _ in found]
    assert len(asked) == len(set(asked)) < len(cases(one, QUICK))
    for mine, other in found:
        assert mine.name == other.name


def test_a_revision_that_git_does_not_know() -> None:
    for revision in ("no-such-branch", "--output=/tmp/x", "HEAD:README.md", ""):
        with pytest.raises(UnknownRevision, match="knows no such commit"):
            resolve(revision)


def test_a_command_line_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--against", "no-such-branch"]) == 1
    said = capsys.readouterr().err
    assert "git knows no such commit" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "more", [["--repeats", "5"], ["--peer", "quix"], ["--html", "x.html"], ["--save", "x"]]
)
def test_what_goes_not_together(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main([*SMALL, "--against", "HEAD", *more])
    assert status.value.code == 2
    assert "--against" in capsys.readouterr().err


def test_both_commits_run_their_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other commit here is this one's files with a handler loop that answers a known figure."""
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    unpack = against.unpack

    def unpack_slower(commit: str, folder: Path) -> None:
        unpack(commit, folder)
        file = folder / "benchmarks" / "worker.py"
        source = file.read_text()
        assert "        answer = task(**question" in source
        file.write_text(
            source.replace("    return answer\n", '    return {**answer, **{"rate": 1.0}}\n')
        )

    monkeypatch.setattr(against, "unpack", unpack_slower)
    file = tmp_path / "rows.json"
    table = tmp_path / "rows.md"
    run = [*SMALL, "--against", "HEAD", "--repeats", str(MIN_TURNS)]
    assert main([*run, "--json", str(file), "--markdown", str(table)]) == 0
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows] == [
        "plain handler", "plain handler that waits 5 ms, 64 threads",
    ]  # fmt: skip
    for row in rows:
        assert row["error"] is None
        assert row["before"] == 1.0
        assert row["figure"] > 1.0
        assert len(row["ratios"]) == MIN_TURNS
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
    assert "2 quicker" in table.read_text()
    assert "2 quicker" in capsys.readouterr().out


def test_a_task_that_the_other_commit_lacks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack = against.unpack

    def unpack_older(commit: str, folder: Path) -> None:
        unpack(commit, folder)
        file = folder / "benchmarks" / "worker.py"
        file.write_text(file.read_text().replace("ours.consume,", ""))

    monkeypatch.setattr(against, "unpack", unpack_older)
    file = tmp_path / "rows.json"
    run = [*SMALL, "--against", "HEAD", "--repeats", str(MIN_TURNS), "--json", str(file)]
    assert main(run) == 1
    for row in json.loads(file.read_text()):
        assert "consume" in row["error"]
        assert row["ratio"] is None
    assert "failed" in capsys.readouterr().err
