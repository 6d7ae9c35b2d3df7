"""Deletes the inbox's rows in bounded steps: each process does so for the partitions that it owns.

A row may be deleted once its group has committed a position behind it and it is older than the
database's ``keep``. Deleted rows are covered by the partition's *mark*: every message below it was
settled. So a process that was frozen, and wakes when the row is gone, does not handle the message
again. If no young row is below the committed position, the mark is that position, whether there
were rows or not: a message that came back was settled by a row in another partition. Such a row is
deleted once the mark of the message's first partition has passed its first position, too.

That needs care on PostgreSQL, where a handler may have read the mark before it was raised, and
insert its row after the old one was deleted. So rows are deleted in three steps, each a
transaction:

1. the mark is raised, and rows below it stay. From now on a transaction that inserts and then reads
   the mark is refused;
2. the number of a transaction that begins after that is stored;
3. once all transactions with smaller numbers have ended, the rows are deleted. A transaction that
   read the old mark had inserted before, so it had a smaller number, and has found the old row or
   committed its own.

No step waits for transactions: while one is open for long (in any database of the server, as for
VACUUM), rows stay longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Generator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from streams.connection import Connection
from streams.databases.locking import bound_waits
from streams.databases.protocol import Database, Failure, Steps, run, run_async
from streams.engine.progress import decode_generation
from streams.errors import StreamsError
from streams.health import InboxStats
from streams.inbox.identity import Identities, OwnedPartition, position_text
from streams.inbox.marks import (
    PurgeableRows,
    delete_purged,
    pending,
    raise_mark,
    rows_to_purge,
    schedule_deletion,
)
from streams.inbox.tables import find_version
from streams.log.protocol import Assignment, Committed
from streams.text import get_logger

logger = get_logger("streams.inbox")

PURGE_INTERVAL = 15.0
"""Seconds between two rounds."""

ROWS_AT_ONCE = 5_000
"""Rows that one transaction reads, or deletes."""

ROUNDS_AT_ONCE = 20
"""The most transactions that read rows, and that delete rows, for one partition in a round."""

LOCK, IDLE = 0.2, 10.0
"""The most seconds that a statement of a purge waits for a lock, and that pass between two
statements."""


class Purgeable(Protocol):
    """The part of an inbox that purging uses."""

    @property
    def name(self) -> str:
        """The processor's name."""
        ...

    @property
    def group(self) -> str:
        """The processor's group."""
        ...

    database: Database[Any]
    identities: Identities
    stats: InboxStats

    @property
    def begun(self) -> Collection[Assignment]:
        """The partitions whose messages may be handled, as their marks and rows were checked
        against the log."""
        ...

    def owned(self) -> list[Assignment]:
        """The partitions that the processor owns."""
        ...


class Work(NamedTuple):
    """A transaction to be run."""

    steps: Callable[[], Steps[Any]]


class _Settled(NamedTuple):
    """A partition, and the position that its group has committed there."""

    owned: OwnedPartition
    position: str


class Purger:
    """Purges for one inbox, in its own thread or task."""

    def __init__(self, inbox: Purgeable, connection: Connection) -> None:
        self._inbox = inbox
        self._connection = connection
        self.stop = threading.Event()
        self._known: dict[Assignment, OwnedPartition] = {}
        self._has_tables = False

    def run(self) -> None:
        """Purge a plain database, until it is to stop."""
        while not self.stop.wait(PURGE_INTERVAL):
            self.round()

    async def run_async(self) -> None:
        """Purge an async database, until cancelled."""
        while True:
            await asyncio.sleep(PURGE_INTERVAL)
            await self.round_async()

    def round(self) -> None:
        """Purge each partition once."""
        for topic in self._topics():
            for settled in self._settled(topic):
                try:
                    self._run(self._work(settled))
                except Exception as error:
                    self._report(settled.owned.assignment, error)

    async def round_async(self) -> None:
        """As :meth:`round`."""
        for topic in self._topics():
            for settled in await asyncio.to_thread(self._settled, topic):
                try:
                    await self._run_async(self._work(settled))
                except Exception as error:
                    self._report(settled.owned.assignment, error)

    def _topics(self) -> list[str]:
        owned = self._inbox.owned()
        self._known = {each: self._known[each] for each in owned if each in self._known}
        return sorted({each.topic for each in owned})

    def _settled(self, topic: str) -> list[_Settled]:
        """The committed positions up to which a topic's partitions may be purged. Asks the log, and
        blocks."""
        found = []
        committed: Mapping[int, Committed] | None = None
        for assignment in self._inbox.owned():
            now = self._connection.clock.monotonic()
            if assignment.topic != topic or now >= assignment.valid_until:
                continue
            try:
                owned = self._known.get(assignment)
                if owned is None:
                    owned = self._known[assignment] = self._inbox.identities.look_up(assignment)
                if committed is None:
                    committed = self._connection.log.committed(self._inbox.group, topic)
            except Exception as error:
                self._report(assignment, error)
                break
            there = committed.get(assignment.partition)
            # The committed position may be that of a reset that this owner has not noticed yet.
            if there is not None and decode_generation(there.progress) == owned.scope.generation:
                position = there.position
                if assignment.log_end is not None and assignment not in self._inbox.begun:
                    # A mark beyond that would mean that the log was set back: purging must not
                    # write one.
                    position = min(position, assignment.log_end)
                found.append(_Settled(owned, position_text(position)))
        return found

    def _work(self, settled: _Settled) -> Generator[Work, Any, None]:
        """The transactions of one partition; each gets the result of the one before."""
        database, scope, number = self._inbox.database, settled.owned.scope, settled.owned.number

        def look(start: str) -> Steps[PurgeableRows]:
            found = yield from rows_to_purge(
                database.dialect, number, start, settled.position, database.keep, ROWS_AT_ONCE
            )
            yield from raise_mark(database.dialect, scope, number, found.mark)
            return found

        if not self._has_tables:  # they are created with the first handled message
            version = yield Work(lambda: find_version(database.dialect))
            self._has_tables = version is not None
            if not self._has_tables:
                return
        dialect = database.dialect  # known from the first session on
        if dialect == "postgresql" and not (yield from self._delete(number)):
            return
        start, count = position_text(0), 0
        for _ in range(ROUNDS_AT_ONCE):
            found: PurgeableRows = yield Work(partial(look, start))
            start, count = found.mark, count + found.rows
            if found.rows and dialect == "sqlite":  # they are gone
                self._inbox.stats.purged += 1
            if found.is_last:
                break
        if count and dialect == "postgresql":
            yield Work(lambda: schedule_deletion(number))
            yield from self._delete(number)

    def _delete(self, number: int) -> Generator[Work, Any, bool]:
        """On PostgreSQL: delete the rows below a partition's mark, if that is due. False: it is not
        due, or there are more rows."""
        found = yield Work(lambda: pending(self._inbox.database.dialect, number))
        if found is None:
            return True
        if not found.is_due:
            return False
        for _ in range(ROUNDS_AT_ONCE):
            deleted = yield Work(lambda: delete_purged(number, ROWS_AT_ONCE))
            self._inbox.stats.purged += deleted > 0
            if deleted < ROWS_AT_ONCE:
                return True
        return False

    def _steps(self, transaction: Work) -> Steps[Any]:
        """A transaction's steps, with bounds on how long it blocks others if this process
        freezes."""
        yield from bound_waits(self._inbox.database.dialect, lock=LOCK, idle=IDLE)
        return (yield from transaction.steps())

    def _run(self, work: Generator[Work, Any, None]) -> None:
        result: Any = None
        try:
            while True:
                transaction = work.send(result)
                session = self._inbox.database.begin()
                try:
                    result = run(session, self._steps(transaction))
                    session.commit()
                except BaseException:
                    session.rollback()
                    raise
        except StopIteration:
            return

    async def _run_async(self, work: Generator[Work, Any, None]) -> None:
        result: Any = None
        try:
            while True:
                transaction = work.send(result)
                session = await self._inbox.database.begin_async()
                try:
                    result = await run_async(session, self._steps(transaction))
                    await session.commit()
                except BaseException:
                    await session.rollback()
                    raise
        except StopIteration:
            return

    def _report(self, assignment: Assignment, error: Exception) -> None:
        expected = isinstance(error, StreamsError) or (
            self._inbox.database.classify(error) is not Failure.FAULT
        )
        log = logger.info if expected else logger.error
        log(
            "%s: rows of %s/%d were not purged, retrying later: %r",
            self._inbox.name, *assignment.topic_partition, error,
        )  # fmt: skip
