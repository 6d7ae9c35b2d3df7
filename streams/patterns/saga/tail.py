"""Which entries were followed by another one already, when their partition became ours.

An entry that was not settled when its owner died comes again, though what follows on it may have
been written. To call its step again would be to ask a question that has its answer: a step that
failed could have its effect now, and nobody would ever undo it. So before the first entry of an
assignment is handled, the part of the journal that comes again is read once, up to its end. What is
kept of it is a number for each saga that was under way, and only until that entry has come.
"""

from __future__ import annotations

import asyncio
from typing import Any

from streams.errors import Unavailable
from streams.message import Message
from streams.patterns.saga.entry import Entry
from streams.patterns.saga.journal import Journal
from streams.text import get_logger

__all__ = ["Tails"]

logger = get_logger("streams")

PAUSE = 1.0
"""Seconds before a log that is out of reach is asked again."""


class Tails:
    """What came after what, by partition. Used on the app's loop."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, int], tuple[Any, asyncio.Task[dict[str, int]]]] = {}
        """The assignment, and the numbers of the last entries in its tail by saga."""

    async def followed(self, journal: Journal, entry: Entry, message: Message[Any]) -> bool:
        """Whether the journal already says what became of this entry."""
        assignment: Any = message._batch.assignment
        if assignment is None:
            return False
        place = (message.topic, message.partition)
        held = self._read.get(place)
        if held is None or held[0] is not assignment:
            # An entry that was put back from the dead letters stands in a topic of its own, and
            # whatever followed on it can be anywhere in the journal.
            start = assignment.position if message.topic == journal.topic else None
            work = _numbers(journal, message.partition, start)
            held = self._read[place] = (assignment, asyncio.ensure_future(work))
        try:
            numbers = await asyncio.shield(held[1])
        except Exception:
            self._read.pop(place, None)  # whoever tries again reads again
            raise
        last = numbers.get(entry.saga, -1)
        if last <= entry.n:
            numbers.pop(entry.saga, None)
        return last > entry.n


async def _numbers(journal: Journal, partition: int, start: int | None) -> dict[str, int]:
    while True:
        try:
            return await asyncio.to_thread(journal.numbers, partition, start)
        except Unavailable as error:
            logger.warning("saga %s: waiting for its journal: %s", journal.saga, error)
            await asyncio.sleep(PAUSE)
