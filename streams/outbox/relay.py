"""The relay: publishes the committed rows of an outbox, and deletes those that the log confirmed.

Each read begins with the first row to be relayed, whatever was read before: a sequence's numbers
become visible out of order, as transactions commit late, so a remembered position would skip some,
and waiting for all older transactions would be stalled by any open one. The snapshot of one
statement is enough for order: if one transaction began after another had committed, the rows of
both are seen together, and the earlier one has the smaller numbers.

Topics are published independently, so that a blocked one does not delay the others. One group of
rows per topic is in flight, and the next is read meanwhile. Only these groups, bounded by number
and bytes, are in memory. While no more rows of a topic can be read, or the log does not accept
them, the other topics are read one by one, by an index: the blocked topic may have millions of
rows, which are not scanned.

A row that cannot be published is marked with the reason, and its key waits: rows behind it are not
read until a user retries it. A row whose topic the app does not declare is marked as undeclared,
and so are the following rows of its topic: a relay that owns the row's bucket later, and whose app
(a newer version, for example) declares the topic, removes the mark. During an outage of the log or
of the database the relay waits, and no row is marked as failed.
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
from streams.outbox.databases import RelayDatabase, open_database
from streams.outbox.groups import GroupOutcome, GroupPublisher, RowGroup
from streams.outbox.tables import OutboxBacklog, RelayRow, TableNames
from streams.text import describe_error, get_logger, one_line

logger = get_logger("streams")

SAMPLE_EVERY = 5.0
"""Seconds between two counts of the rows."""

RELEASE_EVERY = 30.0
"""Seconds between two checks whether waiting rows can be released: the row that they wait behind is
gone, or their topic is declared."""

KEYS_RELEASED_AT_ONCE, ROWS_RELEASED_AT_ONCE = 100, 5_000
"""The most keys that are checked, and rows that are released, at once: the connection has other
work, too, and a SQLite file other writers."""

HEARTBEATS = 5
"""Heartbeats of a relay in the time of a lease."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds after an outage of the database before it is tried again: doubled each time."""

LEAVE_TIMEOUT = 5.0
"""Seconds for which a relay that ends waits for the rows in flight."""

MAX_TOPICS_NAMED = 100
"""The most undeclared topics that are warned of: their number is unbounded, as writers of rows
choose the names."""

MAX_ERROR = 500
"""Characters of a stored error, at most."""


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How rows are relayed; see :class:`streams.outbox.Outbox`."""

    lease: float
    poll: float
    batch: int
    batch_bytes: int


@dataclass(slots=True)
class _RelayCounts:
    """Counters of a relay."""

    relayed: int = 0
    failed: int = 0
    outages: int = 0


class Relay:
    """Relays one outbox on behalf of an app, until :meth:`run` is cancelled.

    :param address: returns the database's address; called each time before a connection is opened.
    """

    def __init__(
        self, app: Streams, tables: TableNames, address: Callable[[], str], options: RelayOptions
    ) -> None:
        self._app = app
        self._tables = tables
        self._address = address
        self._options = options
        self._counts = _RelayCounts()
        self._backlog: OutboxBacklog | None = None
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
        """The relay's health (any thread)."""
        backlog = self._backlog
        failed = backlog.failed if backlog is not None else 0
        error = self._error or self._reads_in_vain
        return OutboxHealth(running=self._is_running, error=error, failed=failed)

    async def run(self) -> None:
        """Relay until cancelled. Failures are logged, and retried.

        :raises ConfigError: the database's address cannot work.
        """
        self._pause, self._is_running = FIRST_PAUSE, True
        self._reads_in_vain = None
        try:
            while True:
                try:
                    async with _RelaySession(
                        self._app, self._open(), self._options, self
                    ) as session:
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

    def _open(self) -> RelayDatabase:
        return open_database(self._address(), self._tables)

    # Reports of a session.

    def record_success(self) -> None:
        """Note that the database accepts the session's work: an outage is over.

        Reading alone does not show that: if nothing could be deleted, the same rows would be
        published each time.
        """
        self._error = None
        self._pause = FIRST_PAUSE

    def record_timely_read(self) -> None:
        """Note that rows were read in time to be relayed."""
        self._reads_in_vain, self._has_warned = None, False

    def record_late_read(self, seconds: float, lease: float) -> None:
        """Note another read that took too long, so that its rows may not be relayed any more.

        :param seconds: how long the reading took.
        """
        problem = (
            f"reading took {seconds:.1f} s, longer than lease={lease:g} allows: the rows were "
            "discarded, nothing is relayed"
        )
        if not self._has_warned:
            logger.warning("outbox %s: %s", self._tables.table, problem)
        self._reads_in_vain, self._has_warned = problem, True

    def count_relayed(self, rows: int) -> None:
        """Count rows that the log has confirmed."""
        self._counts.relayed += rows

    def record_failed_rows(self, topic: str, sequences: Sequence[int], reason: str) -> None:
        """Note rows that cannot be published."""
        self._counts.failed += len(sequences)
        more = f" and {len(sequences) - 1:,} more" if len(sequences) > 1 else ""
        logger.error(
            "outbox %s: row %d%s cannot be published to %s, and later rows of its key wait: %s",
            self._tables.table, sequences[0], more, topic, reason,
        )  # fmt: skip

    def record_undeclared(self, topics: Iterable[str]) -> None:
        """Note rows of topics that the app does not declare."""
        for topic in set(topics) - self._undeclared:
            if len(self._undeclared) < MAX_TOPICS_NAMED:
                self._undeclared.add(topic)
                logger.warning(
                    "outbox %s: rows of topic %s, which this app does not declare, wait for a "
                    "relay whose app does", self._tables.table, one_line(str(topic)),
                )  # fmt: skip

    def record_backlog(self, backlog: OutboxBacklog) -> None:
        """Note the numbers of rows."""
        self._backlog = backlog

    def record_owned_buckets(self, buckets: int) -> None:
        """Note the number of owned buckets."""
        if buckets != self._bucket_count:
            logger.info("outbox %s: relaying %d buckets of keys", self._tables.table, buckets)
        self._bucket_count = buckets
        if not buckets:  # others relay: it has nothing to read
            self._reads_in_vain = None


@dataclass(slots=True)
class _TopicWrites:
    """The group of a topic that is in flight, and the next group."""

    following: RowGroup | None = None


class _RelaySession:
    """A relay on one connection to the database."""

    def __init__(
        self, app: Streams, database: RelayDatabase, options: RelayOptions, relay: Relay
    ) -> None:
        self._app = app
        self._database = database
        self._options = options
        self._relay = relay
        self._clock = SYSTEM  # a lease is about real processes, whatever the app's clock says
        self._buckets = Buckets(database, SYSTEM, options.lease)
        self._awake = asyncio.Event()
        self._publisher = GroupPublisher(app, self._owns_group)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: dict[str, _TopicWrites] = {}
        """The topics with a group in flight."""
        self._in_flight: Counter[int] = Counter()
        """By bucket, the rows of the groups in flight and of the next ones."""
        self._bytes_in_flight = 0
        self._skipped: dict[RowGroup, list[int]] = {}
        """The sequences of rows that were read and are still unchanged in the table."""
        self._overtaking: set[str] = set()
        """Topics with dropped groups, whose rows are read again: rows of a read in progress may be
        behind them, and are read again, too."""
        self._paused_until: dict[str, float] = {}
        """Until when topics are paused, as the log could not take their rows."""
        self._pauses: dict[str, float] = {}
        self._divisor = 1
        """Divides the number of rows of one read, so that they are read in time."""
        self._times_in_vain = 0
        """Consecutive reads that took too long."""
        self._has_topic_index = False
        self._listener: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._next_heartbeat = self._next_sample = self._next_release = 0.0

    async def __aenter__(self) -> _RelaySession:
        try:
            await self._database.connect(self._options.lease)
            await self._database.connect_to_delete(self._options.lease)
            await self._database.create_tables()
            self._has_topic_index = await self._database.has_topic_index()
            await self._buckets.take_lock()
        except BaseException:
            await self._database.close()
            raise
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, Exception):  # others may own its keys, if its connection is lost
            self._buckets.give_up()
        await run_to_completion(self._close())

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        for writes in self._writes.values():
            if writes.following is not None:  # groups that have not begun are dropped
                self._drop_writes(writes)
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
        """Listen for written rows; if that fails, the poll finds them."""
        pause = 0.1
        while True:
            try:
                await self._database.listen(self._awake.set)
            except Exception as error:
                logger.info("outbox: %s; polled meanwhile", one_line(str(error)))
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)

    async def serve(self) -> None:
        """Relay until cancelled, or until a statement fails."""
        monotonic = self._clock.monotonic
        began = monotonic()
        while True:
            if self._failure is not None:
                raise self._failure
            now = monotonic()
            if now >= self._next_heartbeat:
                await self._run_periodic_work(now)
                if now - began > self._options.lease:
                    self._relay.record_success()
            self._awake.clear()  # before reading: rows written from here on set it again
            if not await self._start_groups():
                if not self._skipped and not self._paused_until:  # there is no more work
                    self._relay.record_success()
                await self._wait_for_work(max(0.0, self._next_heartbeat - monotonic()))

    async def _run_periodic_work(self, now: float) -> None:
        """Send a heartbeat, release rows and measure the backlog, each as often as it has to be."""
        await self._keep_buckets(now)
        if now >= self._next_release and self._buckets.owned:
            self._next_release = now + RELEASE_EVERY
            await self._release_waiting()
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_EVERY
            rows = await self._database.execute(self._database.dialect.backlog())
            self._relay.record_backlog(OutboxBacklog(*rows[0]))

    async def _keep_buckets(self, now: float) -> None:
        before = self._buckets.owned
        await self._buckets.send_heartbeat(+self._in_flight)
        self._relay.record_owned_buckets(len(self._buckets.owned))
        if self._buckets.owned - before:
            self._next_release = now
        self._next_heartbeat = now + self._options.lease / HEARTBEATS

    async def _release_waiting(self) -> None:
        """Release the rows whose wait is over."""
        database, dialect = self._database, self._database.dialect
        topics = dialect.list_parameter(list(self._app.topics))
        given = {**self._ownership_parameters(), "topics": topics}
        await database.execute(dialect.release_undeclared(), given)
        keys = await database.execute(
            dialect.keys_to_release(), {**given, "limit": KEYS_RELEASED_AT_ONCE}
        )
        room = ROWS_RELEASED_AT_ONCE
        for number, (first,) in enumerate(keys):
            key = {"first": first, "limit": -(-room // (len(keys) - number))}
            room -= len(await database.execute(dialect.release_waiting(), key))
        if room < ROWS_RELEASED_AT_ONCE:  # there may be more: soon again
            self._next_release = self._next_heartbeat = 0.0

    def _ownership_parameters(self) -> dict[str, object]:
        """The parameters of a statement about rows of this relay's buckets."""
        buckets = self._database.dialect.list_parameter(sorted(self._buckets.owned))
        return {"relay": self._buckets.relay, "buckets": buckets}

    async def _wait_for_work(self, limit: float) -> None:
        """Wait until rows were written, a group has ended, or the next poll is due."""
        limit = min(limit, self._options.poll)
        for until in self._paused_until.values():
            limit = min(limit, max(0.0, until - self._clock.monotonic()))
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._awake.wait()

    # -- from the table to the log

    async def _start_groups(self) -> bool:
        """Read rows and start to publish them; returns whether there were any."""
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
        rows = found = await self._read_rows(room, room_bytes)
        if not self._buckets.is_certain_since(term):  # it took long
            await self._keep_buckets(self._clock.monotonic())
            rows = [row for row in rows if row.bucket in self._buckets.owned]
        if not self._may_relay(term, self._clock.monotonic() - now):
            return bool(found)
        by_topic: dict[str, list[RelayRow]] = {}
        held: list[int] = []
        undeclared: list[RelayRow] = []
        for row in rows:
            if row.topic not in self._app.topics:
                undeclared.append(row)
            elif row.held:
                held.append(row.sequence)
            else:
                by_topic.setdefault(row.topic, []).append(row)
        started = [
            self._start_group(RowGroup(topic, rows, term)) for topic, rows in by_topic.items()
        ]
        if held:
            await self._database.execute(
                dialect.hold_rows(), {"sequences": dialect.list_parameter(held)}
            )
        if undeclared:
            self._relay.record_undeclared(row.topic for row in undeclared)
            sequences = dialect.list_parameter([row.sequence for row in undeclared])
            await self._database.execute(dialect.set_aside_undeclared(), {"sequences": sequences})
        return bool(held or undeclared) or any(started)

    async def _read_rows(self, room: int, room_bytes: int) -> list[RelayRow]:
        """Read rows to be relayed, of the topics whose rows can be published now.

        :param room: the most rows.
        :param room_bytes: the most bytes; the last row may exceed them.
        """
        database, dialect = self._database, self._database.dialect
        busy = {topic for topic, writes in self._writes.items() if writes.following is not None}
        busy.update(self._paused_until)
        skipped = [row for rows in self._skipped.values() for row in rows]
        given = {**self._ownership_parameters(), "skipped": dialect.list_parameter(skipped)}
        if not busy or not self._has_topic_index:
            given["busy"] = dialect.list_parameter(list(busy))
            return await database.fetch_rows({**given, "limit": room, "bytes": room_bytes})
        rows: list[RelayRow] = []
        others = dialect.list_parameter([each for each in self._app.topics if each not in busy])
        topics = await database.execute(dialect.topics_with_rows(), {"topics": others})
        for number, (topic,) in enumerate(topics):
            share = len(topics) - number  # a share of the room that the topics before it left
            bounds = {"limit": -(-room // share), "bytes": -(-room_bytes // share)}
            found = await database.fetch_rows({**given, "topic": topic, **bounds})
            group = RowGroup(topic, found, self._buckets.term)
            rows += group.rows
            room -= len(group.rows)
            room_bytes -= group.size
            if room <= 0 or room_bytes <= 0:
                break
        return rows

    def _may_relay(self, term: int, seconds: float) -> bool:
        """Whether the rows that were read may be relayed. If not, fewer are read the next time.

        :param term: the term of the ownership when the read began.
        """
        lease = self._options.lease
        if self._buckets.is_certain_since(term):
            self._times_in_vain = 0
            self._relay.record_timely_read()
            if seconds < lease / 4:
                self._divisor = max(1, self._divisor // 2)
            return True
        self._divisor = min(2 * self._divisor, self._options.batch)
        self._times_in_vain += 1
        if self._times_in_vain > 1:  # once means little: the process may have been frozen
            self._relay.record_late_read(seconds, lease)
        return False

    def _owns_group(self, group: RowGroup) -> bool:
        """Whether no other relay can have owned the group's keys since it was read."""
        return self._buckets.is_certain_since(group.term)

    def _start_group(self, group: RowGroup) -> bool:
        """Publish a group, or queue it behind its topic's group in flight; returns whether it was
        taken.

        A queued group was read before the outcome of the group in flight is known. Unless all rows
        of that one arrive, it is dropped, to be read again.
        """
        writes = self._writes.get(group.topic)
        if group.topic in self._overtaking or (writes is not None and writes.following is not None):
            return False  # since it was read
        self._in_flight += group.buckets
        self._bytes_in_flight += group.size
        self._skipped[group] = group.sequences
        if writes is None:
            self._writes[group.topic] = _TopicWrites()
            self._spawn_group(group)
        else:
            writes.following = group
        return True

    def _spawn_group(self, group: RowGroup) -> None:
        task = asyncio.create_task(self._relay_group(group))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failure = error
                self._buckets.give_up()
            self._awake.set()

        task.add_done_callback(ended)

    async def _relay_group(self, group: RowGroup) -> None:
        """Publish rows of one topic, and delete or mark them."""
        if not self._owns_group(group):  # others may own its keys: read again what is owned
            self._next_heartbeat = 0.0
            self._handle_outcome(group, GroupOutcome())
            self._stop_skipping(group)
            return
        try:
            outcome = await self._publisher.publish(group)
        except BaseException:
            self._handle_outcome(group, GroupOutcome())
            raise
        database, dialect = self._database, self._database.dialect
        # Before the topic's next group is published: its rows may have to wait behind a marked row.
        for reason, sequences in outcome.failures_by_reason().items():
            self._relay.record_failed_rows(group.topic, sequences, reason)
            await database.execute(
                dialect.fail_rows(),
                {
                    "sequences": dialect.list_parameter(sequences),
                    "error": reason.replace("\0", "")[:MAX_ERROR],
                },
            )
        self._pause_topic(group.topic, outcome.outage)
        self._handle_outcome(group, outcome)
        if outcome.confirmed:
            self._relay.count_relayed(len(outcome.confirmed))
            await database.delete_rows(outcome.confirmed)
            self._relay.record_success()
        self._stop_skipping(group)

    def _handle_outcome(self, group: RowGroup, outcome: GroupOutcome) -> None:
        """Take the outcome of a group: its topic's next group is published or dropped.

        Rows that the log has confirmed are skipped until they are deleted. Others are read again,
        before the rows behind them.
        """
        self._in_flight -= group.buckets
        self._bytes_in_flight -= group.size
        writes = self._writes[group.topic]
        following, writes.following = writes.following, None
        if following is None:
            del self._writes[group.topic]
        elif len(outcome.confirmed) == len(group.rows):
            self._spawn_group(following)
        else:
            del self._writes[group.topic]
            self._forget_group(following)
        if len(outcome.confirmed) != len(group.rows):
            self._skipped[group] = outcome.confirmed
            self._overtaking.add(group.topic)
        self._awake.set()

    def _drop_writes(self, writes: _TopicWrites) -> None:
        following, writes.following = writes.following, None
        if following is not None:
            self._forget_group(following)

    def _forget_group(self, group: RowGroup) -> None:
        """Drop a group that has not begun."""
        self._in_flight -= group.buckets
        self._bytes_in_flight -= group.size
        self._stop_skipping(group)

    def _stop_skipping(self, group: RowGroup) -> None:
        """Stop skipping the group's rows, as the table has its outcome."""
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
