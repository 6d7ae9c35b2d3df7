"""Messages published while faults happen, and the log read back afterwards.

The publisher does what a careful application does: what was not acknowledged is published again
with the same message ID, until it is. Only acknowledged positions go into the history.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

from streams import Streams
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.protocol import Log
from streams.message import Position, Record
from tests.faults.history import Life, Recorder, Sent

GIVE_UP = 120.0
"""Seconds without an acknowledgement after which publishing has failed."""


class Load:
    """Publishes numbered messages from a thread of its own. A context manager.

    :param folder: where the history goes.
    :param messages: how many, at most.
    :param rate: messages a second; None publishes as fast as it is acknowledged.
    """

    def __init__(
        self,
        url: str,
        topic: str,
        folder: Path,
        random: Random,
        *,
        messages: int,
        rate: float | None = None,
        partitions: int = 4,
        keys: int = 500,
        chunk: int = 200,
    ) -> None:
        self._url = url
        self._topic = topic
        self._random = random
        self.messages = messages
        self._rate = rate
        self._partitions = partitions
        self._keys = keys
        self._chunk = chunk
        self._recorder = Recorder(folder)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tests-load")
        self._error: BaseException | None = None
        self.acknowledged = 0
        self.refused = 0
        """Answers that said: not written, not now."""
        self.unknown = 0
        """Answers that said: perhaps written."""

    def __enter__(self) -> Load:
        self._thread.start()
        self._ready.wait()
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def finish(self) -> int:
        """Publish the rest, and wait until all is acknowledged; how many there are."""
        self._thread.join()
        self._check()
        return self.acknowledged

    def stop(self) -> int:
        """Begin no new chunk, wait for what was begun; how many are acknowledged."""
        self._stop.set()
        return self.finish()

    def _check(self) -> None:
        if self._error is not None:
            raise AssertionError(f"publishing failed: {self._error!r}") from self._error

    def _main(self) -> None:
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _publish(self) -> None:
        app = Streams(self._url)
        topic = app.topic(self._topic, bytes, partitions=self._partitions)
        async with app.connected():
            self._ready.set()
            began = time.monotonic()
            for start in range(0, self.messages, self._chunk):
                if self._rate:
                    due = began + start / self._rate - time.monotonic()
                    if due > 0:
                        await asyncio.to_thread(self._stop.wait, due)
                if self._stop.is_set():
                    return
                records = [
                    topic.record(
                        str(number).encode(),
                        key=f"k{self._random.randrange(self._keys)}",
                        id=f"m{number}",
                    )
                    for number in range(start, min(start + self._chunk, self.messages))
                ]
                await self._insist(app, records)

    async def _insist(self, app: Streams, records: Sequence[Record]) -> None:
        """Publish until everything is acknowledged."""
        moved = time.monotonic()
        while records:
            left = []
            for record, answer in zip(
                records, await answers(app, self._topic, records), strict=True
            ):
                if isinstance(answer, Position):
                    key = (record.key or b"").decode()
                    self._recorder.write(Sent(time.monotonic(), *answer, key, record.id))
                    self.acknowledged += 1
                elif isinstance(answer, (Unavailable, OutcomeUnknown)):
                    left.append(record)
                    self.unknown += isinstance(answer, OutcomeUnknown)
                    self.refused += isinstance(answer, Unavailable)
                else:
                    raise answer
            if len(left) < len(records):
                moved = time.monotonic()
            elif time.monotonic() - moved > GIVE_UP:
                raise AssertionError(f"nothing acknowledged for {GIVE_UP:g} s")
            elif left:
                await asyncio.sleep(0.2)
            records = left


async def answers(
    app: Streams, topic: str, records: Sequence[Record]
) -> Sequence[Position | LogError]:
    """Publish records once; what became of each."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Sequence[Position | LogError]] = loop.create_future()

    def told(found: Sequence[Position | LogError]) -> None:
        loop.call_soon_threadsafe(future.set_result, found)

    app.publisher.append(topic, records, told)
    return await future


def stored(log: Log, topic: str) -> dict[tuple[int, int], str]:
    """What stands in a topic: the message ID by partition and offset."""
    found: dict[tuple[int, int], str] = {}
    for partition in range(log.describe_topic(topic).partitions):
        reader = log.reader(topic, partition, *log.watermarks(topic, partition))
        try:
            while (batch := reader.read(5_000, 20.0)) is not None:
                for index, offset in enumerate(batch.offsets):
                    found[partition, offset] = batch.id(index)
        finally:
            reader.close()
    return found


def audit(log: Log, topic: str, lives: Sequence[Life], *, once: bool) -> list[str]:
    """Compare acknowledgements with the log itself: what is wrong, in sentences.

    :param once: one message ID must be one entry.
    """
    there = stored(log, topic)
    wrong = [
        f"{event.id} was acknowledged at {event.partition}/{event.offset}, where there is "
        f"{there.get((event.partition, event.offset))}"
        for life in lives
        for event in life.events
        if isinstance(event, Sent) and there.get((event.partition, event.offset)) != event.id
    ]
    if once:
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, id in there.items():
            places[id].append(place)
        wrong += [f"{id} stands at {each}" for id, each in places.items() if len(each) > 1]
    return wrong
