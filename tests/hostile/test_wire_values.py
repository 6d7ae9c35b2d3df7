"""Numbers and times of the wire that Python cannot hold: nobody dies of them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from streams import DeadLetters, EventBus, Message, Retry, wire
from streams.derived_records import ERROR_ATTEMPTS
from streams.message import REDRIVE, TIME
from tests.conformance.stage import QUICK
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written

pytestmark = pytest.mark.anyio

YEAR_11476 = 300_000_000_000_000
"""In milliseconds: as a Redis entry ID, 300000000000000-0."""

COUNTS = [b"9" * 5_000, b"9" * 4_000, b"-1", "٣".encode(), b"1e3", b"\xff", b""]


async def test_counts_in_headers_are_bounded(stage: Ground) -> None:
    """The redrive count and the attempts of messages that wait in the log."""
    app = stage.app()
    stage.create(stage.topic_name)
    topic = stage.topic(app, int, partitions=1)

    def act(value: int, message: Message[int]) -> None:
        if value >= 0:
            raise ValueError("again")

    app.processor(
        topic, group=stage.group, retry=Retry(2, delay=0.001, in_order=False), flow=QUICK
    )(stage.recorder(act))
    stage.write(
        stage.topic_name,
        [
            Written(b"%d" % n, b"k%d" % n, [(b"ce_id", b"m%d" % n), (name.encode(), count)])
            for n, (name, count) in enumerate(
                (name, count) for name in (REDRIVE, ERROR_ATTEMPTS) for count in COUNTS
            )
        ],
    )
    async with app:
        await stage.until(lambda: stage.at_end(app), "all are settled")
        await topic.publish(-1)
        await stage.handled(1)
        assert app.health().ok
        await stage.until(
            lambda: (
                len(stage.seen.attempts) == 2 * len(COUNTS) + 1
                and all(len(each) == 2 for value, each in stage.seen.attempts.items() if value >= 0)
            ),
            "each was tried twice",
        )
    assert {tuple(each) for value, each in stage.seen.attempts.items() if value >= 0} == {(1, 2)}


async def test_what_came_back_with_a_count_that_is_none_is_counted_from_the_start(
    stage: Ground,
) -> None:
    app = stage.app()
    stage.create(stage.topic_name)
    topic = stage.topic(app, int, partitions=1)
    app.processor(topic, group=stage.group, retry=Retry(2, delay=0.001, durable=True), flow=QUICK)(
        stage.recorder()
    )
    back = DeadLetters().retry(stage.topic_name, stage.group)
    stage.create(back)
    stage.write(
        back,
        [
            Written(
                b"%d" % n, b"k%d" % n, [(b"ce_id", b"m%d" % n), (ERROR_ATTEMPTS.encode(), count)]
            )
            for n, count in enumerate(COUNTS)
        ],
    )
    async with app:
        await stage.handled(len(COUNTS))
        assert app.health().ok
    assert {tuple(each) for each in stage.seen.attempts.values()} == {(1,)}


@pytest.mark.only("kafka", "redis")
async def test_a_time_beyond_the_calendar(stage: Ground) -> None:
    app = stage.app()
    stage.create(stage.topic_name)
    topic = stage.topic(app, int, partitions=1)
    times: dict[int, datetime] = {}

    def act(value: int, message: Message[int]) -> None:
        times[value] = message.timestamp
        if value == 1 and message.attempt == 1:
            raise ValueError("again")

    app.processor(
        topic, group=stage.group, retry=Retry(2, delay=0.001, in_order=False), flow=QUICK
    )(stage.recorder(act))
    stage.write(
        stage.topic_name,
        [
            Written(b"1", b"k1", [(b"ce_id", b"m1")], YEAR_11476),
            Written(b"2", b"k2", [(b"ce_id", b"m2")], YEAR_11476),
            Written(b"3", b"k3", [(b"ce_id", b"m3"), (TIME.encode(), b"9" * 5_000)], YEAR_11476),
        ],
    )
    async with app:
        await stage.handled(3)
        assert app.health().ok
        found = await asyncio.to_thread(lambda: [each.timestamp for each in topic.read()])
    assert set(found) == {wire.LATEST_TIME}
    assert times == {1: wire.LATEST_TIME, 2: wire.LATEST_TIME, 3: wire.LATEST_TIME}


@pytest.mark.only("kafka", "redis")
@pytest.mark.parametrize("group", [None, "audit"], ids=["ephemeral", "durable"])
async def test_a_time_beyond_the_calendar_on_a_bus(stage: Ground, group: str | None) -> None:
    app = stage.app()
    stage.create(stage.topic_name)
    bus = EventBus(app, stage.topic_name, partitions=1)
    got: list[Any] = []

    async def take(event: Any) -> None:
        got.append((event.data, event.timestamp))

    bus.subscribe("order", take, group=group and f"{group}-{stage.group}")
    async with app:
        headers = [(b"ce_id", b"m1"), (b"ce_type", b"order")]
        late = [(b"ce_id", b"m2"), (b"ce_type", b"order"), (TIME.encode(), b"11476-01-01T00:00Z")]
        stage.write(
            stage.topic_name,
            [Written(b'"x"', None, headers, YEAR_11476), Written(b'"y"', None, late, YEAR_11476)],
        )
        await bus.publish("order", "z")
        await stage.until(lambda: len(got) == 3, "all are handled")
        assert app.health().ok
    assert got[:2] == [("x", wire.LATEST_TIME), ("y", wire.LATEST_TIME)]
