"""Several workers of one group, to be killed and started again at seeded random moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.history import Life, Tail

SETTINGS = "STREAMS_FAULTS"
"""Where :mod:`tests.faults.supervised` finds what it needs."""

STALLED = 60.0
"""Seconds without a newly handled message after which a run has failed."""


class Fleet:
    """Workers that share a group. Use it as a context manager: nothing is left running."""

    def __init__(
        self, folder: Path, url: str, topic: str, group: str, *, concurrency: int, pause: float
    ) -> None:
        self.folder = folder
        self._command = [
            sys.executable, "-m", "tests.faults.worker",
            str(folder), url, topic, group, str(concurrency), str(pause),
        ]  # fmt: skip
        self.workers: list[subprocess.Popen[bytes]] = []
        self.frozen: set[int] = set()
        """Process IDs of those that ever were."""
        self._left: set[int] = set()
        """Process IDs of those that were asked to end."""
        self.tail = Tail(folder)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
        for worker in self.workers:
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()

    def start(self, member: str | None = None) -> subprocess.Popen[bytes]:
        """One more worker; with a name, a static member of its group."""
        command = self._command if member is None else [*self._command, member]
        # It ends when its end of this pipe does, however we ended.
        worker = subprocess.Popen(command, env={**os.environ}, stdin=subprocess.PIPE)
        self.workers.append(worker)
        return worker

    @property
    def running(self) -> list[subprocess.Popen[bytes]]:
        """Those that live."""
        return [worker for worker in self.workers if worker.poll() is None]

    def kill_one(self, random: Random) -> None:
        """``kill -9`` one of them, and start another in its place."""
        victim = random.choice(self.running)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.start()

    # -- frozen, gone, come

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP: it holds its connections and says nothing. Its lives are exempt from now on."""
        self.frozen.add(worker.pid)
        worker.send_signal(signal.SIGSTOP)

    def thaw(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGCONT."""
        worker.send_signal(signal.SIGCONT)

    def leave_one(self, random: Random) -> None:
        """SIGTERM to one of them, and wait until it has drained and left."""
        worker = random.choice(self.running)
        self._terminate([worker])

    def exempt(self, lives: list[Life]) -> list[str]:
        """Those lives that were frozen."""
        return [life.name for life in lives if int(life.name.split("-")[1]) in self.frozen]

    def until(self, over: Callable[[int], bool]) -> int:
        """Wait until ``over(number of messages handled)``; fails when nothing moves any more."""
        moved, last = time.monotonic(), -1
        while True:
            handled = self.tail.count()
            if over(handled):
                return handled
            if handled != last:
                moved, last = time.monotonic(), handled
            elif time.monotonic() - moved > STALLED:
                self.explain()
                raise AssertionError(f"no progress for {STALLED:g} s; {handled} handled")
            for worker in self.workers:
                status = worker.poll()
                if status not in (None, -signal.SIGKILL) and worker.pid not in self._left:
                    raise AssertionError(f"a worker ended by itself with status {status}")
            time.sleep(0.01)

    def explain(self) -> None:
        """Have every worker write to stderr what each of its threads is at."""
        for worker in self.running:
            worker.send_signal(signal.SIGUSR1)
        time.sleep(0.5)  # for people to read: nothing waits for it

    def stop(self) -> None:
        """SIGTERM to all, and wait for them to drain."""
        self._terminate(self.running)

    def _terminate(self, workers: list[subprocess.Popen[bytes]]) -> None:
        for worker in workers:
            self._left.add(worker.pid)
            worker.terminate()
        for worker in workers:
            status = worker.wait(60)
            # One that was not yet up has no handler for the signal, and nothing to drain.
            assert status in (0, -signal.SIGTERM), f"a worker ended with status {status}"


class Supervised(Fleet):
    """The same workers under ``streams run --workers``, which is the one process that is started
    here."""

    def __init__(
        self, folder: Path, url: str, topic: str, group: str, *, concurrency: int, pause: float
    ) -> None:
        super().__init__(folder, url, topic, group, concurrency=concurrency, pause=pause)
        settings = (str(folder), topic, group, str(concurrency), str(pause))
        self._environment = {"STREAMS_URL": url, SETTINGS: "\n".join(settings)}

    def supervise(self, workers: int) -> None:
        """Start the supervisor."""
        command = [
            sys.executable, "-m", "streams.cli", "run", "tests.faults.supervised:app",
            "--workers", str(workers), "--log-level", "error",
        ]  # fmt: skip
        self.workers.append(subprocess.Popen(command, env={**os.environ, **self._environment}))
