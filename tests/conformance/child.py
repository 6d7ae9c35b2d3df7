"""Another process on the log under test, which a test may kill.

``python -m tests.conformance.child append URL TOPIC`` writes 0, 1, 2, … and prints how many are
acknowledged; ``… member URL TOPIC GROUP`` joins the group and prints what it sees. One JSON value
a line, until it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from streams.log.protocol import Log
from streams.log.url import open_log
from tests.conformance.member import Event, History, Member
from tests.conformance.records import append, record

ROOT = Path(__file__).parents[2]


class Child:
    """The process, as its parent sees it."""

    def __init__(self, role: str, url: str, *names: str) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, role, url, *names],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def next(self) -> Any:
        """What it says next; blocks until it does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the child ended by itself, status {self._process.wait()}"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """What it still had said when it was killed."""
        assert self._process.stdout is not None
        return [json.loads(line) for line in self._process.stdout if line.endswith("\n")]

    def kill(self) -> None:
        """``kill -9``."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def say(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


class Told(History):
    """A history that is told to the parent."""

    def add(self, events: Any) -> None:
        for event in events:
            assert isinstance(event, Event)
            value = None if event.value is None else event.value.decode()
            say([event.what, event.part[1], event.offset, value])


def run_append(log: Log, topic: str) -> None:
    written = 0
    while True:
        append(log, topic, [record(b"%d" % (written + i)) for i in range(10)])
        written += 10
        say(written)


def run_member(log: Log, topic: str, group: str) -> None:
    member = Member(log, group, [topic], Told(), "child")
    member.join()


if __name__ == "__main__":
    role, url, *names = sys.argv[1:]
    run = run_append if role == "append" else run_member
    run(open_log(url), *names)
