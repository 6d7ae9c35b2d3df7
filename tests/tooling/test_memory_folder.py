"""Where the temporary files of ``make test`` are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memory_folder import MIN_AVAILABLE, MIN_FREE, PREFIX, memory_folder

MUCH = f"MemTotal: 99 kB\nMemAvailable: {MIN_AVAILABLE >> 10} kB\n"
LITTLE = f"MemTotal: 99 kB\nMemAvailable: {(MIN_AVAILABLE >> 10) - 1} kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text(MUCH)
    return file


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if it were a file system in memory, with room enough."""
    monkeypatch.setattr("memory_folder.MIN_FREE", 0)
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def test_there_is_one_for_as_long_as_it_is_used(parent: Path, meminfo: Path) -> None:
    with memory_folder({}, parent, meminfo) as folder:
        assert folder is not None
        assert folder.parent == parent
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("name", ["TMPDIR", "STREAMS_TEST_KEEP"])
def test_who_says_where_decides(parent: Path, meminfo: Path, name: str) -> None:
    with memory_folder({name: "1"}, parent, meminfo) as folder:
        assert folder is None


@pytest.mark.parametrize("text", [LITTLE, "", "MemAvailable: much\n"])
def test_none_where_memory_is_short(parent: Path, meminfo: Path, text: str) -> None:
    meminfo.write_text(text)
    with memory_folder({}, parent, meminfo) as folder:
        assert folder is None


def test_none_where_there_is_no_such_file_system(parent: Path, meminfo: Path) -> None:
    with memory_folder({}, parent / "missing", meminfo) as folder:
        assert folder is None
    with memory_folder({}, parent, meminfo / "missing") as folder:
        assert folder is None


def test_none_where_it_is_full(tmp_path: Path, meminfo: Path) -> None:
    full = os.statvfs_result((4096, 4096, 1 << 40, 1 << 40, (MIN_FREE >> 12) - 1, 1, 1, 1, 0, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.statvfs", lambda path: full)
        with memory_folder({}, tmp_path, meminfo) as folder:
            assert folder is None


def test_none_where_no_program_may_run(parent: Path, meminfo: Path) -> None:
    here = os.statvfs(parent)
    with pytest.MonkeyPatch.context() as patch:
        values = [*here[:8], here.f_flag | os.ST_NOEXEC, here.f_namemax]
        patch.setattr("os.statvfs", lambda path: os.statvfs_result(values))
        with memory_folder({}, parent, meminfo) as folder:
            assert folder is None


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_stays(
    parent: Path, meminfo: Path
) -> None:
    nobody = 1 << 22  # one more than the highest number of a process
    for name in (f"{PREFIX}{nobody}-a", f"{PREFIX}{os.getpid()}-b", "streams-else", f"{PREFIX}x-y"):
        (parent / name).mkdir()
    with memory_folder({}, parent, meminfo):
        pass
    left = {f"{PREFIX}{os.getpid()}-b", "streams-else", f"{PREFIX}x-y"}
    assert {each.name for each in parent.iterdir()} == left
