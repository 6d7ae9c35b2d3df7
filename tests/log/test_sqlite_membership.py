"""A member of a group whose writes to the SQLite file fail: a number has one member, a partition
has one owner, and what is owned is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from streams.errors import LogError, Unavailable
from streams.log.protocol import Assignment
from streams.log.sqlite.log import SqliteLog
from streams.log.sqlite.subscription import SqliteSubscription
from streams.log.url import open_log
from tests.conformance.member import History, Member
from tests.conformance.records import append, record
from tests.log.sqlite_child import Child
from tests.servers.lifetime import until

PARTITIONS = 4


class Listener:
    """Starts where the group is, and keeps what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, list[tuple[str, int]]]] = []

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self._keep("assigned", assignments)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self._keep("revoked", assignments)

    def lost(self, assignments: Sequence[Assignment]) -> None:
        self._keep("lost", assignments)

    def _keep(self, what: str, assignments: Sequence[Assignment]) -> None:
        self.said.append((what, sorted((each.topic, each.partition) for each in assignments)))


def opened(url: str) -> SqliteLog:
    log = open_log(url)
    assert isinstance(log, SqliteLog)
    return log


def subscribed(log: SqliteLog, topics: Sequence[str], listener: Listener) -> SqliteSubscription:
    subscription = log.subscribe("g", topics, listener)
    assert isinstance(subscription, SqliteSubscription)
    return subscription


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db?lease=3600"


@pytest.fixture
def log(url: str) -> Iterator[SqliteLog]:
    log = opened(url)
    log.create_topic("t", PARTITIONS)
    yield log
    log.close()


@contextmanager
def full_disk(log: SqliteLog) -> Generator[None]:
    """The disk is full whenever a transaction is committed: SQLite rolls it back."""

    def refuse() -> bool:
        raise apsw.FullError("database or disk is full")

    connection = log._database._write_connection
    connection.set_commit_hook(refuse)
    try:
        yield
    finally:
        connection.set_commit_hook(None)


def test_the_number_of_a_join_that_failed_belongs_to_who_gets_it_next(
    log: SqliteLog, url: str
) -> None:
    with full_disk(log), pytest.raises(Unavailable, match="disk is full"):
        subscribed(log, ["t"], Listener())
    with Child("work", url, "t", "worker") as child:
        assert child.next() == ["assigned", list(range(PARTITIONS))]
        subscribed(log, ["t"], Listener()).close()
        log.close()  # and with it the locks of this process
        again = opened(url)
        successor = Member(again, "g", ["t"], History(), "successor")
        assert child.next()[0] == "revoked"  # not lost: it runs, and is not taken for dead
        successor.until_owns(PARTITIONS // 2)
        successor.close()
        again.close()


def test_a_member_that_could_not_join_again_shares_its_number_with_nobody(log: SqliteLog) -> None:
    listeners = Listener(), Listener()
    first = subscribed(log, ["t"], listeners[0])
    first.poll(10, 0)
    for assignment in first._owned:  # it was stopped for longer than its lease
        assignment.valid_until = float("-inf")
    with log._database.write() as db:
        db.execute("DELETE FROM streams_members")
        db.execute("UPDATE streams_places SET owner = NULL")
        db.execute("UPDATE streams_groups SET generation = generation + 1")
    with full_disk(log), pytest.raises(Unavailable, match="disk is full"):
        until(lambda: bool(first.poll(10, 0.05)), 60, "it notices that it is no member any more")
    second = subscribed(log, ["t"], listeners[1])
    second.poll(10, 0)

    def are_shared() -> bool:
        first.poll(10, 0.05)
        second.poll(10, 0.05)
        return len(first._owned) == len(second._owned) == PARTITIONS // 2

    until(are_shared, 60, "each has its share")
    owned = [{(each.topic, each.partition) for each in sub._owned} for sub in (first, second)]
    assert not owned[0] & owned[1]
    assert "lost" not in [what for what, _ in listeners[1].said]
    assert len(log.describe_group("g").members) == 2
    first.close()
    second.close()


HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[2]), 1)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("held", [1, 0], ids=["one number", "all numbers"])
def test_a_number_whose_lock_somebody_holds_is_passed_over(log: SqliteLog, held: int) -> None:
    path = log._database.path
    subscribed(log, ["t"], Listener()).close()  # number 0 has gone, and the companion is there
    with log._database.write() as db:
        db.execute("UPDATE streams_meta SET value = 0 WHERE name = 'members'")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"{path}-members", str(held)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        if held:
            member = subscribed(log, ["t"], Listener())
            assert member._membership._number == 2
            member.close()
        else:
            with pytest.raises(Unavailable, match=r"log\.db-members: .* are held; end the program"):
                subscribed(log, ["t"], Listener())
        process.communicate()


def test_what_is_acquired_is_read_even_if_a_release_fails(tmp_path: Path) -> None:
    """Another process writes for longer than ``?timeout=`` when a member that released a partition
    says so in the file; in the same step it could have acquired another one."""
    log = opened(f"sqlite:///{tmp_path}/log.db?lease=3600&timeout=0.1")
    log.create_topic("a", 2)
    log.create_topic("b", 1)
    leaving = subscribed(log, ["b"], Listener())
    leaving.poll(10, 0)
    listener = Listener()
    member = subscribed(log, ["a", "b"], listener)
    until(lambda: bool(member.poll(10, 0.05)) or len(member._owned) == 2, 60, "it has a")
    other = subscribed(log, ["a"], Listener())
    leaving.close()

    elsewhere = apsw.Connection(log._database.path)
    revoked = listener.revoked

    def drain(assignments: Sequence[Assignment]) -> None:
        revoked(assignments)
        elsewhere.execute("BEGIN IMMEDIATE")

    listener.revoked = drain  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="another process is writing"):
        until(lambda: bool(member.poll(10, 0.05)), 60, "it releases a partition")
    elsewhere.execute("ROLLBACK")
    elsewhere.close()
    append(log, "b", [record(b"read")])
    read: list[bytes | None] = []

    def has_read() -> bool:
        for batch in (*member.poll(10, 0.05), *other.poll(10, 0.05)):
            read.extend(batch.values)
        return bool(read)

    until(has_read, 60, "it reads what it acquired")
    assert read == [b"read"]
    assert listener.said[-1] == ("assigned", [("b", 0)])
    assert [len(each.partitions) for each in log.describe_group("g").members] == [2, 1]
    log.close()


def test_what_is_assigned_is_read_even_if_the_file_could_not_be_read_then(log: SqliteLog) -> None:
    append(log, "t", [record(b"%d" % number, partition=0) for number in range(3)])
    listener = Listener()
    member = subscribed(log, ["t"], listener)

    def assigned(assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            assignment.position = 2
        member._connection.set_authorizer(lambda *_: apsw.SQLITE_DENY)

    listener.assigned = assigned  # type: ignore[method-assign]
    with pytest.raises(LogError, match="not authorized"):
        member.poll(10, 0)
    member._connection.set_authorizer(None)
    batches = until(lambda: member.poll(10, 0.05) or None, 60, "it reads what it was assigned")
    assert [value for batch in batches for value in batch.values] == [b"2"]
    member.close()
