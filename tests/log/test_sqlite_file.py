"""The SQLite file itself: how it grows, shrinks, fills up, and what one poll takes from it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from streams.clock import SYSTEM
from streams.config import Flow
from streams.errors import LogError, TooLarge, Unavailable
from streams.log.protocol import Assignment, Commit, Retention
from streams.log.sqlite import blocks
from streams.log.sqlite.log import CAPABILITIES, SqliteLog
from streams.log.sqlite.subscription import SqliteSubscription
from streams.log.url import open_log
from streams.message import Position
from tests.conformance.logs import Case
from tests.conformance.records import append, record
from tests.conformance.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(Case("", CAPABILITIES), f"sqlite:///{tmp_path}/log.db?synchronous=normal")
    yield opened
    opened.close()


class Silent:
    """A listener that starts where the group is."""

    def assigned(self, assignments: object) -> None: ...
    def revoked(self, assignments: object) -> None: ...
    def lost(self, assignments: object) -> None: ...


def sqlite(world: World) -> SqliteLog:
    assert isinstance(world.log, SqliteLog)
    return world.log


def ask(world: World, sql: str) -> int:
    """One number from the file."""
    with sqlite(world)._database.read() as connection:
        found: int = connection.fetch_rows(sql)[0][0]
    return found


def test_messages_published_one_by_one_are_merged_into_blocks(world: World) -> None:
    topic = world.topic()
    for number in range(5 * blocks.SMALL_MESSAGES):
        world.append(topic, [record(b"%d" % number, headers=[("n", b"%d" % number)])])
        if world.manual:
            world.manual.advance(1)
    assert ask(world, "SELECT count(*) FROM streams_blocks") == 5
    found = [
        (batch.offsets[i], batch.values[i], dict(batch.headers(i))["n"], batch.time(i))
        for batch in world.read(topic)
        for i in range(len(batch))
    ]
    start = world.clock.time() - 5 * blocks.SMALL_MESSAGES
    assert found == [(n, b"%d" % n, b"%d" % n, start + n) for n in range(5 * blocks.SMALL_MESSAGES)]
    for offset in (0, 63, 64, 100):
        assert world.log.offset_for_time(topic, 0, start + offset) == offset


class Wall:
    """A clock that somebody sets."""

    now = 0.0
    monotonic = staticmethod(time.monotonic)
    real_timeout = staticmethod(SYSTEM.real_timeout)
    on_jump = staticmethod(SYSTEM.on_jump)

    def time(self) -> float:
        return self.now


def test_times_do_not_go_back_with_the_clock(tmp_path: Path) -> None:
    wall = Wall()
    log = open_log(f"sqlite:///{tmp_path}/log.db", clock=wall)
    log.create_topic("t", 1)
    for wall.now in (500.0, 400.0, 450.0, 550.0):
        append(log, "t", [record(b"v")])
    batch = log.reader("t", 0, 0, 4).read(4)
    assert batch is not None
    assert [batch.time(index) for index in range(4)] == [500.0, 500.0, 500.0, 550.0]
    assert log.offset_for_time("t", 0, 500.5) == 3
    log.close()


def test_an_append_wakes_the_pollers_of_its_process_without_their_looking(world: World) -> None:
    topic = world.topic()
    subscription = world.open().subscribe(world.group(), [topic], Silent())
    subscription.poll(1, 0)
    assert isinstance(subscription, SqliteSubscription)
    subscription._changes.event.clear()
    world.append(topic, [b"v"])
    assert subscription._changes.event.is_set()
    subscription.close()


def test_readers_are_not_disturbed_by_merging(world: World) -> None:
    topic, group = world.topic(), world.group()
    subscription = world.log.subscribe(group, [topic], Silent())
    reader = world.log.reader(topic, 0, 0, 1000)
    polled: list[bytes | None] = []
    read: list[bytes | None] = []
    for number in range(300):
        world.append(topic, [b"%d" % number])
        if number % 3 == 0:
            polled += [v for batch in subscription.poll(2, 1.0) for v in batch.values]
        if number % 50 == 49:
            batch = reader.read(23)
            assert batch is not None
            read += batch.values
    while len(polled) < 300:
        polled += [value for batch in subscription.poll(7, 1.0) for value in batch.values]
    assert polled == [b"%d" % number for number in range(300)]
    assert read == polled[: len(read)]
    subscription.close()


def test_offsets_go_on_after_everything_was_trimmed(world: World) -> None:
    topic = world.topic(retention=Retention(seconds=10))
    world.append(topic, [b"old"] * 5)
    assert world.manual
    world.manual.advance(60)
    assert world.log.watermarks(topic, 0) == (5, 5)
    assert ask(world, "SELECT count(*) FROM streams_blocks") == 0
    world.log.close()
    world.log = world.open()
    (position,) = world.append(topic, [b"new"])
    assert position.offset == 5


def test_what_a_group_needs_below_its_position_is_kept_to_the_message(world: World) -> None:
    topic, group = world.topic(retention=Retention(messages=1)), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    world.append(topic, [b"%d" % number for number in range(1000)])
    member = world.member(group, topic, window=300)
    member.until_delivered(1000)
    world.leave(member)
    assert world.manual
    for _ in range(3):
        world.manual.advance(5)
        world.append(topic, [b"more"])
    assert world.log.watermarks(topic, 0) == (700, 1003)


def test_the_file_shrinks_again(world: World, tmp_path: Path) -> None:
    topic = world.topic(retention=Retention(messages=100))
    group = world.group()
    world.log.initialize_offsets(group, topic, {0: 0})  # keeps all, for now
    for _ in range(40):
        world.append(topic, [bytes(10_000)] * 100)
    full = ask(world, "SELECT page_count FROM pragma_page_count")
    world.log.delete_group(group)
    for _ in range(60):
        assert world.manual
        world.manual.advance(2)
        world.append(topic, [b"one more"])
    assert ask(world, "SELECT page_count FROM pragma_page_count") < full / 3
    assert ask(world, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'")


def test_the_write_ahead_log_stays_small_under_readers(world: World, tmp_path: Path) -> None:
    topic, group = world.topic(2), world.group()
    member = world.member(group, topic, limit=500)
    rounds = 150
    for _ in range(rounds):
        world.append(topic, [bytes(1000)] * 200)
    member.until_delivered(rounds * 200)
    assert os.path.getsize(tmp_path / "log.db") > 20 << 20
    assert os.path.getsize(tmp_path / "log.db-wal") < 16 << 20


def test_a_full_disk_writes_nothing_and_says_so(world: World) -> None:
    topic = world.topic()
    world.append(topic, [b"before"])
    connection = sqlite(world)._database._write_connection
    connection.execute("PRAGMA max_page_count = 50").fetchall()
    outcomes = world.outcomes(topic, [record(bytes(1000)) for _ in range(1000)])
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert "disk is full" in str(outcomes[0])
    assert world.values(topic) == [b"before"]
    connection.execute("PRAGMA max_page_count = 100000").fetchall()
    world.append(topic, [b"after"])
    assert world.values(topic) == [b"before", b"after"]


def test_only_the_record_that_is_too_large_is_refused(tmp_path: Path) -> None:
    world = World(Case("", CAPABILITIES), f"sqlite:///{tmp_path}/l.db?max_record=1000")
    topic = world.topic(2)
    sizes = [10, 1001, 1000, 5_000_000, 20]
    outcomes = world.outcomes(topic, [record(bytes(size), partition=0) for size in sizes])
    kinds = [TooLarge, Position]
    assert [type(outcome) for outcome in outcomes] == [kinds[size <= 1000] for size in sizes]
    assert "1001 bytes" in str(outcomes[1])
    assert [outcome for outcome in outcomes if isinstance(outcome, Position)][-1].offset == 2
    world.close()


def test_one_poll_takes_no_more_bytes_than_flow_says_but_one_large_message(world: World) -> None:
    topic = world.topic(2)
    large = 3 << 20
    for size in (100_000, 100_000, large, 100_000, large, large):
        world.append(topic, [record(bytes(size), partition=p) for p in range(2)])
    world.append(topic, [record(bytes(1000), partition=p % 2) for p in range(1000)])
    flow = Flow(bytes=1 << 20)
    subscription = world.log.subscribe(world.group(), [topic], Silent(), flow=flow)
    count = 0
    while count < 2 * 6 + 1000:
        sizes = [
            len(value or b"") for batch in subscription.poll(10_000, 10.0) for value in batch.values
        ]
        count += len(sizes)
        assert sum(sizes) <= flow.bytes or (len(sizes) <= 2 and large in sizes)
        assert sizes.count(large) <= 1
    subscription.close()


def test_a_long_writer_does_not_stop_the_reading(tmp_path: Path) -> None:
    world = World(Case("", CAPABILITIES), f"sqlite:///{tmp_path}/l.db?lease=3&timeout=0.5")
    topic, group = world.topic(), world.group()
    world.append(topic, [b"%d" % number for number in range(100)])
    owned: list[Assignment] = []

    class Keeps(Silent):
        def assigned(self, assignments: object) -> None:
            assert isinstance(assignments, list)
            owned.extend(assignments)

    subscription = world.log.subscribe(group, [topic], Keeps())
    assert sum(map(len, subscription.poll(10, 10.0))) == 10
    other = apsw.Connection(str(tmp_path / "l.db"))
    other.execute("BEGIN IMMEDIATE")
    assert world.manual
    world.manual.advance(1.5)  # a heartbeat is due, and cannot be written
    assert sum(map(len, subscription.poll(10, 10.0))) == 10
    with pytest.raises(Unavailable):
        subscription.commit([Commit(owned[0], 10, "", 1)])
    other.execute("ROLLBACK")
    until = owned[0].valid_until
    while owned[0].valid_until == until:  # it is written soon, though the clock stands still
        assert not subscription.poll(0, 0.1)
    other.execute("BEGIN IMMEDIATE")
    world.manual.advance(3)  # now ownership is not certain any more
    with pytest.raises(Unavailable):
        subscription.poll(10, 10.0)
    other.close()
    assert sum(map(len, subscription.poll(10, 10.0))) == 10
    subscription.commit([Commit(owned[0], 30, "", 2)])
    assert world.position(group, topic) == 30
    subscription.close()
    world.close()


def test_a_submit_waits_neither_for_the_disk_nor_for_other_writers(tmp_path: Path) -> None:
    world = World(Case("", CAPABILITIES), f"sqlite:///{tmp_path}/log.db")
    log = sqlite(world)
    topic, group = world.topic(), world.group()
    end = world.append(topic, [b"1", b"2"])[-1].offset + 1
    member = world.member(group, topic, commit=False)
    member.until_delivered(2)
    (mine,) = member.owned.values()
    modes: list[int] = []
    writer = log._database._write_connection

    def look() -> None:
        modes.append(writer.fetch_rows("PRAGMA synchronous")[0][0])

    def answered(stored: bool) -> None:
        answers.append(stored)

    answers: list[bool] = []
    with log._database.write(sync=False):
        look()
    look()
    member.do(lambda: member.subscription.commit_async([member.place(mine, end)], answered))
    look()
    assert modes == [1, 2, 2], "what is published from now on is not on the disk"
    with log._database.write():
        member.do(lambda: member.subscription.commit_async([member.place(mine, end + 1)], answered))
    look()
    assert answers == [True, False]
    assert modes[-1] == 2
    assert world.position(group, topic) == end
    world.close()


def test_deleting_a_topic_takes_it_from_its_readers(world: World) -> None:
    topic, other, group = world.topic(2), world.topic(), world.group()
    member = world.member(group, [topic, other])
    member.until_owns(3)
    world.log.delete_topic(topic)
    member.until_owns(1)
    assert [e.what for e in world.history.events].count("lost") == 2
    world.append(other, [b"goes on"])
    member.until_delivered(1)


def test_a_deletion_that_was_cut_short_is_finished_when_the_log_is_opened(world: World) -> None:
    topic, other = world.topic(2), world.topic()
    for name in (topic, other):
        for _ in range(200):
            world.append(name, [record(bytes(9000), partition=0)])  # a block of its own
    writer = sqlite(world)._database._write_connection
    writer.execute(
        "CREATE TEMP TRIGGER cut AFTER DELETE ON streams_blocks WHEN old.place & 127 = 100"
        " BEGIN SELECT RAISE(ABORT, 'cut short'); END"
    )
    with pytest.raises(LogError, match="cut short"):
        world.log.delete_topic(topic)
    assert [info.name for info in world.log.describe_topics()] == [other]
    assert ask(world, "SELECT count(*) FROM streams_blocks") > 200
    world.log.close()
    world.log = world.open()
    assert ask(world, "SELECT count(*) FROM streams_blocks") == 200
    assert ask(world, "SELECT count(*) FROM streams_partitions") == 1


def test_closing_the_log_frees_what_its_subscriptions_owned(world: World) -> None:
    topic, group = world.topic(), world.group()
    log = world.open()
    left = log.subscribe(group, [topic], Silent())
    left.poll(1, 0)
    closing = threading.Thread(target=log.close)
    closing.start()
    closing.join()
    successor = world.member(group, topic)
    successor.until_owns(1)
    with pytest.raises(Unavailable):
        left.poll(1, 0)
    left.close()


def test_appends_of_other_processes_need_no_close(world: World) -> None:
    one, two = world.open(), world.open()
    topic = world.topic()
    append(one, topic, [record(b"1")])
    one.close()
    append(two, topic, [record(b"2")])
    assert world.values(topic) == [b"1", b"2"]
