"""Writing: what was acknowledged stands there, in order, byte for byte."""

from __future__ import annotations

import itertools
import threading

import pytest

from streams.errors import LogError
from streams.message import ID, REDRIVE, SOURCE, Headers, Position, Record, make_identity
from tests.conformance.records import append, record
from tests.conformance.world import World

RECORDS = [
    record(b"plain", b"key"),
    record(b"no key"),
    record(None, b"tombstone"),
    record(b"", b"empty value"),
    record(b"empty key", b""),
    record(b"\xff\x00\xfe", b"\xc3\x28 not UTF-8 \x80"),
    record(bytes(range(256)) * 4000, b"almost one MiB"),  # which is the most Kafka takes at first
    record(b"id", b"k", id="ünïcode \N{SNOWMAN} / with spaces"),
    record(b"h", b"k", headers=[("ce_type", b"t"), ("a", b"1"), ("b", b""), ("a", b"2")]),
    record(b"h", b"k", headers=[("ü", b"\xff\xfe"), ("nothing", None)]),
]


def shape(record: Record) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    return record.key, record.value, [(ID, record.id.encode()), *record.headers]


def test_what_is_read_is_what_was_written(world: World) -> None:
    topic = world.topic()
    positions = world.append(topic, RECORDS)
    found = [
        (batch.keys[i], batch.values[i], list(batch.headers(i)))
        for batch in world.read(topic)
        for i in range(len(batch))
    ]
    assert found == [shape(record) for record in RECORDS]
    assert [o for batch in world.read(topic) for o in batch.offsets] == [
        p.offset for p in positions
    ]


def test_a_subscription_gives_the_same_bytes_as_a_reader(world: World) -> None:
    topic = world.topic()
    world.append(topic, RECORDS)
    member = world.member(world.group(), topic)
    member.until_delivered(len(RECORDS))
    assert member.delivered() == [record.value for record in RECORDS]
    assert member.headers == [shape(record)[2] for record in RECORDS]
    assert member.keys == [record.key for record in RECORDS]


def test_positions_come_in_the_order_of_the_records_and_ascend(world: World) -> None:
    topic = world.topic(3)
    records = [record(b"%d" % i, b"k%d" % (i % 7)) for i in range(100)]
    positions = world.append(topic, records) + world.append(topic, [record(b"100", b"k0")])
    for partition in range(3):
        mine = [position for position in positions if position.partition == partition]
        assert mine == sorted(mine)
        assert len(mine) == len(set(mine)) > 0
        values = [b"%d" % i for i, position in enumerate(positions) if position in set(mine)]
        assert world.values(topic, partition) == values
    assert {position.topic for position in positions} == {topic}


def test_a_key_has_one_partition_and_keys_have_many(world: World) -> None:
    topic = world.topic(4)
    placed: dict[bytes | None, set[int]] = {}
    for _ in range(3):
        records = [record(b"v", b"key %d" % i) for i in range(50)]
        for item, position in zip(records, world.append(topic, records), strict=True):
            placed.setdefault(item.key, set()).add(position.partition)
    assert all(len(partitions) == 1 for partitions in placed.values())
    assert set().union(*placed.values()) == {0, 1, 2, 3}


def test_a_keyless_message_published_again_lands_beside_its_twin(world: World) -> None:
    topic = world.topic(4)
    records = [record(b"v", id=f"id {i}") for i in range(50)]
    once, again = world.append(topic, records), world.append(topic, records)
    assert [position.partition for position in once] == [position.partition for position in again]
    assert {position.partition for position in once} == {0, 1, 2, 3}


def test_a_partition_that_is_asked_for_is_used(world: World) -> None:
    topic = world.topic(4)
    positions = world.append(topic, [record(b"v", b"same key", partition=p) for p in (3, 0, 2, 1)])
    assert [position.partition for position in positions] == [3, 0, 2, 1]


def test_one_record_that_cannot_be_written_does_not_stop_the_others(world: World) -> None:
    topic = world.topic(2)
    records = [record(b"1", partition=0), record(b"2", partition=9), record(b"3", partition=0)]
    first, wrong, last = world.outcomes(topic, records)
    assert isinstance(wrong, LogError)
    assert isinstance(first, Position)
    assert isinstance(last, Position)
    assert world.values(topic) == [b"1", b"3"]


def test_nothing_to_write_is_told_at_once(world: World) -> None:
    assert list(world.outcomes(world.topic(), [])) == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), "a"),
        ([("other", b"x")], "a"),
        ([(SOURCE, b"shop")], make_identity("a", "shop")),
        ([(REDRIVE, b"2")], make_identity("a", None, "2")),
        ([(SOURCE, b"shop"), (REDRIVE, b"1")], make_identity("a", "shop", "1")),
    ],
)
def test_identities_are_of_id_source_and_redrive(
    world: World, headers: Headers, expected: str
) -> None:
    topic = world.topic()
    world.append(topic, [record(b"v", id="a", headers=headers)])
    (batch,) = world.read(topic)
    beside = expected.removeprefix("a")
    assert batch.identity_suffixes() == ([beside] if beside else None)
    assert batch.ids == [expected]
    assert batch.id(0) == "a"


def test_what_identities_have_beside_their_ids_stands_where_the_message_does(
    world: World,
) -> None:
    topic = world.topic()
    marked = [(), [(REDRIVE, b"2")], [("other", b"x")], [(SOURCE, b"shop")]]
    world.append(topic, [record(b"v", id=f"m{n}", headers=h) for n, h in enumerate(marked)])
    (batch,) = world.read(topic)
    assert batch.identity_suffixes() == ["", "\0\x002", "", "\0shop\x000"]


def test_writers_at_the_same_time_lose_and_shuffle_nothing(world: World) -> None:
    topic, handles = world.topic(), [world.log, world.open()]
    start = threading.Barrier(6)

    def write(writer: int) -> None:
        start.wait()
        for round in range(10):
            values = [b"%d:%d" % (writer, round * 20 + i) for i in range(20)]
            append(handles[writer % 2], topic, [record(value) for value in values])

    threads = [threading.Thread(target=write, args=[writer]) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written: dict[bytes, list[int]] = {}
    for value in world.values(topic):
        assert value is not None
        writer, _, number = value.partition(b":")
        written.setdefault(writer, []).append(int(number))
    assert written == {b"%d" % writer: list(range(200)) for writer in range(6)}


def test_log_times_are_those_of_writing_and_never_go_back(world: World) -> None:
    topic = world.topic()
    before = world.clock.time()
    for _ in range(5):
        world.append(topic, [b"v"])
        if world.manual:
            world.manual.advance(1.5)
    after = world.clock.time()
    times = [batch.time(i) for batch in world.read(topic) for i in range(len(batch))]
    assert times == sorted(times)
    apart = 0.0 if world.manual else 3_600.0  # a server's clock is its own
    assert before - apart <= times[0] <= times[-1] <= after + apart


@pytest.mark.needs("append_once")
def test_one_id_written_twice_leaves_one_entry(world: World) -> None:
    topic = world.topic(2)
    once = world.append(topic, [record(b"v", b"k", id="same"), record(b"w", b"k", id="other")])
    again = world.append(topic, [record(b"v", b"k", id="same")])
    assert again == once[:1]
    both = list(itertools.chain(world.values(topic, 0), world.values(topic, 1)))
    assert both == [b"v", b"w"]
