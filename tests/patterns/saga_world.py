"""A durable saga of five steps, its effects in a file, and a fuse that kills whoever runs it.

``python -m tests.patterns.saga_world`` lives the lives that it reads from standard input, a JSON
object a line, each in a forked process of its own, and says how each one ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from streams import Flow, Retry, Streams
from streams.patterns.saga import SagaOrchestrator, SagaStep, StepCall
from streams.processing.job import WriteAnswers
from tests.servers.lifetime import until

ROOT = Path(__file__).parents[2]
STEPS = ("one", "two", "three", "four", "five")
QUICK = Flow(commit=0.01, drain=0.05)
"""Whoever was crashed in memory leaves a handler behind that never ends."""


class Context(msgspec.Struct):
    """What the saga has done, by its own account."""

    did: list[str] = []
    undid: list[str] = []


class Refused(Exception):
    """The last step fails."""


class Effects:
    """A file that keeps one effect per idempotency key, and remembers every call."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        with closing(self._open()) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY)")
            file.execute("CREATE TABLE IF NOT EXISTS calls (key TEXT)")
            file.execute("CREATE TABLE IF NOT EXISTS passed (failpoint TEXT)")

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self.path, timeout=30)
        # Processes are killed here, and power is not cut: nothing needs to wait for a disk.
        file.execute("PRAGMA synchronous = off")
        return file

    def happen(self, key: str) -> None:
        """Have the effect, unless it was had under this key before."""
        with closing(self._open()) as file, file:
            file.execute("INSERT INTO calls VALUES (?)", (key,))
            file.execute("INSERT OR IGNORE INTO effects VALUES (?)", (key,))

    def called(self, key: str) -> None:
        """A call that has no effect."""
        with closing(self._open()) as file, file:
            file.execute("INSERT INTO calls VALUES (?)", (key,))

    def passed(self, failpoint: str) -> None:
        """A failpoint was come by."""
        with closing(self._open()) as file, file:
            file.execute("INSERT INTO passed VALUES (?)", (failpoint,))

    def _column(self, query: str) -> list[str]:
        with closing(self._open()) as file:
            return [row[0] for row in file.execute(query)]

    @property
    def keys(self) -> list[str]:
        """The effects, in the order in which they were had."""
        return self._column("SELECT key FROM effects ORDER BY rowid")

    @property
    def calls(self) -> list[str]:
        return self._column("SELECT key FROM calls ORDER BY rowid")

    @property
    def failpoints(self) -> list[str]:
        return self._column("SELECT failpoint FROM passed ORDER BY rowid")


@dataclass(frozen=True)
class Life:
    """One process (or, in memory, one app) that drives the saga.

    :param url: of the log.
    :param name: of the orchestrator.
    :param id: of the saga.
    :param effects: the file of effects.
    :param backward: the last step fails.
    :param fuse: the failpoint at which it dies; none, if empty.
    """

    url: str
    name: str
    id: str
    effects: str
    backward: bool = False
    fuse: str = ""


class World:
    """The app of one life. ``die`` is called at its fuse: it kills the process, or the app."""

    def __init__(self, life: Life, die: Callable[[World], None]) -> None:
        self.life = life
        self.effects = Effects(life.effects)
        self.dead = False
        self.ended = asyncio.Event()
        self._die = die
        self.app = Streams(life.url, lifespan=self._watched)
        self.saga: SagaOrchestrator[Context] = SagaOrchestrator(
            self.app, life.name, context=Context, flow=QUICK
        )
        for step in STEPS:
            self.saga.add_step(
                SagaStep(
                    step,
                    self._execute,
                    self._compensate,
                    compensation_retry=Retry(attempts=2, delay=0.001),
                )
            )

    def reach(self, failpoint: str) -> None:
        """Come by a failpoint; die if it is the fuse."""
        if self.dead:
            return
        self.effects.passed(failpoint)
        if failpoint == self.life.fuse:
            self.dead = True
            self._die(self)

    async def _reach(self, failpoint: str) -> None:
        self.reach(failpoint)
        if self.dead:
            await asyncio.Event().wait()

    async def _execute(self, context: Context, call: StepCall) -> None:
        await self._surrounded(call, lambda: self._act(context, call))

    def _act(self, context: Context, call: StepCall) -> None:
        if self.life.backward and call.step == STEPS[-1]:
            self.effects.called(call.idempotency_key)
            raise Refused("the last step fails")
        self.effects.happen(call.idempotency_key)
        context.did.append(call.step)

    async def _compensate(self, context: Context, call: StepCall) -> None:
        def act() -> None:
            self.effects.happen(call.idempotency_key)
            context.undid.append(call.step)

        await self._surrounded(call, act)

    async def _surrounded(self, call: StepCall, act: Callable[[], None]) -> None:
        at = STEPS.index(call.step)
        # Nothing is tried again, so the number of the entry at hand is that of the calls before.
        number = 2 * len(STEPS) - 2 - at if call.compensating else at
        what = f"undo {call.step}" if call.compensating else f"do {call.step}"
        await self._reach(f"before {what}")
        if number:
            await self._committed(number - 1)
        await self._reach(f"committed before {what}")
        act()
        await self._reach(f"after {what}")

    async def _committed(self, number: int) -> None:
        """Wait until the entry of that number, and so all before it, is committed."""
        if not self.dead:
            await asyncio.to_thread(
                until, lambda: self.dead or self._is_committed(number), 30, "a commit"
            )

    def _is_committed(self, number: int) -> bool:
        assert self.saga._durable is not None
        journal, log = self.saga._durable.journal, self.app.log
        first, end = log.watermarks(journal.topic, 0)
        places = journal.read_range(0, first, end)
        offset = next(at.offset for entry, at in places if entry.n == number)
        held = log.describe_group(self.life.name).positions.get((journal.topic, 0))
        return held is not None and held.position > offset

    @asynccontextmanager
    async def _watched(self, app: Streams) -> AsyncIterator[None]:
        """Put failpoints before an entry is written, and after that was confirmed."""
        publisher = app.publisher
        derive = publisher.publish_durably

        def derived(outgoing: Any, on_done: Any, call_soon: Any = None, owner: Any = None) -> None:
            if self.dead:
                return
            entry = json.loads(outgoing[0][1].value)
            number = f"entry {entry.get('n', 0)} ({entry.get('status', 'running')})"
            self.reach(f"unwritten {number}")
            if self.dead:
                return

            def told(answers: WriteAnswers) -> None:
                self.reach(f"written {number}")
                if not self.dead:
                    on_done(answers)

            derive(outgoing, told, call_soon, owner)

        publisher.publish_durably = derived  # type: ignore[method-assign]  # this is the failpoint
        yield

    async def live(self) -> None:
        """Drive the saga until it has ended, or until the fuse."""
        async with self.app:
            while not self.dead:
                status = (await self.saga.status(self.life.id)).status
                # The last fuse is passed behind the entry that ends the saga, which is seen first.
                if status not in ("running", "compensating") and not self.life.fuse:
                    break
                await asyncio.sleep(0.03)
            if self.dead:
                await asyncio.Event().wait()


def expected(life: Life) -> list[str]:
    """The effects that the saga has, in order."""
    key = f"{life.name}/{life.id}/"
    if not life.backward:
        return [key + step for step in STEPS]
    done = STEPS[:-1]
    return [*(key + step for step in done), *(f"{key}{step}/undo" for step in reversed(done))]


# -- processes ------------------------------------------------------------------------------------


class Nursery:
    """Processes that live one life each, forked from one that has everything imported.

    :param module: whose lives they are.
    """

    def __init__(self, module: str = __name__) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(self, life: Any) -> int:
        """Live a life to its end; its status, negative the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(life)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery ended by itself"
        return int(line)

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)


def kill(world: World) -> None:
    """``kill -9`` of this process, from whatever thread."""
    os.kill(os.getpid(), signal.SIGKILL)


def _child(given: dict[str, Any]) -> None:
    life = Life(**given)
    status = 1
    try:
        signal.alarm(60)
        asyncio.run(World(life, kill).live())
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def nurse(child: Callable[[dict[str, Any]], None]) -> None:
    """Live the lives that are read from standard input."""
    import_module("streams.log.sqlite.log")
    assert threading.active_count() == 1, "threads do not survive a fork"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        _, how = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(how)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    nurse(_child)
