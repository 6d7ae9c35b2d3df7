"""One folder, and the processes started in it: they end together, whatever ends the session.

A :class:`Lifetime` belongs to the process that opened it; others (pytest-xdist's workers) may join
it through its folder, start servers in it and share them, and leave without ending anything.
Ending is a separate small program's work (:mod:`tests.servers.warden`), so that it is done even
after ``kill -9``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.servers import warden

T = TypeVar("T")

KEEP = "STREAMS_TEST_KEEP"
"""Set in the environment, the folder with all logs and data stays behind."""


class StartError(Exception):
    """A server that was started did not come up; the message has the end of its log."""


class Lifetime:
    """A folder whose processes end with the session that opened it. A context manager.

    :param folder: join the lifetime of this folder instead of opening a new one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._warden: subprocess.Popen[bytes] | None = None
        self._started: set[Process] = set()
        if folder is not None:
            self.folder = folder
            return
        self.folder = Path(tempfile.mkdtemp(prefix="streams-"))
        (self.folder / "pids").mkdir()
        (self.folder / "undo").mkdir()
        if os.environ.get(KEEP):
            (self.folder / "keep").touch()
        self._warden = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Lifetime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove the folder, if this process opened it; else only leave."""
        if self._warden is not None and self._warden.stdin is not None:
            self._warden.stdin.close()
            self._warden.wait()
            self._warden = None
            for process in list(self._started):
                process.kill()  # it is dead: only waited for
        else:
            _left.extend(self._started)

    def note(self, process: Process) -> None:
        """A process was started: it shall end with this lifetime."""
        self._started.add(process)
        warden.note(self.folder, process.pid)

    def forget(self, process: Process) -> None:
        """A process has ended and was waited for."""
        self._started.discard(process)
        warden.forget(self.folder, process.pid)

    def place(self, name: str) -> Path:
        """A new folder in this one, for the data of one server."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def undo(self, name: str, command: Sequence[str]) -> None:
        """A command to run when all ends."""
        draft = self.folder / f"{name}.draft"
        draft.write_text(json.dumps(list(command)), encoding="utf-8")
        draft.rename(self.folder / "undo" / name)

    def shared(self, name: str, start: Callable[[], dict[str, str]]) -> dict[str, str]:
        """What ``start`` returns: called once by whoever of the session comes first."""
        with locked(self.folder / f"{name}.lock"):
            facts = self.folder / f"{name}.json"
            if not facts.exists():
                draft = facts.with_suffix(".draft")
                draft.write_text(json.dumps(start()), encoding="utf-8")
                draft.rename(facts)
            found: dict[str, str] = json.loads(facts.read_text(encoding="utf-8"))
            return found


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock file among processes; it is let go however the holder ends."""
    with path.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


SHARES = 16
"""Of the ports that are given, for as many workers."""

_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback port that nothing uses, below those which the system gives to clients; another one
    at each call, as whoever asked may not have bound it yet.

    A server that is killed and started again needs its port back; from the system's own range some
    client could have taken it meanwhile (even the one that tries to reconnect to it).
    """
    low = 32768
    with contextlib.suppress(OSError, ValueError):
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Each worker has a share of its own: what another one was given may not be bound yet.
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    size = (min(max(low, 12_000), 32_768) - 10_000) // SHARES
    choose = random.SystemRandom()
    for _ in range(1000):
        port = 10_000 + share * size + choose.randrange(size)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise StartError("no free port on 127.0.0.1 below the system's own range")


def until(ready: Callable[[], T | None], limit: float, what: str) -> T:
    """What ``ready`` gives once it gives anything.

    :param limit: seconds; a guard, so be generous.
    :raises TimeoutError: it gave nothing until then.
    """
    ends = time.monotonic() + limit
    while True:
        found = ready()
        if found is not None and found is not False:
            return found
        if time.monotonic() > ends:
            raise TimeoutError(f"{what}: not within {limit:g} s")
        time.sleep(0.02)


_left: list[Process] = []
"""Started in a lifetime that was left before it ended: they serve others, and nobody here waits."""


PRIORITY = -5
"""The nice value of a server."""


class Process:
    """One server process, which a test may end, freeze and start again.

    :param lifetime: what it ends with.
    :param command: its program and arguments; the same at every start.
    :param log: the file that gets what it prints.
    :param env: more of its environment.
    :param user: who runs it, where that is not whoever runs the tests (root alone can choose).
    """

    def __init__(
        self,
        lifetime: Lifetime,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._lifetime = lifetime
        self._env = dict(os.environ, **(env or {}))
        self._user = user
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its number.

        :raises RuntimeError: it does not run.
        """
        if self._popen is None:
            raise RuntimeError(f"{self.command[0]} was not started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or stands still, paused)."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the program; returns before it is ready to serve."""
        if self.alive:
            raise RuntimeError(f"{self.command[0]} runs already")
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the tests must not reach it before they are done.
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self.log.parent,
                start_new_session=True,
                user=self._user,
            )
        # Where that is allowed (root), before the tests: whoever asks it waits for so long at most,
        # and on a machine of its own it would not have to share with them.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self._popen.pid, PRIORITY)  # all its threads
        self._lifetime.note(self)

    def stop(self, limit: float = 30.0) -> None:
        """Ask it to end (SIGTERM) and wait; after ``limit`` seconds, kill it."""
        if self._popen is None:
            return
        self.resume()
        self._popen.terminate()
        try:
            self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._popen is not None:
            self._popen.kill()
            self._reap()

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def tail(self, lines: int = 30) -> str:
        """The end of what it printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def wait_ready(self, ready: Callable[[], T | None], limit: float = 90.0) -> T:
        """What ``ready`` gives once it gives anything.

        :raises StartError: the process ended before that, or the limit passed.
        """

        def look() -> T | None:
            if not self.alive:
                raise StartError(f"{self.command[0]} ended at its start:\n{self.tail()}")
            return ready()

        try:
            return until(look, limit, f"{self.command[0]} ready to serve")
        except TimeoutError as error:
            raise StartError(f"{error}:\n{self.tail()}") from error

    def _signal(self, signum: int) -> None:
        if self.alive:
            os.kill(self.pid, signum)

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
            self._lifetime.forget(self)
            self._popen = None
