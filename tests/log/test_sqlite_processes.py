"""Several processes on one SQLite file, killed and stopped at any instant."""

from __future__ import annotations

import os
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from streams.clock import SYSTEM
from streams.log.protocol import Log
from streams.log.sqlite.log import CAPABILITIES, SqliteLog
from streams.log.url import open_log
from tests.conformance.logs import Case
from tests.conformance.member import History, Member
from tests.conformance.records import append, record
from tests.log.sqlite_child import Child

SEED = int(os.environ.get("STREAMS_TEST_SEED", "1"))
PARTITIONS = 4


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A log with a topic ``t`` and a table of effects."""
    url = f"sqlite:///{tmp_path}/log.db?timeout=60"
    log = open_log(url)
    log.create_topic("t", PARTITIONS)
    assert isinstance(log, SqliteLog)
    with log._database.write() as connection:
        connection.execute(
            "CREATE TABLE effects (seq INTEGER PRIMARY KEY, partition, at, value, worker)"
        )
    log.close()
    return url


def ends(log: Log) -> dict[int, int]:
    return {p: log.watermarks("t", p)[1] for p in range(PARTITIONS)}


def test_killed_at_any_instant_nothing_is_lost_doubled_or_out_of_order(url: str) -> None:
    # The lease outlasts the test: only the death of the process frees what it owned.
    url += "&lease=3600"
    chance = random.Random(SEED)
    numbers = iter(range(10**6))
    acknowledged: dict[str, int] = {}
    with ExitStack() as running:

        def start(role: str) -> Child:
            return running.enter_context(Child(role, url, "t", f"{role}{next(numbers)}"))

        children = {start(role): role for role in ("append", "append", "work", "work", "work")}
        for _ in range(15):
            victim = chance.choice(list(children))
            for _ in range(chance.randrange(1, 8)):
                victim.next()
            victim.kill()
            role = children.pop(victim)
            if role == "append" and victim.said:
                acknowledged[victim.name] = victim.said[-1]
            children[start(role)] = role
        for child, role in children.items():
            if role == "append":
                child.next()
                child.kill()
                acknowledged[child.name] = child.said[-1]
        log = open_log(url)
        worker = next(child for child, role in children.items() if role == "work")
        while not _settled(log):
            for child, role in children.items():
                if role == "work" and child is not worker:
                    child.kill()
            worker.next()
    assert isinstance(log, SqliteLog)
    with log._database.read() as connection:
        assert connection.fetch_rows("PRAGMA integrity_check") == [("ok",)]
        effects = connection.fetch_rows("SELECT partition, at, value FROM effects ORDER BY seq")
    written: dict[str, list[int]] = {}
    for partition in range(PARTITIONS):
        stored = []
        reader = log.reader("t", partition, 0, ends(log)[partition])
        while (batch := reader.read(100)) is not None:
            stored += list(zip(batch.offsets, batch.values, strict=True))
        assert [offset for offset, _ in stored] == list(range(len(stored)))
        assert [(at, value) for p, at, value in effects if p == partition] == stored
        for _, value in stored:
            assert value is not None
            name, _, number = value.decode().partition(":")
            written.setdefault(name, []).append(int(number))
    for name, count in acknowledged.items():
        found = sorted(written.get(name, []))
        assert found == list(range(len(found))), "a transaction is whole or not there"
        assert len(found) >= count
    assert len(acknowledged) >= 2
    log.close()


def _settled(log: Log) -> bool:
    positions = {
        part[1]: place.position for part, place in log.describe_group("g").positions.items()
    }
    return positions == {p: end for p, end in ends(log).items() if end or p in positions}


def test_a_stopped_process_loses_its_partitions_and_none_of_its_commits_count(url: str) -> None:
    # Only the lease of the one that is stopped ends while the test runs.
    log = open_log(f"{url}&lease=60")
    append(log, "t", [record(b"%d" % i, partition=i % PARTITIONS) for i in range(40)])
    history = History()
    with Child("freeze", f"{url}&lease=1", "t", "frozen") as child:
        while child.next() != "stopping":
            pass
        successor = Member(log, "g", ["t"], history, "successor")
        successor.until_owns(PARTITIONS)  # a stopped process keeps its locks: it was the lease
        successor.until_delivered(40)
        successor.do(lambda: None)
        before = log.describe_group("g").positions
        assert {place.position for place in before.values()} == {10}
        child.process.send_signal(signal.SIGCONT)
        while child.next() != "committed":
            pass
        assert log.describe_group("g").positions == before
        said = [each[0] for each in child.said if isinstance(each, list)]
        assert "fenced" in said
        while "lost" not in said:
            said += child.next()[:1]
        successor.close()
    assert isinstance(log, SqliteLog)
    with log._database.read() as connection:
        assert connection.fetch_rows("SELECT count(*) FROM effects") == [(0,)]
    log.close()


def test_where_locks_do_not_work_the_lease_decides(url: str, tmp_path: Path) -> None:
    (tmp_path / "log.db-members").mkdir()  # cannot be opened, so it cannot be locked
    url += "&lease=1"
    log = open_log(url)
    append(log, "t", [record(b"v")])
    with Child("work", url, "t", "worker") as child:
        assert child.next() == ["assigned", list(range(PARTITIONS))]
        child.next()
        child.kill()
    successor = Member(log, "g", ["t"], History(), "successor")
    successor.until_owns(PARTITIONS)
    successor.close()
    log.close()


def test_the_living_are_not_taken_for_dead_by_another_process(url: str) -> None:
    url += "&lease=3600"
    with Child("work", url, "t", "worker") as child:
        assert child.next()[0] == "assigned"
        log = open_log(url, clock=SYSTEM)
        (member,) = log.describe_group("g").members
        assert len(member.partitions) == PARTITIONS
        assert str(child.process.pid) in member.id
        child.kill()
        assert log.describe_group("g").members == ()
        log.delete_group("g")
        log.close()


def test_capabilities_are_what_these_tests_prove() -> None:
    assert Case("", CAPABILITIES).can("durable")
    assert CAPABILITIES.processes
    assert CAPABILITIES.transactions
