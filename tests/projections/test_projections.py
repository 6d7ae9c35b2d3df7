"""A new version is built beside the old one, serves once it has all that the old one has, and
nobody who reads goes back in time."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from streams import (
    ConfigError,
    GroupNotEmpty,
    InvalidValue,
    NotFound,
    ProcessorDied,
    Psycopg,
    Retry,
    RetryAfter,
    Sqlite,
    Streams,
)
from streams.databases.protocol import Database, Statement, run_steps
from streams.inbox import ddl as inbox_ddl
from streams.inbox.companion import RunAgain
from streams.inbox.recording import Timeouts
from streams.inbox.reruns import RUNS_IN_PLACE
from streams.inbox.tables import create_missing as create_inbox
from streams.projections import operations, projection, tables
from streams.projections.sessions import Transactions
from streams.replay import replay, reset
from tests.inbox.kinds import KINDS, Kind
from tests.outbox.world import PATIENCE, until
from tests.projections.world import NAME, Reader, World

pytestmark = pytest.mark.anyio

BY_NAME = {kind.name: kind for kind in KINDS}
ROOT = Path(__file__).parents[2]


class Ground:
    """A log, a database and a topic of the test's own."""

    def __init__(self, url: str, kind: Kind, place: str) -> None:
        self.url = url
        self.kind = kind
        self.place = place
        self.topic = f"numbers-{uuid4().hex[:8]}"
        self.name = f"sums-{uuid4().hex[:8]}"
        self.reader = Reader(place)

    def world(self, *versions: int, **options: Any) -> World:
        return World(self.url, self.topic, self.kind, self.place, versions, **options)


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    name, log = getattr(request, "param", ("sqlite", "memory"))
    kind = BY_NAME[name]
    place = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "sums.db")
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: f"memory://projections-{uuid4().hex}",
        "sqlite": lambda: f"sqlite:///{tmp_path / 'log.db'}",
        "redis": lambda: request.getfixturevalue("redis_server").url,
        "kafka": lambda: request.getfixturevalue("kafka").url,
    }
    ground = Ground(urls[log](), kind, place)
    ground.reader.create()
    yield ground
    ground.reader.close()


GROUNDS = pytest.mark.parametrize(
    "ground",
    [
        ("async-psycopg", "memory"), ("sqlite", "sqlite"), ("asyncpg", "redis"),
        pytest.param(("psycopg", "kafka"), marks=pytest.mark.faults),
    ],
    ids="-".join,
    indirect=True,
)  # fmt: skip


@GROUNDS
async def test_nobody_goes_back_in_time(ground: Ground) -> None:
    """Old code and new code run side by side, as in a rolling deployment, while messages come."""
    reader, watcher, published = ground.reader, Reader(ground.place), list[int]()
    stopped = asyncio.Event()
    old, new = ground.world(1, name=ground.name), ground.world(1, 2, name=ground.name)
    serving = f"SELECT version FROM streams_projections WHERE name = '{ground.name}' AND serves"

    def look_now() -> tuple[int, int]:
        ((version, *counts),) = reader.run(
            f"SELECT ({serving}), (SELECT count(*) FROM sums_v1), (SELECT count(*) FROM sums_v2), "
            "(SELECT count(*) FROM sums)"
        )
        assert counts[2] == counts[version - 1]  # the view is switched in the same transaction
        return version, counts[2]

    async def look() -> tuple[int, int]:  # not on the loop, which the promoting transaction needs
        return await asyncio.to_thread(look_now)

    async def publish() -> None:
        for number in range(100, 100_000):
            if stopped.is_set():
                return
            await old.topic.publish(number, key=str(number % 7))
            published.append(number)
            if number % 10 == 0:  # so that nobody is so busy that others do not get on
                await until(old_is_near, lambda: len(watcher.values(1)))

    def old_is_near() -> bool:
        return len(watcher.values(1)) >= 95 + len(published)

    async with Streams(ground.url).connected():  # keeps the log in memory
        async with old.app:
            first = range(100)
            await asyncio.gather(*(old.topic.publish(each, key=str(each % 7)) for each in first))
            await until(lambda: old.projection(1).serving == 1, lambda: "version 1 does not serve")
            await until(lambda: len(reader.values(1)) == 100, lambda: "it does not handle")
            publishing = asyncio.create_task(publish())
            async with new.app:
                seen = [await look()]
                while seen[-1][0] == 1:
                    seen.append(await look())
                seen += [await look() for _ in range(20)]
                stopped.set()
                await publishing
                counts = [count for _, count in seen]
                assert counts == sorted(counts)
                assert counts[0] >= 100
                await until(
                    lambda: len(reader.values(1)) == len(reader.values(2)) >= 100 + len(published),
                    lambda: (len(reader.values(1)), len(reader.values(2)), len(published)),
                )
                await until(
                    lambda: new.projection(1).serving in (1, 2), lambda: "1 has not looked yet"
                )
                assert new.projection(2).serving == 2
        assert reader.values(1) == reader.values(2) == sorted({*first, *reader.values(1)})
        async with new.app.connected():
            await operations.drop_version(new.app.log, new.app.projections, ground.name, 1)
            with pytest.raises(NotFound):
                await asyncio.to_thread(new.app.log.describe_group, f"{ground.name}.v1")
            (state,) = await operations.inspect_projections(new.app.log, new.app.projections)
    watcher.close()
    rest = reader.run("SELECT count(*) FROM streams_inbox")[0][0]
    assert rest == len(reader.values(2))  # what the inbox had of version 1 is gone
    states = [(each.version, each.state) for each in state.versions]
    assert states == [(1, "replaced"), (2, "serves")]


async def test_the_first_version_serves_once_it_has_what_was_there(ground: Ground) -> None:
    async with Streams(ground.url).connected():  # keeps the log in memory
        world = ground.world(1)
        world.app.processors[0].pause()
        async with world.app:
            await world.topic.publish_many(range(50))
            await until(lambda: ground.reader.run(_ALL), lambda: "it is not known")
            assert (await world.projection(1).promote()).reason.startswith("it is behind in")
            world.app.processors[0].resume()
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            assert ground.reader.values(1) == list(range(50))


@pytest.mark.parametrize(
    "ground", [("sqlite", "memory"), ("sqlite", "sqlite")], ids="-".join, indirect=True
)
async def test_a_topic_that_was_made_anew_before_the_first_version_served(ground: Ground) -> None:
    """What was there when the version was declared never comes again."""
    async with Streams(ground.url).connected() as connection:
        world = ground.world(1)
        world.app.processors[0].pause()
        async with world.app:
            await world.topic.publish_many(range(50))
            await until(lambda: ground.reader.run(_ALL), lambda: "it is not known")
        await asyncio.to_thread(connection.log.delete_topic, ground.topic)
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(10))
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            await until(
                lambda: ground.reader.values(1) == list(range(10)), lambda: "it has not all"
            )


_ALL = (
    "SELECT * FROM sqlite_master WHERE name = 'streams_projections' "
    "AND EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sums_v1')"
)


async def test_an_old_version_that_nobody_runs_any_more(ground: Ground) -> None:
    """What it has handled is the goal, and no more."""
    async with Streams(ground.url).connected():
        old = ground.world(1)
        async with old.app:
            await old.topic.publish_many(range(20))
            await until(lambda: old.projection(1).serving == 1, lambda: "1 does not serve")
        new = ground.world(2)
        async with new.app.connected():
            await new.topic.publish_many(range(20, 40))
        async with new.app:
            await until(lambda: new.projection(2).serving == 2, lambda: "2 does not serve")
        assert ground.reader.values(2)[:20] == list(range(20))


async def test_what_is_handled_while_a_version_is_built_is_in_it_when_it_serves(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was to have when its building began."""
    monkeypatch.setattr(projection, "NEAR", 0)
    async with Streams(ground.url).connected():
        old, new = ground.world(1), ground.world(2, promote=False)

        def committed() -> int:
            places = old.app.log.committed(f"{NAME}.v1", old.topic.name)
            return sum(each.position for each in places.values())

        async with old.app, new.app:
            await old.topic.publish_many(range(5))
            await until(lambda: old.projection(1).serving == 1, lambda: "1 does not serve")
            await until(lambda: len(ground.reader.values(2)) == 5, lambda: "2 is not built")
            new.app.processors[0].pause()
            await old.topic.publish_many(range(5, 25))
            await until(lambda: len(ground.reader.values(1)) == 25, lambda: "1 does not go on")
            await until(lambda: committed() == 25, lambda: f"1 has committed {committed()}")
            outcome = await new.projection(2).promote()
            assert not outcome.promoted
            assert outcome.reason.startswith("it is behind in")
            new.app.processors[0].resume()
            while not (await new.projection(2).promote()).promoted:  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.01)
        assert ground.reader.values(1) == ground.reader.values(2) == list(range(25))


async def test_versions_of_topics_in_which_nothing_was_handled_yet(ground: Ground) -> None:
    """There are no tables of an inbox then, as they are made with the first message."""
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        world = ground.world(1, 2)
        async with world.app:
            await until(lambda: world.projection(2).serving == 2, lambda: "2 does not serve")
        async with world.app.connected():
            await operations.drop_version(world.app.log, world.app.projections, NAME, 1)
        assert ground.reader.run("SELECT version FROM streams_projections") == [(2,)]


@pytest.mark.parametrize(
    "ground", [("psycopg", "memory"), ("sqlite", "memory")], ids="-".join, indirect=True
)
async def test_rows_that_were_purged_were_handled_all_the_same(ground: Ground) -> None:
    """With a short ``keep=`` the inbox may know no more what the serving version has handled."""
    from streams.inbox.identity import Scope, position_text
    from streams.inbox.marks import raise_mark
    from streams.inbox.tables import create_missing

    database = ground.kind.make(ground.place)
    dialect = database.dialect
    database.reserve_connections(1)
    database.enter()
    serving, candidate = (Scope("i", group, 0, "numbers", 0) for group in ("sums.v1", "sums.v2"))
    session = database.begin()
    try:
        run_steps(session, create_missing(dialect))
        run_steps(session, raise_mark(dialect, serving, serving.number, position_text(10)))
        for settled, is_behind in ((5, True), (9, True), (10, False), (11, False)):
            steps = tables.is_behind(dialect, serving.number, candidate.number, settled)
            assert run_steps(session, steps) is is_behind, settled
    finally:
        session.rollback()
        database.leave()


async def test_what_a_dropped_version_handled_of_its_retry_topic_is_forgotten(
    ground: Ground,
) -> None:
    from streams.config import DeadLetters
    from streams.inbox.identity import Scope

    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await world.topic.publish(1)
            await until(lambda: ground.reader.values(1) == [1], lambda: "it is not handled")
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        retry = DeadLetters().retry(ground.topic, "sums.v1")
        world = ground.world(2)
        async with world.app.connected():
            log = world.app.log
            log.create_topic(retry, 1)
            scope = Scope(log.incarnation(retry), "sums.v1", 0, retry, 0)
            row = f"(x'00', {scope.number}, '0', 0, 0, 0, NULL, NULL)"
            ground.reader.run(f"INSERT INTO streams_inbox VALUES {row}")
        async with world.app:
            await until(lambda: world.projection(2).serving == 2, lambda: "2 does not serve")
            await until(lambda: ground.reader.values(2) == [1], lambda: "it is not handled")
        async with world.app.connected():
            await operations.drop_version(world.app.log, world.app.projections, NAME, 1)
    assert ground.reader.run("SELECT count(*) FROM streams_inbox") == [(1,)]


async def test_a_version_that_was_reset_and_dropped_is_built_anew(ground: Ground) -> None:
    async with Streams(ground.url).connected() as kept:
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(3))
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        await build_the_second(ground, 3)
        await reset(kept, "sums.v2", world.topic, "earliest")
        async with world.app.connected():
            await operations.drop_version(world.app.log, world.app.projections, NAME, 2)
        ground.reader.run("DELETE FROM sums_v2")
        world = ground.world(1, 2)
        async with world.app:
            await until(lambda: world.projection(2).serving == 2, lambda: "2 does not serve")
    assert ground.reader.values(2) == [0, 1, 2]


async def build_the_second(ground: Ground, count: int) -> None:
    """Version 2 handles so many messages, and does not serve."""
    world = ground.world(2, promote=False)
    known = "SELECT 1 FROM streams_projections WHERE version = 2"
    async with world.app:
        await until(lambda: ground.reader.run(known), lambda: "2 is not known")
        await until(lambda: len(ground.reader.values(2)) == count, lambda: "2 is not built")


async def test_a_version_is_dropped_in_portions(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write to the database meanwhile; and it is known until nothing is left of it."""
    monkeypatch.setattr(operations, "FORGOTTEN_AT_ONCE", 2)
    found, run_work = list[tuple[int, int]](), Transactions.run

    async def counted(transactions: Transactions, work: Any, **options: Any) -> Any:
        result = await run_work(transactions, work, **options)
        ((rows, versions),) = ground.reader.run(
            "SELECT (SELECT count(*) FROM streams_inbox), "
            "(SELECT count(*) FROM streams_projections)"
        )
        found.append((rows, versions))
        return result

    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(7))
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        await build_the_second(ground, 7)
        monkeypatch.setattr(Transactions, "run", counted)
        async with world.app.connected():
            await operations.drop_version(world.app.log, world.app.projections, NAME, 2)
    rows = [rows for rows, _ in found]
    assert (rows[0], rows[-1]) == (14, 7)
    assert max(before - after for before, after in pairwise(rows)) == 2
    assert [versions for _, versions in found] == [2] * (len(found) - 1) + [1]


@pytest.mark.parametrize("goal", ["no JSON", "[]", '{"numbers": 1}', '{"numbers": {"a": "b"}}'])
async def test_a_row_that_somebody_else_wrote(ground: Ground, goal: str) -> None:
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        ground.reader.run(f"UPDATE streams_projections SET goal = '{goal}'")
        async with world.app.connected():
            with pytest.raises(ConfigError, match=r"version 1 of projection 'sums'.*goal"):
                await operations.inspect_projections(world.app.log, world.app.projections)


async def test_a_row_that_was_deleted_is_written_again(ground: Ground) -> None:
    """By whoever runs, as the error about a bad one says."""
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
            ground.reader.run("DELETE FROM streams_projections")
            assert (await world.projection(1).promote()).promoted
            assert ground.reader.serving() == 1


async def test_a_cancellation_while_it_waits_for_its_turn_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    from streams.projections.sessions import Transactions, Work

    database = Sqlite(tmp_path / "a.db")
    transactions = Transactions(database)
    other = database.begin()

    begun = False

    def work() -> Work[None]:
        nonlocal begun
        begun = True
        yield Statement("SELECT 1")

    task = asyncio.create_task(transactions.run(work()))
    await until(transactions._turn.locked, lambda: "it does not wait")
    task.cancel()
    assert not begun
    other.rollback()
    with pytest.raises(asyncio.CancelledError):
        await task
    session = await asyncio.wait_for(asyncio.to_thread(database.begin), 30)
    session.rollback()
    transactions.close()
    database.close()


async def test_one_that_is_promoted_by_hand(ground: Ground) -> None:
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(5))
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        world = ground.world(1, 2, promote=False)
        log, declared = world.app, world.app.projections
        async with world.app:
            await until(lambda: len(ground.reader.values(2)) == 5, lambda: "2 is not built")
            assert ground.reader.serving() == 1
            known = "SELECT 1 FROM streams_projections WHERE version = 2"
            await until(lambda: ground.reader.run(known), lambda: "2 is not known")
            with pytest.raises(GroupNotEmpty):
                await operations.drop_version(log.log, declared, NAME, 2)
            with pytest.raises(InvalidValue, match="serves: promote another first"):
                await operations.drop_version(log.log, declared, NAME, 1)

            for _ in range(6_000):  # until the position is committed, too
                outcome = await operations.promote_version(declared, NAME, 2)
                if outcome.promoted:
                    break
                await asyncio.sleep(0.01)
            assert ground.reader.serving() == 2
            again = await operations.promote_version(declared, NAME, 1)
            assert again == (False, "version 2 serves, which is newer", False)
            with pytest.raises(ConfigError, match="does not declare version 3"):
                await operations.promote_version(declared, NAME, 3)
            with pytest.raises(NotFound, match="no version 3"):
                await operations.drop_version(log.log, declared, NAME, 3)
            with pytest.raises(ConfigError, match="no projection 'other'; it has 'sums'"):
                await operations.inspect_projections(log.log, declared, "other")


@GROUNDS
async def test_what_waits_to_be_tried_again_is_waited_for(ground: Ground) -> None:
    """It is settled, and not handled: a reader of the old version has seen it."""
    is_away = True

    def fail(version: int, value: int) -> None:
        if version == 2 and value == 3 and is_away:
            raise RetryAfter(0.2)

    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(5))
            await until(lambda: world.projection(1).serving == 1, lambda: "1 does not serve")
        again = Retry(attempts=1_000, in_order=False)
        world = ground.world(1, 2, promote=False, retry=again)
        world.before = fail
        async with world.app:
            refused = 0
            while refused < 10:
                outcome = await world.projection(2).promote()
                assert not outcome.promoted
                refused += outcome.reason == projection.LACKS
                await asyncio.sleep(0.05)
            assert ground.reader.values(2) == [0, 1, 2, 4]
            is_away = False
            while not outcome.promoted:
                await asyncio.sleep(0.05)
                outcome = await world.projection(2).promote()
            assert ground.reader.values(2) == [0, 1, 2, 3, 4]


async def test_code_that_blocks_the_loop_never_waits_for_a_lock_that_the_loop_holds(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("INTERVAL", "IDLE_INTERVAL", "LOOK_AGAIN"):
        monkeypatch.setattr(f"streams.projections.projection.{interval}", 0.0)
    async with Streams(ground.url).connected():
        world = ground.world(1, 2)
        async with world.app:
            with closing(sqlite3.connect(ground.place, timeout=30, isolation_level=None)) as mine:
                rest = 100
                while rest:  # a write on the loop after the other, while versions are looked at
                    mine.execute("BEGIN IMMEDIATE")
                    mine.execute("COMMIT")
                    rest -= world.projection(2).serving == 2
                    await asyncio.sleep(0)


async def test_one_does_not_stand_still_for_longer_than_anybody_holds_it(ground: Ground) -> None:
    """The clock may be set back behind that, and whoever promotes may have died."""
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
    database = ground.kind.make(ground.place)
    session = database.begin()
    try:
        run_steps(session, tables.hold_handlers(NAME, 1, 1_000.0))
        with pytest.raises(RunAgain):
            run_steps(session, tables.enter_handler("sqlite", NAME, 1, math.inf, 2_000.0))
        run_steps(session, tables.enter_handler("sqlite", NAME, 1, math.inf, 500.0))
    finally:
        session.rollback()
        database.close()


async def test_what_the_hook_raises_leaves_the_old_version_serving(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(connection: Any) -> None:
        connection.execute("DROP TABLE sums_v1")
        raise ValueError("not like this")

    async with Streams(ground.url).connected():
        world = ground.world(1, on_promote=fail)
        async with world.app:
            await until(lambda: "not like this" in caplog.text, lambda: caplog.text)
            assert world.projection(1).serving is None
        assert ground.reader.serving() is None
        assert ground.reader.values(1) == []
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")


WAITS = (
    "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database "
    "WHERE locktype = '{}' AND NOT granted AND datname = current_database()"
)


@pytest.mark.parametrize("ground", [("async-psycopg", "memory")], ids=["postgres"], indirect=True)
async def test_one_that_stands_still_waits(ground: Ground) -> None:
    """While a version is promoted, the one that serves does not get on, and goes on afterwards."""
    async with Streams(ground.url).connected():
        world = ground.world(1)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            with psycopg.connect(ground.place) as promoting:
                promoting.execute(
                    "SELECT pg_advisory_xact_lock(%s)", (tables.lock_number(NAME, 1),)
                )
                await world.topic.publish(1)
                await until(
                    lambda: ground.reader.run(WAITS.format("advisory")), lambda: "it does not wait"
                )
                assert ground.reader.values(1) == []
            await until(lambda: ground.reader.values(1) == [1], lambda: "it does not go on")


@pytest.mark.parametrize("ground", [("async-psycopg", "memory")], ids=["postgres"], indirect=True)
@pytest.mark.parametrize("limit", [None, 60.0])
async def test_one_that_stands_still_for_long_uses_up_no_attempt(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    """Promoting takes as long as its hook does."""
    calls = 0
    handle = tables.enter_handler

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return handle(*args)

    monkeypatch.setattr(tables, "enter_handler", counted)
    monkeypatch.setattr(
        "streams.inbox.partitions.Partitions.timeouts", Timeouts(lock=0.05, idle=60.0)
    )
    monkeypatch.setattr("streams.inbox.handling.PATIENCE_WITH_TIMEOUT", 0.3)
    async with Streams(ground.url).connected():
        world = ground.world(1, retry=Retry(attempts=1), timeout=limit)
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            with psycopg.connect(ground.place) as promoting:
                number = tables.lock_number(NAME, 1)
                promoting.execute("SELECT pg_advisory_xact_lock(%s)", (number,))
                await world.topic.publish(1)
                stats: Any = world.app.processors[0].stats
                await until(
                    lambda: calls >= RUNS_IN_PLACE + 2 or stats().dead_letters,
                    lambda: "it does not try",
                )
                assert not stats().dead_letters
            await until(lambda: ground.reader.values(1) == [1], lambda: "it does not go on")


@pytest.mark.parametrize(
    "ground", [("async-psycopg", "memory"), ("psycopg", "memory")], ids="-".join, indirect=True
)
async def test_one_that_promotes_and_stands_still_is_given_up(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is frozen, or gone without a word."""
    monkeypatch.setattr("streams.projections.projection.IDLE", 1.0)
    monkeypatch.setattr("streams.projections.projection.IDLE_INTERVAL", 0.1)
    hooked, over = threading.Event(), threading.Event()

    async def hook(connection: Any) -> None:
        hooked.set()
        await asyncio.to_thread(over.wait)

    def plain_hook(connection: Any) -> None:
        hooked.set()
        over.wait()

    async with Streams(ground.url).connected():
        old = ground.world(1)
        new = ground.world(2, on_promote=hook if ground.kind.asynchronous else plain_hook)
        async with old.app:
            await until(lambda: old.projection(1).serving == 1, lambda: "it does not serve")
            async with new.app:
                try:
                    await until(hooked.is_set, lambda: "it is not promoted")
                    await old.topic.publish(1)
                    await until(lambda: ground.reader.values(1) == [1], lambda: "1 stands still")
                    assert ground.reader.serving() == 1
                finally:
                    over.set()
                await until(lambda: new.projection(2).serving == 2, lambda: "2 does not serve")


@pytest.mark.parametrize("ground", [("psycopg", "memory")], ids=["postgres"], indirect=True)
async def test_whoever_promotes_is_not_waited_for(ground: Ground) -> None:
    async with Streams(ground.url).connected():
        world = ground.world(1, promote=False)
        async with world.app:
            known = "SELECT 1 FROM pg_class WHERE relname = 'streams_projections'"
            await until(lambda: ground.reader.run(known), lambda: "it is not known")
            with psycopg.connect(ground.place) as other:
                number = tables.lock_number(NAME, 0)
                other.execute("SELECT pg_advisory_xact_lock(%s)", (number,))
                promoting = asyncio.create_task(world.projection(1).promote())
                await until(promoting.done, lambda: "it waits")
                assert await promoting == (
                    False,
                    "another process is promoting a version of it",
                    False,
                )
            assert (await world.projection(1).promote()).promoted


STRICT = """DO $$ BEGIN EXECUTE format(
    $q$ ALTER DATABASE %I SET default_transaction_isolation = 'repeatable read' $q$,
    current_database()
); END $$"""


@pytest.mark.parametrize("ground", [("async-psycopg", "memory")], ids=["postgres"], indirect=True)
async def test_one_that_promotes_sees_what_was_handled_until_all_stood_still(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a level at which a transaction sees what was there when it began, too."""
    monkeypatch.setattr("streams.projections.projection.HOLD", PATIENCE)
    monkeypatch.setattr(
        "streams.inbox.partitions.Partitions.timeouts", Timeouts(lock=60.0, idle=60.0)
    )
    reader, found = ground.reader, list[list[int]]()
    reader.run(STRICT)

    async def hook(connection: Any) -> None:
        found.append(reader.values(2))

    async with Streams(ground.url).connected():
        old, new = ground.world(1), ground.world(2, promote=False, on_promote=hook)
        async with old.app, new.app:
            await until(lambda: old.projection(1).serving == 1, lambda: "it does not serve")
            await old.topic.publish(1)
            await until(
                lambda: reader.values(1) == reader.values(2) == [1], lambda: "they do not handle"
            )
            new.app.processors[0].pause()
            with psycopg.connect(ground.place) as holding:
                holding.execute("LOCK TABLE sums_v1 IN EXCLUSIVE MODE")
                await old.topic.publish(2)
                await until(lambda: reader.run(WAITS.format("relation")), lambda: "1 is not there")
                promoting = asyncio.create_task(new.projection(2).promote())
                await until(lambda: reader.run(WAITS.format("advisory")), lambda: "2 is not there")
            await until(lambda: reader.values(1) == [1, 2], lambda: "it does not handle")
            compared = (
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%AS missing%' "
                "AND state = 'idle in transaction' AND datname = current_database()"
            )
            await until(lambda: found or reader.run(compared), lambda: "it does not compare")
            new.app.processors[0].resume()
            assert (await promoting).promoted
            assert found == [[1, 2]]


def commit(database: Database[Any], steps: Any) -> None:
    """One transaction of these."""
    session = database.begin()
    try:
        run_steps(session, steps("postgresql"))
        session.commit()
    finally:
        session.rollback()


@pytest.mark.parametrize("ground", [("psycopg", "memory")], ids=["postgres"], indirect=True)
async def test_tables_are_made_once_at_any_level(ground: Ground) -> None:
    """Whoever waited for the lock sees what was made meanwhile."""
    ground.reader.run(STRICT)
    database = ground.kind.make(ground.place)
    database.reserve_connections(2)
    database.enter()

    try:
        for steps in (create_inbox, tables.create_missing):
            first = database.begin()
            run_steps(first, steps("postgresql"))
            second = asyncio.create_task(asyncio.to_thread(commit, database, steps))
            await until(
                lambda: ground.reader.run(WAITS.format("advisory")), lambda: "it does not wait"
            )
            first.commit()
            await second
    finally:
        database.leave()


@pytest.mark.parametrize("ground", [("psycopg", "memory")], ids=["postgres"], indirect=True)
async def test_who_freezes_with_a_lock_holds_nobody_up(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction."""
    monkeypatch.setattr("streams.databases.locking.IDLE_WITH_LOCK", 0.3)
    database = ground.kind.make(ground.place)
    database.reserve_connections(2)
    database.enter()
    all_steps: list[Any] = [
        create_inbox,
        tables.create_missing,
        lambda dialect: tables.declare(dialect, NAME, 1, {}),
    ]

    try:
        for steps in all_steps:
            frozen = database.begin()
            run_steps(frozen, steps("postgresql"))
            await asyncio.wait_for(asyncio.to_thread(commit, database, steps), 60)
            frozen.rollback()
    finally:
        database.leave()


async def test_a_second_handling_on_purpose_is_refused(ground: Ground) -> None:
    async with Streams(ground.url).connected() as kept:
        world = ground.world(1)
        async with world.app:
            await world.topic.publish_many(range(3))
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            with pytest.raises(ConfigError, match="a replay into its handler"):
                await replay(world.app, world.topic, world.app.processors[0])
        await reset(kept, "sums.v1", world.topic, "earliest")
        with pytest.raises(ProcessorDied, match=r"its group 'sums\.v1' was reset"):
            async with ground.world(1).app:
                await asyncio.Event().wait()
    assert ground.reader.values(1) == [0, 1, 2]


async def test_a_table_that_must_not_be_made(ground: Ground, caplog: Any) -> None:
    sqlite3.connect(ground.place).executescript(inbox_ddl("sqlite")).connection.close()
    app = Streams(ground.url)
    topic = app.topic("numbers", int)

    @app.processor(topic, group="sums", transaction=Sqlite(ground.place, create=False), version=1)
    def add(value: int) -> None: ...

    async with app:
        await until(lambda: "streams projections ddl sqlite" in caplog.text, lambda: caplog.text)


def handler(value: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": 0}, "version=0: must be a positive integer"),
        ({"version": True}, "version=True"),
        ({"version": 2, "transaction": None}, "without transaction=.*declare a view"),
        ({"version": 2, "start": "latest"}, "each version is built from the beginning"),
        ({"version": 2, "promote": 1}, "promote=1: must be True or False"),
        ({"version": 2, "on_promote": 3}, "on_promote=3: a function"),
        ({"on_promote": print}, "are for a processor with version="),
        ({"promote": False}, "are for a processor with version="),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    app = Streams("memory://")
    declare: Any = app.processor
    given = {"group": "sums", "transaction": Sqlite("a.db")} | options
    with pytest.raises(ConfigError, match=said):
        declare(app.topic("numbers", int), **given)(handler)
    assert not app.resources
    assert not app.projections


def test_more_that_is_refused() -> None:
    app = Streams("memory://")
    numbers, others = app.topic("numbers", int), app.topic("others", int)

    def same(value: int) -> int:
        return value

    async def switch(connection: Any) -> None: ...

    database = Sqlite("a.db")
    with pytest.raises(ConfigError, match="would publish all results again"):
        app.processor(numbers, group="a", transaction=database, version=1, to=others)(same)
    with pytest.raises(ConfigError, match="on_promote= is an async function"):
        app.processor(
            numbers, group="a", transaction=database, version=1, on_promote=switch
        )(handler)  # fmt: skip
    app.processor(numbers, group="a", transaction=database, version=1)(handler)
    with pytest.raises(ConfigError, match="version 1 of projection 'a' is declared twice"):
        app.processor(others, group="a", transaction=Psycopg("dbname=x"), version=1)(handler)
    app.processor(numbers, group="a", transaction=database, version=2)(handler)
    assert [processor.group for processor in app.processors] == ["a.v1", "a.v2"]


APP = """
from streams import Sqlite, Streams

app = Streams("sqlite:///log.db")
numbers = app.topic("numbers", int, partitions=1)
database = Sqlite("sums.db")


def declare(version, **options):
    @app.processor(
        numbers, group="sums", transaction=database, version=version, batch=10, **options
    )
    def add(values, messages):
        for value in values:
            messages[0].transaction.execute(f"INSERT INTO sums_v{version} VALUES (?)", (value,))

    return add


one, two = declare(1), declare(2, promote=False)
"""


async def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    reader = Reader(str(tmp_path / "sums.db"))
    reader.create()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "codecs"))), "COLUMNS": "200",
    }  # fmt: skip

    async def command(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "streams.cli", "projections", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    running = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [sys.executable, "-c", "import shop; shop.app.run()"], cwd=tmp_path, env=environment
    )
    try:
        app = Streams(f"sqlite:///{tmp_path / 'log.db'}")
        numbers = app.topic("numbers", int, partitions=1)
        async with app.connected():
            await numbers.publish_many(range(30))
        has_all = "SELECT count(*) FROM streams_projections WHERE serves"
        table = "SELECT 1 FROM sqlite_master WHERE name = 'streams_projections'"
        await until(lambda: reader.run(table) and reader.run(has_all) == [(1,)], lambda: "1")
        await until(lambda: len(reader.values(2)) == 30, lambda: "version 2 is not built")
        running_rows = json.loads((await command("ls", "shop:app", "--json")).stdout)
        assert [(row["version"], row["serves"], row["processes"]) for row in running_rows] == [
            (1, True, 1), (2, False, 1),
        ]  # fmt: skip
        refused = await command("drop", "shop:app", "sums", "--version", "2", "--yes")
        assert refused.returncode == 1
        assert "running member" in refused.stderr
    finally:
        running.terminate()
        running.wait(60)
    done = await command("promote", "shop:app", "sums", "--version", "2")
    assert (done.returncode, done.stderr.strip()) == (0, "sums: version 2 serves")
    refused = await command("promote", "shop:app", "sums", "--version", "1")
    assert refused.returncode == 1
    assert "version 2 serves, which is newer" in refused.stderr
    shown = json.loads((await command("show", "shop:app", "sums", "--json")).stdout)
    assert shown["serving"] == 2
    assert [each["lag"] for each in shown["partitions"]] == [0, 0]
    dropped = await command("drop", "shop:app", "sums", "--version", "1", "--yes")
    assert dropped.returncode == 0, dropped.stderr
    listed = (await command("ls", "shop:app")).stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        ["sums", "1", "replaced"], ["sums", "2", "serves"],
    ]  # fmt: skip
    ddl = await command("ddl", "sqlite")
    assert "CREATE TABLE streams_projections" in ddl.stdout
    reader.close()
