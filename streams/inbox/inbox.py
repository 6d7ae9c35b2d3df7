"""The inbox of one processor: opens and prepares its database, and wraps its job's handler.

The database is opened with the app; its tables are checked when the first message is handled. While
the database cannot be reached, handlers wait in place, so the processor stops and no message uses
up an attempt; the wait ends when the database answers, when nothing may be started any more, or
when the message's partition is another member's.

A database that answers but cannot work (its disk is full, it has become a replica) is noticed
within a transaction. From then on single transactions, each after a longer pause, try whether it
works again; the first one that is committed ends the outage.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from typing_extensions import override

from streams.config import DeadLetters
from streams.connection import Connection
from streams.databases.locking import IDLE_WITH_LOCK, bound_waits
from streams.databases.protocol import (
    CRASHED,
    AsyncSession,
    Busy,
    Database,
    DialectName,
    Failure,
    Session,
    Steps,
    failure_of_answer,
    is_conflict_of_ours,
    is_file_of,
    run,
    run_async,
    state_of,
)
from streams.engine.dispatcher import Delivery
from streams.errors import (
    ConfigError,
    Fatal,
    LogError,
    StreamsError,
    error_chain,
    find_config_error,
)
from streams.health import InboxStats
from streams.inbox.identity import Entry, Identities, OwnedPartition
from streams.inbox.marks import RecordedPositions, begin_partition
from streams.inbox.purging import Purger
from streams.inbox.recording import Timeouts, Verdict, mark_dead
from streams.inbox.results import ResultOutbox, Results, choose_outbox
from streams.inbox.tables import check_version, create_missing, find_version
from streams.log.protocol import Assignment
from streams.message import Message, make_message, numbered_message, row_of
from streams.processing.job import DeadLetterAnswer, Decoding, Job, SeveralValues
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import describe_error, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.processor import Processor

logger = get_logger("streams.inbox")

RUNS_IN_PLACE = 5
"""Runs of a transaction that conflicts with others, in all, before that counts as a failed
attempt."""

RUN_AGAIN_PAUSE = 0.02
"""Seconds before a transaction is run again because of :class:`RunAgain`."""

RETRY_PAUSE = 0.25
"""Seconds between two attempts to reach the database."""

LONGEST_TRIAL_PAUSE = 2.0
"""The most seconds between two transactions that try whether a database that answers works
again."""

DEFAULT_LEASE = 10.0
"""Seconds of a lease where no partition moves to other members, as in a replay."""

BEGIN_LOCK = 5.0
"""The most seconds that the transaction which begins a partition waits for a lock."""


R = TypeVar("R")


class BegunAsync(NamedTuple, Generic[R]):
    """Begins a transaction with the first of these statements."""

    session: AsyncSession[Any]
    steps: Steps[R]


class RunAgain(StreamsError):
    """Raised by a :class:`Companion` to have the transaction run again in a moment; that is no
    failure of the message."""


class FailedRun(NamedTuple):
    """A run of a handler's transaction that failed."""

    number: int
    """The number of the run, from 1."""
    calls: int
    """How many of the runs called the handler."""
    called: bool
    """Whether this run called the handler."""
    ours: bool
    """Whether a statement of the inbox failed, and not the handler."""
    broken: bool
    """Whether the connection is lost, whatever error the handler raised for it."""
    unable: bool
    """Whether the database answers but cannot work."""
    seconds: float
    """How long the run took."""
    waits: bool
    """Whether the run may wait for the transactions in its way."""
    committed_before: int
    """How many transactions the inbox had committed before the first run."""


class Companion(Protocol):
    """Takes part in each transaction of a handler."""

    def check(self, message: Message[Any]) -> None:
        """Check that a message may be handled, before its transaction begins.

        :raises ConfigError: the message must not be handled.
        """
        ...

    def handle(self, dialect: DialectName, patience: float) -> Steps[None]:
        """Statements that are run before the handler, once it is certain that it will be called. A
        lock timeout in them is no failure of the message, either.

        :param patience: seconds that a statement may wait for a lock; infinite: as long as any
            statement of the transaction.
        :raises RunAgain: the handler cannot be called now.
        """
        ...


class _Outage:
    """The outage of a database that answers but cannot work; decides which transactions may try it.
    For any thread."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.since = time.monotonic()
        """When the outage began: the commit of a transaction that began earlier does not end it."""
        self._pause = RETRY_PAUSE
        self._next = self.since + self._pause
        self._turn = threading.Lock()

    def may_try(self) -> bool:
        """Whether a transaction may begin; if so, the next one has to wait."""
        with self._turn:
            now = time.monotonic()
            if now < self._next:
                return False
            self._pause = min(2 * self._pause, LONGEST_TRIAL_PAUSE)
            self._next = now + self._pause
            return True

    def try_at_once(self) -> None:
        """Let the next transaction begin at once: the last one was answered, but did not show
        whether the database can write."""
        with self._turn:
            self._pause = RETRY_PAUSE
            self._next = time.monotonic()


class Inbox(AbstractAsyncContextManager["Inbox"]):
    """The inbox of one processor, opened and closed as a resource of the app.

    One class, because an outage is found out by transactions, decides which of them may begin, and
    ends with one: opening, beginning and what an error means share that state.

    :param connection: the app.
    :param processor: the processor, which has the topics and the group.
    :param database: the database in which handled messages are recorded.
    :param outboxes: the app's outboxes; the results of a processor with ``to=`` go through one.
    :param in_transactions: :func:`streams.inbox.handling.in_transactions`, which is in a higher
        layer.
    """

    def __init__(
        self,
        connection: Connection,
        processor: Processor[..., Any],
        database: Database[Any],
        outboxes: Mapping[str, ResultOutbox],
        in_transactions: Callable[[Inbox, Job], Job],
    ) -> None:
        self.database = database
        self._in_transactions = in_transactions
        self.stats = InboxStats()
        self._connection = connection
        self._processor = processor
        database.reserve(processor.options.concurrency + 2)  # for dead letters, and to purge
        names = DeadLetters()
        sources = {names.retry(each, processor.group): each for each in processor.topics}
        self.identities = Identities(
            processor.group, sources, lambda topic: connection.log.incarnation(topic)
        )
        self._outboxes = outboxes
        self._outbox: ResultOutbox | None = None
        self.companion: Companion | None = None
        """Adds statements to each transaction of a handler."""
        self._decodings: Mapping[str, Decoding] = {}
        self._lease = DEFAULT_LEASE
        self._timeout = processor.options.timeout or 0.0
        self._outage: _Outage | None = None
        self._ready = False
        self._opened = False
        self._left = False
        """The app was left: later calls must not open the inbox again."""
        self._life = threading.Lock()
        """Held while the inbox is opened, and while it is marked as left."""
        self._opening = threading.Lock()
        self._opening_async: asyncio.Lock | None = None
        self._helper: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._assigned: list[Assignment] = []
        self.begun: set[Assignment] = set()
        """The partitions whose messages may be handled, as their marks and rows were checked
        against the log."""
        self._to_begin: dict[Assignment, OwnedPartition] = {}
        """The partitions that are learned and not yet begun."""
        self._stop_purging: Callable[[], None] = lambda: None

    # -- its life

    @override
    async def __aenter__(self) -> Inbox:
        self._left = False
        if self.database.asynchronous:
            await self._open_async()
        else:
            await asyncio.to_thread(self._open)
        return self

    @override
    async def __aexit__(self, *_: object) -> None:
        with self._life:
            self._left = True
            opened, self._opened, self._ready = self._opened, False, False
        await asyncio.to_thread(self._stop_purging)
        self._stop_purging, self._assigned = lambda: None, []
        self.begun, self._to_begin = set(), {}
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        helper, self._helper = self._helper, None
        if helper is not None:
            await asyncio.to_thread(helper.shutdown, cancel_futures=True)
        self._outage = None
        self._opening_async = None  # it is bound to a loop, and the next run may have another
        if opened:
            if self.database.asynchronous:
                await self.database.leave_async()
            else:
                await asyncio.to_thread(self.database.leave)

    def _open(self) -> None:
        self._check()
        with self._life:
            self._check_not_left()
            self.database.enter()
            self._opened = True
            purger = Purger(self, self._connection)
            thread = threading.Thread(
                target=purger.run, name=f"streams-inbox-{self._processor.name}", daemon=True
            )

            def stop() -> None:
                purger.stop.set()
                thread.join(5.0)

            self._stop_purging = stop
            thread.start()

    async def _open_async(self) -> None:
        self._check()
        self._check_not_left()
        await self.database.enter_async()
        self._opened = True
        purger = Purger(self, self._connection)
        task = asyncio.get_running_loop().create_task(purger.run_async())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_not_left(self) -> None:
        """:raises TransactionPostponed: the app was left, so nothing would close the database if it
        were opened now."""
        if self._left:
            raise TransactionPostponed("its app was left")

    def _check(self) -> None:
        """:raises ConfigError: the database is the log's own file, or results have no outbox."""
        file = getattr(self.database, "path", None)
        if file is not None and is_file_of(self._connection.log, file):
            raise ConfigError(
                f"processor {self._processor.name}: transaction=Sqlite(...) names the log's own "
                "file; leave transaction= out, and message.transaction is the transaction that "
                "commits the message's position"
            )
        target = self._processor.options.to
        if target is not None:
            self._outbox = choose_outbox(
                self._outboxes.values(),
                self.database,
                f"processor {self._processor.name}: to={target.name!r} with "
                f"transaction={self.database.name}(...)",
            )

    @property
    def outbox(self) -> ResultOutbox:
        """The outbox for results; known once the database was ready for a transaction."""
        if self._outbox is None:
            raise RuntimeError("there is no outbox before the inbox is open")
        return self._outbox

    # -- the job

    def wrap(self, job: Job) -> Job:
        """The job with its handler in a transaction."""
        self._decodings = {**self._decodings, **job.decodings}
        return self._in_transactions(self, job)

    def results_of(self, job: Job) -> Results | None:
        """The writer of a job's results; None: they are dropped, as in a replay."""
        target = self._processor.options.to
        if target is None or job.encode_results is None:
            return None
        return Results(job.name, job.group, target, job.decodings, self.database.name)

    @property
    def timeouts(self) -> Timeouts:
        """How long a transaction of a handler waits."""
        return Timeouts(lock=self._lease, idle=max(self._lease, self._timeout))

    def learn(self, message: Message[Any]) -> OwnedPartition:
        """Learn the partition of a message (asks the log, and blocks).

        :raises TransactionPostponed: the log does not answer now.
        """
        assignment = message.assignment
        if assignment is None:
            raise ConfigError("transaction= needs a partition that is owned")
        try:
            found = self.identities.look_up(assignment)
        except Fatal:
            raise
        except LogError as error:
            raise TransactionPostponed(
                f"the log does not say which topic it is: {error}"
            ) from error
        self._lease = assignment.lease or DEFAULT_LEASE
        if assignment not in self.begun:
            self._to_begin[assignment] = found  # before anybody knows its messages
        self.identities.learn(found)
        return found

    def entry(self, value: Any, message: Message[Any]) -> Entry:
        """The inbox's entry of a message; may ask the log, and block.

        :param value: the message's value, once it is decoded.
        :raises TransactionPostponed: the log does not answer now.
        """
        value_id = self._value_id(value, message)
        found = self.identities.known_entry(message, value_id)
        return found or self.identities.entry(message, self.learn(message), value_id)

    def known_entries(self, messages: Sequence[Message[Any]]) -> list[Entry] | None:
        """The entries of a batch's messages, if none of them requires a request to the log or a
        decoded value; else None."""
        if any(each.id_reader is not None for each in self._decodings.values()):
            return None
        return self.identities.known_entries(messages)

    async def entry_async(self, value: Any, message: Message[Any]) -> Entry:
        """As :meth:`entry`, without blocking the loop."""
        found = self.identities.known_entry(message, self._value_id(value, message))
        if found is None:
            found = await asyncio.to_thread(self.entry, value, message)
        return found

    def _value_id(self, value: Any, message: Message[Any]) -> str | None:
        """The ID in a message's value, if its topic has one there."""
        decoding = self._decodings.get(message.topic)
        if decoding is None or decoding.id_reader is None:
            return None
        try:
            return decoding.id_reader(value)
        except Exception:  # counts as no ID: the headers' ID or the position is used
            return None

    def decode_again(self, value: Any, message: Message[Any]) -> tuple[Any, Message[Any]]:
        """A value and its message, decoded again to undo changes by the handler."""
        batch, index = row_of(message)
        decoding = self._decodings.get(batch.topic)
        if decoding is None:
            return value, message
        found = decoding.decode_one(batch, index)
        if isinstance(found, SeveralValues):  # events of an aggregate, which are frozen
            return value, message
        return found, make_message(found, batch, index, message.attempt)

    def _value_of(self, delivery: Delivery) -> Any:
        """The value of a message that is given up, if its identity may depend on it; None if it
        cannot be decoded."""
        decoding = self._decodings.get(delivery.fetched.batch.topic)
        if decoding is None or (decoding.id_reader is None and not decoding.gives_several):
            return None
        try:
            return decoding.decode_one(delivery.fetched.batch, delivery.index)
        except Exception:
            return None

    def _given_up(self, delivery: Delivery) -> list[Message[Any]]:
        """The entries of a message that is given up: its own, or, if the message has several
        values, one for each that its handler takes."""
        batch, index = delivery.fetched.batch, delivery.index
        value = self._value_of(delivery)
        message = make_message(value, batch, index, delivery.attempt)
        if not isinstance(value, SeveralValues):
            return [message]
        return [
            numbered_message(message, each, number)
            for number, each in enumerate(value.values)
            if self._may_take(each)
        ] or [message]

    def _may_take(self, value: Any) -> bool:
        accepts = self._processor.options.filter
        try:
            return accepts is None or accepts(value)
        except Exception:  # that may be what failed
            return True

    def check_owned(self, message: Message[Any]) -> None:
        """:raises OwnershipLost: the message's partition may be another member's by now."""
        if self._connection.clock.monotonic() >= message.assignment.valid_until:
            raise OwnershipLost(f"{message.position}: this member may no longer own its partition")

    # -- a new transaction, once there can be one

    def begin(self, message: Message[Any], *, patience: float) -> Session[Any]:
        """A new transaction for a message; waits while the database is out of reach.

        :param patience: seconds that may be waited.
        :raises OwnershipLost: the message must not be handled any more.
        :raises TransactionPostponed: nothing is to be started now.
        """
        give_up = time.monotonic() + patience
        tries = 0
        while True:
            tries += 1
            self.check_owned(message)
            if self._may_begin(give_up):
                try:
                    self._make_ready()
                    self._check_begun(message)
                    session = self.database.begin()
                except Exception as error:
                    self._out_of_reach(error, give_up, tries)
                else:
                    self._answers()
                    return session
            time.sleep(RETRY_PAUSE * (0.5 + random.random() / 2))

    async def begin_async(
        self,
        message: Message[Any],
        steps_of: Callable[[DialectName], Steps[R]],
        *,
        patience: float,
    ) -> BegunAsync[R]:
        """As :meth:`begin`; the transaction begins with the first of these statements."""
        give_up = time.monotonic() + patience
        tries = 0

        def left() -> float | None:
            """The remaining patience in seconds. (The handler's timeout would count a longer wait
            for the database as a failure of the message.)"""
            return max(0.0, give_up - time.monotonic()) if 0 < patience < math.inf else None

        while True:
            tries += 1
            self.check_owned(message)
            if self._may_begin(give_up):
                try:
                    await self._make_ready_async(left())
                    self._check_begun(message)
                    steps = steps_of(self.database.dialect)
                    session = await self.database.begin_with_async(next(steps), patience=left())
                except Exception as error:
                    self._out_of_reach(error, give_up, tries)
                else:
                    self._answers()
                    return BegunAsync(session, steps)
            await asyncio.sleep(RETRY_PAUSE * (0.5 + random.random() / 2))

    def _may_begin(self, give_up: float) -> bool:
        """Whether a transaction may begin now; False: try again in a moment.

        :raises TransactionPostponed: the patience is used up, or nothing is to be started now.
        """
        outage = self._outage
        if outage is None or outage.may_try():
            return True
        self._keep_waiting(outage.error, give_up)
        return False

    def _out_of_reach(self, error: Exception, give_up: float, tries: int) -> None:
        """Decide about an error that kept a transaction from beginning; return: try again. It is
        never counted against the message.

        :raises ConfigError: the error is one, or was caused by one.
        :raises TransactionPostponed: the error is one, the patience is used up, or nothing is to
            be started now.
        """
        if find_config_error(error) is not None or isinstance(error, TransactionPostponed):
            raise error
        if self._is_outage(error, tries):
            self.note_outage(error)
        self._keep_waiting(error, give_up)

    def _is_outage(self, error: Exception, tries: int) -> bool:
        """Whether an error that kept a transaction from beginning means that the database is
        unreachable."""
        if isinstance(error, Busy):
            return False
        if not self.is_conflict(error, ours=True):
            return True
        # For a server, a lock timeout is an answer. A file that another process locks for long
        # counts as unreachable.
        chain = error_chain(error, with_suppressed=False)
        return tries > 1 and not any(state_of(each) for each in chain)

    def _keep_waiting(self, error: Exception, give_up: float) -> None:
        """Return while it is worth trying again.

        :raises TransactionPostponed: the patience is used up, or nothing is to be started now.
        """
        executor = self._processor.executor
        if executor is not None and executor.suspended:
            raise TransactionPostponed("no transaction may begin now") from error
        if time.monotonic() >= give_up:
            raise TransactionPostponed(f"{self.database.name}: {describe_error(error)}") from error

    def note_outage(self, error: BaseException) -> None:
        """Log, once, that the database cannot be reached or cannot work."""
        if self.stats.reachable:
            self.stats.reachable = False
            logger.warning(
                "%s: waiting for its database (%s): %s",
                self._processor.name, self.database.name, describe_error(error),
            )  # fmt: skip

    def _answers(self) -> None:
        if not self.stats.reachable and self._outage is None:
            self.stats.reachable = True
            logger.warning("%s: its database answers again", self._processor.name)

    def committed(self, began: float) -> None:
        """Note the commit of a transaction that began at this monotonic time."""
        outage = self._outage
        if outage is not None and began >= outage.since:
            self._outage = None
            self._answers()

    def answered_without_writing(self) -> None:
        """Note that a transaction had nothing to do: its database answers, and the next transaction
        shows whether it can work."""
        if self._outage is not None:
            self._outage.try_at_once()

    def _make_ready(self) -> None:
        """Open the database, check its tables, and begin the new partitions, unless that is done.

        :raises Busy: another handler is doing it.
        """
        if self._ready and not self._to_begin:
            return
        # A long wait here would miss that nothing is to be started any more.
        if not self._opening.acquire(timeout=RETRY_PAUSE):
            raise Busy("another handler waits for the database")
        try:
            if not self._ready:
                self._prepare()
            for owned in self._not_begun():
                steps = partial(self._begin_partition, owned)
                with suppress(OwnershipLost):
                    self._set_begun(owned, self._in_session(steps))
        finally:
            self._opening.release()

    def _prepare(self) -> None:
        if not self._opened:  # it was declared on an app that was entered already
            self._open()
        found = self._in_session(find_version)
        if found is None and self.database.create:
            try:
                found = self._in_session(create_missing)
            except Exception as error:
                raise self._cannot_create(error) from error
        check_version(found, self.database.name, self.database.dialect)
        if self._outbox is not None and not self._in_session(self._outbox.find_table):
            self._check_may_create(self._outbox)
            try:
                self._in_session(self._outbox.create_tables_there)
            except Exception as error:
                raise self._cannot_create_outbox(self._outbox, error) from error
        self._ready = True

    def _in_session(self, steps: Any) -> Any:
        session = self.database.begin()
        try:
            found = run(session, steps(self.database.dialect))
            session.commit()
        except BaseException:
            session.rollback()
            raise
        return found

    async def _make_ready_async(self, limit: float | None) -> None:
        """As :meth:`_make_ready`.

        :param limit: the longest wait, in seconds; None: there is none.
        :raises TimeoutError: it takes longer.
        """
        if not self._ready or self._to_begin:
            async with asyncio.timeout(limit):
                await self._open_and_begin_async()

    async def _open_and_begin_async(self) -> None:
        if self._opening_async is None:
            self._opening_async = asyncio.Lock()
        opening = self._opening_async
        try:
            async with asyncio.timeout(RETRY_PAUSE):
                await opening.acquire()
        except TimeoutError:
            raise Busy("another handler waits for the database") from None
        try:
            if not self._ready:
                await self._prepare_async()
            for owned in self._not_begun():
                steps = partial(self._begin_partition, owned)
                with suppress(OwnershipLost):
                    self._set_begun(owned, await self._in_session_async(steps))
        finally:
            opening.release()

    async def _prepare_async(self) -> None:
        if not self._opened:
            await self._open_async()
        found = await self._in_session_async(find_version)
        if found is None and self.database.create:
            try:
                found = await self._in_session_async(create_missing)
            except Exception as error:
                raise self._cannot_create(error) from error
        check_version(found, self.database.name, self.database.dialect)
        if self._outbox is not None and not await self._in_session_async(self._outbox.find_table):
            self._check_may_create(self._outbox)
            try:
                await self._in_session_async(self._outbox.create_tables_there)
            except Exception as error:
                raise self._cannot_create_outbox(self._outbox, error) from error
        self._ready = True

    async def _in_session_async(self, steps: Any) -> Any:
        session = await self.database.begin_async()
        try:
            found = await run_async(session, steps(self.database.dialect))
            await session.commit()
        except BaseException:
            await session.rollback()
            raise
        return found

    # -- a partition that is new

    def _not_begun(self) -> list[OwnedPartition]:
        """The partitions that are learned, not begun, and certainly still owned."""
        for assignment in list(self._to_begin):
            if assignment in self.begun or assignment.valid_until == -math.inf:
                self._to_begin.pop(assignment, None)
        return [each for each in list(self._to_begin.values()) if self._is_ours(each.assignment)]

    def _check_begun(self, message: Message[Any]) -> None:
        """:raises Busy: the message's partition could not be begun, as it is not certainly
        owned."""
        if message.assignment in self._to_begin:
            raise Busy(f"{message.position}: it is not certain which member owns its partition")

    def _is_ours(self, assignment: Assignment) -> bool:
        """Whether no other member can own this partition yet."""
        return self._connection.clock.monotonic() < assignment.valid_until

    def _begin_partition(
        self, owned: OwnedPartition, dialect: DialectName
    ) -> Steps[RecordedPositions]:
        """:raises OwnershipLost: the partition may be another member's by now, so the facts learned
        of it are outdated: nothing may be committed.
        """
        assignment, committed = owned.assignment, owned.assignment.committed
        yield from bound_waits(dialect, lock=BEGIN_LOCK, idle=IDLE_WITH_LOCK)
        found = yield from begin_partition(
            dialect,
            owned.scope,
            owned.number,
            start=assignment.position,
            settled=assignment.position if committed is None else committed.position,
            end=assignment.log_end,
        )
        # After the last statement: a process that is frozen from here on holds the locks of the
        # rows it changed.
        if not self._is_ours(assignment):
            raise OwnershipLost(f"{owned.scope.topic}/{owned.scope.partition}: not owned now")
        return found

    def _set_begun(self, owned: OwnedPartition, known: RecordedPositions) -> None:
        """Note that a partition was begun; warn if its mark and rows do not match the log."""
        assignment = owned.assignment
        still_ours = {each for each in self.begun if each.valid_until > -math.inf}
        self.begun = {*still_ours, assignment}
        self._to_begin.pop(assignment, None)
        show, end = self._connection.log.format_offset, assignment.log_end
        topic, partition = assignment.topic_partition
        if end is not None and known.end > end:
            self.stats.losses += 1
            logger.error(
                "%s: %s/%d ended at %s when it was assigned, but its database knows messages up to "
                "%s: the log was restored from an older copy, or has lost its end; messages at "
                "those offsets are handled unless their IDs are known",
                self._processor.name, topic, partition, show(end), show(known.end),
            )  # fmt: skip
        elif assignment.position < known.mark:
            self.stats.losses += 1
            logger.error(
                "%s: the group continues in %s/%d at %s, although everything below %s was settled "
                "and purged: the log was restored from an older copy, or another tool has moved "
                "the group; messages below count as handled, unless streams reset moves it",
                self._processor.name, topic, partition, show(assignment.position), show(known.mark),
            )  # fmt: skip

    # -- what keeps it from being made ready

    def _cannot_create(self, error: Exception) -> Exception:
        """The error to raise for an error of creating the tables."""
        if self._may_pass(error):
            return error
        return ConfigError(
            f"transaction={self.database.name}: the inbox's tables cannot be made "
            f"({describe_error(error)}); ask an administrator to run the output of "
            f"`streams inbox ddl {self.database.dialect}`"
        )

    def _check_may_create(self, outbox: ResultOutbox) -> None:
        if not self.database.create:
            raise ConfigError(
                f"transaction={self.database.name}(create=False): the table of the outbox "
                f"{outbox.name!r} is missing there; await outbox.create_tables() makes it, or what "
                "outbox.schema() gives, in a migration"
            )

    def _may_pass(self, error: Exception) -> bool:
        """Whether a failed statement of the inbox may succeed later."""
        is_fault = self.database.classify(error) is Failure.FAULT
        return not is_fault or self.is_conflict(error, ours=True)

    def _cannot_create_outbox(self, outbox: ResultOutbox, error: Exception) -> Exception:
        if self._may_pass(error):
            return error
        return ConfigError(
            f"transaction={self.database.name}: the tables of the outbox {outbox.name!r} are "
            f"missing there and cannot be made ({describe_error(error)}); ask an "
            "administrator to run the statements of outbox.schema()"
        )

    # -- after an error

    def is_conflict(self, error: BaseException, *, ours: bool) -> bool:
        """Whether an error means that another transaction was in the way.

        :param ours: it comes from a statement of ours, and not from the handler.
        """
        if self.database.classify(error) is Failure.CONFLICT:
            return True
        return ours and is_conflict_of_ours(error)

    def may_be_unable(self, error: Exception, *, ours: bool) -> bool:
        """Whether an error means that a database answers but cannot work now.

        :param ours: it comes from a statement of ours, and not from the handler.
        """
        if self.database.classify(error) is Failure.CONFLICT:
            return False
        kinds = (Failure.UNABLE, Failure.UNREACHABLE) if ours else (Failure.UNABLE,)
        return any(
            failure_of_answer(each) in kinds for each in error_chain(error, with_suppressed=False)
        )

    def runs_again(self, error: Exception, failed: FailedRun) -> float | None:
        """Seconds after which a failed transaction is run again in place; None: the error counts as
        the message's.

        :raises TransactionPostponed: the message is retried later, and uses up no attempt.
        """
        if isinstance(error, (ConfigError, OwnershipLost, TransactionPostponed)):
            return None
        if isinstance(error, RunAgain):
            executor = self._processor.executor
            if not failed.waits or (executor is not None and executor.suspended):
                raise TransactionPostponed(str(error)) from error
            return RUN_AGAIN_PAUSE
        if self.is_conflict(error, ours=failed.ours):
            failure = Failure.CONFLICT
        elif failed.broken:
            # A server that ends a transaction which idled too long breaks its connection, too.
            idled = failed.seconds >= self.timeouts.idle
            failure = Failure.CONFLICT if idled else Failure.UNREACHABLE
        elif failed.unable:
            failure = Failure.UNREACHABLE
            self._note_unable(error)
        else:
            return None  # the handler's own, or of another database that it uses
        if failed.number >= RUNS_IN_PLACE:
            if not failed.called or (
                failure is Failure.UNREACHABLE and not self._is_its_own(error, failed)
            ):
                raise TransactionPostponed(
                    f"{self.database.name}: {describe_error(error)}"
                ) from error
            return None
        self.stats.reruns += 1
        if failure is Failure.UNREACHABLE:
            return 0.0  # the next transaction waits until there can be one
        return random.random() * 0.01 * 2.0**failed.number

    def _is_its_own(self, error: Exception, failed: FailedRun) -> bool:
        """Whether the handler itself, with this message, breaks the connection or makes the server
        fail: each run called the handler, so the database was reachable each time."""
        if failed.number > failed.calls:
            return False
        if failed.broken:
            # Not if the server has crashed: another handler may have caused that.
            chain = error_chain(error, with_suppressed=False)
            return all(state_of(each) != CRASHED for each in chain)
        # A server without room may still accept small statements. So other transactions must have
        # committed.
        return self.stats.committed > failed.committed_before

    def _note_unable(self, error: Exception) -> None:
        """Note that the database answers but cannot work."""
        if self._outage is None:
            self._outage = _Outage(error)
        self.note_outage(error)

    # -- dead letters

    def before_dead_letter(
        self, delivery: Delivery, answer: Callable[[DeadLetterAnswer | BaseException], None]
    ) -> None:
        """Give a message up in the database; see :attr:`Job.before_dead_letter`."""
        messages = self._given_up(delivery)
        if self.database.asynchronous:
            task = asyncio.get_running_loop().create_task(self._mark_dead_async(messages, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, thread_name_prefix="streams-inbox")
        self._helper.submit(self._mark_dead, messages, answer)

    def _mark_dead(
        self,
        messages: Sequence[Message[Any]],
        answer: Callable[[DeadLetterAnswer | BaseException], None],
    ) -> None:
        try:
            entries = [self.entry(each.value, each) for each in messages]
            session = self.begin(messages[0], patience=0)
            began, unable = time.monotonic(), False
            try:
                verdicts = run(session, self._mark_all_dead(entries, self.database.dialect))
                if Verdict.DEAD in verdicts:
                    session.commit()
                    self.committed(began)
            except Exception as error:
                unable = self._is_unable(error, broken=session.is_broken())
                raise
            finally:
                session.rollback(close=unable)
        except OwnershipLost:
            answer(DeadLetterAnswer.ABANDON)
        except BaseException as error:
            answer(error)
        else:
            answer(_answer_of(verdicts))

    async def _mark_dead_async(
        self,
        messages: Sequence[Message[Any]],
        answer: Callable[[DeadLetterAnswer | BaseException], None],
    ) -> None:
        try:
            entries = [await self.entry_async(each.value, each) for each in messages]
            session, steps = await self.begin_async(
                messages[0], partial(self._mark_all_dead, entries), patience=0
            )
            began, unable = time.monotonic(), False
            try:
                verdicts = await run_async(session, steps, await session.first_rows())
                if Verdict.DEAD in verdicts:
                    await session.commit()
                    self.committed(began)
            except Exception as error:
                unable = self._is_unable(error, broken=session.is_broken())
                raise
            finally:
                await session.rollback(close=unable)
        except OwnershipLost:
            answer(DeadLetterAnswer.ABANDON)
        except Exception as error:
            answer(error)
        except asyncio.CancelledError:
            answer(DeadLetterAnswer.ABANDON)
            raise
        else:
            answer(_answer_of(verdicts))

    def _mark_all_dead(
        self, entries: Sequence[Entry], dialect: DialectName
    ) -> Steps[list[Verdict]]:
        verdicts = []
        for entry in entries:
            verdicts.append((yield from mark_dead(dialect, entry, self.timeouts)))  # noqa: PERF401
        return verdicts

    def _is_unable(self, error: Exception, *, broken: bool) -> bool:
        """Whether the error of an inbox's statement means that the database answers but cannot
        work."""
        unable = not broken and self.may_be_unable(error, ours=True)
        if unable:
            self._note_unable(error)
        return unable

    # -- purging

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Note the assigned partitions: their rows are purged, whether new messages come or not. In
        the thread that polls."""
        self._assigned = [*self.owned(), *assignments]

    def owned(self) -> list[Assignment]:
        """The assigned partitions that were not given up since."""
        return [each for each in self._assigned if each.valid_until > -math.inf]

    @property
    def group(self) -> str:
        """The processor's group."""
        return self._processor.group

    @property
    def name(self) -> str:
        """The processor's name."""
        return self._processor.name


def _answer_of(verdicts: Sequence[Verdict]) -> DeadLetterAnswer:
    """The answer for a message whose values may all have been handled after all."""
    return DeadLetterAnswer.WRITE if Verdict.DEAD in verdicts else DeadLetterAnswer.SETTLE
