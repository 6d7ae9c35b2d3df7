"""Who may read a SQLite log, and which companion files it uses."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from streams.log.protocol import Log
from streams.log.sqlite.files import CompanionRefused, open_companion
from streams.log.sqlite.member_locks import MemberLocks
from streams.log.url import open_log
from streams.patterns.idempotency import IdempotencyStore
from tests.conformance.records import append, record

NOBODY = 65_534


class Silent:
    """A listener that starts where the group is."""

    def assigned(self, assignments: object) -> None: ...
    def revoked(self, assignments: object) -> None: ...
    def lost(self, assignments: object) -> None: ...


@pytest.fixture
def umask() -> Iterator[None]:
    """What most people have: others may read what is made."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def opened(path: Path) -> Log:
    return open_log(f"sqlite:///{path}")


def used(path: Path) -> dict[str, int]:
    """The mode of each file that a log and a member of it make, by what follows the log's name."""
    with closing(opened(path)) as log:
        log.create_topic("orders", 1)
        append(log, "orders", [record(b"1")])
        subscription = log.subscribe("g", ["orders"], Silent())
        subscription.poll(1, 0)
        try:
            found = modes(path.parent)
        finally:
            subscription.close()
    return {name.removeprefix(path.name): mode for name, mode in found.items()}


def modes(folder: Path) -> dict[str, int]:
    """The mode of each file in a folder."""
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}


@pytest.mark.usefixtures("umask")
def test_new_files_are_their_owner_s_alone(tmp_path: Path) -> None:
    assert used(tmp_path / "log.db") == {"": 0o600, "-wal": 0o600, "-shm": 0o600, "-members": 0o600}


@pytest.mark.usefixtures("umask")
async def test_claims_are_their_owner_s_alone(tmp_path: Path) -> None:
    async with IdempotencyStore(f"sqlite:///{tmp_path}/claims.db") as store:
        await store.set("key", "outcome")
        assert set(modes(tmp_path).values()) == {0o600}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o660, 0o644, 0o400 | 0o200])
def test_a_file_that_is_there_keeps_its_mode_and_gives_it_to_the_others(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "log.db"
    path.touch()
    path.chmod(mode)
    assert used(path) == {"": mode, "-wal": mode, "-shm": mode, "-members": mode}


def test_a_log_behind_a_symbolic_link_is_made_where_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "log.db").symlink_to(tmp_path / "real.db")
    opened(tmp_path / "log.db").close()
    assert stat.S_IMODE((tmp_path / "real.db").stat().st_mode) == 0o600


def test_the_files_are_their_logs_owner_s_when_root_opens_it(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    path = tmp_path / "log.db"
    path.touch(0o600)
    os.chown(path, NOBODY, NOBODY)
    used(path)
    assert {each.stat().st_uid for each in tmp_path.iterdir()} == {NOBODY}


@pytest.mark.parametrize("there", ["link", "dangling link", "pipe", "folder", "second name"])
def test_a_companion_that_is_not_ours_is_neither_followed_nor_used(
    tmp_path: Path, there: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, members, other = (tmp_path / name for name in ("log.db", "log.db-members", "other"))
    if "link" in there or "name" in there:
        if there != "dangling link":
            other.write_text("precious")
            other.chmod(0o644)
        if there == "second name":
            members.hardlink_to(other)
        else:
            members.symlink_to(other)
    elif there == "pipe":
        os.mkfifo(members)
    else:
        members.mkdir()
    path.touch()
    alive = MemberLocks(str(path))
    with caplog.at_level(logging.WARNING):
        alive.acquire(1)
        alive.acquire(2)
        assert alive.is_running(3) is None  # leases alone tell
        assert alive.is_running(1) is True
    alive.close()
    if there != "folder":
        assert len(caplog.records) == 1
        assert str(members) in caplog.text
    if other.exists():
        assert (other.read_text(), stat.S_IMODE(other.stat().st_mode)) == ("precious", 0o644)
    else:
        assert there != "link"


def test_another_user_s_companion_is_used_only_where_the_log_is_shared(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    path, members = tmp_path / "log.db", tmp_path / "log.db-members"
    path.touch(0o600)
    members.touch(0o666)
    os.chown(members, NOBODY, NOBODY)
    with pytest.raises(CompanionRefused, match=f"belongs to user {NOBODY}"):
        open_companion(str(members), str(path))
    path.chmod(0o660)
    os.close(open_companion(str(members), str(path)))


SQUATTER = """
import fcntl, os, sys
os.setgid(65534); os.setuid(65534)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_squatter_s_locks_keep_nobody_alive() -> None:
    """In a folder like /tmp somebody else locks every member's byte before the log is there."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        squatted(Path(folder) / "log.db")


def squatted(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SQUATTER, f"{path}-members"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert used(path)["-members"] == 0o666 & ~0o022
        alive = MemberLocks(str(path))
        assert alive.is_running(7) is None
        alive.close()
        process.communicate()
