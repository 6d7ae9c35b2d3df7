"""Each message's effect in a database exactly once in each generation, whatever is killed.

Workers with an inbox are killed, and databases and logs are restarted. Others are frozen as they
are about to record a message, until another one has handled it and its row was purged: the one that
thaws is refused by the mark. Meanwhile dead messages are put back, the topic is replayed into the
handler, by a process that may be killed, too, and the group is reset beside its running workers,
also half-way. The effects are rows that handlers write in their transactions, so the database
itself says what happened.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest

from streams import DeadLetterManager, LogError, Streams
from streams.engine.progress import decode_generation
from streams.replay import reset
from tests.faults.ground import DURABLE, Server
from tests.faults.inbox_worker import TABLE, Frozen, application_name, is_poison
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

DRIVERS = ("asyncpg", "plain-django", "sqlalchemy", "plain-sqlalchemy")
"""Workers of one group with a driver each, upon the same tables: the run ``drivers``."""

FRESH = 60
"""Messages that are published so that a worker has something to freeze at."""


class Size(NamedTuple):
    """How much happens."""

    messages: int
    kills: int
    freezes: int
    database_restarts: int
    log_restarts: int
    replays: int
    """Beside the group, to their end."""
    killed_replays: int


SHORT = Size(
    messages=400, kills=2, freezes=1, database_restarts=1, log_restarts=0, replays=1,
    killed_replays=0,
)  # fmt: skip
LONG = Size(
    messages=6_000, kills=30, freezes=5, database_restarts=5, log_restarts=3, replays=2,
    killed_replays=2,
)  # fmt: skip


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
            server = Postgres(lifetime, {"max_connections": "500"})
            self.server = stack.enter_context(server)
            self.place = self.server.url
            table = TABLE.format(serial="bigserial PRIMARY KEY", big="bigint")
        self._connection: Any = None
        stack.callback(self.disconnect)
        self.select(table)

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement; its rows.

        :raises psycopg.OperationalError: the server is not there now.
        """
        try:
            if self._connection is None:
                self._connection = self._connect()
            cursor = self._connection.execute(sql)
            return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            self.disconnect()
            raise

    def _connect(self) -> Any:
        if self.server is None:
            return sqlite3.connect(self.place, timeout=30, isolation_level=None)
        return psycopg.connect(self.place, autocommit=True)

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def count(self, generation: int | None = None) -> int | None:
        """How many effects there are, in all or in a generation; None: that cannot be told now."""
        which = "" if generation is None else f" WHERE generation = {generation}"
        try:
            return int(self.select(f"SELECT count(*) FROM effects{which}")[0][0])
        except psycopg.OperationalError:
            return None

    def is_cut_off(self, worker: int) -> bool:
        """A process that is frozen has sent a part of what its driver sends in one go (psycopg's
        ``executemany``). PostgreSQL waits for the rest with no limit, and rows stay locked."""
        if self.server is None:
            return False

        def waiting() -> list[tuple[Any, ...]] | None:
            active = self.select(
                "SELECT wait_event FROM pg_stat_activity WHERE state = 'active' "
                f"AND application_name = '{application_name(worker)}'"
            )
            return active if set(active) <= {("ClientRead",)} else None

        return bool(until(waiting, 60, "what it had begun has ended"))

    def is_purged(self, frozen: Frozen) -> bool:
        """Its row is gone, and the mark of its partition is beyond it."""
        row = f"'\\x{frozen.id}'" if self.server is not None else f"x'{frozen.id}'"
        found = self.select(
            f"SELECT mark FROM streams_inbox_marks WHERE scope = {frozen.scope} "
            f"AND NOT EXISTS (SELECT 1 FROM streams_inbox WHERE id = {row})"
        )
        return bool(found) and int(found[0][0]) > frozen.position


@dataclass(eq=False)
class Worker:
    """A process, and what its handlers are."""

    kind: str
    process: subprocess.Popen[bytes]

    @property
    def has_plain_handlers(self) -> bool:
        """As all have upon a SQLite file."""
        return self.kind == "sqlite" or self.kind.startswith("plain-")

    def ask(self, order: bytes, seconds: float) -> Any:
        """Give it an order, unless that is empty; what it answers, or None: nothing yet."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if order:
            self.process.stdin.write(order)
            self.process.stdin.flush()
        if not select.select([self.process.stdout], (), (), seconds)[0]:
            return None
        line = self.process.stdout.readline()
        assert line, "a worker ended by itself"
        return json.loads(line)

    def refused(self) -> int:
        """How many messages were refused by their partition's mark."""
        found = self.ask(b"below\n", 60)
        assert isinstance(found, int), "a worker does not answer"
        return found

    def owns(self, topic: str) -> bool:
        """Whether it has a partition of a topic."""
        found = self.ask(b"topics\n", 60)
        assert isinstance(found, list), "a worker does not answer"
        return topic in found

    def close(self, signum: int | None = None, seconds: float = 90) -> None:
        """Wait until it has ended; first it is sent a signal, if one is given."""
        if signum is not None:
            self.process.send_signal(signum)
        self.process.wait(seconds)
        for end in (self.process.stdin, self.process.stdout):
            if end is not None:
                with suppress(BrokenPipeError):
                    end.close()


class Fleet:
    """The workers.

    :param command: what they are given, with the kind of database as its fourth.
    :param kinds: of the workers, in turns; the command's if not given.
    """

    def __init__(self, command: list[str], kinds: Sequence[str] = ()) -> None:
        self._command = command
        self._kinds = kinds or [command[3]]
        self.workers: list[Worker] = []

    def start(self, kind: str = "", *options: str) -> Worker:
        """One more."""
        kind = kind or self._kinds[len(self.workers) % len(self._kinds)]
        command = [*self._command[:3], kind, *self._command[4:], *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.inbox_worker", *command],
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        worker = Worker(kind, process)
        if not options:
            self.workers.append(worker)
        return worker

    def check(self) -> None:
        """See that they live."""
        assert all(each.process.poll() is None for each in self.workers), "a worker has ended"

    def kill(self, random: Random) -> None:
        """``kill -9``, and another in its place."""
        self.replace(random.choice(self.workers))

    def replace(self, victim: Worker) -> None:
        """``kill -9`` this one, and start another in its place."""
        self.workers.remove(victim)
        victim.close(signal.SIGKILL)
        self.start(victim.kind)

    def end(self, signum: int = signal.SIGTERM) -> None:
        for worker in self.workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.send_signal(signum)
        for worker in self.workers:
            worker.close()
        self.workers.clear()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def publish(url: str, topic: str, messages: int, random: Random, first: int = 0) -> dict[int, str]:
    """Publish so many numbers from the first on, under keys; each one's key."""
    app = Streams(url)
    source = app.topic(topic, int, partitions=PARTITIONS)
    keys = {first + at: f"k{random.randrange(KEYS)}" for at in range(messages)}

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


def start_over(url: str, topic: str, group: str) -> int:
    """Reset the group to the beginning, beside its workers; its generation from then on."""

    async def move() -> int:
        app = Streams(url)
        source = app.topic(topic, int)
        async with app.connected():
            await reset(app, group, source, "earliest", force=True)
            found = await asyncio.to_thread(app.log.committed, group, topic)
            (generation,) = {decode_generation(each.progress) for each in found.values()}
            return generation

    return asyncio.run(move())


def is_held(file: str) -> bool:
    """Whether somebody keeps a SQLite file from being written: one who is frozen, say."""
    connection = sqlite3.connect(file, timeout=2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


@dataclass
class Replay:
    """A replay beside the group, in a process of its own.

    :param messages: those that were there when it began.
    """

    worker: Worker
    messages: set[str]


@dataclass
class Stage:
    """A run: what there is, and what is done to it."""

    place: Place
    books: Books
    topic: str
    group: str
    fleet: Fleet
    random: Random
    keys: dict[int, str]
    generation: int = 0
    """In which the group is."""
    generations: list[int] = field(default_factory=lambda: [0])
    complete: dict[int, set[str]] = field(default_factory=dict)
    """What each generation that was not broken off has handled at least: of a replay, which takes
    its range when it has started, what was there before."""
    replay: Replay | None = None
    frozen: int = 0
    """Workers that were frozen, every other one of those with plain handlers."""
    refused: int = 0
    """Those that were seen to be refused by a partition's mark."""

    def fault(self, name: str, server: Server | None) -> None:
        """``kill -9`` of a server, and its restart."""
        if server is not None:
            logger.info("%s is restarted", name)
            server.kill()
            server.restart()

    def progress(self, effects: int, what: str) -> None:
        """Wait until the generation has so many effects."""
        moved, last = time.monotonic(), -1
        while True:
            self.fleet.check()
            found = self.books.count(self.generation)
            if found is not None:
                if found >= effects:
                    return
                if found != last:
                    moved, last = time.monotonic(), found
            if time.monotonic() - moved > STALLED:
                lost = missing(self.books, self.keys, self.generation)
                raise AssertionError(f"{what}: stands at {last} of {effects}; {lost}")
            time.sleep(0.05)

    def kill(self) -> None:
        self.fleet.kill(self.random)

    def publish_more(self) -> None:
        """Something to be handled; published anew with the same IDs as long as the log is away."""
        start = len(self.keys)

        def send() -> dict[int, str] | None:
            try:
                keys = Random(start)
                return publish(self.place.url, self.topic, FRESH, keys, start)
            except LogError as error:
                logger.info("published later: %r", error)
                return None

        self.keys.update(until(send, 60, "more is published"))

    # -- frozen

    def freeze(self) -> None:
        """Freeze one as it is about to record a message, until the message's row was purged."""
        plain = [each for each in self.fleet.workers if each.has_plain_handlers]
        ends = time.monotonic() + 5 * STALLED
        fate = ""
        while fate != "purged":
            assert time.monotonic() < ends, "no worker is frozen until its message is purged"
            victim = self._owner(plain if self.frozen % 2 == 0 else self.fleet.workers)
            before = victim.refused()
            frozen = self._frozen(victim)
            if frozen is None:
                continue
            fate = until(
                partial(self._fate, victim, frozen), 60, "it is handled by another one, and purged"
            )
            if fate != "purged":
                victim.process.send_signal(signal.SIGCONT)
        victim.process.send_signal(signal.SIGCONT)
        self.frozen += 1
        if victim.has_plain_handlers:
            until(lambda: victim.refused() > before, 60, "it was refused by the mark")
            self.refused += 1
        # An async handler is cancelled when its partition is lost: whether it is refused before
        # that is chance.

    def _owner(self, workers: Sequence[Worker]) -> Worker:
        """One of these that has a partition of the topic. Others have one of the retry topic alone:
        if all of these do, partitions are moved by killing another worker."""
        others = [each for each in self.fleet.workers if each not in workers]

        def owners() -> list[Worker] | None:
            return [each for each in workers if each.owns(self.topic)] or None

        while True:
            with suppress(TimeoutError):
                return self.random.choice(until(owners, 30, "one has a partition"))
            assert others, "no worker has a partition"
            self.fleet.replace(others.pop())

    def _fate(self, victim: Worker, frozen: Frozen) -> str | None:
        """What became of a message at which a worker is frozen. The server may notice late that a
        statement of the worker is cut off."""
        self.fleet.check()
        if self.books.is_purged(frozen):
            return "purged"
        return "cut off" if self.books.is_cut_off(victim.process.pid) else None

    def _frozen(self, victim: Worker) -> Frozen | None:
        """Freeze it where nobody else waits for it; None: it is handed nothing, as its partition
        has moved."""
        ends = time.monotonic() + 2 * STALLED
        while True:
            answer = self._stopped_at(victim)
            if answer is None:
                return None
            os.waitpid(victim.process.pid, os.WUNTRACED)  # it has stopped
            is_cut_off = self.books.is_cut_off(victim.process.pid)
            if not is_cut_off and not any(map(is_held, self._files())):
                return answer
            victim.process.send_signal(signal.SIGCONT)
            assert time.monotonic() < ends, "it is never frozen where nobody else waits for it"

    def _stopped_at(self, victim: Worker) -> Frozen | None:
        """The message at which a worker stops, if it comes to one soon."""
        order = b"freeze\n"
        for _ in range(10):
            self.publish_more()
            answer = victim.ask(order, 3)
            if answer is not None:
                return Frozen(*answer)
            order = b""
        answer = victim.ask(b"disarm\n", 60)
        return None if answer == "disarmed" else Frozen(*answer)

    def _files(self) -> Iterator[str]:
        if self.books.server is None:
            yield self.books.place
        if self.place.url.startswith("sqlite"):
            yield self.place.url.removeprefix("sqlite:///").partition("?")[0]

    # -- generations

    def put_back(self) -> None:
        put_back(self.place.url, self.topic, self.group)

    def start_over(self) -> None:
        """Reset the group while its workers run."""
        self.generation = start_over(self.place.url, self.topic, self.group)
        assert self.generation not in self.generations
        self.generations.append(self.generation)

    def finish_generation(self) -> None:
        """All of it is handled, what was given up once it is put back."""
        given_up = 0 if self.generation else sum(map(is_poison, self.keys))
        self.progress(len(self.keys) - given_up, "all that is not given up")

        def all_done() -> bool:
            if self.books.count(self.generation) == len(self.keys):
                return True
            self.put_back()
            return False

        try:
            until(all_done, 60, "what was put back")
        except TimeoutError as error:
            lost = missing(self.books, self.keys, self.generation)
            raise AssertionError(f"{error}: {lost}") from error
        self.complete[self.generation] = {f"m{number}" for number in self.keys}

    # -- replays

    def start_replay(self) -> None:
        """Replay the topic into the handler; the one before comes to its end first."""
        self.finish_replay()
        messages = {f"m{number}" for number in self.keys}
        self.replay = Replay(self.fleet.start(self.fleet.workers[0].kind, "--replay"), messages)

    def finish_replay(self) -> None:
        """Wait for its end, if there is one."""
        replay, self.replay = self.replay, None
        if replay is not None:
            replay.worker.close(seconds=300)
            assert replay.worker.process.returncode == 0
            (generation,) = self._generations_of(replay)
            self.generations.append(generation)
            self.complete[generation] = replay.messages

    def kill_replay(self) -> None:
        """Begin one, and kill it when it has handled something."""
        self.start_replay()
        replay, self.replay = self.replay, None
        assert replay is not None

        def has_begun() -> list[int] | None:
            with suppress(psycopg.OperationalError):
                return self._generations_of(replay) or None
            return None

        until(has_begun, 60, "it handles something")
        replay.worker.close(signal.SIGKILL)
        self.generations += self._generations_of(replay)

    def _generations_of(self, replay: Replay) -> list[int]:
        """The one that it has, if it has handled anything. (Its process's number may have been
        another worker's before.)"""
        known = ", ".join(map(str, self.generations))
        found = self.books.select(
            "SELECT DISTINCT generation FROM effects "
            f"WHERE worker = {replay.worker.process.pid} AND generation NOT IN ({known})"
        )
        return [generation for (generation,) in found]

    def close(self) -> None:
        if self.replay is not None:
            self.replay.worker.close(signal.SIGKILL)
        self.fleet.end(signal.SIGKILL)


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
        pytest.param("kafka", "drivers", LONG, id="kafka-drivers-long", marks=pytest.mark.faults),
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
    kinds: Sequence[str] = [kind] if kind == "sqlite" else [kind, kind, f"plain-{kind}"]
    if kind == "drivers":
        kinds = DRIVERS
    fleet = Fleet([place.url, topic, group, kind, books.place], kinds)
    stage = Stage(place, books, topic, group, fleet, random, keys)
    stack.callback(stage.close)
    for _ in range(max(WORKERS, len(kinds))):
        fleet.start()

    faults: list[Callable[[], None]] = [
        *[stage.kill] * size.kills,
        *[stage.freeze] * size.freezes,
        *[lambda: stage.fault("the database", books.server)] * size.database_restarts,
        *[lambda: stage.fault("the log", place.server)] * size.log_restarts,
        *[stage.put_back] * 3,
        *[stage.start_replay] * size.replays,
        *[stage.kill_replay] * size.killed_replays,
    ]
    random.shuffle(faults)
    for half in (faults[::2], faults[1::2]):
        # The last tenth is handled in peace, but for what the faults before left behind.
        moments = sorted(
            random.randrange(size.messages // 50, size.messages * 9 // 10) for _ in half
        )
        for moment, fault in zip(moments, half, strict=True):
            stage.progress(moment, f"{moment} effects")
            fault()
        stage.finish_generation()
        if stage.generation == 0:
            # Twice: the second reset breaks the generation off that the first one began.
            stage.start_over()
            stage.progress(size.messages // 4, "a quarter, once more")
            stage.start_over()
    stage.finish_replay()
    fleet.end()
    check(stage)
    assert stage.refused >= 1


def missing(books: Books, keys: dict[int, str], generation: int) -> str:
    """What was not handled in a generation."""
    rows = books.select(f"SELECT value FROM effects WHERE generation = {generation}")
    found = {value for (value,) in rows}
    inbox = [
        (bytes(id[8:]).decode(), *rest)
        for id, *rest in books.select(
            "SELECT id, redrive, dead, scope, position FROM streams_inbox"
        )
    ]
    lost = {f"m{number}" for number in keys if number not in found}
    of_them = [row for row in inbox if row[0] in lost]
    return f"{len(lost)} missing of {generation}: {sorted(lost)[:20]}: {of_them[:20]}"


def check(stage: Stage) -> None:
    """No message twice in any generation, each one once in those that were not broken off, and the
    ones of a key in order."""
    effects: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for generation, *effect in stage.books.select(
        "SELECT generation, id, key, value, redrive FROM effects ORDER BY number"
    ):
        effects[generation].append(tuple(effect))
    assert set(effects) <= set(stage.generations)
    assert len(stage.complete) >= 2
    for generation, of_it in effects.items():
        times = Counter(effect[0] for effect in of_it)
        twice = {id: count for id, count in times.items() if count != 1}
        assert twice == {}, f"generation {generation}: not once"
        if generation in stage.complete:
            assert stage.complete[generation] - set(times) == set()
        last: dict[str, int] = {}
        for id, key, value, redrive in of_it:
            assert stage.keys[value] == key
            if redrive:
                continue  # what was put back is in no order
            assert last.get(key, -1) < value, f"{id} of {key} after {last[key]}"
            last[key] = value
    logger.warning(
        "seed %d: %d effects, each once in its generation: %d whole ones and %d broken off; %d of "
        "%d freezes ended in a refusal by the mark", SEED, sum(map(len, effects.values())),
        len(stage.complete), len(effects) - len(stage.complete), stage.refused, stage.frozen,
    )  # fmt: skip
