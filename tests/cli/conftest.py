"""A folder with an app and a SQLite log in it, and the command ``streams`` run there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streams.log.protocol import Log
from streams.log.url import open_log
from streams.message import Record

ROOT = Path(__file__).parent.parent.parent

SHOP = '''
"""Orders: billed one by one, added up in batches."""

import asyncio

import msgspec

from streams import Message, Reject, Retry, Streams


class Order(msgspec.Struct):
    id: str
    customer: str | None
    n: int


app = Streams("sqlite:///shop.db")
orders = app.topic("orders", Order, key="customer", partitions=2)
bills = app.topic("bills", str)


twice = Retry(attempts=2, delay=0.001)


@app.processor(orders, group="billing", concurrency=8, to=bills, retry=twice)
async def bill(order: Order, message: Message) -> str:
    await asyncio.sleep(0)
    if order.n < 0 and "streams_redrive" not in message.headers:
        raise ValueError("negative \\x1b[31m amount")
    with open("billed.txt", "a") as file:
        file.write(f"{order.id} {order.customer}\\n")
    return order.id


@app.processor(orders, group="totals", filter=lambda order: order.n != 7)
def total(order: Order) -> None:
    if order.n == 13:
        raise Reject("thirteen")
    with open("totals.txt", "a") as file:
        file.write(f"{order.id} {order.n}\\n")
'''


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, one JSON document."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output, one JSON document a line."""
        assert self.status == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs ``streams`` in a folder of its own. ``url`` is in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = "sqlite:///shop.db"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "STREAMS_URL"},
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "codecs"))),
            "STREAMS_URL": self.url,
            "COLUMNS": "100",
            # Where supervisors of the same app find each other: not those of other tests.
            "TMPDIR": str(folder),
        }

    def __call__(
        self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command to its end."""
        ended = subprocess.run(
            [sys.executable, "-m", "streams.cli", *arguments],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Result(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    @contextmanager
    def start(
        self, *arguments: str, stdin: int | None = subprocess.DEVNULL, stdout: int | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command beside the test; it is killed at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            bufsize=0,  # after readline(), communicate() has all that follows
            # As in a terminal, whatever runs these tests: Ctrl-C is heard.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    @contextmanager
    def log(self) -> Iterator[Log]:
        """The log under the commands."""
        log = open_log(f"sqlite:////{str(self.folder / 'shop.db').lstrip('/')}")
        try:
            yield log
        finally:
            log.close()

    def read(self, name: str) -> list[str]:
        """The lines of a file that a handler wrote; none where there is no file."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def write(self, name: str, text: str) -> None:
        """A file in the folder."""
        (self.folder / name).write_text(text)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "shop.py").write_text(SHOP)
    return Shell(tmp_path)


def order(n: int, customer: str | None = None, id: str | None = None) -> bytes:
    """An order as JSON."""
    customer = f"c{n % 5}" if customer is None else customer
    return json.dumps({"id": id or f"o{n}", "customer": customer, "n": n}).encode()


def command_paths(command: object, *above: str) -> Iterator[str]:
    """All commands below one, as their names are written: ``topics ls``."""
    found = getattr(command, "commands", None)
    if found is None:
        yield " ".join(above)
        return
    for name, each in found.items():
        yield from command_paths(each, *above, name)


def fill(log: Log, topic: str, values: Sequence[bytes], partitions: int = 2) -> None:
    """Write orders, each by an append of its own, so that each has its own time."""
    log.create_topic(topic, partitions)
    for value in values:
        found = json.loads(value)
        key = None if found["customer"] is None else found["customer"].encode()
        answers: list[Any] = []
        log.append(topic, [Record(value, key, found["id"])], answers.extend)
        assert not isinstance(answers[0], Exception)


def eventually(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


Run = Callable[..., Result]


@pytest.fixture
def run(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Run]:
    """The same commands without a process of their own, where only what they say matters."""
    from streams.cli.root import run as run_command

    monkeypatch.chdir(shell.folder)
    monkeypatch.setenv("STREAMS_URL", shell.url)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def call(*arguments: str) -> Result:
        status = run_command(arguments)
        out, err = capfdbinary.readouterr()
        return Result(status, out.decode(), err.decode())

    yield call
    for name in set(sys.modules) - before:
        if str(shell.folder) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
