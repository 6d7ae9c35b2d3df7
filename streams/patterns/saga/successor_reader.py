"""Which entries were followed by another one already, when their partition became ours.

An entry that was not settled when its owner died is redelivered, though the entry that follows it
may have been written. To call its step again would be wrong: a step that failed could have its
effect now, and nobody would ever undo it. So before the first entry of an assignment is handled,
the part of the journal that is redelivered is read once, up to its end. Of each saga that was under
way a number is kept, until that entry has been redelivered.

An entry that was put back from the dead letters is in a topic of its own; its successor is looked
up in the journal, for that saga alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from streams.errors import Unavailable
from streams.message import Message
from streams.patterns.saga.errors import UnknownSaga
from streams.patterns.saga.journal import Journal
from streams.patterns.saga.journal_entry import JournalEntry
from streams.text import get_logger

T = TypeVar("T")

logger = get_logger("streams")

RETRY_PAUSE = 1.0
"""Seconds before a log that is out of reach is asked again."""


class SuccessorReader:
    """Knows the successors of redelivered entries, by partition. Used on the app's loop."""

    def __init__(self) -> None:
        self._last_numbers: dict[int, tuple[Any, asyncio.Task[dict[str, int]]]] = {}
        """The assignment, and the number of each saga's last entry behind its position."""

    async def has_successor(
        self, journal: Journal, entry: JournalEntry, message: Message[Any]
    ) -> bool:
        """Whether the journal already has an entry that follows this one."""
        assignment: Any = message.assignment
        if assignment is None:
            return False
        if message.topic != journal.topic:
            last = await _ask_when_reachable(journal, lambda: _last_number(journal, entry.saga))
            return last > entry.n
        partition = message.partition
        cached = self._last_numbers.get(partition)
        if cached is None or cached[0] is not assignment:
            start = assignment.position
            reading = _ask_when_reachable(journal, lambda: journal.last_numbers(partition, start))
            cached = self._last_numbers[partition] = (assignment, asyncio.ensure_future(reading))
        try:
            numbers = await asyncio.shield(cached[1])
        except Exception:
            self._last_numbers.pop(partition, None)  # whoever tries again reads again
            raise
        last = numbers.get(entry.saga, -1)
        if last <= entry.n:
            numbers.pop(entry.saga, None)
        return last > entry.n


def _last_number(journal: Journal, id: str) -> int:
    """The number of a saga's last entry, -1 if the journal holds none."""
    try:
        return journal.latest(id).entry.n
    except UnknownSaga:
        return -1


async def _ask_when_reachable(journal: Journal, ask: Callable[[], T]) -> T:
    """What a journal answers, once its log can be reached."""
    while True:
        try:
            return await asyncio.to_thread(ask)
        except Unavailable as error:
            logger.warning("saga %s: waiting for its journal: %s", journal.saga, error)
            await asyncio.sleep(RETRY_PAUSE)
