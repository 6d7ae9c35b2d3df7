"""What is started for tests ends with them, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import warden
from tests.servers.lifetime import Lifetime, Process, StartError, free_port, until

ROOT = Path(__file__).resolve().parents[2]

SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]

SESSION = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
from tests.servers.lifetime import Lifetime, Process
lifetime = Lifetime()
process = Process(lifetime, {SLEEPER!r}, lifetime.place("p") / "log")
process.start()
print(lifetime.folder, process.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int, folder: Path) -> Callable[[], bool | None]:
    def look() -> bool | None:
        return (not warden.is_alive(pid) and not folder.exists()) or None

    return look


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ends_with_a_session_that_was_killed(ending: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as session:
        try:
            assert session.stdout is not None
            folder, pid = session.stdout.readline().split()
            os.kill(int(pid), 0)
            session.send_signal(ending)
            session.wait(60)
        finally:
            session.kill()
    until(gone(int(pid), Path(folder)), 30, "the process and its folder are gone")


def test_close_ends_even_a_frozen_process_and_removes_the_folder() -> None:
    with Lifetime() as lifetime:
        process = Process(lifetime, SLEEPER, lifetime.place("p") / "log")
        process.start()
        process.pause()
        pid = process.pid
    assert not lifetime.folder.exists()
    assert not process.alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_joined_lifetime_goes_on_when_it_is_left(lifetime: Lifetime) -> None:
    joined = Lifetime(lifetime.folder)
    process = Process(joined, SLEEPER, joined.place("p") / "log")
    process.start()
    joined.close()
    assert process.alive
    process.kill()


def test_shared_starts_once(lifetime: Lifetime) -> None:
    calls: list[int] = []

    def start() -> dict[str, str]:
        calls.append(1)
        return {"address": "here"}

    name = f"thing-{os.getpid()}"
    assert lifetime.shared(name, start) == {"address": "here"}
    assert Lifetime(lifetime.folder).shared(name, start) == {"address": "here"}
    assert calls == [1]


def test_undo_runs_at_the_end(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Lifetime() as lifetime:
        lifetime.undo("mark", [sys.executable, "-c", f"open({str(done)!r}, 'w')"])
        assert not done.exists()
    assert done.exists()


def test_a_number_that_belongs_to_another_process_now_is_left_alone(tmp_path: Path) -> None:
    if not warden.birth(os.getpid()):
        pytest.skip("this system does not tell when a process began")
    for name in ("pids", "undo"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL) as process:
        (tmp_path / "pids" / str(process.pid)).write_text("1")
        warden.end(tmp_path)
        assert process.poll() is None
        process.kill()


def test_a_server_that_ends_at_its_start_shows_its_log(lifetime: Lifetime) -> None:
    command = [sys.executable, "-c", "raise SystemExit('port taken')"]
    process = Process(lifetime, command, lifetime.place("p") / "log")
    process.start()
    with pytest.raises(StartError, match="port taken"):
        process.wait_ready(lambda: None)
    process.kill()


def test_free_ports_are_not_the_systems_own() -> None:
    assert all(10_000 <= free_port() < 32_768 for _ in range(20))
