"""Writers and relays are killed and frozen: every committed row is published, none that was rolled
back, each key in its order, and consumers handle each once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams import Message, Streams
from tests.outbox.child import BOOKS, LEASE, PARTITIONS, TOPIC
from tests.outbox.world import Order, Place
from tests.servers.find import PostgresAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import until
from tests.servers.postgres import database as new_database
from tests.servers.redis import Redis

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


class Fleet:
    """The processes: some write, some relay."""

    def __init__(self, dsn: str, url: str) -> None:
        self._words = (dsn, url)
        self._running: list[tuple[str, int, subprocess.Popen[bytes]]] = []

    def start(self, role: str, seed: int) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.outbox.child", role, *self._words, str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
        )
        self._running.append((role, seed, process))

    def _one(self, role: str, chance: random.Random) -> tuple[str, int, subprocess.Popen[bytes]]:
        return chance.choice([each for each in self._running if each[0] == role])

    def kill(self, role: str, chance: random.Random) -> None:
        """``kill -9`` one of them, and start it again."""
        found = self._one(role, chance)
        assert found[2].poll() is None, "it ended by itself"
        _kill(found[2])
        self._running.remove(found)
        self.start(*found[:2])

    def freeze(self, chance: random.Random, meanwhile: Any) -> None:
        """A relay stands still for longer than its lease, while something comes about.

        On SQLite it may have the file's write lock, for which everybody waits then.
        """
        process = self._one("relay", chance)[2]
        process.send_signal(signal.SIGSTOP)
        try:
            ends = time.monotonic() + 2 * LEASE
            if not any(each.startswith("sqlite") for each in self._words):
                meanwhile()
            until(lambda: time.monotonic() > ends, 60, "the lease is over")
        finally:
            process.send_signal(signal.SIGCONT)

    def end(self, role: str) -> None:
        """In order."""
        ending = [each for each in self._running if each[0] == role]
        for each in ending:
            assert each[2].stdin is not None
            each[2].stdin.close()
        for each in ending:
            assert each[2].wait(60) == 0
            self._running.remove(each)

    def close(self) -> None:
        for *_, process in self._running:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


class Handled:
    """What a consumer did: another process's effects, in the order it had them."""

    def __init__(self, url: str) -> None:
        self.app = Streams(url)
        self.numbers: dict[str, list[int]] = defaultdict(list)
        orders = self.app.topic(TOPIC, Order, key="id", partitions=PARTITIONS)

        @self.app.processor(orders, group="books", concurrency=16)
        async def handle(order: Order, message: Message[Order]) -> None:
            self.numbers[order.id].append(order.number)

    @property
    def count(self) -> int:
        return sum(map(len, list(self.numbers.values())))


async def trial(dsn: str, url: str, kills: int, freezes: int, seed: int) -> None:
    """Kill and freeze, then hold what was handled against the books."""
    place, chance = Place(dsn), random.Random(seed)
    await asyncio.to_thread(place.create)
    place.run(BOOKS)
    fleet, handled = Fleet(dsn, url), Handled(url)
    try:
        async with handled.app:
            for number in range(2):
                fleet.start("write", number)
                fleet.start("relay", number)

            def goes_on() -> None:
                before = handled.count
                until(lambda: handled.count > before + 20, 60, "messages are handled")

            await asyncio.to_thread(goes_on)
            steps = ["write", "relay"] * (kills // 2) + ["freeze"] * freezes
            chance.shuffle(steps)
            for step in steps:
                if step == "freeze":
                    await asyncio.to_thread(fleet.freeze, chance, goes_on)
                else:
                    await asyncio.to_thread(fleet.kill, step, chance)
                await asyncio.to_thread(goes_on)
            await asyncio.to_thread(fleet.end, "write")
            committed: dict[str, list[int]] = defaultdict(list)
            for key, number in place.run("SELECT id, number FROM books ORDER BY id, number"):
                committed[key].append(number)
            total = sum(map(len, committed.values()))
            await asyncio.to_thread(
                until, lambda: not place.rows() and handled.count >= total, 60, "all is relayed"
            )
            await asyncio.to_thread(fleet.end, "relay")
            assert dict(handled.numbers) == dict(committed)
            assert total > 20 * len(steps)
    finally:
        fleet.close()


@pytest.fixture
def elsewhere(postgres_server: PostgresAddress) -> Iterator[None]:
    """A transaction that has written is open in another database all the time."""
    with new_database(postgres_server.url) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE t (x integer)")
        yield
        connection.rollback()


async def test_killed_on_postgres(postgres: str, elsewhere: None, tmp_path: Path) -> None:
    await trial(postgres, f"sqlite:///{tmp_path}/log.db", kills=2, freezes=1, seed=1)


async def test_killed_on_sqlite(tmp_path: Path) -> None:
    dsn, url = f"sqlite:///{tmp_path}/outbox.db", f"sqlite:///{tmp_path}/log.db"
    await trial(dsn, url, kills=2, freezes=0, seed=2)


@pytest.mark.faults
@pytest.mark.parametrize("log", ["kafka", "redis", "sqlite"])
async def test_thirty_kills_on_postgres(
    log: str, postgres: str, elsewhere: None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        url = log_url(log, request, tmp_path, stack)
        await trial(postgres, url, kills=30, freezes=5, seed=3)


@pytest.mark.faults
@pytest.mark.parametrize("log", ["kafka", "sqlite"])
async def test_thirty_kills_on_sqlite(
    log: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        url = log_url(log, request, tmp_path, stack)
        await trial(f"sqlite:///{tmp_path}/outbox.db", url, kills=30, freezes=3, seed=4)


def log_url(log: str, request: pytest.FixtureRequest, folder: Path, stack: ExitStack) -> str:
    """A log that nobody else uses."""
    if log == "sqlite":
        return f"sqlite:///{folder}/log.db"
    if log == "redis":
        return stack.enter_context(Redis(request.getfixturevalue("lifetime"))).url
    return stack.enter_context(Kafka(request.getfixturevalue("lifetime"))).url
