"""The topic of parked keys, when anybody writes anything into it.

What stands there is read by the owner of the partition, by its successor and by whoever looks at
closed keys. None of it stops them, and no message of the source is lost by it: not by bytes that
are no record of ours, and not by an owner record, whatever it names. (Whoever writes in the name of
the epoch in force, or drops a message with a command, does what an owner or an operator may do:
docs/dead-letters.md says who must not be allowed to write.)
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.log.appending import append_and_wait
from streams.log.protocol import Committed
from streams.message import ID, REDRIVE, Record
from streams.parking import read_state
from streams.parking import records as parking_records
from streams.parking.records import (
    NO_EPOCH,
    ParkingState,
    owner_record,
    parse_record,
    read_original,
)
from tests.conformance.stage import Stage
from tests.patterns.test_sequenced import World

WHATS = ["owner", "dead", "waits", "done", "retry", "edit", "drop", "", "Owner", "x" * 300]

VALUES = st.one_of(
    st.sampled_from(
        [
            None, b"", b"-", b"-1", b"1.5", b"1e400", b"nan", b"inf", b"5" * 5_000, b"9" * 39,
            b"9" * 41, b"\xff\xfe", b"\x00", b"0/x", b"/", b"0/", b"a" * 65, b"a" * 129,
            b"\x1b[2J\n\r", "\N{ARABIC-INDIC DIGIT THREE}".encode(), b"99999999999999999999/x",
        ]
    ),
    st.binary(max_size=40).filter(lambda value: not value.isdigit()),
)  # fmt: skip
"""No position of a real record: naming the head is what a command is for."""

NAMES = [
    parking_records.OWNER, parking_records.REPLACES, parking_records.OFFSET,
    parking_records.TARGET, parking_records.AFTER_RESET, parking_records.TIME,
    parking_records.MESSAGE_ID,
    REDRIVE, "__streams.errors.message", "h",
]  # fmt: skip

HEADERS = st.tuples(
    st.sampled_from([parking_records.KIND, "__streams.parked.else"]),
    st.one_of(st.sampled_from([what.encode() for what in WHATS]), VALUES),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8),
).map(lambda found: [(found[0], found[1]), *found[2]])

RECORDS = st.builds(
    lambda key, value, headers: Record(value, key, uuid4().hex, headers, 0),
    st.sampled_from([None, b"k", b"l", b"", b"\xff"]),
    st.one_of(st.none(), st.binary(max_size=20)),
    HEADERS,
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, b"a", b"b"]), HEADERS), max_size=12))
def test_whatever_stands_there_is_read(found: list[tuple[bytes | None, Any]]) -> None:
    states = [ParkingState(keep_from=0), ParkingState("0/me", keep_from=0), ParkingState("older")]
    for position, (key, headers) in enumerate(found):
        record = parse_record(headers)
        message = read_original(headers)
        assert message.id is None or (ID, message.id.encode("utf-8", "surrogateescape")) in (
            message.headers
        )
        if record is None:
            continue
        assert record.writer.isascii()
        for each in states:
            each.apply(position, key, record)
    for each in states:
        floor, epoch = each.floor(len(found), 0)
        assert 0 <= floor <= len(found)
        # It can be stored, and the owner after this one can name it.
        assert epoch.isascii()
        assert len(epoch) <= parking_records.MAX_EPOCH
        follow = parse_record(owner_record("next", each.epoch, 0, after_reset=False).headers)
        assert follow is not None
        each.apply(len(found), None, follow)
        assert each.epoch == f"{len(found)}/next"


def test_a_name_that_passes_for_nobody_or_for_an_epoch_is_none() -> None:
    for owner in (NO_EPOCH, "1/x", "", "a" * 65, "\N{SNOWMAN}"):
        headers = [(parking_records.KIND, b"owner"), (parking_records.OWNER, owner.encode())]
        assert parse_record(headers) is None


async def test_a_group_goes_on_whatever_is_written_to_its_parked_keys(stage: Stage) -> None:
    world = World(stage, partitions=1)
    name = f"{stage.topic_name}.{stage.group}.parked"

    def write() -> None:
        @settings(
            max_examples=20, deadline=None, database=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )  # fmt: skip
        @given(st.lists(RECORDS, min_size=5, max_size=20))
        def some(records: list[Record]) -> None:
            found = append_and_wait(stage.anchor, name, records)
            assert not [each for each in found if isinstance(each, BaseException)], found

        some()

    def replace() -> None:
        in_force = read_state(stage.anchor, name, 0).epoch
        append_and_wait(
            stage.anchor, name, [owner_record("stranger", in_force, 0, after_reset=True)]
        )

    def move_the_floor(beyond: int, epoch: str) -> None:
        end = stage.anchor.watermarks(name, 0)[1]
        stage.anchor.reset_offsets(name, name, {0: Committed(end + beyond, epoch)}, force=True)

    async with world.app:
        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        await asyncio.to_thread(write)
        await stage.publish(world.topic, 2, key="k")
        await stage.publish(world.topic, 100, key="open")
        await world.closed(1, 2)
        await asyncio.to_thread(replace)
        await stage.publish(world.topic, 3, key="k")
        await world.closed(1, 3)
        await stage.committed(world.app)
        assert world.app.health().processors["handle"].error is None
    # What stands there, and a floor that something else has written, are read at the beginning.
    await asyncio.to_thread(write)
    for beyond, epoch in ((1_000, ""), (0, "a floor?"), (0, "")):
        await asyncio.to_thread(move_the_floor, beyond, epoch)
        between = World(stage, partitions=1)
        async with between.app as app:
            stats = app.stats
            await stage.until(lambda s=stats: s().processors["handle"].partitions == 2, "owned")  # type: ignore[misc]
    again = World(stage, partitions=1)
    async with again.app:
        await stage.publish(again.topic, 4, key="k")
        await again.closed(1, 4)
        await again.keys.retry("k")
        await stage.until(lambda: len(stage.seen.by_key()["k"]) >= 5, "all of the key are handled")
        await again.closed(0)
        await stage.publish(again.topic, 5, key="k")
        await stage.until(lambda: 5 in stage.seen.values, "the key is open")
    assert list(dict.fromkeys(stage.seen.by_key()["k"])) == [0, 1, 2, 3, 4, 5]
    assert "open" in stage.seen.by_key()
