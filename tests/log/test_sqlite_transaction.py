"""``message.transaction``: the handler's rows and its position, both or neither."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from streams.errors import ConfigError, Fenced, LogError, Unavailable
from streams.log.protocol import Commit, Committed
from streams.log.sqlite.log import CAPABILITIES
from streams.log.url import open_log
from streams.message import Position, Record
from tests.conformance.logs import Case
from tests.conformance.member import Member
from tests.conformance.records import record
from tests.conformance.world import World


class Shop:
    """A world with a table of effects and a member that owns one partition with 10 messages."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.topic, self.group = world.topic(), world.group()
        world.append(self.topic, [b"%d" % number for number in range(10)])
        self.member: Member = world.member(self.group, self.topic, commit=False)
        self.member.until_delivered(10)
        self.subscription = self.member.subscription
        setup = self.subscription.begin_transaction()
        setup.execute("CREATE TABLE effects (id INTEGER PRIMARY KEY, value TEXT)")
        setup.commit([])

    def place(self, position: int) -> Commit:
        return self.member.place(self.member.owned[self.topic, 0], position, f"p{position}")

    def effects(self) -> list[Any]:
        look = self.subscription.begin_transaction()
        rows = look.execute("SELECT id FROM effects ORDER BY id")
        look.rollback()
        return [id for (id,) in rows]

    def position(self) -> int | None:
        return self.world.position(self.group, self.topic)


def outcomes(shop: Shop, records: Sequence[Record]) -> list[Position | LogError]:
    """How an append ended, without waiting for other threads' appends."""
    told: list[Position | LogError] = []
    shop.world.log.append(shop.topic, records, told.extend)
    return told


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    world = World(Case("", CAPABILITIES), f"sqlite:///{tmp_path}/log.db?timeout=60")
    yield Shop(world)
    world.close()


def test_rows_and_position_are_committed_together(shop: Shop) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (?, :value)", [1, "one"])
    rows = transaction.execute("INSERT INTO effects VALUES (2, 'two') RETURNING id, value")
    assert rows == [(2, "two")]
    assert shop.position() is None
    transaction.commit([shop.place(2)])
    assert shop.effects() == [1, 2]
    assert shop.world.log.describe_group(shop.group).positions[shop.topic, 0] == Committed(2, "p2")
    for use in (lambda: transaction.execute("SELECT 1"), lambda: transaction.commit([])):
        with pytest.raises(LogError, match="ended"):
            use()
    transaction.rollback()


def test_a_rollback_leaves_nothing_and_is_harmless_twice(shop: Shop) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    transaction.rollback()
    transaction.rollback()
    shop.subscription.begin_transaction().rollback()
    assert shop.effects() == []
    assert shop.position() is None


def test_who_lost_the_partition_leaves_neither(shop: Shop) -> None:
    old = shop.place(5)
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'early')")
    transaction.rollback()
    shop.world.log.reset_offsets(shop.group, shop.topic, {0: Committed(3)}, force=True)
    late = shop.subscription.begin_transaction()
    late.execute("INSERT INTO effects VALUES (2, 'late')")
    with pytest.raises(Fenced, match=shop.group):
        late.commit([old])
    assert shop.effects() == []
    assert shop.position() == 3
    shop.member.until_delivered(10 + 7)  # it was told, and starts over from 3


def test_neither_an_older_version_nor_a_lower_position_moves_a_group_back(shop: Shop) -> None:
    first, second = shop.place(8), shop.place(8)._replace(progress="newer")
    for commit in (second, first, shop.place(5)):
        shop.subscription.commit([commit])
    assert shop.world.log.describe_group(shop.group).positions[shop.topic, 0] == Committed(
        8, "newer"
    )


def test_a_stale_place_does_not_go_backwards_but_the_rows_count(shop: Shop) -> None:
    early, late = shop.place(4), shop.place(8)
    shop.subscription.commit([late])
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    transaction.commit([early])
    assert shop.effects() == [1]
    assert shop.world.log.describe_group(shop.group).positions[shop.topic, 0] == Committed(8, "p8")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("COMMIT", "COMMIT"),
        ("  rollback", "ROLLBACK"),
        ("BEGIN", "BEGIN"),
        ("SAVEPOINT s", "SAVEPOINT"),
        ("ATTACH ':memory:' AS other", "ATTACH"),
        ("PRAGMA journal_mode = DELETE", "journal_mode"),
        ("PRAGMA writable_schema = 1", "writable_schema"),
        ("INSERT INTO effects VALUES (1, 'a'); SELECT 1", "one statement"),
        ("INSERT INTO effects VALUES (1, 'a'); COMMIT", "one statement"),
        ("UPDATE streams_places SET position = 0", "streams_places"),
        ("DELETE FROM main.streams_blocks", "streams_blocks"),
        ("INSERT OR REPLACE INTO STREAMS_META VALUES ('version', 2)", "streams_meta"),
        ("DROP TABLE streams_topics", "streams_topics"),
        ("ALTER TABLE streams_topics RENAME TO mine", "streams_topics"),
        ("CREATE INDEX mine ON streams_blocks (time)", "streams_blocks"),
        ("CREATE TABLE streams_mine (x)", "streams_mine"),
        (
            "CREATE TRIGGER mine AFTER INSERT ON streams_blocks BEGIN SELECT 1; END",
            "streams_blocks",
        ),
    ],
)
def test_what_is_not_the_handlers_is_refused_and_the_rest_goes_on(
    shop: Shop, sql: str, words: str
) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (0, 'kept')")
    with pytest.raises(ConfigError) as caught:
        transaction.execute(sql)
    assert words.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    transaction.commit([shop.place(1)])
    assert shop.effects() == [0]
    assert shop.position() == 1


def test_a_trigger_on_a_table_of_ones_own_cannot_reach_the_log(shop: Shop) -> None:
    first = shop.subscription.begin_transaction()
    first.execute(
        "CREATE TRIGGER sly AFTER INSERT ON effects BEGIN DELETE FROM streams_blocks; END"
    )
    first.commit([])
    second = shop.subscription.begin_transaction()
    with pytest.raises(ConfigError, match="streams_blocks"):
        second.execute("INSERT INTO effects VALUES (1, 'one')")
    second.rollback()
    assert len(shop.world.values(shop.topic)) == 10


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM streams_blocks",
        "PRAGMA table_info(effects)",
        "-- a comment\nSELECT 1; -- and another; one",
        "/* SELECT 2; */ SELECT 1 ;;",
        " ; SELECT 1",
        "-- nothing",
        "CREATE TABLE others (x REFERENCES effects)",
        "SELECT ';' || '; SELECT 2'",
    ],
)
def test_what_is_the_handlers_is_not_refused(shop: Shop, sql: str) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute(sql)
    transaction.commit([])


def test_what_sqlite_refuses_leaves_the_transaction_open(shop: Shop) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    with pytest.raises(LogError, match="UNIQUE") as caught:
        transaction.execute("INSERT INTO effects VALUES (1, 'again')")
    assert isinstance(caught.value.__cause__, apsw.ConstraintError)
    with pytest.raises(LogError, match="syntax"):
        transaction.execute("SELEKT 1")
    transaction.commit([shop.place(1)])
    assert shop.effects() == [1]


def test_a_statement_that_rolls_everything_back_ends_the_transaction(shop: Shop) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    with pytest.raises(LogError):
        transaction.execute("INSERT OR ROLLBACK INTO effects VALUES (1, 'again')")
    with pytest.raises(LogError, match="ended"):
        transaction.execute("INSERT INTO effects VALUES (2, 'outside of any transaction')")
    assert shop.effects() == []


def test_a_transaction_that_would_wait_for_its_own_thread_fails_at_once(shop: Shop) -> None:
    one, two = shop.subscription.begin_transaction(), shop.subscription.begin_transaction()
    one.execute("INSERT INTO effects VALUES (1, 'one')")
    with pytest.raises(Unavailable, match="this thread"):
        two.execute("INSERT INTO effects VALUES (2, 'two')")
    (outcome,) = outcomes(shop, [record(b"v")])
    assert isinstance(outcome, Unavailable)
    one.commit([shop.place(1)])
    two.execute("INSERT INTO effects VALUES (2, 'two')")
    two.commit([])
    assert shop.effects() == [1, 2]


def test_transactions_of_several_threads_take_turns(shop: Shop) -> None:
    def work(first: int) -> None:
        for id in range(first, first + 25):
            transaction = shop.subscription.begin_transaction()
            count = transaction.execute("SELECT count(*) FROM effects")[0][0]
            transaction.execute("INSERT INTO effects VALUES (?, ?)", (id, count))
            transaction.commit([])

    threads = [threading.Thread(target=work, args=[100 * n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look = shop.subscription.begin_transaction()
    rows = look.execute("SELECT CAST(value AS INTEGER) FROM effects ORDER BY 1")
    look.rollback()
    assert [count for (count,) in rows] == list(range(100))


def test_a_transaction_dropped_on_the_floor_does_not_block_the_file(shop: Shop) -> None:
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    del transaction
    gc.collect()
    assert shop.effects() == []
    shop.world.append(shop.topic, [b"more"])


def test_a_transaction_that_lasts_holds_up_other_writers_for_so_long(
    shop: Shop, tmp_path: Path
) -> None:
    hasty = open_log(f"sqlite:///{tmp_path}/log.db?timeout=0.1", clock=shop.world.clock)
    transaction = shop.subscription.begin_transaction()
    transaction.execute("INSERT INTO effects VALUES (1, 'one')")
    told: list[object] = []
    writer = threading.Thread(target=hasty.append, args=[shop.topic, [record(b"v")], told.extend])
    writer.start()
    writer.join()
    assert isinstance(told[0], Unavailable)
    assert "handler" in str(told[0])
    transaction.rollback()
    hasty.close()
