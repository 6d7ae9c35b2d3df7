"""Deleting the inbox's rows, in bounds: each process for the partitions that it owns.

A row may go once its group has committed a position behind it and it is older than the database's
``keep``. What is gone is known by the partition's *mark*: a message that stands below it was
settled. So a process that was frozen, and wakes when the row is gone, does not handle it again.

That needs care on PostgreSQL, where a handler may have read the mark before it was raised, and
insert its row after the other was deleted. So rows are deleted in three steps, each a transaction:

1. the mark is raised, and rows below it stay. From now on who inserts and then reads it is refused;
2. the number of a transaction that begins after that is written down;
3. once all transactions with smaller numbers have ended, the rows go. Who read the mark as it was
   had inserted before, so had a smaller number, and has met the old row or committed its own.

Nothing waits and nobody is waited for: while somebody's transaction is open for long (in any
database of the server, as for VACUUM), rows stay longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

from streams.connection import Connection
from streams.databases.protocol import Database, Failure, Steps, run, run_async
from streams.engine.progress import decode_generation
from streams.errors import StreamsError
from streams.health import InboxStats
from streams.inbox.identity import Identities, Owned, position_text
from streams.inbox.tables import (
    Timeouts,
    begin_purge,
    delete_purged,
    pending,
    raise_mark,
    rows_to_purge,
    schedule_deletion,
)
from streams.text import get_logger

logger = get_logger("streams.inbox")

PURGE_INTERVAL = 15.0
"""Seconds between two rounds."""

ROWS_AT_ONCE = 5_000
"""Rows that one transaction looks at, or deletes."""

ROUNDS_AT_ONCE = 20
"""Transactions of one partition in a round."""

_WAITS = Timeouts(lock=0.2, idle=10.0)


class Purgeable(Protocol):
    """An inbox, as far as its rows are purged."""

    @property
    def name(self) -> str:
        """Its processor's name."""
        ...

    @property
    def group(self) -> str:
        """Its processor's group."""
        ...

    database: Database[Any]
    identities: Identities
    stats: InboxStats


class Work(NamedTuple):
    """A transaction to be run."""

    steps: Callable[[], Steps[Any]]


class Purger:
    """Purges for one inbox, in its own thread or task."""

    def __init__(self, inbox: Purgeable, connection: Connection) -> None:
        self._inbox = inbox
        self._connection = connection
        self.stop = threading.Event()

    def run(self) -> None:
        """Of a plain database: until it is to stop."""
        while not self.stop.wait(PURGE_INTERVAL):
            self.round()

    async def run_async(self) -> None:
        """Of an async one: until it is cancelled."""
        while True:
            await asyncio.sleep(PURGE_INTERVAL)
            await self.round_async()

    def round(self) -> None:
        """Purge each partition once."""
        for owned in self._inbox.identities.owned():
            try:
                settled = self._settled(owned)
                if settled is not None:
                    self._run(self._work(owned, settled))
            except Exception as error:
                self._report(owned, error)

    async def round_async(self) -> None:
        """As :meth:`round`."""
        for owned in self._inbox.identities.owned():
            try:
                settled = await asyncio.to_thread(self._settled, owned)
                if settled is not None:
                    await self._run_async(self._work(owned, settled))
            except Exception as error:
                self._report(owned, error)

    def _settled(self, owned: Owned) -> int | None:
        """The position that the group has committed; None: nothing is to be done here."""
        if self._connection.clock.monotonic() >= owned.assignment.valid_until:
            return None
        topic, partition = owned.assignment.topic_partition
        found = self._connection.log.committed(self._inbox.group, topic).get(partition)
        # What is committed may be of a reset that this owner has not heard of yet.
        if found is None or decode_generation(found.progress) != owned.scope.generation:
            return None
        return found.position

    def _work(self, owned: Owned, settled: int) -> Generator[Work, Any, None]:
        """The transactions of one partition, each with what the one before came to."""
        inbox, scope, number = self._inbox, owned.scope, owned.number
        dialect, keep = inbox.database.dialect, inbox.database.keep

        def look() -> Steps[Any]:
            yield from begin_purge(dialect, _WAITS)
            found = yield from pending(dialect, number)
            if found is not None:
                return found
            last = yield from rows_to_purge(
                dialect, number, position_text(settled), keep, ROWS_AT_ONCE
            )
            if last is None:
                return None
            yield from raise_mark(dialect, scope, number, position_text(int(last) + 1))
            return last

        def delete() -> Steps[bool]:
            yield from begin_purge(dialect, _WAITS)
            return (yield from delete_purged(number, ROWS_AT_ONCE))

        for _ in range(ROUNDS_AT_ONCE):
            found = yield Work(look)
            if found is None:
                return
            inbox.stats.purged += 1
            if dialect == "sqlite":
                continue
            if isinstance(found, str):
                yield Work(lambda: schedule_deletion(number))
                continue
            if not found.is_due:
                return
            for _ in range(ROUNDS_AT_ONCE):
                if (yield Work(delete)):
                    break

    def _run(self, work: Generator[Work, Any, None]) -> None:
        result: Any = None
        try:
            while True:
                transaction = work.send(result)
                session = self._inbox.database.begin()
                try:
                    result = run(session, transaction.steps())
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
                    result = await run_async(session, transaction.steps())
                    await session.commit()
                except BaseException:
                    await session.rollback()
                    raise
        except StopIteration:
            return

    def _report(self, owned: Owned, error: Exception) -> None:
        expected = isinstance(error, StreamsError) or (
            self._inbox.database.classify(error) is not Failure.FAULT
        )
        log = logger.info if expected else logger.error
        log(
            "%s: rows of %s/%d were not purged, later again: %r",
            self._inbox.name, owned.scope.topic, owned.scope.partition, error,
        )  # fmt: skip
