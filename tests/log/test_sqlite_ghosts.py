"""Members' rows in a SQLite file that make no sense: nobody waits for them for ever, and nothing
but an error of ours comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.clock import SYSTEM
from streams.errors import TopicMismatch
from streams.log.sqlite.log import SqliteLog
from streams.log.sqlite.member_locks import timeline_of
from streams.log.url import open_log
from tests.conformance.member import History, Member
from tests.conformance.records import append, record
from tests.servers.lifetime import until

PARTITIONS = 4
FAR = 1e300

ROWS: list[tuple[Any, Any, Any, Any]] = [
    # ID, topics, expires, timeline; None: as a living member of this machine would have it.
    ("ghost", None, FAR, None),
    ("ghost", None, float("inf"), None),
    ("ghost", None, "soon", None),
    ("ghost", None, b"\xff", None),
    ("ghost", None, FAR, "another machine's"),
    ("ghost", None, FAR, b"\xff\xfe"),
    ("ghost", "no JSON", FAR, None),
    ("ghost", "[" * 5_000, FAR, None),
    ("ghost", "{}", FAR, None),
    ("ghost", "[1, null]", FAR, None),
    ("ghost", b"\xff\xfe", FAR, None),
    (b"\xff\xfe", None, FAR, None),
    ("", "[]", -FAR, ""),
]


@pytest.fixture(params=["locks", "no locks"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteLog]:
    if request.param == "no locks":
        (tmp_path / "log.db-members").mkdir()  # it cannot be opened, so nothing can be locked
    log = open_log(f"sqlite:///{tmp_path}/log.db?lease=1")
    assert isinstance(log, SqliteLog)
    log.create_topic("t", PARTITIONS)
    append(log, "t", [record(b"%d" % n, partition=n) for n in range(PARTITIONS)])
    yield log
    log.close()


@pytest.mark.parametrize(
    ("no", "row"), [*((7, row) for row in ROWS), (1 << 62, ROWS[0]), (-5, ROWS[0])], ids=str
)
def test_a_ghost_keeps_nothing(log: SqliteLog, no: int, row: tuple[Any, ...]) -> None:
    first = Member(log, "g", ["t"], History(), "first", commit=False)
    first.until_owns(PARTITIONS)
    first.close()
    with log._database.write() as connection:
        connection.execute(
            "INSERT INTO streams_members VALUES (?, 'g', ?, ?, ?, ?)",
            (
                no,
                row[0],
                '["t"]' if row[1] is None else row[1],
                row[2],
                timeline_of(SYSTEM) if row[3] is None else row[3],
            ),
        )
        connection.execute("UPDATE streams_places SET owner = ?, epoch = 9", (no,))
    log.describe_group("g")
    member = Member(log, "g", ["t"], History(), "member")
    member.until_owns(PARTITIONS)
    member.until_delivered(PARTITIONS)
    until(lambda: len(log.describe_group("g").members) == 1, 60, "it alone counts")
    member.close()


def test_a_living_members_row_is_mended(log: SqliteLog) -> None:
    member = Member(log, "g", ["t"], History(), "member")
    member.until_owns(PARTITIONS)
    for column, value in (("topics", "x"), ("expires", "x"), ("timeline", "x"), ("id", b"\xff")):
        with log._database.write() as connection:
            connection.execute(f"UPDATE streams_members SET {column} = ?", (value,))
            connection.execute("UPDATE streams_groups SET generation = generation + 1")
        before = len(member._history.values())
        append(log, "t", [record(value if isinstance(value, bytes) else value.encode())])
        member._history.until(lambda before=before: len(member._history.values()) > before, "more")  # type: ignore[misc]
    other = Member(log, "g", ["t"], History(), "other")
    other.until_owns(2)
    member.until_owns(2)
    other.close()
    member.close()


@pytest.mark.parametrize("epoch", ["x", -3, 1e300, (1 << 63) - 1, b"\xff"])
def test_an_epoch_that_is_none_begins_anew(log: SqliteLog, epoch: Any) -> None:
    first = Member(log, "g", ["t"], History(), "first")
    first.until_delivered(PARTITIONS)
    first.close()
    with log._database.write() as connection:
        connection.execute("UPDATE streams_places SET epoch = ?", (epoch,))
    append(log, "t", [record(b"more", partition=0)])
    member = Member(log, "g", ["t"], History(), "member")
    member.until_delivered(1)
    member.do(lambda: None)
    assert (
        sum(place.position for place in log.describe_group("g").positions.values())
        == PARTITIONS + 1
    )
    member.close()


@pytest.mark.parametrize("position", ["x", b"\xff"])
def test_a_position_that_is_none_is_said(log: SqliteLog, position: Any) -> None:
    first = Member(log, "g", ["t"], History(), "first")
    first.until_delivered(PARTITIONS)
    first.close()
    with log._database.write() as connection:
        connection.execute("UPDATE streams_places SET position = ? WHERE no = 2", (position,))
    assert (
        len(log.describe_group("g").positions) == PARTITIONS - 1
    )  # whoever looks is shown the rest
    member = Member(log, "g", ["t"], History(), "member")
    with pytest.raises(TopicMismatch, match=r"log\.db: t/2: .*streams_places.*streams reset g t"):
        member.join()
    member.subscription.close()
