"""The relay: takes what is committed in an outbox to the log, and deletes what the log confirmed.

Each time it reads the first rows that are to be relayed, whatever it has read before: a sequence's
numbers become visible out of order, as transactions commit late, so a remembered position would
pass over some, and waiting until no older transaction is open is stalled by any that is. What one
statement sees is enough for order: if one transaction began after another had committed, the rows
of both are seen together, and the earlier one has the smaller numbers.

Each topic goes to the log by itself, so that one which stands still holds up no other. Of a topic
one group of rows at a time is on its way, and the next is read meanwhile. Bounded by number and
bytes, they are all that is held in memory. While nothing more of a topic can be read, or the log
does not take it, the others are read each by itself, by an index: what waits of that topic may be
millions of rows, and is not walked past.

A row that cannot be published is marked with the reason, and its key waits: rows behind it are left
out of what is read until somebody has it tried again. A row whose topic the app does not declare is
marked as that, and so is what follows of its topic: a relay that comes to own the row's bucket, and
whose app declares the topic, as that of a newer version does, takes the mark away. An outage of the
log or of the database is waited out, and is no row's fault.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from streams.app import Streams
from streams.cancellation import run_to_completion
from streams.clock import SYSTEM
from streams.errors import ConfigError, LogError
from streams.health import OutboxHealth, OutboxStats
from streams.outbox.buckets import Buckets
from streams.outbox.databases import Database, open_database
from streams.outbox.groups import Group, GroupPublisher, Outcome
from streams.outbox.tables import Backlog, Row, Tables
from streams.text import describe_error, get_logger, one_line

logger = get_logger("streams")

SAMPLE_EVERY = 5.0
"""Seconds between two looks how many rows there are."""

RELEASE_EVERY = 30.0
"""Seconds between two looks whether rows wait for what has come about: one that they wait behind is
gone, or their topic is declared."""

KEYS_RELEASED_AT_ONCE, ROWS_RELEASED_AT_ONCE = 100, 5_000
"""Keys that are looked at, and rows that wait no longer, at once, at most: the connection has other
work, too, and a SQLite file other writers."""

TICKS = 5
"""How often in a lease a relay says that it is there."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds after an outage of the database before it is tried again: doubled each time."""

LEAVE_TIMEOUT = 5.0
"""Seconds that a relay which ends gives to what is on its way."""

MAX_TOPICS_NAMED = 100
"""Topics that are not declared and that are warned of. Whoever writes rows names them."""

MAX_ERROR = 500
"""Characters of an error that is stored."""


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How rows are relayed; see :class:`streams.outbox.Outbox`."""

    lease: float
    poll: float
    batch: int
    batch_bytes: int


@dataclass(slots=True)
class _Counts:
    """What a relay did."""

    relayed: int = 0
    failed: int = 0
    outages: int = 0


class Relay:
    """Relays one outbox on behalf of an app, until :meth:`run` is cancelled.

    :param address: where the database is; asked each time before a connection is opened.
    """

    def __init__(
        self, app: Streams, tables: Tables, address: Callable[[], str], options: RelayOptions
    ) -> None:
        self._app = app
        self._tables = tables
        self._address = address
        self._options = options
        self._counts = _Counts()
        self._backlog: Backlog | None = None
        self._is_running = False
        self._error: str | None = None
        self._reads_in_vain: str | None = None
        self._has_warned = False
        """Whether reads that outlasted the lease were logged since the last one in time."""
        self._undeclared: set[str] = set()
        """Undeclared topics that a warning was logged for."""
        self._pause = FIRST_PAUSE
        self._bucket_count = 0

    def stats(self) -> OutboxStats:
        """Figures of this moment (any thread)."""
        counts, backlog = self._counts, self._backlog
        known = backlog if self._is_running and backlog is not None else None
        return OutboxStats(
            relayed=counts.relayed,
            failures=counts.failed,
            outages=counts.outages,
            buckets=self._bucket_count,
            depth=None if known is None else known.depth,
            oldest=None if known is None else known.oldest or 0.0,
            failed=None if known is None else known.failed,
            waiting=None if known is None else known.waiting,
            undeclared=None if known is None else known.undeclared,
        )

    def health(self) -> OutboxHealth:
        """How it is (any thread)."""
        backlog = self._backlog
        failed = backlog.failed if backlog is not None else 0
        error = self._error or self._reads_in_vain
        return OutboxHealth(running=self._is_running, error=error, failed=failed)

    async def run(self) -> None:
        """Relay until cancelled. Whatever goes wrong is logged, and tried again.

        :raises ConfigError: the database's address cannot work.
        """
        self._pause, self._is_running = FIRST_PAUSE, True
        self._reads_in_vain = None
        try:
            while True:
                try:
                    async with _Session(self._app, self._open(), self._options, self) as session:
                        await session.serve()
                except ConfigError as error:
                    self._error = describe_error(error)
                    raise
                except Exception as error:
                    self._counts.outages += 1
                    unknown = not isinstance(error, LogError)
                    if unknown or self._error is None:
                        logger.warning(
                            "outbox %s: %s; trying again", self._tables.table, error,
                            exc_info=error if unknown else None,
                        )  # fmt: skip
                    self._error = describe_error(error)
                self._bucket_count = 0
                await asyncio.sleep(self._pause)
                self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        finally:
            self._is_running = False
            self._bucket_count = 0

    def _open(self) -> Database:
        return open_database(self._address(), self._tables)

    # What a session tells.

    def works(self) -> None:
        """The database lets the session do its work: the outage is over, if there was one.

        One that lets it read, and delete nothing, has it publish the same rows each time.
        """
        self._error = None
        self._pause = FIRST_PAUSE

    def reads_in_time(self) -> None:
        """What the session reads, it may relay."""
        self._reads_in_vain, self._has_warned = None, False

    def reads_in_vain(self, seconds: float, lease: float) -> None:
        """Once more the session has read what it may not relay any more.

        :param seconds: how long the reading took.
        """
        problem = (
            f"reading took {seconds:.1f} s, longer than lease={lease:g} allows: the rows were "
            "discarded, nothing is relayed"
        )
        if not self._has_warned:
            logger.warning("outbox %s: %s", self._tables.table, problem)
        self._reads_in_vain, self._has_warned = problem, True

    def relayed(self, rows: int) -> None:
        """The log has confirmed so many rows."""
        self._counts.relayed += rows

    def failed(self, topic: str, sequences: Sequence[int], reason: str) -> None:
        """Rows cannot be published."""
        self._counts.failed += len(sequences)
        more = f" and {len(sequences) - 1:,} more" if len(sequences) > 1 else ""
        logger.error(
            "outbox %s: row %d%s cannot be published to %s, and what follows of the key waits: %s",
            self._tables.table, sequences[0], more, topic, reason,
        )  # fmt: skip

    def undeclared(self, topics: Iterable[str]) -> None:
        """There are rows of topics that the app does not declare."""
        for topic in set(topics) - self._undeclared:
            if len(self._undeclared) < MAX_TOPICS_NAMED:
                self._undeclared.add(topic)
                logger.warning(
                    "outbox %s: rows of topic %s, which this app does not declare, wait for a "
                    "relay whose app does", self._tables.table, one_line(str(topic)),
                )  # fmt: skip

    def sampled(self, backlog: Backlog) -> None:
        """So many rows there are."""
        self._backlog = backlog

    def owns(self, buckets: int) -> None:
        """It owns so many buckets."""
        if buckets != self._bucket_count:
            logger.info("outbox %s: relaying %d buckets of keys", self._tables.table, buckets)
        self._bucket_count = buckets
        if not buckets:  # others relay: it has nothing to read
            self._reads_in_vain = None


@dataclass(slots=True)
class _TopicWrites:
    """A topic to which a group is on its way, and the group that is next."""

    following: Group | None = None


class _Session:
    """A relay on one connection to the database."""

    def __init__(
        self, app: Streams, database: Database, options: RelayOptions, relay: Relay
    ) -> None:
        self._app = app
        self._database = database
        self._options = options
        self._relay = relay
        self._clock = SYSTEM  # a lease is about real processes, whatever the app's clock says
        self._buckets = Buckets(database, SYSTEM, options.lease)
        self._awake = asyncio.Event()
        self._publisher = GroupPublisher(app, self._is_ours)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: dict[str, _TopicWrites] = {}
        """Topics to which something is on its way."""
        self._in_flight: Counter[int] = Counter()
        """Rows that are, or will be next, by bucket."""
        self._bytes_in_flight = 0
        self._skipped: dict[Group, list[int]] = {}
        """Sequences of rows that were read, and that the table still has as it had them."""
        self._overtaking: set[str] = set()
        """Topics of which rows are left that were read already: those that are being read now may
        be behind them, and are read anew."""
        self._paused_until: dict[str, float] = {}
        """Topics that the log could not take."""
        self._pauses: dict[str, float] = {}
        self._divisor = 1
        """What is read at once otherwise is divided by it, so that it is read in time."""
        self._times_in_vain = 0
        """How often in succession what was read came too late."""
        self._has_topic_index = False
        self._listener: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._next_tick = self._next_sample = self._next_release = 0.0

    async def __aenter__(self) -> _Session:
        try:
            await self._database.connect(self._options.lease)
            await self._database.connect_to_delete(self._options.lease)
            await self._database.create_tables()
            self._has_topic_index = await self._database.has_topic_index()
            await self._buckets.join()
        except BaseException:
            await self._database.close()
            raise
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, Exception):  # others may have its keys, if its connection is lost
            self._buckets.forget()
        await run_to_completion(self._close())

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        for writes in self._writes.values():
            if writes.following is not None:  # what has not begun does not
                self._drop(writes)
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=LEAVE_TIMEOUT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with suppress(LogError, TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self._buckets.leave()
        await self._database.close()

    async def _listen(self) -> None:
        """Be woken; where that fails, the poll finds what was written."""
        pause = 0.1
        while True:
            try:
                await self._database.listen(self._awake.set)
            except Exception as error:
                logger.info("outbox: %s; polled meanwhile", one_line(str(error)))
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)

    async def serve(self) -> None:
        """Relay until cancelled, or until something fails."""
        monotonic = self._clock.monotonic
        began = monotonic()
        while True:
            if self._failure is not None:
                raise self._failure
            now = monotonic()
            if now >= self._next_tick:
                await self._tick(now)
                if now - began > self._options.lease:
                    self._relay.works()
            self._awake.clear()  # before reading: what is written from here on sets it again
            if not await self._start_groups():
                if not self._skipped and not self._paused_until:  # nothing is left to be done
                    self._relay.works()
                await self._wait(max(0.0, self._next_tick - monotonic()))

    async def _tick(self, now: float) -> None:
        await self._keep_buckets(now)
        if now >= self._next_release and self._buckets.owned:
            self._next_release = now + RELEASE_EVERY
            await self._release()
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_EVERY
            rows = await self._database.execute(self._database.dialect.backlog())
            self._relay.sampled(Backlog(*rows[0]))

    async def _keep_buckets(self, now: float) -> None:
        before = self._buckets.owned
        await self._buckets.tick(+self._in_flight)
        self._relay.owns(len(self._buckets.owned))
        if self._buckets.owned - before:
            self._next_release = now
        self._next_tick = now + self._options.lease / TICKS

    async def _release(self) -> None:
        """Have rows wait no longer for what has come about."""
        database, dialect = self._database, self._database.dialect
        topics = dialect.list_parameter(list(self._app.topics))
        given = {**self._ownership(), "topics": topics}
        await database.execute(dialect.release_undeclared(), given)
        keys = await database.execute(
            dialect.keys_to_release(), {**given, "limit": KEYS_RELEASED_AT_ONCE}
        )
        room = ROWS_RELEASED_AT_ONCE
        for number, (first,) in enumerate(keys):
            key = {"first": first, "limit": -(-room // (len(keys) - number))}
            room -= len(await database.execute(dialect.release_waiting(), key))
        if room < ROWS_RELEASED_AT_ONCE:  # there may be more: soon again
            self._next_release = self._next_tick = 0.0

    def _ownership(self) -> dict[str, object]:
        """What a statement is given that is about rows of this relay's buckets."""
        buckets = self._database.dialect.list_parameter(sorted(self._buckets.owned))
        return {"relay": self._buckets.relay, "buckets": buckets}

    async def _wait(self, limit: float) -> None:
        """Until something was written, a group has ended, or it is time to look."""
        limit = min(limit, self._options.poll)
        for until in self._paused_until.values():
            limit = min(limit, max(0.0, until - self._clock.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._awake.wait()

    # -- from the table to the log

    async def _start_groups(self) -> bool:
        """Read rows and start them on their way; whether there were any."""
        options, now = self._options, self._clock.monotonic()
        share = 2 * self._divisor  # half of it at most, as the next are read meanwhile
        room = min(-(-options.batch // share), options.batch - self._in_flight.total())
        room_bytes = min(
            -(-options.batch_bytes // share), options.batch_bytes - self._bytes_in_flight
        )
        self._paused_until = {t: u for t, u in self._paused_until.items() if u > now}
        if not self._buckets.owned or room <= 0 or room_bytes <= 0:
            return False
        dialect = self._database.dialect
        self._overtaking.clear()
        term = self._buckets.term
        rows = found = await self._read(room, room_bytes)
        if not self._buckets.holds(term):  # it took long
            await self._keep_buckets(self._clock.monotonic())
            rows = [row for row in rows if row.bucket in self._buckets.owned]
        if not self._has_read(term, self._clock.monotonic() - now):
            return bool(found)
        by_topic: dict[str, list[Row]] = {}
        held: list[int] = []
        undeclared: list[Row] = []
        for row in rows:
            if row.topic not in self._app.topics:
                undeclared.append(row)
            elif row.held:
                held.append(row.sequence)
            else:
                by_topic.setdefault(row.topic, []).append(row)
        started = [self._start_group(Group(topic, rows, term)) for topic, rows in by_topic.items()]
        if held:
            await self._database.execute(
                dialect.hold(), {"sequences": dialect.list_parameter(held)}
            )
        if undeclared:
            self._relay.undeclared(row.topic for row in undeclared)
            sequences = dialect.list_parameter([row.sequence for row in undeclared])
            await self._database.execute(dialect.set_aside(), {"sequences": sequences})
        return bool(held or undeclared) or any(started)

    async def _read(self, room: int, room_bytes: int) -> list[Row]:
        """Rows to be relayed, of the topics of which some can be.

        :param room: how many, at most.
        :param room_bytes: their bytes; the last one may have more.
        """
        database, dialect = self._database, self._database.dialect
        busy = {topic for topic, writes in self._writes.items() if writes.following is not None}
        busy.update(self._paused_until)
        skipped = [row for rows in self._skipped.values() for row in rows]
        given = {**self._ownership(), "skipped": dialect.list_parameter(skipped)}
        if not busy or not self._has_topic_index:
            given["busy"] = dialect.list_parameter(list(busy))
            return await database.fetch({**given, "limit": room, "bytes": room_bytes})
        rows: list[Row] = []
        others = dialect.list_parameter([each for each in self._app.topics if each not in busy])
        topics = await database.execute(dialect.topics_with_rows(), {"topics": others})
        for number, (topic,) in enumerate(topics):
            share = len(topics) - number  # of the room: of what those before it left, too
            bounds = {"limit": -(-room // share), "bytes": -(-room_bytes // share)}
            found = await database.fetch({**given, "topic": topic, **bounds})
            group = Group(topic, found, self._buckets.term)
            rows += group.rows
            room -= len(group.rows)
            room_bytes -= group.size
            if room <= 0 or room_bytes <= 0:
                break
        return rows

    def _has_read(self, term: int, seconds: float) -> bool:
        """Whether what was read may be relayed. Where it may not, less is read the next time.

        :param term: that of the ownership when the reading began.
        """
        lease = self._options.lease
        if self._buckets.holds(term):
            self._times_in_vain = 0
            self._relay.reads_in_time()
            if seconds < lease / 4:
                self._divisor = max(1, self._divisor // 2)
            return True
        self._divisor = min(2 * self._divisor, self._options.batch)
        self._times_in_vain += 1
        if self._times_in_vain > 1:  # once is no wonder: the process may have been frozen
            self._relay.reads_in_vain(seconds, lease)
        return False

    def _is_ours(self, group: Group) -> bool:
        """Nobody else can have its keys since it was read."""
        return self._buckets.holds(group.term)

    def _start_group(self, group: Group) -> bool:
        """Publish it, or behind what is on its way to its topic; whether it was taken.

        What is behind was read before it is known whether what is in front arrives. It is dropped,
        to be read anew, unless all of that has.
        """
        writes = self._writes.get(group.topic)
        if group.topic in self._overtaking or (writes is not None and writes.following is not None):
            return False  # since it was read
        self._in_flight += group.buckets
        self._bytes_in_flight += group.size
        self._skipped[group] = group.sequences
        if writes is None:
            self._writes[group.topic] = _TopicWrites()
            self._spawn(group)
        else:
            writes.following = group
        return True

    def _spawn(self, group: Group) -> None:
        task = asyncio.create_task(self._relay_group(group))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failure = error
                self._buckets.forget()
            self._awake.set()

        task.add_done_callback(ended)

    async def _relay_group(self, group: Group) -> None:
        """Publish rows of one topic, and delete or mark them."""
        if not self._is_ours(group):  # others may have its keys: read anew what is ours
            self._next_tick = 0.0
            self._arrived(group, Outcome())
            self._done(group)
            return
        try:
            outcome = await self._publisher.publish(group)
        except BaseException:
            self._arrived(group, Outcome())
            raise
        database, dialect = self._database, self._database.dialect
        # Before the next of the topic goes on its way: it waits for a row that is marked.
        for reason, sequences in outcome.failures_by_reason().items():
            self._relay.failed(group.topic, sequences, reason)
            await database.execute(
                dialect.fail(),
                {
                    "sequences": dialect.list_parameter(sequences),
                    "error": reason.replace("\0", "")[:MAX_ERROR],
                },
            )
        self._pause_topic(group.topic, outcome.outage)
        self._arrived(group, outcome)
        if outcome.confirmed:
            self._relay.relayed(len(outcome.confirmed))
            await database.delete(outcome.confirmed)
            self._relay.works()
        self._done(group)

    def _arrived(self, group: Group, outcome: Outcome) -> None:
        """It is known what became of a group: the next of its topic goes on its way, or is dropped.

        Rows that the log has are skipped until they are deleted. Others are read anew, and before
        those that are behind them.
        """
        self._in_flight -= group.buckets
        self._bytes_in_flight -= group.size
        writes = self._writes[group.topic]
        following, writes.following = writes.following, None
        if following is None:
            del self._writes[group.topic]
        elif len(outcome.confirmed) == len(group.rows):
            self._spawn(following)
        else:
            del self._writes[group.topic]
            self._forget(following)
        if len(outcome.confirmed) != len(group.rows):
            self._skipped[group] = outcome.confirmed
            self._overtaking.add(group.topic)
        self._awake.set()

    def _drop(self, writes: _TopicWrites) -> None:
        following, writes.following = writes.following, None
        if following is not None:
            self._forget(following)

    def _forget(self, group: Group) -> None:
        """A group that has not begun will not."""
        self._in_flight -= group.buckets
        self._bytes_in_flight -= group.size
        self._done(group)

    def _done(self, group: Group) -> None:
        """The table says what became of it."""
        self._skipped.pop(group, None)
        self._awake.set()

    def _pause_topic(self, topic: str, outage: LogError | None) -> None:
        if outage is None:
            self._pauses.pop(topic, None)
            return
        pause = self._pauses.get(topic, 0.05)
        if topic not in self._pauses:
            logger.warning("outbox: pausing topic %s: %s", topic, outage)
        self._pauses[topic] = min(5.0, 2 * pause)
        self._paused_until[topic] = self._clock.monotonic() + pause
