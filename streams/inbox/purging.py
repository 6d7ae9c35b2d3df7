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
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from streams.connection import Connection
from streams.databases.locking import bound_waits
from streams.databases.protocol import DialectName, FailureKind, Steps
from streams.engine.progress import decode_generation
from streams.errors import StreamsError
from streams.health import InboxStats
from streams.inbox.calls import Access, Calls, run_calls, run_calls_async
from streams.inbox.identity import Identities, OwnedPartition, position_text
from streams.inbox.marks import (
    PendingDeletion,
    PurgeableRows,
    delete_purged,
    pending,
    raise_mark,
    rows_to_purge,
    schedule_deletion,
)
from streams.inbox.partitions import Partitions
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


THREAD_TIMEOUT = 5.0
"""The most seconds that leaving the app waits for a round."""

R = TypeVar("R")


class _Settled(NamedTuple):
    """A partition, and the position that its group has committed there."""

    owned: OwnedPartition
    position: str


class Purger:
    """Purges for one processor while its database is open, in a thread or task of its own."""

    def __init__(
        self,
        connection: Connection,
        access: Access,
        identities: Identities,
        partitions: Partitions,
        stats: InboxStats,
        *,
        processor_name: str,
        group: str,
    ) -> None:
        self._connection = connection
        self._access = access
        self._database = access.database
        self._identities = identities
        self._partitions = partitions
        self._stats = stats
        self._processor_name = processor_name
        self._group = group
        self._known: dict[Assignment, OwnedPartition] = {}
        self._has_tables = False
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._task: asyncio.Task[None] | None = None

    # -- its thread or task

    def start(self) -> None:
        """Start to purge; an async database, in the running loop."""
        if self._access.asynchronous:
            self._task = asyncio.get_running_loop().create_task(self._run_async())
        else:
            name = f"streams-inbox-{self._processor_name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Stop it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._thread is not None:
            self._stop.set()
            await asyncio.to_thread(self._thread.join, THREAD_TIMEOUT)

    def _run(self) -> None:
        while not self._stop.wait(PURGE_INTERVAL):
            run_calls(self.purge())

    async def _run_async(self) -> None:
        while True:
            await asyncio.sleep(PURGE_INTERVAL)
            await run_calls_async(self.purge())

    # -- a round

    def purge(self) -> Calls[None]:
        """Purge each partition once."""
        owned = self._partitions.owned()
        self._known = {each: self._known[each] for each in owned if each in self._known}
        for topic in sorted({each.topic for each in owned}):
            found: list[_Settled] = yield self._access.run_blocking(self._settled, topic)
            for settled in found:
                try:
                    yield from self._purge_partition(settled)
                except Exception as error:
                    self._report(settled.owned.assignment, error)

    def _settled(self, topic: str) -> list[_Settled]:
        """The committed positions up to which a topic's partitions may be purged. Asks the log, and
        blocks."""
        found: list[_Settled] = []
        committed: Mapping[int, Committed] | None = None
        for assignment in self._partitions.owned():
            if assignment.topic != topic or not self._partitions.is_owned(assignment):
                continue
            try:
                owned = self._known.get(assignment)
                if owned is None:
                    owned = self._known[assignment] = self._identities.look_up(assignment)
                if committed is None:
                    committed = self._connection.log.committed(self._group, topic)
            except Exception as error:
                self._report(assignment, error)
                break
            there = committed.get(assignment.partition)
            # The committed position may be that of a reset that this owner has not noticed yet.
            if there is not None and decode_generation(there.progress) == owned.scope.generation:
                position = there.position
                if assignment.log_end is not None and assignment not in self._partitions.begun:
                    # A mark beyond that would mean that the log was set back: purging must not
                    # write one.
                    position = min(position, assignment.log_end)
                found.append(_Settled(owned, position_text(position)))
        return found

    def _purge_partition(self, settled: _Settled) -> Calls[None]:
        number = settled.owned.number
        if not self._has_tables:  # they are created with the first handled message
            self._has_tables = (yield from self._in_transaction(find_version)) is not None
            if not self._has_tables:
                return
        dialect = self._database.dialect  # known from the first session on
        if dialect == "postgresql" and not (yield from self._delete_due(number)):
            return
        start, count = position_text(0), 0
        for _ in range(ROUNDS_AT_ONCE):
            found = yield from self._in_transaction(partial(self._raise_mark, settled, start))
            start, count = found.mark, count + found.rows
            if found.rows and dialect == "sqlite":  # they are gone
                self._stats.purged += 1
            if found.is_last:
                break
        if count and dialect == "postgresql":
            yield from self._in_transaction(lambda _: schedule_deletion(number))
            yield from self._delete_due(number)

    def _raise_mark(
        self, settled: _Settled, start: str, dialect: DialectName
    ) -> Steps[PurgeableRows]:
        """Raise a partition's mark above its old rows from this position on."""
        owned = settled.owned
        found = yield from rows_to_purge(
            dialect, owned.number, start, settled.position, self._database.keep, ROWS_AT_ONCE
        )
        yield from raise_mark(dialect, owned.scope, owned.number, found.mark)
        return found

    def _delete_due(self, number: int) -> Calls[bool]:
        """On PostgreSQL: delete the rows below a partition's mark, if that is due. False: it is not
        due, or there are more rows."""
        found: PendingDeletion | None = yield from self._in_transaction(
            lambda dialect: pending(dialect, number)
        )
        if found is None:
            return True
        if not found.is_due:
            return False
        for _ in range(ROUNDS_AT_ONCE):
            deleted = yield from self._in_transaction(lambda _: delete_purged(number, ROWS_AT_ONCE))
            self._stats.purged += deleted > 0
            if deleted < ROWS_AT_ONCE:
                return True
        return False

    def _in_transaction(self, steps_of: Callable[[DialectName], Steps[R]]) -> Calls[R]:
        """Run statements in a transaction, with bounds on how long it blocks others if this process
        freezes."""

        def bounded(dialect: DialectName) -> Steps[R]:
            yield from bound_waits(dialect, lock=LOCK, idle=IDLE)
            return (yield from steps_of(dialect))

        return self._access.run_in_transaction(bounded)

    def _report(self, assignment: Assignment, error: Exception) -> None:
        expected = isinstance(error, StreamsError) or (
            self._database.classify(error) is not FailureKind.FAULT
        )
        log = logger.info if expected else logger.error
        log(
            "%s: rows of %s/%d were not purged, retrying later: %r",
            self._processor_name, *assignment.topic_partition, error,
        )  # fmt: skip
