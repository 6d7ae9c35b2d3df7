"""Positions: where a partition begins and ends, and how to find one's way in between."""

from __future__ import annotations

import threading

import pytest

from streams.errors import ConfigError, Unavailable
from tests.conformance.records import record
from tests.conformance.world import World


def written(world: World, count: int) -> tuple[str, list[int]]:
    topic = world.topic()
    positions = world.append(topic, [b"%d" % i for i in range(count)])
    return topic, [position.offset for position in positions]


def test_bounds_enclose_what_is_there(world: World) -> None:
    topic = world.topic()
    first, end = world.log.watermarks(topic, 0)
    assert world.values(topic, start=first, end=end) == []
    offsets = [position.offset for position in world.append(topic, [b"1", b"2", b"3"])]
    assert offsets[0] >= end
    first, end = world.log.watermarks(topic, 0)
    assert first <= offsets[0]
    assert offsets[-1] < end
    assert world.append(topic, [b"4"])[0].offset >= end


def test_a_reader_starts_where_it_is_told_and_stops_before_its_end(world: World) -> None:
    topic, offsets = written(world, 10)
    assert world.values(topic, start=offsets[3], end=offsets[7]) == [b"3", b"4", b"5", b"6"]
    assert world.values(topic, start=offsets[3] + 1, end=offsets[4] + 1) == [b"4"]
    assert world.values(topic, start=offsets[5], end=offsets[5]) == []


def test_a_reader_gives_at_most_what_is_asked_and_knows_its_end(world: World) -> None:
    topic, offsets = written(world, 10)
    reader = world.log.reader(topic, 0, offsets[0], offsets[9] + 1)
    sizes = []
    while (batch := reader.read(4)) is not None:
        sizes.append(len(batch))
    assert max(sizes) <= 4
    assert sum(sizes) == 10
    assert reader.read(4) is None
    reader.close()


def test_a_reader_waits_for_what_is_still_to_come(world: World) -> None:
    topic, _ = written(world, 1)
    end = world.log.watermarks(topic, 0)[1]
    # Where the next message will stand exactly is the log's choice: surely before twice the end.
    reader = world.log.reader(topic, 0, end, 2 * end)
    with pytest.raises(Unavailable):
        reader.read(10, 0.05)
    later = threading.Thread(target=world.append, args=[topic, [b"came"]])
    later.start()
    batch = reader.read(10, 60.0)
    later.join()
    assert batch is not None
    assert batch.values == [b"came"]
    reader.close()


def test_reading_disturbs_no_group(world: World) -> None:
    topic, offsets = written(world, 10)
    group = world.group()
    world.log.initialize_offsets(group, topic, {0: offsets[4]})
    assert len(world.values(topic)) == 10
    assert world.position(group, topic) == offsets[4]


def test_at_finds_the_first_message_taken_at_a_time_or_later(world: World) -> None:
    topic = world.topic()
    for number in range(6):
        world.append(topic, [b"%d" % number])
        if world.manual and number % 2:
            world.manual.advance(10)
    found = [
        (batch.time(i), batch.offsets[i]) for batch in world.read(topic) for i in range(len(batch))
    ]
    for moment, _ in found:
        expected = next(offset for time, offset in found if time >= moment)
        assert world.log.offset_for_time(topic, 0, moment) <= expected
        assert world.values(topic, start=world.log.offset_for_time(topic, 0, moment)) == [
            b"%d" % number for number, (time, _) in enumerate(found) if time >= moment
        ]
    assert world.log.offset_for_time(topic, 0, found[0][0] - 1000) <= found[0][1]
    assert (
        world.log.offset_for_time(topic, 0, found[-1][0] + 1000)
        == world.log.watermarks(topic, 0)[1]
    )


def test_back_counts_messages_and_stops_at_the_first(world: World) -> None:
    topic, offsets = written(world, 10)
    end = world.log.watermarks(topic, 0)[1]

    def left(position: int, count: int) -> int:
        return len(world.values(topic, start=world.log.offset_before(topic, 0, position, count)))

    assert left(end, 0) == 0
    assert left(end, 3) == 3
    assert left(offsets[5], 2) == 7
    assert left(end, 10) == left(end, 11) == left(end, 10**6) == 10
    assert left(offsets[0], 1) == 10


def test_lag_is_the_number_of_messages_or_unknown(world: World) -> None:
    topic, offsets = written(world, 10)
    first, end = world.log.watermarks(topic, 0)
    assert world.log.lag(topic, 0, end) in (0, None)
    assert world.log.lag(topic, 0, offsets[7]) in (3, None)
    assert world.log.lag(topic, 0, first) in (10, None)


def test_an_offset_is_written_and_read_alike(world: World) -> None:
    _, offsets = written(world, 3)
    for offset in offsets:
        assert world.log.parse_offset(world.log.format_offset(offset)) == offset
    for wrong in ("", "x", "-1", "1.5", "٣"):
        with pytest.raises(ConfigError):
            world.log.parse_offset(wrong)


def test_partitions_are_apart(world: World) -> None:
    topic = world.topic(2)
    empty = world.log.watermarks(topic, 1)
    world.append(topic, [record(b"v", partition=0) for _ in range(5)])
    assert world.log.watermarks(topic, 1) == empty
    assert world.log.offset_before(topic, 1, empty[1], 3) == empty[0]
