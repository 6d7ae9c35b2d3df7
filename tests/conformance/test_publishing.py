"""Publishing: durable when it returns, in order, batched, and clear when it fails."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from uuid import UUID

import pytest

from stream_codecs import EncodeError
from streams import ConfigError, NotRunning, Position, Streams, Topic
from tests.conformance.stage import QUICK, Stage


async def test_it_returns_the_position_once_durable(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        first = await topic.publish(1)
        _, end = stage.anchor.watermarks(topic.name, 0)
        second = await topic.publish(2)
    assert (first.topic, first.partition) == (topic.name, 0)
    assert first.offset < end <= second.offset


async def test_many_at_once_keep_call_order_per_key(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=3)
    async with app.connected():
        await asyncio.gather(*(topic.publish(n, key=f"k{n % 5}") for n in range(1_000)))
        found = [message async for message in topic.read()]
    for key in range(5):
        mine = [message.value for message in found if message.key == f"k{key}"]
        assert mine == list(range(key, 1_000, 5))
    assert len({message.id for message in found}) == 1_000
    assert all(UUID(message.id).version == 7 for message in found)


async def test_metadata_travels(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    when = datetime(2013, 1, 1, 10, 17, tzinfo=timezone.utc)
    async with app.connected():
        await topic.publish(1, key="k", id="m1", headers={"traceparent": "x"}, timestamp=when)
        await topic.publish(2)
        one, two = sorted([m async for m in topic.read()], key=lambda message: message.value)
    assert (one.key, one.id, one.timestamp) == ("k", "m1", when)
    assert one.headers == {"ce_id": "m1", "traceparent": "x", "ce_time": when.isoformat()}
    assert two.key is None
    assert abs((two.timestamp - datetime.now(timezone.utc)).total_seconds()) < 3_600


@pytest.mark.parametrize("headers", [{}, {"a": "1"}, {"a": "1", "b": ""}])
async def test_one_header_is_read_alone(stage: Stage, headers: dict[str, str]) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await topic.publish(1, id="m1", headers=headers)
        await topic.publish(2, id="m2", headers={"b": "other", "traceparent": "x"})
        messages = [message async for message in topic.read()]
    one, two = (
        [message.header(name) for name in ("ce_id", "a", "b", "traceparent")]
        for message in messages
    )
    assert one == [b"m1", *(headers[n].encode() if n in headers else None for n in "ab"), None]
    assert two == [b"m2", None, b"other", b"x"]


@pytest.mark.parametrize(
    ("value", "options", "match"),
    [
        ("text", {}, "int"),
        (1, {"key": 1.5}, "key of type float"),
        (1, {"id": ""}, "message ID"),
        (1, {"headers": {"ce_id": "x"}}, "give it as id="),
        (1, {"headers": {"n": 5}}, "str"),
        (1, {"timestamp": datetime(2024, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
async def test_what_does_not_fit_is_refused_and_not_written(
    stage: Stage, value: object, options: dict[str, object], match: str
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        with pytest.raises(EncodeError, match=match):
            await topic.publish(value, **options)  # type: ignore[arg-type]
        assert await topic.publish_many([]) == []
        with pytest.raises(EncodeError):
            await topic.publish_many([1, 2, "three"])
        assert [message async for message in topic.read()] == []


async def test_only_in_a_running_app(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    with pytest.raises(NotRunning, match="async with app"):
        await topic.publish(1)
    async with app.connected():
        await topic.publish(1)
    with pytest.raises(NotRunning):
        await topic.publish(1)


def test_from_synchronous_code(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)

    @app.processor(topic, group=stage.group, flow=QUICK)
    def handle(value: int) -> None:
        if value < 3:
            app.wait(topic.publish(value + 1))
        stage.seen.handled.append((None, value))

    with app.background():
        app.wait(topic.publish(1))

        async def handled() -> None:
            await stage.handled(3)

        app.wait(handled())
    assert stage.seen.values == [1, 2, 3]


async def test_waiting_on_its_own_loop_is_refused(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    async with app.connected():
        with pytest.raises(ConfigError, match="use await"):
            app.wait(topic.publish(1))


async def test_from_another_loop(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    async with app.connected():
        position = await asyncio.to_thread(lambda: asyncio.run(publish(topic)))
    assert position.topic == topic.name


async def publish(topic: Topic[int]) -> Position:
    return await topic.publish(1)


async def test_partitions_must_agree(stage: Stage) -> None:
    from streams import ConfigError, TopicMismatch

    app = stage.app()
    topic = stage.topic(app, partitions=2)
    async with app.connected():
        await topic.publish(1)
    other: Streams = stage.app()
    stage.topic(other, partitions=3)
    with pytest.raises(TopicMismatch, match=r"has 2 partitions, but is declared with 3"):
        async with other.connected():
            pass
    with pytest.raises(ConfigError, match="and again with partitions=4"):
        stage.topic(other, partitions=4)
