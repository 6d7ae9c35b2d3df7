"""Processes that want the same done once: ``python -m tests.patterns.racer …``, see the functions.

What is done is a line in a file, written with one call of the system, so that the file says how
often it was done, and by whom, whatever is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

from streams.patterns import ClaimLost, IdempotencyStore, IdempotentProcessor

ROOT = Path(__file__).parents[2]


def write(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def say(what: object) -> None:
    os.write(1, f"{json.dumps(what)}\n".encode())  # at once, and whole among several processes


def race(url: str, name: str, effects: str, processes: int, callers: int) -> None:
    """So many processes with so many callers each begin at once; each says what its callers got,
    as {result: how many}."""
    wait, start = os.pipe()
    children = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            os.close(start)
            os.read(wait, 1)  # returns when the parent has closed its end
            try:
                say(asyncio.run(call(url, name, effects, callers)))
            finally:
                os._exit(0)
        children.append(pid)
    os.close(start)
    for pid in children:
        os.waitpid(pid, 0)


async def call(url: str, name: str, effects: str, callers: int) -> dict[str, int]:
    async def once() -> str:
        write(effects, str(os.getpid()))
        await asyncio.sleep(0.05)
        return str(os.getpid())

    async with IdempotencyStore(url, name=name) as store:
        processor = IdempotentProcessor(store)
        return Counter(
            await asyncio.gather(*(processor.process("k", once) for _ in range(callers)))
        )


async def hold(url: str, name: str, effects: str, lease: float) -> None:
    """One process that begins, says so, and goes on until it is killed; or says that it lost."""

    async def begin() -> None:
        write(effects, str(os.getpid()))
        say("begun")
        await asyncio.Event().wait()

    async with IdempotencyStore(url, name=name) as store:
        try:
            await IdempotentProcessor(store, lease=lease).process("k", begin)
        except ClaimLost as error:
            say(str(error))


class Racer:
    """A process of this module, as its parent sees it."""

    def __init__(self, *args: object) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, args)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def next(self) -> Any:
        """What it says next; blocks until it does."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"it ended by itself, status {self.process.wait()}"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """All it still says until it ends."""
        assert self.process.stdout
        return [json.loads(line) for line in self.process.stdout]

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


if __name__ == "__main__":
    role, url, name, effects, *numbers = sys.argv[1:]
    if role == "race":
        race(url, name, effects, *map(int, numbers))
    else:
        asyncio.run(hold(url, name, effects, float(numbers[0])))
