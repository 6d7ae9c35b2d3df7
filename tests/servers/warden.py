"""Ends what a test session started, when the session ends: in order, by a crash, by SIGKILL.

Run as a program with a folder as its argument, by whoever starts servers in that folder. Its
standard input is a pipe whose other end only that session holds, so end-of-file means that the
session is no more, however it ended; no signal, thread or platform call is needed for that. Then:

1. every process noted in ``pids/`` gets SIGKILL (unless its number belongs to another one now);
2. every command noted in ``undo/`` runs (removing a container);
3. the folder is removed, unless ``keep`` stands in it.

A program of its own, standard library alone: it must outlive the session and start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def birth(pid: int) -> str:
    """What tells a process from a later one with the same number; "" where that is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # starttime, proc_pid_stat(5)


def note(folder: Path, pid: int) -> None:
    """Write down a process that the warden shall end."""
    (folder / "pids" / str(pid)).write_text(birth(pid), encoding="utf-8")


def forget(folder: Path, pid: int) -> None:
    """The process has ended and was waited for."""
    (folder / "pids" / str(pid)).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not Path("/proc/self/stat").exists()


def end(folder: Path) -> None:
    """Everything that was started in the folder, and the folder."""
    pids = []
    for entry in (folder / "pids").iterdir():
        pid, born = int(entry.name), entry.read_text(encoding="utf-8")
        if not born or born == birth(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                pids.append(pid)
    for entry in sorted((folder / "undo").iterdir()):
        command = json.loads(entry.read_text(encoding="utf-8"))
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, timeout=60, check=False, stdin=subprocess.DEVNULL)
    limit = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.01)
    if not (folder / "keep").exists():
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: Path) -> None:
    """Wait for the end of standard input, then end the rest."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
