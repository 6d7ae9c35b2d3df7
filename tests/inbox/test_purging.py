"""Rows that are not needed any more go by themselves, and no others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from streams import DeadLetterManager, Position, Processor, Reject, Retry, Streams, Topic
from streams.databases import psycopg_database
from streams.inbox.calls import run_calls, run_calls_async
from streams.inbox.purging import ROWS_AT_ONCE
from streams.log.protocol import Committed
from streams.testing import Harness, harness
from tests.inbox.kinds import KINDS, Kind, Place
from tests.servers.lifetime import until

BY_NAME = {kind.name: kind for kind in KINDS}
PURGED_WITHIN = 300
"""Seconds. On PostgreSQL rows stay while others have old transactions open on the same server."""

LASTING = {
    "kafka": "?session.timeout.ms=120000",
    "redis": "?lease=120",
    "sqlite": "?lease=120",
}
"""A partition is purged while it is owned."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.inbox.purging.PURGE_INTERVAL", 0.05)


class Books:
    """A processor whose rows need not be kept, and what its database has of them.

    :param name: of its topic and group; a new one if not given.
    :param accepts: the numbers that it is for; all if not given.
    """

    def __init__(
        self,
        app: Streams,
        kind: Kind,
        place: Place,
        name: str = "",
        accepts: Callable[[int], bool] | None = None,
    ) -> None:
        self.place = place
        name = name or uuid4().hex[:8]
        self.topic: Topic[int] = app.topic(f"orders-{name}", int, partitions=2)
        self.open: set[int] = set()
        """Numbers whose handler fails, so that they are not settled."""
        self.rejected: set[int] = set()
        """Numbers whose handler gives them up at once."""
        self.processor: Processor[..., Any] = app.processor(
            self.topic,
            group=f"g-{name}",
            concurrency=4,
            filter=accepts,
            transaction=kind.make(place.place, keep=0),
            retry=Retry(attempts=100_000, delay=0.05, cap=0.05),
        )(kind.handler(self._look, lambda message: message.id))

    def _look(self, message: Any) -> None:
        if message.value in self.open:
            raise ValueError("not yet")
        if message.value in self.rejected:
            raise Reject("not like this")

    async def publish(self, numbers: Sequence[int], partition: int) -> list[Position]:
        """Each under its own key and ID."""
        records = [self.topic.record(each, key=str(each), id=f"m{each}") for each in numbers]
        for record in records:
            record.partition = partition
        return await self.topic.connection.publisher.publish_many(self.topic.name, records)

    def rows(self) -> set[str]:
        """The IDs of what the inbox has."""
        found = self.place.execute("SELECT id FROM streams_inbox")
        return {bytes(row[0])[8:].decode() for row in found}

    def marks(self) -> dict[int, int]:
        """The mark of each partition that has one."""
        found = self.place.execute(
            f"SELECT partition, mark FROM streams_inbox_marks WHERE topic = '{self.topic.name}'"
        )
        return {partition: int(mark) for partition, mark in found}

    def check_marks(self, h: Harness) -> dict[int, int]:
        """The marks: none is beyond what the group has committed, which only grows."""
        marks = self.marks()
        committed = h.log.committed(self.processor.group, self.topic.name)
        assert all(mark <= committed[each].position for each, mark in marks.items())
        return marks

    def has_handled(self, numbers: Sequence[int]) -> bool:
        found = self.place.effects()
        return all(f"m{number}" in found for number in numbers)


async def eventually(ready: Callable[[], bool], what: str, limit: float = 60) -> None:
    await asyncio.to_thread(until, ready, limit, what)


@pytest.mark.parametrize("database", ["async-psycopg", "sqlite"])
async def test_what_the_group_has_committed_goes_and_what_is_open_stays(
    url: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = BY_NAME[database]
    where = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "effects.db")
    url += LASTING.get(url.partition(":")[0], "")
    app = Streams(url)
    books = Books(app, kind, Place(where))
    first, second = range(10), range(10, 15)
    books.open.add(4)
    async with harness(app, url=url) as h:
        positions = await books.publish(first, partition=0)
        above = {f"m{number}" for number in first if number > 4}
        not_open = [number for number in first if number != 4]
        await eventually(lambda: books.has_handled(not_open), "what is not open is done")
        await eventually(
            lambda: books.rows() == above,
            "what stands before the open one is purged",
            PURGED_WITHIN,
        )
        marks = await asyncio.to_thread(books.check_marks, h)
        assert positions[3].offset < marks[0] <= positions[4].offset

        # Who purges the second partition has been at the first one before, in the same round.
        await books.publish(second, partition=1)
        await eventually(lambda: books.has_handled(second), "the second partition is done")
        await eventually(
            lambda: books.rows() == above, "the second partition is purged", PURGED_WITHIN
        )
        marks = await asyncio.to_thread(books.check_marks, h)
        assert marks[0] <= positions[4].offset
        assert "m4" not in books.place.effects()

        books.open.clear()
        await h.settled(within=120)
        await eventually(lambda: books.rows() == set(), "all of it is purged", PURGED_WITHIN)
        marks = await asyncio.to_thread(books.check_marks, h)
        assert marks[0] > positions[9].offset
        inbox = books.processor.inbox
        assert inbox is not None
        await eventually(lambda: inbox.stats.purged >= 3, "each of these is counted")
    assert books.place.effects() == {f"m{number}": 1 for number in (*first, *second)}


@pytest.mark.parametrize("database", ["psycopg", "sqlite"])
async def test_what_comes_from_below_the_mark_is_settled_without_running(
    database: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tool that knows no generations moves the group back, to where rows were purged. As it might
    be a log that was restored from an older copy, that is an error in the log."""
    kind = BY_NAME[database]
    where = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "effects.db")
    app = Streams("memory://")
    books = Books(app, kind, Place(where))
    async with harness(app) as h:
        (first, *_) = await books.publish(range(5), partition=0)
        await h.settled()
        await eventually(lambda: books.rows() == set(), "all of it is purged", PURGED_WITHIN)
        inbox = books.processor.inbox
        assert inbox is not None
        assert (inbox.stats.duplicates, inbox.stats.below_mark) == (0, 0)
        back = {0: Committed(first.offset)}
        h.log.reset_offsets(books.processor.group, books.topic.name, back, force=True)
        await eventually(lambda: inbox.stats.duplicates == 5, "they came again")
        assert inbox.stats.below_mark == 5
        await h.settled()
        assert inbox.stats.losses >= 1
        assert "everything below 5 was settled and purged" in caplog.text
    assert books.place.effects() == {f"m{number}": 1 for number in range(5)}


@pytest.mark.parametrize("database", ["psycopg", "sqlite"])
async def test_what_was_handled_when_it_came_back_is_handled_once_wherever_it_comes_from(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its retry topic has done with it, and its source has not, as a message before it is open.
    Another tool moves the group back there, and it comes from where it stood first."""
    kind = BY_NAME[database]
    where = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "effects.db")
    app = Streams("memory://")
    books = Books(app, kind, Place(where))
    books.open.add(0)
    books.rejected.add(2)
    async with harness(app) as h:
        (first, *_) = await books.publish(range(4), partition=0)
        await eventually(lambda: books.has_handled([1, 3]), "the others are done")
        letters = DeadLetterManager(app, f"{books.topic.name}.{books.processor.group}.dead")
        async with asyncio.timeout(60):
            while not await letters.count():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        books.rejected.clear()
        assert await letters.reprocess() == 1
        await eventually(lambda: books.has_handled([2]), "it is handled when it came back")
        retry = "SELECT mark FROM streams_inbox_marks WHERE topic LIKE '%.retry'"
        await eventually(
            lambda: [int(mark) for (mark,) in books.place.execute(retry)] == [1],
            "its retry topic has done with it",
        )
        assert books.rows() == {"m1", "m2", "m3"}
        inbox = books.processor.inbox
        assert inbox is not None
        before = inbox.stats.duplicates
        back = {0: Committed(first.offset)}
        h.log.reset_offsets(books.processor.group, books.topic.name, back, force=True)
        await eventually(lambda: inbox.stats.duplicates == before + 3, "they came again")
        books.open.clear()
        await h.settled()
        await eventually(lambda: books.rows() == set(), "all of it is purged", PURGED_WITHIN)
    assert books.place.effects() == {f"m{number}": 1 for number in range(4)}


@pytest.mark.parametrize("database", ["psycopg", "async-psycopg"])
async def test_a_round_that_failed_is_not_the_last(
    database: str, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has a lock upon the marks, which purging waits for only shortly."""
    caplog.set_level(logging.INFO, "streams.inbox")
    app = Streams("memory://")
    books = Books(app, BY_NAME[database], Place(postgres))
    async with harness(app) as h:
        await books.publish([1], partition=0)
        await h.settled()
        await eventually(lambda: books.rows() == set(), "it is purged", PURGED_WITHIN)
        with psycopg.connect(postgres) as server:
            server.execute("LOCK TABLE streams_inbox_marks IN SHARE MODE")
            await books.publish([2, 3], partition=0)
            await h.settled()
            await eventually(lambda: "rows of" in caplog.text, "purging has failed")
            assert books.rows() == {"m2", "m3"}
        await eventually(lambda: books.rows() == set(), "the rest is purged", PURGED_WITHIN)
    failed = [each for each in caplog.records if "were not purged, retrying later" in each.message]
    assert failed
    assert {each.levelno for each in failed} == {logging.INFO}


@pytest.mark.parametrize(
    "database",
    [
        "async-psycopg", "psycopg", "sqlite",
        "sqlalchemy", "async-sqlalchemy", "sqlalchemy-sqlite", "async-sqlalchemy-sqlite",
    ],
)  # fmt: skip
async def test_who_takes_a_partition_over_purges_what_others_have_handled(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing comes any more."""
    kind = BY_NAME[database]
    where = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "effects.db")
    url, name = f"sqlite:///{tmp_path / 'log.db'}", uuid4().hex[:8]
    monkeypatch.setattr("streams.inbox.purging.PURGE_INTERVAL", 1e6)
    place = Place(where)
    app = Streams(url)
    first = Books(app, kind, place, name)
    async with harness(app, url=url) as h:
        await first.publish(range(5), partition=0)
        await h.settled()
    assert first.rows() == {f"m{number}" for number in range(5)}
    monkeypatch.setattr("streams.inbox.purging.PURGE_INTERVAL", 0.05)
    app = Streams(url)
    second = Books(app, kind, place, name)
    async with harness(app, url=url):
        await eventually(lambda: second.rows() == set(), "all of it is purged", PURGED_WITHIN)
    assert second.place.effects() == {f"m{number}": 1 for number in range(5)}


@pytest.mark.parametrize("number", range(6))
async def test_a_process_that_freezes_while_it_purges_holds_nobody_up(
    postgres: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever of its transactions: the server ends it."""
    monkeypatch.setattr("streams.inbox.purging.IDLE", 0.2)
    committed = 0
    ended: list[int] = []
    commit = psycopg_database._PsycopgSession.commit

    def freeze(session: Any) -> None:
        nonlocal committed
        if threading.current_thread().name.startswith("streams-inbox-"):
            committed += 1
            if committed == number + 1:
                with psycopg.connect(postgres, autocommit=True) as server:
                    pid = session.connection.info.backend_pid
                    sql = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"
                    until(lambda: not server.execute(sql).fetchall(), 60, "the server ends it")
                ended.append(pid)
        commit(session)

    monkeypatch.setattr(psycopg_database._PsycopgSession, "commit", freeze)
    app = Streams("memory://")
    books = Books(app, BY_NAME["psycopg"], Place(postgres))
    async with harness(app) as h:
        await books.publish(range(5), partition=0)
        await h.settled()
        await eventually(lambda: books.rows() == set(), "all of it is purged", PURGED_WITHIN)
        await eventually(lambda: len(ended) == 1, "one was ended")
    assert books.place.effects() == {f"m{number}": 1 for number in range(5)}


@pytest.mark.parametrize("database", ["psycopg", "async-psycopg"])
async def test_a_round_takes_many_rows_although_others_write_all_the_time(
    database: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their transactions put the deletion off, and what may be deleted then is not one portion."""
    monkeypatch.setattr("streams.inbox.purging.PURGE_INTERVAL", 1e6)
    rows = 2 * ROWS_AT_ONCE + 2_000
    app = Streams("memory://")
    books = Books(app, BY_NAME[database], Place(postgres), accepts=lambda number: number == 0)
    async with harness(app) as h:
        await books.publish(range(rows + 1), partition=0)
        await h.settled(within=120)
        await eventually(
            lambda: h.log.committed(books.processor.group, books.topic.name)[0].position > rows,
            "all of it is committed",
        )
        inbox: Any = books.processor.inbox
        books.place.execute(
            "INSERT INTO streams_inbox (id, scope, position, redrive, dead) "
            "SELECT convert_to('sourceidn' || n, 'UTF8'), s.scope, n, 0, false "
            f"FROM streams_inbox AS s, generate_series(1, {rows}) AS n"
        )
        purger = inbox.new_purger()

        async def one_round() -> None:
            if inbox.database.asynchronous:
                await run_calls_async(purger.purge())
            else:
                await asyncio.to_thread(run_calls, purger.purge())

        with psycopg.connect(postgres) as writer:
            writer.execute("SELECT txid_current()")
            await one_round()
            assert books.marks()[0] == rows + 1
            assert len(books.rows()) == rows + 1
            assert inbox.stats.purged == 0  # nothing has gone
        async with asyncio.timeout(PURGED_WITHIN):
            while books.rows():  # others have transactions on this server, too
                await one_round()
        assert inbox.stats.purged == 3
