"""The pump through an outage: what was polled is delivered, whatever fails in between."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from streams import Flow, Streams
from streams.errors import Unavailable
from streams.log.memory.log import MemoryLog
from streams.log.protocol import Retention
from streams.log.url import open_log


async def test_an_outage_at_the_commit_of_the_start_loses_nothing() -> None:
    """The group's place has been trimmed away, so its new start is committed first; that fails."""
    url = f"memory://{uuid4().hex}"
    log = open_log(url)
    log.create("numbers", 1, Retention(messages=100))
    app = Streams(url)
    topic = app.topic("numbers", int)
    async with app.connected():
        await topic.publish_many(range(10))
    first, _ = log.bounds("numbers", 0)
    log.begin("g", "numbers", {0: first - 5})
    handled: list[int] = []
    over = asyncio.Event()
    failures = 3
    polls = polled = 0

    def strike(point: str, subject: str) -> None:
        nonlocal failures, polls, polled
        polls += point == "poll"
        if point == "commit.before" and failures:
            failures -= 1
            # Unless it is polled meanwhile, a member is not told of rebalances, and the place of a
            # former generation is refused for ever.
            assert polls > polled or failures == 2
            polled = polls
            assert not handled, "delivered before its start was committed"
            raise Unavailable("the log is away for a moment")

    @app.processor(topic, group="g", flow=Flow(commit=0.05))
    async def handle(value: int) -> None:
        handled.append(value)
        if len(handled) == 11:
            over.set()

    async with app:
        assert isinstance(app.log, MemoryLog)
        app.log.fault(strike)
        await topic.publish(10)
        async with asyncio.timeout(30):
            await over.wait()
    log.close()
    assert failures == 0
    assert handled == list(range(11))
