"""The statements, in real databases: two transactions at once, zombies, purging."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams.databases.protocol import Database, FailureKind, Session, Statement, Steps, run_steps
from streams.databases.psycopg_database import Psycopg
from streams.databases.sqlite_database import Sqlite
from streams.errors import ConfigError
from streams.inbox import ddl
from streams.inbox.identity import Entry, FirstPosition, Scope, entry_id, position_text
from streams.inbox.marks import (
    PendingDeletion,
    PurgeableRows,
    RecordedPositions,
    begin_partition,
    delete_purged,
    pending,
    raise_mark,
    rows_to_purge,
    schedule_deletion,
)
from streams.inbox.recording import Timeouts, Verdict, mark_dead, take
from streams.inbox.tables import VERSION, check_version, create_missing, find_version
from tests.servers.lifetime import until

SCOPE = Scope("log", "g", 0, "orders", 0)
PATIENT = Timeouts(lock=20.0, idle=60.0)
HASTY = Timeouts(lock=0.2, idle=60.0)


def entry(number: int, redrive: int = 0) -> Entry:
    id = entry_id(b"sourceid", f"m{number}")
    return Entry(id, SCOPE.number, number, redrive)


class Tables:
    """A database with the inbox's tables, and transactions in it."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self.do(lambda: create_missing(database.dialect))

    def do(self, steps: Callable[[], Steps[Any]]) -> Any:
        """One transaction."""
        session = self.database.begin()
        try:
            found = run_steps(session, steps())
            session.commit()
        finally:
            session.rollback()
        return found

    def take(self, *entries: Entry) -> list[Verdict]:
        found = self.do(lambda: take(self.database.dialect, entries, PATIENT))
        return list(found)

    def take_in(self, session: Session[Any], *entries: Entry, hasty: bool = False) -> list[Verdict]:
        waits = HASTY if hasty else PATIENT
        return run_steps(session, take(self.database.dialect, entries, waits))

    def rows(self) -> int:
        found = self.do(lambda: _select("SELECT count(*) FROM streams_inbox"))
        return int(found[0][0])

    def raise_mark(self, mark: int) -> None:
        self.do(lambda: raise_mark(self.database.dialect, SCOPE, SCOPE.number, position_text(mark)))

    def begin(self, *, start: int, settled: int, end: int) -> RecordedPositions:
        """A new owner begins."""

        def steps() -> Steps[RecordedPositions]:
            return begin_partition(
                self.database.dialect, SCOPE, SCOPE.number, start=start, settled=settled, end=end
            )

        found: RecordedPositions = self.do(steps)
        return found

    def look(
        self, settled: int, keep: float, *, scope: Scope = SCOPE, start: int = 0, limit: int = 100
    ) -> PurgeableRows:
        """What may go."""

        def steps() -> Steps[PurgeableRows]:
            return rows_to_purge(
                self.database.dialect, scope.number, position_text(start), position_text(settled),
                keep, limit,
            )  # fmt: skip

        found: PurgeableRows = self.do(steps)
        return found

    def purge(self, scope: Scope, settled: int) -> None:
        """All that is settled, however young."""
        dialect, mark = self.database.dialect, self.look(settled, keep=-1, scope=scope).mark
        self.do(lambda: raise_mark(dialect, scope, scope.number, mark))
        if dialect == "postgresql":
            self.do(lambda: delete_purged(scope.number, 100))

    def age(self, seconds: float, where: str) -> None:
        """Rows are so much older."""
        ago = f"make_interval(secs => {seconds})"
        if self.database.dialect == "sqlite":
            ago = str(seconds)
        self.do(
            lambda: _run(f"UPDATE streams_inbox SET handled_at = handled_at - {ago} WHERE {where}")
        )


def _select(sql: str) -> Steps[Any]:
    return (yield Statement(sql))


@pytest.fixture
def server(postgres: str) -> Iterator[Tables]:
    database = Psycopg(postgres)
    database.open(10)
    yield Tables(database)
    database.close()


@pytest.fixture(params=["server", "file"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tables]:
    if request.param == "server":
        yield request.getfixturevalue("server")
        return
    database = Sqlite(tmp_path / "inbox.db")
    yield Tables(database)
    database.close()


def test_taken_once(tables: Tables) -> None:
    assert tables.take(entry(1)) == [Verdict.NEW]
    assert tables.take(entry(1)) == [Verdict.HANDLED]
    assert tables.take(entry(1, redrive=3)) == [Verdict.HANDLED]
    assert tables.take(entry(1), entry(2), entry(3)) == [
        Verdict.HANDLED, Verdict.NEW, Verdict.NEW,
    ]  # fmt: skip
    assert tables.rows() == 3


def test_rolled_back_it_was_not_taken(tables: Tables) -> None:
    session = tables.database.begin()
    assert tables.take_in(session, entry(1)) == [Verdict.NEW]
    session.rollback()
    assert tables.take(entry(1)) == [Verdict.NEW]


def test_a_dead_one_is_taken_over_by_a_higher_count_alone(tables: Tables) -> None:
    dialect = tables.database.dialect

    def mark_dead_now(redrive: int) -> Any:
        return tables.do(lambda: mark_dead(dialect, entry(1, redrive), PATIENT))

    assert mark_dead_now(0) is Verdict.DEAD
    assert mark_dead_now(0) is Verdict.DEAD  # its letter may be missing
    assert tables.take(entry(1)) == [Verdict.DEAD]
    session = tables.database.begin()
    assert tables.take_in(session, entry(1, 1), entry(2)) == [Verdict.NEW, Verdict.NEW]
    session.rollback()
    assert tables.take(entry(1, 0)) == [Verdict.DEAD]
    assert mark_dead_now(1) is Verdict.DEAD
    assert tables.take(entry(1, 1)) == [Verdict.DEAD]
    assert tables.take(entry(1, 2)) == [Verdict.NEW]
    assert tables.take(entry(1, 9)) == [Verdict.HANDLED]
    assert mark_dead_now(9) is Verdict.HANDLED  # never a done one
    assert tables.take(entry(1, 10)) == [Verdict.HANDLED]


def test_below_the_mark_nothing_is_taken(tables: Tables) -> None:
    assert tables.take(entry(5)) == [Verdict.NEW]
    tables.raise_mark(10)
    tables.raise_mark(7)  # it never goes back
    assert tables.take(entry(5), entry(9), entry(10)) == [
        Verdict.HANDLED if tables.database.dialect == "postgresql" else Verdict.PURGED,
        Verdict.PURGED,
        Verdict.NEW,
    ]
    found = tables.do(lambda: mark_dead(tables.database.dialect, entry(9), PATIENT))
    assert found in (Verdict.PURGED, Verdict.DEAD)
    assert found is Verdict.PURGED


def test_only_what_is_settled_and_old_is_purged(tables: Tables) -> None:
    tables.take(*(entry(number) for number in range(10)))

    def look(settled: int, keep: float, *, start: int = 0, limit: int = 100) -> tuple[int, ...]:
        found = tables.look(settled, keep, start=start, limit=limit)
        return int(found.mark), found.rows, found.is_last

    assert look(settled=6, keep=3600) == (0, 0, True)
    assert look(settled=0, keep=-1) == (0, 0, True)
    assert look(settled=6, keep=-1) == (6, 6, True)
    assert look(settled=6, keep=-1, limit=3) == (3, 3, False)
    assert look(settled=6, keep=-1, limit=3, start=3) == (6, 3, False)
    assert look(settled=20, keep=-1) == (20, 10, True)  # nothing stands there, and it is settled
    tables.age(7200, f"position < '{position_text(4)}'")
    assert look(settled=9, keep=3600) == (4, 4, True)  # the young one stands there


def test_rows_of_a_clock_that_was_ahead_are_old_in_their_time(tables: Tables) -> None:
    """They are taken for written when that is noticed."""
    tables.take(*(entry(number) for number in range(5)))
    tables.age(-31_536_000, "id = (SELECT id FROM streams_inbox ORDER BY id LIMIT 1)")
    assert tables.look(5, keep=3600).rows == 0
    assert tables.look(5, keep=-1).rows == 5


def test_a_message_whose_row_went_elsewhere_is_known_by_its_place(tables: Tables) -> None:
    """It was given up, put back, handled from the retry topic, and purged there. Whoever had it
    before that, and thaws, does not handle it again."""
    dialect = tables.database.dialect
    retry = Scope("log", "g", 0, "orders.g.retry", 0)
    assert tables.do(lambda: mark_dead(dialect, entry(1), PATIENT)) is Verdict.DEAD
    came_back = Entry(entry(1).id, retry.number, 0, 1)
    assert tables.take(came_back) == [Verdict.NEW]
    for scope, settled in ((retry, 1), (SCOPE, 2)):
        tables.purge(scope, settled)
    assert tables.rows() == 0
    assert tables.take(entry(1)) == [Verdict.PURGED]


RETRY = Scope("log", "g", 0, "orders.g.retry", 0)


def came_back(number: int, position: int, redrive: int) -> Entry:
    """A message that stands in the retry topic now."""
    first = FirstPosition(SCOPE.number, number)
    return Entry(entry(number).id, RETRY.number, position, redrive, first)


def test_a_row_stays_until_both_partitions_can_tell_without_it(tables: Tables) -> None:
    """What stands before it in its source is not settled: who had it from there may still come,
    and would find neither its row nor a mark beyond its place."""
    dialect = tables.database.dialect
    tables.begin(start=0, settled=0, end=9)
    assert tables.do(lambda: mark_dead(dialect, entry(1), PATIENT)) is Verdict.DEAD
    assert tables.take(entry(3), came_back(1, 0, 1), came_back(2, 1, 0)) == [Verdict.NEW] * 3
    tables.purge(RETRY, 2)
    assert tables.rows() == 3
    assert tables.look(2, keep=-1, scope=RETRY).rows == 0
    assert tables.take(entry(1), entry(2)) == [Verdict.HANDLED, Verdict.HANDLED]
    assert tables.take(came_back(1, 0, 1), came_back(2, 1, 0)) == [Verdict.HANDLED] * 2
    for settled in (2, 3):
        tables.purge(SCOPE, settled)
        assert tables.look(2, keep=-1, scope=RETRY).rows == 1
        tables.purge(RETRY, 2)
        assert tables.rows() == 4 - settled
    assert tables.take(entry(1), entry(2)) == [Verdict.PURGED, Verdict.PURGED]
    assert tables.take(came_back(1, 0, 1), came_back(2, 1, 0)) == [Verdict.PURGED] * 2
    assert tables.rows() == 1


def test_what_is_given_up_again_is_known_where_it_stood_last(tables: Tables) -> None:
    """Who had it from the retry topic and thaws does not handle it, although its source has passed
    its first place."""
    dialect = tables.database.dialect
    tables.begin(start=0, settled=0, end=9)
    for each in (entry(1), came_back(1, 5, 1)):
        assert tables.do(partial(mark_dead, dialect, each, PATIENT)) is Verdict.DEAD
    tables.purge(SCOPE, 2)
    assert tables.rows() == 1
    assert tables.take(entry(1)) == [Verdict.DEAD]
    assert tables.take(came_back(1, 5, 1)) == [Verdict.DEAD]
    assert tables.do(lambda: mark_dead(dialect, entry(1), PATIENT)) is Verdict.DEAD
    assert tables.take(came_back(1, 6, 2)) == [Verdict.NEW]


def test_a_partition_that_nobody_took_up_keeps_no_row(tables: Tables) -> None:
    """Whoever writes to a retry topic says what they like about where a message stood first."""
    elsewhere = FirstPosition(77, 10**30)
    assert tables.take(came_back(1, 0, 0)._replace(first=elsewhere)) == [Verdict.NEW]
    tables.purge(RETRY, 1)
    assert tables.rows() == 0


def test_what_came_back_is_forgotten_with_the_place_that_it_has_for_an_id(tables: Tables) -> None:
    """The log was restored from an older copy, and another message stands at that place."""
    id = entry_id(b"sourceid", "orders/0/9")
    with_id = came_back(8, 3, 0)
    assert tables.take(came_back(9, 4, 0)._replace(id=id), with_id) == [Verdict.NEW] * 2
    tables.begin(start=0, settled=0, end=20)
    tables.raise_mark(12)
    assert tables.begin(start=3, settled=3, end=4).end == 12
    assert tables.take(Entry(id, SCOPE.number, 9, 0), entry(8)) == [Verdict.NEW, Verdict.HANDLED]


@pytest.mark.parametrize("end", [4, 100])
def test_what_the_log_has_lost_is_forgotten_by_its_place(tables: Tables, end: int) -> None:
    """The log was restored from an older copy: other messages take the places of those that it does
    not have any more. A message with an ID stays the same one wherever it stands."""
    without_id = Entry(entry_id(b"sourceid", "orders/0/9"), SCOPE.number, 9, 0)
    assert tables.take(entry(8), without_id) == [Verdict.NEW, Verdict.NEW]
    tables.raise_mark(5)
    assert tables.begin(start=3, settled=3, end=end) == RecordedPositions(mark=5, end=10)
    is_lost = end == 4
    assert tables.take(entry(8)) == [Verdict.HANDLED]
    assert tables.take(without_id) == [Verdict.NEW if is_lost else Verdict.HANDLED]
    assert tables.take(entry(2)) == [Verdict.PURGED]
    assert tables.take(entry(3)) == [Verdict.NEW if is_lost else Verdict.PURGED]
    assert tables.begin(start=3, settled=3, end=10) == RecordedPositions(
        mark=3 if is_lost else 5, end=10
    )


def test_rows_stay_until_who_read_the_old_mark_has_ended(server: Tables) -> None:
    """The order that lets a thawed zombie insert again, where rows go with the mark."""
    assert server.take(entry(1)) == [Verdict.NEW]
    zombie = server.database.begin()
    assert server.take_in(zombie, entry(2)) == [Verdict.NEW]  # it has read the mark: 0
    server.raise_mark(10)
    server.do(lambda: schedule_deletion(SCOPE.number))
    assert server.do(lambda: pending("postgresql", SCOPE.number)) == PendingDeletion(is_due=False)
    # The zombie goes on with what was handled and is to be purged: its row is still there.
    assert server.take_in(zombie, entry(1)) == [Verdict.HANDLED]
    # Who comes now is refused by the mark, whatever becomes of the rows.
    late = server.database.begin()
    assert server.take_in(late, entry(3)) == [Verdict.PURGED]
    late.rollback()
    zombie.commit()
    # Others have transactions on this server, too.

    def is_due() -> bool:
        found: PendingDeletion | None = server.do(lambda: pending("postgresql", SCOPE.number))
        return found == PendingDeletion(is_due=True)

    until(is_due, 300, "every transaction that could have read the old mark has ended")
    assert server.do(lambda: delete_purged(SCOPE.number, 100))
    assert server.rows() == 0
    assert server.do(lambda: pending("postgresql", SCOPE.number)) is None
    assert server.take(entry(1)) == [Verdict.PURGED]
    assert server.rows() == 0


def test_what_was_restored_to_another_server_is_purged_there(server: Tables) -> None:
    """The number of a transaction that was written down is another server's."""
    server.take(entry(1))
    server.raise_mark(10)
    later = "UPDATE streams_inbox_marks SET purge_after = txid_current() + 1000000000"
    server.do(lambda: _run(later))
    assert server.do(lambda: pending("postgresql", SCOPE.number)) is None  # it is raised anew


def _run(sql: str) -> Steps[None]:
    yield Statement(sql)


@pytest.mark.parametrize("mark", [0, 1])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_does_not_see_an_old_mark(server: Tables, level: str, mark: int) -> None:
    """Also where nothing was purged before: the mark has a row from the beginning."""
    server.begin(start=0, settled=0, end=100)
    assert server.take(entry(1)) == [Verdict.NEW]
    server.raise_mark(mark)
    zombie = server.database.begin()
    run_steps(zombie, _select_level(level))
    server.raise_mark(10)
    server.do(lambda: schedule_deletion(SCOPE.number))
    assert server.do(lambda: delete_purged(SCOPE.number, 100))
    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        server.take_in(zombie, entry(1))
    assert server.database.classify(caught.value) is FailureKind.CONFLICT
    zombie.rollback()
    assert server.take(entry(1)) == [Verdict.PURGED]


def _select_level(level: str) -> Steps[Any]:
    yield Statement(f"SET TRANSACTION ISOLATION LEVEL {level}")
    return (yield Statement("SELECT count(*) FROM streams_inbox"))  # its snapshot


def test_a_successor_waits_for_the_owner_and_finds_its_row(server: Tables) -> None:
    owner = server.database.begin()
    assert server.take_in(owner, entry(1)) == [Verdict.NEW]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.take, entry(1))
        _until_somebody_waits(server)
        owner.commit()
        assert waiting.result(20) == [Verdict.HANDLED]


def test_a_successor_takes_what_the_owner_rolled_back(server: Tables) -> None:
    owner = server.database.begin()
    assert server.take_in(owner, entry(1), entry(2)) == [Verdict.NEW, Verdict.NEW]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.take, entry(2), entry(1))
        _until_somebody_waits(server)
        owner.rollback()
        assert waiting.result(20) == [Verdict.NEW, Verdict.NEW]


def test_a_frozen_owner_does_not_hold_its_successor_up(server: Tables) -> None:
    owner = server.database.begin()
    server.take_in(owner, entry(1))
    successor = server.database.begin()
    with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
        server.take_in(successor, entry(1), hasty=True)
    assert server.database.classify(caught.value) is FailureKind.CONFLICT
    successor.rollback()
    owner.rollback()


def _until_somebody_waits(server: Tables) -> None:

    waits = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    until(lambda: server.do(lambda: _select(waits))[0][0] or None, 20, "it waits")


def test_tables_are_made_once_whoever_tries(server: Tables) -> None:
    for what in (
        "TABLE streams_inbox, streams_inbox_marks, streams_inbox_schema",
        "FUNCTION streams_inbox_take, streams_inbox_mark_dead",
    ):
        server.do(partial(_select_nothing, f"DROP {what}"))
    barrier = threading.Barrier(6)

    def make() -> int:
        barrier.wait()
        return int(server.do(lambda: create_missing("postgresql")))

    with ThreadPoolExecutor(6) as pool:
        assert [each.result(30) for each in [pool.submit(make) for _ in range(6)]] == [VERSION] * 6


def _select_nothing(sql: str) -> Steps[None]:
    yield Statement(sql)


def test_the_tables_by_hand(postgres: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(ddl("postgresql"))
    database = Psycopg(postgres, create=False)
    database.open(2)
    session = database.begin()
    assert run_steps(session, find_version("postgresql")) == VERSION
    session.rollback()
    database.close()
    with sqlite3.connect(tmp_path / "hand.db") as file:
        file.executescript(ddl("sqlite"))
    file.close()
    sqlite = Sqlite(tmp_path / "hand.db")
    opened = sqlite.begin()
    assert run_steps(opened, find_version("sqlite")) == VERSION
    opened.rollback()
    sqlite.close()


@pytest.mark.parametrize(("version", "said"), [(None, "are missing"), (1, "of version 1")])
def test_other_tables_are_refused(version: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_version(version, "Psycopg", "postgresql")


async def test_many_at_once_each_once(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zombies of every kind: forty transactions for ten messages, in two orders."""
    monkeypatch.setattr("streams.databases.psycopg_database.POOL_TIMEOUT", 60.0)
    from streams.databases.protocol import run_steps_async
    from streams.databases.psycopg_database import AsyncPsycopg

    database = AsyncPsycopg(postgres)
    await database.open_async(20)
    session = await database.begin_async()
    await run_steps_async(session, create_missing("postgresql"))
    await session.commit()
    taken: list[int] = []

    async def worker(number: int) -> None:
        numbers = list(range(10)) if number % 2 else list(range(9, -1, -1))
        groups = [numbers] if number % 3 else [[each] for each in numbers]
        for group in groups:
            while True:
                session = await database.begin_async()
                try:
                    entries = [entry(each) for each in group]
                    found = await run_steps_async(session, take("postgresql", entries, PATIENT))
                    if number % 5 == 0:
                        await session.rollback()
                        break
                    await session.commit()
                    new = [each for each, v in zip(group, found, strict=True) if not v]
                    taken.extend(new)
                    break
                except psycopg.errors.OperationalError as error:
                    await session.rollback()
                    if database.classify(error) is not FailureKind.CONFLICT:
                        raise

    await asyncio.gather(*(worker(number) for number in range(40)))
    await database.close_async()
    assert sorted(taken) == list(range(10))
