"""What is remembered with a position has no room for more, and its partition gets another owner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest

from streams import Flow, Streams
from streams.engine.progress import encode_progress
from streams.log.protocol import Committed, Log
from streams.log.url import open_log
from streams.processing.committer import PROGRESS_FULL
from tests.processing.support import until

pytestmark = pytest.mark.anyio

MESSAGES = 20_000


@pytest.fixture
def anchor() -> Iterator[Log]:
    """The log in memory lasts as long as this is open."""
    with closing(open_log("memory://nearly-full")) as log:
        yield log


async def test_the_next_owner_takes_in_what_is_missing_of_it(anchor: Log) -> None:
    """Nothing more is to be taken in until the map is smaller; what makes it smaller is."""
    app = Streams("memory://nearly-full")
    topic = app.topic("numbers", int, partitions=1)
    handled: list[int] = []

    @app.processor(topic, group="g", flow=Flow(messages=10))
    async def handle(number: int) -> None:
        handled.append(number)

    async with app.connected():
        await topic.publish_many(list(range(MESSAGES)))
    odd = [(number, number + 1) for number in range(1, MESSAGES, 2)]
    stored = encode_progress(0, 0, odd)
    assert stored.complete
    assert len(stored.progress) > PROGRESS_FULL
    await asyncio.to_thread(
        anchor.reset_offsets, "g", "numbers", {0: Committed(0, stored.progress)}
    )
    async with app:
        await until(lambda: len(handled) == MESSAGES // 2)
        await topic.publish(MESSAGES)
        await until(lambda: len(handled) == MESSAGES // 2 + 1)
    assert handled == [*range(0, MESSAGES, 2), MESSAGES]
