"""A manager's process that dies, or stands still, at a failpoint.

``python -m tests.managers.world`` lives the lives that it reads from standard input
(:class:`tests.patterns.saga_world.Nursery`); given a life as its argument, it lives that one.

The failpoints are before and after each append of a reaction or of what a command comes to, each
record of a timeout, and each group's commits. They are put around the app's log. Whoever comes by
one writes its name into a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streams import Streams
from streams.log.protocol import Subscription
from streams.message import text
from streams.retries.records import read_due, read_mark
from tests.managers.purses import RESERVE, World
from tests.patterns.failpoints import quiet
from tests.patterns.saga_world import nurse

TRANSFER = "t1"

COMMITS = ("commit", "commit_async")
"""What a subscription is called for to store positions: for good, and cheaply."""


@dataclass(frozen=True)
class Life:
    """One process.

    :param file: of the failpoints that were come by.
    :param fuse: where it ends; ``*``: at the first one that nobody has come by; empty: nowhere.
    :param freezes: there it stops itself, instead of being killed.
    """

    url: str
    name: str
    file: str
    fuse: str = ""
    freezes: bool = False

    def passed(self) -> list[str]:
        path = Path(self.file)
        return path.read_text().splitlines() if path.exists() else []


class Failpoints:
    """What a life comes by."""

    def __init__(self, life: Life, world: World) -> None:
        self._life = life
        self._log: Any = world.app.log
        timeouts = world.transfers._definition.timeouts
        assert timeouts is not None
        self._sequences = {
            timeouts._entry_id(TRANSFER, each): each
            for each in (f"{version}.{index}" for version in range(1, 10) for index in range(3))
        }
        self._seen = set(life.passed())
        self._lock = threading.Lock()
        self._file = os.open(life.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._around_events()
        self._around_records()
        self._around_commits()

    def hit(self, name: str) -> None:
        with self._lock:  # nobody comes by another one while this one ends the process
            if name in self._seen:
                return
            self._seen.add(name)
            os.write(self._file, f"{name}\n".encode())
            if self._life.fuse not in ("*", name):
                return
            if not self._life.freezes:
                os.kill(os.getpid(), signal.SIGKILL)
        quiet(self._log)
        # To this thread: sent to the process, another one may take it first.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def _around_events(self) -> None:
        append = self._log.append_events

        def appending(topic: str, appends: Sequence[Any], done: Callable[[Any], None]) -> None:
            kind = topic.removeprefix(self._life.name)
            names = [
                f"{kind} {each.key.decode()} {self._cause(each)}" for each in appends if each.cause
            ]
            for name in names:
                self.hit(f"{name} before")

            def answered(outcomes: Any) -> None:
                for name in names:
                    self.hit(f"{name} after")
                done(outcomes)

            append(topic, appends, answered)

        self._log.append_events = appending

    def _cause(self, append: Any) -> str:
        """What it is for, in words that are the same in each life."""
        if append.key.decode() == TRANSFER:  # messages have IDs of chance
            return f"version {append.base.version + 1}"
        return str(append.cause).removeprefix(self._life.name)

    def _around_records(self) -> None:
        append = self._log.append

        def appending(topic: str, records: Any, done: Callable[[Any], None]) -> None:
            kind = topic.removeprefix(self._life.name)
            names = []
            if kind.startswith("-transfers.timeouts"):
                names = [f"{kind} {self._timeout(each)}" for each in records]
            for name in names:
                self.hit(f"{name} before")

            def answered(outcomes: Any) -> None:
                for name in names:
                    self.hit(f"{name} after")
                done(outcomes)

            append(topic, records, answered)

        self._log.append = appending

    def _timeout(self, record: Any) -> str:
        """What a record says of which timeout."""
        what = "entry" if read_due(record.headers) is not None else read_mark(record.headers)[0]
        return f"{what} {self._sequences.get(record.id) or self._sequences.get(text(record.key))}"

    def _around_commits(self) -> None:
        subscribe = self._log.subscribe

        def subscribing(group: str, *given: Any, **options: Any) -> Subscription:
            subscription: Any = subscribe(group, *given, **options)
            for name in COMMITS:
                commit = getattr(subscription, name)
                setattr(
                    subscription, name, self._committing(f"{name} {self._group(group)}", commit)
                )
            return subscription  # type: ignore[no-any-return]

        self._log.subscribe = subscribing

    def _committing(self, what: str, commit: Callable[..., None]) -> Callable[..., None]:
        def committing(*given: Any) -> None:
            self.hit(f"{what} before")
            commit(*given)
            self.hit(f"{what} after")

        return committing

    def _group(self, group: Any) -> str:
        return str(group).removeprefix(self._life.name)


async def live(life: Life) -> None:
    """Work until the transfer has ended, and all that there is was committed."""

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        Failpoints(life, world)
        yield

    # Started again under its name, a process has at once what it had.
    member = None if life.url.startswith("sqlite") else "worker"
    world = World(Streams(life.url, member=member, lifespan=lifespan), life.name)
    async with world.app:
        while not (await world.has_ended(TRANSFER) and await is_committed(world)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def is_committed(world: World) -> bool:
    """The manager's group is behind the last order and the last event."""
    last = 0
    for purse in ("ada", RESERVE):
        async for each in world.purses.read(purse):
            last = max(last, int(each.position.offset))
    log, group = world.app.log, world.transfers.name
    events = (await asyncio.to_thread(log.committed, group, world.purses.events.name)).get(0)
    orders = (await asyncio.to_thread(log.committed, group, world.orders.name)).get(0)
    return orders is not None and events is not None and events.position > last


def child(given: Mapping[str, Any]) -> None:
    status = 1
    try:
        signal.alarm(120)
        asyncio.run(live(Life(**given)))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def words(life: Life) -> list[str]:
    """What starts it as a program."""
    return [sys.executable, "-m", __name__, json.dumps(asdict(life))]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(json.loads(sys.argv[1]))
    nurse(child)
