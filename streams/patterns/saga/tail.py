"""Which entries were followed by another one already, when their partition became ours.

An entry that was not settled when its owner died comes again, though what follows on it may have
been written. To call its step again would be to ask a question that has its answer: a step that
failed could have its effect now, and nobody would ever undo it. So before the first entry of an
assignment is handled, the part of the journal that comes again is read once, up to its end. What is
kept of it is a number for each saga that was under way, and only until that entry has come.

An entry that was put back from the dead letters stands in a topic of its own; what followed on it
is looked up in the journal, for that saga alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from streams.errors import Unavailable
from streams.message import Message
from streams.patterns.saga.entry import Entry
from streams.patterns.saga.errors import UnknownSaga
from streams.patterns.saga.journal import Journal
from streams.text import get_logger

__all__ = ["Tails"]

T = TypeVar("T")

logger = get_logger("streams")

PAUSE = 1.0
"""Seconds before a log that is out of reach is asked again."""


class Tails:
    """What came after what, by partition. Used on the app's loop."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Any, asyncio.Task[dict[str, int]]]] = {}
        """The assignment, and the numbers of the last entries in its tail by saga."""

    async def followed(self, journal: Journal, entry: Entry, message: Message[Any]) -> bool:
        """Whether the journal already says what became of this entry."""
        assignment: Any = message._batch.assignment
        if assignment is None:
            return False
        if message.topic != journal.topic:
            return await _asked(journal, lambda: _last(journal, entry.saga)) > entry.n
        partition = message.partition
        held = self._read.get(partition)
        if held is None or held[0] is not assignment:
            start = assignment.position
            work = _asked(journal, lambda: journal.numbers(partition, start))
            held = self._read[partition] = (assignment, asyncio.ensure_future(work))
        try:
            numbers = await asyncio.shield(held[1])
        except Exception:
            self._read.pop(partition, None)  # whoever tries again reads again
            raise
        last = numbers.get(entry.saga, -1)
        if last <= entry.n:
            numbers.pop(entry.saga, None)
        return last > entry.n


def _last(journal: Journal, id: str) -> int:
    """The number of a saga's last entry, -1 if the journal holds none."""
    try:
        return journal.latest(id).entry.n
    except UnknownSaga:
        return -1


async def _asked(journal: Journal, question: Callable[[], T]) -> T:
    """The answer of a journal, once its log is within reach."""
    while True:
        try:
            return await asyncio.to_thread(question)
        except Unavailable as error:
            logger.warning("saga %s: waiting for its journal: %s", journal.saga, error)
            await asyncio.sleep(PAUSE)
