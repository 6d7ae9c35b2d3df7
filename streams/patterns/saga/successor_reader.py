"""Whether the journal has a successor of an entry, so that the entry's step must not be called.

An entry that was not settled when its owner died is redelivered, though the entry that follows it
may have been written. Calling its step again would be wrong: a step that failed could have its
effect now, and would never be undone. So before the first entry of an assignment is handled,
the part of the journal that is redelivered is read once, up to its end. For each saga that was
under way a number is kept, until that entry has been redelivered.

While a saga waits in a partition that is ours, the only other writer of its next entry is a command
that abandons it. That entry is behind the waiting one, so it is searched for before the waiting
entry's step is called: everything from the waiting entry to the journal's end is read, each part
once for all sagas of the partition, and the numbers of the abandoned sagas' entries are kept.

An entry that was put back from the dead letters is in a topic of its own; its successor is looked
up in the journal, for that saga alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streams.errors import Unavailable
from streams.message import Message
from streams.patterns.saga.errors import UnknownSaga
from streams.patterns.saga.journal import Journal
from streams.patterns.saga.journal_entry import JournalEntry
from streams.patterns.saga.shared_run import SharedRun
from streams.text import get_logger

T = TypeVar("T")

logger = get_logger("streams")

RETRY_PAUSE = 1.0
"""Seconds before a log that is out of reach is asked again."""


class SuccessorReader:
    """Finds the successors of redelivered entries, and the waiting sagas that were abandoned, by
    partition. Used on the app's loop."""

    def __init__(self) -> None:
        self._last_numbers: dict[int, _LastEntryNumbers] = {}
        self._abandonments: dict[int, _AbandonedSagas] = {}

    async def has_successor(
        self, journal: Journal, entry: JournalEntry, message: Message[Any]
    ) -> bool:
        """Whether the journal already had an entry that follows this one when its partition became
        ours; for an entry that was put back, whether it has one now."""
        assignment: Any = message.assignment
        if assignment is None:
            return False
        if message.topic != journal.topic:
            last = await _ask_when_reachable(
                journal, lambda: asyncio.to_thread(_last_number, journal, entry.saga)
            )
            return last > entry.n
        partition = message.partition
        reading = self._last_numbers.get(partition)
        if reading is None or reading.assignment is not assignment or reading.is_over:
            reading = self._last_numbers[partition] = _LastEntryNumbers(journal, assignment)
        numbers = await reading.wait()
        last = numbers.get(entry.saga, -1)
        if last <= entry.n:
            numbers.pop(entry.saga, None)
        return last > entry.n

    async def was_abandoned(
        self, journal: Journal, entry: JournalEntry, message: Message[Any]
    ) -> bool:
        """Whether the journal has by now an entry behind this one that abandons its saga."""
        assignment: Any = message.assignment
        if assignment is None or message.topic != journal.topic:
            return False
        partition, behind = message.partition, int(message.offset) + 1
        reading = self._abandonments.get(partition)
        if reading is None or reading.assignment is not assignment:
            reading = self._abandonments[partition] = _AbandonedSagas(journal, assignment, behind)
        return await reading.last_number(entry.saga, behind) > entry.n

    def forget(self, entry: JournalEntry, message: Message[Any]) -> None:
        """An entry that ends its saga is handled, so no entry of the saga waits any more."""
        reading = self._abandonments.get(message.partition)
        if reading is not None:
            reading.numbers.pop(entry.saga, None)


class _LastEntryNumbers:
    """The number of each saga's last entry behind the position of an assignment. Reading goes on as
    long as a caller waits for it."""

    def __init__(self, journal: Journal, assignment: Any) -> None:
        self.assignment = assignment
        partition, start = assignment.partition, assignment.position
        reading = _ask_when_reachable(
            journal, lambda: asyncio.to_thread(journal.last_numbers, partition, start)
        )
        self._task = asyncio.ensure_future(reading)
        self._waiting = 0
        self.is_over = False
        """Whether it has failed or was cancelled: the next caller has to read again."""

    async def wait(self) -> dict[str, int]:
        """The numbers that were read.

        :raises LogError: the journal cannot be read.
        """
        self._waiting += 1
        try:
            # The cancellation of one caller must not end it for the others.
            return await asyncio.shield(self._task)
        except Exception:
            self.is_over = True
            raise
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self.is_over = True  # the partition was lost, or the app is left
                self._task.cancel()


class _AbandonedSagas:
    """The sagas of one partition that were abandoned, in the part of the journal that was read.

    :param start: the offset at which that part begins, for now.
    """

    def __init__(self, journal: Journal, assignment: Any, start: int) -> None:
        self.assignment = assignment
        self.numbers: dict[str, int] = {}
        """The number of the entry that abandons a saga, by ID."""
        self._journal = journal
        self._start = self._end = self._wanted_start = start
        self._run = SharedRun(self._read)

    async def last_number(self, id: str, start: int) -> int:
        """The number of the entry that abandons a saga, searched from an offset on; -1: none."""
        self._wanted_start = min(self._wanted_start, start)
        await _ask_when_reachable(self._journal, self._run.wait_for_next)
        return self.numbers.get(id, -1)

    def _read(self) -> None:
        partition, wanted = self.assignment.partition, self._wanted_start
        first, end = self._journal.log.watermarks(self._journal.topic, partition)
        for low, high in ((wanted, self._start), (self._end, end)):
            for entry, _ in self._journal.read_range(partition, max(first, low), high):
                if entry.status == "abandoned" and entry.n > self.numbers.get(entry.saga, -1):
                    self.numbers[entry.saga] = entry.n
        self._start, self._end = min(wanted, self._start), max(end, self._end)


def _last_number(journal: Journal, id: str) -> int:
    """The number of a saga's last entry, -1 if the journal holds none."""
    try:
        return journal.latest(id).entry.n
    except UnknownSaga:
        return -1


async def _ask_when_reachable(journal: Journal, ask: Callable[[], Awaitable[T]]) -> T:
    """The result of ``ask``, once the log can be reached."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            logger.warning("saga %s: waiting for its journal: %s", journal.saga, error)
            await asyncio.sleep(RETRY_PAUSE)
