"""Follows a topic from code, outside any group: for views in memory, caches and live pages.

A follower reads from any position on and does not end. It says when it has *caught up*: when the
iterating task has handled every message that was in the topic when following began. It commits
nothing; :attr:`TopicFollower.positions` holds the next positions, for callers that store them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Generic, Literal, TypeVar

from streams.cancellation import run_in_thread
from streams.connection import Connection
from streams.decoding import Source
from streams.errors import Unavailable
from streams.message import Message
from streams.text import get_logger
from streams.topic_reader import OffsetSpec, TopicReader, resolve_ranges

T = TypeVar("T")

logger = get_logger("streams")

SHORTEST_PAUSE = 0.005
LONGEST_PAUSE = 0.1
"""Seconds between two polls of the topic's end while no message arrives."""

OUTAGE_PAUSE = 0.5
"""Seconds before the log is polled again while it cannot be reached."""


class TopicFollower(Generic[T]):
    """Reads a topic without end: ``async for message in topic.follow()``.

    Order is the log's within a partition. It waits while the log cannot be reached. End it with
    ``break``, or by cancelling the task.
    """

    def __init__(
        self,
        connection: Connection,
        topic: Source[T],
        start: OffsetSpec | Mapping[int, OffsetSpec] = "earliest",
        *,
        partition: int | None = None,
        key: bytes | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> None:
        """:raises NotRunning: the app is not connected.
        :raises NotFound: there is no such topic or partition.
        :raises InvalidValue: ``start`` is not a position in this topic.
        """
        self._connection = connection
        self._source = topic
        self._key = key
        self._errors: Literal["raise", "skip"] = errors
        self.topic = topic.name
        now = connection.clock.time()
        ranges = resolve_ranges(
            connection.log, topic.name, start, "latest", partition=partition, now=now
        )
        self.positions: dict[int, int] = {
            number: self._existing_position(number, each.start) for number, each in ranges.items()
        }
        """The next position, by partition: pass it as ``start`` to go on there later."""
        self._goal = {number: each.end for number, each in ranges.items()}
        self._caught_up = asyncio.Event()

    def _existing_position(self, partition: int, position: int) -> int:
        """The position to begin at: for a position that this log does not have, the first message
        that it has."""
        log = self._connection.log
        first, end = log.watermarks(self.topic, partition)
        if position <= end or position <= log.log_end_offset(self.topic, partition):
            return position
        logger.error(
            "following %s: position %s of partition %d is beyond the log's end: the topic was "
            "recreated, or the log has lost its end; following it from %s",
            self.topic, log.format_offset(position), partition, log.format_offset(first),
        )  # fmt: skip
        return first

    @property
    def caught_up(self) -> bool:
        """Whether every message that was in the topic when following began was handled."""
        return self._caught_up.is_set()

    async def wait_caught_up(self) -> None:
        """Wait until another task, which iterates, has handled every message that was in the topic
        when following began."""
        await self._caught_up.wait()

    async def __aiter__(self) -> AsyncIterator[Message[T]]:
        is_reachable = True
        pause = SHORTEST_PAUSE
        while True:
            try:
                reader = await run_in_thread(self._open_reader)
                if reader is None:
                    self._note_progress()
                    await asyncio.sleep(pause)
                    pause = min(LONGEST_PAUSE, pause * 1.5)
                    continue
                if not is_reachable:
                    logger.warning("following %s: the log answers again", self.topic)
                    is_reachable = True
                async with reader, aclosing(aiter(reader)) as messages:  # type: ignore[type-var]
                    last: Message[T] | None = None
                    try:
                        async for message in messages:
                            # The iterating task has handled the previous one. (It may be several.)
                            if last is not None and last.position != message.position:
                                self._note_handled(last)
                            last = message
                            yield message
                    except Exception:
                        if last is not None:  # the iterating task has asked for the next
                            self._note_handled(last)
                        raise
                for number, each in reader.ranges.items():
                    self.positions[number] = max(self.positions[number], each.end)
                self._note_progress()
                pause = SHORTEST_PAUSE
            except Unavailable as error:
                if is_reachable:
                    logger.warning("following %s: waiting for the log: %s", self.topic, error)
                    is_reachable = False
                await asyncio.sleep(OUTAGE_PAUSE)

    def _open_reader(self) -> TopicReader[T] | None:
        """A reader of the messages that have arrived; None: none has."""
        log = self._connection.log
        if not any(
            log.watermarks(self.topic, number)[1] > position
            for number, position in self.positions.items()
        ):
            return None
        return TopicReader(
            self._connection,
            self._source,
            dict(self.positions),  # type: ignore[arg-type]
            key=self._key,
            errors=self._errors,
        )

    def _note_handled(self, message: Message[T]) -> None:
        self.positions[message.partition] = int(message.offset) + 1

    def _note_progress(self) -> None:
        if not self._caught_up.is_set() and all(
            self.positions[number] >= end for number, end in self._goal.items()
        ):
            self._caught_up.set()

    def __repr__(self) -> str:
        state = "caught up" if self.caught_up else "catching up"
        return f"<TopicFollower of {self.topic!r}, {state}>"
