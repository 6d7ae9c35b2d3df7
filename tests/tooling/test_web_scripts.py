"""The scripts of others that are committed are what their sums and the list of packages say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import web_scripts


def test_the_committed_scripts_are_what_their_sums_say() -> None:
    assert web_scripts.main(["--check"]) == 0


@pytest.mark.parametrize("folder", web_scripts.FOLDERS, ids=lambda folder: folder.parent.name)
def test_each_has_a_sum_and_a_package_that_it_comes_from(folder: Path) -> None:
    lines = (folder / web_scripts.SUMS).read_text(encoding="ascii").splitlines()
    named = {line.partition("  ")[2] for line in lines}
    packages = (each for each in web_scripts.PACKAGES if each.folder == folder)
    assert named == {name for package in packages for name in package.files.values()}


@pytest.mark.parametrize("folder", web_scripts.FOLDERS, ids=lambda folder: folder.parent.name)
def test_a_file_that_was_changed_added_or_lost_is_told(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "vendor"
    shutil.copytree(folder, copy)
    assert web_scripts.changed_files(copy) == []
    changed, lost = sorted(path for path in copy.iterdir() if path.name != web_scripts.SUMS)[:2]
    changed.write_bytes(changed.read_bytes() + b" ")
    lost.unlink()
    (copy / "more.js").write_bytes(b"")
    found = web_scripts.changed_files(copy)
    assert found == sorted([changed.name, lost.name, "more.js"])
