"""Another process on a SQLite log, which a test may kill or stop at any instant.

``python -m tests.log.sqlite_child ROLE URL TOPIC NAME``; says what it did, one JSON value a line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams.errors import Fenced
from streams.log.protocol import Assignment, Commit, Log, Subscription
from streams.log.url import open_log
from streams.message import Batch, Record

ROOT = Path(__file__).parents[2]


class Child:
    """The process, as its parent sees it."""

    def __init__(self, role: str, url: str, topic: str, name: str) -> None:
        self.name = name
        self.said: list[Any] = []
        self._lines: list[Any] = []
        self._more = threading.Condition()
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, role, url, topic, name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def next(self) -> Any:
        """What it says next; blocks until it does."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended by itself, status {self.process.wait()}"
        self.said.append(json.loads(line))
        return self.said[-1]

    def kill(self) -> None:
        """``kill -9``; what it had said until then is read."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.said += [json.loads(ln) for ln in self.process.stdout if ln.endswith("\n")]


def say(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def append(log: Log, topic: str, name: str) -> None:
    """Write numbers; say which one was acknowledged last."""
    chance = random.Random(name)
    number = 0
    while True:
        count = chance.choice((1, 1, 3, 20, 100))
        records = [
            Record(b"%s:%d" % (name.encode(), n), b"k%d" % (n % 50), f"{name}-{n}")
            for n in range(number, number + count)
        ]
        outcomes: list[Any] = []
        log.append(topic, records, outcomes.extend)
        if not any(isinstance(outcome, Exception) for outcome in outcomes):
            number += count
            say(number)


class Worker:
    """Handles messages: each one's effect and place in one transaction."""

    def __init__(self, log: Log, topic: str, name: str) -> None:
        self.name = name
        self.version = 0
        self.chance = random.Random(name)
        self.subscription: Subscription = log.subscribe("g", [topic], self)

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        say(["assigned", [assignment.partition for assignment in assignments]])

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        say(["revoked", [assignment.partition for assignment in assignments]])

    def lost(self, assignments: Sequence[Assignment]) -> None:
        say(["lost", [assignment.partition for assignment in assignments]])

    def handle(self, batch: Batch) -> None:
        rows = list(zip(batch.offsets, batch.values, strict=True))
        while rows:
            some = [rows.pop(0) for _ in range(min(len(rows), self.chance.randrange(1, 30)))]
            transaction = self.subscription.begin_transaction()
            for offset, value in some:
                transaction.execute(
                    "INSERT INTO effects (partition, at, value, worker) VALUES (?, ?, ?, ?)",
                    (batch.partition, offset, value, self.name),
                )
            self.version += 1
            try:
                transaction.commit(
                    [Commit(batch.assignment, some[-1][0] + 1, f"{self.version}", self.version)]
                )
            except Fenced:
                say(["fenced", batch.partition])
                return
            say(["handled", batch.partition, some[-1][0]])


def work(log: Log, topic: str, name: str) -> None:
    """Handle what comes."""
    worker = Worker(log, topic, name)
    while True:
        for batch in worker.subscription.poll(worker.chance.choice((5, 50, 500)), 1.0):
            worker.handle(batch)


def freeze(log: Log, topic: str, name: str) -> None:
    """Stop with something taken and not committed; when continued, commit it and go on."""
    worker = Worker(log, topic, name)
    batches: Sequence[Batch] = ()
    while not batches:
        batches = worker.subscription.poll(5, 1.0)
    say("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)
    for batch in batches:
        end = batch.offsets[-1] + 1
        worker.subscription.commit([Commit(batch.assignment, end, "late", 1)])
        worker.handle(batch)
    say("committed")
    while True:
        worker.subscription.poll(5, 1.0)


if __name__ == "__main__":
    role, url, topic, name = sys.argv[1:]
    {"append": append, "work": work, "freeze": freeze}[role](open_log(url), topic, name)
