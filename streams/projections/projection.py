"""One version of a projection that an app declares: its statements in handlers' transactions, and
its promotion.

While the app's processors run, a task of each version polls the database: it declares the version
there, and promotes it once it has come far enough, if it is newer than the serving version. *Far
enough* means everything that the serving version has handled. Until nearly nothing is missing, the
committed positions of both groups decide. Then the serving version is paused, for :data:`HOLD`
seconds at most, and its handled messages are compared row by row, so that a reader who switches
from its tables to the new ones never goes back in time. If no version serves yet, *far enough* is
everything that was in the topics when the version was first seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from streams.connection import Connection
from streams.databases.protocol import Database, DialectName, FailureKind, Steps
from streams.engine.progress import decode_generation
from streams.errors import ConfigError, LogError
from streams.health import ProjectionStats
from streams.inbox.identity import Scope
from streams.inbox.tables import find_version
from streams.log.protocol import Committed, Log
from streams.log.range_reader import is_message_free
from streams.message import Message, Position
from streams.processing.job import reset_generation
from streams.projections import tables
from streams.projections.sessions import (
    BlockingCall,
    CommitRequest,
    ConnectionCall,
    Transactions,
    Work,
)
from streams.projections.tables import Ends, StoredVersion
from streams.projections.waiting import find_waiting
from streams.text import describe_error, get_logger

logger = get_logger("streams.projections")

INTERVAL = 0.5
"""Seconds between two polls, while the version may be promoted."""

IDLE_INTERVAL = 5.0
"""Seconds between two polls once the version serves, or is promoted by a user."""

HOLD = 2.0
"""The most seconds for which the serving version is paused."""

IDLE = 60.0
"""Seconds between two statements of the promoting transaction, including those of ``on_promote``,
after which PostgreSQL ends it: the serving version is paused meanwhile."""

LOOK_AGAIN = 0.02
"""Seconds between two comparisons during the pause."""

NEAR = 1_000
"""Messages of a partition that may be missing when the serving version is paused."""

LACKS = "messages that the serving version has handled wait here to be tried again"
"""Why a version is not promoted: they are settled and not handled."""

Hook = Callable[[Any], object]
"""Called with the connection or session of the transaction that promotes a version."""


class PromotionOutcome(NamedTuple):
    """The outcome of an attempt to promote.

    :param promoted: the version serves now, or did before.
    :param reason: why it was not promoted.
    :param is_near: the next attempt may succeed in a moment.
    """

    promoted: bool
    reason: str = ""
    is_near: bool = False


def group_of(name: str, version: int) -> str:
    """The group of a version of a projection."""
    return f"{name}.v{version}"


Scopes = dict[tuple[str, int], tuple[int, int]]
"""By partition of a group: its number in the inbox, and the position below which everything is
settled."""


class Projection:
    """A version of a projection, as a processor with ``version=`` declares it.

    :param connection: the app.
    :param name: the projection's name: the processor's ``group=``.
    :param topics: the topics that the version reads.
    :param database: the database with its tables.
    :param promotes: promote the version as soon as it has come far enough.
    :param on_promote: called in the promoting transaction.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        version: int,
        topics: Iterable[str],
        database: Database[Any],
        *,
        promotes: bool,
        on_promote: Hook | None,
    ) -> None:
        self.name = name
        """The projection's name."""
        self.version = version
        """The number of the version."""
        self.topics = tuple(topics)
        self.database = database
        self.promotes = promotes
        self.serving: int | None = None
        """The version whose tables are to be read, as last seen; None: there is none yet. Code that
        must be certain queries ``streams_projections`` in its own transaction."""
        self._connection = connection
        self._on_promote = on_promote
        self.transactions = Transactions(database)
        self._known = False
        self._complained = False
        self._failures = 0
        database.reserve_connections(1)

    def __repr__(self) -> str:
        return f"<Projection {self.name!r} version {self.version}>"

    @property
    def group(self) -> str:
        """The group of this version."""
        return group_of(self.name, self.version)

    def stats(self) -> ProjectionStats:
        """Figures of this moment (any thread)."""
        serving = self.serving == self.version
        return ProjectionStats(self.name, self.version, serving, self._failures)

    # -- in a handler's transaction

    def check(self, message: Message[Any]) -> None:
        """Check that a message is not being handled again on purpose.

        :raises ConfigError: it is, as the group was reset, or this is a replay.
        """
        if reset_generation(message.assignment):
            raise ConfigError(
                f"projection {self.name!r} version {self.version}: its group {self.group!r} was "
                "reset, or this is a replay into its handler: it would write a second time into "
                "tables that have it. Declare the next version with tables of its own, which is "
                "built beside this one"
            )

    def handle(self, dialect: DialectName, patience: float) -> Steps[None]:
        """The statements of this version in each transaction of a handler."""
        return tables.enter_handler(dialect, self.name, self.version, patience, HOLD)

    # -- beside the processors

    async def keep_promoting(self) -> None:
        """Declare the version in the database, and promote it when possible; until cancelled."""
        try:
            while True:
                pause = IDLE_INTERVAL
                try:
                    if not await self.poll_once():
                        pause = INTERVAL
                    self._complained = False
                except Exception as error:
                    self._report_error(error)
                await asyncio.sleep(pause)
        finally:
            self.transactions.close()

    def _report_error(self, error: Exception) -> None:
        if isinstance(error, LogError) or self.database.classify(error) is not FailureKind.FAULT:
            logger.info("%r: looks again later: %s", self, describe_error(error))
            return
        self._failures += 1
        if not self._complained:
            self._complained = True
            logger.error("%r: cannot be promoted, looks again: %s", self, describe_error(error))

    async def poll_once(self) -> bool:
        """Poll once. True: there is nothing more to do for now."""
        known = await self.known_versions()
        serving = max((each.version for each in known if each.serves), default=None)
        if self.promotes and (serving is None or serving < self.version):
            outcome = await self.promote()
            if outcome.promoted:
                serving = self.version
        self.serving = serving
        return not self.promotes or (serving is not None and serving >= self.version)

    async def known_versions(self) -> list[StoredVersion]:
        """The projection's versions in the database, where this version is declared if it is
        missing."""
        if not self._known:
            await self._make_known()
        found = await self.transactions.run(tables.versions_of(self.name), reading=True)
        if all(each.version != self.version for each in found):  # its row was deleted
            await self._make_known()
            found = await self.transactions.run(tables.versions_of(self.name), reading=True)
        return found

    async def _make_known(self) -> None:
        is_there = await self.transactions.run(find_table(self.database))
        dialect = self.database.dialect
        if not is_there and not self.database.create:
            raise ConfigError(
                f"{self!r}: the table streams_projections is missing in its database; make it with "
                f"what `streams projections ddl {dialect}` prints, or leave out create=False"
            )
        if not is_there:
            await self.transactions.run(run_and_commit(tables.create_missing(dialect)))
        goal = await asyncio.to_thread(ends_of, self._connection.log, self.topics)
        await self.transactions.run(
            run_and_commit(tables.declare(dialect, self.name, self.version, goal))
        )
        self._known = True

    # -- promoting

    async def promote(self) -> PromotionOutcome:
        """Promote the version, if it has come far enough.

        :raises LogError: the log does not answer.
        :raises Exception: the database's own error, or what ``on_promote`` raised; nothing has
            changed.
        """
        log = self._connection.log
        known = {each.version: each for each in await self.known_versions()}
        serving = max((each.version for each in known.values() if each.serves), default=None)
        if serving is not None and serving >= self.version:
            same = serving == self.version
            return PromotionOutcome(
                same, "" if same else f"version {serving} serves, which is newer"
            )
        settled = await asyncio.to_thread(_settled_positions, log, self.group, self.topics)
        goal = dict(known[self.version].goal)
        if serving is not None:
            read = [topic for topic in self.topics if topic in known[serving].goal]
            group = group_of(self.name, serving)
            goal |= await asyncio.to_thread(_group_positions, log, group, read)
        if behind := await asyncio.to_thread(_first_behind, log, goal, settled, near=serving):
            return PromotionOutcome(False, behind)
        outcome = await self._promote_over(serving, holds=True)
        ends = time.monotonic() + HOLD
        while not outcome.promoted and outcome.is_near and time.monotonic() < ends:
            # On SQLite no other writer can go on while the transaction is open, so it is begun
            # again.
            await asyncio.sleep(LOOK_AGAIN)
            outcome = await self._promote_over(serving, holds=False)
        if outcome.promoted:
            logger.info("projection %s: version %d serves from now on", self.name, self.version)
            self.serving = self.version
        return outcome

    async def _promote_over(self, serving: int | None, *, holds: bool) -> PromotionOutcome:
        """Promote the version in one transaction, if it lacks nothing that the serving version has
        handled.

        :param holds: on SQLite: if something is missing, pause the serving version.
        """
        log, theirs, ours, waiting = self._connection.log, Scopes(), Scopes(), set[Position]()
        if serving is not None:  # the log is asked before others wait for this transaction
            group = group_of(self.name, serving)
            theirs = await asyncio.to_thread(_inbox_scopes, log, group, self.topics)
            ours, found = await asyncio.to_thread(self._progress)
            if found is None:
                return PromotionOutcome(False, "many of its messages wait to be tried again")
            waiting = found
            if await self.transactions.run(self._lacks(theirs, waiting), reading=True):
                return PromotionOutcome(False, LACKS)  # and nobody is paused for that
        return await self.transactions.run(
            self._promotion_steps(serving, theirs, ours, waiting, holds=holds)
        )

    def _lacks(self, theirs: Scopes, waiting: Collection[Position]) -> Work[bool]:
        """Whether the serving version has handled a message that waits to be tried again here."""
        dialect = self.database.dialect
        if not waiting or (yield from find_version(dialect)) is None:
            return False
        for topic, partition, offset in waiting:
            if (topic, partition) not in theirs:
                return True  # the partition was added since: the next poll knows it
            scope, _ = theirs[topic, partition]
            if (yield from tables.has_handled(dialect, scope, offset)):
                return True
        return False

    def _promotion_steps(
        self,
        serving: int | None,
        theirs: Scopes,
        ours: Scopes,
        waiting: Collection[Position],
        *,
        holds: bool,
    ) -> Work[PromotionOutcome]:
        dialect = self.database.dialect
        if not (yield from tables.lock_promotion(dialect, self.name, lock=HOLD, idle=IDLE)):
            return PromotionOutcome(False, "another process is promoting a version of it")
        now = yield from tables.versions_of(self.name)
        if serving != max((each.version for each in now if each.serves), default=None):
            return PromotionOutcome(False, "another version was promoted meanwhile")
        if serving is not None:
            yield from tables.stop_handlers(dialect, self.name, serving)
            if (yield from self._lacks(theirs, waiting)):
                return PromotionOutcome(False, LACKS)
        if serving is not None and not (yield from self._has_all_of(theirs, ours)):
            if dialect == "sqlite" and holds:
                yield from tables.hold_handlers(self.name, serving, HOLD)
                yield CommitRequest()
            reason = f"version {serving} is ahead of it by a little"
            return PromotionOutcome(False, reason, is_near=dialect == "sqlite")
        yield from tables.promote_version(dialect, self.name, self.version)
        if self._on_promote is not None:
            yield ConnectionCall(self._on_promote)
        yield CommitRequest()
        return PromotionOutcome(True)

    def _has_all_of(self, theirs: Scopes, ours: Scopes) -> Work[bool]:
        """Check that this version lacks nothing that the serving version, which is paused until
        this transaction ends, has handled.

        :param ours: this version's positions of a moment ago or earlier, which are not beyond the
            current ones.
        """
        dialect = self.database.dialect
        if (yield from find_version(dialect)) is None:
            return True  # there is no inbox yet: nothing was handled
        ends = time.monotonic() + HOLD
        while (yield from _is_behind(dialect, theirs, ours)):
            if dialect == "sqlite" or time.monotonic() > ends:
                return False
            ours, waiting = yield BlockingCall(self._progress_in_a_moment)
            if waiting is None or (yield from self._lacks(theirs, waiting)):
                return False
        return True

    def _progress(self) -> tuple[Scopes, set[Position] | None]:
        """This version's positions, and its messages that wait to be tried again; None: there are
        too many. Read in this order: what was settled below the positions, and not handled, waits
        by then."""
        log = self._connection.log
        ours = _inbox_scopes(log, self.group, self.topics)
        return ours, find_waiting(log, self.group, self.topics)

    def _progress_in_a_moment(self) -> tuple[Scopes, set[Position] | None]:
        time.sleep(LOOK_AGAIN)
        return self._progress()


def find_table(database: Database[Any]) -> Work[bool]:
    """Whether the table of projections exists."""
    return (yield from tables.find_table(database.dialect))  # known once a session is open


def run_and_commit(steps: Steps[None]) -> Work[None]:
    """Run statements, and commit."""
    yield from steps
    yield CommitRequest()


def _is_behind(dialect: DialectName, theirs: Scopes, ours: Scopes) -> Steps[bool]:
    """Whether the serving version has handled messages that this one has not."""
    for place, (scope, settled) in ours.items():
        if place not in theirs:
            return True  # the partition was added since: the next poll knows it
        if (yield from tables.is_behind(dialect, theirs[place][0], scope, settled)):
            return True
    return False


def ends_of(log: Log, topics: Iterable[str]) -> Ends:
    """The current ends of topics (blocks)."""
    return {
        topic: {
            partition: log.watermarks(topic, partition)[1]
            for partition in range(log.describe_topic(topic).partitions)
        }
        for topic in topics
    }


def _group_positions(log: Log, group: str, topics: Iterable[str]) -> Ends:
    return {
        topic: {number: found.position for number, found in log.committed(group, topic).items()}
        for topic in topics
    }


def _settled_positions(log: Log, group: str, topics: Iterable[str]) -> Ends:
    """The positions of a group, or the beginnings of its topics if those are further: earlier
    messages are gone, and a partition of which nothing was handled has no position."""
    found = _group_positions(log, group, topics)
    return {
        topic: {
            partition: max(found[topic].get(partition, 0), log.watermarks(topic, partition)[0])
            for partition in range(log.describe_topic(topic).partitions)
        }
        for topic in topics
    }


def _first_behind(log: Log, goal: Ends, settled: Ends, *, near: int | None) -> str:
    """Describes where a version has not come far enough; empty: nowhere.

    :param near: the serving version, of which at most :data:`NEAR` messages may be missing; None:
        nothing may be.
    """
    for topic, ends in goal.items():
        for partition, end in ends.items():
            position = settled.get(topic, {}).get(partition, 0)
            if position < end:  # a topic that was created again since may end before that
                end = min(end, log.watermarks(topic, partition)[1])
            if position >= end:
                continue
            if near is not None:
                lags = (log.lag(topic, partition, each) for each in (position, end))
                found = [each for each in lags if each is not None]
                if len(found) == 2 and found[0] - found[1] <= NEAR:
                    continue
            if is_message_free(log, topic, partition, position, end):
                continue
            return f"it is behind in {topic}/{partition}"
    return ""


def _inbox_scopes(log: Log, group: str, topics: Iterable[str]) -> Scopes:
    found = Scopes()
    for topic in topics:
        incarnation, positions = log.incarnation(topic), log.committed(group, topic)
        for partition in range(log.describe_topic(topic).partitions):
            committed = positions.get(partition, Committed(0))
            generation = decode_generation(committed.progress) if committed.progress else 0
            scope = Scope(incarnation, group, generation, topic, partition)
            found[topic, partition] = (scope.number, committed.position)
    return found


def scope_numbers(log: Log, group: str, topics: Iterable[str]) -> list[int]:
    """The numbers in the inbox of the partitions in which a version handled (blocks): of generation
    0, which a reset ends and :meth:`Projection.check` lets nobody follow."""
    return [
        Scope(log.incarnation(topic), group, 0, topic, partition).number
        for topic in topics
        for partition in range(log.describe_topic(topic).partitions)
    ]
