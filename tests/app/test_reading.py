"""Readings given back while a thread reads ahead for them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streams import NotFound, Streams
from streams.log.protocol import Reader
from streams.message import Batch, Record
from tests.processing.support import PATIENCE
from tests.test_replay import Endless

pytestmark = pytest.mark.anyio


class Slow:
    """A reader that is in the middle of reading until it is told to go on."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.closed_while_reading = False

    def read(self, limit: int, timeout: float = 5.0) -> Batch | None:
        self.reading.set()
        self.go_on.wait(30)
        self.reading.clear()
        return self._reader.read(limit, timeout)

    def close(self) -> None:
        self.closed_while_reading |= self.reading.is_set()
        self._reader.close()


async def test_a_cancelled_reading_is_given_back_when_its_thread_has_ended() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)
    async with app.connected():
        await topic.publish_many(range(10))
        reading = topic.read()
        slow: Any = Slow(reading._cursors[0]._reader)
        reading._cursors[0]._reader = slow

        async def read() -> None:
            async with reading:
                async for _ in reading:
                    pass

        task = asyncio.create_task(read())
        await asyncio.to_thread(slow.reading.wait, 30)
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not slow.closed_while_reading
        assert list(reading) == []


async def test_a_reading_that_looks_for_a_key_ends_when_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, over, begun = Streams("memory://"), threading.Event(), threading.Event()
    topic = app.topic("t", int)

    def endless(topic: str, partition: int, start: int, end: int) -> Endless:
        begun.set()
        return Endless(partition, over)

    async with app.connected():
        await topic.publish(1)
        monkeypatch.setattr(app.log, "reader", endless)

        async def read() -> None:
            async with topic.read(key="nobody") as reading:
                async for _ in reading:
                    pass

        task = asyncio.create_task(read())
        try:
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            task.cancel()
            ended, _ = await asyncio.wait([task], timeout=PATIENCE)
            assert ended
        finally:
            over.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_only_what_was_acknowledged_counts_as_published() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)
    async with app.connected():
        with pytest.raises(NotFound):
            await app.publisher.publish("nowhere", Record(b"", None, "id"))
        await topic.publish_many([1, 2])
        assert app.stats().published == 2
