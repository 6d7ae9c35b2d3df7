"""**replay**: any range again, and no live group is disturbed."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

from stream_codecs import DecodeError
from streams import InvalidValue, NotFound, NotRunning
from streams.message import Record
from tests.conformance.stage import QUICK, Stage


async def test_all_of_it_in_order_per_partition(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=3)
    async with app.connected():
        await stage.publish(topic, *range(500), key=lambda value: f"k{value % 10}")
        one = await asyncio.to_thread(lambda: [message.value for message in topic.read()])
        two = [message.value async for message in topic.read()]
    for found in (one, two):
        assert sorted(found) == list(range(500))
        for key in range(10):
            mine = [value for value in found if value % 10 == key]
            assert mine == sorted(mine)


async def test_ranges(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        positions = await stage.publish(topic, *range(20))

        def read(**range_: object) -> list[int]:
            with topic.read(**range_) as reading:  # type: ignore[arg-type]
                return [message.value for message in reading]

        def check() -> None:
            offset = positions[5].offset
            assert read(start=offset) == list(range(5, 20))
            assert read(start=positions[5], end=positions[8]) == [5, 6, 7]
            assert read(end=offset) == list(range(5))
            assert read(start=-3) == [17, 18, 19]
            assert read(start=stage.anchor.format_offset(offset)) == list(range(5, 20))
            assert read(start="latest") == []
            assert read(start=positions[8], end=positions[5]) == []
            now = datetime.now(timezone.utc)
            assert read(start=now + timedelta(days=1)) == []
            assert read(start=now - timedelta(days=1)) == list(range(20))
            assert read(start=timedelta(days=1)) == list(range(20))
            assert read(end=now - timedelta(days=1)) == []

        await asyncio.to_thread(check)


async def test_by_key_finds_it_in_whatever_partition(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=4)
    async with app.connected():
        await stage.publish(topic, *range(100), key=lambda value: f"k{value % 10}")
        strayed = Record(b"1000", b"k3", "strayed", partition=(await home(stage, "k3") + 1) % 4)
        await app.publisher.publish(topic.name, strayed)
        found = [message.value async for message in topic.read(key="k3")]
    assert sorted(found) == [*range(3, 100, 10), 1000]


async def home(stage: Stage, key: str) -> int:
    """The partition a key was put in."""
    app = stage.app()
    topic = stage.topic(app, partitions=4)
    async with app.connected():
        async for message in topic.read(key=key):
            return message.partition
    raise AssertionError("nothing there")


async def test_the_end_is_fixed_when_it_is_made(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    async with app.connected():
        await stage.publish(topic, *range(10))
        reading = topic.read()
        await stage.publish(topic, *range(10, 20))
        assert sorted([message.value async for message in reading]) == list(range(10))


async def test_no_group_is_disturbed(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(100), key=str)
        for _ in range(5):
            assert len([message async for message in topic.read()]) == 100
        await stage.handled(100)
        await stage.committed(app)
        before = stage.places(app)
        members = app.log.describe_group(stage.group).members
        assert len([message async for message in topic.read()]) == 100
        assert stage.places(app) == before
        assert app.log.describe_group(stage.group).members == members
    assert sorted(stage.seen.values) == list(range(100))


async def test_what_cannot_be_decoded(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await topic.publish(1)
        await app.publisher.publish(topic.name, Record(b"{bad", None, "bad"))
        await topic.publish(2)
        with pytest.raises(DecodeError):
            [message async for message in topic.read()]
        reading = topic.read(errors="skip")
        assert [message.value async for message in reading] == [1, 2]
        assert reading.skipped == 1


async def test_bad_ranges_are_refused(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    with pytest.raises(NotRunning):
        topic.read()
    async with app.connected():
        with pytest.raises(InvalidValue, match="say which"):
            topic.read(start=5)
        with pytest.raises(NotFound, match="partitions 0 to 1, not 7"):
            topic.read(partition=7)
        with pytest.raises(InvalidValue, match="time zone"):
            topic.read(start=datetime(2024, 1, 1))  # noqa: DTZ001
        with pytest.raises(InvalidValue):
            topic.read(start="yesterday", partition=0)
