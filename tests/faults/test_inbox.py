"""Each message's effect in a database exactly once in each generation, whatever is killed.

Workers with an inbox are killed, frozen for longer than their leases and than rows are kept,
databases and logs are restarted; in between dead messages are put back, and at last the group is
reset and everything is handled once more. The effects are rows that handlers write in their
transactions, so the database itself says what happened.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest

from streams import DeadLetterManager, LogError, Streams
from streams.log.url import open_log
from streams.replay import reset
from tests.faults.ground import DURABLE, Server
from tests.faults.inbox_worker import TABLE, is_poison
from tests.faults.sizes import SEED
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, until
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

logger = logging.getLogger("tests.faults")

PARTITIONS = 4
KEYS = 100
STALLED = 60.0
"""Seconds without a new effect after which a run has failed."""
WORKERS = 3


class Size(NamedTuple):
    """How much happens."""

    messages: int
    kills: int
    freezes: int
    database_restarts: int
    log_restarts: int


SHORT = Size(messages=800, kills=2, freezes=1, database_restarts=1, log_restarts=0)
LONG = Size(messages=10_000, kills=30, freezes=5, database_restarts=5, log_restarts=3)


class Place(NamedTuple):
    """Where a run takes place."""

    url: str
    server: Server | None
    lease: float


def log_place(name: str, lifetime: Lifetime, folder: Path, stack: ExitStack) -> Place:
    """A log of the run's own."""
    if name == "sqlite":
        return Place(f"sqlite:///{folder / 'log.db'}?synchronous=normal&lease=2", None, 2.0)
    if name == "redis":
        redis = stack.enter_context(Redis(lifetime, options=DURABLE))
        return Place(f"{redis.url}?lease=2", redis, 2.0)
    kafka = stack.enter_context(Kafka(lifetime))
    settings = "session.timeout.ms=3000&heartbeat.interval.ms=200"
    return Place(f"{kafka.url}?{settings}", kafka, 3.0)


class Books:
    """The database in which the effects are."""

    def __init__(self, kind: str, lifetime: Lifetime, folder: Path, stack: ExitStack) -> None:
        self.server: Postgres | None = None
        self.place = str(folder / "effects.db")
        table = TABLE.format(serial="INTEGER PRIMARY KEY AUTOINCREMENT", big="INTEGER")
        if kind != "sqlite":
            self.server = stack.enter_context(Postgres(lifetime))
            self.place = self.server.url
            table = TABLE.format(serial="bigserial PRIMARY KEY", big="bigint")
        self.select(table)

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement; its rows."""
        if self.server is None:
            connection = sqlite3.connect(self.place, timeout=30, isolation_level=None)
            try:
                return connection.execute(sql).fetchall()
            finally:
                connection.close()
        with psycopg.connect(self.place, autocommit=True) as server:
            cursor = server.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def count(self) -> int:
        """How many effects there are."""
        return int(self.select("SELECT count(*) FROM effects")[0][0])


class Fleet:
    """The workers."""

    def __init__(self, command: list[str]) -> None:
        self._command = [sys.executable, "-m", "tests.faults.inbox_worker", *command]
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.workers.append(subprocess.Popen(self._command, stdin=subprocess.PIPE))

    def kill(self, random: Random) -> None:
        """``kill -9``, and another in its place."""
        victim = random.choice(self.workers)
        self.workers.remove(victim)
        victim.kill()
        victim.wait()
        if victim.stdin is not None:
            victim.stdin.close()
        self.start()

    def end(self, signum: int = signal.SIGTERM) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.send_signal(signum)
        for worker in self.workers:
            worker.wait(90)
            if worker.stdin is not None:
                worker.stdin.close()
        self.workers.clear()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def publish(url: str, topic: str, messages: int, random: Random) -> dict[int, str]:
    """Publish numbers under keys; each one's key."""
    app = Streams(url)
    source = app.topic(topic, int, partitions=PARTITIONS)
    keys = {number: f"k{random.randrange(KEYS)}" for number in range(messages)}

    async def send() -> None:
        async with app.connected():
            records = [source.record(each, key=keys[each], id=f"m{each}") for each in keys]
            await app.publisher.publish_many(topic, records)

    asyncio.run(send())
    return keys


def put_back(url: str, topic: str, group: str) -> None:
    """Put all dead letters back; again where the log was restarted meanwhile."""

    async def reprocess() -> None:
        app = Streams(url)
        app.topic(topic, int)
        async with app.connected():
            await DeadLetterManager(app, f"{topic}.{group}.dead").reprocess()

    try:
        asyncio.run(reprocess())
    except LogError as error:
        logger.info("put back later: %r", error)


def start_over(url: str, topic: str, group: str) -> None:
    """Reset the group to the beginning."""

    async def move() -> None:
        app = Streams(url)
        source = app.topic(topic, int)
        async with app.connected():
            await reset(app, group, source, "earliest", force=True)

    asyncio.run(move())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("log", "kind", "size"),
    [
        pytest.param("sqlite", "single", SHORT, id="sqlite-single-short"),
        *(
            pytest.param(log, kind, LONG, id=f"{log}-{kind}-long", marks=pytest.mark.faults)
            for log in ("sqlite", "redis", "kafka")
            for kind in ("single", "batch", "sqlite")
        ),
    ],
)
def test_each_effect_exactly_once_in_each_generation(
    lifetime: Lifetime, tmp_path: Path, stack: ExitStack, log: str, kind: str, size: Size
) -> None:
    random = Random(SEED)
    place = log_place(log, lifetime, tmp_path, stack)
    books = Books(kind, lifetime, tmp_path, stack)
    topic, group = f"orders-{uuid4().hex[:8]}", f"books-{uuid4().hex[:8]}"
    keys = publish(place.url, topic, size.messages, random)
    fleet = Fleet([place.url, topic, group, kind, books.place])
    stack.callback(fleet.end, signal.SIGKILL)
    for _ in range(WORKERS):
        fleet.start()

    def progress(effects: int, what: str) -> None:
        moved, last = time.monotonic(), -1
        while True:
            assert all(each.poll() is None for each in fleet.workers), "a worker ended by itself"
            try:
                found = books.count()
            except psycopg.OperationalError:
                found = last
            if found >= effects:
                return
            if found != last:
                moved, last = time.monotonic(), found
            elif time.monotonic() - moved > STALLED:
                raise AssertionError(f"{what}: stands at {found}; {missing(books, keys)}")
            time.sleep(0.02)

    def freeze() -> None:
        """Longer than a lease, and than rows are kept."""
        victim = random.choice(fleet.workers)
        before, purged = books.count() - begun, marks()
        victim.send_signal(signal.SIGSTOP)
        frozen = asyncio.run(_sleep(place.lease + 1.5))
        assert frozen is None
        # One that is frozen inside a transaction of a SQLite file holds everybody up.
        if before < size.messages - 200 and "sqlite" not in (log, kind):
            until(lambda: marks() > purged, 60, "purged")
        victim.send_signal(signal.SIGCONT)

    def marks() -> int:
        rows = books.select("SELECT mark FROM streams_inbox_marks")
        return sum(int(row[0]) for row in rows)

    def restart_database() -> None:
        if books.server is not None:
            books.server.kill()
            books.server.restart()

    def restart_log() -> None:
        if place.server is not None:
            place.server.kill()
            place.server.restart()

    def redrive() -> None:
        put_back(place.url, topic, group)

    faults: list[Callable[[], None]] = [
        *[lambda: fleet.kill(random)] * size.kills,
        *[freeze] * size.freezes,
        *[restart_database] * size.database_restarts,
        *[restart_log] * size.log_restarts,
        *[redrive] * 3,
    ]
    random.shuffle(faults)
    whole = size.messages
    begun = 0
    for generation in (1, 2):
        begun = (generation - 1) * whole
        # The last tenth is handled in peace, but for what the faults before left behind.
        moments = sorted(random.randrange(whole // 50, whole * 9 // 10) for _ in faults)
        half = [each for at, each in enumerate(faults) if at % 2 == generation % 2]
        for moment, fault in zip(moments, half, strict=False):
            progress(begun + min(moment, whole - whole // 100), f"{moment} effects")
            fault()
        poison = sum(map(is_poison, range(whole)))
        given_up = poison if generation == 1 else 0
        progress(begun + whole - given_up, "all that is not given up")

        def all_done(begun: int = begun) -> bool | None:
            if books.count() >= begun + whole:
                return True
            redrive()
            return None

        try:
            until(all_done, 60, "what was put back")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {missing(books, keys)}") from error
        if generation == 1:
            fleet.end()
            start_over(place.url, topic, group)
            for _ in range(WORKERS):
                fleet.start()
    fleet.end()
    check(books, keys)
    opened = open_log(place.url)
    opened.close()


async def _sleep(seconds: float) -> None:
    """Let a fault last."""
    await asyncio.sleep(seconds)


def missing(books: Books, keys: dict[int, str]) -> str:
    """What was not handled in the last generation."""
    rows = books.select("SELECT generation, value FROM effects")
    last = max(row[0] for row in rows)
    found = {value for generation, value in rows if generation == last}
    inbox = [
        (bytes(id[8:]).decode(), *rest)
        for id, *rest in books.select(
            "SELECT id, redrive, dead, scope, position FROM streams_inbox"
        )
    ]
    lost = {f"m{number}" for number in keys if number not in found}
    of_them = [row for row in inbox if row[0] in lost]
    return f"{len(lost)} missing of {last}: {sorted(lost)[:20]}: {of_them[:20]}"


def check(books: Books, keys: dict[int, str]) -> None:
    """Each message once in each of two generations, the ones of a key in order."""
    rows = books.select("SELECT generation, id, key, value, redrive FROM effects ORDER BY number")
    generations = sorted({row[0] for row in rows})
    assert len(generations) == 2
    for generation in generations:
        of_it = [row for row in rows if row[0] == generation]
        times = Counter(row[1] for row in of_it)
        twice = {id: count for id, count in times.items() if count != 1}
        assert twice == {}, f"generation {generation}: not once"
        assert set(times) == {f"m{number}" for number in keys}
        last: dict[str, int] = {}
        for _, id, key, value, redrive in of_it:
            assert keys[value] == key
            if redrive:
                continue  # what was put back is in no order
            assert last.get(key, -1) < value, f"{id} of {key} after {last[key]}"
            last[key] = value
    logger.warning("seed %d: %d effects, each once", SEED, len(rows))
