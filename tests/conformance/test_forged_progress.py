"""What is stored of a group is not believed blindly: nothing is skipped that was not settled,
what does not fit the log is told, and the group goes on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from streams import Streams
from streams.engine.progress import encode_progress
from streams.health import ProcessorHealth, ProcessorStats
from streams.log.protocol import Committed
from tests.conformance.stage import QUICK, Stage

TIMES = ("redis", "valkey", "cluster")
"""Where an offset is a time in milliseconds and a number within it."""


def far(stage: Stage) -> int:
    """From a log's end to beyond whatever these tests may append."""
    return (100 << 64) * 365 * 86_400_000 if stage.case.name in TIMES else 1 << 40


async def forge(stage: Stage, place: Committed) -> None:
    """Store a place as anybody could."""
    await asyncio.to_thread(stage.anchor.reset_offsets, stage.group, stage.topic_name, {0: place})


async def begun(stage: Stage) -> tuple[int, int]:
    """A topic of ten messages; its bounds."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(topic, *range(10), key=str)
    return stage.anchor.watermarks(stage.topic_name, 0)


async def go_on(stage: Stage, *more: int) -> tuple[ProcessorStats, ProcessorHealth]:
    """A member of the group, which is given more messages, up to its commit at the end."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(stage.recorder())
    async with app:
        await stage.until(lambda: owns(app), "it owns its partitions")
        await stage.publish(topic, *more, key=str)
        await stage.until(lambda: set(more) <= set(stage.seen.values), "what is new is handled")
        await stage.committed(app)
        return app.stats().processors["handle"], app.health().processors["handle"]


def owns(app: Streams) -> bool:
    return app.stats().processors["handle"].partitions >= 1


@pytest.mark.parametrize("step", ["one", "far"])
async def test_a_position_beyond_the_end_is_told_and_skips_nothing(
    stage: Stage, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, end = await begun(stage)
    await forge(stage, Committed(end + (1 if step == "one" else far(stage))))
    with caplog.at_level(logging.ERROR, logger="streams"):
        stats, health = await go_on(stage, *range(10, 20))
    assert sorted(stage.seen.values) == list(range(20))
    assert "beyond the log's end" in caplog.text
    assert (stats.losses, health.losses) == (1, 1)
    assert health.ok
    place = stage.places(stage.opened())[0]
    assert place.position == stage.anchor.watermarks(stage.topic_name, 0)[1]
    # It stands where it should from now on: nothing is told again, nor handled again.
    stats, _ = await go_on(stage, 20)
    assert stats.losses == 0
    assert sorted(stage.seen.values) == list(range(21))


async def test_what_is_said_to_be_settled_beyond_the_end_is_handled_when_it_comes(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first, end = await begun(stage)
    forged = encode_progress(first, first, [(end, end + far(stage))])
    await forge(stage, Committed(first, forged.progress))
    with caplog.at_level(logging.WARNING, logger="streams"):
        stats, health = await go_on(stage, *range(10, 20))
    assert sorted(stage.seen.values) == list(range(20))
    assert "settled messages beyond the log's end" in caplog.text
    assert (stats.rejected, health.rejected) == (1, 1)
    assert stats.losses == 0


@pytest.mark.parametrize(
    "text",
    [
        "1r",
        "1rA" + "g" * 4_000 + "B",
        "1rA~" + "_" * 12 + "QBB",
        "1rBBBB" * 600,
        "1r" + "-" * 12 + "PBB",
        '{"leader": 1}',
    ],
    ids=["short", "10,000 bits", "no log's offset", "nonsense", "a floor too high", "another's"],
)
async def test_damaged_progress_is_told_and_skips_nothing(stage: Stage, text: str) -> None:
    first, _ = await begun(stage)
    await forge(stage, Committed(first, text))
    stats, _ = await go_on(stage, *range(10, 20))
    assert sorted(stage.seen.values) == list(range(20))
    assert stats.rejected == 1
